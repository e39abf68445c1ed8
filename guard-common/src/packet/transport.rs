//! Ports: TCP (RFC 9293), UDP (768), UDP-Lite (3828), SCTP (9260), ICMP (792) and ICMPv6 (4443). Other protocols have
//! none.

use super::{Bytes, Essential, Packet, bytes::LIMIT};
use crate::Reason;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;
pub const UDP_LITE: u8 = 136;

/// TCP's flags.
pub const FIN: u8 = 1;
pub const SYN: u8 = 1 << 1;
pub const RST: u8 = 1 << 2;
pub const PSH: u8 = 1 << 3;
pub const ACK: u8 = 1 << 4;
pub const URG: u8 = 1 << 5;

/// `rest`: bytes from `at` to the network layer's end.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B, at: u32, rest: u32, packet: &mut Packet) -> Result<(), Reason> {
    if at >= LIMIT {
        return Err(Reason::ExtensionChain);
    }
    packet.transport_at = at as u16;
    packet.transport_bytes = rest;
    if rest < shortest(packet.protocol) {
        return Err(if packet.is(Packet::FRAGMENT) { Reason::FragmentTiny } else { Reason::BadTransport });
    }
    match packet.protocol {
        TCP => {
            ports(bytes, at, packet)?;
            tcp(bytes, at, rest, packet)
        }
        UDP => {
            ports(bytes, at, packet)?;
            udp(bytes, at, rest, packet)
        }
        UDP_LITE | SCTP => ports(bytes, at, packet),
        ICMP if packet.family == 4 => icmp(bytes, at, rest, packet),
        ICMPV6 if packet.family == 6 => icmp(bytes, at, rest, packet),
        _ => Ok(()),
    }
}

/// A later fragment that would write into the transport header of the first (RFC 1858).
#[inline(always)]
pub fn later_fragment(offset: u32, protocol: u8) -> Result<(), Reason> {
    if offset < shortest(protocol) { Err(Reason::FragmentTiny) } else { Ok(()) }
}

/// Bytes of a protocol's shortest header.
#[inline(always)]
const fn shortest(protocol: u8) -> u32 {
    match protocol {
        TCP => 20,
        UDP | UDP_LITE | ICMP => 8,
        SCTP => 12,
        ICMPV6 => 4,
        _ => 0,
    }
}

#[inline(always)]
fn ports<B: Bytes + ?Sized>(bytes: &B, at: u32, packet: &mut Packet) -> Result<(), Reason> {
    let both = bytes.u32(at).ok_or(Reason::Truncated)?;
    packet.source_port = (both >> 16) as u16;
    packet.destination_port = both as u16;
    Ok(())
}

#[inline(always)]
fn tcp<B: Bytes + ?Sized>(bytes: &B, at: u32, rest: u32, packet: &mut Packet) -> Result<(), Reason> {
    let word = bytes.u16(at + 12).ok_or(Reason::Truncated)?;
    packet.tcp_flags = word as u8 & 0x3f;
    let header = u32::from(word >> 12) * 4;
    if header < 20 || header > rest {
        return Err(if packet.is(Packet::FRAGMENT) { Reason::FragmentTiny } else { Reason::BadTransport });
    }
    // Combinations that TCP does not have: only a scanner sends them.
    match packet.tcp_flags & (SYN | ACK | FIN | RST) {
        SYN | ACK | RST => Ok(()),
        flags if flags == SYN | ACK || flags == RST | ACK || flags == FIN | ACK => Ok(()),
        _ => Err(Reason::BadTransport),
    }
}

#[inline(always)]
fn udp<B: Bytes + ?Sized>(bytes: &B, at: u32, rest: u32, packet: &mut Packet) -> Result<(), Reason> {
    let length = u32::from(bytes.u16(at + 4).ok_or(Reason::Truncated)?);
    let fragment = packet.is(Packet::FRAGMENT);
    // Of a fragmented datagram, the length is the whole one's.
    if (length < 8 && !(length == 0 && rest > 0xffff)) || (length > rest && !fragment) {
        return Err(Reason::BadTransport);
    }
    packet.essential = match (packet.family, packet.source_port, packet.destination_port) {
        (4, 68, 67) | (4, 67, 68) => Essential::Dhcpv4,
        (6, 546, 547) | (6, 547, 546) => Essential::Dhcpv6,
        _ => Essential::No,
    } as u8;
    Ok(())
}

#[inline(always)]
fn icmp<B: Bytes + ?Sized>(bytes: &B, at: u32, rest: u32, packet: &mut Packet) -> Result<(), Reason> {
    let word = bytes.u32(at).ok_or(Reason::Truncated)?;
    let (kind, code) = ((word >> 24) as u8, (word >> 16) as u8);
    let v6 = packet.family == 6;
    let mut service = Service::of(v6, kind, code);
    if service.query {
        if rest < 8 {
            return Err(Reason::BadTransport);
        }
        service.identifier = bytes.u16(at + 4).ok_or(Reason::Truncated)?;
    }
    (packet.source_port, packet.destination_port) = service.ports();
    if service.answer {
        packet.flags |= Packet::ICMP_ANSWER;
    }

    packet.essential = match (v6, kind) {
        (false, 3 | 11 | 12) | (true, 1..=4) => Essential::IcmpError,
        (false, 5) | (true, 137) => Essential::IcmpRedirect,
        (true, 133..=136) => Essential::NeighbourDiscovery,
        (true, 130..=132 | 143) => Essential::Mld,
        _ => Essential::No,
    } as u8;
    Ok(())
}

/// What stands for ports in ICMP.
pub(super) struct Service {
    service: u16,
    pub(super) identifier: u16,
    /// A question that has an answer, or that answer: there is an identifier.
    pub(super) query: bool,
    answer: bool,
}

impl Service {
    /// The identifier is still to be read where it is a query.
    #[inline(always)]
    pub(super) const fn of(v6: bool, kind: u8, code: u8) -> Self {
        let (question, query) = match (v6, kind) {
            (false, 8 | 13 | 15 | 17) | (true, 128 | 139) => (kind, true),
            (false, 0) => (8, true),
            (false, 14 | 16 | 18) | (true, 129 | 140) => (kind - 1, true),
            _ => (kind, false),
        };
        Self { service: (question as u16) << 8 | code as u16, identifier: 0, query, answer: query && question != kind }
    }

    /// Source port, destination port.
    #[inline(always)]
    pub(super) const fn ports(&self) -> (u16, u16) {
        if self.answer { (self.service, self.identifier) } else { (self.identifier, self.service) }
    }
}
