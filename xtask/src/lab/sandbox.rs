//! Runs a part of this program again inside namespaces of its own: network, mounts, processes. Whatever is made in
//! there (hosts, servers, pins, mounts) goes with its first process. Only the cgroup is the machine's; it is removed
//! when the sandbox has ended.

use crate::shell;
use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Names the cgroup to the inside.
const CGROUP: &str = "GUARD_LAB_CGROUP";
const PREFIX: &str = "guard-lab-";

/// Set inside: the cgroup that guard is to guard, empty, never the root.
pub fn inside() -> Option<PathBuf> {
    std::env::var_os(CGROUP).map(PathBuf::from)
}

/// Calls this program again with `args`, inside; true if it succeeded. Ctrl-C, SIGTERM and SIGHUP end it.
pub fn enter<S: AsRef<OsStr>>(args: &[S]) -> Result<bool> {
    ensure!(shell::is_root(), "needs root, to make network namespaces");
    let cgroup = Cgroup::make()?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;

    // setpriv: should this process be killed, unshare is, and with it the first process inside.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--mount", "--ipc", "--pid", "--fork"]);
    command.args(["--kill-child=KILL", "--mount-proc", "--"]).arg(shell::own_program()?).args(args);
    command.env(CGROUP, &cgroup.path).stdin(Stdio::null());
    // A process group of its own, so that the terminal's Ctrl-C comes to us alone.
    let mut running = Running(command.process_group(0).spawn().context("cannot start setpriv and unshare")?);
    loop {
        if let Some(status) = running.0.try_wait()? {
            return Ok(status.success());
        }
        if let Some(signal) = signals.read_signal()? {
            drop(running);
            let name = i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            bail!("stopped by {}; everything is taken down", name.map_or("a signal", Signal::as_str));
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// First thing inside: places of our own over those of the machine.
pub fn settle() -> Result<()> {
    for (kind, dir) in [("tmpfs", "/run"), ("bpf", "/sys/fs/bpf")] {
        shell::output(Command::new("mount").args(["-t", kind, kind, dir]))?;
    }
    for dir in ["/run/netns", "/run/sshd", "/run/lab"] {
        std::fs::create_dir(dir)?;
    }
    Ok(())
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Errors only say that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    fn make() -> Result<Self> {
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        let root = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let dir = fields.next()?;
            (fields.next()? == "cgroup2").then_some(dir)
        });
        let root = Path::new(root.context("no cgroup2 file system is mounted")?);
        sweep(root);
        let path = root.join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel lets go of a process's cgroup a moment after the process has ended.
        for _ in 0..100 {
            if remove(&self.path) {
                return;
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        eprintln!("{} could not be removed", self.path.display());
    }
}

/// With the cgroups below it.
fn remove(path: &Path) -> bool {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    std::fs::remove_dir(path).is_ok()
}

/// What a run that was killed has left.
fn sweep(root: &Path) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            remove(&entry.path());
        }
    }
}
