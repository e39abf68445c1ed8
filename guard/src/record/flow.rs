//! A flow's key as people and other tools read it: who began it, towards whom.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use guard_common::{
    Direction,
    abi::{FlowKeyV4, FlowKeyV6},
};

use super::community_id::community_id;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// 2^20 ns, about a millisecond.
const BUCKET_BITS: u32 = 20;

/// The key of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    V4(FlowKeyV4),
    V6(FlowKeyV6),
}

impl Key {
    /// As an event carries it: IPv4 addresses in the first word.
    #[must_use]
    pub fn from_event(family: u8, key: &FlowKeyV6) -> Option<Self> {
        match family {
            4 => Some(Self::V4(FlowKeyV4 {
                remote: key.remote[0],
                local: key.local[0],
                remote_port: key.remote_port,
                local_port: key.local_port,
                protocol_scope: key.protocol_scope,
            })),
            6 => Some(Self::V6(*key)),
            _ => None,
        }
    }

    /// `scope`: the interface's index where the remote is link-local, else 0.
    #[must_use]
    pub fn new(
        protocol: u8,
        remote: IpAddr,
        remote_port: u16,
        local: IpAddr,
        local_port: u16,
        scope: u32,
    ) -> Option<Self> {
        let protocol_scope = u32::from(protocol) | scope << 8;
        match (remote, local) {
            (IpAddr::V4(remote), IpAddr::V4(local)) => Some(Self::V4(FlowKeyV4 {
                remote: remote.into(),
                local: local.into(),
                remote_port,
                local_port,
                protocol_scope,
            })),
            (IpAddr::V6(remote), IpAddr::V6(local)) => Some(Self::V6(FlowKeyV6 {
                remote: words(remote),
                local: words(local),
                remote_port,
                local_port,
                protocol_scope,
            })),
            _ => None,
        }
    }

    #[must_use]
    pub fn protocol(&self) -> u8 {
        (self.protocol_scope() & 0xff) as u8
    }

    #[must_use]
    pub fn remote(&self) -> IpAddr {
        match self {
            Self::V4(key) => Ipv4Addr::from(key.remote).into(),
            Self::V6(key) => address(key.remote).into(),
        }
    }

    #[must_use]
    pub fn local(&self) -> IpAddr {
        match self {
            Self::V4(key) => Ipv4Addr::from(key.local).into(),
            Self::V6(key) => address(key.local).into(),
        }
    }

    #[must_use]
    pub fn remote_port(&self) -> u16 {
        match self {
            Self::V4(key) => key.remote_port,
            Self::V6(key) => key.remote_port,
        }
    }

    #[must_use]
    pub fn local_port(&self) -> u16 {
        match self {
            Self::V4(key) => key.local_port,
            Self::V6(key) => key.local_port,
        }
    }

    fn protocol_scope(&self) -> u32 {
        match self {
            Self::V4(key) => key.protocol_scope,
            Self::V6(key) => key.protocol_scope,
        }
    }

    /// Index of the interface where the remote is link-local, else 0.
    #[must_use]
    pub fn scope(&self) -> u32 {
        self.protocol_scope() >> 8
    }

    #[must_use]
    pub fn is_icmp(&self) -> bool {
        matches!(self.protocol(), ICMP | ICMPV6)
    }

    /// What is asked for: the remote's port outbound, ours inbound; ICMP type << 8 | code.
    #[must_use]
    pub fn service(&self, direction: Direction) -> u16 {
        match direction {
            Direction::Inbound => self.local_port(),
            Direction::Outbound => self.remote_port(),
        }
    }

    /// (who began it, their port, the other, its port).
    #[must_use]
    pub fn ends(&self, direction: Direction) -> (IpAddr, u16, IpAddr, u16) {
        let (remote, local) = ((self.remote(), self.remote_port()), (self.local(), self.local_port()));
        let (source, destination) = match direction {
            Direction::Inbound => (remote, local),
            Direction::Outbound => (local, remote),
        };
        (source.0, source.1, destination.0, destination.1)
    }

    #[must_use]
    pub fn community_id(&self, direction: Direction) -> String {
        let (source, source_port, destination, destination_port) = self.ends(direction);
        if self.is_icmp() {
            let service = self.service(direction);
            return community_id(self.protocol(), source, service >> 8, destination, service & 0xff);
        }
        community_id(self.protocol(), source, source_port, destination, destination_port)
    }

    /// The same for every record of one flow; another for the next flow with the same key that begins a millisecond
    /// later or more (an event is stamped a little after its flow). At most 53 bits, so that JavaScript keeps it whole.
    #[must_use]
    pub fn flow_id(&self, first_seen: u64) -> u64 {
        self.id_of_bucket(first_seen >> BUCKET_BITS)
    }

    /// The id of a flow, or of its event if that fell into the next millisecond.
    #[must_use]
    pub fn flow_ids(&self, first_seen: u64) -> [u64; 2] {
        let bucket = first_seen >> BUCKET_BITS;
        [self.id_of_bucket(bucket), self.id_of_bucket(bucket + 1)]
    }

    fn id_of_bucket(&self, bucket: u64) -> u64 {
        // DefaultHasher::new() has fixed keys; the number only has to agree within one record file.
        let mut hasher = DefaultHasher::new();
        (self, bucket).hash(&mut hasher);
        hasher.finish() & ((1 << 53) - 1)
    }

    /// As policies and `explain` write it: `out tcp 203.0.113.9:443`, `in udp 198.51.100.7 -> 53`.
    #[must_use]
    pub fn spoken(&self, direction: Direction) -> String {
        let protocol = protocol_name(self.protocol());
        let remote = match self.remote() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let way = if direction == Direction::Inbound { "in" } else { "out" };
        if self.is_icmp() {
            let service = self.service(direction);
            return format!("{way} {protocol} {remote} {}/{}", service >> 8, service & 0xff);
        }
        match (direction, self.service(direction)) {
            _ if !has_ports(self.protocol()) => format!("{way} {protocol} {remote}"),
            (Direction::Inbound, port) => format!("{way} {protocol} {remote} -> {port}"),
            (Direction::Outbound, port) => format!("{way} {protocol} {remote}:{port}"),
        }
    }
}

/// TCP, UDP, UDP-Lite, SCTP, DCCP.
#[must_use]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
}

/// `tcp`, `icmpv6`, `proto/47`.
#[must_use]
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        ICMP => "icmp".to_owned(),
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        ICMPV6 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        136 => "udplite".to_owned(),
        other => format!("proto/{other}"),
    }
}

/// The four words of an address, the most significant first.
#[must_use]
pub fn words(address: Ipv6Addr) -> [u32; 4] {
    let number = u128::from(address);
    [(number >> 96) as u32, (number >> 64) as u32, (number >> 32) as u32, number as u32]
}

fn address(words: [u32; 4]) -> Ipv6Addr {
    Ipv6Addr::from(words.iter().fold(0u128, |number, word| number << 32 | u128::from(*word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(protocol: u8, remote: &str, remote_port: u16, local: &str, local_port: u16) -> Key {
        Key::new(protocol, remote.parse().unwrap(), remote_port, local.parse().unwrap(), local_port, 0).unwrap()
    }

    #[test]
    fn is_spoken_as_a_policy_writes_it() {
        let tcp = key(6, "203.0.113.9", 443, "192.0.2.1", 40000);
        assert_eq!(tcp.spoken(Direction::Outbound), "out tcp 203.0.113.9:443");
        assert_eq!(key(17, "198.51.100.7", 9, "192.0.2.1", 53).spoken(Direction::Inbound), "in udp 198.51.100.7 -> 53");
        let v6 = key(6, "2001:db8::9", 443, "2001:db8::1", 40000);
        assert_eq!(v6.spoken(Direction::Outbound), "out tcp [2001:db8::9]:443");
        assert_eq!(v6.remote(), "2001:db8::9".parse::<IpAddr>().unwrap());
        assert_eq!(key(47, "203.0.113.9", 0, "192.0.2.1", 0).spoken(Direction::Inbound), "in proto/47 203.0.113.9");
        assert_eq!(
            key(1, "203.0.113.9", 8 << 8, "192.0.2.1", 77).spoken(Direction::Outbound),
            "out icmp 203.0.113.9 8/0"
        );
    }

    #[test]
    fn an_event_carries_an_ipv4_address_in_its_first_word() {
        let v4 = key(6, "203.0.113.9", 443, "192.0.2.1", 40000);
        let wide = FlowKeyV6 {
            remote: [0xcb00_7109, 0, 0, 0],
            local: [0xc000_0201, 0, 0, 0],
            remote_port: 443,
            local_port: 40000,
            protocol_scope: 6,
        };
        assert_eq!(Key::from_event(4, &wide), Some(v4));
        assert_eq!(Key::from_event(0, &wide), None);
    }

    #[test]
    fn ids_tell_flows_apart() {
        let tcp = key(6, "203.0.113.9", 443, "192.0.2.1", 40000);
        assert_eq!(tcp.flow_id(7), tcp.flow_id(7));
        assert_ne!(tcp.flow_id(7), tcp.flow_id(7 + (1 << 20)));
        assert!(tcp.flow_ids(7).contains(&tcp.flow_id((1 << 20) + 5)));
        assert!(tcp.flow_id(7) < 1 << 53);
        let ping = key(1, "192.168.0.1", 8 << 8, "192.168.0.89", 1);
        assert_eq!(ping.community_id(Direction::Outbound), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=");
    }
}
