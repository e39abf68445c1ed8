//! Somebody at the shell of a bare host, in namespaces of its own: a root, a network, a cgroup that is the whole tree there.

use super::readme::Readme;
use crate::capture;
use crate::lab::host::{Host, router};
use crate::lab::sandbox;
use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The README's policy lets everyone ask for pages.
const PAGES: ([u8; 4], u16) = ([192, 0, 2, 10], 80);
/// What no rule lists: a port of ours, and somewhere to call.
const CLOSED: ([u8; 4], u16) = ([192, 0, 2, 10], 23);
const ELSEWHERE: ([u8; 4], u16) = ([203, 0, 113, 9], 4444);

/// As Zeek writes it.
const CONN_LOG: &str = r#"{"ts":1767225600.0,"uid":"C1","id.orig_h":"192.0.2.10","id.orig_p":40001,"id.resp_h":"203.0.113.9","id.resp_p":4444,"proto":"tcp","conn_state":"S0","orig_pkts":1,"orig_ip_bytes":40,"resp_pkts":0,"resp_ip_bytes":0}
"#;

/// Mounts what a booted host has below `root`, for the caller's own cgroup namespace; `mount`: how to call `mount(8)`.
pub fn boot(root: &Path, cgroup: &Path, mount: impl Fn() -> Command) -> Result<()> {
    std::fs::write(cgroup.join("cgroup.procs"), "0").context("entering the cgroup")?;
    // The sandbox's maker waits for signals, and has handed down that they are held back.
    SigSet::empty().thread_set_mask()?;
    unshare(CloneFlags::CLONE_NEWCGROUP).context("no cgroup namespace")?;
    let at = |kind: &str, below: &str| {
        let mut command = mount();
        crate::shell::output(command.args(["-t", kind, kind]).arg(root.join(below)))
    };
    for (kind, below) in [("proc", "proc"), ("sysfs", "sys"), ("cgroup2", "sys/fs/cgroup"), ("tmpfs", "run")] {
        at(kind, below).with_context(|| format!("mounting {below}"))?;
    }
    // What guard takes for the host's whole tree must be that cgroup: never the machine's.
    let there = std::fs::metadata(root.join("sys/fs/cgroup"))?.ino();
    ensure!(there == std::fs::metadata(cgroup)?.ino(), "the root's cgroup tree is not the cgroup that was made for it");
    Ok(())
}

/// A command below a root, with nothing of this machine's environment.
pub fn typed(mut command: Command, root: &Path, directory: &str, line: &str) -> Command {
    command.arg(root).args(["/bin/sh", "-c", "cd \"$1\" && eval \"exec $2\"", "sh", directory, line]);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("TERM", "dumb").env("LANG", "C.UTF-8");
    command
}

pub struct Session {
    root: PathBuf,
    host: Host,
    outside: Host,
    _pages: TcpListener,
}

impl Session {
    /// In a sandbox. `deb` is put where README.md has it: in the folder where the newcomer is.
    pub fn begin(root: &Path, deb: &Path, readme: &Readme) -> Result<Self> {
        let cgroup = sandbox::inside().context("a session runs in a sandbox")?;
        sandbox::settle()?;
        router()?;
        let host = Host::make("server", "192.0.2.10", "2001:db8::10")?;
        let outside = Host::make("outside", "203.0.113.9", "2001:db8:113::9")?;
        boot(root, &cgroup, || host.command("mount"))?;
        let home = root.join("root");
        std::fs::copy(deb, home.join(deb.file_name().context("a package without a name")?))?;
        std::fs::write(home.join("policy.yaml"), readme.policy()?)?;
        std::fs::write(home.join("capture.pcapng"), capture::pcapng())?;
        std::fs::write(home.join("conn.log"), CONN_LOG)?;
        let pages = host.within(|| TcpListener::bind(SocketAddr::from(PAGES)))??;
        Ok(Self { root: root.to_path_buf(), host, outside, _pages: pages })
    }

    fn typed(&self, line: &str) -> Command {
        typed(self.host.command("chroot"), &self.root, "/root", line)
    }

    /// Exit status and all that it said.
    pub fn ask(&self, line: &str, limit: Duration) -> Result<(Option<i32>, String)> {
        let mut child = Running::start(self.typed(line))?;
        let code = child.wait(limit)?;
        Ok((code, child.said()?))
    }

    pub fn start(&self, line: &str, ready: &str, limit: Duration) -> Result<Running> {
        let mut running = Running::start(self.typed(line))?;
        let begun = Instant::now();
        loop {
            let said = running.said()?;
            if said.contains(ready) {
                return Ok(running);
            }
            if let Some(status) = running.child.try_wait()? {
                bail!("ended ({status}) before it was ready:\n{said}");
            }
            ensure!(begun.elapsed() < limit, "did not say {ready:?} within {} s:\n{said}", limit.as_secs());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// A page asked for, a closed port tried, a call to somewhere: whether it passes is not judged here.
    pub fn traffic(&self) -> Result<()> {
        let knock =
            |address| TcpStream::connect_timeout(&SocketAddr::from(address), Duration::from_millis(300)).is_ok();
        ensure!(self.outside.within(|| knock(PAGES))?, "the page that everyone may ask for does not come");
        self.outside.within(|| knock(CLOSED))?;
        self.host.within(|| knock(ELSEWHERE))?;
        Ok(())
    }

    /// apt takes the package away again where guard holds nothing.
    pub fn removed(&self) -> Result<()> {
        let (code, said) = self.ask("apt-get purge -y guard", Duration::from_secs(60))?;
        ensure!(code == Some(0), "the package is not removed ({code:?}):\n{said}");
        ensure!(!self.root.join("usr/bin/guard").exists(), "the package left its program");
        Ok(())
    }
}

/// Something that was typed, and what it has said so far. Ended when dropped.
pub struct Running {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Running {
    pub fn start(mut command: Command) -> Result<Self> {
        let log = tempfile::NamedTempFile::new()?;
        // What a person would answer to apt's question.
        let mut yes = tempfile::tempfile()?;
        std::io::Write::write_all(&mut yes, b"y\n")?;
        std::io::Seek::rewind(&mut yes)?;
        let out = File::options().append(true).open(log.path())?;
        let child = command.stdin(Stdio::from(yes)).stdout(out.try_clone()?).stderr(out).spawn();
        Ok(Self { child: child.context("cannot start what was typed")?, log })
    }

    pub fn said(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.log.path())?).into_owned())
    }

    pub fn wait(&mut self, limit: Duration) -> Result<Option<i32>> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            if begun.elapsed() > limit {
                bail!("not done within {} s:\n{}", limit.as_secs(), self.said()?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As systemd ends a service.
    pub fn stop(mut self, limit: Duration) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let code = self.wait(limit)?;
        ensure!(code == Some(0), "ended with {code:?} when it was asked to:\n{}", self.said()?);
        Ok(())
    }

    /// By itself.
    pub fn ended(mut self, limit: Duration) -> Result<()> {
        let code = self.wait(limit).context("goes on although guard was taken down")?;
        ensure!(code == Some(0), "ended with {code:?}:\n{}", self.said()?);
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors only say that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
