//! The wire's programs and the shield, by BPF_PROG_TEST_RUN: what passes, what is dropped, and what is counted.

use std::sync::Arc;

use anyhow::{Result, ensure};
use guard::policy::model::{AddressSet, ServiceRange};
use guard_common::{
    Direction, Reason,
    abi::{Flow, FlowKeyV4, Slot, SlotInfo, State, StateWord, VERSION},
};
use guard_tests::{
    bpf::{OBJECT, Programs, keys, lookup},
    frame::{ACK, SYN, TCP, ethernet_ip, ip, tcp},
    random,
};

/// `TCX_NEXT`; `TCX_DROP`, at ingress; `TCX_REDIRECT` to no device, which drops at egress; `XDP_DROP`, `XDP_PASS`.
const NEXT: u32 = u32::MAX;
const DROP_INBOUND: u32 = 2;
const DROP_OUTBOUND: u32 = 7;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

const US: [u8; 4] = [192, 0, 2, 1];
const LISTED: [u8; 4] = [198, 51, 100, 7];
const OTHER: [u8; 4] = [203, 0, 113, 9];

/// Outbound and inbound UDP and TCP 53 with one remote.
fn programs() -> Result<Programs> {
    let remote = u32::from_be_bytes(LISTED);
    let set = Arc::new(AddressSet { v4: vec![(remote, remote)], v6: Vec::new() });
    let services = [6, 17].map(|protocol| ServiceRange { first: protocol << 16 | 53, last: protocol << 16 | 53 });
    let services = services.to_vec();
    let rules = [Direction::Outbound, Direction::Inbound]
        .map(|direction| random::rule(direction, Arc::clone(&set), services.clone()));
    let compiled = random::compiled(&random::policy(rules.into()), 1)?;
    let mut programs = Programs::load(OBJECT, |_| {})?;
    programs.fill(Slot(0), &compiled.nodes, compiled.rules)?;
    let mut state = State { word: StateWord::settled(Slot(0)), abi: VERSION, ..State::default() };
    state.slots[0] = SlotInfo { generation: 1, flags: compiled.flags };
    programs.set_state(&state)?;
    Ok(programs)
}

fn udp(from: [u8; 4], to: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    packet.extend([0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(from);
    packet.extend(to);
    packet.extend(ports[0].to_be_bytes());
    packet.extend(ports[1].to_be_bytes());
    packet.extend([0, 26, 0, 0]);
    packet.extend([0; 18]);
    packet
}

#[test]
fn the_wire_lets_through_what_is_listed_and_its_answers() -> Result<()> {
    let mut programs = programs()?;
    let question = udp(US, LISTED, [4000, 53]);
    let answer = udp(LISTED, US, [53, 4000]);
    ensure!(programs.run("wire_ingress", &answer, None, 1)?.return_value == DROP_INBOUND, "an answer to nothing");
    ensure!(programs.run("wire_egress", &udp(US, OTHER, [4000, 53]), None, 1)?.return_value == DROP_OUTBOUND);
    ensure!(programs.run("wire_egress", &udp(US, LISTED, [4001, 54]), None, 1)?.return_value == DROP_OUTBOUND);
    ensure!(programs.run("wire_ingress", &udp(OTHER, US, [53, 4001]), None, 1)?.return_value == DROP_INBOUND);

    let question_two = udp(US, LISTED, [4002, 53]);
    ensure!(programs.run("wire_egress", &question_two, None, 1)?.return_value == NEXT);
    ensure!(programs.run("wire_ingress", &udp(LISTED, US, [53, 4002]), None, 1)?.return_value == NEXT);
    ensure!(programs.run("wire_egress", &question_two, None, 1)?.return_value == NEXT);
    let key = FlowKeyV4 {
        remote: u32::from_be_bytes(LISTED),
        local: u32::from_be_bytes(US),
        remote_port: 53,
        local_port: 4002,
        protocol_scope: 17,
    };
    let mut flow = Flow::default();
    lookup(programs.map("FLOWS_ESTABLISHED_V4")?, &key, &mut flow)?;
    ensure!(flow.packets == [1, 2] && flow.bytes == [60, 120], "{flow:?}");
    ensure!(programs.counted(Reason::RuleAllow, Direction::Outbound, false)?.packets == 2);
    ensure!(programs.counted(Reason::NotListed, Direction::Outbound, true)?.packets == 2);
    // The answer that came first was denied, and bars nothing: else whoever can write a resolver's address into a packet
    // could keep us from it.
    ensure!(programs.run("wire_egress", &question, None, 1)?.return_value == NEXT);

    ensure!(programs.run("wire_egress", &[0xff; 64], None, 1)?.return_value == DROP_OUTBOUND, "an unknown ethertype");
    ensure!(programs.counted(Reason::EtherType, Direction::Outbound, true)?.packets == 1);
    let mut short = udp(US, LISTED, [4000, 53]);
    short.truncate(40);
    ensure!(programs.run("wire_egress", &short, None, 1)?.return_value == DROP_OUTBOUND);
    ensure!(programs.counted(Reason::Truncated, Direction::Outbound, true)?.packets == 1);
    // Devices without an Ethernet header.
    ensure!(programs.run("wire_egress_l3", &question_two[14..], None, 1)?.return_value == NEXT);
    ensure!(programs.run("wire_egress_l3", &[0xff; 64], None, 1)?.return_value == DROP_OUTBOUND);
    Ok(())
}

/// What somebody writes who only has an address of ours: no socket holds it, and nobody answers.
#[test]
fn stray_acks_take_no_room_from_sessions() -> Result<()> {
    const PORTS: std::ops::Range<u16> = 40_000..41_000;
    let mut programs = programs()?;
    let segment = |inbound: bool, port, flags| {
        let (remote, local) = ((LISTED.into(), port), (US.into(), 53));
        let (from, to) = if inbound { (remote, local) } else { (local, remote) };
        ethernet_ip([2; 6], [4; 6], &ip(from.0, to.0, TCP, &tcp(from, to, flags, 1, 1, b"")))
    };
    for port in PORTS {
        for _ in 0..2 {
            ensure!(programs.run("wire_ingress", &segment(true, port, ACK), None, 1)?.return_value == NEXT);
        }
    }
    let held = |programs: &Programs, name| anyhow::Ok(keys::<FlowKeyV4>(programs.map(name)?)?.len());
    let (sessions, strays) =
        (held(&programs, "FLOWS_ESTABLISHED_V4")?, held(&programs, "FLOWS_UNANSWERED_INBOUND_V4")?);
    ensure!((sessions, strays) == (0, PORTS.len()), "{sessions} among the sessions, {strays} unanswered");

    // A session without a socket here, as one that is forwarded: known once both ends were heard.
    ensure!(programs.run("wire_egress", &segment(false, 40_000, ACK), None, 1)?.return_value == NEXT);
    ensure!(programs.run("wire_ingress", &segment(true, 39_999, SYN), None, 1)?.return_value == NEXT);
    ensure!(programs.run("wire_egress", &segment(false, 39_999, SYN | ACK), None, 1)?.return_value == NEXT);
    ensure!(programs.run("wire_ingress", &segment(true, 39_999, ACK), None, 1)?.return_value == NEXT);
    ensure!(held(&programs, "FLOWS_ESTABLISHED_V4")? == 2);
    Ok(())
}

#[test]
fn the_shield_drops_what_the_wire_would_and_leaves_the_rest() -> Result<()> {
    let mut programs = programs()?;
    ensure!(programs.run("shield", &udp(OTHER, US, [4000, 53]), None, 1)?.return_value == XDP_DROP);
    ensure!(programs.run("shield", &udp(OTHER, US, [4000, 53]), None, 1)?.return_value == XDP_DROP, "again");
    ensure!(programs.counted(Reason::NotListed, Direction::Inbound, true)?.packets == 2);
    let listed = udp(LISTED, US, [4000, 53]);
    ensure!(programs.run("shield", &listed, None, 1)?.return_value == XDP_PASS);
    ensure!(programs.counted(Reason::RuleAllow, Direction::Inbound, false)?.packets == 0, "the wire counts it");
    ensure!(programs.run("wire_ingress", &listed, None, 1)?.return_value == NEXT);
    // An answer to what was asked.
    ensure!(programs.run("wire_egress", &udp(US, LISTED, [4005, 53]), None, 1)?.return_value == NEXT);
    ensure!(programs.run("shield", &udp(LISTED, US, [53, 4005]), None, 1)?.return_value == XDP_PASS);
    ensure!(programs.run("shield", &[0xff; 64], None, 1)?.return_value == XDP_DROP, "an unknown ethertype");

    // No policy: nothing is dropped.
    programs.set_state(&State { word: StateWord::TRACKING, ..State::default() })?;
    ensure!(programs.run("shield", &udp(OTHER, US, [4000, 53]), None, 1)?.return_value == XDP_PASS);
    ensure!(programs.run("wire_ingress", &udp(OTHER, US, [4000, 53]), None, 1)?.return_value == NEXT);
    Ok(())
}
