//! From the rings and the flow tables to records: what happened, what a look at the tables finds, and what was lost.

use guard_common::Direction;
use tokio::time::{Duration, Instant};

use super::{Baseline, Daemon, Untold};
use crate::{
    daemon::{
        difference::{Difference, Gap, Kind},
        watch::Told,
    },
    record::{
        clock::{boot_now, unix_now},
        recorder::counts_as_flow,
        sweep::Sum,
    },
    store::{FILE, Losses},
};

/// Events taken in one go, so that nothing else starves.
pub(super) const EVENTS: usize = 1024;
/// The same, of programs that run and of name servers' answers: more than their rings hold.
const BESIDE: usize = 8192;
/// A file of records, as it was when it was looked at last.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    lost: u64,
    /// Since when it cannot be written, and as what that was told.
    told: Option<(i64, Difference)>,
}

/// What alerts call the stream of records.
const RECORDS: &str = "flows.jsonl";

impl Daemon<'_> {
    pub(super) fn take_events(&mut self) -> usize {
        let mut events = Vec::new();
        let taken = self.engine.drain_events(EVENTS, &mut |event| events.push(*event));
        // After the events: whatever ran, and was asked for, before a flow began is known by then.
        self.take_beside();
        for event in &events {
            self.recorder.event(event);
            self.tell_of_refusal(event);
        }
        taken
    }

    /// Which programs run, and what name servers answered.
    pub(super) fn take_beside(&mut self) {
        let recorder = &mut self.recorder;
        self.engine.drain_processes(BESIDE, &mut |event| recorder.attributor.told(event));
        self.engine.drain_answers(BESIDE, &mut |event| recorder.asked_as.told(event));
    }

    /// One look at the flow tables. What it finds is told by [`Daemon::tell`].
    pub(super) fn sweep(&mut self) {
        let began = Instant::now();
        // Doorbells that wait are of flows that the tables are about to show.
        self.take_events();
        let looked = self.engine.now().and_then(|now| Ok((now, self.engine.flows()?)));
        let (now, held) = match looked {
            Ok(looked) => looked,
            Err(error) => return self.notice(format!("the flow tables could not be read: {error:#}")),
        };
        // And those of flows that began since, while the tables were read: they have the first bytes.
        self.take_events();
        let mut findings = self.recorder.tracker.look(held, &now);
        // From the end on, in the order in which they were found.
        findings.found.reverse();
        findings.grown.reverse();
        self.untold = Some(Untold { findings, now, spent: began.elapsed() });
    }

    /// Some of what the last look found. How long all of it took, once it is told.
    pub(super) fn tell(&mut self) -> Option<Duration> {
        let began = Instant::now();
        let Untold { mut findings, now, spent } = self.untold.take()?;
        for found in findings.found.split_off(findings.found.len().saturating_sub(EVENTS)).iter().rev() {
            let owner = match found.flow.socket_cookie {
                0 => None,
                cookie => self.engine.owner(cookie),
            };
            self.recorder.found(found, &now, owner.as_ref());
        }
        for grown in findings.grown.split_off(findings.grown.len().saturating_sub(EVENTS)).iter().rev() {
            self.recorder.grown(grown, &now);
        }
        if !findings.found.is_empty() || !findings.grown.is_empty() {
            self.untold = Some(Untold { findings, now, spent: spent + began.elapsed() });
            return None;
        }
        if !findings.expired.is_empty()
            && let Err(error) = self.engine.delete(&findings.expired)
        {
            self.notice(format!("flows that are over could not be forgotten: {error:#}"));
        }
        self.tend_store();
        Some(spent + began.elapsed())
    }

    pub(super) fn tell_all(&mut self) {
        while self.untold.is_some() {
            self.tell();
        }
    }

    /// What a report of the store says was lost; and that records cannot be written is an alert.
    pub(super) fn tend_store(&mut self) {
        /// Reading the counters back costs more than a sweep of few flows.
        const EVERY: u32 = 5;
        let records = self.recorder.sink.counts();
        let (lost, error) = (records.lost, records.error.clone());
        self.tell_of_records(RECORDS, error, lost);
        let Some(store) = self.store.clone() else { return };
        if self.sweeps.is_multiple_of(EVERY) {
            let detail = self.detail_lost();
            store.losses(Losses { packets: detail.packets.iter().sum(), records: lost, ..Losses::default() });
        }
        self.sweeps = self.sweeps.wrapping_add(1);
        self.keep_names();
        let status = store.status();
        for path in status.set_aside.iter().skip(self.set_aside) {
            let what = format!("the record store was damaged: set aside as {}, a new one is begun", path.display());
            let difference = Difference::new(Kind::RecordsLost, FILE, what).repaired();
            let gap = Gap {
                on: FILE.to_owned(),
                from: now_us(),
                to: now_us(),
                why: difference.what.clone(),
                ..Gap::default()
            };
            for told in [Told::Begun(difference.clone()), Told::Over(difference, gap)] {
                self.tell_of(told);
            }
        }
        self.set_aside = status.set_aside.len();
        self.tell_of_records(FILE, status.error, status.lost);
    }

    /// That a file cannot be written is told once for as long as it lasts, and when it is over: with both times, since on a full
    /// disk the first of the two lines may be lost. `lost`: what could not be written so far; it may be over by the next look.
    fn tell_of_records(&mut self, target: &'static str, error: Option<String>, lost: u64) {
        let known = self.unwritten.entry(target).or_default();
        let more = lost.saturating_sub(known.lost);
        known.lost = lost;
        let begin = |what: String| (now_us(), Difference::new(Kind::RecordsLost, target, what));
        let (begun, over) = match (error, known.told.take()) {
            (None, None) if more == 0 => return,
            (Some(_), Some(told)) => {
                known.told = Some(told);
                return;
            }
            (Some(error), None) => {
                let begun = begin(format!("{target} cannot be written, enforcement goes on: {error}"));
                known.told = Some(begun.clone());
                (Some(begun), None)
            }
            (None, Some(told)) => (None, Some(told)),
            (None, None) => {
                let both = begin(format!("{more} records could not be written to {target} for a moment"));
                (Some(both.clone()), Some(both))
            }
        };
        if let Some((_, difference)) = begun {
            self.tell_of(Told::Begun(difference));
        }
        if let Some((from, difference)) = over {
            let why = difference.what.clone();
            let gap = Gap { on: target.to_owned(), from, to: now_us(), why, ..Gap::default() };
            self.tell_of(Told::Over(difference, gap));
        }
    }

    /// For the next daemon.
    pub(super) fn keep_names(&mut self) {
        let Some(store) = &self.store else { return };
        let unsaved = self.recorder.asked_as.unsaved();
        if unsaved.is_empty() {
            return;
        }
        let boot = unix_now() - i128::from(boot_now());
        let unix_us = |at: i64| i64::try_from((i128::from(at) + boot) / 1000).unwrap_or(0);
        store.names(unsaved.into_iter().map(|(address, name, at)| (address, name, unix_us(at))).collect());
    }

    pub(super) fn set_baseline(&mut self) {
        self.sweep();
        self.baseline = Baseline { totals: self.totals(), flows: self.recorder.tracker.sum() };
    }

    /// By the programs' counters, of packets that belong to flows.
    pub(super) fn totals(&self) -> Sum {
        let mut sum = Sum::default();
        let Ok(read) = self.engine.read_back() else { return sum };
        for (reason, direction, _, counter) in &read.counters {
            if counts_as_flow(*reason) {
                let side = usize::from(*direction == Direction::Outbound);
                sum.packets[side] += counter.packets;
                sum.bytes[side] += counter.bytes;
            }
        }
        sum
    }

    /// What the totals have and no flow's record will: eviction took it.
    pub(super) fn detail_lost(&self) -> Sum {
        let (totals, flows) = (self.totals(), self.recorder.tracker.sum());
        let mut lost = Sum::default();
        for side in 0..2 {
            let missing = |now: u64, then: u64, told: u64, told_then: u64| {
                now.saturating_sub(then).saturating_sub(told.saturating_sub(told_then))
            };
            lost.packets[side] = missing(
                totals.packets[side],
                self.baseline.totals.packets[side],
                flows.packets[side],
                self.baseline.flows.packets[side],
            );
            lost.bytes[side] = missing(
                totals.bytes[side],
                self.baseline.totals.bytes[side],
                flows.bytes[side],
                self.baseline.flows.bytes[side],
            );
        }
        lost
    }
}

fn now_us() -> i64 {
    i64::try_from(unix_now() / 1000).unwrap_or(0)
}
