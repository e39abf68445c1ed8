//! The seam to the daemon and the commands.

use std::{collections::BTreeSet, os::fd::BorrowedFd, path::Path, time::Duration};

use guard_common::{
    abi::{Event, Flow, Interface, Owner, Slot, SlotFlags, State, StateWord},
    decide::Outcome,
};

use super::{Instance, sys};
use crate::{
    daemon::{
        difference::{Counted, Difference, LoadedProgram},
        engine::{Engine, ReadBack},
        report::{Hook, InterfaceLine},
    },
    host::translation,
    policy::{compile::Compiled, model::ContainerHost},
    record::{flow::Key, sweep::Now},
    text::harmless,
};

impl Engine for Instance {
    fn next_generation(&self) -> anyhow::Result<u32> {
        Ok(Self::next_generation(self))
    }

    fn publish(&mut self, compiled: &Compiled, within: Option<Duration>) -> anyhow::Result<()> {
        Ok(Self::publish(self, compiled, within)?)
    }

    /// The kernel keeps what it takes beside the tables.
    fn know(&mut self, _compiled: &Compiled) -> anyhow::Result<()> {
        self.catch_up()?;
        Ok(self.look_at_interfaces()?)
    }

    fn confirm(&mut self) -> anyhow::Result<()> {
        Ok(Self::confirm(self)?)
    }

    fn roll_back(&mut self) -> anyhow::Result<()> {
        Ok(Self::roll_back(self)?)
    }

    fn settle(&mut self) -> anyhow::Result<bool> {
        Ok(Self::settle(self))
    }

    fn read_back(&self) -> anyhow::Result<ReadBack> {
        let state = self.state.read();
        let boot_ns = sys::boot_ns();
        let policies = self.policies()?;
        let hooks = self.hooks()?.into_iter().map(|hook| Hook {
            layer: hook.layer.to_owned(),
            hook: hook.hook,
            target: hook.target,
            attached: hook.attached,
            ours: hook.ours,
            first: hook.first,
            problem: hook.problem,
        });
        let mut features = self.settings.offers.list();
        let lacks = features.iter().filter(|feature| !feature.found);
        let mut missing: Vec<String> =
            lacks.map(|feature| format!("no {}: {}", feature.name, feature.lost_without)).collect();
        features.extend(self.native_xdp()?);
        missing.extend(translated(self.settings.offers.local_dnat, translation::of_own_packets()));
        Ok(ReadBack {
            state,
            policies,
            hooks: hooks.collect(),
            counters: self.counters()?,
            lost: self.lost()?,
            rejects: self.rejects()?,
            rule_flows: self.rule_flows(state.word.effective_slot(boot_ns))?,
            flows_room: self.settings().flows,
            missing,
            features,
            boot_ns,
        })
    }

    fn state(&self) -> anyhow::Result<(State, u64)> {
        Ok((self.state.read(), sys::boot_ns()))
    }

    fn policies(&self) -> anyhow::Result<[Option<[u8; 32]>; 3]> {
        let state = self.state.read();
        let mut policies = [None; 3];
        for (slot, policy) in (0..).map(Slot).zip(&mut policies) {
            // A slot whose tables are not of the generation that the state names is not believed.
            let info = state.slots[usize::from(slot.0)];
            *policy = self
                .tables(slot)?
                .filter(|header| header.generation == info.generation && header.flags == info.flags)
                .map(|header| header.policy_sha256);
        }
        Ok(policies)
    }

    fn force(&mut self, word: StateWord) -> anyhow::Result<()> {
        self.state.force(word);
        Ok(())
    }

    fn cgroup(&self) -> Option<&Path> {
        Some(&self.settings.cgroup)
    }

    fn hear_of_programs(&mut self) -> (bool, u64) {
        Self::hear_of_programs(self)
    }

    fn loaded_programs(&mut self, settled: bool) -> Vec<LoadedProgram> {
        Self::loaded_programs(self, settled)
    }

    fn hears_of_programs(&self) -> bool {
        Self::hears_of_programs(self)
    }

    fn interfaces(&self) -> anyhow::Result<Vec<InterfaceLine>> {
        let told = self.told()?;
        let sides = self.host_sides()?;
        let state = self.state.read();
        let judging = state.slots[usize::from(state.word.effective_slot(sys::boot_ns()).0 & 3)].flags;
        let asked_for = judging.has(SlotFlags::CONTAINER_HOST);
        let lines = self.decided()?.into_iter().map(|(device, why)| InterfaceLine {
            container_host: sides.get(&device.index).map(|is_told| match asked_for && *is_told {
                true => ContainerHost::Guard,
                false => ContainerHost::Ignore,
            }),
            guarded: told.get(&device.index).is_some_and(|interface| interface.flags & Interface::GUARDED != 0),
            name: device.name,
            index: device.index,
            why: match told.get(&device.index) {
                Some(told) if told.flags & Interface::MEMBER != 0 && asked_for => {
                    "containers or VMs with each other; with this host, judged on its bridge".to_owned()
                }
                _ => why.as_str().to_owned(),
            },
        });
        Ok(lines.collect())
    }

    fn refresh(&mut self) -> anyhow::Result<Vec<String>> {
        self.catch_up()?;
        self.look_at_interfaces()?;
        Ok(std::mem::take(&mut self.appeared))
    }

    fn all_still(&self) -> bool {
        Self::all_still(self)
    }

    fn repair(&mut self) -> anyhow::Result<Vec<Difference>> {
        // Another process may have moved it to another cgroup just now.
        self.catch_up()?;
        Ok(Self::repair(self)?)
    }

    fn follow_translation(&mut self) -> anyhow::Result<Option<bool>> {
        Ok(Self::follow_translation(self)?)
    }

    fn check_maps(&mut self) -> anyhow::Result<Vec<Difference>> {
        Ok(Self::check_maps(self)?)
    }

    fn foreign_programs(&self) -> anyhow::Result<BTreeSet<String>> {
        Ok(Self::foreign_programs(self)?)
    }

    fn counted(&self) -> anyhow::Result<Option<Counted>> {
        Ok(Some(Self::counted(self)?))
    }

    fn flows(&self) -> anyhow::Result<Vec<(Key, Flow)>> {
        Ok(Self::flows(self)?)
    }

    fn flow(&self, key: &Key) -> anyhow::Result<Option<Flow>> {
        Ok(Self::flow(self, key)?)
    }

    fn adopt(&mut self, flows: &[(Key, Flow)]) -> anyhow::Result<()> {
        self.adopt_flows(flows)?;
        Ok(())
    }

    fn hold(&mut self, flows: &[Key], generation: u32, outcome: Outcome) -> anyhow::Result<()> {
        Ok(self.hold_flows(flows, generation, outcome)?)
    }

    fn delete(&mut self, flows: &[(Key, u64)]) -> anyhow::Result<()> {
        Ok(self.delete_flows(flows)?)
    }

    fn now(&self) -> anyhow::Result<Now> {
        Ok(Self::now(self)?)
    }

    fn events_fd(&self) -> BorrowedFd<'_> {
        // Made with the instance, which is not opened without its maps.
        Self::events_fd(self)
    }

    fn drain_events(&mut self, most: usize, each: &mut dyn FnMut(&Event)) -> usize {
        // A ring that cannot be opened rings no bells; the tables still tell of every flow.
        Self::drain_events(self, most, each).unwrap_or(0)
    }

    fn watch_processes(&mut self) -> anyhow::Result<()> {
        Ok(Self::watch_processes(self)?)
    }

    fn drain_processes(&mut self, most: usize, each: &mut dyn FnMut(&[u8])) -> usize {
        // Without them processes are named by /proc alone, which the daemon has said when it could not watch.
        self.drain_ring("PROCESSES", most, each).unwrap_or(0)
    }

    fn drain_answers(&mut self, most: usize, each: &mut dyn FnMut(&[u8])) -> usize {
        // Names are labels: without them flows have addresses.
        self.drain_ring("ANSWERS", most, each).unwrap_or(0)
    }

    fn owner(&self, cookie: u64) -> Option<Owner> {
        Self::owner(self, cookie).ok().flatten()
    }
}

/// What the programs were told of the host's translation, beside what there is.
fn translated(told: bool, now: Option<String>) -> Option<String> {
    match (told, now.map(|rules| harmless(&rules))) {
        (true, Some(rules)) => Some(format!(
            "rules change where this host's own packets go ({rules}): the socket layer leaves every verdict to the wire, and \
             a program whose packet is denied waits, instead of being told at once"
        )),
        (false, Some(rules)) => Some(format!(
            "rules change where this host's own packets go ({rules}), and guard's programs do not know yet: the socket layer \
             may refuse what the wire would let pass. The daemon tells them within seconds; where none runs, guard run does"
        )),
        (true, None) => Some(
            "rules that changed where this host's own packets go are gone, and guard's programs do not know yet: the socket \
             layer leaves every verdict to the wire. The daemon tells them within seconds; where none runs, guard run does"
                .to_owned(),
        ),
        (false, None) => None,
    }
}
