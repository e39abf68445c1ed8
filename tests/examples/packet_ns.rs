//! What the wire's programs cost a packet of a known flow: `cargo run --release -p guard-tests --example packet_ns`.
//!
//! Nanoseconds by BPF_PROG_TEST_RUN, the least and the median of eleven runs; the `clock` probe stands for an empty
//! program (it costs two helper calls more than one).

use std::sync::Arc;

use anyhow::Result;
use guard::policy::model::{AddressSet, ServiceRange};
use guard_common::{
    Direction,
    abi::{Slot, SlotInfo, State, StateWord, VERSION},
};
use guard_tests::{
    bpf::{OBJECT, Programs},
    random,
};

fn main() -> Result<()> {
    let everything = Arc::new(AddressSet { v4: vec![(0, u32::MAX)], v6: vec![(0, u128::MAX)] });
    let services = vec![ServiceRange { first: 17 << 16 | 53, last: 17 << 16 | 53 }];
    let policy = random::policy(vec![random::rule(Direction::Outbound, everything, services)]);
    let compiled = random::compiled(&policy, 1)?;
    let mut programs = Programs::load(OBJECT, |_| {})?;
    programs.fill(Slot(0), &compiled.nodes, compiled.rules)?;
    let mut state = State { word: StateWord::settled(Slot(0)), abi: VERSION, ..State::default() };
    state.slots[0] = SlotInfo { generation: 1, flags: compiled.flags };
    programs.set_state(&state)?;

    let v4 = |from: [u8; 4], to: [u8; 4], ports: [u16; 2]| {
        let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        packet.extend([0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 17, 0, 0]);
        packet.extend(from);
        packet.extend(to);
        udp(&mut packet, ports);
        packet
    };
    let v6 = |from: u8, to: u8, ports: [u16; 2]| {
        let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
        packet.extend([0x60, 0, 0, 0, 0, 26, 17, 64]);
        for last in [from, to] {
            packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        udp(&mut packet, ports);
        packet
    };
    let (us, remote) = ([192, 0, 2, 1], [198, 51, 100, 7]);
    let cases = [
        ("IPv4", v4(us, remote, [4000, 53]), v4(remote, us, [53, 4000])),
        ("IPv6", v6(1, 2, [4000, 53]), v6(2, 1, [53, 4000])),
    ];
    let mut measure = |program: &str, packet: &[u8]| -> Result<(u64, u64, u32)> {
        let mut times = Vec::new();
        let mut result = 0;
        for _ in 0..11 {
            let run = programs.run(program, packet, None, 200_000)?;
            result = run.return_value;
            times.push(run.duration.as_nanos() as u64);
        }
        times.sort_unstable();
        Ok((times[0], times[5], result))
    };
    for (family, question, answer) in cases {
        let (empty, _, _) = measure("clock", &question)?;
        let unanswered = measure("wire_egress", &question)?;
        let reply = measure("wire_ingress", &answer)?;
        let established = measure("wire_egress", &question)?;
        let mut other = question.clone();
        let port = other.len() - 26 + 2;
        other[port..port + 2].copy_from_slice(&54_u16.to_be_bytes());
        let denied = measure("wire_egress", &other)?;
        println!("{family}: clock {empty}; least, median, returned:");
        println!("  unanswered {unanswered:?}  reply {reply:?}  established {established:?}  denied {denied:?}");
    }
    Ok(())
}

/// UDP with 18 bytes.
fn udp(packet: &mut Vec<u8>, ports: [u16; 2]) {
    packet.extend(ports[0].to_be_bytes());
    packet.extend(ports[1].to_be_bytes());
    packet.extend([0, 26, 0, 0]);
    packet.extend([0; 18]);
}
