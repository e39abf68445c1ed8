//! What is allowed to be written and is probably not meant.

use std::sync::Arc;

use guard_common::{Direction, Verdict};
use jiff::Timestamp;

use super::{
    diagnostics::{Diagnostic, Reporter},
    groups::Item,
    model::{AddressSet, Mode, Policy, Rule, ServiceRange},
    services::{self, TCP, UDP},
    source::{Span, Text},
    syntax::Document,
    validate::is_wide_open,
};

/// What the model no longer knows of how the policy was written.
#[derive(Debug, Default)]
pub struct Written {
    /// Beside the policy's rules, one for each.
    pub rules: Vec<WrittenRule>,
    /// Groups and services that nothing names.
    pub unused: Vec<Text>,
    /// Documentation addresses: where the first stand, and how many there are.
    pub documentation: (Vec<Span>, usize),
}

#[derive(Debug)]
pub struct WrittenRule {
    pub span: Span,
    pub items: Vec<Item>,
}

/// How far ahead an expiry is announced.
const NEAR_NS: i128 = 7 * 24 * 3600 * 1_000_000_000;
/// Pairs of rules that are compared at most (about 0.1 s). Past that, `check` still finds the rules that decide nothing,
/// from the compiled tables, without the name of the one that hides them.
const MAX_PAIRS: usize = 1_000_000;

/// Reports the warnings. `complete`: the policy has no errors; else those about what it lacks as a whole are left out.
pub fn find(
    reporter: &mut Reporter,
    policy: &Policy,
    main: &Document,
    written: &Written,
    complete: bool,
    now: Timestamp,
) {
    let mut warn = Warner { reporter, policy, written, now: now.as_nanosecond() };
    warn.mode(main);
    warn.documentation();
    for (number, rule) in policy.rules.iter().enumerate() {
        warn.one_rule(number, rule);
    }
    if !complete {
        return;
    }
    warn.hidden();
    warn.left_out(main);
    warn.unused();
}

struct Warner<'a> {
    reporter: &'a mut Reporter,
    policy: &'a Policy,
    written: &'a Written,
    now: i128,
}

impl Warner<'_> {
    fn make(&self, code: &'static str, span: Span, message: impl Into<String>) -> Diagnostic {
        self.reporter.warning(code, span, message)
    }

    fn push(&mut self, diagnostic: Diagnostic) {
        self.reporter.found.push(diagnostic);
    }

    fn span(&self, rule: usize) -> Span {
        self.written.rules[rule].span
    }

    fn in_force(&self, rule: &Rule) -> bool {
        rule.expires.is_none_or(|expires| expires > self.now)
    }

    fn mode(&mut self, main: &Document) {
        let example = "write `mode: enforce`, or `mode: audit` to say that it is meant";
        match &main.mode {
            None => {
                let diagnostic =
                    self.make("no_mode", main.span, "the policy does not say its mode: audit, nothing is dropped");
                self.push(diagnostic.label("no `mode` in this file").help(example));
            }
            Some(mode) => {
                for (name, set) in [("inbound", mode.value.inbound), ("outbound", mode.value.outbound)] {
                    if set.is_none() {
                        let message = format!("no mode for {name}: audit, nothing is dropped");
                        let diagnostic = self.make("no_mode", mode.span, message);
                        self.push(
                            diagnostic
                                .help(format!("add `{name}: enforce`, or `{name}: audit` to say that it is meant")),
                        );
                    }
                }
            }
        }
    }

    fn documentation(&mut self) {
        let (places, count) = &self.written.documentation;
        let Some(first) = places.first() else { return };
        let message = match count {
            1 => "an address that exists only in documents".to_owned(),
            count => format!("{count} addresses that exist only in documents"),
        };
        let mut diagnostic = self.make("documentation_address", *first, message).label("left in?");
        for place in &places[1..] {
            if place.file == first.file {
                diagnostic = diagnostic.also(self.reporter.sources.excerpt(*place), "");
            }
        }
        self.push(diagnostic.help("put your own in their place (RFC 5737, RFC 3849)"));
    }

    fn one_rule(&mut self, number: usize, rule: &Rule) {
        let (label, span) = (rule.label(), self.span(number));
        if is_wide_open(rule) && self.in_force(rule) {
            let message = format!("rule `{label}` allows everyone every service");
            let diagnostic = self.make("allows_everything", span, message).label("any remote, any service");
            self.push(diagnostic.help("name the remotes or the services that are needed"));
        }
        if let Some(expires) = rule.expires {
            let time = crate::record::clock::for_people(expires);
            if expires <= self.now {
                let diagnostic =
                    self.make("expired", span, format!("rule `{label}` expired at {time} and decides nothing"));
                self.push(diagnostic.help("take it out, or give it a new time"));
            } else if expires - self.now < NEAR_NS {
                let hours = (expires - self.now) / 3_600_000_000_000;
                let diagnostic =
                    self.make("expires_soon", span, format!("rule `{label}` expires in {hours} h, at {time}"));
                self.push(diagnostic.help("give it a later time if it is still needed then"));
            }
            if rule.action == Verdict::Deny {
                let message = format!("rule `{label}` is a deny that expires: what it forbids may pass from {time} on");
                let diagnostic = self.make("deny_expires", span, message);
                self.push(diagnostic.help("leave `expires` out unless that is meant"));
            }
        }
        self.one_family(rule, number, &label);
        if rule.remote.named && self.families_miss(rule) {
            let message = format!(
                "rule `{label}` can never decide anything: its services and its remotes are of different families"
            );
            let diagnostic = self.make("never_decides", span, message);
            self.push(diagnostic.help("icmp is IPv4's, icmpv6 is IPv6's; `ping` is both"));
        }
        if let Some(local) = &rule.local
            && !same_family(local, &rule.remote.set)
        {
            let message =
                format!("rule `{label}` can never decide anything: `local` and its remotes are of different families");
            let diagnostic = self.make("never_decides", span, message);
            self.push(diagnostic.help("name an address of ours of the same family"));
        }
    }

    /// `0.0.0.0/0` without `::/0`, or the other way round.
    fn one_family(&mut self, rule: &Rule, number: usize, label: &str) {
        let all = AddressSet::any();
        let set = &rule.remote.set;
        let (v4, v6) = (set.v4 == all.v4, set.v6 == all.v6);
        if !rule.remote.named || v4 == v6 {
            return;
        }
        let (has, lacks) = if v4 { ("0.0.0.0/0", "::/0") } else { ("::/0", "0.0.0.0/0") };
        let item = self.written.rules[number].items.iter().find(|item| item.text == has);
        let span = item.map_or(self.span(number), |item| item.span);
        let diagnostic = self.make("one_family", span, format!("rule `{label}` names {has} without {lacks}"));
        self.push(diagnostic.label("every address of one family").help("write `any` for both families"));
    }

    fn families_miss(&self, rule: &Rule) -> bool {
        let only = |protocol: u8| {
            rule.services
                .iter()
                .all(|range| (range.first >> 16) as u8 == protocol && range.last >> 16 == range.first >> 16)
        };
        let set = &rule.remote.set;
        (only(services::ICMP) && set.v4.is_empty() && !set.v6.is_empty())
            || (only(services::ICMPV6) && set.v6.is_empty() && !set.v4.is_empty())
    }

    /// Rules that another one rule settles entirely, and listed remotes that a deny takes away.
    fn hidden(&mut self) {
        let rules = &self.policy.rules;
        let denies: Vec<usize> = (0..rules.len()).filter(|n| rules[*n].action == Verdict::Deny).collect();
        let mut pairs = 0;
        for (number, rule) in rules.iter().enumerate() {
            if !self.in_force(rule) || rule.remote.set.is_empty() {
                continue;
            }
            let mut hidden_by = None;
            let mut taken: Option<(Span, String, usize)> = None;
            // What a deny settles wherever it stands, and what an earlier rule of the same action settles.
            let overrules = rule.action == Verdict::Allow;
            let stronger = if overrules { denies.as_slice() } else { &[] };
            let earlier = (0..number).filter(|other| rules[*other].action == rule.action);
            for other_number in stronger.iter().copied().chain(earlier) {
                pairs += 1;
                if pairs > MAX_PAIRS {
                    return;
                }
                let other = &rules[other_number];
                if other.direction != rule.direction || !self.in_force(other) {
                    continue;
                }
                if !holds_wherever(other, rule) || !services::covers(&other.services, &rule.services) {
                    continue;
                }
                pairs += rule.remote.set.v4.len().saturating_add(rule.remote.set.v6.len()) / 16;
                if Arc::ptr_eq(&other.remote.set, &rule.remote.set) || other.remote.set.covers(&rule.remote.set) {
                    hidden_by = Some(other_number);
                    break;
                }
                if other.action == Verdict::Deny && overrules && taken.is_none() {
                    taken = self.hidden_remote(number, other_number).map(|(span, text)| (span, text, other_number));
                }
            }
            let (diagnostic, other) = if let Some(other) = hidden_by {
                let message = format!("rule `{}` can never decide anything", rule.label());
                let label = match (rules[other].action, rule.action) {
                    (Verdict::Deny, Verdict::Allow) => "a deny settles all of it",
                    _ => "an earlier rule settles all of it",
                };
                let diagnostic = self.make("never_decides", self.span(number), message).label(label);
                (diagnostic.help("take one of the two out, or make it narrower"), other)
            } else if let Some((span, remote, other)) = taken {
                let message = format!("rule `{}` lists {remote}, which a deny hides", rule.label());
                let diagnostic = self.make("hidden_remote", span, message).label("never allowed");
                (diagnostic.help("take it out here, or make the deny narrower"), other)
            } else {
                continue;
            };
            let excerpt = self.reporter.sources.excerpt(self.span(other));
            self.push(diagnostic.also(excerpt, format!("by rule `{}`", rules[other].label())));
        }
    }

    /// Of what an allow lists, a word or one of its addresses or networks that a deny takes away entirely. A hole in a
    /// wider network is what denies are for.
    fn hidden_remote(&self, allow: usize, deny: usize) -> Option<(Span, String)> {
        let hides = &self.policy.rules[deny].remote.set;
        let items = &self.written.rules[allow].items;
        if let Some(item) = items.iter().find(|item| !item.set.is_empty() && hides.covers(&item.set)) {
            return Some((item.span, item.text.clone()));
        }
        // Inside a group.
        let set = &self.policy.rules[allow].remote.set;
        let v4 = set.v4.iter().map(|range| AddressSet { v4: vec![*range], v6: Vec::new() });
        let v6 = set.v6.iter().map(|range| AddressSet { v4: Vec::new(), v6: vec![*range] });
        let hidden = v4.chain(v6).find(|range| hides.covers(range))?;
        let item = items.iter().find(|item| item.set.meets(&hidden))?;
        let first = super::effective::networks(&hidden).next()?;
        let text =
            if first.prefix_len() == first.max_prefix_len() { first.addr().to_string() } else { first.to_string() };
        Some((item.span, text))
    }

    /// What a host needs and the policy does not list.
    fn left_out(&mut self, main: &Document) {
        let inbound = main.inbound.unwrap_or(main.span);
        let outbound = main.outbound.unwrap_or(main.span);
        let policy = self.policy;
        let allows = |direction: Direction, wanted: &[ServiceRange]| {
            policy.rules.iter().any(|rule| {
                rule.direction == direction
                    && rule.action == Verdict::Allow
                    && self.in_force(rule)
                    && !rule.remote.set.is_empty()
                    && wanted.iter().any(|w| services::covers(&rule.services, std::slice::from_ref(w)))
            })
        };
        let nobody = !policy.rules.iter().any(|rule| {
            rule.direction == Direction::Inbound
                && rule.action == Verdict::Allow
                && self.in_force(rule)
                && !rule.remote.set.is_empty()
        });
        let no_resolver =
            !allows(Direction::Outbound, &[services::port(UDP, 53), services::port(TCP, 53), services::port(TCP, 853)]);
        let no_time = !allows(Direction::Outbound, &[services::port(UDP, 123), services::port(TCP, 4460)]);
        if nobody {
            let diagnostic = self.make("nobody_in", inbound, "inbound lets nobody in, you neither");
            let label = if policy.inbound == Mode::Enforce {
                "only the console is left"
            } else {
                "in enforce mode only the console would be left"
            };
            self.push(
                diagnostic.label(label).help("add a rule for your own way in: `{ from: YOUR-ADDRESS, services: ssh }`"),
            );
        }
        if no_resolver {
            let diagnostic =
                self.make("no_resolver", outbound, "outbound names no resolver: this host cannot look up names");
            self.push(diagnostic.help("add `{ to: [RESOLVER], services: dns }` (see /etc/resolv.conf)"));
        }
        if no_time {
            let diagnostic =
                self.make("no_time_server", outbound, "outbound names no time server: this host's clock will drift");
            self.push(diagnostic.help("add `{ to: [TIME-SERVER], services: ntp }`"));
        }
    }

    fn unused(&mut self) {
        for name in &self.written.unused {
            let diagnostic = self.make("unused", name.span, format!("`{}` is defined and used by no rule", name.value));
            self.push(diagnostic.help("take it out, or use it"));
        }
    }
}

/// Whether `other` asks for nothing of the host that `rule` does not ask for too, for as long as `rule` holds.
fn holds_wherever(other: &Rule, rule: &Rule) -> bool {
    let interface = other.interface.is_none() || other.interface == rule.interface;
    let local = match (&other.local, &rule.local) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(other), Some(local)) => Arc::ptr_eq(other, local) || other.covers(local),
    };
    let time = match (other.expires, rule.expires) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(other), Some(expires)) => other >= expires,
    };
    interface && local && time
}

fn same_family(a: &AddressSet, b: &AddressSet) -> bool {
    a.v4.is_empty() == b.v4.is_empty() && !a.v4.is_empty() || a.v6.is_empty() == b.v6.is_empty() && !a.v6.is_empty()
}
