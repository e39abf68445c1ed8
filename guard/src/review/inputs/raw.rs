//! A flow as logs tell it: who began it, towards whom; which end is ours is found out later.

use std::{net::IpAddr, sync::Arc};

use guard_common::Direction;

use super::super::{
    group::Remote,
    observed::{Fate, Observed},
};
use crate::record::{
    flow::{ICMP, ICMPV6, Key, TCP, has_ports},
    who::Who,
};

/// What is told as reason where the asked end refused the connection.
pub const REFUSED: &str = "refused";

#[derive(Clone, Debug)]
pub struct Raw {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Of protocols with ports.
    pub source_port: u16,
    pub destination_port: u16,
    /// Type and code, of ICMP.
    pub icmp: Option<(u8, u8)>,
    /// Unix time in microseconds.
    pub first: i64,
    pub last: i64,
    /// `[from the source, from the destination]`.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    pub refused: bool,
    /// As told; `None`: to be found out.
    pub direction: Option<Direction>,
    pub fate: Fate,
    pub rule: Option<Arc<str>>,
    pub reason: Arc<str>,
    pub host: Arc<str>,
    pub interface: Option<Arc<str>>,
    pub generation: u32,
    pub adopted: bool,
    pub machine: Arc<str>,
    /// As told; `None`: by what was answered.
    pub listening: Option<bool>,
    pub who: Option<Arc<Who>>,
    pub names: Vec<Arc<str>>,
    pub flow_id: Option<u64>,
    pub head: Vec<u8>,
}

impl Raw {
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self {
            source: source.to_canonical(),
            destination: destination.to_canonical(),
            // Logs name ICMP of both families alike.
            protocol: if protocol == ICMP && source.to_canonical().is_ipv6() { ICMPV6 } else { protocol },
            source_port: 0,
            destination_port: 0,
            icmp: None,
            first: 0,
            last: 0,
            packets: [0; 2],
            bytes: [0; 2],
            refused: false,
            direction: None,
            fate: Fate::Seen,
            rule: None,
            reason: "".into(),
            host: "".into(),
            interface: None,
            generation: 0,
            adopted: false,
            machine: "".into(),
            listening: None,
            who: None,
            names: Vec::new(),
            flow_id: None,
            head: Vec::new(),
        }
    }

    pub const fn is_icmp(&self) -> bool {
        matches!(self.protocol, ICMP | ICMPV6)
    }

    pub fn has_ports(&self) -> bool {
        has_ports(self.protocol)
    }

    /// A connection that got nothing but a reset without data: all of its packets are bare headers.
    pub fn is_bare_reset(&self) -> bool {
        let header = if self.source.is_ipv4() { 40 } else { 60 };
        self.protocol == TCP && self.packets[1] > 0 && self.packets[1].checked_mul(header) == Some(self.bytes[1])
    }

    /// Seen from our side. `None`: the addresses are of two families.
    pub fn observed(self, direction: Direction) -> Option<Observed> {
        let (remote, local) = match direction {
            Direction::Inbound => (self.source, self.destination),
            Direction::Outbound => (self.destination, self.source),
        };
        let (mut source_port, mut destination_port) = (self.source_port, self.destination_port);
        if let Some((kind, code)) = self.icmp {
            (source_port, destination_port) = (0, u16::from_be_bytes([kind, code]));
        } else if !self.has_ports() {
            (source_port, destination_port) = (0, 0);
        }
        let (remote_port, local_port, ours, theirs) = match direction {
            Direction::Inbound => (source_port, destination_port, 1, 0),
            Direction::Outbound => (destination_port, source_port, 0, 1),
        };
        let key = Key::new(self.protocol, remote, remote_port, local, local_port, 0)?;
        let inbound = direction == Direction::Inbound;
        let answered = self.packets[1] > 0;
        let listening = self.listening.or(match (inbound, self.protocol) {
            // guard's own says it, or does not know.
            (true, TCP) if answered && self.machine.is_empty() => Some(!self.refused),
            _ => None,
        });
        let boot_like = u64::try_from(self.first).unwrap_or(0).saturating_mul(1000);
        Some(Observed {
            flow_id: self.flow_id.unwrap_or_else(|| key.flow_id(boot_like)),
            host: self.host,
            machine: self.machine,
            first: self.first,
            last: self.last.max(self.first),
            direction,
            key,
            interface: self.interface,
            fate: self.fate,
            rule: self.rule,
            reason: if self.refused { REFUSED.into() } else { self.reason },
            generation: self.generation,
            packets: [self.packets[theirs], self.packets[ours]],
            bytes: [self.bytes[theirs], self.bytes[ours]],
            answered,
            adopted: self.adopted,
            listening,
            who: self.who,
            names: self.names,
            remote_group: Remote::network_of(remote),
            head: self.head,
        })
    }
}

/// IP protocol by the name or number that logs give it.
pub fn protocol(text: &str) -> Option<u8> {
    Some(match text.to_ascii_lowercase().as_str() {
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        "ipv6-icmp" | "icmpv6" | "icmp6" => 58,
        "sctp" => 132,
        "gre" => 47,
        "esp" => 50,
        "ah" => 51,
        "igmp" => 2,
        "ospf" => 89,
        "dccp" => 33,
        "udplite" => 136,
        other => return other.strip_prefix("proto/").unwrap_or(other).parse().ok(),
    })
}

/// Seconds since 1970 with a fraction, to microseconds.
pub fn micros(seconds: f64) -> Option<i64> {
    // Beyond the year 9999 it is no time.
    (seconds.is_finite() && (0.0..253_402_300_800.0).contains(&seconds)).then(|| (seconds * 1e6).round() as i64)
}

/// `2026-01-02T03:04:05.678901+0000`, or RFC 3339.
pub fn timestamp(text: &str) -> Option<i64> {
    if text.len() > 64 {
        return None;
    }
    let time = jiff::Timestamp::strptime("%Y-%m-%dT%H:%M:%S%.f%z", text).ok().or_else(|| text.parse().ok())?;
    Some(time.as_microsecond())
}

/// Of which protocols the asked end's answer by a reset can be told.
pub const fn is_tcp(protocol: u8) -> bool {
    protocol == TCP
}
