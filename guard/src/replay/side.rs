//! Which end of a captured packet is the host that the policy is for.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use guard_common::{Direction, packet::Packet};
use ipnet::IpNet;

use super::link::{LinkType, Mac, Way};

/// How it is told. In words: [`fmt::Display`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// By the addresses that the user named.
    Given(Vec<IpNet>),
    /// By what the capturing host wrote beside each packet.
    Cooked,
    /// By the Ethernet address of the most common IP address.
    Mac(Mac, IpAddr),
    /// By the most common address of each family.
    Common(Vec<IpAddr>),
    /// The capture has no packet that would tell.
    Unknown,
}

/// Which way a packet goes, seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    Goes(Direction),
    /// From the host to itself.
    StaysHere,
    /// Both ends are among the addresses of `--local`, and are not one.
    BothLocal,
    /// Neither end is the host.
    Foreign,
}

impl Side {
    #[must_use]
    pub fn course(&self, packet: &Packet, way: &Way) -> Course {
        let Some((source, destination)) = ends(packet) else { return self.below_ip(way) };
        if source == destination || (is_loopback(source) && is_loopback(destination)) {
            return Course::StaysHere;
        }
        match self {
            Self::Given(nets) => {
                let local = |address: IpAddr| nets.iter().any(|net| net.contains(&address));
                by_address(local, source, destination)
            }
            Self::Common(addresses) => by_address(|address| addresses.contains(&address), source, destination),
            Self::Cooked | Self::Mac(..) | Self::Unknown => self.below_ip(way),
        }
    }

    fn below_ip(&self, way: &Way) -> Course {
        match self {
            Self::Mac(mac, _) if way.source == Some(*mac) => Course::Goes(Direction::Outbound),
            Self::Mac(mac, _) if way.destination == Some(*mac) || to_group(way) => Course::Goes(Direction::Inbound),
            Self::Mac(..) => Course::Foreign,
            _ if way.other_host => Course::Foreign,
            _ if way.outgoing == Some(true) => Course::Goes(Direction::Outbound),
            _ => Course::Goes(Direction::Inbound),
        }
    }
}

fn by_address(local: impl Fn(IpAddr) -> bool, source: IpAddr, destination: IpAddr) -> Course {
    match (local(source), local(destination)) {
        (true, true) => Course::BothLocal,
        (true, false) => Course::Goes(Direction::Outbound),
        (false, true) => Course::Goes(Direction::Inbound),
        (false, false) if is_group(destination) => Course::Goes(Direction::Inbound),
        (false, false) => Course::Foreign,
    }
}

fn to_group(way: &Way) -> bool {
    way.destination.is_some_and(|mac| mac[0] & 1 != 0)
}

fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn is_loopback(address: IpAddr) -> bool {
    address.is_loopback()
}

/// `None` where the packet is not IP.
pub fn ends(packet: &Packet) -> Option<(IpAddr, IpAddr)> {
    match packet.family {
        4 => Some((IpAddr::V4(Ipv4Addr::from(packet.source[0])), IpAddr::V4(Ipv4Addr::from(packet.destination[0])))),
        6 => Some((v6(packet.source), v6(packet.destination))),
        _ => None,
    }
}

fn v6(words: [u32; 4]) -> IpAddr {
    Ipv6Addr::from(words.iter().fold(0u128, |number, word| number << 32 | u128::from(*word))).into()
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(nets) => {
                let nets: Vec<_> = nets.iter().map(ToString::to_string).collect();
                write!(f, "{}, as given", nets.join(", "))
            }
            Self::Cooked => f.write_str("whoever captured it (the packets say which it sent)"),
            Self::Mac([a, b, c, d, e, g], address) => write!(
                f,
                "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}, which sends as {address}, the most common address"
            ),
            Self::Common(addresses) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                write!(f, "{}, the most common address", addresses.join(" and "))
            }
            Self::Unknown => f.write_str("not known"),
        }
    }
}

/// Looks at the first packets of a capture, to find out.
#[derive(Debug, Default)]
pub struct Survey {
    seen: HashMap<IpAddr, Seen>,
    order: u64,
}

#[derive(Debug, Default)]
struct Seen {
    packets: u64,
    /// Position of the first packet that it sent; `None`: it sent none.
    sent: Option<u64>,
    mac: Option<Mac>,
}

impl Survey {
    pub fn note(&mut self, packet: &Packet, way: &Way) {
        let Some((source, destination)) = ends(packet) else { return };
        self.order += 1;
        let from = self.seen.entry(source).or_default();
        from.packets += 1;
        from.sent = from.sent.or(Some(self.order));
        from.mac = from.mac.or(way.source);
        if destination != source {
            self.seen.entry(destination).or_default().packets += 1;
        }
    }

    /// The address in most packets; of several in as many, a private one, then the one that sent first.
    fn most_common(&self, family: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let unicast = |address: &IpAddr| !is_group(*address) && !address.is_unspecified();
        self.seen
            .iter()
            .filter(|(address, _)| unicast(address) && family(address))
            .max_by_key(|(address, seen)| {
                let first = seen.sent.map_or(0, |order| u64::MAX - order);
                (seen.packets, is_private(**address), first, **address)
            })
            .map(|(address, _)| *address)
    }

    #[must_use]
    pub fn side(&self, link: LinkType) -> Side {
        if link.is_cooked() {
            return Side::Cooked;
        }
        let Some(address) = self.most_common(|_| true) else { return Side::Unknown };
        let mac = self.seen.get(&address).and_then(|seen| seen.mac);
        // One Ethernet address for both ends tells nothing (loopback, some tunnels).
        let shared = |mac: Mac| {
            mac == [0; 6]
                || self
                    .seen
                    .iter()
                    .any(|(other, seen)| *other != address && seen.mac == Some(mac) && both(address, *other))
        };
        match mac {
            Some(mac) if !shared(mac) => Side::Mac(mac, address),
            _ => Side::Common(
                [self.most_common(IpAddr::is_ipv4), self.most_common(IpAddr::is_ipv6)].into_iter().flatten().collect(),
            ),
        }
    }
}

/// Whether two addresses are one host's only if they are the same: it may have one of each family and of each scope.
fn both(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() && other.is_ipv4() && !other.is_unspecified()
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private() || address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_loopback() || address.is_unicast_link_local(),
    }
}
