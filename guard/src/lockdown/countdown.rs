//! Waiting for the confirmation: nothing depends on it, the kernel holds the deadline.

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    thread,
    time::Duration,
};

use super::mark::{self, Mark};
use crate::{
    daemon::{attached::Kernel, change, state_dir::StateDir},
    record::clock::boot_now,
};

const LOOK: Duration = Duration::from_millis(100);
/// Seconds left at which every terminal is told, with `--wall`.
const WALLS: [u64; 4] = [120, 60, 30, 10];

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
                held.is_some_and(|(_, held)| held.at_boot_ns == mark.at_boot_ns && held.confirmed.is_some())
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
            if wall && WALLS.contains(&left) {
                tell_all(&format!("guard: this host is locked down; it opens in {left} s unless confirmed"));
            }
            shown = left;
        }
        thread::sleep(LOOK);
    }
}

/// Writes a line to every terminal of this host: the intruder's, too.
fn tell_all(text: &str) {
    for entry in std::fs::read_dir("/dev/pts").into_iter().flatten().flatten() {
        // One that is full or gone is not waited for.
        let terminal =
            OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(entry.path());
        if entry.file_name() != "ptmx"
            && let Ok(mut terminal) = terminal
        {
            let _ = write!(terminal, "\r\n{text}\r\n");
        }
    }
}
