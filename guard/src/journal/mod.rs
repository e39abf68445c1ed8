//! The shift's history: `timeline.jsonl` in the state directory. Who did what when, what guard noticed, and what guard
//! itself left on this host; one entry a line, never rewritten, the newest kept.
//!
//! ```text
//! timeline.jsonl     entries, the newest last
//! timeline.1.jsonl   the older half, once there are many
//! timeline.lock      held by whoever writes
//! ```
//!
//! An entry is on disk before its writer goes on. Nothing waits for the journal but that: a change of the policy that
//! cannot be written down is made all the same, and that is said.

mod entry;
mod footprint;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

pub use entry::{CutFlow, Entry, Event, PolicyRef};
pub use footprint::Footprint;

/// Its name in the state directory.
pub const FILE: &str = "timeline.jsonl";
const OLDER: &str = "timeline.1.jsonl";
const LOCK: &str = "timeline.lock";
/// Of each of the two files.
const FILE_BYTES: u64 = 4 << 20;
/// How long a writer waits for others: each of them for a disk, which may be busy.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{0}: another process writes it and does not end")]
    Busy(PathBuf),
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// The oldest first.
    pub entries: Vec<Entry>,
    /// Lines that are no entry: left alone and counted.
    pub damaged: usize,
}

/// Appends, on disk before it returns. `directory` is the state directory, which exists.
pub fn append(directory: &Path, entries: &[Entry]) -> Result<(), JournalError> {
    append_bounded(directory, entries, FILE_BYTES)
}

fn append_bounded(directory: &Path, entries: &[Entry], most: u64) -> Result<(), JournalError> {
    let _lock = lock(&directory.join(LOCK))?;
    let path = directory.join(FILE);
    let mut text = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut text, &entry.bounded())
            .map_err(|error| failed("cannot write", &path, error.into()))?;
        text.push(b'\n');
    }
    let write = || -> io::Result<()> {
        let mut file = open(&path)?;
        let length = file.metadata()?.len();
        if length > 0 && length + text.len() as u64 > most {
            fs::rename(&path, directory.join(OLDER))?;
            file = open(&path)?;
        }
        append_whole(&mut file, &text)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| failed("cannot write", &path, source))
}

/// [`append`], for whoever goes on in any case: that it was not written is said on standard error.
pub fn record(directory: &Path, entry: &Entry) {
    if let Err(error) = append(directory, std::slice::from_ref(entry)) {
        let text = crate::text::escape_line(&error.to_string());
        eprintln!("notice: this is not in the timeline: {text}");
    }
}

/// All entries not older than `since` (Unix time in microseconds).
pub fn read(directory: &Path, since: Option<i64>) -> Result<Timeline, JournalError> {
    let mut timeline = Timeline::default();
    for name in [OLDER, FILE] {
        let path = directory.join(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(failed("cannot read", &path, source)),
        };
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Entry>(line) {
                Ok(entry) if since.is_none_or(|since| entry.at >= since) => timeline.entries.push(entry),
                Ok(_) => {}
                Err(_) => timeline.damaged += 1,
            }
        }
    }
    Ok(timeline)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn lock(path: &Path) -> Result<Flock<File>, JournalError> {
    let deadline = Instant::now() + PATIENCE;
    let mut file = open(path).map_err(|source| failed("cannot open", path, source))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() > deadline => {
                return Err(JournalError::Busy(path.to_owned()));
            }
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(failed("cannot lock", path, errno.into())),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Appends whole lines, on disk before it returns, to a file that is open for reading and appending. On an error, such as
/// a full disk, the file is as long as it was.
pub(crate) fn append_whole(file: &mut File, text: &[u8]) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.seek(SeekFrom::Start(length - 1))?;
        file.read_exact(&mut last)?;
    }
    // A writer was killed in the middle of a line: what it began stays a line of its own.
    let torn = if last == [b'\n'] { &b""[..] } else { b"\n" };
    let written = file.write_all(torn).and_then(|()| file.write_all(text));
    if written.is_err() {
        // Half a line would spoil the next one.
        let _ = file.set_len(length);
    }
    written.and_then(|()| file.sync_all())
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> JournalError {
    JournalError::Io { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Entry {
        Entry::new(Event::Note, text)
    }

    fn texts(directory: &Path) -> Vec<String> {
        read(directory, None).unwrap().entries.into_iter().map(|entry| entry.text).collect()
    }

    #[test]
    fn entries_come_back_in_order() {
        let home = tempfile::tempdir().unwrap();
        assert!(texts(home.path()).is_empty());
        append(home.path(), &[entry("one"), entry("two")]).unwrap();
        append(home.path(), &[entry("three")]).unwrap();
        assert_eq!(texts(home.path()), ["one", "two", "three"]);
        let later = read(home.path(), Some(i64::MAX)).unwrap();
        assert!(later.entries.is_empty());
    }

    #[test]
    fn a_damaged_line_costs_itself_and_is_counted() {
        let home = tempfile::tempdir().unwrap();
        append(home.path(), &[entry("one")]).unwrap();
        let path = home.path().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(b"{\"at\":17\n\xff\xfe\n{\"torn");
        fs::write(&path, bytes).unwrap();
        append(home.path(), &[entry("two")]).unwrap();
        let timeline = read(home.path(), None).unwrap();
        assert_eq!(timeline.damaged, 3);
        assert_eq!(texts(home.path()), ["one", "two"]);
    }

    #[test]
    fn the_newest_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let numbers: Vec<String> = (0..100).map(|number| format!("entry {number:03}")).collect();
        for number in &numbers {
            append_bounded(home.path(), &[entry(number)], 2000).unwrap();
        }
        let kept = texts(home.path());
        assert!(kept.len() >= 10 && kept.len() < 60, "{}", kept.len());
        assert_eq!(kept, numbers[numbers.len() - kept.len()..]);
        let size = |name| fs::metadata(home.path().join(name)).unwrap().len();
        assert!(size(FILE) <= 2000 && size(OLDER) <= 2000);
    }

    #[test]
    fn writers_wait_for_each_other() {
        let home = tempfile::tempdir().unwrap();
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let directory = home.path().to_owned();
                std::thread::spawn(move || {
                    for number in 0..5 {
                        append(&directory, &[entry(&format!("{thread} {number}"))]).unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let timeline = read(home.path(), None).unwrap();
        assert_eq!((timeline.entries.len(), timeline.damaged), (20, 0));
    }

    #[test]
    fn an_entry_of_any_size_fits() {
        let home = tempfile::tempdir().unwrap();
        let mut large = entry(&"ü".repeat(100_000)).noted(Some(&"n".repeat(100_000)));
        large.cut = vec![CutFlow::default(); 10_000];
        append(home.path(), &[large]).unwrap();
        assert!(fs::metadata(home.path().join(FILE)).unwrap().len() < 64 << 10);
        assert_eq!(read(home.path(), None).unwrap().entries.len(), 1);
    }
}
