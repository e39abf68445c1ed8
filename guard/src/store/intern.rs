//! What repeats, by number: texts, programs, groups. Caches in front of the tables.

use std::{
    collections::{HashMap, HashSet},
    hash::BuildHasher,
    sync::Arc,
};

use guard_common::Direction;
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::{DAY_US, MANY, MEMORY_US, MOST_GROUPS};
use crate::{
    record::who::Who,
    review::{
        group::{Group, Remote, Service},
        observed::{Fate, Observed},
    },
};

/// Entries that a cache holds at most before it is emptied.
const CACHED: usize = 50_000;

/// Numbers of what is stored. Valid only as long as the transaction that made them is kept.
pub struct Intern {
    texts: HashMap<Arc<str>, (i64, i64)>,
    /// By a seeded hash of the whole: the process is the same for many flows.
    whos: HashMap<u64, WhoRef>,
    hasher: foldhash::fast::RandomState,
    groups: HashMap<u64, GroupRef>,
    /// Groups by all but their remote.
    siblings: HashMap<u64, u32>,
    groups_in_all: usize,
    /// Remotes with which something was allowed.
    known: HashSet<(i64, Arc<str>)>,
    touched: HashSet<u64>,
}

#[derive(Clone)]
struct WhoRef {
    id: i64,
    parents: Arc<[u8]>,
    last: i64,
}

#[derive(Clone, Copy)]
struct GroupRef {
    id: i64,
    first: i64,
    fresh: i64,
    last: i64,
}

impl Intern {
    pub fn load(db: &Connection) -> rusqlite::Result<Self> {
        let mut intern = Self {
            texts: HashMap::new(),
            whos: HashMap::new(),
            hasher: foldhash::fast::RandomState::default(),
            groups: HashMap::new(),
            siblings: HashMap::new(),
            groups_in_all: 0,
            known: HashSet::new(),
            touched: HashSet::new(),
        };
        let mut rows =
            db.prepare("SELECT program, direction, protocol, port, denied, remote_kind, remote FROM groups")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let program: Option<Box<str>> = row.get(0)?;
            let sibling = intern.hasher.hash_one((
                program.as_deref(),
                row.get::<_, i64>(1)?,
                row.get::<_, u8>(2)?,
                row.get::<_, u16>(3)?,
                row.get::<_, bool>(4)?,
            ));
            *intern.siblings.entry(sibling).or_default() += 1;
            intern.groups_in_all += 1;
            if !row.get::<_, bool>(4)? {
                intern.known.insert((row.get(5)?, row.get::<_, Box<str>>(6)?.into()));
            }
        }
        Ok(intern)
    }

    /// Whether an unsolicited flow comes from somebody with whom this host talks, or whom its policy names.
    pub fn knows(&self, remote: &Remote) -> bool {
        match remote {
            Remote::Group(name) => &**name != "any",
            Remote::Many => false,
            remote => {
                let (kind, text) = remote_columns(remote);
                self.known.contains(&(kind, text))
            }
        }
    }

    pub fn text(&mut self, db: &Connection, text: &Arc<str>, now: i64) -> rusqlite::Result<i64> {
        if let Some((id, last)) = self.texts.get_mut(text) {
            if now - *last > DAY_US {
                *last = now;
                db.prepare_cached("UPDATE texts SET last = ?2 WHERE id = ?1")?.execute(params![*id, now])?;
            }
            return Ok(*id);
        }
        let id = db
            .prepare_cached(
                "INSERT INTO texts (text, last) VALUES (?1, ?2)
                 ON CONFLICT (text) DO UPDATE SET last = max(last, excluded.last) RETURNING id",
            )?
            .query_row(params![&**text, now], |row| row.get(0))?;
        if self.texts.len() >= CACHED {
            self.texts.clear();
        }
        self.texts.insert(Arc::clone(text), (id, now));
        Ok(id)
    }

    /// Number of a program as it was called, and its parents' process ids (4 bytes each, little endian).
    pub fn who(&mut self, db: &Connection, who: &Who, now: i64) -> rusqlite::Result<(i64, Arc<[u8]>)> {
        let key = self.hasher.hash_one(who);
        if let Some(known) = self.whos.get_mut(&key) {
            if now - known.last > DAY_US {
                known.last = now;
                db.prepare_cached("UPDATE whos SET last = ?2 WHERE id = ?1")?.execute(params![known.id, now])?;
            }
            return Ok((known.id, Arc::clone(&known.parents)));
        }
        let parents: Arc<[u8]> = who.parents.iter().flat_map(|parent| parent.pid.to_le_bytes()).collect();
        let mut plain = Who { pid: 0, started: 0, ..who.clone() };
        plain.parents.iter_mut().for_each(|parent| parent.pid = 0);
        // Numbers, texts and lists of them: nothing in it can fail to be written.
        let json = serde_json::to_string(&plain).unwrap_or_else(|_| "{}".to_owned());
        let id = db
            .prepare_cached(
                "INSERT INTO whos (hash, json, last) VALUES (?1, ?2, ?3)
                 ON CONFLICT (hash) DO UPDATE SET last = max(last, excluded.last) RETURNING id",
            )?
            .query_row(params![sha(json.as_bytes()), json, now], |row| row.get(0))?;
        if self.whos.len() >= CACHED {
            self.whos.clear();
        }
        self.whos.insert(key, WhoRef { id, parents: Arc::clone(&parents), last: now });
        Ok((id, parents))
    }

    /// Number of the group that a flow belongs to; made, or freshened where it was not seen for [`MEMORY_US`].
    pub fn group(&mut self, db: &Connection, flow: &Observed) -> rusqlite::Result<i64> {
        let mut group = Group::of(flow);
        let mut hash = group.id().0;
        if !self.load_group(db, hash)? {
            let sibling = self.hasher.hash_one((
                group.program.as_deref(),
                group.direction as i64,
                group.service.protocol,
                group.service.port,
                group.denied,
            ));
            let siblings = self.siblings.get(&sibling).copied().unwrap_or(0);
            if siblings >= MANY || self.groups_in_all >= MOST_GROUPS {
                group.remote = Remote::Many;
                if self.groups_in_all >= MOST_GROUPS {
                    group.service.port = 0;
                }
                hash = group.id().0;
            }
            if !self.load_group(db, hash)? {
                self.make_group(db, &group, hash, flow)?;
                *self.siblings.entry(sibling).or_default() += 1;
            }
        }
        let Some(known) = self.groups.get_mut(&hash) else { return Ok(0) };
        if flow.first - known.last > MEMORY_US {
            known.fresh = flow.first;
        }
        known.first = known.first.min(flow.first);
        known.last = known.last.max(flow.last);
        self.touched.insert(hash);
        Ok(known.id)
    }

    fn load_group(&mut self, db: &Connection, hash: u64) -> rusqlite::Result<bool> {
        if self.groups.contains_key(&hash) {
            return Ok(true);
        }
        let found = db
            .prepare_cached("SELECT id, first, fresh, last FROM groups WHERE hash = ?1")?
            .query_row([hash.cast_signed()], |row| {
                Ok(GroupRef { id: row.get(0)?, first: row.get(1)?, fresh: row.get(2)?, last: row.get(3)? })
            })
            .optional()?;
        Ok(found.map(|found| self.groups.insert(hash, found)).is_some())
    }

    fn make_group(&mut self, db: &Connection, group: &Group, hash: u64, flow: &Observed) -> rusqlite::Result<()> {
        let (kind, remote) = remote_columns(&group.remote);
        let id = db
            .prepare_cached(
                "INSERT INTO groups (hash, program, direction, remote_kind, remote, protocol, port, denied, first, fresh, last)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9, ?10) RETURNING id",
            )?
            .query_row(
                params![
                    hash.cast_signed(),
                    group.program.as_deref(),
                    group.direction as i64,
                    kind,
                    &*remote,
                    group.service.protocol,
                    group.service.port,
                    group.denied,
                    flow.first,
                    flow.last,
                ],
                |row| row.get(0),
            )?;
        if !group.denied {
            self.known.insert((kind, remote));
        }
        self.groups_in_all += 1;
        self.groups.insert(hash, GroupRef { id, first: flow.first, fresh: flow.first, last: flow.last });
        Ok(())
    }

    /// Writes back the times of the groups that were used. To be called before every commit.
    pub fn flush(&mut self, db: &Connection) -> rusqlite::Result<()> {
        let mut update = db.prepare_cached("UPDATE groups SET first = ?2, fresh = ?3, last = ?4 WHERE id = ?1")?;
        for hash in self.touched.drain() {
            if let Some(group) = self.groups.get(&hash) {
                update.execute(params![group.id, group.first, group.fresh, group.last])?;
            }
        }
        if self.groups.len() >= CACHED {
            self.groups.clear();
        }
        Ok(())
    }
}

/// Its kind's number and its text, from which [`remote_of`] makes it again.
pub fn remote_columns(remote: &Remote) -> (i64, Arc<str>) {
    match remote {
        Remote::Group(name) => (0, Arc::clone(name)),
        Remote::Zone(name) => (1, Arc::clone(name)),
        Remote::Network(network) => (2, network.to_string().into()),
        Remote::Many => (3, "".into()),
    }
}

pub fn remote_of(kind: i64, text: &str) -> Option<Remote> {
    match kind {
        0 => Some(Remote::Group(text.into())),
        1 => Some(Remote::Zone(text.into())),
        2 => text.parse().ok().map(Remote::Network),
        3 => Some(Remote::Many),
        _ => None,
    }
}

pub const fn direction_of(number: i64) -> Direction {
    if number == Direction::Outbound as i64 { Direction::Outbound } else { Direction::Inbound }
}

pub const fn fate_number(fate: Fate) -> i64 {
    match fate {
        Fate::Allowed => 0,
        Fate::Denied => 1,
        Fate::WouldDeny => 2,
        Fate::Seen => 3,
    }
}

pub const fn fate_of(number: i64) -> Fate {
    match number {
        0 => Fate::Allowed,
        1 => Fate::Denied,
        2 => Fate::WouldDeny,
        _ => Fate::Seen,
    }
}

pub fn group_of(program: Option<&str>, direction: i64, remote: Remote, protocol: u8, port: u16, denied: bool) -> Group {
    Group {
        program: program.map(Arc::from),
        direction: direction_of(direction),
        remote,
        service: Service { protocol, port },
        denied,
    }
}

/// The first 64 bits of a SHA-256, as SQLite keeps numbers.
fn sha(bytes: &[u8]) -> i64 {
    let digest = Sha256::digest(bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}
