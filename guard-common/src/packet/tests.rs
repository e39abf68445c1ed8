use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::{
    Essential, Link, Packet, parse, plain,
    transport::{ACK, SYN},
};
use crate::Reason;

pub fn ipv4(protocol: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut bytes = vec![0x40 | (header / 4) as u8, 0];
    bytes.extend(((header + payload.len()) as u16).to_be_bytes());
    bytes.extend([0x12, 0x34]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7]);
    bytes.extend(options);
    bytes.extend(payload);
    bytes
}

pub fn ipv6(next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next, hop_limit]);
    bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    bytes.extend(payload);
    bytes
}

pub fn tcp(flags: u8) -> Vec<u8> {
    let mut bytes = vec![0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags];
    bytes.extend([0; 6]);
    bytes
}

fn ethernet(kind: &[u16], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for (number, kind) in kind.iter().enumerate() {
        if number > 0 {
            bytes.extend([0, 7]);
        }
        bytes.extend(kind.to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

fn parsed(link: Link, bytes: &[u8]) -> Packet {
    let mut packet = Packet::default();
    parse(bytes, link, bytes.len() as u32, &mut packet);
    packet
}

fn refusal(bytes: &[u8]) -> Option<Reason> {
    parsed(Link::None, bytes).refused()
}

#[test]
fn tcp_over_ipv4_behind_two_tags() {
    let frame = ethernet(&[0x88a8, 0x8100, 0x0800], &ipv4(6, 0x4000, &[], &tcp(SYN)));
    let packet = parsed(Link::Ethernet, &frame);
    assert_eq!(packet.refused(), None);
    assert_eq!((packet.family, packet.protocol, packet.network_at), (4, 6, 22));
    assert_eq!((packet.source[0], packet.destination[0]), (0xc000_0201, 0xc633_6407));
    assert_eq!((packet.source_port, packet.destination_port, packet.tcp_flags), (40000, 443, SYN));
    let third = ethernet(&[0x88a8, 0x8100, 0x8100, 0x0800], &ipv4(6, 0, &[], &tcp(SYN)));
    let packet = parsed(Link::Ethernet, &third);
    assert_eq!((packet.family, packet.ether_type, packet.essential), (0, 0x8100, Essential::No as u8));
}

#[test]
fn malformed_ipv4() {
    let good = ipv4(6, 0, &[], &tcp(ACK));
    let change = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        refusal(&bytes)
    };
    assert_eq!(refusal(&good), None);
    assert_eq!(change(0, 0x44), Some(Reason::BadIpv4));
    assert_eq!(change(0, 0x55), Some(Reason::EtherType));
    assert_eq!(change(3, 19), Some(Reason::BadIpv4));
    assert_eq!(change(3, 41), Some(Reason::Truncated));
    assert_eq!(change(6, 0x80), Some(Reason::BadIpv4));
    assert_eq!(change(32, 0x40), Some(Reason::BadTransport));
    assert_eq!(change(33, 3), Some(Reason::BadTransport));
    assert_eq!(refusal(&good[..39]), Some(Reason::Truncated));
    assert_eq!(refusal(&ipv4(17, 0, &[], &[0, 53, 0, 53, 0, 9, 0, 0])), Some(Reason::BadTransport));
}

#[test]
fn source_routes_wherever_they_stand() {
    for option in [131, 137] {
        assert_eq!(refusal(&ipv4(6, 0, &[1, option, 7, 4, 192, 0, 2, 9], &tcp(ACK))), Some(Reason::SourceRoute));
        // Behind another option, and as a length only: not one.
        assert_eq!(refusal(&ipv4(6, 0, &[148, 4, 0, 0, option, 3, 4, 0], &tcp(ACK))), Some(Reason::SourceRoute));
        assert_eq!(refusal(&ipv4(6, 0, &[68, 4, option, 0], &tcp(ACK))), None);
    }
    for bad in [[68, 1, 1, 1], [68, 5, 1, 1], [1, 1, 1, 68], [68, 0, 0, 0]] {
        assert_eq!(refusal(&ipv4(6, 0, &bad, &tcp(ACK))), Some(Reason::BadIpv4), "{bad:?}");
    }
    let mut routed = vec![6, 0, 4, 0, 0, 0, 0, 0];
    routed.extend(tcp(ACK));
    assert_eq!(refusal(&ipv6(43, 64, &routed)), Some(Reason::SourceRoute));
}

#[test]
fn fragments_of_ipv4() {
    let first = parsed(Link::None, &ipv4(17, 0x2000, &[], &[0, 53, 0, 53, 5, 0, 0, 0]));
    assert_eq!((first.refused(), first.flags, first.fragment_id), (None, Packet::FRAGMENT, 0x1234));
    let last = parsed(Link::None, &ipv4(17, 185, &[], &[0; 8]));
    assert_eq!((last.refused(), last.flags), (None, Packet::FRAGMENT | Packet::LATER));
    assert_eq!((last.source_port, last.destination_port), (0, 0));
    assert_eq!(refusal(&ipv4(6, 0x2000, &[], &[0; 16])), Some(Reason::FragmentTiny));
    assert_eq!(refusal(&ipv4(6, 0x2001, &[], &[0; 16])), Some(Reason::FragmentTiny));
    assert_eq!(refusal(&ipv4(6, 0x0002, &[], &[0; 16])), Some(Reason::FragmentTiny));
    assert_eq!(refusal(&ipv4(6, 0x0003, &[], &[0; 16])), None);
}

#[test]
fn chains_of_ipv6() {
    let chain = |headers: &[&[u8]]| {
        let mut bytes = headers.concat();
        bytes.extend(tcp(ACK));
        bytes
    };
    let options: &[u8] = &[60, 0, 1, 4, 0, 0, 0, 0];
    let to_tcp: &[u8] = &[6, 0, 1, 4, 0, 0, 0, 0];
    let eight = [[options; 7].as_slice(), &[to_tcp]].concat();
    let packet = parsed(Link::None, &ipv6(60, 64, &chain(&eight)));
    assert_eq!((packet.refused(), packet.protocol, packet.destination_port), (None, 6, 443));
    let nine = [[options; 8].as_slice(), &[to_tcp]].concat();
    assert_eq!(refusal(&ipv6(60, 64, &chain(&nine))), Some(Reason::ExtensionChain));

    // AH counts 4 bytes: 24 of them, with an integrity check value of 12.
    let mut authenticated = vec![6, 4, 0, 0];
    authenticated.extend([0; 20]);
    let packet = parsed(Link::None, &ipv6(51, 64, &chain(&[&authenticated])));
    assert_eq!((packet.refused(), packet.destination_port), (None, 443));

    // Hop-by-hop options only first; a header longer than the packet; two fragment headers.
    assert_eq!(refusal(&ipv6(60, 64, &chain(&[&[0, 0, 1, 4, 0, 0, 0, 0], to_tcp]))), Some(Reason::ExtensionChain));
    assert_eq!(refusal(&ipv6(60, 64, &chain(&[&[6, 9, 1, 4, 0, 0, 0, 0]]))), Some(Reason::ExtensionChain));
    let fragment: &[u8] = &[44, 0, 0, 1, 0, 0, 0, 9];
    assert_eq!(refusal(&ipv6(44, 64, &chain(&[fragment, fragment]))), Some(Reason::ExtensionChain));

    let first = parsed(Link::None, &ipv6(44, 64, &chain(&[&[6, 0, 0, 1, 0, 0, 0, 9]])));
    assert_eq!((first.refused(), first.flags, first.fragment_id), (None, Packet::FRAGMENT, 9));
    let atomic = parsed(Link::None, &ipv6(44, 64, &chain(&[&[6, 0, 0, 0, 0, 0, 0, 9]])));
    assert_eq!((atomic.refused(), atomic.flags, atomic.destination_port), (None, 0, 443));
    let later = parsed(Link::None, &ipv6(44, 64, &[6, 0, 5, 0x88, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8]));
    assert_eq!((later.refused(), later.flags), (None, Packet::FRAGMENT | Packet::LATER));
    // The chain goes on where the first fragment ends.
    assert_eq!(refusal(&ipv6(44, 64, &[60, 0, 0, 1, 0, 0, 0, 9])), Some(Reason::FragmentTiny));
}

#[test]
fn icmp_questions_and_answers_have_the_same_ports() {
    let question = parsed(Link::None, &ipv4(1, 0, &[], &[8, 0, 0, 0, 0xab, 0xcd, 0, 1]));
    assert_eq!((question.source_port, question.destination_port), (0xabcd, 0x0800));
    let answer = parsed(Link::None, &ipv4(1, 0, &[], &[0, 0, 0, 0, 0xab, 0xcd, 0, 1]));
    assert_eq!((answer.source_port, answer.destination_port), (0x0800, 0xabcd));
    assert!(answer.is(Packet::ICMP_ANSWER) && !question.is(Packet::ICMP_ANSWER));
    let other = parsed(Link::None, &ipv4(1, 0, &[], &[9, 16, 0, 0, 0xab, 0xcd, 0, 1]));
    assert_eq!((other.source_port, other.destination_port), (0, 0x0910));
}

#[test]
fn icmp_errors_quote() {
    let quoted = ipv4(17, 0, &[], &[0xc0, 0, 0, 53, 0, 8, 0, 0]);
    let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
    error.extend(&quoted);
    let packet = parsed(Link::None, &ipv4(1, 0, &[], &error));
    assert_eq!(packet.essential, Essential::IcmpError as u8);
    assert!(packet.is(Packet::WELL_FORMED));
    assert_eq!((packet.quoted.protocol, packet.quoted.source_port, packet.quoted.destination_port), (17, 0xc000, 53));
    error.extend([0; 600]);
    assert!(!parsed(Link::None, &ipv4(1, 0, &[], &error)).is(Packet::WELL_FORMED));
}

#[test]
fn neighbour_discovery_in_its_form_only() {
    let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
    solicitation.extend([0; 16]);
    solicitation.extend([1, 1, 2, 0, 0, 0, 0, 1]);
    let formed = |payload: &[u8]| parsed(Link::None, &ipv6(58, 255, payload)).is(Packet::WELL_FORMED);
    assert!(formed(&solicitation));
    assert!(formed(&solicitation[..24]));
    let with = |more: &[u8]| [solicitation.as_slice(), more].concat();
    assert!(!formed(&with(&[0; 8])));
    assert!(!formed(&with(&[200, 1, 0, 0, 0, 0, 0, 0])));
    assert!(!formed(&with(&[1, 2, 0, 0, 0, 0, 0, 0])));
    let mut code = solicitation.clone();
    code[1] = 1;
    assert!(!formed(&code));
}

#[test]
fn arp_in_its_form_only() {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend([0; 20]);
    let formed = |payload: &[u8]| parsed(Link::Ethernet, &ethernet(&[0x0806], payload)).is(Packet::WELL_FORMED);
    assert!(formed(&arp));
    arp.resize(46, 0);
    assert!(formed(&arp));
    arp.push(0);
    assert!(!formed(&arp));
}

pub fn dhcp(options: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef];
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63]);
    message.extend(options);
    let mut udp = vec![0, 68, 0, 67];
    udp.extend((message.len() as u16 + 8).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(message);
    udp
}

#[test]
fn dhcp_in_its_form_only() {
    let formed = |options: &[u8]| parsed(Link::None, &ipv4(17, 0, &[], &dhcp(options))).is(Packet::WELL_FORMED);
    assert!(formed(&[53, 1, 1, 55, 2, 1, 3, 255]));
    assert!(formed(&[53, 1, 1, 255, 0, 0, 0, 0, 0]));
    assert!(!formed(&[53, 1, 1, 255, 0, 0, 7, 0, 0]));
    assert!(!formed(&[53, 1, 1, 0]));
    assert!(!formed(&[53, 1, 1, 224, 1, 1, 255]));
    assert!(!formed(&[53, 9, 1, 255]));
    let packet = parsed(Link::None, &ipv4(17, 0, &[], &dhcp(&[53, 1, 1, 255])));
    assert_eq!((packet.transaction, packet.message), (0xdead_beef, 1));
}

/// Where the plain packet's reader says something, the parser says the same.
fn same(bytes: &[u8], link: Link, length: u32) -> bool {
    let Some((family, at)) = plain::network(bytes, link) else { return false };
    let found = if family == 4 { plain::v4(bytes, at, length) } else { plain::v6(bytes, at, length) };
    let Some((plain, headers)) = found else { return false };
    let mut packet = Packet::default();
    parse(bytes, link, length, &mut packet);
    assert_eq!(packet.plain(), Some(plain));
    assert_eq!((packet.family, packet.refused(), u32::from(packet.network_at)), (family, None, at));
    let transport = u32::from(packet.transport_at);
    let header = if plain.protocol == 6 { u32::from(bytes[transport as usize + 12] >> 4) * 4 } else { 8 };
    assert_eq!(headers, transport + header);
    true
}

/// A frame that is plain, or nearly: fields that decide it are changed one at a time.
#[test]
fn plain_packets_are_read_as_the_parser_reads_them() {
    let mut plain = 0;
    let udp = [0x9c, 0x40, 0x01, 0xbb, 0, 12, 0, 0, 1, 2, 3, 4];
    for (link, behind) in [(Link::None, 0), (Link::Ethernet, 14)] {
        for packet in
            [ipv4(6, 0, &[], &tcp(ACK)), ipv4(17, 0x4000, &[], &udp), ipv6(6, 64, &tcp(ACK)), ipv6(17, 64, &udp)]
        {
            let kind = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
            let frame = if behind == 0 { packet } else { ethernet(&[kind], &packet) };
            assert!(same(&frame, link, frame.len() as u32));
            for at in 0..frame.len() {
                for value in 0..=u8::MAX {
                    let mut other = frame.clone();
                    other[at] = value;
                    for length in [frame.len(), frame.len() + 30, at] {
                        plain += usize::from(same(&other, link, length as u32));
                    }
                }
                assert!(!same(&frame[..at.min(behind + 20)], link, at as u32));
            }
        }
    }
    assert!(plain > 10_000);
    // DHCP is looked at closely.
    for ports in [[0, 68, 0, 67], [0, 67, 0, 68]] {
        let mut dhcp = udp;
        dhcp[..4].copy_from_slice(&ports);
        let packet = ipv4(17, 0, &[], &dhcp);
        assert!(!same(&packet, Link::None, packet.len() as u32));
    }
}

proptest! {
    #[test]
    fn plain_or_not_no_bytes_are_read_otherwise(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        first in prop::sample::select(vec![0x45_u8, 0x46, 0x60, 0x65]),
        more in 0u32..70_000,
    ) {
        let mut bytes = bytes;
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        same(&bytes, Link::None, bytes.len() as u32 + more);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), more in 0u32..70_000) {
        for link in [Link::Ethernet, Link::None] {
            let mut packet = Packet::default();
            parse(bytes.as_slice(), link, bytes.len() as u32 + more, &mut packet);
            parse(bytes.as_slice(), link, more, &mut packet);
        }
    }

    /// Random bytes seldom come past the first header: these begin as a frame does.
    #[test]
    fn no_payload_makes_it_panic(
        mut payload in proptest::collection::vec(any::<u8>(), 0..400),
        protocol in prop::sample::select(vec![0u8, 1, 6, 17, 43, 44, 51, 58, 60, 132, 136]),
        icmp in any::<u8>(),
        fragment in any::<u16>(),
        dhcp_ports: bool,
    ) {
        if let Some(first) = payload.first_mut() {
            *first = icmp;
        }
        if dhcp_ports && payload.len() >= 8 {
            payload[..4].copy_from_slice(&[0, 68, 0, 67]);
            let length = payload.len() as u16;
            payload[4..6].copy_from_slice(&length.to_be_bytes());
        }
        let mut packet = Packet::default();
        for bytes in [ipv4(protocol, fragment & 0x3fff, &[], &payload), ipv6(protocol, 255, &payload)] {
            parse(bytes.as_slice(), Link::None, bytes.len() as u32, &mut packet);
            parse(&bytes[..bytes.len() / 2], Link::None, bytes.len() as u32, &mut packet);
        }
    }
}
