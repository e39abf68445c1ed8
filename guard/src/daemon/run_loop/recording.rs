//! From the rings and the flow tables to records: what happened, what a look at the tables finds, and what was lost.

use guard_common::Direction;
use tokio::time::{Duration, Instant};

use super::{Baseline, Daemon, Untold};
use crate::{
    record::{recorder::counts_as_flow, sweep::Sum},
    store::Losses,
};

/// Events taken in one go, so that nothing else starves.
pub(super) const EVENTS: usize = 1024;
/// The same, of programs that run and of name servers' answers: more than their rings hold.
const BESIDE: usize = 8192;

impl Daemon<'_> {
    pub(super) fn take_events(&mut self) -> usize {
        let mut events = Vec::new();
        let taken = self.engine.drain_events(EVENTS, &mut |event| events.push(*event));
        // After the events: whatever ran, and was asked for, before a flow began is known by then.
        self.take_beside();
        for event in &events {
            self.recorder.event(event);
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

    /// What a report of the store says was lost; and what is amiss with the store is said at once.
    pub(super) fn tend_store(&mut self) {
        /// Reading the counters back costs more than a sweep of few flows.
        const EVERY: u32 = 5;
        let Some(store) = self.store.clone() else { return };
        if self.sweeps.is_multiple_of(EVERY) {
            let lost = self.detail_lost();
            store.losses(Losses {
                packets: lost.packets.iter().sum(),
                records: self.recorder.sink.counts().lost,
                ..Losses::default()
            });
        }
        self.sweeps = self.sweeps.wrapping_add(1);
        let status = store.status();
        for path in status.set_aside {
            let text = format!("the record store was damaged: set aside as {}, a new one is begun", path.display());
            if self.said.insert(text.clone()) {
                (self.say)(&text);
            }
        }
        // Told once for as long as it lasts.
        match status.error {
            Some(error) if self.said.insert("store".to_owned()) => {
                (self.say)(&format!("the record store cannot be written now, enforcement goes on: {error}"));
            }
            None if self.said.remove("store") => (self.say)("the record store is written again"),
            _ => {}
        }
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
