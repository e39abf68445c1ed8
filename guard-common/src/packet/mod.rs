//! Bytes to a [`Packet`]: what the judge needs to know of a frame, and nothing else looks at bytes.
//!
//! The way: [`bytes`] → [`ethernet`] → [`ipv4`] or [`ipv6`] → [`transport`], and for essential traffic its exact form
//! ([`essential`]: [`link_local`], [`dhcp`]), for ICMP errors the packet that they quote ([`quoted`]).
//!
//! The result is written to one place, which the kernel keeps in a per-CPU map: a program parses, gets that map's element
//! again and judges what it reads there. So all ways of parsing are one way from there on, to the verifier too.

pub mod bytes;
pub mod dhcp;
pub mod essential;
pub mod ethernet;
pub mod ipv4;
pub mod ipv6;
pub mod link_local;
pub mod plain;
pub mod quoted;
pub mod transport;

#[cfg(test)]
mod tests;

pub use bytes::Bytes;
pub use plain::Plain;

use crate::Reason;

/// What stands before the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header at offset 0; the frame's own type decides, never what the sender said of it (`skb->protocol`).
    Ethernet,
    /// Nothing (tun, WireGuard, GRE): the version nibble decides.
    None,
}

/// One packet. Numbers in host order; an IPv4 address is the first word of its field, and the other words are left as
/// they were. What a field means where its reader's condition does not hold is not defined: nothing is cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    /// The packet that an ICMP error quotes ([`Essential::IcmpError`], well-formed).
    pub quoted: Quoted,
    /// Neighbour discovery: the target address (135, 136).
    pub target: [u32; 4],
    /// IPv4: 16 bits. Of a [`Packet::FRAGMENT`].
    pub fragment_id: u32,
    /// DHCP: the transaction.
    pub transaction: u32,
    /// Bytes from the transport header to the network layer's end.
    pub transport_bytes: u32,
    /// Offsets in the frame. `transport_at` is 0 where there is no transport header.
    pub network_at: u16,
    pub transport_at: u16,
    /// For ICMP see [`crate::abi::FlowKeyV4`]. 0 for protocols without ports, and in a later fragment.
    pub source_port: u16,
    pub destination_port: u16,
    /// Ethernet's, the innermost; below 0x600: an LLC frame's length.
    pub ether_type: u16,
    /// [`Packet::FRAGMENT`] and others.
    pub flags: u16,
    /// 4, 6, or 0: neither.
    pub family: u8,
    /// The upper layer's; IPv6: after all extension headers. In a later fragment what its header says.
    pub protocol: u8,
    /// The [`Reason`] why it cannot be judged by a policy; [`Packet::NOT_REFUSED`].
    pub refused: u8,
    /// [`Essential`].
    pub essential: u8,
    /// TCP flags without the two of ECN.
    pub tcp_flags: u8,
    pub hop_limit: u8,
    /// Next header of IPv6's fragment header; IPv4: the protocol.
    pub fragment_protocol: u8,
    /// DHCPv4: 1 to the server, 2 to the client. DHCPv6 and ICMPv6: the message's type. ARP: 1 where something follows.
    pub message: u8,
}

/// Ends of a quoted packet, as its own header has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Quoted {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    pub reserved: [u8; 3],
}

impl Packet {
    /// More fragments follow, or it is a later one (IPv4: mask 0x3fff).
    pub const FRAGMENT: u16 = 1;
    /// Not the first fragment: there is no transport header.
    pub const LATER: u16 = 1 << 1;
    /// An ICMP query's answer; the ports are those of the question.
    pub const ICMP_ANSWER: u16 = 1 << 2;
    /// Essential traffic in exactly the form that its protocol has: lengths, options, hop limit.
    pub const WELL_FORMED: u16 = 1 << 3;
    /// The frame's destination is one of the groups that its protocol uses (EAPOL, LACP, STP, LLDP).
    pub const TO_GROUP: u16 = 1 << 4;

    pub const NOT_REFUSED: u8 = u8::MAX;

    #[must_use]
    #[inline(always)]
    pub const fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether [`parse_essential`] has something to look at.
    #[must_use]
    #[inline(always)]
    pub const fn needs_second_look(&self) -> bool {
        self.essential != Essential::No as u8 && self.transport_at != 0 && self.refused == Self::NOT_REFUSED
    }

    /// Why it cannot be judged by a policy.
    #[must_use]
    #[inline(always)]
    pub const fn refused(&self) -> Option<Reason> {
        if self.refused == Self::NOT_REFUSED {
            None
        } else {
            match Reason::from_u8(self.refused) {
                Some(reason) => Some(reason),
                None => Some(Reason::TableFault),
            }
        }
    }
}

/// Kinds of traffic that may be essential (or, as redirects, never pass).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Essential {
    No = 0,
    Arp = 1,
    Eapol = 2,
    Lacp = 3,
    Stp = 4,
    Lldp = 5,
    Macsec = 6,
    Pppoe = 7,
    NeighbourDiscovery = 8,
    Mld = 9,
    Dhcpv4 = 10,
    Dhcpv6 = 11,
    IcmpError = 12,
    IcmpRedirect = 13,
}

/// Reads a frame. `length` is the whole frame's, as on the wire (an skb's `len`): bytes may be missing at the end of
/// `bytes`, and are then asked for in vain, which refuses as [`Reason::Truncated`].
///
/// Frames that are neither IPv4 nor IPv6 leave `family` 0, and `essential` says what they may be.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B, link: Link, length: u32, packet: &mut Packet) {
    parse_headers(bytes, link, length, packet);
    if packet.needs_second_look() {
        parse_essential(bytes, packet);
    }
}

/// The first half of [`parse`]: the headers. In the kernel each half is a function of its own, which the verifier walks
/// once (together, and from every way of coming to them, they were 710,951 instructions to it; apart, 135,250).
#[inline(always)]
pub fn parse_headers<B: Bytes + ?Sized>(bytes: &B, link: Link, length: u32, packet: &mut Packet) {
    // LLVM would make one slow call to `memset` of a known zero.
    let zero = bytes.forget(0) as u16;
    packet.family = zero as u8;
    packet.protocol = zero as u8;
    packet.flags = zero;
    packet.essential = zero as u8;
    packet.ether_type = zero;
    packet.transport_at = zero;
    packet.transport_bytes = zero.into();
    packet.source_port = zero;
    packet.destination_port = zero;
    packet.tcp_flags = zero as u8;
    packet.network_at = zero;
    packet.refused = match frame(bytes, link, length, packet) {
        Ok(()) => Packet::NOT_REFUSED,
        Err(reason) => reason as u8,
    };
}

/// The second half, where [`Packet::needs_second_look`]: whether essential traffic has exactly the form that its protocol
/// has ([`Packet::WELL_FORMED`]).
#[inline(always)]
pub fn parse_essential<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) {
    if essential::is_well_formed(bytes, packet) {
        packet.flags |= Packet::WELL_FORMED;
    }
}

#[inline(always)]
fn frame<B: Bytes + ?Sized>(bytes: &B, link: Link, length: u32, packet: &mut Packet) -> Result<(), Reason> {
    let network = match link {
        Link::Ethernet => ethernet::parse(bytes, length, packet)?,
        Link::None => match bytes.u8(0).ok_or(Reason::Truncated)? >> 4 {
            4 => Some((4, 0)),
            6 => Some((6, 0)),
            _ => return Err(Reason::EtherType),
        },
    };
    let transport = match network {
        Some((4, at)) => ipv4::parse(bytes, bytes.forget(at), length, packet)?,
        Some((_, at)) => ipv6::parse(bytes, bytes.forget(at), length, packet)?,
        None => None,
    };
    // One place for all ways that lead to a transport header, so that the verifier walks it once.
    match transport {
        Some((at, rest)) => transport::parse(bytes, bytes.forget(at), bytes.forget(rest), packet),
        None => Ok(()),
    }
}
