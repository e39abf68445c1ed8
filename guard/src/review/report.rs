//! What `guard report` says, before it is written in one form or another.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;

use super::{
    acks::{AckError, Acks},
    facts::{self, Facts},
    findings::{self, Finding, Kind, KnownServices, Times},
    group::{Id, SHORT},
    inputs::Summary,
};
use crate::store::{self, Alert, BackgroundLine, Coverage, GroupRow, LEARNING_US, MEMORY_US, Reader, Span, StoreError};

/// Since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// All that is kept.
    Everything,
    /// All that is kept, told apart by the last acknowledgement: what came or went on since, and what waits for longer.
    /// Background, alerts and coverage are of the time since.
    LastReview,
    /// Unix time in microseconds.
    Time(i64),
}

/// One report, of one host or of many.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub hosts: Vec<Arc<str>>,
    pub span: Option<Span>,
    /// The last review: when, and who.
    pub reviewed: Option<(i64, String)>,
    /// Background, alerts and coverage begin here: the last review, where that was asked.
    pub newer: Option<i64>,
    pub coverage: Vec<(Arc<str>, Coverage)>,
    /// Not acknowledged.
    pub findings: Vec<Finding>,
    /// Findings that are.
    pub acknowledged: usize,
    /// What would be shown if nothing were acknowledged: of one host.
    every: Vec<Finding>,
    pub background: Vec<BackgroundLine>,
    /// Known inbound services with many new remotes: (service, program, new remotes).
    pub everyday: Vec<(super::group::Service, Option<Arc<str>>, u64)>,
    /// What was done to guard itself, by host; the newest first.
    pub alerts: Vec<(Arc<str>, Alert)>,
    /// What could not be read, and what was damaged.
    pub notices: Vec<String>,
    /// Where it comes from, if it is what others recorded.
    pub read: Vec<Summary>,
    /// Of every group that is known, so that short ids are unique among them.
    ids: Vec<Id>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("nothing was recorded yet: there is no {path}; guard run --audit, or guard observe, records")]
    NoStore { path: PathBuf },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Acks(#[from] AckError),
}

/// Reads one host's state directory.
pub fn of_directory(directory: &Path, since: Since, now: i64) -> Result<Report, ReportError> {
    let path = directory.join(store::FILE);
    let reader = Reader::open(&path)?.ok_or(ReportError::NoStore { path })?;
    reader.hold()?;
    let acks = Acks::read(directory)?;
    let reviewed = acks.last().map(|ack| (ack.at, ack.by.name.clone()));
    let began = reader.began()?;
    let until = now.max(began);
    let asked = since;
    let since = match asked {
        // Acknowledging one of twelve does not look at the other eleven: they stay until somebody does.
        Since::Everything | Since::LastReview => began,
        Since::Time(at) => at,
    };
    let newer = if asked == Since::LastReview { reviewed.as_ref().map(|(at, _)| *at) } else { None };
    let span = Span { since, until };
    let newly = Span { since: newer.unwrap_or(since), until };
    let facts = facts::of_store(&reader, span)?;
    let host = reader.host().map_or_else(|| Arc::from("unknown"), |(host, _)| host);
    let hidden = |facts: &Facts| {
        acks.holding(facts.id, now).is_some_and(|ack| facts.unusual.iter().all(|kind| ack.unusual.contains(kind)))
    };
    let listeners = reader.listeners()?;
    let groups = reader.groups(i64::MIN)?;
    let services = known_services(&groups, since);
    let learned_until = began.saturating_add(LEARNING_US);
    let times = Times { since, learned_until, counted_since: newly.since, services: &services };
    let mut found = findings::find(&facts, &listeners, times, &host, &hidden);
    let all = findings::find(&facts, &listeners, times, &host, &|_| false);
    let shown: BTreeSet<Id> = found.findings.iter().flat_map(|finding| finding.members.iter().copied()).collect();
    let acknowledged =
        all.findings.iter().flat_map(|finding| &finding.members).filter(|member| !shown.contains(member)).count();
    if let Some(reviewed) = newer {
        findings::mark_older(&mut found.findings, reviewed);
    }
    let mut ids: BTreeSet<Id> = groups.iter().map(|row| row.id).collect();
    ids.extend(all.findings.iter().map(Finding::id));
    let mut notices = set_aside(directory);
    if acks.unread > 0 {
        notices.push(format!("{} lines of {} are no decisions and were passed over", acks.unread, super::acks::FILE));
    }
    Ok(Report {
        coverage: vec![(Arc::clone(&host), reader.coverage(newly))],
        alerts: reader.alerts(newly)?.into_iter().map(|alert| (Arc::clone(&host), alert)).collect(),
        hosts: vec![host],
        span: Some(span),
        reviewed,
        newer,
        findings: found.findings,
        acknowledged,
        every: all.findings,
        background: reader.background(newly)?.lines,
        everyday: found.everyday,
        notices,
        read: Vec::new(),
        ids: ids.into_iter().collect(),
    })
}

/// Of all groups that are kept.
fn known_services(groups: &[GroupRow], since: i64) -> KnownServices {
    let mut known = KnownServices::new();
    let recent = since.saturating_sub(MEMORY_US);
    for row in groups {
        let group = &row.group;
        if group.direction == guard_common::Direction::Inbound && !group.denied && row.last >= recent {
            let fresh = known.entry((group.program.clone(), group.service)).or_insert(row.fresh);
            *fresh = row.fresh.min(*fresh);
        }
    }
    known
}

/// Reads many hosts' state directories as one. A host that cannot be read is told, and costs only itself.
pub fn of_directories(directories: &[PathBuf], since: Since, now: i64) -> Result<Report, ReportError> {
    let mut merged = Report::default();
    let mut per_host = Vec::new();
    let mut ids = BTreeSet::new();
    let mut failed = None;
    for directory in directories {
        match of_directory(directory, since, now) {
            Ok(mut report) => {
                report.tell_apart(&merged.hosts, directory);
                merged.hosts.extend(report.hosts);
                merged.coverage.extend(report.coverage);
                merged.alerts.extend(report.alerts);
                merged.acknowledged += report.acknowledged;
                merged.notices.extend(report.notices);
                merged.everyday.extend(report.everyday);
                ids.extend(report.ids);
                merged.span = match (merged.span, report.span) {
                    (Some(a), Some(b)) => Some(Span { since: a.since.min(b.since), until: a.until.max(b.until) }),
                    (a, b) => a.or(b),
                };
                if report.reviewed.as_ref().map(|(at, _)| at) > merged.reviewed.as_ref().map(|(at, _)| at) {
                    merged.reviewed = report.reviewed;
                }
                merged.newer = match (merged.newer, report.newer) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                merge_background(&mut merged.background, report.background);
                per_host.push(report.findings);
            }
            Err(error) => {
                merged.notices.push(format!("{}: {error}", directory.display()));
                failed = Some(error);
            }
        }
    }
    if let (true, Some(error)) = (merged.hosts.is_empty(), failed) {
        return Err(error);
    }
    merged.alerts.sort_by_key(|(_, alert)| std::cmp::Reverse(alert.at));
    merged.findings = findings::merge_hosts(per_host);
    merged.ids = ids.into_iter().collect();
    Ok(merged)
}

fn merge_background(all: &mut Vec<BackgroundLine>, more: Vec<BackgroundLine>) {
    for line in more {
        match all.iter_mut().find(|same| (same.protocol, same.port) == (line.protocol, line.port)) {
            Some(same) => {
                same.flows += line.flows;
                same.packets += line.packets;
                same.bytes += line.bytes;
                same.passed += line.passed;
                // The same address may have come to several hosts.
                same.addresses = same.addresses.max(line.addresses);
                same.ports = same.ports.max(line.ports);
                same.at_least = true;
            }
            None => all.push(line),
        }
    }
}

/// Stores that were damaged lie beside the one that took their place.
fn set_aside(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&format!("{}.damaged-", store::FILE)) && !name.ends_with("-wal"))
        .map(|name| format!("a damaged store was set aside as {name}: what it held is not in this report"))
        .collect();
    names.sort_unstable();
    names
}

/// Findings that wait, all of them unacknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Denied, new or unusual.
    pub to_review: usize,
    /// First seen while guard learned what is usual here.
    pub learned: usize,
}

/// Flows by what became of them, over all findings of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub denied_flows: u64,
    pub would_be_denied_flows: u64,
    pub allowed_flows: u64,
    pub denied_groups: usize,
    pub allowed_groups: usize,
}

impl Report {
    /// Nothing but the ids among which short ones are unique, in order.
    #[must_use]
    pub fn with_ids(ids: Vec<Id>) -> Self {
        Self { ids, ..Self::default() }
    }

    /// What others recorded: there is no store to ask further.
    #[must_use]
    pub fn is_of_others(&self) -> bool {
        !self.read.is_empty()
    }

    /// What to do about findings of a kind.
    #[must_use]
    pub fn next(&self, kind: Kind) -> &'static str {
        if self.is_of_others() { kind.next_of_others() } else { kind.next() }
    }

    /// The same two numbers in every form of a report, in `ack` and in `status`.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        let learned = self.of_kind(Kind::Learned).count();
        Waiting { to_review: self.findings.len() - learned, learned }
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for finding in &self.findings {
            let [allowed, denied, would, seen] = finding.facts.fates;
            counts.denied_flows += denied;
            counts.would_be_denied_flows += would;
            counts.allowed_flows += allowed + seen;
            match finding.is_denied() {
                true => counts.denied_groups += 1,
                false => counts.allowed_groups += 1,
            }
        }
        counts
    }

    /// Hosts that were cloned have one name.
    fn tell_apart(&mut self, taken: &[Arc<str>], directory: &Path) {
        let Some(host) = self.hosts.first().filter(|host| taken.contains(host)) else { return };
        let name: Arc<str> = format!("{host} in {}", directory.display()).into();
        self.hosts = vec![Arc::clone(&name)];
        self.alerts.iter_mut().for_each(|(host, _)| *host = Arc::clone(&name));
        self.coverage.iter_mut().for_each(|(host, _)| *host = Arc::clone(&name));
        self.findings.iter_mut().for_each(|finding| finding.hosts = vec![Arc::clone(&name)]);
    }

    /// The shortest beginning of an id that no other known id has, at least [`SHORT`] digits.
    #[must_use]
    pub fn short(&self, id: Id) -> String {
        let full = id.to_string();
        let at = self.ids.partition_point(|other| *other < id);
        let neighbours = [at.checked_sub(1), Some(at), Some(at + 1)];
        let longest = neighbours
            .into_iter()
            .flatten()
            .filter_map(|at| self.ids.get(at))
            .filter(|other| **other != id)
            .map(|other| full.bytes().zip(other.to_string().bytes()).take_while(|(a, b)| a == b).count())
            .max()
            .unwrap_or(0);
        full[..(longest + 1).clamp(SHORT, full.len())].to_owned()
    }

    /// The findings whose id begins so.
    #[must_use]
    pub fn by_id(&self, beginning: &str) -> Vec<&Finding> {
        let beginning = beginning.to_ascii_lowercase();
        self.findings.iter().filter(|finding| finding.id().to_string().starts_with(&beginning)).collect()
    }

    /// The same of all that is known, what is acknowledged too.
    #[must_use]
    pub fn every_by_id(&self, beginning: &str) -> Vec<&Finding> {
        let beginning = beginning.to_ascii_lowercase();
        self.every.iter().filter(|finding| finding.id().to_string().starts_with(&beginning)).collect()
    }

    /// One finding, acknowledged or not.
    #[must_use]
    pub fn finding(&self, id: Id) -> Option<&Finding> {
        self.findings.iter().chain(&self.every).find(|finding| finding.id() == id)
    }

    /// Findings of one kind, in order.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.kind == kind)
    }
}
