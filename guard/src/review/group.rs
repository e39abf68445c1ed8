//! Groups: what is reviewed, acknowledged and counted as one thing.
//!
//! A group is (program, direction, remote's group, service, kind of fate). Its id is the SHA-256 of that, so that it is
//! the same on every host and in every week; people see its shortest beginning that is unique, at least
//! [`SHORT`] hex digits. What is acknowledged stays so until one of these changes, since then it is another group.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use guard_common::Direction;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sha2::{Digest, Sha256};

use super::observed::{Fate, Observed};
use crate::record::flow::{Key, protocol_name};

/// Hex digits that people see at least.
pub const SHORT: usize = 4;

/// The other end as groups know it: the policy's group that holds it, else the zone of its name, else its network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Remote {
    /// The remote of the policy's rule or group that names it, as written there.
    Group(Arc<str>),
    /// `example.org` of `cdn.example.org`: the registrable domain.
    Zone(Arc<str>),
    /// /24 or /48.
    Network(IpNet),
    /// One of so many that they are kept as one (see `store`).
    Many,
}

impl Remote {
    /// By address alone.
    #[must_use]
    pub fn network_of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self::Network(match address {
            IpAddr::V4(address) => {
                IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_bits(address.to_bits() & 0xffff_ff00), 24))
            }
            IpAddr::V6(address) => {
                IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(address.to_bits() >> 80 << 80), 48))
            }
        })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(text) => write!(out, "group {text}"),
            Self::Zone(text) => write!(out, "names in {text}"),
            Self::Network(network) => write!(out, "{network}"),
            Self::Many => write!(out, "many networks"),
        }
    }
}

/// Protocol and port (ICMP: type << 8 | code) of what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    pub protocol: u8,
    pub port: u16,
}

impl Service {
    #[must_use]
    pub fn of(key: &Key, direction: Direction) -> Self {
        Self { protocol: key.protocol(), port: key.service(direction) }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = protocol_name(self.protocol);
        match self.protocol {
            1 | 58 => write!(out, "{name}/{}/{}", self.port >> 8, self.port & 0xff),
            protocol if crate::record::flow::has_ports(protocol) => write!(out, "{name}/{}", self.port),
            _ => write!(out, "{name}"),
        }
    }
}

/// What all flows of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group {
    /// [`crate::record::who::Who::program`]; `None`: unknown.
    pub program: Option<Arc<str>>,
    pub direction: Direction,
    pub remote: Remote,
    pub service: Service,
    /// Denied and would-be denied are one: audit and enforce find the same.
    pub denied: bool,
}

impl Group {
    #[must_use]
    pub fn of(flow: &Observed) -> Self {
        Self {
            program: flow.who.as_ref().and_then(|who| who.program()).map(Arc::from),
            direction: flow.direction,
            remote: flow.remote_group.clone(),
            service: Service::of(&flow.key, flow.direction),
            denied: matches!(flow.fate, Fate::Denied | Fate::WouldDeny),
        }
    }

    #[must_use]
    pub fn id(&self) -> Id {
        let mut hash = Sha256::new();
        let program = self.program.as_deref().unwrap_or("\0unknown");
        for part in [
            "guard group 1",
            program,
            self.direction.as_str(),
            &self.remote.to_string(),
            &self.service.to_string(),
            if self.denied { "denied" } else { "allowed" },
        ] {
            // Lengths first, so that no two lists of parts read alike.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let digest = hash.finalize();
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        Id(u64::from_be_bytes(id))
    }
}

/// Printed as 16 hex digits; people see a unique beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u64);

impl fmt::Display for Id {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_a_24_or_a_48() {
        let of = |text: &str| Remote::network_of(text.parse().unwrap()).to_string();
        assert_eq!(of("203.0.113.9"), "203.0.113.0/24");
        assert_eq!(of("2001:db8:17:5::9"), "2001:db8:17::/48");
        assert_eq!(of("::ffff:203.0.113.9"), "203.0.113.0/24");
    }

    #[test]
    fn an_id_depends_on_every_part() {
        let group = Group {
            program: Some("/usr/bin/curl".into()),
            direction: Direction::Outbound,
            remote: Remote::network_of("203.0.113.9".parse().unwrap()),
            service: Service { protocol: 6, port: 443 },
            denied: false,
        };
        let others = [
            Group { program: None, ..group.clone() },
            Group { direction: Direction::Inbound, ..group.clone() },
            Group { remote: Remote::Zone("example.org".into()), ..group.clone() },
            Group { service: Service { protocol: 17, port: 443 }, ..group.clone() },
            Group { denied: true, ..group.clone() },
        ];
        for other in others {
            assert_ne!(group.id(), other.id(), "{other:?}");
        }
        assert_eq!(group.id(), group.clone().id());
        assert_eq!(group.id().to_string().len(), 16);
    }
}
