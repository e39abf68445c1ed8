//! Timers and cron jobs of this host whose time did not come while somebody watched: what they do is not in the records.
//!
//! All of it is read from schedules (and the stamps that systemd and anacron leave). That a time came does not say that a job
//! ran, or did all that it does: so nothing here says that one did.

mod cron;
mod schedule;
mod systemd;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::text::escape_line;

/// Bytes of one file that are read.
const MOST_BYTES: u64 = 1 << 20;

/// When somebody watched: Unix microseconds, in order, apart from one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    spans: Vec<(i64, i64)>,
    /// Microseconds between the first and the last of them in which nobody did.
    unwatched: i64,
}

impl Watched {
    /// From `first` to `last`, but for `gaps`.
    #[must_use]
    pub fn without(first: i64, last: i64, gaps: &[(i64, i64)]) -> Self {
        let mut gaps: Vec<(i64, i64)> = gaps.iter().map(|(from, to)| (*from.max(&first), *to.min(&last))).collect();
        gaps.retain(|(from, to)| from < to);
        gaps.sort_unstable();
        let (mut spans, mut at, mut unwatched) = (Vec::new(), first, 0);
        for (from, to) in gaps {
            if from > at {
                spans.push((at, from));
            }
            unwatched += (to - from.max(at)).max(0);
            at = at.max(to);
        }
        if at <= last {
            spans.push((at, last));
        }
        Self { spans, unwatched }
    }

    fn holds(&self, at: i64) -> bool {
        self.spans.iter().any(|(from, to)| (*from..=*to).contains(&at))
    }

    fn longest(&self) -> i64 {
        self.spans.iter().map(|(from, to)| to - from).max().unwrap_or(0)
    }
}

/// What did not fire, or may not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct NotFired {
    /// systemd's timers, each with its schedule.
    pub timers: Vec<String>,
    /// cron's jobs, each with file and line.
    pub jobs: Vec<String>,
    /// Of which it cannot be told.
    pub unclear: Vec<String>,
    /// Nobody looked: the records are of another host.
    pub not_looked: bool,
    /// Timers and jobs that were found.
    pub found: usize,
    /// Seconds of the period in which guard did not run: what fired then counts as not fired.
    pub unwatched_seconds: i64,
}

impl NotFired {
    #[must_use]
    pub fn elsewhere() -> Self {
        Self { not_looked: true, ..Self::default() }
    }

    /// Harmless, one line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        if self.not_looked {
            return vec!["Timers and cron jobs were not looked at: the records are not this host's own.".to_owned()];
        }
        let mut lines = Vec::new();
        if self.unwatched_seconds > 0 {
            let long = crate::daemon::report::duration(self.unwatched_seconds);
            lines.push(format!("guard did not run for {long} of this period: what fired then is not in it."));
        }
        for (list, what) in [
            (&self.timers, "timer did not fire in this period"),
            (&self.jobs, "cron job did not run in this period"),
            (&self.unclear, "may not have run in this period"),
        ] {
            lines.extend(list.iter().take(20).map(|one| format!("{what}: {}", escape_line(one))));
            if list.len() > 20 {
                lines.push(format!("and {} more: {what}", list.len() - 20));
            }
        }
        let silent = self.timers.len() + self.jobs.len() + self.unclear.len();
        lines.push(match (self.found, self.found.saturating_sub(silent)) {
            (0, _) => "No timer and no cron job was found on this host.".to_owned(),
            (_, 0) => return lines,
            (found, due) => format!(
                "{due} of {found} timers and cron jobs that were found were due in this period, by their schedules; whether \
                 they ran, and did all that they do, is not known."
            ),
        });
        lines
    }
}

/// Looks below `root` (`/`, or an image of a host).
#[must_use]
pub fn not_fired(root: &Path, watched: &Watched) -> NotFired {
    let mut found = NotFired { unwatched_seconds: watched.unwatched / 1_000_000, ..NotFired::default() };
    systemd::look(root, watched, &mut found);
    cron::look(root, watched, &mut found);
    cron::look_at_anacron(root, watched, &mut found);
    found
}

impl NotFired {
    fn put(&mut self, fired: Option<bool>, one: String) {
        self.found += 1;
        match fired {
            Some(true) => {}
            Some(false) => self.jobs.push(one),
            None => self.unclear.push(one),
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn modified(path: &Path) -> Option<i64> {
    let time = fs::metadata(path).ok()?.modified().ok()?;
    i64::try_from(time.duration_since(std::time::UNIX_EPOCH).ok()?.as_micros()).ok()
}
