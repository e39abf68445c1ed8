//! A host: a network namespace with one interface, behind the router that the sandbox itself is.

use crate::shell;
use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Host {
    pub name: &'static str,
    pub v4: &'static str,
    pub v6: &'static str,
}

pub fn ip(args: &str) -> Result<String> {
    shell::output(Command::new("ip").args(args.split_whitespace())).with_context(|| format!("ip {args}"))
}

const ROUTER_V4: &str = "192.0.2.1";
const ROUTER_V6: &str = "fe80::1";

/// Makes the sandbox's own namespace a router.
pub fn router() -> Result<()> {
    ip("link set lo up")?;
    for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = format!("/proc/sys/net/{name}");
        std::fs::write(&path, "1").with_context(|| path.clone())?;
    }
    Ok(())
}

impl Host {
    /// Its addresses stand alone, so that any two hosts reach each other by the router only.
    pub fn make(name: &'static str, v4: &'static str, v6: &'static str) -> Result<Self> {
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add {name} type veth peer name eth0 netns {name}"))?;
        for args in [
            format!("addr add {ROUTER_V4}/32 dev {name}"),
            format!("addr add {ROUTER_V6}/64 dev {name} nodad"),
            format!("link set {name} up"),
            format!("route add {v4}/32 dev {name}"),
            format!("-6 route add {v6}/128 dev {name}"),
        ] {
            ip(&args)?;
        }
        for args in [
            "link set lo up".to_owned(),
            format!("addr add {v4}/32 dev eth0"),
            format!("addr add {v6}/128 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            format!("route add {ROUTER_V4} dev eth0 scope link"),
            format!("route add default via {ROUTER_V4} src {v4}"),
            format!("-6 route add default via {ROUTER_V6} dev eth0 src {v6}"),
        ] {
            ip(&format!("-n {name} {args}"))?;
        }
        Ok(Self { name, v4, v6 })
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name)
    }

    /// A program on this host. `ip netns exec` would hide cgroups and pins behind a /sys of its own.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `work` in a thread on this host.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Something that runs beside; ended when dropped.
pub struct Server(Child);

impl Server {
    pub fn start(command: &mut Command) -> Result<Self> {
        Self::start_to(command, Path::new("/dev/null"))
    }

    /// With its output in a file.
    pub fn start_to(command: &mut Command, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let name = format!("{command:?}");
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Self(child.with_context(|| format!("cannot start {name}"))?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Errors only say that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until `ready` says yes, for twenty seconds: a machine under load is no failure.
pub fn wait_for(what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !ready() {
        if start.elapsed() > Duration::from_secs(20) {
            bail!("{what}: not within 20 s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What a program said, and whether it succeeded within the limit.
pub fn ask(command: &mut Command, input: &str, limit: Duration) -> Result<(bool, String)> {
    let name = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that reads none of it has closed it.
        let _ = stdin.write_all(input.as_bytes());
    }
    let mut stdout = child.stdout.take().context("no pipe")?;
    let (said, text) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = stdout.read(&mut chunk) {
            let _ = said.send(chunk[..read].to_vec());
        }
    });
    let start = Instant::now();
    let good = loop {
        if let Some(status) = child.try_wait()? {
            break status.success();
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            break false;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // A process that the program left behind may hold the pipe open: what there is within a moment is all.
    let mut bytes = Vec::new();
    while let Ok(chunk) = text.recv_timeout(Duration::from_millis(300)) {
        bytes.extend(chunk);
    }
    Ok((good, String::from_utf8_lossy(&bytes).into_owned()))
}
