//! Waiting for the confirmation: nothing depends on it, the kernel holds the deadline.

use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    thread,
    time::Duration,
};

use super::{
    mark::{self, Mark},
    sessions::Family,
};
use crate::{
    daemon::{attached::Kernel, change, state_dir::StateDir},
    host::{picture::Picture, processes::pts_number, sock_diag::SocketState},
    record::clock::boot_now,
};

const LOOK: Duration = Duration::from_millis(100);
/// Seconds left at which other terminals are told: those of the ways that are kept; with `--wall` every one.
const WALLS: [u64; 4] = [120, 60, 30, 10];
/// Seconds between two looks for logins that are new: they are told at once.
const NEW: u64 = 2;

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Confirmed,
    RolledBack,
}

/// Waits until the lockdown of this generation is confirmed, or is not in force any more.
pub fn wait(
    kernel: &mut Kernel,
    state: &StateDir,
    generation: u32,
    mark: &Mark,
    wall: bool,
) -> anyhow::Result<Outcome> {
    let terminal = io::stderr().is_terminal();
    let mut shown = u64::MAX;
    let mut told: BTreeSet<u32> = BTreeSet::new();
    loop {
        let state_word = kernel.word();
        let now = boot_now();
        let deadline = state_word.deadline_ms();
        let slot = state_word.effective_slot(now);
        let ours = kernel.generation_in(slot) == generation;
        if !ours || deadline.is_none() {
            if terminal {
                eprintln!();
            }
            // Confirmed, and published again since (an exception, a step of the clock), it has another generation.
            let again = || {
                let held = mark::holding(state).ok().flatten();
                held.is_some_and(|(_, held)| mark.is_confirmed_as(&held))
            };
            if ours || again() {
                return Ok(Outcome::Confirmed);
            }
            // The daemon does this too, if it lives.
            if let Ok(_lock) = state.lock() {
                change::settle(kernel, state)?;
            }
            return Ok(Outcome::RolledBack);
        }
        let left = deadline.unwrap_or(0).saturating_sub(now / 1_000_000).div_ceil(1000);
        if left != shown {
            if terminal {
                let _ = write!(io::stderr(), "\r({}:{:02} left)  ", left / 60, left % 60);
            }
            let text = format!("guard: this host is locked down; it opens in {left} s unless confirmed");
            let due = WALLS.contains(&left);
            if wall && due {
                tell_all(Path::new("/dev/pts"), &text);
            } else if due || left.is_multiple_of(NEW) {
                for number in kept_terminals(mark) {
                    if told.insert(number) || due {
                        tell(&Path::new("/dev/pts").join(number.to_string()), &format!("{text}: sudo guard confirm"));
                    }
                }
            }
            shown = left;
        }
        thread::sleep(LOOK);
    }
}

/// Terminals of those who came in by a way that is kept, by number, but for this command's own. Whoever else comes from
/// there has one, too.
fn kept_terminals(mark: &Mark) -> BTreeSet<u32> {
    let Ok(picture) = Picture::read() else { return BTreeSet::new() };
    let family = Family::of(&picture.processes);
    let own = picture.processes.get(std::process::id()).map(|process| process.tty);
    let kept = picture.sockets.all.iter().filter(|socket| {
        let by_rule = mark.ports.contains(&socket.local.port())
            && mark.ways.iter().any(|range| range.contains(&socket.remote.ip()));
        let by_itself = mark.sessions.iter().any(|open| (open.local, open.remote) == (socket.local, socket.remote));
        socket.state == SocketState::Established && (by_rule || by_itself)
    });
    kept.filter_map(|socket| family.behind(picture.sockets.holder(socket)))
        .flat_map(|behind| behind.pids)
        .filter_map(|pid| picture.processes.get(pid))
        .filter(|process| Some(process.tty) != own)
        .filter_map(|process| pts_number(process.tty))
        .collect()
}

/// Writes a line to every terminal of this host: the intruder's, too.
fn tell_all(terminals: &Path, text: &str) {
    for entry in std::fs::read_dir(terminals).into_iter().flatten().flatten() {
        if entry.file_name() != "ptmx" {
            tell(&entry.path(), text);
        }
    }
}

/// One that is full or gone is not waited for.
fn tell(terminal: &Path, text: &str) {
    let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(terminal);
    if let Ok(mut terminal) = opened {
        let _ = write!(terminal, "\r\n{text}\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a directory of its own: nobody's real terminals are written to.
    #[test]
    fn every_terminal_is_told_and_no_other_device() {
        let terminals = tempfile::tempdir().unwrap();
        for name in ["0", "17", "ptmx"] {
            std::fs::write(terminals.path().join(name), "").unwrap();
        }
        tell_all(terminals.path(), "it opens in 10 s");
        let read = |name: &str| std::fs::read_to_string(terminals.path().join(name)).unwrap();
        assert_eq!((read("0"), read("17")), ("\r\nit opens in 10 s\r\n".to_owned(), read("0")));
        assert_eq!(read("ptmx"), "");
        tell(&terminals.path().join("gone"), "nobody");
        assert!(!terminals.path().join("gone").exists());
    }
}
