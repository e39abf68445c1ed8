//! What stands around a transport header: IP with options and extension headers, fragments, Ethernet with tags; right, or
//! broken in one place.

use std::net::IpAddr;

use guard_common::{Direction, Reason};

use super::{
    DEVICES, memory,
    packet::{Body, Fragment, Ip, Packet, Says},
};
use crate::{
    frame::{self, Ipv4Fields},
    generate::Random,
};

/// A transport header and what follows it.
#[derive(Clone, Debug)]
pub struct Inner {
    pub protocol: u8,
    pub ports: (u16, u16),
    pub body: Body,
    pub bytes: Vec<u8>,
    pub hop_limit: u8,
}

/// Where a packet is met, and between whom.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub direction: Direction,
    pub device: usize,
    pub from: IpAddr,
    pub to: IpAddr,
}

impl Way {
    fn has_ethernet(self) -> bool {
        memory::link(&DEVICES[self.device]) == guard_common::packet::Link::Ethernet
    }

    fn packet(self, bytes: Vec<u8>, says: Says, label: &'static str) -> Packet {
        Packet { direction: self.direction, device: self.device, bytes, says, label }
    }

    fn says(self, inner: &Inner, fragment: Option<Fragment>) -> Says {
        Says::Ip(Ip {
            source: self.from,
            destination: self.to,
            protocol: inner.protocol,
            ports: inner.ports,
            body: inner.body.clone(),
            fragment,
        })
    }

    fn family(self) -> u8 {
        if self.from.is_ipv4() { 4 } else { 6 }
    }
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MORE: u16 = 0x2000;

/// As it should be, with what may stand around it.
pub fn whole(random: &mut Random, way: Way, inner: &Inner, label: &'static str) -> Packet {
    let plain = !random.percent(20);
    let (packet, label) = match (way.from, way.to) {
        _ if plain => (ip(way, inner, &Ipv4Fields::default(), &[]), label),
        (IpAddr::V4(_), _) => {
            let options: &[&[u8]] =
                &[&[1, 1, 1, 1], &[7, 7, 4, 0, 0, 0, 0, 0], &[0, 0, 0, 0], &[68, 8, 5, 0, 0, 0, 0, 0], &[1, 0, 131, 9]];
            let fields = Ipv4Fields { options: random.of(options).to_vec(), ..Ipv4Fields::default() };
            (ip(way, inner, &fields, &[]), "IPv4 options")
        }
        _ => {
            let chains: &[&[u8]] = &[
                &[HOP_BY_HOP],
                &[DESTINATION],
                &[HOP_BY_HOP, DESTINATION, AUTHENTICATION],
                &[FRAGMENT],
                &[
                    HOP_BY_HOP,
                    DESTINATION,
                    DESTINATION,
                    DESTINATION,
                    DESTINATION,
                    DESTINATION,
                    DESTINATION,
                    AUTHENTICATION,
                ],
            ];
            let chain = *random.of(chains);
            let label = if chain == [FRAGMENT] { "whole, with a fragment header" } else { "extension headers" };
            (ip(way, inner, &Ipv4Fields::default(), chain), label)
        }
    };
    // What a short frame is filled up with.
    let padding = if way.has_ethernet() && random.percent(10) { 1 + random.below(30) } else { 0 };
    let packet = [packet, vec![0xa5; padding]].concat();
    let (bytes, tagged) = framed(random, way, &packet);
    way.packet(bytes, way.says(inner, None), if tagged { "VLAN tags" } else { label })
}

/// An IP packet; `chain`: extension headers.
fn ip(way: Way, inner: &Inner, fields: &Ipv4Fields, chain: &[u8]) -> Vec<u8> {
    match (way.from, way.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame::ipv4(from, to, inner.protocol, &Ipv4Fields { ttl: inner.hop_limit, ..fields.clone() }, &inner.bytes)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (next, payload) = chained(chain, inner.protocol, &inner.bytes);
            frame::ipv6(from, to, next, inner.hop_limit, &payload)
        }
        _ => panic!("{way:?}: two families"),
    }
}

/// The first next header, and the payload.
fn chained(chain: &[u8], protocol: u8, bytes: &[u8]) -> (u8, Vec<u8>) {
    chain.iter().rev().fold((protocol, bytes.to_vec()), |(next, rest), header| {
        let bytes: &[u8] = match *header {
            // 24 bytes: 4 units more than 2 of 4 bytes.
            AUTHENTICATION => &[next, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
            // Neither offset nor more: a whole packet (RFC 6946).
            FRAGMENT => &[next, 0, 0, 0, 0, 0, 0, 7],
            _ => &[next, 0, 1, 4, 0, 0, 0, 0],
        };
        (*header, [bytes, &rest].concat())
    })
}

/// A frame, and whether it has tags.
fn framed(random: &mut Random, way: Way, packet: &[u8]) -> (Vec<u8>, bool) {
    let kind = if way.from.is_ipv4() { 0x0800 } else { 0x86dd };
    if !way.has_ethernet() {
        return (packet.to_vec(), false);
    }
    let tags: &[u16] = match random.below(30) {
        0 => &[0x8100],
        1 => &[0x88a8, 0x8100],
        2 => &[0x9100],
        _ => &[],
    };
    (ethernet(&[2, 0, 0, 0, 0, 1], tags, kind, packet), !tags.is_empty())
}

#[must_use]
pub fn ethernet(to: &[u8; 6], tags: &[u16], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = to.to_vec();
    bytes.extend([2, 0, 0, 0, 0, 2]);
    for tag in tags {
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0, 42]);
    }
    bytes.extend(kind.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Broken in one place.
pub fn damaged(random: &mut Random, way: Way, inner: &Inner) -> Packet {
    if random.percent(30)
        && let Some(bytes) = bad_transport(random, inner, way.from.is_ipv4())
    {
        let packet = ip(way, &Inner { bytes, ..inner.clone() }, &Ipv4Fields::default(), &[]);
        let (bytes, _) = framed(random, way, &packet);
        return way.packet(bytes, Says::Refused { family: way.family(), reason: Reason::BadTransport }, "damaged");
    }
    let (packet, reason) = if way.from.is_ipv4() { bad_ipv4(random, way, inner) } else { bad_ipv6(random, way, inner) };
    // Without a header before it, the version says what it is.
    if !way.has_ethernet() && packet[0] >> 4 != way.family() {
        return way.packet(packet, Says::Refused { family: 0, reason: Reason::EtherType }, "no version that is known");
    }
    let fixed = if way.from.is_ipv4() { 20 } else { 40 };
    let bytes = if packet.len() < fixed && way.has_ethernet() {
        // BPF_PROG_TEST_RUN refuses frames that say that they hold IP, and do not. It does not look behind a tag.
        ethernet(&[2, 0, 0, 0, 0, 1], &[0x8100], if way.from.is_ipv4() { 0x0800 } else { 0x86dd }, &packet)
    } else {
        framed(random, way, &packet).0
    };
    way.packet(bytes, Says::Refused { family: way.family(), reason }, "damaged")
}

fn bad_ipv4(random: &mut Random, way: Way, inner: &Inner) -> (Vec<u8>, Reason) {
    let with = |options: &[u8]| ip(way, inner, &Ipv4Fields { options: options.to_vec(), ..Ipv4Fields::default() }, &[]);
    let mut packet = with(&[]);
    let total = packet.len() as u16;
    let reason = match random.below(10) {
        0 => {
            packet[0] = 0x55;
            Reason::BadIpv4
        }
        1 => {
            packet[0] = 0x44;
            Reason::BadIpv4
        }
        2 => {
            packet[2..4].copy_from_slice(&19_u16.to_be_bytes());
            Reason::BadIpv4
        }
        3 => {
            packet[2..4].copy_from_slice(&(total + 1).to_be_bytes());
            Reason::Truncated
        }
        4 => {
            packet.truncate(15 + random.below(5));
            Reason::Truncated
        }
        5 => {
            packet[6] |= 0x80;
            Reason::BadIpv4
        }
        6 => return (with(random.of::<[u8; 4]>(&[[7, 0, 0, 0], [7, 1, 0, 0], [1, 1, 1, 7]])), Reason::BadIpv4),
        7 => return (with(&[7, 9, 4, 0]), Reason::BadIpv4),
        8 => return (with(&[131, 7, 4, 192, 0, 2, 9, 0]), Reason::SourceRoute),
        _ => return (with(&[1, 137, 7, 4, 192, 0, 2, 9]), Reason::SourceRoute),
    };
    (packet, reason)
}

fn bad_ipv6(random: &mut Random, way: Way, inner: &Inner) -> (Vec<u8>, Reason) {
    let with = |chain: &[u8]| ip(way, inner, &Ipv4Fields::default(), chain);
    let IpAddr::V6(from) = way.from else { panic!("IPv6") };
    let IpAddr::V6(to) = way.to else { panic!("IPv6") };
    let headed =
        |next: u8, header: &[u8]| frame::ipv6(from, to, next, inner.hop_limit, &[header, &inner.bytes].concat());
    let mut packet = with(&[]);
    let reason = match random.below(9) {
        0 => {
            packet[0] = 0x70;
            Reason::BadIpv6
        }
        1 => {
            let payload = (packet.len() - 39) as u16;
            packet[4..6].copy_from_slice(&payload.to_be_bytes());
            Reason::Truncated
        }
        2 => {
            packet.truncate(15 + random.below(25));
            Reason::Truncated
        }
        3 => return (with(&[HOP_BY_HOP, ROUTING]), Reason::SourceRoute),
        4 => return (with(&[DESTINATION, HOP_BY_HOP]), Reason::ExtensionChain),
        // Longer than the packet.
        5 => return (headed(DESTINATION, &[inner.protocol, 200, 1, 4, 0, 0, 0, 0]), Reason::ExtensionChain),
        6 => return (with(&[DESTINATION; 9]), Reason::ExtensionChain),
        7 => {
            let two = [FRAGMENT, 0, 0, 1, 0, 0, 0, 7, inner.protocol, 0, 0, 1, 0, 0, 0, 8];
            return (headed(FRAGMENT, &two), Reason::ExtensionChain);
        }
        // A first fragment whose chain does not end in it (RFC 7112).
        _ => {
            let long = [DESTINATION, 0, 0, 1, 0, 0, 0, 7, inner.protocol, 200, 1, 4, 0, 0, 0, 0];
            return (headed(FRAGMENT, &long), Reason::FragmentTiny);
        }
    };
    (packet, reason)
}

fn bad_transport(random: &mut Random, inner: &Inner, ipv4: bool) -> Option<Vec<u8>> {
    let mut bytes = inner.bytes.clone();
    let shortest = shortest(inner.protocol);
    if shortest > 0 && random.percent(30) {
        bytes.truncate(random.below(shortest));
        return Some(bytes);
    }
    match inner.protocol {
        6 => match random.below(3) {
            // None, FIN alone, SYN and FIN, SYN and RST, all.
            0 => bytes[13] = *random.of(&[0, 1, 3, 6, 7, 0x3f, 0x28]),
            1 => bytes[12] = 4 << 4,
            _ => {
                bytes.truncate(20 + random.below(40));
                bytes[12] = 15 << 4;
            }
        },
        17 => {
            let length = *random.of(&[0, 7, bytes.len() as u16 + 1]);
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
        }
        // A question or an answer without its identifier.
        58 if !ipv4 && matches!(inner.body, Body::Question | Body::Answer) => bytes.truncate(4 + random.below(4)),
        _ => return None,
    }
    Some(bytes)
}

const fn shortest(protocol: u8) -> usize {
    match protocol {
        6 => 20,
        17 | 136 | 1 => 8,
        132 => 12,
        58 => 4,
        _ => 0,
    }
}

/// A packet in fragments, in some order, with or without tricks.
pub fn fragments(random: &mut Random, way: Way, inner: &Inner, id: u32) -> Vec<Packet> {
    let mut inner = inner.clone();
    inner.bytes.resize(inner.bytes.len().max(40) + 64, 0x55);
    if inner.protocol == 17 {
        let length = inner.bytes.len() as u16;
        inner.bytes[4..6].copy_from_slice(&length.to_be_bytes());
    }
    // None of these is ever fragmented.
    inner.body = match inner.body {
        Body::Error(_) => Body::Error(None),
        Body::NeighbourDiscovery { hop_limit, advertised, .. } => {
            Body::NeighbourDiscovery { form: false, hop_limit, advertised }
        }
        Body::Mld { hop_limit, .. } => Body::Mld { form: false, hop_limit },
        Body::Dhcp { message, transaction, .. } => Body::Dhcp { form: false, message, transaction },
        other => other,
    };
    let head = 24 + 8 * random.below(3);
    let id = if way.from.is_ipv4() { id & 0xffff } else { id };
    let one = |inner: &Inner, at: usize, end: usize, says: Says, label| {
        let more = u16::from(end < inner.bytes.len());
        let part = Inner { bytes: inner.bytes[at..end].to_vec(), ..inner.clone() };
        let packet = match (way.from, way.to) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = vec![inner.protocol, 0];
                header.extend((at as u16 | more).to_be_bytes());
                header.extend(id.to_be_bytes());
                frame::ipv6(from, to, FRAGMENT, inner.hop_limit, &[header, part.bytes].concat())
            }
            _ => {
                let fields =
                    Ipv4Fields { id: id as u16, fragment: (more * MORE) | (at / 8) as u16, ..Ipv4Fields::default() };
                ip(way, &part, &fields, &[])
            }
        };
        let bytes = if way.has_ethernet() {
            ethernet(&[2, 0, 0, 0, 0, 1], &[], if way.from.is_ipv4() { 0x0800 } else { 0x86dd }, &packet)
        } else {
            packet
        };
        way.packet(bytes, says, label)
    };
    let names = |later| Fragment { id, protocol: inner.protocol, later };
    let first = |inner: &Inner, label| one(inner, 0, head, way.says(inner, Some(names(false))), label);
    let later = |at: usize, label| {
        let rest = Inner { ports: (0, 0), body: Body::Plain, ..inner.clone() };
        let end = inner.bytes.len() - if at.is_multiple_of(16) { 0 } else { 8 };
        one(&inner, at, end, way.says(&rest, Some(names(true))), label)
    };
    let tiny = Says::Refused { family: way.family(), reason: Reason::FragmentTiny };
    let shortest = shortest(inner.protocol);
    match random.below(8) {
        0 => vec![
            later(head, "fragment before its first"),
            first(&inner, "first fragment"),
            later(head, "later fragment"),
        ],
        1 if shortest > 8 => vec![one(&inner, 0, 8, tiny, "tiny first fragment"), later(head, "later fragment")],
        2 if shortest > 8 => vec![
            first(&inner, "first fragment"),
            one(&inner, 8, head, tiny, "later fragment over the header"),
            later(head, "later fragment"),
        ],
        3 if matches!(inner.protocol, 6 | 17 | 132 | 136) => {
            let mut other = inner.clone();
            let port = inner.ports.0 ^ 1;
            other.bytes[..2].copy_from_slice(&port.to_be_bytes());
            other.ports.0 = port;
            vec![
                first(&inner, "first fragment"),
                first(&other, "another first fragment"),
                later(head, "later fragment"),
                first(&inner, "the same first fragment"),
            ]
        }
        4 => vec![later(head, "fragment before its first")],
        5 => vec![first(&inner, "first fragment")],
        // Overlaps with the one before.
        6 => vec![
            first(&inner, "first fragment"),
            later(head, "later fragment"),
            later(head + 8, "later fragment"),
            later(shortest.max(1).next_multiple_of(8), "overlapping fragment"),
        ],
        _ => vec![first(&inner, "first fragment"), later(head, "later fragment")],
    }
}
