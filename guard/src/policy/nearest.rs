//! What a policy says of one flow, and why not more: the decision that the kernel takes, and the rule that came nearest.

use std::net::IpAddr;

use guard_common::{
    Reason, Verdict,
    decide::{Question, Subject, decide},
};

use super::{
    compile::{Clocks, Compiled, pattern_matches, words},
    model::{AddressSet, FlowQuery, Policy, Rule, ServiceRange},
};

/// The answer to one flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub verdict: Verdict,
    pub reason: Reason,
    /// Position in [`Policy::rules`] of the rule that decided; `None`: no rule lists the flow.
    pub rule: Option<usize>,
    /// Boot-time nanoseconds until which this holds; `u64::MAX`: as long as the policy.
    pub until: u64,
    /// What the flow leaves out and the verdict depends on ([`Condition::Interface`], [`Condition::Local`]). The answer
    /// is then that for an interface, or an address of ours, that no rule names.
    pub depends_on: Vec<Condition>,
    /// With a verdict of deny that no rule gave: the allow that fails on the least.
    pub nearest: Option<Nearest>,
    /// With a deny rule's verdict: the first allow that matches all the same, and is overruled.
    pub overruled: Option<usize>,
}

/// A rule that does not match, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// Position in [`Policy::rules`].
    pub rule: usize,
    /// Every condition that fails, the one that is furthest from holding first. Never empty.
    pub failed: Vec<Condition>,
}

/// What a rule states. In order of how little it would take to make it hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Condition {
    Expiry,
    Interface,
    Local,
    Service,
    Remote,
    Direction,
}

impl Condition {
    /// The stable name, as in `--json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expiry => "expiry",
            Self::Interface => "interface",
            Self::Local => "local",
            Self::Service => "service",
            Self::Remote => "remote",
            Self::Direction => "direction",
        }
    }
}

/// Decides as the kernel would at `now`, by the same code and the same tables, and looks for the nearest rule.
///
/// `compiled` must be of `policy`.
#[must_use]
pub fn explain(policy: &Policy, compiled: &Compiled, flow: &FlowQuery, now: Clocks) -> Explanation {
    let asked = compiled.question(flow);
    let ask = |subject: Subject| decide(compiled.nodes.as_slice(), &Question { subject, ..asked }, || now.boot_ns);
    let Subject { interface, local } = asked.subject;
    let nowhere = Subject { interface: interface.or(Some(0)), local: local.or(Some(0)) };
    let mut depends_on = Vec::new();
    if ask(Subject { interface, ..nowhere }).needs_context {
        depends_on.push(Condition::Interface);
    }
    if ask(Subject { local, ..nowhere }).needs_context {
        depends_on.push(Condition::Local);
    }

    let decision = ask(nowhere);
    let reason = decision.outcome.reason();
    let allows = || policy.rules.iter().enumerate().filter(|(_, rule)| rule.action == Verdict::Allow);
    let nearest = match reason {
        Reason::NotListed => allows().min_by_key(|(number, rule)| distance(*number, rule, flow, now)),
        _ => None,
    };
    let overruled = match reason {
        Reason::RuleDeny => allows().find(|(_, rule)| failed(rule, flow, now).is_empty()),
        _ => None,
    };
    Explanation {
        verdict: decision.outcome.verdict(),
        reason,
        rule: decision.outcome.rule().map(|rule| rule as usize),
        until: decision.until,
        depends_on,
        nearest: nearest
            .map(|(number, rule)| Nearest { rule: number, failed: failed(rule, flow, now) })
            .filter(|nearest| !nearest.failed.is_empty()),
        overruled: overruled.map(|(number, _)| number),
    }
}

/// The conditions of a rule that a flow fails, the furthest from holding first.
#[must_use]
pub fn failed(rule: &Rule, flow: &FlowQuery, now: Clocks) -> Vec<Condition> {
    let interface_matches =
        |pattern: &str| flow.interface.as_deref().is_some_and(|name| pattern_matches(pattern, name));
    let local_matches = |set: &AddressSet| flow.local.is_some_and(|local| gap(set, local) == 0);
    let holds = [
        (Condition::Direction, rule.direction == flow.direction),
        (Condition::Remote, gap(&rule.remote.set, flow.remote) == 0),
        (Condition::Service, rule.services.iter().any(|range| (range.first..=range.last).contains(&flow.service))),
        (Condition::Local, rule.local.as_deref().is_none_or(local_matches)),
        (Condition::Interface, rule.interface.as_deref().is_none_or(interface_matches)),
        (Condition::Expiry, rule.expires.is_none_or(|expires| now.unix_ns < expires)),
    ];
    holds.into_iter().filter(|(_, holds)| !holds).map(|(condition, _)| condition).collect()
}

/// How far a rule is from matching; the least is nearest. First what fails: another direction is further than all else,
/// then how many conditions, then the furthest of them; then how far the address and the service are; then file order.
type Distance = (bool, usize, Option<Condition>, u128, bool, u32, usize);

fn distance(number: usize, rule: &Rule, flow: &FlowQuery, now: Clocks) -> Distance {
    let failed = failed(rule, flow, now);
    let of_service = |range: &ServiceRange| {
        let steps = range.first.saturating_sub(flow.service).max(flow.service.saturating_sub(range.last));
        let other_protocol = flow.service >> 16 < range.first >> 16 || flow.service >> 16 > range.last >> 16;
        (other_protocol, steps)
    };
    let (other_protocol, steps) = rule.services.iter().map(of_service).min().unwrap_or((true, u32::MAX));
    (
        rule.direction != flow.direction,
        failed.len(),
        failed.first().copied(),
        gap(&rule.remote.set, flow.remote),
        other_protocol,
        steps,
        number,
    )
}

/// How many addresses lie between an address and the nearest of a set; 0: it is in the set. An empty family is furthest.
fn gap(set: &AddressSet, address: IpAddr) -> u128 {
    match words(address) {
        (false, [address, ..]) => nearest_range(&set.v4, address)
            .map_or(u128::MAX, |(first, last)| first.saturating_sub(address).max(address.saturating_sub(last)).into()),
        (true, words) => {
            let address = words.iter().fold(0, |bits, word| bits << 32 | u128::from(*word));
            nearest_range(&set.v6, address)
                .map_or(u128::MAX, |(first, last)| first.saturating_sub(address).max(address.saturating_sub(last)))
        }
    }
}

/// Of sorted, disjoint ranges, the one that holds the address or lies nearest.
fn nearest_range<T: Copy + Ord + std::ops::Sub<Output = T>>(ranges: &[(T, T)], address: T) -> Option<(T, T)> {
    let after = ranges.partition_point(|(first, _)| *first <= address);
    let (before, after) = (after.checked_sub(1).map(|before| ranges[before]), ranges.get(after).copied());
    match (before, after) {
        (Some(before), Some(after)) if before.1 < address && after.0 - address < address - before.1 => Some(after),
        (Some(before), _) => Some(before),
        (None, after) => after,
    }
}
