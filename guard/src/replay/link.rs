//! What stands before the network header in a capture, by its link type.

use guard_common::packet::{self, Bytes, Link, Packet};
use pcap::Linktype;

/// Link types that captures of a host have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    Ethernet,
    /// Linux cooked, version 1: `tcpdump -i any` for long.
    Cooked,
    /// Version 2.
    Cooked2,
    /// IPv4 or IPv6 from the first byte.
    Raw,
    /// BSD loopback: the address family in 4 bytes.
    Loopback,
}

impl LinkType {
    /// Numbers: <https://www.tcpdump.org/linktypes.html>, and what some systems use for raw IP in their files.
    #[must_use]
    pub const fn new(number: Linktype) -> Option<Self> {
        match number.0 {
            1 => Some(Self::Ethernet),
            113 => Some(Self::Cooked),
            276 => Some(Self::Cooked2),
            12 | 14 | 101 | 228 | 229 => Some(Self::Raw),
            0 | 108 => Some(Self::Loopback),
            _ => None,
        }
    }

    #[must_use]
    pub const fn is_cooked(self) -> bool {
        matches!(self, Self::Cooked | Self::Cooked2)
    }
}

pub type Mac = [u8; 6];

/// What a frame says of its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Cooked captures: `Some(true)` if this host sent it.
    pub outgoing: Option<bool>,
    /// Cooked captures: seen, but for somebody else.
    pub other_host: bool,
    pub source: Option<Mac>,
    pub destination: Option<Mac>,
}

/// Reads a captured frame. `length`: of the whole frame, as it was on the wire.
#[inline]
pub fn read(kind: LinkType, data: &[u8], length: u32, packet: &mut Packet) -> Way {
    match kind {
        LinkType::Ethernet => {
            packet::parse(data, Link::Ethernet, length, packet);
            Way { source: mac(data, 6), destination: mac(data, 0), ..Way::default() }
        }
        LinkType::Raw => {
            packet::parse(data, Link::None, length, packet);
            Way::default()
        }
        LinkType::Loopback => {
            packet::parse(data.get(4..).unwrap_or_default(), Link::None, length.saturating_sub(4), packet);
            Way::default()
        }
        // Type of packet, of device, length of address, address, protocol.
        LinkType::Cooked => {
            cooked(data, length, Cooked { header: 16, protocol: 14, packet_type: 1, address: 6 }, packet)
        }
        // Protocol, interface, type of device, of packet, length of address, address.
        LinkType::Cooked2 => {
            cooked(data, length, Cooked { header: 20, protocol: 0, packet_type: 10, address: 12 }, packet)
        }
    }
}

/// Offsets of a cooked header's fields.
struct Cooked {
    header: usize,
    protocol: usize,
    packet_type: usize,
    address: usize,
}

fn cooked(data: &[u8], length: u32, offsets: Cooked, packet: &mut Packet) -> Way {
    let mut header = [0; ETHERNET];
    let source = mac(data, offsets.address);
    header[6..12].copy_from_slice(&source.unwrap_or_default());
    if let Some(protocol) = data.get(offsets.protocol..offsets.protocol + 2) {
        header[12..].copy_from_slice(protocol);
    }
    let payload = data.get(offsets.header..).unwrap_or_default();
    let length = (length + ETHERNET as u32).saturating_sub(offsets.header as u32);
    packet::parse(&Framed { header, payload }, Link::Ethernet, length, packet);
    let kind = data.get(offsets.packet_type).copied().unwrap_or(0);
    Way { outgoing: Some(kind == 4), other_host: kind == 3, source, destination: None }
}

const ETHERNET: usize = 14;

/// A payload behind an Ethernet header that its capture had not kept.
struct Framed<'a> {
    header: [u8; ETHERNET],
    payload: &'a [u8],
}

impl Framed<'_> {
    fn at(&self, at: u32) -> Option<u8> {
        let at = at as usize;
        self.header.get(at).or_else(|| self.payload.get(at - ETHERNET)).copied()
    }
}

impl Bytes for Framed<'_> {
    fn u8(&self, at: u32) -> Option<u8> {
        self.at(at)
    }

    fn u16(&self, at: u32) -> Option<u16> {
        match (at as usize).checked_sub(ETHERNET) {
            Some(at) => self.payload.u16(at as u32),
            None => Some(u16::from_be_bytes([self.at(at)?, self.at(at + 1)?])),
        }
    }

    fn u32(&self, at: u32) -> Option<u32> {
        match (at as usize).checked_sub(ETHERNET) {
            Some(at) => self.payload.u32(at as u32),
            None => Some(u32::from_be_bytes([self.at(at)?, self.at(at + 1)?, self.at(at + 2)?, self.at(at + 3)?])),
        }
    }
}

fn mac(data: &[u8], at: usize) -> Option<Mac> {
    data.get(at..)?.first_chunk().copied()
}
