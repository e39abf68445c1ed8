//! One network namespace, and how to run things in it.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Write},
    ops::Deref,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns};

/// Deleted on drop. Its interfaces go with it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    inside: Inside,
}

/// What it takes to run something in a network namespace: cheap to clone.
#[derive(Clone, Debug)]
pub struct Inside {
    net: Arc<File>,
    mounts: Arc<File>,
    /// `cgroup.procs` of the cgroup that its commands belong to.
    procs: Arc<File>,
}

impl Inside {
    /// Runs a closure in a thread that is inside. Sockets that it makes stay inside wherever they are used.
    ///
    /// The thread is not in this namespace's cgroup: guard's socket layer does not see it, the wire layer does.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.net, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside, in the cgroup from before its first instruction on, and in the mount namespace
    /// that has this world's pins. Nothing on its standard input.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        let Self { net, mounts, procs } = self.clone();
        let enter = move || {
            // At offset 0, however often the descriptor was used.
            nix::sys::uio::pwrite(&*procs, b"0", 0)?;
            setns(&*net, CloneFlags::CLONE_NEWNET)?;
            setns(&*mounts, CloneFlags::CLONE_NEWNS)?;
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made; nothing is allocated and no lock is taken.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// The same place, with commands in another cgroup.
    pub fn in_cgroup(&self, cgroup: &Path) -> io::Result<Self> {
        Ok(Self { procs: Arc::new(open_procs(cgroup)?), ..self.clone() })
    }
}

fn open_procs(cgroup: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"))
}

impl Namespace {
    pub fn create(name: &str, cgroup: &Path, mounts: Arc<File>) -> io::Result<Self> {
        ip(&["netns", "add", name])?;
        let made = || -> io::Result<Self> {
            let (net, procs) = (Arc::new(File::open(path(name))?), Arc::new(open_procs(cgroup)?));
            Ok(Self { name: name.to_owned(), inside: Inside { net, mounts, procs } })
        };
        made().inspect_err(|_| delete(name))
    }

    /// As `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        path(&self.name)
    }

    /// Lines for `ip -batch`, for this namespace. On a machine without IPv6 those with such addresses are left out.
    pub fn ip(&self, batch: &str) -> io::Result<()> {
        let usable: String = batch
            .lines()
            .filter(|line| has_ipv6() || !line.contains("2001:db8"))
            .map(|line| format!("{line}\n"))
            .collect();
        let batch = usable.as_str();
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(batch.as_bytes())?;
        }
        ended(child.wait_with_output()?, batch)
    }

    /// Writes `/proc/sys/net/...` of this namespace; of IPv6, where there is any.
    pub fn sysctl(&self, key: &str, value: &str) -> io::Result<()> {
        if key.starts_with("ipv6/") && !has_ipv6() {
            return Ok(());
        }
        self.run(|| std::fs::write(format!("/proc/sys/net/{key}"), value))
    }

    #[must_use]
    pub fn interface_index(&self, name: &str) -> u32 {
        self.run(|| nix::net::if_::if_nametoindex(name)).unwrap_or_else(|error| panic!("interface {name}: {error}"))
    }
}

impl Deref for Namespace {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

/// Whether this machine speaks IPv6 at all: `ipv6.disable=1` takes it away.
#[must_use]
pub fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

pub fn delete(name: &str) {
    if let Err(error) = ip(&["netns", "delete", name]) {
        eprintln!("cannot delete network namespace {name}: {error}");
    }
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    ended(Command::new("ip").args(arguments).stdin(Stdio::null()).output()?, &arguments.join(" "))
}

fn ended(output: std::process::Output, what: &str) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("ip {what}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
