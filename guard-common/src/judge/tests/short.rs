//! The short way says and leaves behind what the long way does: every state of a flow against every plain packet.

use std::{println, vec::Vec};

use super::{
    SECOND, THEM, US,
    host::{Memory, Store},
    tcp_header, udp_header, v4, v6,
};
use crate::{
    Direction, Reason,
    abi::{Flow, Slot, TcpState},
    decide::Outcome,
    judge::{Context, Family, FlowTable, Judgement, Short, TcpSocket, V4, V6, long, short},
    packet::{
        Link, Packet, parse,
        transport::{ACK, PSH},
    },
};

/// What may lie in a table, as far as a judgement depends on it.
fn states() -> Vec<(FlowTable, Flow)> {
    let now = 1000 * SECOND;
    let mut all = Vec::new();
    for table in (0..).map_while(FlowTable::from_u8) {
        for tcp in 0..=TcpState::Close as u8 {
            for (direction, flags) in [(0, 0), (0, Flow::ANSWERED), (1, 0), (1, Flow::ANSWERED | Flow::ADOPTED)] {
                for generation in [0, 1, 2] {
                    for reason in [Reason::RuleAllow, Reason::RuleDeny, Reason::NotListed] {
                        for until in [u64::MAX, 0, u64::MAX - 1] {
                            for idle in [0, 60 * SECOND, 200 * SECOND] {
                                let flow = Flow {
                                    generation,
                                    outcome: Outcome::new(reason, 1),
                                    until,
                                    last_seen: now - idle,
                                    tcp,
                                    direction,
                                    flags,
                                    packets: [3, 4],
                                    bytes: [5, 6],
                                    ..Flow::default()
                                };
                                all.push((table, flow));
                            }
                        }
                    }
                }
            }
        }
    }
    all
}

trait Stored: Family {
    fn store(host: &mut Memory) -> &mut Store<Self>;
}

impl Stored for V4 {
    fn store(host: &mut Memory) -> &mut Store<V4> {
        &mut host.v4
    }
}

impl Stored for V6 {
    fn store(host: &mut Memory) -> &mut Store<V6> {
        &mut host.v6
    }
}

/// How often each way was gone.
#[derive(Default)]
struct Ways {
    settled: usize,
    absent: usize,
    long: usize,
}

fn compare<F: Stored>(bytes: &[u8], direction: Direction, slot: Slot, ways: &mut Ways)
where
    F::Key: Eq + core::hash::Hash + core::fmt::Debug,
    Memory: super::super::Flows<F>,
{
    let mut packet = Packet::default();
    parse(bytes, Link::None, bytes.len() as u32, &mut packet);
    let now = 1000 * SECOND;
    let current = Flow { generation: 1, until: u64::MAX, last_seen: now, packets: [3, 4], ..Flow::default() };
    for (table, flow) in states() {
        compare_one::<F>(&packet, direction, slot, &[(table, flow)], ways);
    }
    // Two CPUs may have begun a flow each with the same ends.
    for (table, waits) in [(FlowTable::UnansweredInbound, 0), (FlowTable::UnansweredOutbound, 1)] {
        for denied in 0..2 {
            let allow = Flow { outcome: Outcome::new(Reason::RuleAllow, 1), direction: waits, ..current };
            let deny = Flow { outcome: Outcome::new(Reason::RuleDeny, 1), direction: denied, ..current };
            compare_one::<F>(&packet, direction, slot, &[(table, allow), (FlowTable::Denied, deny)], ways);
        }
    }
}

fn compare_one<F: Stored>(
    packet: &Packet,
    direction: Direction,
    slot: Slot,
    held: &[(FlowTable, Flow)],
    ways: &mut Ways,
) where
    F::Key: Eq + core::hash::Hash + core::fmt::Debug,
    Memory: super::super::Flows<F>,
{
    let plain = packet.plain().unwrap();
    let (mut one, mut other) = (Memory::new(), Memory::new());
    let context = Context { direction, slot, generation: 1, ..one.context };
    let key = F::key(packet, &context);
    assert_eq!(key, F::plain_key(&plain, &context));
    for host in [&mut one, &mut other] {
        host.socket = TcpSocket::Connected;
        for (table, flow) in held {
            F::store(host).flows[*table as usize].insert(key, *flow);
        }
    }
    let expected: Judgement = long(&mut other, &context, packet, false);
    let judgement = match short::<F, Memory>(&mut one, &context, &plain) {
        Short::Settled(judgement) => {
            ways.settled += 1;
            judgement
        }
        Short::Absent => {
            ways.absent += 1;
            long(&mut one, &context, packet, true)
        }
        Short::Long => {
            ways.long += 1;
            long(&mut one, &context, packet, false)
        }
    };
    assert_eq!(judgement, expected, "{held:?} {context:?}");
    assert_eq!(F::store(&mut one).flows, F::store(&mut other).flows, "{held:?} {context:?}");
}

#[test]
fn the_short_way_leads_where_the_long_one_does() {
    let mut ways = Ways::default();
    for direction in [Direction::Inbound, Direction::Outbound] {
        let (from, to, ports) = match direction {
            Direction::Inbound => (THEM, US, (443, 40000)),
            Direction::Outbound => (US, THEM, (40000, 443)),
        };
        for slot in [Slot(0), Slot::NONE] {
            for (protocol, payload) in [
                (6, tcp_header(ports.0, ports.1, ACK)),
                (6, tcp_header(ports.0, ports.1, ACK | PSH)),
                (17, udp_header(ports.0, ports.1)),
            ] {
                compare::<V4>(&v4(from, to, protocol, 0, &payload), direction, slot, &mut ways);
                let ends = [[0x20, from[3]], [0x20, to[3]]];
                compare::<V6>(&v6(ends[0], ends[1], protocol, 64, &payload), direction, slot, &mut ways);
            }
        }
    }
    println!("settled {}, absent {}, long {}", ways.settled, ways.absent, ways.long);
    assert!(ways.settled > 500 && ways.absent > 1000 && ways.long > 1000);
}
