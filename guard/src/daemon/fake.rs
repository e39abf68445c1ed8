//! A kernel's side in memory, for tests.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use guard_common::{
    abi::{Event, Flow, Slot, SlotInfo, State, StateWord, VERSION},
    decide::Outcome,
};

use super::{
    engine::{Engine, ReadBack},
    report::InterfaceLine,
};
use crate::{
    host::{conntrack, picture::Picture},
    policy::{
        compile::Compiled,
        model::{Essentials, Mode, Policy},
    },
    record::{flow::Key, sweep::Now},
};

pub struct FakeEngine {
    pub state: State,
    pub policies: [Option<[u8; 32]>; 3],
    pub flows: Vec<(Key, Flow)>,
    pub boot_ns: u64,
    pub generation: u32,
    /// Reads back another policy than was published.
    pub forges_policy: bool,
    pub events: (std::io::PipeReader, std::io::PipeWriter),
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self {
            state: State { word: StateWord::TRACKING, abi: VERSION, ..State::default() },
            policies: [None; 3],
            flows: Vec::new(),
            boot_ns: 1_000_000_000_000,
            generation: 0,
            forges_policy: false,
            events: std::io::pipe().unwrap(),
        }
    }
}

impl FakeEngine {
    pub fn pass(&mut self, time: Duration) {
        self.boot_ns += time.as_nanos() as u64;
    }
}

impl Engine for FakeEngine {
    fn next_generation(&self) -> anyhow::Result<u32> {
        Ok(self.generation + 1)
    }

    fn publish(&mut self, compiled: &Compiled, within: Option<Duration>) -> anyhow::Result<()> {
        let active = self.state.word.active();
        let next = (0..3).map(Slot).find(|slot| *slot != active && *slot != self.state.word.previous()).unwrap();
        self.state.slots[usize::from(next.0)] = SlotInfo { generation: compiled.generation, flags: compiled.flags };
        self.policies[usize::from(next.0)] = Some(if self.forges_policy { [0xff; 32] } else { compiled.policy_sha256 });
        self.generation = compiled.generation;
        self.state.word = match within {
            None => StateWord::settled(next),
            Some(time) => StateWord::pending(next, active, self.boot_ns / 1_000_000 + time.as_millis() as u64),
        };
        Ok(())
    }

    fn know(&mut self, _compiled: &Compiled) -> anyhow::Result<()> {
        Ok(())
    }

    fn confirm(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.state.word.is_pending(), "nothing is pending");
        self.state.word = StateWord::settled(self.state.word.active());
        Ok(())
    }

    fn roll_back(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.state.word.is_pending(), "nothing is pending");
        self.state.word = StateWord::settled(self.state.word.previous());
        Ok(())
    }

    fn settle(&mut self) -> anyhow::Result<bool> {
        let word = self.state.word;
        let over = word.deadline_ms().is_some_and(|deadline| self.boot_ns / 1_000_000 >= deadline);
        if over {
            self.state.word = StateWord::settled(word.previous());
        }
        Ok(over)
    }

    fn read_back(&self) -> anyhow::Result<ReadBack> {
        Ok(ReadBack { state: self.state, policies: self.policies, boot_ns: self.boot_ns, ..ReadBack::default() })
    }

    fn force(&mut self, word: StateWord) -> anyhow::Result<()> {
        self.state.word = word;
        Ok(())
    }

    fn interfaces(&self) -> anyhow::Result<Vec<InterfaceLine>> {
        Ok(Vec::new())
    }

    fn refresh(&mut self) -> anyhow::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn flows(&self) -> anyhow::Result<Vec<(Key, Flow)>> {
        Ok(self.flows.clone())
    }

    fn adopt(&mut self, flows: &[(Key, Flow)]) -> anyhow::Result<()> {
        self.flows.extend_from_slice(flows);
        Ok(())
    }

    fn hold(&mut self, flows: &[Key], generation: u32, outcome: Outcome) -> anyhow::Result<()> {
        for (_, flow) in self.flows.iter_mut().filter(|(key, _)| flows.contains(key)) {
            (flow.generation, flow.outcome) = (generation, outcome);
        }
        Ok(())
    }

    fn delete(&mut self, flows: &[(Key, u64)]) -> anyhow::Result<()> {
        self.flows.retain(|(key, flow)| !flows.contains(&(*key, flow.last_seen)));
        Ok(())
    }

    fn now(&self) -> anyhow::Result<Now> {
        Ok(Now { boot_ns: self.boot_ns, jiffies: self.boot_ns / 4_000_000, hz: 250 })
    }

    fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.0.as_fd()
    }

    fn drain_events(&mut self, _most: usize, _each: &mut dyn FnMut(&Event)) -> usize {
        0
    }
}

pub fn empty_picture() -> Picture {
    Picture {
        sockets: Default::default(),
        processes: Default::default(),
        tracked: Vec::new(),
        conntrack: conntrack::Source::Absent,
        own: Default::default(),
        unix_peers: Default::default(),
    }
}

/// A policy that denies all, in a file of its own.
pub fn policy_in(directory: &Path, name: &str, mode: Mode) -> (Policy, PathBuf) {
    let file = directory.join(format!("{name}.yaml"));
    fs::write(&file, name).unwrap();
    let mut sha256 = [0; 32];
    sha256[..name.len()].copy_from_slice(name.as_bytes());
    let policy = Policy {
        name: name.to_owned(),
        sha256,
        files: vec![Arc::new(file.clone())],
        inbound: mode,
        outbound: mode,
        rules: Vec::new(),
        essentials: Essentials::default(),
        lockdown: false,
        on_deny: Default::default(),
        container_host: Default::default(),
        tests: Vec::new(),
    };
    (policy, file)
}
