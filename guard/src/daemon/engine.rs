//! What the daemon and the commands ask of the kernel's side: the seam at which their tests stand.

use std::{collections::BTreeSet, os::fd::BorrowedFd, path::Path, time::Duration};

use guard_common::{
    Direction, Reason,
    abi::{Counter, Event, Flow, LOST_SLOTS, Owner, Rejects, State, StateWord},
    decide::Outcome,
};

use super::{
    difference::{Counted, Difference, LoadedProgram},
    report::{Hook, InterfaceLine},
};
use crate::{
    kernel::Feature,
    policy::compile::Compiled,
    record::{flow::Key, sweep::Now},
};

/// An instance that is attached. Every answer is read from the kernel when it is asked.
pub trait Engine {
    /// The number that the next policy gets.
    fn next_generation(&self) -> anyhow::Result<u32>;

    /// Puts a policy in force by one flip, verified by reading it back. With a deadline it is undone then, by the kernel
    /// itself, unless [`Self::confirm`] comes. Refused while one is pending.
    fn publish(&mut self, compiled: &Compiled, within: Option<Duration>) -> anyhow::Result<()>;

    /// A generation that another process has published: what interfaces that come later are to be told of it.
    fn know(&mut self, compiled: &Compiled) -> anyhow::Result<()>;

    /// Keeps what is pending. Refused in the last second, and where nothing is pending.
    fn confirm(&mut self) -> anyhow::Result<()>;

    /// Brings back what held before the pending change.
    fn roll_back(&mut self) -> anyhow::Result<()>;

    /// Completes a rollback whose deadline has passed; true if there was one.
    fn settle(&mut self) -> anyhow::Result<bool>;

    fn read_back(&self) -> anyhow::Result<ReadBack>;

    /// The state that every packet reads, and boot-time nanoseconds of the reading.
    fn state(&self) -> anyhow::Result<(State, u64)> {
        self.read_back().map(|read| (read.state, read.boot_ns))
    }

    /// SHA-256 of the policy in each slot; `None` where they are not what the state says.
    fn policies(&self) -> anyhow::Result<[Option<[u8; 32]>; 3]> {
        self.read_back().map(|read| read.policies)
    }

    /// Puts the state's word back to what it has to be, whatever somebody wrote there.
    fn force(&mut self, word: StateWord) -> anyhow::Result<()>;

    /// Interfaces known to the programs.
    fn interfaces(&self) -> anyhow::Result<Vec<InterfaceLine>>;

    /// Looks at the interfaces again: attaches to those that are to be guarded, forgets those that are gone. What passed a
    /// new one before, in words.
    fn refresh(&mut self) -> anyhow::Result<Vec<String>>;

    /// Whether nothing moved that a cheap look can see; asked many times a second.
    fn all_still(&self) -> bool {
        true
    }

    /// Puts back what somebody detached, unpinned or stood in front of; what was amiss, and what still is.
    fn repair(&mut self) -> anyhow::Result<Vec<Difference>> {
        Ok(Vec::new())
    }

    /// The cgroup whose sockets are held; `None` where no real host is guarded.
    fn cgroup(&self) -> Option<&Path> {
        None
    }

    /// Hears of BPF programs that were loaded since the last call: whether any waits to be told, and how many could not be
    /// heard of.
    fn hear_of_programs(&mut self) -> (bool, u64) {
        (false, 0)
    }

    /// Those that wait and are none of guard's. `settled`: no other guard command is at work (the caller holds the lock);
    /// while one is, what it loads is not known as guard's yet, and only what has waited long is told.
    fn loaded_programs(&mut self, _settled: bool) -> Vec<LoadedProgram> {
        Vec::new()
    }

    /// Whether the kernel itself tells of them, with the process: else only those that are still there are found.
    fn hears_of_programs(&self) -> bool {
        true
    }

    /// Tells the programs whether rules of other firewalls change where this host's own packets go; `None`: as it was.
    fn follow_translation(&mut self) -> anyhow::Result<Option<bool>> {
        Ok(None)
    }

    /// The same for what the programs are told.
    fn check_maps(&mut self) -> anyhow::Result<Vec<Difference>> {
        Ok(Vec::new())
    }

    /// Programs of others at the hooks that guard uses, in words.
    fn foreign_programs(&self) -> anyhow::Result<BTreeSet<String>> {
        Ok(BTreeSet::new())
    }

    /// What the guarded interfaces counted, and the wire layer.
    fn counted(&self) -> anyhow::Result<Option<Counted>> {
        Ok(None)
    }

    /// All flows held.
    fn flows(&self) -> anyhow::Result<Vec<(Key, Flow)>>;

    /// One of them, asked for by itself: in a full table it may be gone before all of it is read.
    fn flow(&self, key: &Key) -> anyhow::Result<Option<Flow>> {
        Ok(self.flows()?.into_iter().find(|(held, _)| held == key).map(|(_, flow)| flow))
    }

    /// Adds flows that began before guard, where the programs have not seen them yet.
    fn adopt(&mut self, flows: &[(Key, Flow)]) -> anyhow::Result<()>;

    /// Lets flows that are held go on in a generation as if it had judged them so: whether any of its rules lists them or
    /// not. What is not held stays so.
    fn hold(&mut self, flows: &[Key], generation: u32, outcome: Outcome) -> anyhow::Result<()>;

    /// Forgets flows whose time is over.
    fn delete(&mut self, flows: &[(Key, u64)]) -> anyhow::Result<()>;

    /// Both clocks of the programs.
    fn now(&self) -> anyhow::Result<Now>;

    /// Readable when events wait.
    fn events_fd(&self) -> BorrowedFd<'_>;

    /// Takes at most `most` events that wait; how many there were.
    fn drain_events(&mut self, most: usize, each: &mut dyn FnMut(&Event)) -> usize;

    /// Begins to tell which programs run, until this process ends.
    fn watch_processes(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// As [`Self::drain_events`]: [`guard_common::abi::ProcessHead`]s and [`guard_common::abi::ProcessEvent`]s.
    fn drain_processes(&mut self, _most: usize, _each: &mut dyn FnMut(&[u8])) -> usize {
        0
    }

    /// As [`Self::drain_events`]: [`guard_common::abi::AnswerEvent`]s.
    fn drain_answers(&mut self, _most: usize, _each: &mut dyn FnMut(&[u8])) -> usize {
        0
    }

    /// Which process the socket layer saw with this socket.
    fn owner(&self, _cookie: u64) -> Option<Owner> {
        None
    }
}

/// What the kernel holds, read at one moment.
#[derive(Clone, Debug, Default)]
pub struct ReadBack {
    pub state: State,
    /// SHA-256 of the policy in each slot's tables; `None` where a slot is empty.
    pub policies: [Option<[u8; 32]>; 3],
    pub hooks: Vec<Hook>,
    pub counters: Vec<(Reason, Direction, bool, Counter)>,
    pub lost: [u64; LOST_SLOTS as usize],
    /// What was answered to those behind this host.
    pub rejects: Rejects,
    /// Of the generation that judges now, by rule number.
    pub rule_flows: Vec<u64>,
    /// Flows of each family that each table has room for.
    pub flows_room: u32,
    /// What this kernel lacks, in words.
    pub missing: Vec<String>,
    /// What it was asked for, and whether it has it.
    pub features: Vec<Feature>,
    /// Boot-time nanoseconds of the reading.
    pub boot_ns: u64,
}
