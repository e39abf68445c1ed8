//! What the programs count, read back: sums over all CPUs.

use guard_common::{
    Direction, Reason,
    abi::{Counter, LOST_SLOTS, Rejects, RuleCounter, Slot, counter_index},
};

use super::{Instance, KernelError, publish, sys};

/// Totals of one reason and direction; the third: whether the packets were dropped.
pub type Total = (Reason, Direction, bool, Counter);

impl Instance {
    /// Of every reason, zeros too.
    pub fn counters(&self) -> Result<Vec<Total>, KernelError> {
        let (map, cpus) = (self.map("COUNTERS")?, cpus()?);
        let mut totals = Vec::with_capacity(Reason::ALL.len() * 4);
        for reason in Reason::ALL {
            for direction in [Direction::Inbound, Direction::Outbound] {
                for dropped in [false, true] {
                    let index = counter_index(*reason, direction, dropped);
                    let values = sys::lookup_per_cpu::<Counter>(map, index, cpus)
                        .map_err(KernelError::call("cannot read COUNTERS"))?;
                    let mut sum = Counter::default();
                    for value in values {
                        sum.packets += value.packets;
                        sum.bytes += value.bytes;
                    }
                    totals.push((*reason, direction, dropped, sum));
                }
            }
        }
        Ok(totals)
    }

    /// By [`guard_common::abi::Lost`].
    pub fn lost(&self) -> Result<[u64; LOST_SLOTS as usize], KernelError> {
        let (map, cpus) = (self.map("LOST")?, cpus()?);
        let mut lost = [0; LOST_SLOTS as usize];
        for (index, sum) in (0..).zip(&mut lost) {
            let values = sys::lookup_per_cpu::<u64>(map, index, cpus).map_err(KernelError::call("cannot read LOST"))?;
            *sum = values.iter().sum();
        }
        Ok(lost)
    }

    /// What those behind this host were answered.
    pub fn rejects(&self) -> Result<Rejects, KernelError> {
        // One that an older guard began has no such map: it answers nobody.
        if !self.maps.contains_key("REJECTS") {
            return Ok(Rejects::default());
        }
        let (map, cpus) = (self.map("REJECTS")?, cpus()?);
        let values = sys::lookup_per_cpu::<Rejects>(map, 0, cpus).map_err(KernelError::call("cannot read REJECTS"))?;
        Ok(values.iter().fold(Rejects::default(), |sum, value| Rejects {
            resets: sum.resets + value.resets,
            prohibited: sum.prohibited + value.prohibited,
            withheld: sum.withheld + value.withheld,
            ..sum
        }))
    }

    /// Of [`Self::counters`], by direction, the packets between this host and those behind it; outbound those let out.
    pub fn host_side_packets(&self) -> Result<[u64; 2], KernelError> {
        let mut packets = [0; 2];
        // One that an older guard began has no such map.
        if !self.maps.contains_key("HOST_SIDE") {
            return Ok(packets);
        }
        let (map, cpus) = (self.map("HOST_SIDE")?, cpus()?);
        for (index, sum) in (0..).zip(&mut packets) {
            let values =
                sys::lookup_per_cpu::<u64>(map, index, cpus).map_err(KernelError::call("cannot read HOST_SIDE"))?;
            *sum = values.iter().sum();
        }
        Ok(packets)
    }

    /// How many flows each rule of a slot's generation decided, by rule number. Empty for an empty slot.
    pub fn rule_flows(&self, slot: Slot) -> Result<Vec<u64>, KernelError> {
        if slot == Slot::NONE {
            return Ok(Vec::new());
        }
        let Some(inner) = publish::table_of(self.map("RULE_COUNTERS")?, slot)? else { return Ok(Vec::new()) };
        let mut counters = sys::entries::<u32, RuleCounter>(std::os::fd::AsFd::as_fd(&inner))
            .map_err(KernelError::call("cannot read the rules' counters"))?;
        counters.sort_unstable_by_key(|(rule, _)| *rule);
        Ok(counters.into_iter().map(|(_, counter)| counter.flows).collect())
    }
}

/// Possible CPUs: how many values a per-CPU map has.
fn cpus() -> Result<usize, KernelError> {
    aya::util::nr_cpus().map_err(|(path, source)| KernelError::Path { what: "cannot read", path: path.into(), source })
}
