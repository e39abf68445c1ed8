//! What a policy would have done with recorded traffic: the kernel's own parser and judge, run over a capture.
//!
//! The capture's clock is the policy's: a rule matches if it had not expired when the packet was seen.

pub mod capture;
pub mod link;
pub mod memory;
pub mod pipe;
pub mod report;
pub mod side;

use std::collections::VecDeque;

use guard_common::{
    Reason,
    abi::{COUNTERS, Counter, Interface, Slot, SlotFlags, counter_index},
    judge::{Context, Judgement, judge},
    packet::Packet,
};
use ipnet::IpNet;

use crate::{
    policy::{
        compile::{Clocks, CompileError, Compiled, compile},
        model::Policy,
    },
    record::flow::Key,
};
use capture::{Frame, Reader};
use memory::Memory;
use side::{Course, Side, Survey};

/// How many packets are looked at to find out whose capture it is.
const SURVEYED: usize = 8192;
/// The capture's first packet, on the boot-time clock: late enough for what it knew before.
const START_NS: u64 = 3_600_000_000_000;
const GENERATION: u32 = 1;
/// The capture's interface. One is as good as another, but for the scope of link-local addresses.
const IFINDEX: u32 = 2;

/// What was left out of the judgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    /// Neither end is the host.
    pub foreign: u64,
    /// Both ends are among the addresses given as local.
    pub both_local: u64,
}

/// Runs packets past a policy.
pub struct Replay<'a> {
    host: Memory<'a>,
    flags: SlotFlags,
    side: Side,
    link: link::LinkType,
    first: i128,
    packet: Packet,
    interface: Interface,
    pub counters: Vec<Counter>,
    pub skipped: Skipped,
    pub packets: u64,
    pub bytes: u64,
    pub last: i128,
}

impl<'a> Replay<'a> {
    /// `first`: Unix time of the first packet, as in [`Clocks`] of [`clocks`]. `interface`: the name of the interface
    /// that the capture is from, for rules that ask.
    #[must_use]
    pub fn new(compiled: &'a Compiled, link: link::LinkType, side: Side, interface: Option<&str>, first: i128) -> Self {
        let class = interface.map_or(0, |name| compiled.interface_class(name));
        let interface = Interface { flags: Interface::GUARDED, class: [class; Slot::TABLES] };
        Self {
            host: Memory::new(Some(&compiled.nodes), Some(interface), START_NS),
            flags: compiled.flags,
            side,
            link,
            first,
            packet: Packet::default(),
            interface,
            counters: vec![Counter::default(); COUNTERS as usize],
            skipped: Skipped::default(),
            packets: 0,
            bytes: 0,
            last: first,
        }
    }

    /// Judges one packet; `None` where it is not the host's.
    #[inline]
    pub fn frame(&mut self, frame: &Frame<'_>) -> Option<Judgement> {
        let way = link::read(self.link, frame.data, frame.length, &mut self.packet);
        self.packets += 1;
        self.bytes += u64::from(frame.length);
        self.last = frame.time;
        let direction = match self.side.course(&self.packet, &way) {
            Course::Goes(direction) => {
                self.host.interface = Some(self.interface);
                direction
            }
            Course::StaysHere => {
                self.host.interface = Some(Interface { flags: Interface::LOOPBACK, class: [0; Slot::TABLES] });
                guard_common::Direction::Outbound
            }
            Course::BothLocal => {
                self.skipped.both_local += 1;
                return None;
            }
            Course::Foreign => {
                self.skipped.foreign += 1;
                return None;
            }
        };
        let since = u64::try_from(frame.time - self.first).unwrap_or(0);
        self.host.now = START_NS.saturating_add(since).max(self.host.now + 1);
        let context = Context {
            direction,
            ifindex: IFINDEX,
            slot: Slot(0),
            generation: GENERATION,
            flags: self.flags,
            packets: 1,
            bytes: frame.length,
        };
        let judgement = judge(&mut self.host, &context, &self.packet);
        let index = counter_index(judgement.outcome.reason(), direction, false);
        if let Some(counter) = self.counters.get_mut(index as usize) {
            counter.packets += 1;
            counter.bytes += u64::from(frame.length);
        }
        Some(judgement)
    }

    /// Every flow there was, in the order of their first packets.
    #[must_use]
    pub fn flows(&self) -> Vec<(Key, guard_common::abi::Flow)> {
        let v4 = self.host.v4.all().map(|(key, flow)| (Key::V4(key), *flow));
        let v6 = self.host.v6.all().map(|(key, flow)| (Key::V6(key), *flow));
        let mut all: Vec<_> = v4.chain(v6).collect();
        all.sort_by_key(|(_, flow)| flow.first_seen);
        all
    }

    /// How many flows are held, over or not.
    #[must_use]
    pub fn held(&self) -> usize {
        self.host.held()
    }

    /// Every flow there was since the last call, in the order of their first packets. One that goes on begins anew.
    pub fn take_flows(&mut self) -> Vec<(Key, guard_common::abi::Flow)> {
        let all = self.flows();
        self.host.forget();
        all
    }

    /// Unix time of a flow's last packet.
    #[must_use]
    pub fn last_ns(&self, flow: &guard_common::abi::Flow) -> i128 {
        self.unix_ns(flow.last_seen.saturating_mul(memory::NS_A_JIFFY).max(flow.first_seen))
    }

    /// Unix time of a moment of this replay's boot-time clock.
    #[must_use]
    pub fn unix_ns(&self, boot_ns: u64) -> i128 {
        self.first + i128::from(boot_ns) - i128::from(START_NS)
    }

    #[must_use]
    pub const fn side(&self) -> &Side {
        &self.side
    }

    /// Packets and bytes of a reason, both directions together.
    #[must_use]
    pub fn counted(&self, reason: Reason) -> Counter {
        let mut sum = Counter::default();
        for direction in [guard_common::Direction::Inbound, guard_common::Direction::Outbound] {
            if let Some(counter) = self.counters.get(counter_index(reason, direction, false) as usize) {
                sum.packets += counter.packets;
                sum.bytes += counter.bytes;
            }
        }
        sum
    }
}

/// Compiles a policy for a capture whose first packet has this time.
pub fn compiled(policy: &Policy, first: i128) -> Result<Compiled, CompileError> {
    compile(policy, Clocks { unix_ns: first, boot_ns: START_NS }, GENERATION)
}

/// A packet that was read before it could be judged.
#[derive(Debug)]
struct Kept {
    time: i128,
    length: u32,
    data: Vec<u8>,
}

/// A capture with its first packets read: whose it is, and when it begins.
pub struct Opened {
    reader: Reader,
    kept: VecDeque<Kept>,
    pub side: Side,
    /// Unix time of the first packet; 0 where there is none.
    pub first: i128,
}

impl Opened {
    /// `local`: addresses of the host; none: found out from the first packets.
    #[must_use]
    pub fn new(mut reader: Reader, local: &[IpNet]) -> Self {
        let link = reader.link();
        let wanted = if local.is_empty() && !link.is_cooked() { SURVEYED } else { 1 };
        let mut survey = Survey::default();
        let mut packet = Packet::default();
        let mut kept = VecDeque::new();
        while kept.len() < wanted {
            let Some(frame) = reader.next_frame() else { break };
            let way = link::read(link, frame.data, frame.length, &mut packet);
            survey.note(&packet, &way);
            kept.push_back(Kept { time: frame.time, length: frame.length, data: frame.data.to_vec() });
        }
        let side = if local.is_empty() { survey.side(link) } else { Side::Given(local.to_vec()) };
        let first = kept.front().map_or(0, |frame| frame.time);
        Self { reader, kept, side, first }
    }

    #[must_use]
    pub const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Hands every packet to `see`, in order, with how many bytes of the file that is so far (about).
    pub fn each(&mut self, mut see: impl FnMut(&Frame<'_>, u64)) {
        /// What a file keeps beside a packet's bytes.
        const RECORD: u64 = 16;
        let mut read = 24;
        while let Some(kept) = self.kept.pop_front() {
            read += RECORD + kept.data.len() as u64;
            see(&Frame { time: kept.time, length: kept.length, data: &kept.data }, read);
        }
        while let Some(frame) = self.reader.next_frame() {
            read += RECORD + frame.data.len() as u64;
            see(&frame, read);
        }
    }
}

#[cfg(test)]
mod tests;
