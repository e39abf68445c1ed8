//! The daemon's watch: looks, has repaired what can be, and tells of it in the records, the timeline and to whoever runs
//! the daemon.

use std::{collections::BTreeSet, path::Path};

use guard_common::abi::{self, EventKind, Refused, Slot, State, StateWord};

use super::Daemon;
use crate::{
    daemon::{
        change,
        difference::{Difference, Gap, Kind},
        kept, round,
        state_dir::Kept,
        watch::Told,
    },
    host::{packet_sockets, processes},
    journal::{self, Entry, Event},
    kernel,
    lockdown::mark,
    record::clock::{for_people, unix_now},
    store::Alert,
};

impl Daemon<'_> {
    /// The cheap look, many times a second. Only where something moved, all is looked at.
    pub(super) fn glance(&mut self) {
        if !self.state.in_force() {
            return;
        }
        self.tell_of_programs();
        let word = self.engine.state().ok().map(|(state, _)| state.word);
        if self.engine.all_still() && word == self.word {
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
        self.word = self.engine.state().ok().map(|(state, _)| state.word);
        if second {
            found.extend(self.see_to_sockets());
        }
        let counted = self.engine.counted().ok().flatten();
        if second {
            if let Some(counted) = &counted
                && let Some(round) = self.watch.went_round(counted)
            {
                let sockets = self.direct_sockets();
                let by = match sockets.is_empty() {
                    true => "nobody is seen to hold a packet or AF_XDP socket in this network namespace".to_owned(),
                    false => format!("packet and AF_XDP sockets are held by {}", packet_sockets::holders(&sockets)),
                };
                found.push(round.by(by));
            }
            found.extend(self.newcomers());
            found.extend(self.watch.kept_back(now_us()));
        }
        // Between the whole looks only the gap's end needs the counts; a step that is shorter than a second is no sample.
        let counted = counted.filter(|_| second || found.iter().any(|difference| difference.kind.opens()));
        for told in self.watch.look(found, counted, now_us()) {
            self.tell_of(told);
        }
    }

    /// Packet and AF_XDP sockets that go round the wire layer though the policy enforces: brought back, or ended in a
    /// lockdown. What could not be is still there at each look.
    fn see_to_sockets(&mut self) -> Vec<Difference> {
        let Some(cgroup) = self.engine.cgroup().map(Path::to_owned) else { return Vec::new() };
        let Some(all) = self.direct.look() else { return self.round.clone() };
        self.round.clear();
        if !round::enforces(self.engine) {
            return Vec::new();
        }
        // Nothing is ended on the word of a state that is damaged.
        let mark = mark::holding(self.state).ok().flatten().map(|(_, mark)| mark);
        let done = round::see_to(self.state, &cgroup, all, mark.as_ref().map(|mark| (mark, &[][..])));
        let found: Vec<Difference> = done.iter().map(round::Round::difference).collect();
        self.round = found.iter().filter(|difference| !difference.repaired).cloned().collect();
        found
    }

    /// In this network namespace; of AF_XDP as they were at the last look, where the kernel lists none.
    fn direct_sockets(&self) -> BTreeSet<u32> {
        let mut all = packet_sockets::inodes();
        all.extend(kernel::own_netns().map(|own| self.direct.xdp(own)).unwrap_or_default());
        all
    }

    /// What others opened or attached since the last look.
    fn newcomers(&mut self) -> Vec<Difference> {
        let mut found = Vec::new();
        let sockets = self.direct_sockets();
        let sockets = self.watch.new_packet_sockets(sockets);
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

    /// What others loaded into the kernel since the last look.
    fn tell_of_programs(&mut self) {
        let (waiting, lost) = self.engine.hear_of_programs();
        if !self.engine.hears_of_programs() {
            self.notice(
                "the kernel does not tell who loads BPF programs (no perf events): those that are there are found, nobody is \
                 named"
                    .to_owned(),
            );
        }
        if lost > 0 {
            let what = format!("{lost} BPF programs were loaded faster than they could be looked at");
            self.tell_new(Difference::new(Kind::ProgramLoaded, "lost", what));
        }
        if !waiting {
            return;
        }
        let lock = self.lock_now();
        for program in self.engine.loaded_programs(lock.is_some()) {
            let what = format!("a BPF program was loaded: {}", program.what);
            let difference = Difference::new(Kind::ProgramLoaded, format!("program {}", program.id), what);
            self.tell_new(match program.by {
                Some(by) => difference.by(by),
                None => difference,
            });
        }
    }

    /// The kernel refused a call of somebody's.
    pub(super) fn tell_of_refusal(&mut self, event: &abi::Event) {
        if event.kind != EventKind::BpfRefused as u8 {
            return;
        }
        let why = Refused::from_u64(event.socket_cookie).map_or("that this version does not know", Refused::why);
        let how = if event.dropped != 0 { "was refused" } else { "would be refused, were this policy enforced" };
        let owner = &event.owner;
        let comm = String::from_utf8_lossy(&owner.comm).trim_end_matches('\0').to_owned();
        // One that is gone has the name that the kernel saw.
        let by = match processes::named(owner.pid).filter(|by| !by.ends_with("gone")) {
            Some(by) => by,
            None => format!("{comm} {}, which is gone", owner.pid),
        };
        let what = format!("a call {why} {how}, uid {}", owner.uid);
        self.tell_new(Difference::new(Kind::BpfRefused, format!("process {}", owner.pid), what).by(by));
    }

    /// Called when the kernel says that something changed, and each second.
    pub(super) fn look_at_interface_set(&mut self) {
        if let Ok(lines) = self.engine.interfaces() {
            for difference in self.watch.interfaces_changed(lines) {
                self.tell_new(difference);
            }
        }
    }

    /// Of a kind that does not last.
    fn tell_new(&mut self, difference: Difference) {
        self.tell_of(Told::Begun(difference));
    }

    /// Whether the kernel judges by what was published last, and until when. The caller holds the lock, under which every
    /// change is made and written down.
    fn check_state(&mut self) -> Option<Difference> {
        let (state, boot_ns) = self.engine.state().ok()?;
        let manifest = self.state.manifest(Kept::Active).ok().flatten()?;
        let found = generation_of(&state, state.word.active());
        let what = if found != manifest.generation {
            if manifest.unconfirmed || state.word.deadline_ms().is_some_and(|deadline| boot_ns / 1_000_000 >= deadline)
            {
                // A rollback that is not written down yet.
                return None;
            }
            match found {
                0 => format!("no policy judges, instead of generation {}", manifest.generation),
                found => format!("generation {found} judges, instead of generation {}", manifest.generation),
            }
        } else if !state.word.is_pending() {
            self.pending = None;
            if self.engine.policies().ok()?.get(usize::from(state.word.active().0)).is_some_and(Option::is_some) {
                return None;
            }
            format!("generation {found} judges by other flags, or other tables, than were published")
        } else if !manifest.unconfirmed {
            "a deadline is pending for a policy that was confirmed".to_owned()
        } else {
            // As it was seen first.
            match self.pending {
                Some((generation, word)) if generation == found && word != state.word => {
                    "the deadline of the change that waits for its confirmation was changed".to_owned()
                }
                _ => {
                    self.pending = Some((found, state.word));
                    return None;
                }
            }
        };
        Some(Difference::new(Kind::StateChanged, "STATE", what))
    }

    /// The word as it should be, where one write of it mends all.
    fn right_word(&self) -> Option<StateWord> {
        let ((state, _), policies) = (self.engine.state().ok()?, self.engine.policies().ok()?);
        let manifest = self.state.manifest(Kept::Active).ok().flatten()?;
        if manifest.unconfirmed {
            return self.pending.filter(|(generation, _)| *generation == manifest.generation).map(|(_, word)| word);
        }
        let sha256 = |slot: &u8| policies.get(usize::from(*slot)).copied().flatten().map(|sha256| change::hex(&sha256));
        (0..Slot::TABLES as u8)
            .find(|slot| {
                generation_of(&state, Slot(*slot)) == manifest.generation
                    && sha256(slot).as_ref() == Some(&manifest.sha256)
            })
            .map(|slot| StateWord::settled(Slot(slot)))
    }

    /// The policy that is kept, published again, where the kernel's state or tables are not guard's any more.
    fn put_policy_back(&mut self, found: &mut [Difference]) {
        let damaged = |difference: &Difference| {
            !difference.repaired && matches!(difference.kind, Kind::StateChanged | Kind::MapsChanged)
        };
        if !found.iter().any(damaged) {
            return;
        }
        // What is in its slot as it was published only has to judge again.
        let tables = found.iter().any(|difference| damaged(difference) && difference.kind == Kind::MapsChanged);
        if let Some(word) = self.right_word().filter(|_| !tables) {
            if self.engine.force(word).is_ok() {
                found
                    .iter_mut()
                    .filter(|difference| damaged(difference))
                    .for_each(|difference| difference.repaired = true);
            }
            return;
        }
        let result = kept::load(self.state, Kept::Active).and_then(|kept| {
            let Some((manifest, policy)) = kept else { anyhow::bail!("no policy is kept") };
            // Nobody but guard sets a deadline, and that it has none to keep is known by now.
            let (state, _) = self.engine.state()?;
            if manifest.unconfirmed {
                anyhow::bail!("it waits for its confirmation: guard rollback, or guard confirm and look again");
            }
            if state.word.is_pending() {
                self.engine.force(StateWord::settled(state.word.active()))?;
            }
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

    pub(super) fn tell_of(&mut self, told: Told) {
        let kind = match &told {
            Told::Begun(difference) | Told::Over(difference, _) => difference.kind,
        };
        if kind != Kind::Many {
            let (may, many) = self.watch.may_tell(kind, now_us());
            if let Some(many) = many {
                self.tell_new(many);
            }
            if !may {
                return;
            }
        }
        let time = for_people(unix_now());
        if let Some(store) = &self.store {
            store.alert(kept_alert(&told));
        }
        match told {
            Told::Begun(difference) => {
                self.recorder.alert(unix_now(), &difference, None);
                let by = difference.by.as_deref().map(|by| format!("; by {by}")).unwrap_or_default();
                let text = format!("{}{by}", difference.what);
                let details = serde_json::to_value(&difference).unwrap_or_default();
                journal::record(self.state.path(), &Entry::new(Event::Alert, &text).details(details));
                let put_back = if difference.repaired { "; put back" } else { "" };
                let text = format!("{text}{put_back} (seen {time})");
                // What does not bear on enforcement is said once, and counted by `status`; which has its own words for records.
                let notice = difference.kind.lasts() && difference.kind != Kind::RecordsLost;
                if notice { self.notice(text) } else { (self.say)(&text) }
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

/// As the store has it.
fn kept_alert(told: &Told) -> Alert {
    let (difference, gap) = match told {
        Told::Begun(difference) => (difference, None),
        Told::Over(difference, gap) => (difference, Some(gap)),
    };
    Alert {
        at: gap.map_or_else(now_us, |gap| gap.from),
        over: gap.map(|gap| gap.to),
        kind: difference.kind.as_str().to_owned(),
        target: difference.target.clone(),
        hook: difference.hook.clone(),
        severity: difference.kind.severity(),
        what: difference.what.clone(),
        by: difference.by.clone(),
        repaired: difference.repaired,
        packets: gap.and_then(|gap| gap.packets),
    }
}

fn generation_of(state: &State, slot: Slot) -> u32 {
    state.slots.get(usize::from(slot.0)).filter(|_| slot != Slot::NONE).map_or(0, |info| info.generation)
}

fn now_us() -> i64 {
    i64::try_from(unix_now() / 1000).unwrap_or(0)
}
