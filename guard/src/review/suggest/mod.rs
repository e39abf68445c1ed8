//! A policy from what was seen, with its evidence, and a list of what it leaves out and why.
//!
//! It learns from flows that were answered, whatever a policy in audit mode said of them. It never widens in silence: a
//! rule lists the addresses that were seen, or networks that the user allowed to be summed up; what does not fit is left
//! out and named.

mod patch;
mod rules;
#[cfg(test)]
mod tests;
pub mod timers;
mod write;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use guard_common::{Direction, Reason};
use serde::Serialize;

use super::{
    judged::{Judge, query, word},
    observed::{Fate, Observed},
};
use crate::{
    policy::{answer::beside_the_rules, model::Essentials},
    record::flow::has_ports,
};

pub use patch::{PatchError, patch};
pub use rules::{Rule, Widest};
pub use rules::{service_text, services_text};
pub use write::{SuggestError, Suggestion, flow_text, list_text, suggest};

/// Combinations of direction, service, program and remote that are kept (about 200 bytes each).
const MOST_PLACES: usize = 500_000;
/// Inbound remotes that are watched for scanning.
const MOST_WATCHED: usize = 200_000;
/// Whoever asks for so many services here, and gets fewer than half of them, scans.
const SCAN_SERVICES: usize = 8;
const MOST_NAMES: usize = 8;

/// Why flows are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Of a process that is unusual as such.
    FlaggedProcess,
    DenyRule,
    /// An enforcing policy stopped it.
    Denied,
    Scan,
    /// Nobody answered.
    Unanswered,
    /// The asked port was closed.
    Refused,
    /// Such traffic passes as essential, or never does, whatever rules say.
    BesideTheRules,
    /// Seen less than what is listed, and there may be no more rules.
    BeyondMaxRules,
    /// More combinations than are kept in memory.
    TooMany,
}

impl Why {
    pub const ALL: [Self; 9] = [
        Self::FlaggedProcess,
        Self::DenyRule,
        Self::Denied,
        Self::Scan,
        Self::BeyondMaxRules,
        Self::Unanswered,
        Self::Refused,
        Self::BesideTheRules,
        Self::TooMany,
    ];

    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::FlaggedProcess => "of unusual processes: look at them first (guard report)",
            Self::DenyRule => "matched a deny rule",
            Self::Denied => "were stopped by the policy that was in force, so nobody answered",
            Self::Scan => "from addresses that scan",
            Self::Unanswered => "nobody answered (one way by nature, as syslog over UDP is? then list it)",
            Self::Refused => "the asked port was closed",
            Self::BesideTheRules => {
                "pass as essential traffic, or are nothing that a rule can list (loopback, redirects, port 0)"
            }
            Self::BeyondMaxRules => "did not fit into --max-rules; the least seen",
            Self::TooMany => "more remotes and services than are kept in memory",
        }
    }
}

/// What was seen of one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    pub flows: u64,
    pub bytes: u64,
    /// Unix time in microseconds.
    pub first: i64,
    pub last: i64,
    pub programs: BTreeSet<Arc<str>>,
}

impl Evidence {
    fn add(&mut self, other: &Self) {
        if self.flows == 0 {
            (self.first, self.last) = (other.first, other.last);
        }
        self.flows += other.flows;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.programs.extend(other.programs.iter().cloned());
    }
}

/// One remote's part in a rule.
#[derive(Clone, Debug, Default)]
struct Part {
    evidence: Evidence,
    names: BTreeSet<Arc<str>>,
}

/// What a rule may say, and who asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Asked {
    direction: Direction,
    /// [`word`].
    service: u32,
    program: Option<Arc<str>>,
}

/// Takes in flows.
pub struct Learner<'a> {
    /// The policy that is added to: what it allows needs no rule.
    known: Option<Judge<'a>>,
    learned: HashMap<(Asked, IpAddr), Part>,
    left_out: HashMap<(Why, Asked, IpAddr), Evidence>,
    watched: HashMap<IpAddr, Vec<(u32, bool)>>,
    pub flows: u64,
    /// Allowed by the policy that is added to.
    pub allowed: u64,
    pub first: i64,
    pub last: i64,
    pub hosts: BTreeSet<Arc<str>>,
    places: usize,
}

impl<'a> Learner<'a> {
    #[must_use]
    pub fn new(known: Option<Judge<'a>>) -> Self {
        Self {
            known,
            learned: HashMap::new(),
            left_out: HashMap::new(),
            watched: HashMap::new(),
            flows: 0,
            allowed: 0,
            first: 0,
            last: 0,
            hosts: BTreeSet::new(),
            places: 0,
        }
    }

    pub fn see(&mut self, flow: &Observed) {
        if self.flows == 0 {
            (self.first, self.last) = (flow.first, flow.last);
        }
        self.flows += 1;
        self.first = self.first.min(flow.first);
        self.last = self.last.max(flow.last);
        if self.hosts.len() < 64 && !flow.host.is_empty() {
            self.hosts.insert(Arc::clone(&flow.host));
        }
        let asked = asked(flow);
        let mut why = why(flow);
        if flow.direction == Direction::Inbound {
            self.watch(flow.remote(), asked.service, why.is_none());
        }
        if let Some(known) = &self.known {
            let judged = known.judge(flow);
            match judged.reason {
                Reason::RuleDeny => why = why.or(Some(Why::DenyRule)),
                reason if reason.verdict() == guard_common::Verdict::Allow && why != Some(Why::FlaggedProcess) => {
                    self.allowed += 1;
                    return;
                }
                _ => {}
            }
        }
        let evidence = Evidence {
            flows: 1,
            bytes: flow.bytes[0].saturating_add(flow.bytes[1]),
            first: flow.first,
            last: flow.last,
            programs: asked.program.iter().cloned().collect(),
        };
        self.put(why, asked, flow, &evidence);
    }

    fn put(&mut self, why: Option<Why>, asked: Asked, flow: &Observed, evidence: &Evidence) {
        let remote = flow.remote();
        match why {
            None => {
                let place = (asked, remote);
                if !self.learned.contains_key(&place) && self.places >= MOST_PLACES {
                    let place = (Why::TooMany, place.0, nobody(remote));
                    return self.left_out.entry(place).or_default().add(evidence);
                }
                self.places = self.learned.len() + self.left_out.len();
                let part = self.learned.entry(place).or_default();
                part.evidence.add(evidence);
                for name in &flow.names {
                    if part.names.len() < MOST_NAMES {
                        part.names.insert(Arc::clone(name));
                    }
                }
            }
            Some(why) => {
                // Of strangers who got nothing, the count is enough; and nobody can fill the memory by asking.
                let crowd = flow.direction == Direction::Inbound && why != Why::FlaggedProcess;
                let remote = if crowd || self.places >= MOST_PLACES { nobody(remote) } else { remote };
                self.left_out.entry((why, asked, remote)).or_default().add(evidence);
                self.places = self.learned.len() + self.left_out.len();
            }
        }
    }

    fn watch(&mut self, remote: IpAddr, service: u32, got_it: bool) {
        if self.watched.len() >= MOST_WATCHED && !self.watched.contains_key(&remote) {
            return;
        }
        let services = self.watched.entry(remote).or_default();
        let room = services.len() < 64;
        match services.iter_mut().find(|(known, _)| *known == service) {
            Some((_, got)) => *got |= got_it,
            None if room => services.push((service, got_it)),
            None => {}
        }
    }

    /// Remotes that asked for much and got little.
    fn scanners(&self) -> HashSet<IpAddr> {
        self.watched
            .iter()
            .filter(|(_, services)| {
                let got = services.iter().filter(|(_, got)| *got).count();
                services.len() >= SCAN_SERVICES && got * 2 < services.len()
            })
            .map(|(remote, _)| *remote)
            .collect()
    }
}

fn asked(flow: &Observed) -> Asked {
    let program = flow.who.as_ref().and_then(|who| who.program()).map(Arc::from);
    Asked { direction: flow.direction, service: word(flow), program }
}

/// Stands for many.
const fn nobody(remote: IpAddr) -> IpAddr {
    match remote {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// Why nothing is learned of a flow, by the flow alone. `None`: it is learned from.
#[must_use]
pub fn why(flow: &Observed) -> Option<Why> {
    if flow.who.as_ref().is_some_and(|who| !who.unusual.is_empty()) {
        return Some(Why::FlaggedProcess);
    }
    let remote = flow.remote();
    // Port 0 is none that a rule can list alone.
    let port_0 = has_ports(flow.key.protocol()) && word(flow) & 0xffff == 0;
    let never = remote.is_loopback() || remote.is_unspecified() || port_0;
    if never || is_redirect(flow) || passes_beside(flow) {
        return Some(Why::BesideTheRules);
    }
    if &*flow.reason == Reason::RuleDeny.as_str() {
        return Some(Why::DenyRule);
    }
    if flow.fate == Fate::Denied {
        return Some(Why::Denied);
    }
    if !flow.answered {
        return Some(Why::Unanswered);
    }
    (flow.listening == Some(false) || flow.was_refused()).then_some(Why::Refused)
}

fn is_redirect(flow: &Observed) -> bool {
    matches!((flow.key.protocol(), word(flow) >> 8 & 0xff), (1, 5) | (58, 137))
}

fn passes_beside(flow: &Observed) -> bool {
    static ALL: Essentials = Essentials {
        loopback: true,
        arp: true,
        eapol: true,
        lacp: true,
        stp: true,
        lldp: true,
        macsec: true,
        pppoe: true,
        neighbour_discovery: true,
        mld: true,
        dhcp: true,
        dhcpv6: true,
        icmp_errors: true,
    };
    beside_the_rules(&ALL, &query(flow)).is_some()
}
