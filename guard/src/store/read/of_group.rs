//! All that is kept of some groups, summed up in the database: their processes, names and first bytes, however many flows
//! there are.

use std::{collections::HashMap, sync::Arc};

use super::{Reader, StoreError, whole};
use crate::record::who::Who;

/// Processes, names and distinct first bytes that are handed out; the newest, and the rest is counted.
const MOST: usize = 1000;

/// One process, with its part in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub who: Arc<Who>,
    pub flows: u64,
    pub first: i64,
    pub last: i64,
}

/// First bytes that flows had in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub bytes: Vec<u8>,
    pub flows: u64,
    /// Of the newest of them.
    pub at: i64,
}

/// Of all flows of some groups.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OfGroups {
    pub flows: u64,
    /// Of them, whose program is not known.
    pub unknown: u64,
    /// `[inbound, outbound]`.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    /// The newest first.
    pub processes: Vec<Process>,
    pub more_processes: u64,
    pub names: Vec<Arc<str>>,
    /// The newest first.
    pub heads: Vec<Head>,
    pub more_heads: u64,
}

impl Reader {
    /// Of the groups with these numbers.
    pub fn of_groups(&self, numbers: &[i64]) -> Result<OfGroups, StoreError> {
        let mut sums = Sums::default();
        numbers.iter().try_for_each(|number| self.add_group(*number, &mut sums)).map_err(|error| self.told(error))?;
        Ok(sums.finish())
    }

    fn add_group(&self, number: i64, sums: &mut Sums) -> rusqlite::Result<()> {
        // total() never overflows.
        self.db
            .prepare_cached(
                "SELECT count(*), count(*) - count(who), total(packets_in), total(packets_out), total(bytes_in),
                 total(bytes_out) FROM flows INDEXED BY flows_group WHERE grp = ?1",
            )?
            .query_row([number], |row| {
                sums.all.flows += row.get::<_, i64>(0)?.cast_unsigned();
                sums.all.unknown += row.get::<_, i64>(1)?.cast_unsigned();
                for side in 0..2 {
                    sums.all.packets[side] += row.get::<_, f64>(2 + side)? as u64;
                    sums.all.bytes[side] += row.get::<_, f64>(4 + side)? as u64;
                }
                Ok(())
            })?;
        let mut statement = self.db.prepare_cached(
            "SELECT count(*), min(first), max(last), who, pid, started, parents, count(*) OVER ()
             FROM flows INDEXED BY flows_group WHERE grp = ?1 AND who IS NOT NULL GROUP BY who, pid, started
             ORDER BY max(last) DESC LIMIT ?2",
        )?;
        let mut rows = statement.query((number, MOST as i64))?;
        let (mut found, mut all) = (0, 0);
        while let Some(row) = rows.next()? {
            (found, all) = (found + 1, row.get::<_, i64>(7)?.cast_unsigned());
            let Some(who) = self.who_by(row.get(3)?)? else { continue };
            let who = whole(&who, row)?;
            let flows = row.get::<_, i64>(0)?.cast_unsigned();
            let (first, last) = (row.get(1)?, row.get(2)?);
            let process = sums.processes.entry((who.pid, who.started, who.exe.clone())).or_insert_with(|| Process {
                who: Arc::clone(&who),
                flows: 0,
                first,
                last,
            });
            // What is known of it last, where it became more.
            if last >= process.last {
                process.who = who;
            }
            process.flows += flows;
            (process.first, process.last) = (process.first.min(first), process.last.max(last));
        }
        sums.all.more_processes += all - found;
        let mut statement = self.db.prepare_cached(
            "SELECT names, max(last) FROM flows INDEXED BY flows_group WHERE grp = ?1 AND names IS NOT NULL
             GROUP BY names ORDER BY max(last) DESC LIMIT ?2",
        )?;
        let mut rows = statement.query((number, MOST as i64))?;
        while let Some(row) = rows.next()? {
            for name in super::split(&self.text(row.get(0)?)?) {
                if sums.all.names.len() < MOST && !sums.all.names.contains(&name) {
                    sums.all.names.push(name);
                }
            }
        }
        let mut statement = self.db.prepare_cached(
            "SELECT head, count(*), max(first), count(*) OVER () FROM flows INDEXED BY flows_group
             JOIN heads ON heads.flow = flows.id WHERE grp = ?1 GROUP BY head ORDER BY max(first) DESC LIMIT ?2",
        )?;
        let mut rows = statement.query((number, MOST as i64))?;
        let (mut found, mut all) = (0, 0);
        while let Some(row) = rows.next()? {
            (found, all) = (found + 1, row.get::<_, i64>(3)?.cast_unsigned());
            let (flows, at) = (row.get::<_, i64>(1)?.cast_unsigned(), row.get(2)?);
            let head = sums.heads.entry(row.get(0)?).or_insert((0, at));
            *head = (head.0 + flows, head.1.max(at));
        }
        sums.all.more_heads += all - found;
        Ok(())
    }
}

#[derive(Default)]
struct Sums {
    all: OfGroups,
    /// By process id, start and program.
    processes: HashMap<(u32, u64, Option<String>), Process>,
    heads: HashMap<Vec<u8>, (u64, i64)>,
}

impl Sums {
    fn finish(self) -> OfGroups {
        let mut all = self.all;
        all.processes = self.processes.into_values().collect();
        all.processes.sort_by_key(|process| (std::cmp::Reverse(process.last), process.who.pid, process.who.started));
        all.more_processes += all.processes.len().saturating_sub(MOST) as u64;
        all.processes.truncate(MOST);
        all.heads = self.heads.into_iter().map(|(bytes, (flows, at))| Head { bytes, flows, at }).collect();
        all.heads.sort_by(|a, b| (b.at, &a.bytes).cmp(&(a.at, &b.bytes)));
        all.more_heads += all.heads.len().saturating_sub(MOST) as u64;
        all.heads.truncate(MOST);
        all.names.sort_unstable();
        all
    }
}
