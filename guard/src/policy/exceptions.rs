//! Temporary exceptions over a policy (`guard allow`, `guard deny`): read from what a person wrote, kept with the
//! policy that is in force, and never written into its file. Composed with it they are rules like any other, so that the
//! kernel, `explain` and the tests decide by them as by the rest.

mod wanted;

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use guard_common::{Direction, Verdict};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::wanted::{Host, Wanted};
use super::{
    addresses::{self, Range},
    model::{AddressSet, Place, Policy, Remote, Rule, ServiceRange},
    services,
};

/// The widest networks that an exception may name: all but `any`.
const WIDEST: [u8; 2] = [8, 16];

/// One exception. Field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// `#2`: what `--undo` takes. Never used twice in an instance's life.
    pub number: u32,
    pub action: Action,
    /// `inbound` or `outbound`; left out: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Way>,
    /// Addresses and networks.
    pub remotes: Vec<String>,
    /// The host name that they were found by, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_as: Option<String>,
    /// First and last word of each range of services.
    pub services: Vec<(u32, u32)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Unix time in seconds; left out: until it is undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
    /// Unix time in seconds.
    pub made: i64,
    /// Who made it.
    pub by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Inbound,
    Outbound,
}

impl Action {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl Exception {
    /// `allow #2`: the name of its rules.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{} #{}", self.action.as_str(), self.number)
    }

    #[must_use]
    pub fn holds(&self, unix_seconds: i64) -> bool {
        self.expires.is_none_or(|expires| unix_seconds < expires)
    }

    /// `in tcp/22 from 198.51.100.9`; the caller makes it harmless.
    #[must_use]
    pub fn spoken(&self) -> String {
        let (way, word) = match self.direction {
            Some(Way::Inbound) => ("in ", "from "),
            Some(Way::Outbound) => ("out ", "to "),
            None => ("in and out ", ""),
        };
        let ranges: Vec<String> =
            self.ranges().into_iter().map(services::describe_range).filter(|range| range != "any").collect();
        let space = if ranges.is_empty() { "" } else { " " };
        let mut text = format!("{way}{}{space}{word}{}", ranges.join(", "), self.remotes.join(", "));
        if let Some(name) = &self.asked_as {
            text.push_str(&format!(" ({name})"));
        }
        if let Some(local) = self.local {
            text.push_str(&format!(" at {local}"));
        }
        if let Some(interface) = &self.interface {
            text.push_str(&format!(" on {interface}"));
        }
        text
    }

    fn ranges(&self) -> Vec<ServiceRange> {
        services::normalise(
            self.services.iter().map(|(first, last)| ServiceRange { first: *first, last: *last }).collect(),
        )
    }

    /// One rule a direction. What cannot be read any more matches nothing where it would allow, and everything where it
    /// would deny: a file of root's own is damaged, and that must not open anything.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let directions = match self.direction {
            Some(Way::Inbound) => vec![Direction::Inbound],
            Some(Way::Outbound) => vec![Direction::Outbound],
            None => vec![Direction::Inbound, Direction::Outbound],
        };
        let nets: Option<Vec<IpNet>> = self.remotes.iter().map(|text| text.parse_net()).collect();
        let set = match (nets, self.action) {
            (Some(nets), _) => set_of(&nets),
            (None, Action::Allow) => AddressSet::default(),
            (None, Action::Deny) => AddressSet::any(),
        };
        let set = Arc::new(set);
        let rule = |direction| Rule {
            direction,
            action: match self.action {
                Action::Allow => Verdict::Allow,
                Action::Deny => Verdict::Deny,
            },
            name: Some(self.label()),
            position: 0,
            place: Place { file: Arc::new(PathBuf::from(format!("guard {}", self.label()))), line: 0, column: 0 },
            remote: Remote { text: self.remotes.clone(), set: Arc::clone(&set), named: true },
            services: self.ranges(),
            services_text: self.ranges().into_iter().map(services::describe_range).collect(),
            interface: self.interface.clone(),
            local: self.local.map(|local| Arc::new(set_of(&[local.into()]))),
            expires: self.expires.map(|seconds| i128::from(seconds) * 1_000_000_000),
            comment: Some(match &self.note {
                Some(note) => format!("{}: {note}", self.by),
                None => self.by.clone(),
            }),
        };
        directions.into_iter().map(rule).collect()
    }
}

trait ParseNet {
    fn parse_net(&self) -> Option<IpNet>;
}

impl ParseNet for String {
    fn parse_net(&self) -> Option<IpNet> {
        addresses::parse(self).ok()
    }
}

fn set_of(nets: &[IpNet]) -> AddressSet {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for net in nets {
        match addresses::range(*net) {
            Range::V4(first, last) => v4.push((first, last)),
            Range::V6(first, last) => v6.push((first, last)),
        }
    }
    AddressSet::from_ranges(v4, v6)
}

/// The policy with its exceptions as rules behind its own. Another policy than the base, so with a hash of its own.
#[must_use]
pub fn compose(mut base: Policy, exceptions: &[Exception]) -> Policy {
    if exceptions.is_empty() {
        return base;
    }
    let mut hash = Sha256::new();
    hash.update(b"guard exceptions 1\n");
    hash.update(base.sha256);
    for exception in exceptions {
        // A struct of numbers and strings always has a form in JSON, and always the same.
        hash.update(serde_json::to_vec(exception).unwrap_or_default());
        hash.update(b"\n");
        base.rules.extend(exception.rules());
    }
    base.sha256 = hash.finalize().into();
    base
}

/// The first deny that would win over some of an exception that allows. `unix_ns`: now.
#[must_use]
pub fn overruled<'a>(policy: &'a Policy, exception: &Exception, unix_ns: i128) -> Option<&'a Rule> {
    let rules = exception.rules();
    let meets = |deny: &&Rule| {
        rules.iter().any(|allow| {
            deny.direction == allow.direction
                && deny.remote.set.meets(&allow.remote.set)
                && deny.services.iter().any(|d| allow.services.iter().any(|a| d.first <= a.last && a.first <= d.last))
                && match (&deny.local, &allow.local) {
                    (Some(deny), Some(allow)) => deny.meets(allow),
                    _ => true,
                }
                && match (&deny.interface, &allow.interface) {
                    (Some(deny), Some(allow)) => super::compile::pattern_matches(deny, allow),
                    _ => true,
                }
        })
    };
    let denies = policy.rules.iter().filter(|rule| rule.action == Verdict::Deny);
    denies.filter(|rule| rule.expires.is_none_or(|expires| unix_ns < expires)).find(meets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        compile::{Clocks, compile},
        load_str,
        nearest::explain,
    };

    const NOW: Clocks = Clocks { unix_ns: 1_000_000_000_000, boot_ns: 5_000_000_000 };

    fn policy() -> Policy {
        let text = "version: 1\nname: base\nmode: enforce\ninbound:\n  \
                    - { name: ssh, from: 198.51.100.7, services: ssh }\n  \
                    - { name: no telnet, action: deny, from: 203.0.113.0/24, services: [tcp/23, tcp/8000-8999] }\noutbound: []\n";
        load_str("base.yaml", text).unwrap().policy
    }

    fn made(text: &str, nets: &[&str]) -> Exception {
        let wanted = Wanted::flow(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let nets: Vec<IpNet> = match &wanted.host {
            Host::Net(net) => vec![*net],
            Host::Name(_) => nets.iter().map(|net| addresses::parse(net).unwrap()).collect(),
        };
        Exception { number: 2, by: "lee".to_owned(), ..wanted.exception(Action::Allow, &nets).unwrap() }
    }

    fn verdict(policy: &Policy, flow: &str, now: Clocks) -> (Verdict, Option<String>) {
        let compiled = compile(policy, NOW, 1).unwrap();
        let answer = explain(policy, &compiled, &flow.parse().unwrap(), now);
        (answer.verdict, answer.rule.map(|rule| policy.rules[rule].label()))
    }

    #[test]
    fn an_exception_is_a_rule_until_it_expires() {
        let exception = Exception { expires: Some(1_010), ..made("in tcp 198.51.100.9 -> 22", &[]) };
        let composed = compose(policy(), &[exception]);
        let flow = "in tcp 198.51.100.9 -> 22";
        assert_eq!(verdict(&composed, flow, NOW), (Verdict::Allow, Some("allow #2".to_owned())));
        assert_eq!(verdict(&policy(), flow, NOW).0, Verdict::Deny);
        assert_eq!(verdict(&composed, "in tcp 198.51.100.9 -> 23", NOW).0, Verdict::Deny);
        assert_eq!(verdict(&composed, "in tcp 198.51.100.7 -> 22", NOW).1.as_deref(), Some("ssh"));
        let later = Clocks { boot_ns: NOW.boot_ns + 10_000_000_000, ..NOW };
        assert_eq!(verdict(&composed, flow, later).0, Verdict::Deny);
        assert_ne!(composed.sha256, policy().sha256);
    }

    #[test]
    fn a_deny_cuts_both_ways_and_wins() {
        let wanted = Wanted::remote("198.51.100.0/28").unwrap();
        let Host::Net(net) = wanted.host else { panic!() };
        let deny = Exception { number: 3, ..wanted.exception(Action::Deny, &[net]).unwrap() };
        assert_eq!(deny.spoken(), "in and out 198.51.100.0/28");
        let composed = compose(policy(), &[deny]);
        assert_eq!(verdict(&composed, "in tcp 198.51.100.7 -> 22", NOW), (Verdict::Deny, Some("deny #3".to_owned())));
        assert_eq!(verdict(&composed, "out udp 198.51.100.7:53", NOW).1.as_deref(), Some("deny #3"));
    }

    #[test]
    fn where_a_deny_would_win_it_is_named() {
        let of = |text: &str| overruled(&policy(), &made(text, &[]), NOW.unix_ns).map(Rule::label);
        assert_eq!(of("in tcp 203.0.113.9 -> 23").as_deref(), Some("no telnet"));
        assert_eq!(of("in tcp 203.0.0.0/16 -> 8080").as_deref(), Some("no telnet"));
        assert_eq!(of("in tcp 203.0.113.9 -> 22"), None);
        assert_eq!(of("in tcp 198.51.100.9 -> 23"), None);
        assert_eq!(of("out tcp 203.0.113.9:23"), None);
    }

    #[test]
    fn names_networks_and_ports_are_read() {
        let by_name = made("out tcp mirror.Example.org:443", &["203.0.113.5", "2001:db8::5"]);
        assert_eq!(by_name.spoken(), "out tcp/443 to 203.0.113.5, 2001:db8::5 (mirror.example.org)");
        let ping = made("out icmp mirror.example.org echo-request", &["203.0.113.5", "2001:db8::5"]);
        assert_eq!(ping.services, [(1 << 16 | 8 << 8, 1 << 16 | 8 << 8), (58 << 16 | 128 << 8, 58 << 16 | 128 << 8)]);
        assert_eq!(
            made("in tcp 2001:db8:17::/48 -> 22 on eth1", &[]).spoken(),
            "in tcp/22 from 2001:db8:17::/48 on eth1"
        );
        assert_eq!(made("out tcp [2001:db8::9]:443", &[]).spoken(), "out tcp/443 to 2001:db8::9");
        assert_eq!(made("in ssh 198.51.100.9", &[]).spoken(), "in tcp/22 from 198.51.100.9");
    }

    #[test]
    fn everybody_and_what_cannot_be_read_are_refused() {
        for text in [
            "in tcp any -> 22",
            "in tcp 0.0.0.0/0 -> 22",
            "in tcp ::/0 -> 22",
            "in tcp 0.0.0.0/1 -> 22",
            "in tcp 2000::/3 -> 22",
            "in tcp 198.51.100.9:4000 -> 22",
            "in tcp 198.51.100.9",
            "in tcp",
            "tcp 198.51.100.9 -> 22",
            "in tcp 198.51.100.999 -> 22",
            "in tcp bad_name!.example -> 22",
            "out tcp 198.51.100.9/24:443",
            "",
        ] {
            assert!(Wanted::flow(text).is_err(), "{text}");
        }
        for text in ["any", "", "0.0.0.0/0", "198.51.100.300", "in tcp x"] {
            assert!(Wanted::remote(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_damaged_opens_nothing() {
        let mut exception = made("in tcp 198.51.100.9 -> 22", &[]);
        exception.remotes = vec!["nonsense".to_owned()];
        assert!(exception.rules()[0].remote.set.is_empty());
        exception.action = Action::Deny;
        assert_eq!(*exception.rules()[0].remote.set, AddressSet::any());
    }
}
