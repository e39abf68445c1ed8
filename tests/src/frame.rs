//! Frames, read and made without guard's own parser: what a witness sees and what no ordinary program sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// TCP flags.
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// What a frame says, as far as it can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// After IPv6 extension headers.
    pub protocol: u8,
    /// ICMP: type and code.
    pub source_port: u16,
    pub destination_port: u16,
    pub tcp_flags: u8,
    /// In bytes; ports are unknown where it is not 0.
    pub fragment_offset: u16,
    pub payload: Vec<u8>,
}

impl Packet {
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        match u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?) {
            0x0800 => Self::parse_ipv4(frame.get(14..)?),
            0x86dd => Self::parse_ipv6(frame.get(14..)?),
            _ => None,
        }
    }

    fn parse_ipv4(packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 15) * 4;
        let address = |at: usize| Some(IpAddr::V4(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into()));
        let offset = (word(packet, 6)? & 0x1fff) * 8;
        let total = usize::from(word(packet, 2)?);
        // GRO and TSO frames larger than the field can say have 0 in it.
        let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
        Self::transport(address(12)?, address(16)?, *packet.get(9)?, offset, packet.get(header..end)?)
    }

    fn parse_ipv6(packet: &[u8]) -> Option<Self> {
        let address = |at: usize| Some(IpAddr::V6(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into()));
        let (mut next, mut at, mut offset) = (*packet.get(6)?, 40, 0);
        loop {
            match next {
                0 | 43 | 60 => {
                    let length = usize::from(*packet.get(at + 1)?) * 8 + 8;
                    next = *packet.get(at)?;
                    at += length;
                }
                44 => {
                    offset = word(packet, at + 2)? & 0xfff8;
                    next = *packet.get(at)?;
                    at += 8;
                    if offset != 0 {
                        break;
                    }
                }
                _ => break,
            }
        }
        Self::transport(address(8)?, address(24)?, next, offset, packet.get(at..)?)
    }

    fn transport(source: IpAddr, destination: IpAddr, protocol: u8, offset: u16, rest: &[u8]) -> Option<Self> {
        let mut packet = Self {
            source,
            destination,
            protocol,
            source_port: 0,
            destination_port: 0,
            tcp_flags: 0,
            fragment_offset: offset,
            payload: rest.to_vec(),
        };
        if offset != 0 {
            return Some(packet);
        }
        let header = match protocol {
            TCP => {
                packet.tcp_flags = *rest.get(13)?;
                usize::from(*rest.get(12)? >> 4) * 4
            }
            UDP => 8,
            ICMP | ICMPV6 => {
                packet.source_port = u16::from(*rest.first()?);
                packet.destination_port = u16::from(*rest.get(1)?);
                packet.payload = rest.get(4..)?.to_vec();
                return Some(packet);
            }
            _ => return Some(packet),
        };
        packet.source_port = word(rest, 0)?;
        packet.destination_port = word(rest, 2)?;
        packet.payload = rest.get(header..).unwrap_or_default().to_vec();
        Some(packet)
    }

    /// Whether it is of this protocol between these two, in either direction, `port` being on the side of `b`.
    #[must_use]
    pub fn between(&self, protocol: u8, a: IpAddr, b: IpAddr, port: u16) -> bool {
        self.protocol == protocol
            && ((self.source == a && self.destination == b && self.destination_port == port)
                || (self.source == b && self.destination == a && self.source_port == port))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// An Ethernet frame.
#[must_use]
pub fn ethernet(to: [u8; 6], from: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ether_type.to_be_bytes(), payload].concat()
}

/// An Ethernet frame with the IP packet in it; its family is told from its version.
#[must_use]
pub fn ethernet_ip(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet.first().is_some_and(|first| first >> 4 == 6) { 0x86dd } else { 0x0800 };
    ethernet(to, from, ether_type, packet)
}

/// An IP packet of either family (both addresses must be of one). The payload's checksum is the caller's affair.
#[must_use]
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ipv4(source, destination, protocol, &Ipv4Fields::default(), payload)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination, protocol, 64, payload),
        _ => panic!("{source} and {destination} are not of one family"),
    }
}

/// What may differ in an IPv4 header.
#[derive(Clone, Debug)]
pub struct Ipv4Fields {
    pub id: u16,
    /// Flags in the upper three bits, offset in units of eight bytes below.
    pub fragment: u16,
    pub ttl: u8,
    /// Padded to four bytes by the caller.
    pub options: Vec<u8>,
}

impl Default for Ipv4Fields {
    fn default() -> Self {
        Self { id: 1, fragment: 0, ttl: 64, options: Vec::new() }
    }
}

#[must_use]
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, fields: &Ipv4Fields, payload: &[u8]) -> Vec<u8> {
    let header = 20 + fields.options.len();
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend(fields.id.to_be_bytes());
    packet.extend(fields.fragment.to_be_bytes());
    packet.extend([fields.ttl, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(&fields.options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// `next`: next header of `payload`, which may begin with extension headers.
#[must_use]
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hop_limit]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// A UDP datagram with its checksum.
#[must_use]
pub fn udp(source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let sum = transport_checksum(source.0, destination.0, UDP, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// A TCP segment without options, with its checksum.
#[must_use]
pub fn tcp(
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    let sum = transport_checksum(source.0, destination.0, TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// An ICMP or ICMPv6 message with its checksum: `rest` is what follows type, code and checksum.
#[must_use]
pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], rest].concat();
    let sum =
        if source.is_ipv4() { checksum(&message) } else { transport_checksum(source, destination, ICMPV6, &message) };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// Over the pseudo header too (RFC 768, RFC 9293, RFC 8200 section 8.1).
#[must_use]
pub fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let mut all = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => all.extend(address.octets()),
            IpAddr::V6(address) => all.extend(address.octets()),
        }
    }
    all.extend((payload.len() as u32).to_be_bytes());
    all.extend([0, 0, 0, protocol]);
    all.extend(payload);
    match checksum(&all) {
        0 => 0xffff,
        sum => sum,
    }
}

/// RFC 1071.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read() {
        for (a, b) in [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8::2")] {
            let (a, b): (IpAddr, IpAddr) = (a.parse().unwrap(), b.parse().unwrap());
            let frame = ethernet_ip([0; 6], [0; 6], &ip(a, b, UDP, &udp((a, 5000), (b, 53), b"hello")));
            let packet = Packet::parse(&frame).unwrap();
            assert_eq!((packet.source, packet.destination, packet.protocol), (a, b, UDP));
            assert_eq!((packet.source_port, packet.destination_port), (5000, 53));
            assert_eq!(packet.payload, b"hello");
            assert!(packet.between(UDP, a, b, 53) && packet.between(UDP, b, a, 5000) && !packet.between(UDP, b, a, 53));
        }
    }

    #[test]
    fn checksums_are_right() {
        // A packet whose checksum is in it sums to zero.
        let packet = ip("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap(), TCP, &[]);
        assert_eq!(checksum(&packet), 0);
    }
}
