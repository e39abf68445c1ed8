//! The judge in userspace, with the host that `guard replay` has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use guard::{policy::compile::Compiled, replay::memory::Memory};
use guard_common::{
    Direction, Reason,
    abi::{COUNTERS, EventKind, Flow, FlowKeyV4, FlowKeyV6, Interface, Slot, SlotFlags, StateWord, counter_index},
    decide::{Node, Outcome},
    judge::{Context, FlowTable, Ring, TcpSocket, judge},
    packet::{self, Link},
};

use super::{Books, DEVICES, Ends, Entry, Judge, Publish, Ruling, Scene, Total, held, packet::Packet};
use crate::differential::CLOCKS;

/// Beside the scene's own lifetime, since what is published is the scene's.
#[derive(Default)]
pub struct Userspace {
    memory: Option<Memory<'static>>,
    word: StateWord,
    slots: [(u32, SlotFlags, Option<usize>); Slot::TABLES],
    next: u8,
    totals: Vec<(u64, u64)>,
    rules: Vec<((u32, u32), u64)>,
}

impl Judge for Userspace {
    fn name(&self) -> &'static str {
        "userspace"
    }

    fn begin(&mut self, _: &Scene) -> anyhow::Result<()> {
        let mut memory = Memory::new(None, None, CLOCKS.boot_ns);
        (memory.sockets, memory.sockets_live) = (socket, true);
        *self = Self {
            memory: Some(memory),
            word: StateWord::TRACKING,
            totals: vec![(0, 0); COUNTERS as usize],
            ..Self::default()
        };
        Ok(())
    }

    fn publish(&mut self, scene: &Scene, publish: &Publish) -> anyhow::Result<()> {
        let now = self.memory()?.now;
        let slot = Slot(self.next);
        self.next = (self.next + 1) % Slot::TABLES as u8;
        self.slots[usize::from(slot.0)] =
            (publish.generation, flags(scene, publish), (!publish.broken).then_some(publish.policy));
        self.word = word(self.word, slot, publish, now, |after| now + after);
        Ok(())
    }

    fn track(&mut self) -> anyhow::Result<()> {
        self.word = StateWord::TRACKING;
        Ok(())
    }

    fn confirm(&mut self) -> anyhow::Result<()> {
        self.word = StateWord::settled(self.word.active());
        Ok(())
    }

    fn wait(&mut self, _: &Scene, nanoseconds: u64) -> anyhow::Result<()> {
        self.memory()?.now += nanoseconds;
        Ok(())
    }

    fn packet(&mut self, scene: &Scene, packet: &Packet) -> anyhow::Result<Ruling> {
        let memory = self.memory.take();
        let mut memory = memory.ok_or_else(|| anyhow::anyhow!("not begun"))?;
        memory.now += 1;
        let slot = self.word.effective_slot(memory.now);
        let (generation, flags, policy) = match self.slots.get(usize::from(slot.0)) {
            Some(slot) => *slot,
            None => (0, SlotFlags(0), None),
        };
        let compiled = policy.map(|policy| &scene.compiled[policy]);
        let device = &DEVICES[packet.device];
        let class = compiled.map_or(0, |compiled| compiled.interface_class(device.0));
        // The tables are the scene's for one packet only.
        let mut memory = memory.with(
            compiled.map(|compiled| -> &[Node] { &compiled.nodes }),
            device.2.map(|flags| Interface { flags, class: [class; Slot::TABLES] }),
        );
        let length = packet.bytes.len() as u32;
        let context = Context {
            direction: packet.direction,
            ifindex: device.1,
            slot,
            generation,
            flags,
            packets: 1,
            bytes: length,
        };
        let mut parsed = packet::Packet::default();
        packet::parse(packet.bytes.as_slice(), link(device), length, &mut parsed);
        let judged = judge(&mut memory, &context, &parsed);
        self.memory = Some(memory.with(None, None));

        let reason = judged.outcome.reason();
        let total = &mut self.totals[counter_index(reason, packet.direction, judged.dropped) as usize];
        *total = (total.0 + 1, total.1 + u64::from(length));
        if judged.decided
            && let Some(rule) = judged.outcome.rule()
        {
            match self.rules.iter_mut().find(|(key, _)| *key == (generation, rule)) {
                Some((_, flows)) => *flows += 1,
                None => self.rules.push(((generation, rule), 1)),
            }
        }
        let event = match judged.ring {
            Ring::No => None,
            Ring::FlowBegan => Some(EventKind::FlowBegan),
            Ring::FlowCut => Some(EventKind::FlowCut),
            Ring::PacketDenied => Some(EventKind::PacketDenied),
        };
        Ok(Ruling { reason, rule: Some(judged.outcome.rule()), dropped: judged.dropped, event })
    }

    fn end(&mut self, _: &Scene) -> anyhow::Result<Books> {
        let memory = self.memory.as_ref().ok_or_else(|| anyhow::anyhow!("not begun"))?;
        let mut books = Books { totals: totals(&self.totals), rules: self.rules.clone(), ..Books::default() };
        for (key, table, flow) in memory.v4.current() {
            add(&mut books, ends_v4(&key), table, flow);
        }
        for (key, table, flow) in memory.v6.current() {
            add(&mut books, ends_v6(&key), table, flow);
        }
        sort(&mut books);
        Ok(books)
    }
}

impl Userspace {
    fn memory(&mut self) -> anyhow::Result<&mut Memory<'static>> {
        self.memory.as_mut().ok_or_else(|| anyhow::anyhow!("not begun"))
    }
}

/// What a slot's flags say beside the policy.
#[must_use]
pub fn flags(scene: &Scene, publish: &Publish) -> SlotFlags {
    let compiled: &Compiled = &scene.compiled[publish.policy];
    SlotFlags(compiled.flags.0 | if publish.lockdown { SlotFlags::LOCKDOWN } else { 0 })
}

/// The word after a generation is put into `slot`; `at`: when a deadline is, on the clock that reads it.
#[must_use]
pub fn word(before: StateWord, slot: Slot, publish: &Publish, now: u64, at: impl Fn(u64) -> u64) -> StateWord {
    match publish.deadline {
        Some(after) => StateWord::pending(slot, before.effective_slot(now), at(after) / 1_000_000),
        None => StateWord::settled(slot),
    }
}

#[must_use]
pub fn link(device: &super::Device) -> Link {
    match device.2 {
        Some(flags) if flags & Interface::NO_ETHERNET != 0 => Link::None,
        _ => Link::Ethernet,
    }
}

fn socket(packet: &packet::Packet, direction: Direction) -> TcpSocket {
    let address = |words: &[u32; 4]| if packet.family == 4 { v4(words[0]) } else { v6(words) };
    let from = (address(&packet.source), packet.source_port);
    let to = (address(&packet.destination), packet.destination_port);
    let (remote, local) = if direction == Direction::Inbound { (from, to) } else { (to, from) };
    match held().iter().find(|held| held.remote == remote && held.local == local) {
        Some(held) if held.accepted => TcpSocket::Accepted,
        Some(_) => TcpSocket::Connected,
        None => TcpSocket::None,
    }
}

fn v4(word: u32) -> IpAddr {
    Ipv4Addr::from(word).into()
}

fn v6(words: &[u32; 4]) -> IpAddr {
    let bits = words.iter().fold(0_u128, |bits, word| bits << 32 | u128::from(*word));
    Ipv6Addr::from(bits).into()
}

#[must_use]
pub fn ends_v4(key: &FlowKeyV4) -> Ends {
    let (protocol, link) = (key.protocol_scope as u8, key.protocol_scope >> 8);
    (v4(key.remote), key.remote_port, v4(key.local), key.local_port, protocol, link)
}

#[must_use]
pub fn ends_v6(key: &FlowKeyV6) -> Ends {
    let (protocol, link) = (key.protocol_scope as u8, key.protocol_scope >> 8);
    (v6(&key.remote), key.remote_port, v6(&key.local), key.local_port, protocol, link)
}

pub fn add(books: &mut Books, ends: Ends, table: FlowTable, flow: &Flow) {
    let reason = |outcome: Outcome| outcome.reason();
    let entry = Entry {
        direction: flow.direction,
        generation: flow.generation,
        reason: reason(flow.outcome),
        rule: flow.outcome.rule(),
        first_reason: reason(flow.first_outcome),
        cut_generation: flow.cut_generation,
        tcp: flow.tcp,
        answered: flow.flags & Flow::ANSWERED != 0,
        adopted: flow.flags & Flow::ADOPTED != 0,
        packets: flow.packets,
        bytes: flow.bytes,
    };
    books.flows.push((ends, entry));
    books.tables.push((ends, table as u8));
}

pub fn sort(books: &mut Books) {
    books.flows.sort_by_key(|(ends, _)| *ends);
    books.tables.sort_unstable();
    books.rules.sort_unstable();
}

/// By [`counter_index`], where there is something.
#[must_use]
pub fn totals(counters: &[(u64, u64)]) -> Vec<Total> {
    let mut lines = Vec::new();
    for reason in Reason::ALL {
        for direction in [Direction::Inbound, Direction::Outbound] {
            for dropped in [false, true] {
                let sum = counters[counter_index(*reason, direction, dropped) as usize];
                if sum != (0, 0) {
                    lines.push(((*reason as u8, direction as u8, dropped), sum));
                }
            }
        }
    }
    lines
}
