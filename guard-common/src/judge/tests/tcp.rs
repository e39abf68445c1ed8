//! TCP: its states, forged packets, and which table a connection stands in.

use super::{
    Ring, THEM, TcpSocket, US, expect,
    host::{Memory, SECOND},
    tcp_header, tcp_in, tcp_out, udp_in, udp_out, v4,
};
use crate::{
    Direction, Reason,
    abi::{Flow, TcpState},
    judge::{FlowTable, tcp},
    packet::transport::{ACK, FIN, RST, SYN},
};

#[test]
fn tcp_states_as_connection_tracking_has_them() {
    use TcpState::{Close, CloseWait, Established, FinWait, LastAck, SynReceived, SynSent, TimeWait};
    let to = |state: TcpState| tcp::Step::To(state as u8);
    for (state, flags, original, step) in [
        (SynSent, SYN | ACK, false, to(SynReceived)),
        (SynSent, ACK, false, to(SynSent)),
        (SynSent, RST | ACK, false, to(Close)),
        (SynSent, FIN | ACK, true, tcp::Step::Refuse),
        (SynSent, SYN | ACK, true, tcp::Step::Refuse),
        (SynReceived, SYN | ACK, false, to(SynReceived)),
        (SynReceived, ACK, false, to(SynReceived)),
        (SynReceived, ACK, true, to(Established)),
        (Established, SYN, true, to(Established)),
        (Established, SYN, false, tcp::Step::Refuse),
        (Established, FIN | ACK, false, to(FinWait)),
        (FinWait, ACK, true, to(CloseWait)),
        (FinWait, FIN | ACK, true, to(LastAck)),
        (CloseWait, FIN | ACK, true, to(LastAck)),
        (LastAck, ACK, false, to(TimeWait)),
        (TimeWait, ACK, false, to(TimeWait)),
        (TimeWait, SYN, false, tcp::Step::Anew),
        (Close, SYN, true, tcp::Step::Anew),
        (Close, ACK, true, to(Close)),
    ] {
        assert_eq!(tcp::step(state as u8, flags, original), step, "{state:?} {flags:#x} {original}");
    }
}

#[test]
fn a_forged_end_ends_no_session_that_its_socket_holds() {
    for (end, forged_back) in [(RST, None), (FIN | ACK, Some(FIN | ACK))] {
        let mut host = Memory::new();
        expect(host.outbound(&tcp_out(443, SYN)), Reason::RuleAllow);
        expect(host.inbound(&tcp_in(443, SYN | ACK)), Reason::RuleAllow);
        expect(host.outbound(&tcp_out(443, ACK)), Reason::RuleAllow);
        let session = host.v4.flows[FlowTable::Established as usize].clone();
        (host.socket, host.lives) = (TcpSocket::Connected, true);
        for flags in [Some(end), forged_back].into_iter().flatten() {
            expect(host.inbound(&tcp_in(443, flags)), Reason::RuleAllow);
            expect(host.outbound(&tcp_out(443, ACK)), Reason::RuleAllow);
        }
        expect(host.inbound(&tcp_in(443, end)), Reason::RuleAllow);
        // Also when its shorter life is over.
        for silence in [0, 200 * SECOND] {
            host.now += silence;
            expect(host.inbound(&tcp_in(443, SYN)), Reason::NoHandshake);
            expect(host.inbound(&tcp_in(443, ACK)), Reason::RuleAllow);
        }
        assert_eq!((host.count(FlowTable::Established), host.count(FlowTable::Denied)), (1, 0));
        let (before, after) = (session.values().next().unwrap(), host.v4.flows[0].values().next().unwrap());
        assert_eq!((after.tcp, after.direction), (TcpState::Established as u8, Direction::Outbound as u8));
        assert_eq!(after.first_seen, before.first_seen);
        // Once the socket is gone, the ends may be used again, and the policy is asked.
        (host.socket, host.lives) = (TcpSocket::None, false);
        expect(host.inbound(&tcp_in(443, RST)), Reason::RuleAllow);
        expect(host.inbound(&tcp_in(443, SYN)), Reason::NotListed);
    }
}

#[test]
fn a_forged_beginning_finds_the_session_whose_flow_was_forgotten() {
    let mut host = Memory::new();
    (host.socket, host.lives) = (TcpSocket::Connected, true);
    // Denied inbound, were it a new connection.
    expect(host.inbound(&tcp_in(443, SYN)), Reason::RuleAllow);
    let flow = *host.v4.flows[FlowTable::Established as usize].values().next().unwrap();
    assert_eq!((flow.tcp, flow.direction), (TcpState::Established as u8, Direction::Outbound as u8));
    assert_eq!(flow.flags, Flow::ADOPTED | Flow::ANSWERED | Flow::HELD);
    expect(host.inbound(&tcp_in(443, ACK)), Reason::RuleAllow);
    assert_eq!((host.count(FlowTable::Established), host.count(FlowTable::Denied)), (1, 0));
}

#[test]
fn our_own_syn_begins_anew_whatever_socket_there_is() {
    let mut host = Memory::new();
    expect(host.outbound(&tcp_out(443, SYN)), Reason::RuleAllow);
    expect(host.inbound(&tcp_in(443, SYN | ACK)), Reason::RuleAllow);
    expect(host.outbound(&tcp_out(443, RST)), Reason::RuleAllow);
    // The socket that sends it is there already.
    (host.socket, host.lives) = (TcpSocket::Connected, true);
    assert_eq!(host.outbound(&tcp_out(443, SYN)).ring, Ring::FlowBegan);
}

#[test]
fn an_ack_of_no_connection_is_not_among_the_established() {
    let mut host = Memory::new();
    // Forwarded, or forged: nobody here knows of it. The policy is asked, since the session may be older than guard.
    expect(host.inbound(&v4(THEM, US, 6, 0, &tcp_header(40000, 22, ACK))), Reason::RuleAllow);
    assert_eq!((host.count(FlowTable::UnansweredInbound), host.count(FlowTable::Established)), (1, 0));
    expect(host.inbound(&v4(THEM, US, 6, 0, &tcp_header(40000, 22, ACK))), Reason::RuleAllow);
    assert_eq!((host.count(FlowTable::UnansweredInbound), host.count(FlowTable::Established)), (1, 0));
    // Heard from both ends, it is.
    expect(host.outbound(&v4(US, THEM, 6, 0, &tcp_header(22, 40000, ACK))), Reason::RuleAllow);
    assert_eq!((host.count(FlowTable::UnansweredInbound), host.count(FlowTable::Established)), (0, 1));
    let mut host = Memory::new();
    host.socket = TcpSocket::Accepted;
    expect(host.inbound(&v4(THEM, US, 6, 0, &tcp_header(40000, 22, ACK))), Reason::RuleAllow);
    assert_eq!(host.count(FlowTable::Established), 1);
}

#[test]
fn what_is_not_answered_lies_apart_by_direction() {
    let mut host = Memory::new();
    expect(host.outbound(&udp_out(53)), Reason::RuleAllow);
    expect(host.inbound(&v4(THEM, US, 6, 0, &tcp_header(40001, 22, SYN))), Reason::RuleAllow);
    let unanswered = [FlowTable::UnansweredInbound, FlowTable::UnansweredOutbound];
    assert_eq!(unanswered.map(|table| host.count(table)), [1, 1]);
    // Each is found by its answer.
    expect(host.inbound(&udp_in(53)), Reason::RuleAllow);
    expect(host.outbound(&v4(US, THEM, 6, 0, &tcp_header(22, 40001, SYN | ACK))), Reason::RuleAllow);
    expect(host.inbound(&v4(THEM, US, 6, 0, &tcp_header(40001, 22, ACK))), Reason::RuleAllow);
    assert_eq!((unanswered.map(|table| host.count(table)), host.count(FlowTable::Established)), ([0, 0], 2));
}
