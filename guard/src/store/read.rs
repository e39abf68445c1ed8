//! Rows to flows, for whoever reviews. Reads while the daemon writes.

mod of_group;

use std::{
    cell::RefCell,
    collections::HashMap,
    net::IpAddr,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension, Row, types::ValueRef};

use super::{
    StoreError, background,
    background::Background,
    intern::{direction_of, fate_of, group_of, remote_of},
    schema,
    write::{ADOPTED, ANSWERED, LISTENING, LISTENING_KNOWN},
};
use crate::{
    record::{flow::Key, who::Who},
    review::{
        group::{Group, Id},
        observed::{Fate, Observed},
    },
};

pub use of_group::{Head, OfGroups, Process};

/// Texts and programs that a reader keeps at hand.
const CACHED: usize = 20_000;

/// Unix time in microseconds, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub since: i64,
    pub until: i64,
}

impl Span {
    pub const ALL: Self = Self { since: i64::MIN / 2, until: i64::MAX / 2 };
}

/// One time that guard ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub host: Arc<str>,
    pub machine: Arc<str>,
    pub boot: Arc<str>,
    pub began: i64,
    /// When it was heard of last.
    pub last: i64,
    pub losses: super::Losses,
}

/// When guard ran in a span, when not, and what was lost meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Microseconds that were asked for, and for which there are records.
    pub asked: i64,
    pub covered: i64,
    /// (from, to) without a running guard, since its first run; longer than a minute.
    pub gaps: Vec<(i64, i64)>,
    pub losses: super::Losses,
}

/// A group as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupRow {
    /// Its number in this store; [`Flows::number`] names it.
    pub number: i64,
    pub id: Id,
    pub group: Group,
    /// First ever, last ever, and since when without a pause of [`super::MEMORY_US`].
    pub first: i64,
    pub last: i64,
    pub fresh: i64,
}

/// A listening port as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerRow {
    pub listener: super::Listener,
    pub first: i64,
    pub last: i64,
    pub fresh: i64,
}

/// One flow without its texts: what a sum needs. Cheap.
#[derive(Clone, Copy, Debug)]
pub struct Flows {
    /// Of its group.
    pub number: i64,
    /// Of its program, to be asked by [`Reader::who`].
    pub who: Option<i64>,
    pub pid: u32,
    pub first: i64,
    pub last: i64,
    pub fate: Fate,
    pub answered: bool,
    pub listening: Option<bool>,
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    /// Of its names, to be asked by [`Reader::names`].
    pub names: Option<i64>,
    /// Of its rule and its reason, to be asked by [`Reader::text_of`].
    pub rule: Option<i64>,
    pub reason: i64,
    pub remote: IpAddr,
}

/// Reads one store.
pub struct Reader {
    db: Connection,
    path: PathBuf,
    texts: RefCell<HashMap<i64, Arc<str>>>,
    whos: RefCell<HashMap<i64, Option<Arc<Who>>>>,
    groups: RefCell<HashMap<i64, Option<Group>>>,
    runs: HashMap<i64, Run>,
}

const COLUMNS: &str = "flow_id, run, grp, who, pid, started, parents, first, last, fate, flags, protocol, remote, \
     remote_port, local, local_port, scope, interface, rule, reason, generation, packets_in, packets_out, bytes_in, \
     bytes_out, names, (SELECT head FROM heads WHERE flow = flows.id)";

impl Reader {
    /// `None`: there is no store.
    pub fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { path: path.to_owned(), source }),
            Ok(_) => {}
        }
        let mut reader = Self {
            db: schema::open_for_reading(path)?,
            path: path.to_owned(),
            texts: RefCell::default(),
            whos: RefCell::default(),
            groups: RefCell::default(),
            runs: HashMap::new(),
        };
        reader.runs = reader.read_runs().map_err(|error| reader.told(error))?;
        Ok(Some(reader))
    }

    fn told(&self, error: rusqlite::Error) -> StoreError {
        schema::told(&self.path, error)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything that follows is of one moment, whatever is written meanwhile, until the reader is dropped.
    pub fn hold(&self) -> Result<(), StoreError> {
        self.db.execute_batch("BEGIN").map_err(|error| self.told(error))
    }

    /// When the store began: before it, nothing is known.
    pub fn began(&self) -> Result<i64, StoreError> {
        self.db
            .query_row("SELECT value FROM meta WHERE name = 'began'", [], |row| row.get(0))
            .map_err(|error| self.told(error))
    }

    /// Every time that guard ran, the oldest first.
    #[must_use]
    pub fn runs(&self) -> Vec<&Run> {
        let mut runs: Vec<&Run> = self.runs.values().collect();
        runs.sort_by_key(|run| (run.began, run.last));
        runs
    }

    /// (host, machine id) of the last run.
    #[must_use]
    pub fn host(&self) -> Option<(Arc<str>, Arc<str>)> {
        self.runs().last().map(|run| (Arc::clone(&run.host), Arc::clone(&run.machine)))
    }

    /// Flows that were seen in a span, in the order in which they were recorded first, with all their texts. Unsolicited
    /// inbound from strangers is not among them: see [`Self::unsolicited`].
    pub fn flows(&self, span: Span, each: &mut dyn FnMut(Observed) -> ControlFlow<()>) -> Result<(), StoreError> {
        let condition = self.condition(span)?;
        self.observed(&format!("SELECT {COLUMNS} FROM flows {condition} ORDER BY id"), [span.since, span.until], each)
    }

    /// Flows of one group, the newest first.
    pub fn flows_of_group(
        &self,
        number: i64,
        span: Span,
        most: usize,
        each: &mut dyn FnMut(Observed) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.observed(
            &format!(
                "SELECT {COLUMNS} FROM flows INDEXED BY flows_group WHERE grp = ?3 AND last >= ?1 AND first <= ?2
                 ORDER BY id DESC LIMIT ?4"
            ),
            [span.since, span.until, number, most],
            each,
        )
    }

    /// The same flows as [`Self::flows`], without texts.
    pub fn sums(&self, span: Span, each: &mut dyn FnMut(&Flows)) -> Result<(), StoreError> {
        let condition = self.condition(span)?;
        let sql = format!(
            "SELECT grp, who, pid, first, last, fate, flags, packets_in, packets_out, bytes_in, bytes_out, names, rule,
             reason, remote FROM flows {condition} ORDER BY id"
        );
        let mut scan = || {
            let mut statement = self.db.prepare_cached(&sql)?;
            let mut rows = statement.query([span.since, span.until])?;
            while let Some(row) = rows.next()? {
                let flags: i64 = row.get(6)?;
                each(&Flows {
                    number: row.get(0)?,
                    who: row.get(1)?,
                    pid: row.get::<_, Option<u32>>(2)?.unwrap_or(0),
                    first: row.get(3)?,
                    last: row.get(4)?,
                    fate: fate_of(row.get(5)?),
                    answered: flags & ANSWERED != 0,
                    listening: listening(flags),
                    packets: [unsigned(row, 7)?, unsigned(row, 8)?],
                    bytes: [unsigned(row, 9)?, unsigned(row, 10)?],
                    names: row.get(11)?,
                    rule: row.get(12)?,
                    reason: row.get(13)?,
                    remote: address(row.get_ref(14)?).unwrap_or(IpAddr::from([0, 0, 0, 0])),
                });
            }
            Ok(())
        };
        scan().map_err(|error| self.told(error))
    }

    /// What strangers tried, the newest first: at most as many as the ring holds.
    pub fn unsolicited(&self, span: Span, each: &mut dyn FnMut(Observed) -> ControlFlow<()>) -> Result<(), StoreError> {
        self.observed(
            "SELECT flow_id, run, NULL, NULL, NULL, NULL, NULL, time, last, fate, flags, protocol, remote, remote_port,
             local, local_port, scope, interface, rule, reason, generation, packets, 0, bytes, 0, NULL, NULL
             FROM unsolicited WHERE last >= ?1 AND time <= ?2 ORDER BY time DESC",
            [span.since, span.until],
            each,
        )
    }

    /// Sums of the same, which nothing pushes out: whole hours.
    pub fn background(&self, span: Span) -> Result<Background, StoreError> {
        background::read(&self.db, span.since, span.until).map_err(|error| self.told(error))
    }

    /// Every group that is known and was seen since.
    pub fn groups(&self, since: i64) -> Result<Vec<GroupRow>, StoreError> {
        self.group_rows("last >= ?1", since)
    }

    /// The groups whose id, in hex, begins so.
    pub fn groups_by_id(&self, beginning: &str) -> Result<Vec<GroupRow>, StoreError> {
        let beginning = beginning.to_ascii_lowercase();
        let all = self.group_rows("?1 = 0", 0)?;
        Ok(all.into_iter().filter(|row| row.id.to_string().starts_with(&beginning)).collect())
    }

    fn group_rows(&self, condition: &str, value: i64) -> Result<Vec<GroupRow>, StoreError> {
        let sql = format!(
            "SELECT id, hash, first, fresh, last, program, direction, remote_kind, remote, protocol, port, denied
             FROM groups WHERE {condition} ORDER BY id"
        );
        let read = || {
            let mut statement = self.db.prepare_cached(&sql)?;
            let mut found = Vec::new();
            let mut rows = statement.query([value])?;
            while let Some(row) = rows.next()? {
                let Some(group) = group(row, 5)? else { continue };
                found.push(GroupRow {
                    number: row.get(0)?,
                    id: Id(row.get::<_, i64>(1)?.cast_unsigned()),
                    group,
                    first: row.get(2)?,
                    fresh: row.get(3)?,
                    last: row.get(4)?,
                });
            }
            Ok(found)
        };
        read().map_err(|error| self.told(error))
    }

    /// Ports on which something listened, the newest first.
    pub fn listeners(&self) -> Result<Vec<ListenerRow>, StoreError> {
        let read = || {
            let mut statement = self.db.prepare_cached(
                "SELECT protocol, port, address, program, first, fresh, last, pid FROM listeners
                 ORDER BY fresh DESC, protocol, port, address, program",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(ListenerRow {
                    listener: super::Listener {
                        protocol: row.get(0)?,
                        port: row.get(1)?,
                        address: address(row.get_ref(2)?).unwrap_or(IpAddr::from([0, 0, 0, 0])),
                        program: row.get(3)?,
                        pid: row.get(7)?,
                    },
                    first: row.get(4)?,
                    fresh: row.get(5)?,
                    last: row.get(6)?,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|error| self.told(error))
    }

    /// A program by its number, without the process that it ran as.
    pub fn who(&self, number: i64) -> Result<Option<Arc<Who>>, StoreError> {
        self.who_by(number).map_err(|error| self.told(error))
    }

    /// A rule's name or a reason.
    pub fn text_of(&self, number: i64) -> Result<Arc<str>, StoreError> {
        self.text(number).map_err(|error| self.told(error))
    }

    /// What a remote was asked as, the latest first.
    pub fn names(&self, number: i64) -> Result<Vec<Arc<str>>, StoreError> {
        self.text(number).map(|text| split(&text)).map_err(|error| self.told(error))
    }

    /// What the watch told in a span, the newest first.
    pub fn alerts(&self, span: Span) -> Result<Vec<super::Alert>, StoreError> {
        super::alerts::read(&self.db, span).map_err(|error| self.told(error))
    }

    /// What remotes were asked as, the oldest first.
    pub fn asked_as(&self) -> Result<Vec<super::Name>, StoreError> {
        super::asked::all(&self.db).map_err(|error| self.told(error))
    }

    /// When guard ran in a span that ends no later than now.
    #[must_use]
    pub fn coverage(&self, span: Span) -> Coverage {
        /// A restart takes less.
        const GAP: i64 = 60_000_000;
        let mut coverage = Coverage { asked: (span.until - span.since).max(0), ..Coverage::default() };
        let mut end = None::<i64>;
        for run in self.runs() {
            let (from, to) = (run.began.max(span.since), run.last.min(span.until));
            if to < from {
                // Before the span it still says that guard ran until then.
                end = Some(end.unwrap_or(run.last).max(run.last)).filter(|_| run.last < span.since);
                continue;
            }
            let covered_to = end.unwrap_or(from).max(span.since);
            if end.is_some() && from - covered_to > GAP {
                coverage.gaps.push((covered_to, from));
            }
            coverage.covered += (to - from.max(end.unwrap_or(from))).max(0);
            end = Some(end.unwrap_or(to).max(to));
            coverage.losses.add(&run.losses);
        }
        if let Some(end) = end
            && span.until - end.max(span.since) > GAP
        {
            coverage.gaps.push((end.max(span.since), span.until));
        }
        coverage
    }

    /// The whole table is read in its own order where much of it is asked for: faster than by the index.
    fn condition(&self, span: Span) -> Result<String, StoreError> {
        let (oldest, newest): (Option<i64>, Option<i64>) = self
            .db
            .query_row("SELECT (SELECT min(last) FROM flows), (SELECT max(last) FROM flows)", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .map_err(|error| self.told(error))?;
        let (oldest, newest) = (oldest.unwrap_or(0), newest.unwrap_or(0));
        let most = span.since <= oldest || (newest - span.since) > (newest - oldest) / 4;
        Ok(if most {
            "NOT INDEXED WHERE last >= ?1 AND first <= ?2".to_owned()
        } else {
            "INDEXED BY flows_last WHERE last >= ?1 AND first <= ?2".to_owned()
        })
    }

    fn observed(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        each: &mut dyn FnMut(Observed) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let scan = || {
            let mut statement = self.db.prepare_cached(sql)?;
            let mut rows = statement.query(values)?;
            while let Some(row) = rows.next()? {
                if let Some(flow) = self.row(row)?
                    && each(flow).is_break()
                {
                    break;
                }
            }
            Ok(())
        };
        scan().map_err(|error| self.told(error))
    }

    /// `None`: no flow that this guard could have written.
    fn row(&self, row: &Row<'_>) -> rusqlite::Result<Option<Observed>> {
        let text = |column| row.get::<_, Option<i64>>(column)?.map(|number| self.text(number)).transpose();
        let flags: i64 = row.get(10)?;
        let (Some(remote), Some(local)) = (address(row.get_ref(12)?), address(row.get_ref(14)?)) else {
            return Ok(None);
        };
        let key = Key::new(row.get(11)?, remote, row.get(13)?, local, row.get(15)?, row.get::<_, u32>(16)? & 0xff_ffff);
        let Some(key) = key else { return Ok(None) };
        let group = row.get::<_, Option<i64>>(2)?.map(|number| self.group(number)).transpose()?.flatten();
        let who = match row.get::<_, Option<i64>>(3)?.map(|number| self.who_by(number)).transpose()?.flatten() {
            Some(who) => Some(whole(&who, row)?),
            None => None,
        };
        let run: i64 = row.get(1)?;
        let run = self.runs.get(&run);
        let nobody: Arc<str> = Arc::from("");
        Ok(Some(Observed {
            flow_id: unsigned(row, 0)?,
            host: run.map_or_else(|| Arc::clone(&nobody), |run| Arc::clone(&run.host)),
            machine: run.map_or(nobody, |run| Arc::clone(&run.machine)),
            first: row.get(7)?,
            last: row.get(8)?,
            // Only inbound goes into the ring, which has no groups.
            direction: group.as_ref().map_or(guard_common::Direction::Inbound, |group| group.direction),
            key,
            interface: text(17)?,
            fate: fate_of(row.get(9)?),
            rule: text(18)?,
            reason: text(19)?.unwrap_or_else(|| Arc::from("")),
            generation: row.get(20)?,
            packets: [unsigned(row, 21)?, unsigned(row, 22)?],
            bytes: [unsigned(row, 23)?, unsigned(row, 24)?],
            answered: flags & ANSWERED != 0,
            adopted: flags & ADOPTED != 0,
            listening: listening(flags),
            who,
            names: text(25)?.map(|names| split(&names)).unwrap_or_default(),
            remote_group: match group {
                Some(group) => group.remote,
                None => crate::review::group::Remote::network_of(remote),
            },
            head: row.get::<_, Option<Vec<u8>>>(26)?.unwrap_or_default(),
        }))
    }

    fn text(&self, number: i64) -> rusqlite::Result<Arc<str>> {
        if let Some(text) = self.texts.borrow().get(&number) {
            return Ok(Arc::clone(text));
        }
        let text: Option<Box<str>> = self
            .db
            .prepare_cached("SELECT text FROM texts WHERE id = ?1")?
            .query_row([number], |row| row.get(0))
            .optional()?;
        let text: Arc<str> = text.unwrap_or_default().into();
        let mut texts = self.texts.borrow_mut();
        if texts.len() >= CACHED {
            texts.clear();
        }
        texts.insert(number, Arc::clone(&text));
        Ok(text)
    }

    fn who_by(&self, number: i64) -> rusqlite::Result<Option<Arc<Who>>> {
        if let Some(who) = self.whos.borrow().get(&number) {
            return Ok(who.clone());
        }
        let json: Option<Box<str>> = self
            .db
            .prepare_cached("SELECT json FROM whos WHERE id = ?1")?
            .query_row([number], |row| row.get(0))
            .optional()?;
        let who = json.and_then(|json| serde_json::from_str(&json).ok()).map(Arc::new);
        let mut whos = self.whos.borrow_mut();
        if whos.len() >= CACHED {
            whos.clear();
        }
        whos.insert(number, who.clone());
        Ok(who)
    }

    fn group(&self, number: i64) -> rusqlite::Result<Option<Group>> {
        if let Some(group) = self.groups.borrow().get(&number) {
            return Ok(group.clone());
        }
        let found = self
            .db
            .prepare_cached(
                "SELECT program, direction, remote_kind, remote, protocol, port, denied FROM groups WHERE id = ?1",
            )?
            .query_row([number], |row| group(row, 0))
            .optional()?
            .flatten();
        let mut groups = self.groups.borrow_mut();
        if groups.len() >= CACHED {
            groups.clear();
        }
        groups.insert(number, found.clone());
        Ok(found)
    }

    fn read_runs(&self) -> rusqlite::Result<HashMap<i64, Run>> {
        let mut statement = self.db.prepare(
            "SELECT id, host, machine, boot, began, last, lost_events, lost_packets, lost_records, lost_store FROM runs",
        )?;
        let rows = statement.query_map([], |row| {
            let text = |column| row.get::<_, Box<str>>(column).map(Arc::from);
            let run = Run {
                host: text(1)?,
                machine: text(2)?,
                boot: text(3)?,
                began: row.get(4)?,
                last: row.get(5)?,
                losses: super::Losses {
                    events: unsigned(row, 6)?,
                    packets: unsigned(row, 7)?,
                    records: unsigned(row, 8)?,
                    store: unsigned(row, 9)?,
                },
            };
            Ok((row.get(0)?, run))
        })?;
        rows.collect()
    }
}

/// A program as the process that it was.
fn whole(who: &Arc<Who>, row: &Row<'_>) -> rusqlite::Result<Arc<Who>> {
    let mut who = Who {
        pid: row.get::<_, Option<u32>>(4)?.unwrap_or(0),
        started: row.get::<_, Option<i64>>(5)?.unwrap_or(0).cast_unsigned(),
        ..Who::clone(who)
    };
    if let ValueRef::Blob(pids) = row.get_ref(6)? {
        for (parent, pid) in who.parents.iter_mut().zip(pids.chunks_exact(4)) {
            parent.pid = pid.try_into().map_or(0, u32::from_le_bytes);
        }
    }
    Ok(Arc::new(who))
}

/// Seven columns, from `at` on.
fn group(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Group>> {
    let program = row.get_ref(at)?.as_str_or_null()?;
    let Some(remote) = remote_of(row.get(at + 2)?, row.get_ref(at + 3)?.as_str()?) else { return Ok(None) };
    let direction = direction_of(row.get(at + 1)?);
    Ok(Some(group_of(program, direction as i64, remote, row.get(at + 4)?, row.get(at + 5)?, row.get(at + 6)?)))
}

fn listening(flags: i64) -> Option<bool> {
    (flags & LISTENING_KNOWN != 0).then_some(flags & LISTENING != 0)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

pub(super) fn address(value: ValueRef<'_>) -> Option<IpAddr> {
    let ValueRef::Blob(bytes) = value else { return None };
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn split(names: &str) -> Vec<Arc<str>> {
    names.split('\n').filter(|name| !name.is_empty()).map(Arc::from).collect()
}
