mod host;
mod short;
mod tcp;

use std::{collections::BTreeSet, vec, vec::Vec};

use self::host::{ALL, Memory, SECOND};
use super::{FlowTable, Judgement, Ring, TcpSocket};
use crate::{
    Direction, Reason, Verdict,
    abi::{Flow, Interface, Slot, SlotFlags, TcpState},
    packet::{
        Link,
        transport::{ACK, FIN, RST, SYN},
    },
};

const US: [u8; 4] = [192, 0, 2, 1];
const THEM: [u8; 4] = [198, 51, 100, 7];

fn v4(source: [u8; 4], destination: [u8; 4], protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0];
    bytes.extend((20 + payload.len() as u16).to_be_bytes());
    bytes.extend([0x12, 0x34]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0]);
    bytes.extend(source);
    bytes.extend(destination);
    bytes.extend(payload);
    bytes
}

/// Addresses are 2001:db8::N, or fe80::N and ff02::N by a first byte of 0xfe or 0xff.
fn v6(source: [u8; 2], destination: [u8; 2], next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let address = |[kind, number]: [u8; 2]| {
        let mut address = match kind {
            0xfe => [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            0xff => [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            0 => [0; 16],
            _ => [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        address[15] = number;
        address
    };
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next, hop_limit]);
    bytes.extend(address(source));
    bytes.extend(address(destination));
    bytes.extend(payload);
    bytes
}

fn tcp_header(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn udp_header(source: u16, destination: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.extend([0, 8, 0, 0]);
    bytes
}

fn tcp_out(port: u16, flags: u8) -> Vec<u8> {
    v4(US, THEM, 6, 0, &tcp_header(40000, port, flags))
}

fn tcp_in(port: u16, flags: u8) -> Vec<u8> {
    v4(THEM, US, 6, 0, &tcp_header(port, 40000, flags))
}

fn udp_out(port: u16) -> Vec<u8> {
    v4(US, THEM, 17, 0, &udp_header(40000, port))
}

fn udp_in(port: u16) -> Vec<u8> {
    v4(THEM, US, 17, 0, &udp_header(port, 40000))
}

#[track_caller]
fn expect(judgement: Judgement, reason: Reason) {
    assert_eq!(judgement.outcome.reason(), reason);
    assert_eq!(judgement.dropped, reason.verdict() == Verdict::Deny);
}

#[test]
fn a_connection_from_handshake_to_end() {
    let mut host = Memory::new();
    let first = host.outbound(&tcp_out(443, SYN));
    expect(first, Reason::RuleAllow);
    assert_eq!((first.outcome.rule(), first.decided, first.ring), (Some(1), true, Ring::FlowBegan));
    expect(host.outbound(&tcp_out(443, SYN)), Reason::RuleAllow);
    // No third of the handshake before the second.
    expect(host.outbound(&tcp_out(443, ACK)), Reason::NoHandshake);
    expect(host.inbound(&tcp_in(443, SYN)), Reason::NoHandshake);
    let answer = host.inbound(&tcp_in(443, SYN | ACK));
    expect(answer, Reason::RuleAllow);
    assert_eq!((answer.decided, answer.ring, answer.direction), (false, Ring::No, Direction::Outbound));
    assert_eq!((host.count(FlowTable::UnansweredOutbound), host.count(FlowTable::Established)), (1, 0));
    expect(host.outbound(&tcp_out(443, ACK)), Reason::RuleAllow);
    assert_eq!((host.count(FlowTable::UnansweredOutbound), host.count(FlowTable::Established)), (0, 1));
    let flow = *host.v4.flows[FlowTable::Established as usize].values().next().unwrap();
    assert_eq!((flow.packets, flow.bytes, flow.tcp), ([1, 3], [100, 300], TcpState::Established as u8));
    expect(host.inbound(&tcp_in(443, FIN | ACK)), Reason::RuleAllow);
    expect(host.outbound(&tcp_out(443, ACK)), Reason::RuleAllow);
    expect(host.outbound(&tcp_out(443, FIN | ACK)), Reason::RuleAllow);
    expect(host.inbound(&tcp_in(443, ACK)), Reason::RuleAllow);
    assert_eq!(host.v4.flows[FlowTable::Established as usize].values().next().unwrap().tcp, TcpState::TimeWait as u8);
    // The ends are used again.
    let again = host.outbound(&tcp_out(443, SYN));
    assert_eq!(
        (again.ring, host.count(FlowTable::UnansweredOutbound), host.count(FlowTable::Established)),
        (Ring::FlowBegan, 1, 0)
    );
}

#[test]
fn only_answers_come_back() {
    let mut host = Memory::new();
    expect(host.inbound(&udp_in(53)), Reason::NotListed);
    assert_eq!(host.count(FlowTable::Denied), 1);
    // A denied flow is not an allowed one's answer, nor the other way round: ours would be judged by its own direction.
    let mut host = Memory::new();
    expect(host.outbound(&udp_out(53)), Reason::RuleAllow);
    expect(host.inbound(&udp_in(53)), Reason::RuleAllow);
    assert_eq!(host.count(FlowTable::Established), 1);
    expect(host.inbound(&v4(THEM, US, 17, 0, &udp_header(53, 40001))), Reason::NotListed);
    expect(host.outbound(&udp_out(123)), Reason::NotListed);
    expect(host.inbound(&udp_in(123)), Reason::NotListed);
}

#[test]
fn silence_ends_a_flow() {
    let mut host = Memory::new();
    expect(host.outbound(&udp_out(53)), Reason::RuleAllow);
    host.now += 30 * SECOND;
    expect(host.inbound(&udp_in(53)), Reason::RuleAllow);
    host.now += 120 * SECOND;
    expect(host.inbound(&udp_in(53)), Reason::RuleAllow);
    host.now += 120 * SECOND + 1;
    expect(host.inbound(&udp_in(53)), Reason::NotListed);
    assert_eq!(host.count(FlowTable::Established), 0);
}

#[test]
fn a_new_generation_judges_anew_and_cuts() {
    let mut host = Memory::new();
    host.outbound(&udp_out(53));
    host.inbound(&udp_in(53));
    host.context.generation = 2;
    let kept = host.inbound(&udp_in(53));
    expect(kept, Reason::RuleAllow);
    assert_eq!((kept.decided, kept.ring, kept.direction), (true, Ring::No, Direction::Outbound));
    host.context.generation = 3;
    host.tables[7].0[8 + 5] = crate::decide::Target::NOT_LISTED.0;
    let cut = host.inbound(&udp_in(53));
    expect(cut, Reason::NotListed);
    assert_eq!((cut.ring, host.count(FlowTable::Denied), host.count(FlowTable::Established)), (Ring::FlowCut, 1, 0));
    let flow = *host.v4.flows[FlowTable::Denied as usize].values().next().unwrap();
    assert_eq!((flow.cut_generation, flow.first_outcome.reason(), flow.packets), (3, Reason::RuleAllow, [3, 1]));
    host.context.generation = 4;
    host.tables = host::tables();
    expect(host.outbound(&udp_out(53)), Reason::RuleAllow);
    assert_eq!((host.count(FlowTable::Denied), host.count(FlowTable::Established)), (0, 1));
}

#[test]
fn an_expired_outcome_is_asked_for_again() {
    let mut host = Memory::new();
    host.outbound(&udp_out(53));
    host.v4.flows[FlowTable::UnansweredOutbound as usize].values_mut().next().unwrap().until = 5;
    host.tables[7].0[8 + 5] = crate::decide::Target::NOT_LISTED.0;
    let cut = host.outbound(&udp_out(53));
    expect(cut, Reason::NotListed);
    assert_eq!(cut.ring, Ring::FlowCut);
}

#[test]
fn audit_says_the_same_and_drops_nothing() {
    let mut host = Memory::new();
    host.context.flags = SlotFlags(ALL & !SlotFlags::ENFORCE_OUTBOUND);
    let first = host.outbound(&tcp_out(80, SYN));
    assert_eq!((first.outcome.reason(), first.dropped, first.ring), (Reason::NotListed, false, Ring::FlowBegan));
    let answer = host.inbound(&tcp_in(80, SYN | ACK));
    // The answers belong to the flow: though inbound is enforced, they pass.
    assert_eq!((answer.outcome.reason(), answer.dropped), (Reason::NotListed, false));
    let began = host.inbound(&tcp_in(81, SYN));
    assert_eq!((began.outcome.reason(), began.dropped), (Reason::NotListed, true));
}

#[test]
fn what_was_denied_one_way_bars_nothing_the_other_way() {
    let mut host = Memory::new();
    expect(host.inbound(&udp_in(53)), Reason::NotListed);
    let asked = host.outbound(&udp_out(53));
    expect(asked, Reason::RuleAllow);
    assert_eq!((asked.ring, asked.direction), (Ring::FlowBegan, Direction::Outbound));
    expect(host.inbound(&udp_in(53)), Reason::RuleAllow);

    expect(host.inbound(&tcp_in(443, SYN)), Reason::NotListed);
    expect(host.outbound(&tcp_out(443, SYN)), Reason::RuleAllow);
    expect(host.inbound(&tcp_in(443, SYN | ACK)), Reason::RuleAllow);
}

#[test]
fn without_a_policy_flows_are_tracked() {
    let mut host = Memory::new();
    host.context.slot = Slot::NONE;
    host.context.generation = 0;
    for packet in [tcp_out(80, SYN), tcp_out(81, ACK), udp_out(9), v4(US, THEM, 1, 0, &[5, 0, 0, 0, 0, 0, 0, 0])] {
        let judgement = host.outbound(&packet);
        assert_eq!((judgement.outcome.reason(), judgement.dropped), (Reason::Tracking, false));
    }
    let mut context = host.context;
    context.slot = Slot(0);
    context.generation = 1;
    host.context = context;
    let began = host.inbound(&udp_in(9));
    expect(began, Reason::NotListed);
    assert_eq!((began.ring, began.direction), (Ring::FlowBegan, Direction::Outbound));
}

#[test]
fn a_session_that_began_before_belongs_to_its_socket() {
    // 40000 listens: the remote began.
    let mut host = Memory::new();
    host.socket = TcpSocket::Accepted;
    let adopted = host.outbound(&v4(US, THEM, 6, 0, &tcp_header(22, 50000, ACK)));
    expect(adopted, Reason::RuleAllow);
    assert_eq!((adopted.outcome.rule(), adopted.direction), (Some(3), Direction::Inbound));
    assert_eq!(
        host.v4.flows[FlowTable::Established as usize].values().next().unwrap().flags & Flow::ADOPTED,
        Flow::ADOPTED
    );

    let mut host = Memory::new();
    host.socket = TcpSocket::Connected;
    expect(host.inbound(&tcp_in(443, ACK)), Reason::RuleAllow);
    // Denied, it is one flow, however often the other end goes on.
    for ring in [Ring::FlowBegan, Ring::No] {
        let judgement = host.inbound(&tcp_in(80, ACK));
        expect(judgement, Reason::NotListed);
        assert_eq!((judgement.ring, judgement.direction), (ring, Direction::Outbound));
    }
    host.socket = TcpSocket::None;
    expect(host.inbound(&v4(THEM, US, 6, 0, &tcp_header(443, 40001, ACK))), Reason::NotListed);
    expect(host.inbound(&v4(THEM, US, 6, 0, &tcp_header(443, 40002, SYN | ACK))), Reason::NoHandshake);
    expect(host.outbound(&v4(US, THEM, 6, 0, &tcp_header(40003, 443, RST))), Reason::NoHandshake);
}

#[test]
fn in_a_lockdown_an_adopted_remote_has_to_be_named() {
    let mut host = Memory::new();
    host.context.flags = SlotFlags(ALL | SlotFlags::LOCKDOWN);
    host.socket = TcpSocket::Accepted;
    let ours = |flags| v4(THEM, US, 6, 0, &tcp_header(50000, 22, flags));
    expect(host.inbound(&ours(ACK)), Reason::UnnamedRemote);
    expect(host.inbound(&v4(THEM, US, 6, 0, &tcp_header(50001, 22, SYN))), Reason::RuleAllow);
    host.context.generation = 2;
    host.tables[8].0[8 + 1] |= crate::decide::Target::NAMED;
    expect(host.inbound(&ours(ACK)), Reason::RuleAllow);
}

#[test]
fn pings_of_ours_and_of_theirs_never_meet() {
    let echo = |kind: u8, id: u16| {
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(id.to_be_bytes());
        bytes.extend([0, 1]);
        bytes
    };
    // The one identifier with which both have the same key.
    for id in [7, 0x0800] {
        let mut host = Memory::new();
        expect(host.outbound(&v4(US, THEM, 1, 0, &echo(8, id))), Reason::RuleAllow);
        expect(host.inbound(&v4(THEM, US, 1, 0, &echo(0, id))), Reason::RuleAllow);
        expect(host.inbound(&v4(THEM, US, 1, 0, &echo(8, id))), Reason::NotListed);
        expect(host.inbound(&v4(THEM, US, 1, 0, &echo(0, 9))), Reason::IcmpAnswerUnknown);
        expect(host.outbound(&v4(US, THEM, 1, 0, &echo(0, 10))), Reason::IcmpAnswerUnknown);
    }
}

#[test]
fn icmp_errors_about_known_flows_only() {
    let error = |quoted: &[u8]| [&[3, 3, 0, 0, 0, 0, 0, 0], quoted].concat();
    let mut host = Memory::new();
    let router = [203, 0, 113, 1];
    let about = v4(router, US, 1, 0, &error(&udp_out(53)));
    expect(host.inbound(&about), Reason::IcmpErrorUnknown);
    host.outbound(&udp_out(53));
    expect(host.inbound(&about), Reason::IcmpError);
    // Not about a flow that was denied.
    host.outbound(&udp_out(99));
    expect(host.inbound(&v4(router, US, 1, 0, &error(&udp_out(99)))), Reason::IcmpErrorUnknown);
    // Outbound, about what the remote sent, and to nobody else.
    host.inbound(&udp_in(53));
    expect(host.outbound(&v4(US, THEM, 1, 0, &error(&udp_in(53)))), Reason::IcmpError);
    expect(host.outbound(&v4(US, router, 1, 0, &error(&udp_in(53)))), Reason::IcmpErrorUnknown);
    expect(host.inbound(&v4(router, US, 1, 0, &[5, 1, 0, 0, 0, 0, 0, 0])), Reason::IcmpRedirect);
}

#[test]
fn fragments_follow_their_first() {
    let mut host = Memory::new();
    let first = |port: u16| v4(US, THEM, 17, 0x2000, &[0x9c, 0x40, (port >> 8) as u8, port as u8, 5, 0, 0, 0]);
    let later = v4(US, THEM, 17, 100, &[0; 16]);
    expect(host.outbound(&later), Reason::FragmentNoFirst);
    expect(host.outbound(&first(53)), Reason::RuleAllow);
    expect(host.outbound(&later), Reason::Fragment);
    expect(host.outbound(&first(53)), Reason::RuleAllow);
    expect(host.outbound(&first(54)), Reason::FragmentConflict);
    // Of another direction, and of another generation.
    expect(host.inbound(&later), Reason::FragmentNoFirst);
    host.context.generation = 2;
    expect(host.outbound(&later), Reason::FragmentNoFirst);
    host.context.generation = 1;
    host.now += 30 * SECOND + 1;
    expect(host.outbound(&later), Reason::FragmentNoFirst);
    expect(host.outbound(&first(99)), Reason::NotListed);
    expect(host.outbound(&later), Reason::NotListed);
}

#[test]
fn neighbour_discovery_stays_on_the_link() {
    let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
    solicitation.extend([0; 16]);
    let mut host = Memory::new();
    let sent = |to, hop_limit| v6([1, 1], to, 58, hop_limit, &solicitation);
    expect(host.outbound(&sent([0xff, 2], 255)), Reason::NeighbourDiscovery);
    expect(host.outbound(&sent([0xfe, 2], 255)), Reason::NeighbourDiscovery);
    expect(host.outbound(&sent([0xff, 3], 64)), Reason::EssentialMalformed);
    expect(host.outbound(&sent([1, 9], 255)), Reason::EssentialMalformed);
    // What was heard from there with this hop limit is on the link.
    expect(host.inbound(&v6([1, 9], [1, 1], 58, 255, &solicitation)), Reason::NeighbourDiscovery);
    expect(host.outbound(&sent([1, 9], 255)), Reason::NeighbourDiscovery);
    host.context.flags = SlotFlags(ALL & !SlotFlags::NEIGHBOUR_DISCOVERY);
    expect(host.outbound(&sent([0xff, 4], 255)), Reason::EssentialOff);
}

#[test]
fn dhcp_to_broadcast_and_to_the_server_it_came_from() {
    const SERVER: [u8; 4] = [192, 0, 2, 254];
    let message = |op: u8, ports: [u8; 4]| {
        let mut message = vec![op, 1, 6, 0, 1, 2, 3, 4];
        message.resize(236, 0);
        message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
        [ports.as_slice(), &(message.len() as u16 + 8).to_be_bytes(), &[0, 0], &message].concat()
    };
    let ask = |to| v4([0; 4], to, 17, 0, &message(1, [0, 68, 0, 67]));
    let answer = |to| v4(SERVER, to, 17, 0, &message(2, [0, 67, 0, 68]));
    let mut host = Memory::new();
    expect(host.inbound(&answer(US)), Reason::EssentialMalformed);
    expect(host.outbound(&ask([255; 4])), Reason::Dhcpv4);
    expect(host.inbound(&answer(US)), Reason::Dhcpv4);
    expect(host.outbound(&ask(SERVER)), Reason::EssentialMalformed);
    expect(host.inbound(&answer([255; 4])), Reason::Dhcpv4);
    expect(host.outbound(&ask(SERVER)), Reason::Dhcpv4);
    host.now += 121 * SECOND;
    expect(host.inbound(&answer([255; 4])), Reason::EssentialMalformed);
    // A server here is the policy's to allow.
    expect(host.inbound(&v4([0; 4], [255; 4], 17, 0, &message(1, [0, 68, 0, 67]))), Reason::NotListed);
}

#[test]
fn link_local_remotes_are_one_an_interface() {
    let mut host = Memory::new();
    let out = v6([0xfe, 1], [0xfe, 9], 17, 64, &udp_header(40000, 53));
    let back = v6([0xfe, 9], [0xfe, 1], 17, 64, &udp_header(53, 40000));
    expect(host.outbound(&out), Reason::RuleAllow);
    host.context.ifindex = 3;
    expect(host.inbound(&back), Reason::NotListed);
    host.context.ifindex = 2;
    expect(host.inbound(&back), Reason::RuleAllow);
}

fn frame(group: u8, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 0x80, 0xc2, 0, 0, group, 2, 0, 0, 0, 0, 2];
    bytes.extend(kind.to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[test]
fn arp_carries_nothing_out() {
    let mut host = Memory::new();
    for (tail, leaves) in
        [(vec![], true), (vec![0; 18], true), (vec![1; 18], false), (vec![0; 4], false), (vec![7; 9], false)]
    {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend([0; 20]);
        arp.extend(&tail);
        let frame = frame(0, 0x0806, &arp);
        let out = host.see(Direction::Outbound, Link::Ethernet, &frame).outcome.reason();
        assert_eq!(out, if leaves { Reason::Arp } else { Reason::EssentialMalformed }, "{tail:?}");
        // Switches and drivers pad with whatever lies there.
        assert_eq!(host.see(Direction::Inbound, Link::Ethernet, &frame).outcome.reason(), Reason::Arp, "{tail:?}");
    }
}

#[test]
fn every_reason_of_the_wire_is_reached() {
    let mut seen = BTreeSet::new();
    let mut note = |judgement: Judgement| seen.insert(judgement.outcome.reason());

    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend([0; 20]);
    let mut host = Memory::new();
    host.interface = Some(Interface {
        flags: Interface::GUARDED | Interface::SPANNING_TREE | Interface::MACSEC_ABOVE | Interface::PPPOE_ABOVE,
        class: [0; 3],
    });
    let mut bpdu = vec![0x42, 0x42, 3, 0, 0, 0, 0];
    bpdu.resize(38, 0);
    for (group, kind, payload) in [
        (0, 0x0806, arp.as_slice()),
        (3, 0x888e, &[2, 1, 0, 0]),
        (2, 0x8809, &[1, 1]),
        (0, 38, bpdu.as_slice()),
        (0xe, 0x88cc, &[0, 0]),
        (9, 0x88e5, &[0, 0]),
        (9, 0x8864, &[0x11, 0]),
        (9, 0x88f7, &[0, 0]),
        (3, 0x8809, &[1, 1]),
    ] {
        note(host.see(Direction::Outbound, Link::Ethernet, &frame(group, kind, payload)));
    }
    note(host.outbound(&udp_out(53)));
    note(host.outbound(&udp_out(99)));
    host.tables[7].0[8 + 3] = crate::decide::Target::deny(9).0;
    note(host.outbound(&tcp_out(443, SYN)));
    note(host.outbound(&v6([0xfe, 1], [0xff, 2], 58, 1, &[[131, 0].as_slice(), &[0; 22]].concat())));
    let dhcpv6 = [0x02, 0x22, 0x02, 0x23, 0, 12, 0, 0, 1, 1, 2, 3];
    let mut solicit = v6([0xfe, 1], [0xff, 2], 17, 1, &dhcpv6);
    solicit[24..40].copy_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2]);
    note(host.outbound(&solicit));
    note(host.outbound(&[0x45, 0]));
    note(host.outbound(&v4(US, THEM, 6, 0x8000, &tcp_header(1, 2, SYN))));
    note(host.outbound(&v4(US, THEM, 6, 0x2000, &[0; 8])));
    note(host.outbound(&v4(US, THEM, 6, 0, &tcp_header(1, 2, SYN | FIN))));
    let mut wrong = v6([1, 1], [1, 2], 6, 64, &[]);
    wrong[0] = 0x50;
    note(host.see(Direction::Outbound, Link::Ethernet, &frame(9, 0x86dd, &wrong)));
    note(host.outbound(&v6([1, 1], [1, 2], 43, 64, &[6, 0, 0, 0, 0, 0, 0, 0])));
    note(host.outbound(&v6([1, 1], [1, 2], 60, 64, &[6, 9, 0, 0, 0, 0, 0, 0])));
    host.context.flags = SlotFlags(ALL & !SlotFlags::ARP);
    note(host.see(Direction::Outbound, Link::Ethernet, &frame(0, 0x0806, &arp)));
    host.context.flags = SlotFlags(ALL);

    host.interface = Some(Interface { flags: Interface::LOOPBACK, class: [0; 3] });
    note(host.outbound(&udp_out(1000)));
    host.interface = Some(Interface::default());
    note(host.outbound(&udp_out(1001)));
    host.interface = None;
    host.context.flags = SlotFlags(ALL | SlotFlags::BY_INTERFACE);
    note(host.outbound(&udp_out(1002)));
    host.context.flags = SlotFlags(ALL);
    host.full = true;
    note(host.outbound(&udp_out(1003)));
    host.interface = Some(Interface { flags: Interface::LOOPBACK, class: [0; 3] });
    note(host.outbound(&v4(US, THEM, 17, 0x2000, &udp_header(1, 2))));
    host.full = false;
    host.interface = Some(Interface { flags: Interface::GUARDED, class: [0; 3] });
    host.tables.truncate(7);
    note(host.outbound(&udp_out(1004)));

    // The others have tests of their own above; these two come from elsewhere.
    let elsewhere = [
        Reason::NeighbourDiscovery,
        Reason::Dhcpv4,
        Reason::IcmpError,
        Reason::Fragment,
        Reason::Tracking,
        Reason::FragmentNoFirst,
        Reason::FragmentConflict,
        Reason::IcmpRedirect,
        Reason::IcmpErrorUnknown,
        Reason::IcmpAnswerUnknown,
        Reason::UnnamedRemote,
        Reason::NoHandshake,
        Reason::Sealed,
        Reason::BpfRefused,
    ];
    let missing: Vec<_> =
        Reason::ALL.iter().filter(|reason| !seen.contains(reason) && !elsewhere.contains(reason)).collect();
    assert_eq!(missing, Vec::<&Reason>::new());
}
