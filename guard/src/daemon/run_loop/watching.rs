//! The daemon's watch: looks, has repaired what can be, and tells of it in the records, the timeline and to whoever runs
//! the daemon.

use guard_common::abi::{Slot, State};

use super::Daemon;
use crate::{
    daemon::{
        change,
        difference::{Difference, Gap, Kind},
        kept,
        state_dir::Kept,
        watch::Told,
    },
    host::packet_sockets,
    journal::{self, Entry, Event},
    record::clock::{for_people, unix_now},
};

impl Daemon<'_> {
    /// The cheap look, many times a second. Only where something moved, all is looked at.
    pub(super) fn glance(&mut self) {
        if !self.state.in_force() {
            return;
        }
        if self.engine.all_still() {
            self.watch.still(now_us());
        } else if !self.watch.lasts() {
            // What could not be put back is tried again with the whole looks.
            self.look(false);
        }
    }

    /// All of it, once a second.
    pub(super) fn look_at_all(&mut self) {
        self.look(true);
    }

    fn look(&mut self, second: bool) {
        // A command changes what is attached just now, and what was released is not put back.
        let Some(_lock) = self.lock_now() else { return };
        if !self.state.in_force() {
            return;
        }
        let mut found = match self.engine.repair() {
            Ok(found) => found,
            Err(error) => {
                self.notice(format!("the hooks could not be looked at or put back: {error:#}"));
                Vec::new()
            }
        };
        if second {
            match self.engine.check_maps() {
                Ok(differences) => found.extend(differences),
                Err(error) => self.notice(format!("guard's maps could not be looked at: {error:#}")),
            }
        }
        found.extend(self.check_state());
        self.put_policy_back(&mut found);
        let counted = self.engine.counted().ok().flatten();
        if second {
            if let Some(counted) = &counted
                && let Some(round) = self.watch.went_round(counted)
            {
                let sockets = packet_sockets::inodes();
                let by = match sockets.is_empty() {
                    true => "no packet or AF_XDP socket is open in this network namespace".to_owned(),
                    false => format!("packet and AF_XDP sockets are held by {}", packet_sockets::holders(&sockets)),
                };
                found.push(round.by(by));
            }
            found.extend(self.newcomers());
        }
        // Between the whole looks only the gap's end needs the counts; a step that is shorter than a second is no sample.
        let counted = counted.filter(|_| second || found.iter().any(|difference| difference.kind.opens()));
        for told in self.watch.look(found, counted, now_us()) {
            self.tell_of(told);
        }
    }

    /// What others opened or attached since the last look.
    fn newcomers(&mut self) -> Vec<Difference> {
        let mut found = Vec::new();
        let sockets = self.watch.new_packet_sockets(packet_sockets::inodes());
        if !sockets.is_empty() {
            let holders = packet_sockets::holders(&sockets);
            let what = format!("{} packet or AF_XDP sockets were opened", sockets.len());
            found.push(Difference::new(Kind::PacketSocket, format!("{sockets:?}"), what).by(holders));
        }
        if let Ok(programs) = self.engine.foreign_programs() {
            for program in self.watch.new_foreign(programs) {
                found.push(Difference::new(Kind::ForeignProgram, program.clone(), program));
            }
        }
        found
    }

    /// Whether the kernel judges by what was published last. The caller holds the lock, under which every change is made
    /// and written down.
    fn check_state(&self) -> Option<Difference> {
        let (state, boot_ns) = self.engine.state().ok()?;
        let manifest = self.state.manifest(Kept::Active).ok().flatten()?;
        if state.word.deadline_ms().is_some_and(|deadline| boot_ns / 1_000_000 >= deadline) {
            // A rollback that is not written down yet.
            return None;
        }
        let found = generation_of(&state, state.word.active());
        if found == manifest.generation {
            return None;
        }
        let what = match found {
            0 => format!("no policy judges, instead of generation {}", manifest.generation),
            found => format!("generation {found} judges, instead of generation {}", manifest.generation),
        };
        Some(Difference::new(Kind::StateChanged, "STATE", what))
    }

    /// The policy that is kept, published again, where the kernel's state or tables are not guard's any more.
    fn put_policy_back(&mut self, found: &mut [Difference]) {
        let damaged = |difference: &Difference| {
            !difference.repaired && matches!(difference.kind, Kind::StateChanged | Kind::MapsChanged)
        };
        if !found.iter().any(damaged) {
            return;
        }
        let result = kept::load(self.state, Kept::Active).and_then(|kept| {
            let Some((manifest, policy)) = kept else { anyhow::bail!("no policy is kept") };
            let generation = self.engine.next_generation()?;
            let compiled = crate::policy::compile::compile(&policy, change::clocks(), generation)?;
            self.engine.publish(&compiled, None)?;
            self.state.set_generation(&manifest, generation)?;
            Ok((generation, policy))
        });
        match result {
            Ok((generation, policy)) => {
                self.know(generation, &policy);
                found
                    .iter_mut()
                    .filter(|difference| damaged(difference))
                    .for_each(|difference| difference.repaired = true);
            }
            Err(error) => self.notice(format!("the policy could not be published again: {error:#}")),
        }
    }

    fn tell_of(&mut self, told: Told) {
        let time = for_people(unix_now());
        match told {
            Told::Begun(difference) => {
                self.recorder.alert(unix_now(), &difference, None);
                let by = difference.by.as_deref().map(|by| format!("; by {by}")).unwrap_or_default();
                let text = format!("{}{by}", difference.what);
                let details = serde_json::to_value(&difference).unwrap_or_default();
                journal::record(self.state.path(), &Entry::new(Event::Alert, &text).details(details));
                let put_back = if difference.repaired { "; put back" } else { "" };
                self.notice(format!("{text}{put_back} (seen {time})"));
            }
            Told::Over(difference, gap) => {
                self.recorder.alert(unix_now(), &difference, Some(&gap));
                journal::record(self.state.path(), &over(&difference, &gap));
                (self.say)(&format!("over: {}", difference.what));
            }
        }
    }
}

fn over(difference: &Difference, gap: &Gap) -> Entry {
    let packets = gap.packets.map(|packets| format!(", about {packets} packets unjudged")).unwrap_or_default();
    let from = for_people(i128::from(gap.from) * 1000);
    let how = if difference.repaired { "put back" } else { "over" };
    Entry::new(Event::Repaired, format!("{how}: {}; since {from}{packets}", difference.what)).details(
        serde_json::json!({
            "kind": difference.kind,
            // A gap is what packets may have passed by.
            "gap": difference.kind.opens().then_some(gap),
        }),
    )
}

fn generation_of(state: &State, slot: Slot) -> u32 {
    state.slots.get(usize::from(slot.0)).filter(|_| slot != Slot::NONE).map_or(0, |info| info.generation)
}

fn now_us() -> i64 {
    i64::try_from(unix_now() / 1000).unwrap_or(0)
}
