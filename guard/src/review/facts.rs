//! What is known of each group in a span of time: sums that are kept while flows go by, so that memory is bounded by
//! groups, not by flows.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    group::{Group, Id},
    observed::Fate,
};
use crate::{
    record::who::{Unusual, Who},
    store::{Flows, GroupRow, Reader, Span, StoreError},
};

/// Distinct remotes that are counted; above, "at least".
pub const REMOTES: usize = 256;
/// Process ids that are named.
const PIDS: usize = 3;

/// One group.
#[derive(Clone, Debug)]
pub struct Facts {
    pub id: Id,
    pub group: Group,
    /// First ever; since when without a pause of two weeks; Unix time in microseconds.
    pub first_ever: i64,
    pub fresh: i64,
    /// In the span.
    pub flows: u64,
    /// By [`Fate`]: allowed, denied, would be denied, seen.
    pub fates: [u64; 4],
    pub answered: u64,
    pub first: i64,
    pub last: i64,
    /// `[inbound, outbound]`.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    pub pids: Vec<u32>,
    pub rhythm: Rhythm,
    pub unusual: BTreeSet<Unusual>,
    pub remote: Option<IpAddr>,
    /// The program as it was seen last.
    pub who: Option<Arc<Who>>,
    pub names: Vec<Arc<str>>,
    pub rule: Option<Arc<str>>,
    pub reason: Arc<str>,
    pub listening: Option<bool>,
    pub(super) remotes: HashSet<IpAddr, foldhash::fast::RandomState>,
    more_remotes: bool,
    /// Flows by an equal part of the span, for a timeline.
    pub timeline: [u32; BARS],
}

/// Bars of a timeline.
pub const BARS: usize = 48;

/// Time between one flow's beginning and the next one's: mean and spread (Welford).
#[derive(Clone, Copy, Debug, Default)]
pub struct Rhythm {
    before: Option<i64>,
    count: u64,
    mean: f64,
    spread: f64,
}

impl Rhythm {
    fn add(&mut self, at: i64) {
        if let Some(before) = self.before
            && at > before
        {
            let interval = (at - before) as f64 / 1e6;
            self.count += 1;
            let off = interval - self.mean;
            self.mean += off / self.count as f64;
            self.spread += off * (interval - self.mean);
        }
        self.before = Some(at.max(self.before.unwrap_or(at)));
    }

    /// (seconds, part of them that it strays by) where it is regular: at least five intervals of a second or more that
    /// stray by no more than a tenth.
    #[must_use]
    pub fn regular(&self) -> Option<(f64, f64)> {
        if self.count < 5 || self.mean < 1.0 {
            return None;
        }
        let strays = (self.spread / self.count as f64).sqrt() / self.mean;
        (strays <= 0.1).then_some((self.mean, strays))
    }
}

impl Facts {
    #[must_use]
    pub fn new(id: Id, group: Group, first_ever: i64, fresh: i64) -> Self {
        Self {
            id,
            group,
            first_ever,
            fresh,
            flows: 0,
            fates: [0; 4],
            answered: 0,
            first: i64::MAX,
            last: i64::MIN,
            packets: [0; 2],
            bytes: [0; 2],
            pids: Vec::new(),
            rhythm: Rhythm::default(),
            unusual: BTreeSet::new(),
            remote: None,
            who: None,
            names: Vec::new(),
            rule: None,
            reason: Arc::from(""),
            listening: None,
            remotes: HashSet::default(),
            more_remotes: false,
            timeline: [0; BARS],
        }
    }

    /// The same, as what another group shows.
    #[must_use]
    pub fn as_group(&self, group: Group) -> Self {
        Self { id: group.id(), group, ..self.clone() }
    }

    /// Distinct remotes that were counted.
    #[must_use]
    pub fn remotes(&self) -> usize {
        self.remotes.len()
    }

    /// There are more.
    #[must_use]
    pub const fn has_more_remotes(&self) -> bool {
        self.more_remotes
    }

    /// `room`: for one more address, where it is new.
    pub(super) fn add(&mut self, flow: &Flows, span: Span, room: bool) {
        self.flows += 1;
        self.fates[fate_at(flow.fate)] += 1;
        self.answered += u64::from(flow.answered);
        self.first = self.first.min(flow.first);
        self.last = self.last.max(flow.last);
        for side in 0..2 {
            self.packets[side] = self.packets[side].saturating_add(flow.packets[side]);
            self.bytes[side] = self.bytes[side].saturating_add(flow.bytes[side]);
        }
        if flow.pid != 0 && !self.pids.contains(&flow.pid) {
            if self.pids.len() == PIDS {
                self.pids.remove(0);
            }
            self.pids.push(flow.pid);
        }
        self.rhythm.add(flow.first);
        if self.remote != Some(flow.remote) {
            self.remote = Some(flow.remote);
            if room && self.remotes.len() < REMOTES {
                self.remotes.insert(flow.remote);
            } else if !self.more_remotes {
                self.more_remotes = !self.remotes.contains(&flow.remote);
            }
        }
        self.listening = flow.listening.or(self.listening);
        let width = (span.until - span.since).max(1) as f64;
        let bar = ((flow.first - span.since).max(0) as f64 / width * BARS as f64) as usize;
        self.timeline[bar.min(BARS - 1)] += 1;
    }

    /// The same group of another host, or one of several that are shown as one.
    pub fn merge(&mut self, other: &Self) {
        self.first_ever = self.first_ever.min(other.first_ever);
        self.fresh = self.fresh.min(other.fresh);
        self.flows += other.flows;
        self.answered += other.answered;
        (0..4).for_each(|fate| self.fates[fate] += other.fates[fate]);
        if other.last > self.last {
            self.who = other.who.clone().or(self.who.take());
            self.remote = other.remote;
        }
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        for side in 0..2 {
            self.packets[side] = self.packets[side].saturating_add(other.packets[side]);
            self.bytes[side] = self.bytes[side].saturating_add(other.bytes[side]);
        }
        for pid in &other.pids {
            if self.pids.len() < PIDS && !self.pids.contains(pid) {
                self.pids.push(*pid);
            }
        }
        // Two rhythms are none.
        self.rhythm = Rhythm::default();
        self.unusual.extend(&other.unusual);
        for name in &other.names {
            if self.names.len() < 8 && !self.names.contains(name) {
                self.names.push(Arc::clone(name));
            }
        }
        for remote in &other.remotes {
            if self.remotes.len() < REMOTES {
                self.remotes.insert(*remote);
            } else {
                self.more_remotes |= !self.remotes.contains(remote);
            }
        }
        self.more_remotes |= other.more_remotes;
        self.rule = self.rule.take().or_else(|| other.rule.clone());
        for bar in 0..BARS {
            self.timeline[bar] += other.timeline[bar];
        }
    }
}

const fn fate_at(fate: Fate) -> usize {
    match fate {
        Fate::Allowed => 0,
        Fate::Denied => 1,
        Fate::WouldDeny => 2,
        Fate::Seen => 3,
    }
}

/// A group while its flows go by.
struct Gathered {
    facts: Facts,
    /// Numbers of its program, names, rule and reason, as they were seen last.
    who: Option<i64>,
    names: Option<i64>,
    rule: Option<i64>,
    reason: Option<i64>,
}

/// Of a store, all groups with flows in a span.
pub fn of_store(reader: &Reader, span: Span) -> Result<Vec<Facts>, StoreError> {
    let gathered = |GroupRow { number, id, group, first, fresh, .. }| {
        let facts = Facts::new(id, group, first, fresh);
        (number, Gathered { facts, who: None, names: None, rule: None, reason: None })
    };
    let mut by_number: HashMap<i64, Gathered, foldhash::fast::RandomState> =
        reader.groups(span.since)?.into_iter().map(gathered).collect();
    let mut failed = None;
    reader.sums(span, &mut |flow| {
        let Some(group) = by_number.get_mut(&flow.number) else { return };
        group.facts.add(flow, span, true);
        group.names = flow.names.or(group.names);
        group.rule = flow.rule.or(group.rule);
        group.reason = Some(flow.reason);
        // Nearly always it is the program of the flow before.
        if let Some(who) = flow.who.filter(|who| group.who != Some(*who)) {
            group.who = Some(who);
            match reader.who(who) {
                Ok(who) => group.facts.unusual.extend(who.iter().flat_map(|who| &who.unusual)),
                Err(error) => failed = Some(error),
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let mut all: Vec<Facts> = Vec::with_capacity(by_number.len());
    for Gathered { mut facts, who, names, rule, reason } in by_number.into_values() {
        let Some(reason) = reason else { continue };
        facts.who = who.map(|who| reader.who(who)).transpose()?.flatten();
        facts.names = names.map(|names| reader.names(names)).transpose()?.unwrap_or_default();
        facts.rule = rule.map(|rule| reader.text_of(rule)).transpose()?;
        facts.reason = reader.text_of(reason)?;
        all.push(facts);
    }
    all.sort_by_key(|facts| facts.id);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rhythm_is_told_from_chance() {
        let mut beacon = Rhythm::default();
        (0..9i64).for_each(|n| beacon.add(n * 300_000_000 + (n % 3) * 5_000_000));
        let (every, strays) = beacon.regular().unwrap();
        assert!((every - 300.0).abs() < 5.0 && strays < 0.05, "{every} {strays}");
        let mut chance = Rhythm::default();
        [1, 2, 40, 41, 300, 310, 900].into_iter().for_each(|second| chance.add(second * 1_000_000));
        assert!(chance.regular().is_none());
    }
}
