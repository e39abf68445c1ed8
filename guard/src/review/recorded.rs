//! A report on what others recorded: flows of any kind go by, and what is kept is bounded by groups, never by flows.
//!
//! The same engine as for guard's own store, with what a store knows beforehand found out on the way: who is a stranger,
//! what period there is.

use std::{collections::HashMap, sync::Arc};

use guard_common::{Direction, Verdict, decide::Outcome};

use super::{
    crowd::Crowd,
    facts::{BARS, Facts},
    findings::{self, Finding, KnownServices, Times},
    group::{Group, Id, Remote},
    inputs::Summary,
    judged::Judge,
    observed::{Fate, Observed},
    report::Report,
};
use crate::{
    record::{observer::remote_group, rule_names::RuleNames},
    store::{Flows, LEARNING_US, MANY, MEMORY_US, MOST_GROUPS, Span},
};

/// Addresses that are kept to be counted, over all groups.
const MOST_REMOTES: usize = 1_000_000;
/// Groups of strangers that are kept apart until it is known whether they are any.
const MOST_STRANGERS: usize = 50_000;
/// The generation that the policy has here.
const GENERATION: u32 = 1;

type Groups = HashMap<Group, Entry, foldhash::fast::RandomState>;

struct Entry {
    facts: Facts,
    /// Of any of its flows, before the report's period too.
    seen: i64,
}

/// Takes in flows, in any order; about that of time is best.
pub struct Recorded<'a> {
    judge: Option<(Judge<'a>, RuleNames)>,
    /// The report's period begins here; what came before is what is usual.
    since: Option<i64>,
    groups: Groups,
    /// By all but their remote.
    siblings: HashMap<Group, u32, foldhash::fast::RandomState>,
    strangers: Groups,
    crowd: Crowd,
    remotes: usize,
    scale: Scale,
    first: i64,
    last: i64,
    hosts: Vec<Arc<str>>,
}

impl<'a> Recorded<'a> {
    #[must_use]
    pub fn new(judge: Option<Judge<'a>>, since: Option<i64>) -> Self {
        let judge = judge.map(|judge| {
            let mut names = RuleNames::default();
            names.insert_policy(GENERATION, judge.policy);
            (judge, names)
        });
        Self {
            judge,
            since,
            groups: Groups::default(),
            siblings: HashMap::default(),
            strangers: Groups::default(),
            crowd: Crowd::default(),
            remotes: 0,
            scale: Scale::default(),
            first: i64::MAX,
            last: i64::MIN,
            hosts: Vec::new(),
        }
    }

    /// The flow as it is reviewed: with what the policy, if there is one, says of it.
    #[must_use]
    pub fn judged(&self, mut flow: Observed) -> Observed {
        let Some((judge, names)) = &self.judge else { return flow };
        let judged = judge.judge(&flow);
        // What was stopped was stopped, whatever this policy would have done.
        if flow.fate == Fate::Denied {
            return flow;
        }
        let outcome = match judged.rule {
            Some(rule) => Outcome::new(judged.reason, rule as u32),
            None => Outcome::without_rule(judged.reason),
        };
        flow.fate = match judged.reason.verdict() {
            Verdict::Allow => Fate::Allowed,
            Verdict::Deny => Fate::WouldDeny,
        };
        flow.rule = names.of(GENERATION, outcome);
        flow.reason = judged.reason.as_str().into();
        let asked_as = flow.names.first().map(|name| &**name);
        flow.remote_group = remote_group(names.remote(GENERATION, outcome), asked_as, flow.remote());
        flow
    }

    pub fn see(&mut self, flow: Observed) {
        let unsolicited = flow.is_unsolicited();
        let flow = self.judged(flow);
        self.first = self.first.min(flow.first);
        self.last = self.last.max(flow.last);
        if !flow.host.is_empty() && self.hosts.len() < 64 && !self.hosts.contains(&flow.host) {
            self.hosts.push(Arc::clone(&flow.host));
        }
        if self.scale.holds(flow.first) {
            self.put(&flow, unsolicited);
            return;
        }
        let halved = self.scale.widen(flow.first);
        for entry in self.groups.values_mut().chain(self.strangers.values_mut()) {
            halved.apply(&mut entry.facts.timeline);
        }
        self.put(&flow, unsolicited);
    }

    fn put(&mut self, flow: &Observed, unsolicited: bool) {
        let mut group = Group::of(flow);
        if unsolicited {
            let room = self.strangers.len() < MOST_STRANGERS || self.strangers.contains_key(&group);
            match room {
                true => add(&mut self.strangers, group, flow, self.since, &self.scale, &mut self.remotes),
                false if self.in_period(flow) => self.crowd.add(flow),
                false => {}
            }
            return;
        }
        if !self.groups.contains_key(&group) {
            let sibling = Group { remote: Remote::Many, ..group.clone() };
            if self.groups.len() >= MOST_GROUPS {
                group = sibling;
                group.service.port = 0;
            } else {
                let siblings = self.siblings.entry(sibling.clone()).or_default();
                if *siblings >= MANY {
                    group = sibling;
                } else {
                    *siblings += 1;
                }
            }
        }
        add(&mut self.groups, group, flow, self.since, &self.scale, &mut self.remotes);
    }

    fn in_period(&self, flow: &Observed) -> bool {
        self.since.is_none_or(|since| flow.last >= since)
    }

    /// `read`: what it all comes from.
    #[must_use]
    pub fn finish(mut self, read: Vec<Summary>) -> Report {
        let began = if self.first > self.last { 0 } else { self.first };
        let since = self.since.unwrap_or(began);
        let span = Span { since, until: self.last.max(since) };
        self.tell_strangers();
        let services = self.known_services();
        let scale = self.scale;
        let mut all: Vec<Facts> =
            self.groups.into_values().map(|entry| entry.facts).filter(|facts| facts.flows > 0).collect();
        all.iter_mut().for_each(|facts| facts.timeline = scale.over(span, &facts.timeline));
        all.sort_by_key(|facts| facts.id);
        let host: Arc<str> = match self.hosts.as_slice() {
            [] => ours(&read).into(),
            hosts => hosts.join(", ").into(),
        };
        // Whoever says since when has something to compare with: all that is before.
        let learned_until = if self.since.is_some() { i64::MIN } else { began.saturating_add(LEARNING_US) };
        let found = findings::find(
            &all,
            &[],
            Times { since, learned_until, counted_since: since, services: &services },
            &host,
            &|_| false,
        );
        let mut ids: Vec<Id> = all.iter().map(|facts| facts.id).collect();
        ids.extend(found.findings.iter().map(Finding::id));
        ids.sort_unstable();
        ids.dedup();
        let mut notices = Vec::new();
        if learned_until > self.last && !all.is_empty() {
            notices.push(
                "this is too short a time to say what is new: all of it is listed as never reviewed. --since TIME takes \
                 what came before that time as usual"
                    .to_owned(),
            );
        }
        let mut report = Report::with_ids(ids);
        report.hosts = vec![host];
        report.span = Some(span);
        report.findings = found.findings;
        report.background = self.crowd.lines();
        report.everyday = found.everyday;
        report.notices = notices;
        report.read = read;
        report
    }

    fn known_services(&self) -> KnownServices {
        let mut known = KnownServices::new();
        for (group, entry) in &self.groups {
            if group.direction == Direction::Inbound && !group.denied {
                let fresh = known.entry((group.program.clone(), group.service)).or_insert(entry.facts.fresh);
                *fresh = entry.facts.fresh.min(*fresh);
            }
        }
        known
    }

    /// A stranger is whom nothing here talks with, and no policy names: of the others each try counts.
    fn tell_strangers(&mut self) {
        let known: std::collections::HashSet<Remote> =
            self.groups.keys().filter(|group| !group.denied).map(|group| group.remote.clone()).collect();
        for (group, entry) in std::mem::take(&mut self.strangers) {
            let knows = match &group.remote {
                Remote::Group(name) => &**name != "any",
                Remote::Many => false,
                remote => known.contains(remote),
            };
            // What nobody denied and nobody answered is no service.
            if knows && group.denied {
                self.groups.insert(group, entry);
            } else if entry.facts.flows > 0 {
                self.crowd.add_group(&entry.facts);
            }
        }
    }
}

fn add(groups: &mut Groups, group: Group, flow: &Observed, since: Option<i64>, scale: &Scale, remotes: &mut usize) {
    let entry = groups.entry(group).or_insert_with_key(|group| Entry {
        facts: Facts::new(group.id(), group.clone(), flow.first, flow.first),
        seen: flow.first,
    });
    let facts = &mut entry.facts;
    if flow.first.saturating_sub(entry.seen) > MEMORY_US {
        facts.fresh = flow.first;
    } else if entry.seen.saturating_sub(flow.first) < MEMORY_US {
        facts.fresh = facts.fresh.min(flow.first);
    }
    facts.first_ever = facts.first_ever.min(flow.first);
    entry.seen = entry.seen.max(flow.last);
    if since.is_some_and(|since| flow.last < since) {
        return;
    }
    let before = facts.remotes();
    let sums = Flows {
        number: 0,
        who: None,
        pid: flow.who.as_ref().map_or(0, |who| who.pid),
        first: flow.first,
        last: flow.last,
        fate: flow.fate,
        answered: flow.answered,
        listening: flow.listening,
        packets: flow.packets,
        bytes: flow.bytes,
        names: None,
        rule: None,
        reason: 0,
        remote: flow.remote(),
    };
    facts.add(&sums, scale.span(), *remotes < MOST_REMOTES);
    *remotes += facts.remotes() - before;
    if let Some(who) = &flow.who {
        facts.unusual.extend(&who.unusual);
        facts.who = Some(Arc::clone(who));
    }
    if !flow.names.is_empty() {
        facts.names.clone_from(&flow.names);
    }
    if flow.rule.is_some() {
        facts.rule.clone_from(&flow.rule);
    }
    facts.reason = Arc::clone(&flow.reason);
}

/// Whose records these are, where they do not say.
fn ours(read: &[Summary]) -> String {
    let mut names: Vec<&str> = read
        .iter()
        .map(|file| file.local.split(", ").next().unwrap_or_default())
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    names.dedup();
    match names.as_slice() {
        [] => "unknown".to_owned(),
        names => names.join(", "),
    }
}

/// [`BARS`] equal parts of a time that grows with what is seen.
#[derive(Clone, Copy, Debug, Default)]
struct Scale {
    origin: i64,
    /// Of one bar, in microseconds; 0: nothing was seen.
    width: i64,
}

/// What becomes of bars when their scale is widened.
struct Halved {
    times: u32,
    /// How many bars, of the new width, there are now before the first.
    before: usize,
}

impl Scale {
    const fn span(&self) -> Span {
        Span { since: self.origin, until: self.origin.saturating_add(self.width.saturating_mul(BARS as i64)) }
    }

    const fn holds(&self, at: i64) -> bool {
        self.width > 0 && at >= self.origin && at < self.span().until
    }

    /// Until it holds a time.
    fn widen(&mut self, at: i64) -> Halved {
        /// A second.
        const FIRST: i64 = 1_000_000;
        let mut halved = Halved { times: 0, before: 0 };
        if self.width == 0 {
            (self.origin, self.width) = (at, FIRST);
            return halved;
        }
        while !self.holds(at) && self.width < i64::MAX / 4 / BARS as i64 {
            halved.times += 1;
            halved.before /= 2;
            if at < self.origin {
                // What there was becomes the later half.
                self.origin = self.origin.saturating_sub(self.width * BARS as i64);
                halved.before += BARS / 2;
            }
            self.width *= 2;
        }
        halved
    }

    /// The bars over another time: each where its middle lies.
    fn over(&self, span: Span, bars: &[u32; BARS]) -> [u32; BARS] {
        let mut over = [0u32; BARS];
        let width = (span.until - span.since).max(1) as f64;
        for (at, flows) in bars.iter().enumerate().filter(|(_, flows)| **flows > 0) {
            let middle = self.origin as f64 + (at as f64 + 0.5) * self.width as f64;
            let bar = ((middle - span.since as f64) / width * BARS as f64).clamp(0.0, (BARS - 1) as f64) as usize;
            over[bar] = over[bar].saturating_add(*flows);
        }
        over
    }
}

impl Halved {
    fn apply(&self, bars: &mut [u32; BARS]) {
        if self.times == 0 {
            return;
        }
        let old = std::mem::replace(bars, [0; BARS]);
        for (at, flows) in old.into_iter().enumerate() {
            let bar = (self.before + at.checked_shr(self.times).unwrap_or(0)).min(BARS - 1);
            bars[bar] = bars[bar].saturating_add(flows);
        }
    }
}

/// Whether a flow is one of those that a finding tells of.
#[must_use]
pub fn is_of(flow: &Observed, finding: &Finding) -> bool {
    let group = Group::of(flow);
    let as_service = group.direction == Direction::Inbound && !group.denied && finding.services == 1;
    finding.members.contains(&group.id())
        // One of so many that they are kept as one.
        || finding.members.contains(&Group { remote: Remote::Many, ..group.clone() }.id())
        || (as_service && findings::service_group(group.program, group.service).id() == finding.id())
}
