//! Decisions on groups, each kept for good: `acks.jsonl` in the state directory, one a line, never rewritten.
//!
//! Apart from the store, so that a decision outlives the records that it was made on, and a damaged store.

use std::{
    collections::HashMap,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::group::Id;
use crate::{host::person::Person, journal::append_whole, record::who::Unusual};

/// Its name in the state directory.
pub const FILE: &str = "acks.jsonl";
/// Notes are cut to this many bytes.
const NOTE_BYTES: usize = 1024;

/// One decision. Field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Of the group, 16 hex digits.
    pub id: String,
    /// False: taken back.
    pub acknowledged: bool,
    /// Unix time in microseconds.
    pub at: i64,
    /// Until when it holds; `None`: until the group changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    pub by: Person,
    /// What was unusual about its program then: more than that is shown again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unusual: Vec<Unusual>,
    /// The group in words, for whoever reads the history when the records are gone.
    #[serde(default)]
    pub what: String,
}

#[derive(Debug, thiserror::Error)]
pub enum AckError {
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

/// All decisions, and the newest of each group.
#[derive(Clone, Debug, Default)]
pub struct Acks {
    history: Vec<Ack>,
    newest: HashMap<String, usize>,
    /// Lines that are no decision: told, and otherwise left alone.
    pub unread: usize,
}

impl Acks {
    /// None where there is no file.
    pub fn read(directory: &Path) -> Result<Self, AckError> {
        let path = directory.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(AckError::Io { what: "cannot read", path, source }),
        };
        let mut acks = Self::default();
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Ack>(line) {
                Ok(ack) => acks.add(ack),
                Err(_) => acks.unread += 1,
            }
        }
        Ok(acks)
    }

    pub fn add(&mut self, ack: Ack) {
        self.newest.insert(ack.id.clone(), self.history.len());
        self.history.push(ack);
    }

    /// Appends, on disk before it returns.
    pub fn append(directory: &Path, acks: &[Ack]) -> Result<(), AckError> {
        let path = directory.join(FILE);
        let write = || -> io::Result<()> {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .read(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)?;
            let mut file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
            let mut text = Vec::new();
            for ack in acks {
                serde_json::to_writer(&mut text, ack).map_err(io::Error::from)?;
                text.push(b'\n');
            }
            append_whole(&mut file, &text)
        };
        write().map_err(|source| AckError::Io { what: "cannot write", path: path.clone(), source })
    }

    /// The decision that holds for a group now.
    #[must_use]
    pub fn holding(&self, id: Id, now: i64) -> Option<&Ack> {
        let ack = &self.history[*self.newest.get(&id.to_string())?];
        (ack.acknowledged && ack.until.is_none_or(|until| now < until)).then_some(ack)
    }

    /// Every decision that holds now, in the order in which they were made first.
    pub fn all_holding(&self, now: i64) -> impl Iterator<Item = &Ack> {
        self.history.iter().enumerate().filter_map(move |(at, ack)| {
            let holds = self.newest.get(&ack.id) == Some(&at) && ack.acknowledged;
            (holds && ack.until.is_none_or(|until| now < until)).then_some(ack)
        })
    }

    /// Every decision on a group, the oldest first.
    pub fn history(&self, id: Id) -> impl Iterator<Item = &Ack> {
        let id = id.to_string();
        self.history.iter().filter(move |ack| ack.id == id)
    }

    /// The last acknowledgement of anything. Taking one back is no review.
    #[must_use]
    pub fn last(&self) -> Option<&Ack> {
        self.history.iter().filter(|ack| ack.acknowledged).max_by_key(|ack| ack.at)
    }
}

impl Ack {
    #[must_use]
    pub fn new(id: Id, acknowledged: bool, at: i64, by: Person, what: String) -> Self {
        Self { id: id.to_string(), acknowledged, at, until: None, note: None, by, unusual: Vec::new(), what }
    }

    #[must_use]
    pub fn noted(mut self, note: Option<&str>) -> Self {
        self.note = note.map(|note| note.chars().take(NOTE_BYTES / 4).collect());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(id: u64, acknowledged: bool, at: i64) -> Ack {
        Ack::new(Id(id), acknowledged, at, Person::default(), String::new())
    }

    #[test]
    fn the_newest_decision_holds_and_all_are_kept() {
        let home = tempfile::tempdir().unwrap();
        Acks::append(home.path(), &[ack(1, true, 10), Ack { until: Some(50), ..ack(2, true, 11) }]).unwrap();
        Acks::append(home.path(), &[ack(1, false, 20)]).unwrap();
        let acks = Acks::read(home.path()).unwrap();
        assert!(acks.holding(Id(1), 30).is_none());
        assert!(acks.holding(Id(2), 49).is_some() && acks.holding(Id(2), 50).is_none());
        assert_eq!(acks.history(Id(1)).count(), 2);
        assert_eq!(acks.last().unwrap().at, 11, "taking back is no review");
    }

    #[test]
    fn a_torn_line_costs_itself_only() {
        let home = tempfile::tempdir().unwrap();
        Acks::append(home.path(), &[ack(1, true, 10)]).unwrap();
        let path = home.path().join(FILE);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"id\":\"00");
        std::fs::write(&path, text).unwrap();
        Acks::append(home.path(), &[ack(2, true, 20)]).unwrap();
        let acks = Acks::read(home.path()).unwrap();
        assert_eq!(acks.unread, 1);
        assert!(acks.holding(Id(1), 30).is_some() && acks.holding(Id(2), 30).is_some());
    }
}
