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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{compile::compile, load_str};

    const NOW: Clocks = Clocks { unix_ns: 1_800_000_000_000_000_000, boot_ns: 1_000 };

    /// Which allow comes nearest, and on what it fails.
    fn nearest(inbound: &[&str], outbound: &[&str], flow: &str) -> Option<(String, Vec<&'static str>)> {
        let list = |rules: &[&str]| rules.iter().map(|rule| format!("  - {{ {rule} }}\n")).collect::<String>();
        let side = |name: &str, rules: &[&str]| match rules {
            [] => format!("{name}: []\n"),
            rules => format!("{name}:\n{}", list(rules)),
        };
        let text =
            format!("version: 1\nname: n\nmode: enforce\n{}{}", side("inbound", inbound), side("outbound", outbound));
        let policy = load_str("n.yaml", &text).unwrap_or_else(|found| panic!("{}", found.render(false))).policy;
        let compiled = compile(&policy, NOW, 1).unwrap();
        let nearest = explain(&policy, &compiled, &flow.parse().unwrap(), NOW).nearest?;
        let failed = nearest.failed.iter().map(|condition| condition.as_str()).collect();
        Some((policy.rules[nearest.rule].label(), failed))
    }

    fn is(found: Option<(String, Vec<&'static str>)>, rule: &str, failed: &[&str]) {
        assert_eq!(found, Some((rule.to_owned(), failed.to_vec())));
    }

    const FAR: &str = "name: far, to: 192.0.2.1, services: tcp/443";

    #[test]
    fn fewer_failed_conditions_are_nearer() {
        let service = "name: service, to: 203.0.113.9, services: tcp/80";
        is(nearest(&[], &[FAR, service], "out tcp 203.0.113.9:81"), "service", &["service"]);
        is(nearest(&[], &[FAR], "out tcp 203.0.113.9:81"), "far", &["remote", "service"]);
    }

    #[test]
    fn of_as_many_the_one_that_takes_less_to_mend() {
        let remote = "name: remote, to: 203.0.113.8, services: tcp/81";
        let service = "name: service, to: 203.0.113.9, services: tcp/80";
        let local = "name: local, to: 203.0.113.9, services: tcp/81, local: 192.0.2.7";
        let interface = "name: interface, to: 203.0.113.9, services: tcp/81, interface: eth9";
        let expired = "name: expired, to: 203.0.113.9, services: tcp/81, expires: 2020-01-01T00:00:00Z";
        let flow = "out tcp 203.0.113.9:81";
        let all = [remote, service, local, interface, expired];
        let conditions = ["remote", "service", "local", "interface", "expiry"];
        for until in 1..=all.len() {
            let name = conditions[until - 1];
            is(nearest(&[], &all[..until], flow), if name == "expiry" { "expired" } else { name }, &[name]);
        }
    }

    #[test]
    fn another_direction_is_further_than_all_else() {
        let inbound = "name: in, from: 203.0.113.9, services: tcp/81";
        is(nearest(&[inbound], &[FAR], "out tcp 203.0.113.9:81"), "far", &["remote", "service"]);
        is(nearest(&[inbound], &[], "out tcp 203.0.113.9:81"), "in", &["direction"]);
    }

    #[test]
    fn of_the_same_conditions_the_nearest_address_then_the_nearest_service_then_the_first() {
        let rule = |name: &str, to: &str, services: &str| format!("name: {name}, to: {to}, services: {services}");
        let pick = |rules: &[String], flow: &str| {
            nearest(&[], &rules.iter().map(String::as_str).collect::<Vec<_>>(), flow).unwrap().0
        };
        let [below, above] = [rule("below", "203.0.113.0/29", "https"), rule("above", "203.0.113.12", "https")];
        assert_eq!(pick(&[below.clone(), above.clone()], "out tcp 203.0.113.9:443"), "below");
        assert_eq!(pick(&[below, above], "out tcp 203.0.113.11:443"), "above");
        let [ip4, ip6] = [rule("four", "203.0.113.1", "https"), rule("six", "\"2001:db8::1\"", "https")];
        assert_eq!(pick(&[ip4.clone(), ip6.clone()], "out tcp [2001:db8:ffff::1]:443"), "six");
        assert_eq!(pick(&[ip6, ip4], "out tcp 203.0.113.200:443"), "four");
        let at = |name, services| rule(name, "203.0.113.9", services);
        let [udp, low, high] = [at("udp", "udp/443"), at("low", "tcp/400"), at("high", "tcp/500")];
        assert_eq!(pick(&[udp.clone(), low.clone(), high.clone()], "out tcp 203.0.113.9:443"), "low");
        assert_eq!(pick(&[udp.clone(), low.clone(), high], "out tcp 203.0.113.9:460"), "high");
        let again = at("again", "tcp/400");
        assert_eq!(pick(&[low, again], "out tcp 203.0.113.9:443"), "low");
        assert_eq!(pick(&[udp], "out tcp 203.0.113.9:443"), "udp");
    }

    #[test]
    fn none_where_nothing_allows_or_a_rule_decides() {
        assert_eq!(nearest(&[], &[], "out tcp 203.0.113.9:81"), None);
        let deny = "name: no, action: deny, to: any, services: any";
        assert_eq!(nearest(&[], &[FAR, deny], "out tcp 203.0.113.9:81"), None);
        assert_eq!(nearest(&[], &[FAR], "out tcp 192.0.2.1:443"), None);
        // A deny is never the nearest: it would not help to mend it.
        let other = "name: other, action: deny, to: 203.0.113.9, services: tcp/82";
        is(nearest(&[], &[other, FAR], "out tcp 203.0.113.9:81"), "far", &["remote", "service"]);
    }

    #[test]
    fn an_allow_that_a_deny_overrules_is_named() {
        let text = "version: 1\nname: n\nmode: enforce\ninbound: []\noutbound:\n  \
                    - { name: web, to: any, services: https }\n  \
                    - { name: no, action: deny, to: 203.0.113.9, services: any }\n";
        let policy = load_str("n.yaml", text).unwrap().policy;
        let compiled = compile(&policy, NOW, 1).unwrap();
        let overruled = |flow: &str| explain(&policy, &compiled, &flow.parse().unwrap(), NOW).overruled;
        assert_eq!(overruled("out tcp 203.0.113.9:443"), Some(0));
        assert_eq!(overruled("out tcp 203.0.113.9:80"), None);
        assert_eq!(overruled("out tcp 203.0.113.10:443"), None);
    }

    #[test]
    fn the_nearest_range_is_found_on_either_side() {
        let ranges = [(10u32, 20), (40, 50)];
        for (address, expected) in [
            (0, (10, 20)),
            (10, (10, 20)),
            (20, (10, 20)),
            (29, (10, 20)),
            (31, (40, 50)),
            (45, (40, 50)),
            (99, (40, 50)),
        ] {
            assert_eq!(nearest_range(&ranges, address), Some(expected), "{address}");
        }
        assert_eq!(nearest_range::<u32>(&[], 7), None);
        let set = AddressSet { v4: vec![(10, 20)], v6: Vec::new() };
        assert_eq!(gap(&set, IpAddr::V4(5.into())), 5);
        assert_eq!(gap(&set, IpAddr::V4(25.into())), 5);
        assert_eq!(gap(&set, "2001:db8::1".parse().unwrap()), u128::MAX);
    }
}
