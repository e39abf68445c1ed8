//! The flow tables, of both families.

use guard_common::{
    Direction,
    abi::{ClockReading, Flow, FlowKeyV4, FlowKeyV6},
    decide::Outcome,
    judge::FlowTable,
};

use super::{Instance, KernelError, sys};
use crate::record::{flow::Key, sweep::Now};

/// By [`FlowTable`].
const V4: [&str; FlowTable::COUNT] =
    ["FLOWS_ESTABLISHED_V4", "FLOWS_UNANSWERED_INBOUND_V4", "FLOWS_UNANSWERED_OUTBOUND_V4", "FLOWS_DENIED_V4"];
const V6: [&str; FlowTable::COUNT] =
    ["FLOWS_ESTABLISHED_V6", "FLOWS_UNANSWERED_INBOUND_V6", "FLOWS_UNANSWERED_OUTBOUND_V6", "FLOWS_DENIED_V6"];

impl Instance {
    /// All that are held. A flow that moves from one table to another meanwhile may be there twice.
    pub fn flows(&self) -> Result<Vec<(Key, Flow)>, KernelError> {
        let mut flows = Vec::new();
        for name in V4 {
            let entries = sys::entries::<FlowKeyV4, Flow>(self.map(name)?).map_err(failed("cannot read", name))?;
            flows.extend(entries.into_iter().map(|(key, flow)| (Key::V4(key), flow)));
        }
        for name in V6 {
            let entries = sys::entries::<FlowKeyV6, Flow>(self.map(name)?).map_err(failed("cannot read", name))?;
            flows.extend(entries.into_iter().map(|(key, flow)| (Key::V6(key), flow)));
        }
        Ok(flows)
    }

    /// One, from the first table that has it.
    pub fn flow(&self, key: &Key) -> Result<Option<Flow>, KernelError> {
        match key {
            Key::V4(key) => self.flow_in(&V4, key),
            Key::V6(key) => self.flow_in(&V6, key),
        }
    }

    fn flow_in<K: sys::Plain>(&self, names: &[&'static str], key: &K) -> Result<Option<Flow>, KernelError> {
        for name in names {
            let found = sys::lookup::<K, Flow>(self.map(name)?, key).map_err(failed("cannot read", name))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Adds flows that began before guard; one that the programs have seen meanwhile keeps its counts. How many were
    /// added.
    pub fn adopt_flows(&self, flows: &[(Key, Flow)]) -> Result<usize, KernelError> {
        let mut added = 0;
        for (key, flow) in flows {
            let done = match key {
                Key::V4(key) => self.adopt_one(&V4, key, flow)?,
                Key::V6(key) => self.adopt_one(&V6, key, flow)?,
            };
            added += usize::from(done);
        }
        Ok(added)
    }

    fn adopt_one<K: sys::Plain>(
        &self,
        names: &[&str; FlowTable::COUNT],
        key: &K,
        flow: &Flow,
    ) -> Result<bool, KernelError> {
        for name in names {
            let known = sys::lookup::<K, Flow>(self.map(name)?, key).map_err(failed("cannot read", name))?;
            let Some(mut known) = known else { continue };
            // Only tracked so far, its direction is that of whichever packet came first; its socket knows better.
            if known.generation == 0 && known.direction != flow.direction {
                known.direction = flow.direction;
                sys::update(self.map(name)?, key, &known, sys::EXIST).map_err(failed("cannot change", name))?;
            }
            return Ok(false);
        }
        let table = if flow.flags & Flow::ANSWERED != 0 {
            FlowTable::Established
        } else {
            FlowTable::unanswered(Direction::from_u8(flow.direction))
        };
        let name = names[table as usize];
        match sys::update(self.map(name)?, key, flow, sys::NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(failed("cannot add to", name)(error)),
        }
    }

    /// Lets flows that are in some table go on in a generation, with this outcome, for as long as it is in force.
    ///
    /// Before the flip and after it: before, so that the first packet after it finds it done; after, since a packet in
    /// between was judged by the generation before, and took the flow back into that one.
    pub fn hold_flows(&self, flows: &[Key], generation: u32, outcome: Outcome) -> Result<(), KernelError> {
        for key in flows {
            match key {
                Key::V4(key) => self.hold_flow(&V4, key, generation, outcome)?,
                Key::V6(key) => self.hold_flow(&V6, key, generation, outcome)?,
            }
        }
        Ok(())
    }

    fn hold_flow<K: sys::Plain>(
        &self,
        names: &[&'static str; FlowTable::COUNT],
        key: &K,
        generation: u32,
        outcome: Outcome,
    ) -> Result<(), KernelError> {
        let mut found = None;
        for name in names {
            let known = sys::lookup::<K, Flow>(self.map(name)?, key).map_err(failed("cannot read", name))?;
            // The programs ask the tables in this order, too.
            found = found.or(known.map(|flow| (*name, flow)));
        }
        let Some((from, mut flow)) = found else { return Ok(()) };
        if (flow.generation, flow.outcome) == (generation, outcome) {
            return Ok(());
        }
        if flow.generation == 0 {
            flow.first_outcome = outcome;
        }
        if flow.cut_generation == generation {
            flow.cut_generation = 0;
        }
        flow.generation = generation;
        flow.outcome = outcome;
        flow.until = u64::MAX;
        flow.flags |= Flow::ANSWERED;
        let to = names[FlowTable::Established as usize];
        sys::update(self.map(to)?, key, &flow, 0).map_err(failed("cannot change", to))?;
        if from != to {
            sys::delete(self.map(from)?, key).map_err(failed("cannot delete from", from))?;
        }
        Ok(())
    }

    /// Forgets flows, in whichever table they are, that were last seen at that jiffy: one that has begun again since stays.
    pub fn delete_flows(&self, flows: &[(Key, u64)]) -> Result<(), KernelError> {
        for (key, last_seen) in flows {
            for at in 0..FlowTable::COUNT {
                match key {
                    Key::V4(key) => self.delete_flow(V4[at], key, *last_seen)?,
                    Key::V6(key) => self.delete_flow(V6[at], key, *last_seen)?,
                }
            }
        }
        Ok(())
    }

    fn delete_flow<K: sys::Plain>(&self, table: &'static str, key: &K, last_seen: u64) -> Result<(), KernelError> {
        let map = self.map(table)?;
        let held: Option<Flow> = sys::lookup(map, key).map_err(failed("cannot read", table))?;
        if held.is_some_and(|flow| flow.last_seen == last_seen) {
            sys::delete(map, key).map_err(failed("cannot delete from", table))?;
        }
        Ok(())
    }

    /// Both clocks of the programs.
    pub fn now(&self) -> Result<Now, KernelError> {
        let what = || KernelError::call("cannot read the kernel's clocks");
        let program = self.programs.get("clock").ok_or_else(|| KernelError::Damaged {
            path: self.pins.program("clock"),
            why: "it is not there".to_owned(),
        })?;
        sys::test_run(std::os::fd::AsFd::as_fd(program)).map_err(what())?;
        let reading: ClockReading = sys::lookup(self.map("CLOCK")?, &0_u32).map_err(what())?.unwrap_or_default();
        Ok(Now { boot_ns: reading.boot_ns, jiffies: reading.jiffies, hz: self.settings.hz })
    }
}

fn failed(what: &str, name: &str) -> impl FnOnce(std::io::Error) -> KernelError {
    KernelError::call(format!("{what} {name}"))
}
