//! Conversations between two ends: what each says next, mostly in the order in which it should be.

use std::net::IpAddr;

use guard_common::Direction;

use super::{
    forms::{Inner, Way},
    packet::{Body, Quoted},
};
use crate::{
    frame::{self, ACK, FIN, RST, SYN},
    generate::Random,
};

#[derive(Clone, Debug)]
pub struct Talk {
    pub began: Direction,
    pub device: usize,
    pub remote: IpAddr,
    pub local: IpAddr,
    pub protocol: u8,
    pub kind: Kind,
    /// The asked side's port, or the service of ICMP.
    pub asked: u16,
    /// The asking side's port, or the identifier.
    pub asking: u16,
    pub stage: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Ports,
    Query,
    Message,
    Plain,
}

/// A connection, packet by packet: from who began it?
const SCRIPT: [(bool, u8); 10] = [
    (true, SYN),
    (false, SYN | ACK),
    (true, ACK),
    (true, ACK | 8),
    (false, ACK),
    (false, ACK | 8),
    (true, FIN | ACK),
    (false, ACK),
    (false, FIN | ACK),
    (true, ACK),
];

impl Talk {
    /// Whose turn it is, and for TCP with which flags.
    pub fn next(&mut self, random: &mut Random) -> (bool, u8) {
        let flags = [SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK, ACK | 0x28];
        match self.kind {
            Kind::Tcp if random.percent(75) => {
                let next = SCRIPT[self.stage % SCRIPT.len()];
                self.stage += 1;
                next
            }
            Kind::Tcp => (random.percent(50), *random.of(&flags)),
            Kind::Message => (!random.percent(15), 0),
            _ => {
                self.stage += 1;
                (if self.stage == 1 { !random.percent(15) } else { random.percent(50) }, 0)
            }
        }
    }

    #[must_use]
    pub fn way(&self, original: bool) -> Way {
        let direction = if original { self.began } else { self.began.opposite() };
        let (from, to) = match direction {
            Direction::Inbound => (self.remote, self.local),
            Direction::Outbound => (self.local, self.remote),
        };
        Way { direction, device: self.device, from, to }
    }

    /// As flows have them.
    #[must_use]
    pub const fn ports(&self, original: bool) -> (u16, u16) {
        match (self.kind, original) {
            (Kind::Plain, _) => (0, 0),
            (Kind::Message, _) => (0, self.asked),
            (_, true) => (self.asking, self.asked),
            (_, false) => (self.asked, self.asking),
        }
    }

    pub fn inner(&self, random: &mut Random, original: bool, flags: u8) -> Inner {
        let way = self.way(original);
        let ports = self.ports(original);
        let payload = vec![0x61; random.below(40)];
        let (from, to) = ((way.from, ports.0), (way.to, ports.1));
        let (body, bytes) = match self.kind {
            Kind::Tcp => {
                // ECN's two flags and the like mean nothing here.
                let wire = flags | if random.percent(10) { 0xc0 } else { 0 };
                (Body::Tcp(flags), frame::tcp(from, to, wire, 1, 1, &payload))
            }
            Kind::Ports if self.protocol == 17 => (Body::Plain, frame::udp(from, to, &payload)),
            Kind::Ports => {
                let header = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
                (Body::Plain, [header, vec![0; 8], payload].concat())
            }
            Kind::Plain => (Body::Plain, [vec![0x77; 16], payload].concat()),
            Kind::Message => {
                let rest = [vec![0; 4], payload].concat();
                (Body::Plain, frame::icmp(way.from, way.to, (self.asked >> 8) as u8, self.asked as u8, &rest))
            }
            Kind::Query => {
                let kind = (self.asked >> 8) as u8;
                let kind = if original { kind } else { answer(way.from.is_ipv4(), kind) };
                let rest = [self.asking.to_be_bytes().to_vec(), vec![0, 1], payload].concat();
                let body = if original { Body::Question } else { Body::Answer };
                (body, frame::icmp(way.from, way.to, kind, self.asked as u8, &rest))
            }
        };
        Inner { protocol: self.protocol, ports, body, bytes, hop_limit: 64 }
    }

    /// One of its packets, as an error would quote it; without protocols that mean another thing in the other family.
    #[must_use]
    pub fn quoted(&self, original: bool) -> Option<Quoted> {
        let way = self.way(original);
        if self.kind == Kind::Plain && matches!(self.protocol, 1 | 58) {
            return None;
        }
        Some(Quoted { source: way.from, destination: way.to, protocol: self.protocol, ports: self.ports(original) })
    }
}

/// Types that are answered.
#[must_use]
pub const fn is_question(ipv4: bool, kind: u8) -> bool {
    if ipv4 { matches!(kind, 8 | 13 | 15 | 17) } else { matches!(kind, 128 | 139) }
}

/// Types with a meaning of their own: answers, errors, redirects, neighbour discovery, listeners.
#[must_use]
pub const fn is_special(ipv4: bool, kind: u8) -> bool {
    if ipv4 {
        matches!(kind, 0 | 3 | 5 | 11 | 12 | 14 | 16 | 18)
    } else {
        matches!(kind, 1..=4 | 129 | 130..=137 | 140 | 143)
    }
}

const fn answer(ipv4: bool, question: u8) -> u8 {
    if ipv4 && question == 8 { 0 } else { question + 1 }
}
