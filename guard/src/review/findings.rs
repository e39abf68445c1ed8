//! From what is known of groups to what a person has to look at, in the order in which to look.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use guard_common::Direction;
use serde::Serialize;

use super::{
    facts::Facts,
    group::{Group, Id, Remote, Service},
};
use crate::store::ListenerRow;

/// Groups of one program and one service, or of one program and one remote, of which no more are shown one by one.
const APART: usize = 5;
/// New remotes of an inbound service that are shown one by one; more are a public service's everyday.
const NEW_REMOTES: usize = 5;

/// What is uncommon about a group; in the order of a report. Names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A process that is unusual as such, and talks.
    UnusualProcess,
    /// Denied or would-be denied.
    OutboundDenied,
    /// Allowed, and not seen in the last 14 days.
    OutboundFirstSeen,
    /// A port that listens, or is answered for, and was not in the last 14 days.
    NewService,
    /// By a remote with which this host talks, or which its policy names.
    InboundDenied,
    /// A few new remotes of a service that is known.
    InboundFirstSeen,
    /// First seen while guard learned what is usual here; nobody has looked at it since.
    Learned,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::UnusualProcess,
        Self::OutboundDenied,
        Self::OutboundFirstSeen,
        Self::NewService,
        Self::InboundDenied,
        Self::InboundFirstSeen,
        Self::Learned,
    ];

    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::UnusualProcess => "unusual processes",
            Self::OutboundDenied => "outbound denied",
            Self::OutboundFirstSeen => "outbound first seen",
            Self::NewService => "new inbound services",
            Self::InboundDenied => "inbound denied, from known remotes",
            Self::InboundFirstSeen => "inbound first seen",
            Self::Learned => "learned, never reviewed",
        }
    }

    /// What to do about it. Never a line that would let it out.
    #[must_use]
    pub const fn next(self) -> &'static str {
        match self {
            Self::UnusualProcess => "look at the process first: guard show ID",
            Self::OutboundDenied => "guard show ID; wanted: a rule; else find who asks",
            Self::OutboundFirstSeen => "guard show ID; known and wanted: guard ack ID",
            Self::NewService => "who started it, who may reach it: guard show ID",
            Self::InboundDenied => "guard show ID: a rule missing, or a try",
            Self::InboundFirstSeen => "guard show ID; known and wanted: guard ack ID",
            Self::Learned => "guard show ID; known and wanted: guard ack ID",
        }
    }

    /// The same where there is no store that could be asked.
    #[must_use]
    pub const fn next_of_others(self) -> &'static str {
        match self {
            Self::UnusualProcess => "look at the process first; its flows: --show ID",
            Self::OutboundDenied => "its flows: --show ID; wanted: a rule; else find who asks",
            Self::OutboundFirstSeen => "its flows: --show ID",
            Self::NewService => "who started it, who may reach it? its flows: --show ID",
            Self::InboundDenied => "its flows: --show ID; a rule missing, or a try",
            Self::InboundFirstSeen => "its flows: --show ID",
            Self::Learned => "its flows: --show ID",
        }
    }
}

/// One thing to look at.
#[derive(Clone, Debug)]
pub struct Finding {
    pub kind: Kind,
    /// Id of its group, or of what several groups are shown as.
    pub facts: Facts,
    /// The groups that it stands for; itself, if it is one.
    pub members: Vec<Id>,
    /// Distinct services and remote groups of its members.
    pub services: usize,
    pub remote_groups: usize,
    /// A port that listens, whether or not anybody came.
    pub listener: Option<ListenerRow>,
    /// Hosts on which it was seen.
    pub hosts: Vec<Arc<str>>,
    /// Nothing of it was seen since the last review, where that was asked: it waits all the same.
    pub older: bool,
}

impl Finding {
    fn one(kind: Kind, facts: Facts, host: &Arc<str>) -> Self {
        Self {
            kind,
            members: vec![facts.id],
            facts,
            services: 1,
            remote_groups: 1,
            listener: None,
            hosts: vec![Arc::clone(host)],
            older: false,
        }
    }

    /// When it was seen last; of a port to which nobody came, when it began to listen.
    #[must_use]
    pub fn last(&self) -> i64 {
        match &self.listener {
            Some(row) if self.facts.flows == 0 => row.fresh,
            _ => self.facts.last,
        }
    }

    #[must_use]
    pub fn id(&self) -> Id {
        self.facts.id
    }

    /// Whether any of its flows was stopped, or would be.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.facts.group.denied
    }
}

/// When what is being looked at began, and until when it was learned what is usual.
#[derive(Clone, Copy, Debug)]
pub struct Times<'a> {
    pub since: i64,
    pub learned_until: i64,
    /// From when on the new remotes of a known service are counted.
    pub counted_since: i64,
    pub services: &'a KnownServices,
}

/// Since when inbound services are known, whoever came to them: also those that only others came to in this time.
pub type KnownServices = HashMap<(Option<Arc<str>>, Service), i64>;

/// What was found on one host.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub findings: Vec<Finding>,
    /// Of known inbound services: (service, program, new remotes), too many to be shown one by one.
    pub everyday: Vec<(Service, Option<Arc<str>>, u64)>,
}

/// Inbound services by program, each with the groups that it is made of.
type Services<'a> = BTreeMap<(Option<Arc<str>>, Service), (Facts, Vec<&'a Facts>)>;

/// All that is uncommon, be it acknowledged or not: `hidden` says which groups are. Groups that are hidden take no part
/// in what is shown as one.
#[must_use]
pub fn find(
    all: &[Facts],
    listeners: &[ListenerRow],
    times: Times<'_>,
    host: &Arc<str>,
    hidden: &dyn Fn(&Facts) -> bool,
) -> Found {
    let is_new = |fresh: i64| fresh >= times.since && fresh >= times.learned_until;
    let mut found = Found::default();
    let mut services = Services::new();
    for facts in all {
        let kind = match (facts.unusual.is_empty(), facts.group.direction, facts.group.denied) {
            (false, ..) => Kind::UnusualProcess,
            (_, Direction::Outbound, true) => Kind::OutboundDenied,
            (_, Direction::Inbound, true) => Kind::InboundDenied,
            (_, Direction::Outbound, false) if is_new(facts.fresh) => Kind::OutboundFirstSeen,
            (_, Direction::Outbound, false) if facts.fresh < times.learned_until => Kind::Learned,
            (_, Direction::Outbound, false) => continue,
            (_, Direction::Inbound, false) => {
                let group = service_group(facts.group.program.clone(), facts.group.service);
                let key = (facts.group.program.clone(), facts.group.service);
                let entry = services.entry(key).or_insert_with(|| (facts.as_group(group), Vec::new()));
                if !entry.1.is_empty() {
                    entry.0.merge(facts);
                }
                entry.1.push(facts);
                continue;
            }
        };
        if !hidden(facts) {
            found.findings.push(Finding::one(kind, facts.clone(), host));
        }
    }
    inbound_services(services, listeners, times, &is_new, host, hidden, &mut found);
    found.findings = together(found.findings);
    found.findings.sort_by_key(order);
    found
}

/// An inbound service as one group: whoever comes to it.
#[must_use]
pub fn service_group(program: Option<Arc<str>>, service: Service) -> Group {
    Group { program, direction: Direction::Inbound, remote: Remote::Group("any".into()), service, denied: false }
}

fn inbound_services(
    mut services: Services<'_>,
    listeners: &[ListenerRow],
    times: Times<'_>,
    is_new: &dyn Fn(i64) -> bool,
    host: &Arc<str>,
    hidden: &dyn Fn(&Facts) -> bool,
    found: &mut Found,
) {
    let mut listening: HashMap<(Option<Arc<str>>, Service), &ListenerRow> = HashMap::new();
    for row in listeners {
        let service = Service { protocol: row.listener.protocol, port: row.listener.port };
        let program = Some(row.listener.program.as_str()).filter(|program| !program.is_empty()).map(Arc::from);
        let key = (program, service);
        // Of several addresses the one that listened first.
        match listening.get(&key) {
            Some(earlier) if earlier.fresh <= row.fresh => {}
            _ => {
                listening.insert(key.clone(), row);
            }
        }
        services.entry(key).or_insert_with_key(|(program, service)| {
            let group = service_group(program.clone(), *service);
            let mut facts = Facts::new(group.id(), group, row.first, row.fresh);
            (facts.first, facts.last) = (row.fresh, row.last);
            (facts, Vec::new())
        });
    }
    for (key, (facts, members)) in services {
        let listener = listening.get(&key).map(|row| ListenerRow::clone(row));
        let fresh = listener.as_ref().map_or(facts.fresh, |row| row.fresh.min(facts.fresh));
        let fresh = times.services.get(&key).map_or(fresh, |known| fresh.min(*known));
        let kind = match (is_new(fresh), fresh < times.learned_until) {
            (true, _) => Some(Kind::NewService),
            (_, true) => Some(Kind::Learned),
            _ => None,
        };
        if let Some(kind) = kind
            && !hidden(&facts)
        {
            let remote_groups = members.len();
            found.findings.push(Finding { listener, remote_groups, ..Finding::one(kind, facts, host) });
        }
        if kind != Some(Kind::NewService) {
            let new: Vec<&&Facts> = members.iter().filter(|member| is_new(member.fresh)).collect();
            if new.len() <= NEW_REMOTES {
                let shown = new.into_iter().filter(|member| !hidden(member));
                found
                    .findings
                    .extend(shown.map(|member| Finding::one(Kind::InboundFirstSeen, Facts::clone(member), host)));
            } else {
                let counted = new.iter().filter(|member| member.last >= times.counted_since).count();
                if counted > 0 {
                    found.everyday.push((key.1, key.0, counted as u64));
                }
            }
        }
    }
}

/// Many groups that differ in one respect only are one finding: a scan is one thing, not a thousand.
fn together(findings: Vec<Finding>) -> Vec<Finding> {
    let by_remote = |finding: &Finding| {
        let group = &finding.facts.group;
        let service = Service { protocol: group.service.protocol, port: 0 };
        (finding.kind, Group { service, ..group.clone() })
    };
    let by_service = |finding: &Finding| (finding.kind, Group { remote: Remote::Many, ..finding.facts.group.clone() });
    join(join(findings, &by_remote), &by_service)
}

fn join(findings: Vec<Finding>, key: &dyn Fn(&Finding) -> (Kind, Group)) -> Vec<Finding> {
    let mut count: HashMap<(Kind, Group), usize> = HashMap::new();
    let is_joined = |finding: &Finding| matches!(finding.kind, Kind::NewService) || finding.listener.is_some();
    for finding in findings.iter().filter(|finding| !is_joined(finding)) {
        *count.entry(key(finding)).or_default() += 1;
    }
    let mut joined: HashMap<(Kind, Group), usize> = HashMap::new();
    let mut all: Vec<Finding> = Vec::with_capacity(findings.len());
    for finding in findings {
        let key = key(&finding);
        if is_joined(&finding) || count.get(&key).is_none_or(|&count| count <= APART) {
            all.push(finding);
            continue;
        }
        match joined.get(&key) {
            Some(&at) => {
                all[at].facts.merge(&finding.facts);
                all[at].members.extend(finding.members);
                all[at].services += finding.services;
                all[at].remote_groups += finding.remote_groups;
            }
            None => {
                joined.insert(key.clone(), all.len());
                all.push(Finding { facts: finding.facts.as_group(key.1), ..finding });
            }
        }
    }
    for &at in joined.values() {
        let finding = &mut all[at];
        // One of the two is the same for all.
        match finding.facts.group.remote {
            Remote::Many => finding.services = 1,
            _ => finding.remote_groups = 1,
        }
    }
    all
}

/// The same findings of several hosts as one each.
#[must_use]
pub fn merge_hosts(hosts: Vec<Vec<Finding>>) -> Vec<Finding> {
    let mut by_id: HashMap<(Kind, Id), usize> = HashMap::new();
    let mut all: Vec<Finding> = Vec::new();
    for finding in hosts.into_iter().flatten() {
        match by_id.get(&(finding.kind, finding.id())) {
            Some(&at) => {
                let same: &mut Finding = &mut all[at];
                same.facts.merge(&finding.facts);
                same.older &= finding.older;
                let known: HashSet<Id> = same.members.iter().copied().collect();
                same.members.extend(finding.members.into_iter().filter(|member| !known.contains(member)));
                for host in finding.hosts {
                    if !same.hosts.contains(&host) {
                        same.hosts.push(host);
                    }
                }
            }
            None => {
                by_id.insert((finding.kind, finding.id()), all.len());
                all.push(finding);
            }
        }
    }
    all.sort_by_key(order);
    all
}

/// Marks what nothing was seen of since a review, and puts it after the rest of its kind.
pub fn mark_older(findings: &mut [Finding], reviewed: i64) {
    for finding in findings.iter_mut() {
        finding.older = finding.last() < reviewed;
    }
    findings.sort_by_key(order);
}

/// By kind; what is older than the last review behind; the rarest host first; what is many in one, after what is one; the
/// latest first.
fn order(finding: &Finding) -> (Kind, bool, usize, bool, std::cmp::Reverse<i64>, Id) {
    let last = std::cmp::Reverse(finding.facts.last);
    (finding.kind, finding.older, finding.hosts.len(), finding.members.len() > 1, last, finding.id())
}
