//! A packet's bytes, and what they mean.

use std::{fmt, net::IpAddr};

use guard_common::{Direction, Reason};

#[derive(Clone)]
pub struct Packet {
    pub direction: Direction,
    /// Of [`super::DEVICES`].
    pub device: usize,
    pub bytes: Vec<u8>,
    pub says: Says,
    /// What kind of thing it is, for the coverage.
    pub label: &'static str,
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} on {}, {}: {:?} ",
            self.direction.as_str(),
            super::DEVICES[self.device].0,
            self.label,
            self.says
        )?;
        self.bytes.iter().take(160).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, " ({} bytes)", self.bytes.len())
    }
}

#[derive(Clone, Debug)]
pub enum Says {
    /// No policy can be asked: its header says nothing that could be.
    Refused {
        family: u8,
        reason: Reason,
    },
    /// Neither IPv4 nor IPv6.
    Below {
        what: Below,
        form: bool,
        to_group: bool,
    },
    Ip(Ip),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    Arp,
    Eapol,
    Lacp,
    Stp,
    Lldp,
    Macsec,
    Pppoe,
    Other,
}

#[derive(Clone, Debug)]
pub struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Source and destination as flows have them; for ICMP: the service, and the identifier.
    pub ports: (u16, u16),
    pub body: Body,
    pub fragment: Option<Fragment>,
}

#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    pub id: u32,
    /// Which names it: in IPv6 the next header of the fragment header.
    pub protocol: u8,
    pub later: bool,
}

#[derive(Clone, Debug)]
pub enum Body {
    Plain,
    /// Flags.
    Tcp(u8),
    /// ICMP, which is answered.
    Question,
    Answer,
    /// About another packet; `None`: nobody can tell which.
    Error(Option<Quoted>),
    Redirect,
    /// `form`: but for the hop limit and the ends it is as it should be.
    NeighbourDiscovery {
        form: bool,
        hop_limit: u8,
        advertised: Option<IpAddr>,
    },
    Mld {
        form: bool,
        hop_limit: u8,
    },
    Dhcp {
        form: bool,
        message: u8,
        transaction: u32,
    },
}

#[derive(Clone, Copy, Debug)]
pub struct Quoted {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub ports: (u16, u16),
}
