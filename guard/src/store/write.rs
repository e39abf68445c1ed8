//! Changes to rows, in transactions of many.

use std::{
    collections::HashMap,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, params};

use super::{
    Change, Listener, Losses, MEMORY_US, StoreError, background,
    intern::{Intern, fate_number},
    listening, schema,
};
use crate::review::observed::Observed;

pub const ANSWERED: i64 = 1;
pub const ADOPTED: i64 = 2;
pub const LISTENING_KNOWN: i64 = 4;
pub const LISTENING: i64 = 8;

/// Rows that one step of forgetting takes: the writer's queue has to hold what comes meanwhile.
const FORGET_ROWS: i64 = 20_000;
/// Changes between two looks at size and age.
const LOOK: usize = 5_000;
/// Unsolicited flows whose row is remembered until they end.
const REMEMBERED: usize = 100_000;

/// How much is kept: the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the whole file.
    pub bytes: u64,
    /// Microseconds.
    pub age: i64,
    /// Flows that nobody here asked for.
    pub unsolicited: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 1 << 30, age: 90 * super::DAY_US, unsolicited: 200_000 }
    }
}

/// Whose records these are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    pub host: String,
    /// `/etc/machine-id`.
    pub machine: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Unix time in microseconds.
    pub at: i64,
}

impl Begun {
    /// This host, now.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Self {
            host: host.unwrap_or_else(|| "unknown".to_owned()),
            machine: read("/etc/machine-id"),
            boot: read("/proc/sys/kernel/random/boot_id"),
            at: i64::try_from(crate::record::clock::unix_now() / 1000).unwrap_or(0),
        }
    }
}

/// The one writer. [`super::Recording`] runs it on a thread of its own.
pub struct Writer {
    db: Connection,
    path: PathBuf,
    limits: Limits,
    run: i64,
    intern: Intern,
    ring: Ring,
    since_look: usize,
    /// Device and inode of the file.
    inode: (u64, u64),
}

/// Where the next unsolicited flow goes, and where those lie that have not ended.
struct Ring {
    next: i64,
    open: HashMap<u64, Waiting>,
}

/// An unsolicited flow that has not ended: its slot, and what of it is in which sum.
struct Waiting {
    slot: i64,
    sum: background::Sum,
    packets: i64,
    bytes: i64,
}

impl Writer {
    /// Opens or makes the store, and begins a run.
    pub fn open(path: &Path, limits: Limits, begun: &Begun) -> Result<Self, StoreError> {
        let db = schema::open_for_writing(path, begun.at)?;
        let metadata =
            std::fs::symlink_metadata(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
        let in_context = |source| schema::told(path, source);
        let mut writer = Self {
            intern: Intern::load(&db).map_err(in_context)?,
            db,
            path: path.to_owned(),
            limits,
            run: 0,
            ring: Ring { next: 0, open: HashMap::new() },
            since_look: 0,
            inode: (metadata.dev(), metadata.ino()),
        };
        writer.begin(begun).map_err(in_context)?;
        Ok(writer)
    }

    fn begin(&mut self, begun: &Begun) -> rusqlite::Result<()> {
        let db = self.db.transaction()?;
        // What was open in another boot is over; nobody will say so.
        db.execute(
            "UPDATE flows SET ended = 1 WHERE ended = 0 AND run NOT IN (SELECT id FROM runs WHERE boot = ?1)",
            [&begun.boot],
        )?;
        self.run = db.query_row(
            "INSERT INTO runs (host, machine, boot, began, last) VALUES (?1, ?2, ?3, ?4, ?4) RETURNING id",
            params![begun.host, begun.machine, begun.boot, begun.at],
            |row| row.get(0),
        )?;
        self.ring.next = background::next_slot(&db, self.limits.unsolicited)?;
        db.commit()
    }

    /// One batch, whole or not at all.
    pub fn apply(&mut self, changes: &[Change], now: i64) -> Result<(), StoreError> {
        let result = self.try_apply(changes, now);
        if result.is_err() {
            // Numbers that were given in it are void.
            match Intern::load(&self.db) {
                Ok(intern) => self.intern = intern,
                Err(error) => return Err(schema::told(&self.path, error)),
            }
            self.ring.open.clear();
        }
        result.map_err(|error| schema::told(&self.path, error))
    }

    fn try_apply(&mut self, changes: &[Change], now: i64) -> rusqlite::Result<()> {
        let db = self.db.transaction()?;
        for Change { flow, ended } in changes {
            if flow.is_unsolicited() && !self.intern.knows(&flow.remote_group) {
                put_unsolicited(
                    &db,
                    &mut self.intern,
                    &mut self.ring,
                    self.limits.unsolicited,
                    self.run,
                    flow,
                    *ended,
                )?;
            } else {
                take_back(&db, &mut self.ring, flow.flow_id)?;
                put(&db, &mut self.intern, self.run, flow, *ended)?;
            }
        }
        self.intern.flush(&db)?;
        db.prepare_cached("UPDATE runs SET last = max(last, ?2) WHERE id = ?1")?.execute(params![self.run, now])?;
        db.commit()?;
        self.since_look += changes.len();
        Ok(())
    }

    /// guard still runs.
    pub fn beat(&mut self, losses: &Losses, now: i64) -> Result<(), StoreError> {
        self.db
            .prepare_cached(
                "UPDATE runs SET last = max(last, ?2), lost_events = ?3, lost_packets = ?4, lost_records = ?5,
                 lost_store = ?6 WHERE id = ?1",
            )
            .and_then(|mut update| {
                let [events, packets, records, store] =
                    [losses.events, losses.packets, losses.records, losses.store].map(u64::cast_signed);
                update.execute(params![self.run, now, events, packets, records, store])
            })
            .map(|_| ())
            .map_err(|error| schema::told(&self.path, error))
    }

    /// What the watch told.
    pub fn alerts(&mut self, alerts: &[super::Alert]) -> Result<(), StoreError> {
        let path = &self.path;
        let mut write = || {
            let db = self.db.transaction()?;
            alerts.iter().try_for_each(|alert| super::alerts::put(&db, alert))?;
            db.commit()
        };
        write().map_err(|error| schema::told(path, error))
    }

    /// What remotes were asked as.
    pub fn names(&mut self, names: &[super::Name], now: i64) -> Result<(), StoreError> {
        let path = &self.path;
        let mut write = || {
            let db = self.db.transaction()?;
            super::asked::put(&db, names, now)?;
            db.commit()
        };
        write().map_err(|error| schema::told(path, error))
    }

    /// What listens now.
    pub fn listening(&mut self, listeners: &[Listener], now: i64) -> Result<(), StoreError> {
        let path = &self.path;
        let mut write = || {
            let db = self.db.transaction()?;
            listening::put(&db, listeners, now, MEMORY_US)?;
            db.commit()
        };
        write().map_err(|error| schema::told(path, error))
    }

    /// Forgets the oldest where there is too much, a step at a time. Returns whether more is to be forgotten.
    pub fn forget(&mut self, now: i64, always_look: bool) -> Result<bool, StoreError> {
        if self.since_look < LOOK && !always_look {
            return Ok(false);
        }
        self.since_look = 0;
        self.try_forget(now).map_err(|error| schema::told(&self.path, error))
    }

    fn try_forget(&mut self, now: i64) -> rusqlite::Result<bool> {
        let pragma = |name: &str| self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (pages, free, size) = (pragma("page_count")?, pragma("freelist_count")?, pragma("page_size")?);
        let oldest = now - self.limits.age;
        let too_large = ((pages - free) * size).cast_unsigned() > self.limits.bytes;
        let db = self.db.transaction()?;
        let mut gone = if too_large {
            // The oldest, whatever they are: a flow that goes on is written anew by its next change.
            let rows: i64 =
                db.query_row("SELECT coalesce(max(id) - min(id) + 1, 0) FROM flows", [], |row| row.get(0))?;
            let step = (rows / 20).clamp(1000, FORGET_ROWS);
            db.prepare_cached("DELETE FROM flows WHERE id IN (SELECT id FROM flows ORDER BY id LIMIT ?1)")?
                .execute([step])?
        } else {
            0
        };
        gone += db
            .prepare_cached(
                "DELETE FROM flows WHERE id IN (SELECT id FROM (SELECT id, last FROM flows ORDER BY last LIMIT ?1)
                 WHERE last < ?2)",
            )?
            .execute([FORGET_ROWS, oldest])?;
        let more = gone >= 1000;
        if gone > 0 {
            db.execute("DELETE FROM heads WHERE flow < (SELECT coalesce(min(id), 0) FROM flows)", [])?;
            let kept: i64 = db.query_row("SELECT coalesce(min(last), ?1) FROM flows", [now], |row| row.get(0))?;
            // Times of use are kept to a day.
            let unused = kept.min(now - MEMORY_US) - 2 * super::DAY_US;
            for table in ["texts", "whos"] {
                db.execute(&format!("DELETE FROM {table} WHERE last < ?1"), [unused])?;
            }
            db.execute("DELETE FROM groups WHERE last < ?1", [unused])?;
        }
        background::forget(&db, oldest)?;
        listening::forget(&db, oldest)?;
        super::alerts::forget(&db, oldest)?;
        db.execute("DELETE FROM runs WHERE last < ?1 AND id <> ?2", [oldest, self.run])?;
        db.commit()?;
        if gone > 0 {
            // Caches may name what was forgotten.
            self.intern = Intern::load(&self.db)?;
        }
        if free * 4 > pages {
            self.db.execute_batch("PRAGMA incremental_vacuum(2000)")?;
        }
        Ok(more)
    }

    /// Whether the file that is written is the one that its name leads to.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn put(db: &Connection, intern: &mut Intern, run: i64, flow: &Observed, ended: bool) -> rusqlite::Result<()> {
    let group = intern.group(db, flow)?;
    let now = flow.last;
    let (who, parents) = match &flow.who {
        Some(who) => {
            let (id, parents) = intern.who(db, who, now)?;
            (Some(id), Some(parents).filter(|parents| !parents.is_empty()))
        }
        None => (None, None),
    };
    let interface = flow.interface.as_ref().map(|text| intern.text(db, text, now)).transpose()?;
    let rule = flow.rule.as_ref().map(|text| intern.text(db, text, now)).transpose()?;
    let reason = intern.text(db, &flow.reason, now)?;
    let names = match flow.names.is_empty() {
        true => None,
        false => Some(intern.text(db, &joined(&flow.names), now)?),
    };
    let [packets_in, packets_out, bytes_in, bytes_out] =
        [flow.packets[0], flow.packets[1], flow.bytes[0], flow.bytes[1]].map(u64::cast_signed);
    let id: i64 = db
        .prepare_cached(
            "INSERT INTO flows (flow_id, ended, run, grp, who, pid, started, parents, first, last, fate, flags,
                 protocol, remote, remote_port, local, local_port, scope, interface, rule, reason, generation,
                 packets_in, packets_out, bytes_in, bytes_out, names)
             VALUES (?1, 0, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20,
                 ?21, ?22, ?23, ?24, ?25, ?26)
             ON CONFLICT (flow_id) WHERE ended = 0 DO UPDATE SET
                 grp = excluded.grp, last = max(last, excluded.last), fate = excluded.fate, flags = excluded.flags,
                 who = coalesce(excluded.who, who), pid = coalesce(excluded.pid, pid),
                 started = coalesce(excluded.started, started), parents = coalesce(excluded.parents, parents),
                 rule = excluded.rule, reason = excluded.reason, generation = excluded.generation,
                 packets_in = max(packets_in, excluded.packets_in), packets_out = max(packets_out, excluded.packets_out),
                 bytes_in = max(bytes_in, excluded.bytes_in), bytes_out = max(bytes_out, excluded.bytes_out),
                 names = coalesce(excluded.names, names)
             RETURNING id",
        )?
        .query_row(
            params![
                flow.flow_id.cast_signed(),
                run,
                group,
                who,
                flow.who.as_ref().map(|who| who.pid),
                flow.who.as_ref().map(|who| who.started.cast_signed()),
                parents.as_deref(),
                flow.first,
                flow.last,
                fate_number(flow.fate),
                flags(flow),
                flow.key.protocol(),
                octets(flow.key.remote()).as_slice(),
                flow.key.remote_port(),
                octets(flow.key.local()).as_slice(),
                flow.key.local_port(),
                flow.key.scope(),
                interface,
                rule,
                reason,
                flow.generation,
                packets_in,
                packets_out,
                bytes_in,
                bytes_out,
                names,
            ],
            |row| row.get(0),
        )?;
    if !flow.head.is_empty() {
        db.prepare_cached("INSERT OR IGNORE INTO heads (flow, head) VALUES (?1, ?2)")?
            .execute(params![id, &flow.head[..flow.head.len().min(256)]])?;
    }
    if ended {
        db.prepare_cached("UPDATE flows SET ended = 1 WHERE id = ?1")?.execute([id])?;
    }
    Ok(())
}

/// In the ring, and in the sums by the hour, which no scan can push out.
fn put_unsolicited(
    db: &Connection,
    intern: &mut Intern,
    ring: &mut Ring,
    slots: u32,
    run: i64,
    flow: &Observed,
    ended: bool,
) -> rusqlite::Result<()> {
    let (packets, bytes) =
        ((flow.packets[0] + flow.packets[1]).cast_signed(), (flow.bytes[0] + flow.bytes[1]).cast_signed());
    if let Some(waiting) = ring.open.get_mut(&flow.flow_id) {
        waiting.sum.add(db, 0, (packets - waiting.packets).max(0), (bytes - waiting.bytes).max(0))?;
        (waiting.packets, waiting.bytes) = (packets.max(waiting.packets), bytes.max(waiting.bytes));
        db.prepare_cached(
            "UPDATE unsolicited SET last = ?3, packets = ?4, bytes = ?5, flags = ?6 WHERE slot = ?1 AND flow_id = ?2",
        )?
        .execute(params![waiting.slot, flow.flow_id.cast_signed(), flow.last, packets, bytes, flags(flow)])?;
        if ended {
            ring.open.remove(&flow.flow_id);
        }
        return Ok(());
    }
    let interface = flow.interface.as_ref().map(|text| intern.text(db, text, flow.last)).transpose()?;
    let rule = flow.rule.as_ref().map(|text| intern.text(db, text, flow.last)).transpose()?;
    let reason = intern.text(db, &flow.reason, flow.last)?;
    let slot = ring.next % i64::from(slots.max(1));
    ring.next += 1;
    db.prepare_cached(
        "INSERT OR REPLACE INTO unsolicited (slot, flow_id, run, time, last, fate, flags, remote, remote_port, local,
             local_port, protocol, scope, interface, rule, reason, generation, packets, bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
    )?
    .execute(params![
        slot,
        flow.flow_id.cast_signed(),
        run,
        flow.first,
        flow.last,
        fate_number(flow.fate),
        flags(flow),
        octets(flow.key.remote()).as_slice(),
        flow.key.remote_port(),
        octets(flow.key.local()).as_slice(),
        flow.key.local_port(),
        flow.key.protocol(),
        flow.key.scope(),
        interface,
        rule,
        reason,
        flow.generation,
        packets,
        bytes,
    ])?;
    let sum = background::Sum::of(flow);
    sum.add(db, 1, packets, bytes)?;
    if !ended {
        if ring.open.len() >= REMEMBERED {
            ring.open.clear();
        }
        ring.open.insert(flow.flow_id, Waiting { slot, sum, packets, bytes });
    }
    Ok(())
}

/// A flow that was answered after all (in audit mode, or while observing), or that a later policy allows, is no unsolicited
/// one: it would stand in both places. Where it is no longer remembered, it does.
fn take_back(db: &Connection, ring: &mut Ring, flow_id: u64) -> rusqlite::Result<()> {
    let Some(waiting) = ring.open.remove(&flow_id) else { return Ok(()) };
    db.prepare_cached("DELETE FROM unsolicited WHERE slot = ?1 AND flow_id = ?2")?
        .execute(params![waiting.slot, flow_id.cast_signed()])?;
    waiting.sum.add(db, -1, -waiting.packets, -waiting.bytes)
}

fn flags(flow: &Observed) -> i64 {
    let listening = match flow.listening {
        None => 0,
        Some(false) => LISTENING_KNOWN,
        Some(true) => LISTENING_KNOWN | LISTENING,
    };
    i64::from(flow.answered) * ANSWERED + i64::from(flow.adopted) * ADOPTED + listening
}

/// 4 or 16 bytes in network order.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Names in one text. A name that holds the separator is none that DNS can carry as text.
fn joined(names: &[Arc<str>]) -> Arc<str> {
    names.iter().map(|name| name.replace('\n', "\u{fffd}")).collect::<Vec<_>>().join("\n").into()
}
