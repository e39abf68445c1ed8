//! The recording daemon of a lockdown: a process of its own that outlives the command and the terminal.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    daemon::{
        control::{self, Answer, Request},
        state_dir::StateDir,
    },
    kernel,
};

/// What the daemon says goes there.
pub const LOG: &str = "daemon.log";
const START: Duration = Duration::from_secs(20);

/// Starts `guard record` in a session of its own, and waits until it answers. Whatever fails here, the kernel enforces.
pub fn start(instance: &str, state: &StateDir) -> Result<u32, String> {
    let mut child = spawn(instance, state).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + START;
    loop {
        if let Ok(Some(Answer::Status(status))) = control::ask(&state.socket(), &Request::Status) {
            return Ok(status.pid);
        }
        match child.try_wait() {
            Ok(Some(status)) => return Err(format!("it ended ({status}); see {}", state.path().join(LOG).display())),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            _ => return Err(format!("it does not answer; see {}", state.path().join(LOG).display())),
        }
    }
}

fn spawn(instance: &str, state: &StateDir) -> io::Result<Child> {
    let log = || {
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(state.path().join(LOG))
    };
    // This very binary, wherever it was started from, and if it is gone from there.
    let mut command = Command::new("/proc/self/exe");
    command.args(["record", "--instance", instance, "--state-dir"]).arg(state.path());
    // It is not the responder's session: nothing of it says so.
    for name in ["SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY", "SUDO_USER", "SUDO_UID", "SUDO_GID", "SUDO_COMMAND"] {
        command.env_remove(name);
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(log()?).stderr(log()?);
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(|| {
            // The terminal's end is not its own.
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    let child = command.spawn()?;
    leave_session(child.id());
    Ok(child)
}

/// A session that ends may take what is in its control group along (`KillUserProcesses=` of logind.conf(5)): the daemon goes
/// to the root of each hierarchy where it is in one. Where that fails it may end so, and the kernel goes on.
fn leave_session(pid: u32) {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let (unified, by_systemd) = sessions(&text);
    let root = kernel::cgroup_root().filter(|_| unified);
    let named = Some(PathBuf::from("/sys/fs/cgroup/systemd")).filter(|_| by_systemd);
    for root in [root, named].into_iter().flatten() {
        let _ = fs::write(root.join("cgroup.procs"), pid.to_string());
    }
}

/// Whether it is in a person's session, in cgroup2 and in systemd's own hierarchy beside it.
fn sessions(text: &str) -> (bool, bool) {
    let in_session = |path: &str| path.split('/').any(|part| part == "user.slice");
    let mut found = (false, false);
    for line in text.lines() {
        found.0 |= line.strip_prefix("0::").is_some_and(in_session);
        found.1 |= line.split_once(":name=systemd:").is_some_and(|(_, path)| in_session(path));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::sessions;

    #[test]
    fn only_a_session_is_left() {
        assert_eq!(sessions("0::/user.slice/user-0.slice/session-3.scope\n"), (true, false));
        assert_eq!(sessions("1:name=systemd:/user.slice/user-0.slice/session-3.scope\n0::/\n"), (false, true));
        assert_eq!(sessions("0::/system.slice/teleport.service\n"), (false, false));
        assert_eq!(sessions(""), (false, false));
    }
}
