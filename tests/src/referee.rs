//! What a policy means, said a second time and as plainly as possible: every rule in turn, over the typed policy. Shares
//! nothing with the compiler and `decide` but the model, so that an error in one is not an error in both.

use std::net::IpAddr;

use guard::policy::{
    compile::Clocks,
    model::{AddressSet, Policy, Rule},
};
use guard_common::{Direction, Verdict};

/// One packet's question, in the model's terms.
#[derive(Clone, Debug)]
pub struct Asked {
    pub direction: Direction,
    pub remote: IpAddr,
    pub local: IpAddr,
    /// Protocol << 16 | port, or ICMP type << 8 | code.
    pub service: u32,
    pub interface: String,
    /// Boot-time nanoseconds.
    pub now: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub verdict: Verdict,
    /// The first in file order of the rules that match with this verdict.
    pub rule: Option<u32>,
    /// An allow, and some matching allow names its remotes.
    pub named: bool,
    /// The first moment, after now, at which any of the above changes; `u64::MAX`: never.
    pub until: u64,
}

#[must_use]
pub fn judge(policy: &Policy, asked: &Asked, clocks: Clocks) -> Answer {
    let answer = at(policy, asked, clocks, asked.now);
    let mut moments: Vec<u64> =
        policy.rules.iter().map(|rule| end_of(rule, clocks)).filter(|end| *end > asked.now).collect();
    moments.sort_unstable();
    let changes =
        moments.into_iter().find(|moment| *moment != u64::MAX && at(policy, asked, clocks, *moment) != answer);
    Answer { until: changes.unwrap_or(u64::MAX), ..answer }
}

/// Rules of either verdict that match now.
#[must_use]
pub fn matching(policy: &Policy, asked: &Asked, clocks: Clocks) -> Vec<u32> {
    let rules = (0..).zip(&policy.rules);
    rules.filter(|(_, rule)| matches(rule, asked, clocks, asked.now)).map(|(number, _)| number).collect()
}

fn at(policy: &Policy, asked: &Asked, clocks: Clocks, now: u64) -> Answer {
    let mut deny = None;
    let mut allow = None;
    let mut named = false;
    for (number, rule) in (0..).zip(&policy.rules) {
        if !matches(rule, asked, clocks, now) {
            continue;
        }
        match rule.action {
            Verdict::Deny if deny.is_none() => deny = Some(number),
            Verdict::Deny => {}
            Verdict::Allow => {
                named |= rule.remote.named;
                if allow.is_none() {
                    allow = Some(number);
                }
            }
        }
    }
    match (deny, allow) {
        (None, Some(_)) => Answer { verdict: Verdict::Allow, rule: allow, named, until: 0 },
        _ => Answer { verdict: Verdict::Deny, rule: deny, named: false, until: 0 },
    }
}

fn matches(rule: &Rule, asked: &Asked, clocks: Clocks, now: u64) -> bool {
    rule.direction == asked.direction
        && contains(&rule.remote.set, asked.remote)
        && rule.services.iter().any(|range| range.first <= asked.service && asked.service <= range.last)
        && rule
            .interface
            .as_ref()
            .is_none_or(|any| any.split(',').any(|one| glob(one.as_bytes(), asked.interface.as_bytes())))
        && rule.local.as_ref().is_none_or(|set| contains(set, asked.local))
        && now < end_of(rule, clocks)
}

fn contains(set: &AddressSet, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let bits = u32::from(address);
            set.v4.iter().any(|(first, last)| *first <= bits && bits <= *last)
        }
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            set.v6.iter().any(|(first, last)| *first <= bits && bits <= *last)
        }
    }
}

fn end_of(rule: &Rule, clocks: Clocks) -> u64 {
    match rule.expires {
        None => u64::MAX,
        Some(expires) => {
            let boot = i128::from(clocks.boot_ns) + (expires - clocks.unix_ns);
            boot.clamp(0, i128::from(u64::MAX)) as u64
        }
    }
}

fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) if glob(rest, name) => true,
        ([b'*', ..], [_, rest @ ..]) => glob(pattern, rest),
        ([b'?', pattern @ ..], [_, name @ ..]) => glob(pattern, name),
        ([a, pattern @ ..], [b, name @ ..]) => a == b && glob(pattern, name),
        _ => false,
    }
}
