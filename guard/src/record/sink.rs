//! Lines to a file that is rotated by size, the newest kept. A full disk costs records, which are counted; never more.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// Lines are written together, at the latest when this much is waiting.
const BUFFER_BYTES: usize = 256 * 1024;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A file this long is rotated away.
    pub file_bytes: u64,
    /// How many rotated files are kept beside the one that is written.
    pub files: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 64 << 20, files: 8 }
    }
}

/// What became of the records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SinkCounts {
    pub written: u64,
    /// Could not be written.
    pub lost: u64,
    /// Why not, the last time; `None` once writing works again.
    pub error: Option<String>,
}

/// `flows.jsonl`, and `flows.jsonl.1` (newest) to `flows.jsonl.N` beside it.
#[derive(Debug)]
pub struct Sink {
    path: PathBuf,
    limits: Limits,
    file: Option<File>,
    /// Length of the file up to which all lines are whole.
    length: u64,
    waiting: Vec<u8>,
    waiting_lines: u64,
    counts: SinkCounts,
}

impl Sink {
    /// Appends to `path`, which only its owner can read. That it cannot be opened now is counted, not an error: it is
    /// tried again with every write.
    #[must_use]
    pub fn open(path: PathBuf, limits: Limits) -> Self {
        let mut sink = Self {
            path,
            limits,
            file: None,
            length: 0,
            waiting: Vec::new(),
            waiting_lines: 0,
            counts: SinkCounts::default(),
        };
        if let Err(error) = sink.ensure_open() {
            sink.counts.error = Some(error.to_string());
        }
        sink
    }

    /// Adds one line.
    pub fn write(&mut self, record: &impl Serialize) {
        let start = self.waiting.len();
        if serde_json::to_writer(&mut self.waiting, record).is_err() {
            self.waiting.truncate(start);
            self.counts.lost += 1;
            return;
        }
        self.waiting.push(b'\n');
        self.waiting_lines += 1;
        if self.waiting.len() >= BUFFER_BYTES {
            self.flush();
        }
    }

    /// Writes what waits.
    pub fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        match self.try_flush() {
            Ok(()) => {
                self.counts.written += self.waiting_lines;
                self.counts.error = None;
            }
            Err(error) => {
                self.counts.lost += self.waiting_lines;
                self.counts.error = Some(error.to_string());
                // A torn line would spoil the next one too.
                if let Some(file) = &mut self.file {
                    let _ = file.set_len(self.length).and_then(|()| file.seek(SeekFrom::Start(self.length)));
                }
            }
        }
        self.waiting.clear();
        self.waiting_lines = 0;
    }

    /// [`Self::flush`], and onto the disk.
    pub fn sync(&mut self) {
        self.flush();
        if let Some(file) = &self.file
            && let Err(error) = file.sync_data()
        {
            self.counts.error = Some(error.to_string());
        }
    }

    #[must_use]
    pub fn counts(&self) -> &SinkCounts {
        &self.counts
    }

    fn try_flush(&mut self) -> io::Result<()> {
        self.ensure_open()?;
        if self.length > 0 && self.length + self.waiting.len() as u64 > self.limits.file_bytes {
            self.rotate()?;
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        file.write_all(&self.waiting)?;
        self.length += self.waiting.len() as u64;
        Ok(())
    }

    /// Also where somebody has moved or removed the file: records go where they are looked for.
    fn ensure_open(&mut self) -> io::Result<()> {
        if self.file.is_some() && same_file(self.file.as_ref(), &self.path) {
            return Ok(());
        }
        self.file = None;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&self.path)?;
        self.length = end_of_lines(&mut file)?;
        file.set_len(self.length)?;
        file.seek(SeekFrom::Start(self.length))?;
        self.file = Some(file);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        for number in (1..self.limits.files).rev() {
            rename_if_there(&self.rotated(number), &self.rotated(number + 1))?;
        }
        if self.limits.files == 0 {
            fs::remove_file(&self.path)?;
        } else {
            rename_if_there(&self.path, &self.rotated(1))?;
        }
        self.ensure_open()
    }

    fn rotated(&self, number: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        name.into()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.flush();
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn same_file(file: Option<&File>, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.map(File::metadata), fs::symlink_metadata(path)) {
        (Some(Ok(open)), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// The file's length without a last line that was not finished (a crash in the middle of a write).
fn end_of_lines(file: &mut File) -> io::Result<u64> {
    use std::io::Read;
    let length = file.metadata()?.len();
    let mut end = length;
    let mut block = [0u8; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(newline) = part.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    #[test]
    fn rotates_by_size_and_keeps_the_newest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flows.jsonl");
        let mut sink = Sink::open(path.clone(), Limits { file_bytes: 10, files: 2 });
        for number in 0..8 {
            sink.write(&format!("line{number}"));
            sink.flush();
        }
        assert_eq!(sink.counts(), &SinkCounts { written: 8, lost: 0, error: None });
        assert_eq!(lines(&path), ["\"line7\""]);
        assert_eq!(lines(&directory.path().join("flows.jsonl.1")), ["\"line6\""]);
        assert_eq!(lines(&directory.path().join("flows.jsonl.2")), ["\"line5\""]);
        assert!(!directory.path().join("flows.jsonl.3").exists());
    }

    #[test]
    fn appends_after_a_restart_and_drops_a_torn_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flows.jsonl");
        fs::write(&path, "\"old\"\n\"to").unwrap();
        let mut sink = Sink::open(path.clone(), Limits::default());
        sink.write(&"new");
        drop(sink);
        assert_eq!(lines(&path), ["\"old\"", "\"new\""]);
    }

    #[test]
    fn goes_on_where_the_file_was_moved_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flows.jsonl");
        let mut sink = Sink::open(path.clone(), Limits::default());
        sink.write(&1);
        sink.flush();
        fs::rename(&path, directory.path().join("taken")).unwrap();
        sink.write(&2);
        sink.flush();
        assert_eq!(lines(&path), ["2"]);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_writing_resumes() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("later");
        let mut sink = Sink::open(missing.join("flows.jsonl"), Limits::default());
        sink.write(&1);
        sink.flush();
        assert_eq!((sink.counts().written, sink.counts().lost), (0, 1));
        assert!(sink.counts().error.is_some());
        fs::create_dir(&missing).unwrap();
        sink.write(&2);
        sink.flush();
        assert_eq!(sink.counts(), &SinkCounts { written: 1, lost: 1, error: None });
    }
}
