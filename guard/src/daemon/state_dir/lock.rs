//! Who may change an instance now, and who does.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

use super::{StateDir, StateError, files::io_error};
use crate::text::escape_line;

/// How long a command waits for whoever holds the lock. In an emulated machine a look of the daemon's held it for 0.6 s, with
/// nothing else to do beside, and a lockdown for 15 s, most of it the verifier's.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the daemon waits for a command: it records nothing meanwhile.
const BRIEFLY: Duration = Duration::from_secs(2);
/// Short enough to find the lock free between two looks of the daemon.
const PAUSE: Duration = Duration::from_millis(2);

/// Held as long as this lives.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl StateDir {
    /// For one change of the policy. Waits while another goes on, or the daemon looks at what is attached; then it is
    /// refused, by the name of who holds it.
    pub fn lock(&self) -> Result<Lock, StateError> {
        self.lock_within(PATIENCE)
    }

    /// The same for the daemon, which has other things to do.
    pub fn lock_briefly(&self) -> Result<Lock, StateError> {
        self.lock_within(BRIEFLY)
    }

    pub(super) fn lock_within(&self, patience: Duration) -> Result<Lock, StateError> {
        let start = Instant::now();
        loop {
            if let Some(lock) = self.try_lock("lock")? {
                return Ok(lock);
            }
            if start.elapsed() > patience {
                return Err(StateError::Busy { holder: self.holder(), waited: start.elapsed().as_secs() });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The same without waiting; `None` while another change goes on.
    pub fn lock_now(&self) -> Result<Option<Lock>, StateError> {
        self.try_lock("lock")
    }

    /// For the daemon's life; `None`: one runs already.
    pub fn lock_daemon(&self) -> Result<Option<Lock>, StateError> {
        self.try_lock("daemon.lock")
    }

    /// Whether a daemon runs now.
    pub fn daemon_runs(&self) -> Result<bool, StateError> {
        Ok(self.lock_daemon()?.is_none())
    }

    fn try_lock(&self, name: &str) -> Result<Option<Lock>, StateError> {
        let path = self.path.join(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|source| io_error("cannot open", &path, source))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Lock { _file: file })),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(io_error("cannot lock", &path, errno.into())),
        }
    }

    /// Whoever holds the lock, as the kernel knows it; `another guard command` where it names nobody whom we see.
    fn holder(&self) -> String {
        let pid = std::fs::metadata(self.path.join("lock")).ok().and_then(|file| {
            let locks = std::fs::read_to_string("/proc/locks").ok()?;
            holder_in(&locks, file.ino())
        });
        match pid {
            Some(pid) => format!("process {pid}{}", called(pid).map(|line| format!(" ({line})")).unwrap_or_default()),
            None => "another guard command".to_owned(),
        }
    }
}

/// `1: FLOCK  ADVISORY  WRITE 4410 fe:01:131074 0 EOF`. The device there is that of the file system, which of Btrfs and
/// overlays `stat` does not say, so that only the file's number is compared: `None` unless one process is left.
fn holder_in(locks: &str, inode: u64) -> Option<u32> {
    let mut found = locks.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = words[..] else { return None };
        let (_, number) = file.rsplit_once(':')?;
        // Of another namespace: 0.
        (number.parse() == Ok(inode)).then(|| pid.parse().ok()).flatten().filter(|pid: &u32| *pid > 0)
    });
    let pid = found.next()?;
    found.all(|other| other == pid).then_some(pid)
}

/// As it was called, short enough for a line.
fn called(pid: u32) -> Option<String> {
    let words = std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).ok()?;
    let line = words.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ");
    let line: String = line.trim_end().chars().take(80).collect();
    (!line.is_empty()).then(|| escape_line(&line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_among_the_kernel_s_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 fe:01:42 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4410 fe:01:42 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 4411 fe:01:42 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 9 fe:01:43 0 EOF\n";
        assert_eq!(holder_in(locks, 42), Some(4410));
        assert_eq!(holder_in(locks, 44), None);
        // Another file system's file of the same number.
        let other = format!("{locks}4: FLOCK  ADVISORY  WRITE 10 00:1f:42 0 EOF\n");
        assert_eq!(holder_in(&other, 42), None);
        assert_eq!(holder_in("1: FLOCK  ADVISORY  WRITE 0 fe:01:42 0 EOF\n", 42), None);
    }

    #[test]
    fn a_command_waits_for_the_one_before_it_and_then_names_it() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::create(home.path()).unwrap();
        let held = state.lock().unwrap();
        let Err(error) = state.lock_within(Duration::from_millis(50)) else { panic!("not exclusive") };
        let text = error.to_string();
        assert!(text.contains(&format!("process {} (", std::process::id())), "{text}");
        // Longer than a command used to wait.
        let waits = std::thread::spawn({
            let state = state.clone();
            move || state.lock().map(drop)
        });
        std::thread::sleep(Duration::from_millis(2500));
        drop(held);
        waits.join().unwrap().unwrap();
    }
}
