//! The packet that an ICMP error quotes: enough of it to find its flow.

use super::{
    Bytes, Packet, ipv6,
    transport::{ICMP, ICMPV6, SCTP, Service, TCP, UDP, UDP_LITE},
};

/// The error's own header.
const ERROR: u32 = 8;
/// The longest that an error may be, from its own header on: 576 (RFC 1812 section 4.3.2.3) and 1,280 (RFC 4443 section
/// 2.4) bytes less the network headers.
const LONGEST_V4: u32 = 576 - 20;
const LONGEST_V6: u32 = 1280 - 40;

/// `None`: no packet that could be found.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B, at: u32, rest: u32, packet: &mut Packet) -> Option<()> {
    let inner = at + ERROR;
    let (transport, protocol) = if packet.family == 4 {
        if !(ERROR + 28..=LONGEST_V4).contains(&rest) {
            return None;
        }
        ipv4(bytes, inner, packet)?
    } else {
        if !(ERROR + 48..=LONGEST_V6).contains(&rest) {
            return None;
        }
        ipv6(bytes, inner, packet)?
    };
    if bytes.forget(transport) + 8 > at + rest {
        return None;
    }
    packet.quoted.protocol = protocol;
    let (source_port, destination_port) = match protocol {
        TCP | UDP | UDP_LITE | SCTP => {
            let both = bytes.u32(transport)?;
            ((both >> 16) as u16, both as u16)
        }
        ICMP | ICMPV6 => {
            let word = bytes.u16(transport)?;
            let mut service = Service::of(protocol == ICMPV6, (word >> 8) as u8, word as u8);
            if service.query {
                service.identifier = bytes.u16(transport + 4)?;
            }
            service.ports()
        }
        _ => (0, 0),
    };
    packet.quoted.source_port = source_port;
    packet.quoted.destination_port = destination_port;
    Some(())
}

#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(bytes: &B, at: u32, packet: &mut Packet) -> Option<(u32, u8)> {
    let first = bytes.u8(at)?;
    let header = u32::from(first & 0xf) * 4;
    // Of a later fragment nobody knows the ports.
    if first >> 4 != 4 || header < 20 || bytes.u16(at + 6)? & 0x1fff != 0 {
        return None;
    }
    packet.quoted.source[0] = bytes.u32(at + 12)?;
    packet.quoted.destination[0] = bytes.u32(at + 16)?;
    Some((at + header, bytes.u8(at + 9)?))
}

#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(bytes: &B, at: u32, packet: &mut Packet) -> Option<(u32, u8)> {
    if bytes.u8(at)? >> 4 != 6 {
        return None;
    }
    packet.quoted.source = ipv6::address(bytes, at + 8)?;
    packet.quoted.destination = ipv6::address(bytes, at + 24)?;
    let mut next = bytes.u8(at + 6)?;
    let mut transport = at + 40;
    // What a host itself puts before the transport header when it sends: options, and a fragment header.
    for _ in 0..2 {
        let word = bytes.u32(transport)?;
        transport += match next {
            ipv6::HOP_BY_HOP | ipv6::DESTINATION_OPTIONS => ((word >> 16 & 0xff) + 1) * 8,
            ipv6::FRAGMENT if word & 0xfff8 == 0 => 8,
            ipv6::FRAGMENT => return None,
            _ => break,
        };
        next = (word >> 24) as u8;
    }
    Some((transport, next))
}
