//! One flow as the review reads it, whatever recorded it: guard's own store, a capture, or another tool's log.

use std::{net::IpAddr, sync::Arc};

use guard_common::Direction;

use super::inputs;
use crate::record::{
    flow::{Key, TCP},
    who::Who,
};

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fate {
    Allowed,
    /// Stopped.
    Denied,
    /// Passed, but the policy denies it: audit mode.
    WouldDeny,
    /// Nobody decided: recorded by another tool, or while observing without a policy.
    Seen,
}

/// One flow. Text comes from hosts and tools and may be anything: show it harmless.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// [`Key::flow_id`]; unique within one host and boot.
    pub flow_id: u64,
    pub host: Arc<str>,
    /// `/etc/machine-id`, or empty where another tool recorded it.
    pub machine: Arc<str>,
    /// Unix time in microseconds: of its first and its last packet.
    pub first: i64,
    pub last: i64,
    pub direction: Direction,
    pub key: Key,
    /// Interface of its first packet.
    pub interface: Option<Arc<str>>,
    pub fate: Fate,
    /// Name of the rule that decided.
    pub rule: Option<Arc<str>>,
    /// [`guard_common::Reason::as_str`], or the other tool's word.
    pub reason: Arc<str>,
    pub generation: u32,
    /// By the packet's direction: `[inbound, outbound]`.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    /// A packet of the other direction was seen: somebody answered.
    pub answered: bool,
    /// Began before guard did.
    pub adopted: bool,
    /// Inbound: whether something listened on the port. `None`: not known.
    pub listening: Option<bool>,
    pub who: Option<Arc<Who>>,
    /// What the remote was asked as, the latest first: names of DNS answers. Labels, never proof.
    pub names: Vec<Arc<str>>,
    /// The remote's group: see [`super::group::Remote`].
    pub remote_group: super::group::Remote,
    /// First bytes of a flagged flow's first packet, from its IP header on; at most 256.
    pub head: Vec<u8>,
}

impl Observed {
    #[must_use]
    pub fn remote(&self) -> IpAddr {
        self.key.remote()
    }

    /// Nobody here asked for it: inbound, and it got nothing. A closed port's reset is no answer: else a scan of a host that
    /// denies nothing (audit, observing) would be a service for each port.
    #[must_use]
    pub fn is_unsolicited(&self) -> bool {
        let got_nothing = !self.answered || (self.listening != Some(true) && self.was_refused());
        self.direction == Direction::Inbound && self.fate != Fate::Allowed && got_nothing
    }

    /// A TCP flow answered by nothing but resets: bare headers, where a SYN is answered with options. Of a flow that began
    /// before it was recorded that says nothing.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        let header = if self.remote().is_ipv4() { 40 } else { 60 };
        let back = match self.direction {
            Direction::Inbound => Direction::Outbound,
            Direction::Outbound => Direction::Inbound,
        } as usize;
        let bare = self.packets[back].checked_mul(header) == Some(self.bytes[back]);
        &*self.reason == inputs::REFUSED
            || (self.key.protocol() == TCP && !self.adopted && self.packets[back] > 0 && bare)
    }
}
