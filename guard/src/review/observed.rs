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
        let got_nothing = !self.answered || self.was_refused();
        self.direction == Direction::Inbound && self.fate != Fate::Allowed && got_nothing
    }

    /// A TCP flow answered by nothing but resets: bare headers, one for each that came, where a SYN is answered with options.
    /// Of a flow that began before it was recorded that says nothing.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        /// guard counts frames, others IP packets.
        const ETHERNET: u64 = 14;
        let header = if self.remote().is_ipv4() { 40 } else { 60 };
        let (asks, answers) = match self.direction {
            Direction::Inbound => (0, 1),
            Direction::Outbound => (1, 0),
        };
        let each = |bytes: u64| self.packets[answers].checked_mul(bytes) == Some(self.bytes[answers]);
        let ours = !self.machine.is_empty() || self.listening == Some(false);
        let bare = each(header) || (ours && each(header + ETHERNET));
        let one_each = self.packets[answers] > 0 && self.packets[answers] <= self.packets[asks];
        &*self.reason == inputs::REFUSED
            || (self.key.protocol() == TCP && !self.adopted && self.listening != Some(true) && one_each && bare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::group::Remote;

    #[test]
    fn a_closed_port_is_no_service_and_an_open_one_is() {
        let scanned = Observed {
            flow_id: 1,
            host: "db1".into(),
            machine: "0123456789abcdef0123456789abcdef".into(),
            first: 0,
            last: 0,
            direction: Direction::Inbound,
            key: Key::new(TCP, [203, 0, 113, 9].into(), 40000, [192, 0, 2, 10].into(), 445, 0).unwrap(),
            interface: None,
            fate: Fate::Seen,
            rule: None,
            reason: "rule_allow".into(),
            generation: 1,
            packets: [1, 1],
            bytes: [74, 54],
            answered: true,
            adopted: false,
            listening: None,
            who: None,
            names: Vec::new(),
            remote_group: Remote::network_of([203, 0, 113, 9].into()),
            head: Vec::new(),
        };
        assert!(scanned.is_unsolicited());
        let with = |bytes| Observed { bytes: [74, bytes], ..scanned.clone() };
        // A SYN-ACK, with the options that it always has; and a reset as others count it.
        assert!(!with(74).is_unsolicited() && !with(58).is_unsolicited() && with(40).is_unsolicited());
        // Many answers that happen to be as long on average, to others who count no Ethernet.
        let others = Observed { machine: "".into(), packets: [9, 9], bytes: [800, 486], ..scanned.clone() };
        assert!(!others.was_refused());
        assert!(!Observed { fate: Fate::Allowed, ..scanned.clone() }.is_unsolicited());
        assert!(!Observed { listening: Some(true), ..scanned }.is_unsolicited());
    }
}
