//! The recording daemon of a lockdown: a process of its own that outlives the command and the terminal.

use std::{
    fs::OpenOptions,
    io,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::daemon::{
    control::{self, Answer, Request},
    state_dir::StateDir,
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
    command.spawn()
}
