//! One flow as the review reads it, whatever recorded it: guard's own store, a capture, or another tool's log.

use std::{net::IpAddr, sync::Arc};

use guard_common::Direction;

use crate::record::{flow::Key, who::Who};

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

    /// Nobody here asked for it: inbound and denied.
    #[must_use]
    pub fn is_unsolicited(&self) -> bool {
        self.direction == Direction::Inbound && self.fate != Fate::Allowed && !self.answered
    }
}
