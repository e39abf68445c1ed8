//! The plain packet, which nearly every packet is: IPv4 without options or IPv6 without extension headers, no fragment,
//! and in it UDP, or TCP that neither opens nor ends anything. Read at fixed offsets, it costs a fraction of
//! [`super::parse`], and says the same (`packet/tests.rs` compares the two): what is not plain, or not whole, is left to
//! that.

use super::{
    Bytes, Essential, Link, Packet,
    transport::{ACK, FIN, RST, SYN, TCP, UDP},
};

/// What the judge's short way needs to know. Numbers in host order; an IPv4 address is the first word, and the others
/// are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub source_port: u16,
    pub destination_port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
}

/// Bytes of the longest headers that are looked at, from the network header on.
pub const LONGEST_V4: usize = 20 + TCP_BYTES as usize;
pub const LONGEST_V6: usize = 40 + TCP_BYTES as usize;

const TCP_BYTES: u32 = 20;
const UDP_BYTES: u32 = 8;

/// Family and offset of the network header.
#[inline(always)]
pub fn network<B: Bytes + ?Sized>(bytes: &B, link: Link) -> Option<(u8, u32)> {
    match link {
        Link::Ethernet => match bytes.u16(12)? {
            super::ethernet::IPV4 => Some((4, 14)),
            super::ethernet::IPV6 => Some((6, 14)),
            _ => None,
        },
        Link::None => match bytes.u8(0)? >> 4 {
            family @ (4 | 6) => Some((family, 0)),
            _ => None,
        },
    }
}

/// With the length of all headers together, the link's too. `length`: of the whole frame. So below.
#[inline(always)]
pub fn v4<B: Bytes + ?Sized>(bytes: &B, at: u32, length: u32) -> Option<(Plain, u32)> {
    const DONT_FRAGMENT: u32 = 0x4000;
    let first = bytes.u32(at)?;
    let total = first & 0xffff;
    let fragment = bytes.u32(at + 4)? & 0xffff;
    // Version 4, and a header of five words.
    if first >> 24 != 0x45 || total < 20 || at + total > length || fragment & !DONT_FRAGMENT != 0 {
        return None;
    }
    let protocol = (bytes.u32(at + 8)? >> 16) as u8;
    let ends = ([bytes.u32(at + 12)?, 0, 0, 0], [bytes.u32(at + 16)?, 0, 0, 0]);
    above(bytes, at + 20, total - 20, protocol, ends, (68, 67))
}

#[inline(always)]
pub fn v6<B: Bytes + ?Sized>(bytes: &B, at: u32, length: u32) -> Option<(Plain, u32)> {
    let second = bytes.u32(at + 4)?;
    let payload = second >> 16;
    if bytes.u8(at)? >> 4 != 6 || at + 40 + payload > length {
        return None;
    }
    let ends = (super::ipv6::address(bytes, at + 8)?, super::ipv6::address(bytes, at + 24)?);
    above(bytes, at + 40, payload, (second >> 8) as u8, ends, (546, 547))
}

/// `dhcp`: the ports of a client and a server.
#[inline(always)]
fn above<B: Bytes + ?Sized>(
    bytes: &B,
    at: u32,
    rest: u32,
    protocol: u8,
    (source, destination): ([u32; 4], [u32; 4]),
    dhcp: (u16, u16),
) -> Option<(Plain, u32)> {
    let ports = bytes.u32(at)?;
    let (source_port, destination_port) = ((ports >> 16) as u16, ports as u16);
    let headers = match protocol {
        TCP => {
            let word = bytes.u16(at + 12)?;
            let header = u32::from(word >> 12) * 4;
            if header < TCP_BYTES || header > rest || !goes_on(word as u8) {
                return None;
            }
            header
        }
        UDP => {
            let length = u32::from(bytes.u16(at + 4)?);
            if length < UDP_BYTES || length > rest {
                return None;
            }
            let (client, server) = dhcp;
            if (source_port == client && destination_port == server)
                || (source_port == server && destination_port == client)
            {
                return None;
            }
            UDP_BYTES
        }
        _ => return None,
    };
    Some((Plain { source, destination, source_port, destination_port, protocol }, at + headers))
}

/// Neither opens nor ends a connection; and of TCP at all, which a packet without any of these flags is not.
#[inline(always)]
const fn goes_on(tcp_flags: u8) -> bool {
    tcp_flags & (SYN | ACK | FIN | RST) == ACK
}

impl Packet {
    /// The same of a packet that was parsed in full, whatever stood before and in its network header.
    #[must_use]
    #[inline(always)]
    pub const fn plain(&self) -> Option<Plain> {
        match self.protocol {
            TCP if goes_on(self.tcp_flags) => {}
            UDP => {}
            _ => return None,
        }
        if self.refused != Self::NOT_REFUSED || self.is(Self::FRAGMENT) || self.essential != Essential::No as u8 {
            return None;
        }
        let (source, destination) = match self.family {
            4 => ([self.source[0], 0, 0, 0], [self.destination[0], 0, 0, 0]),
            6 => (self.source, self.destination),
            _ => return None,
        };
        Some(Plain {
            source,
            destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: self.protocol,
        })
    }
}
