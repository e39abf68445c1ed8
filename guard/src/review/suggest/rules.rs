//! What was learned, as rules: remotes summed up, equal rules put together, the least seen left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use guard_common::Direction;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Asked, Evidence, Learner, Part, Why};
use crate::policy::services::{BUILT_IN, describe};

/// An inbound service with more remotes than this is proposed for everyone.
pub const PUBLIC: usize = 50;

/// How wide networks may be that addresses are summed up to. `None`: each address, or a network that was seen whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Widest {
    pub v4: Option<u8>,
    pub v6: Option<u8>,
}

impl std::str::FromStr for Widest {
    type Err = String;

    /// `/24`, or `/24,/56` with IPv6's.
    fn from_str(text: &str) -> Result<Self, String> {
        let fix = || "write a prefix length such as /24, or two, such as /24,/56: IPv4's and IPv6's".to_owned();
        let length = |text: &str, most: u8| {
            let length = text.trim().trim_start_matches('/').parse::<u8>().map_err(|_| fix())?;
            if (1..=most).contains(&length) { Ok(length) } else { Err(fix()) }
        };
        match text.split_once(',') {
            None => Ok(Self { v4: Some(length(text, 32)?), v6: None }),
            Some((v4, v6)) => Ok(Self { v4: Some(length(v4, 32)?), v6: Some(length(v6, 128)?) }),
        }
    }
}

/// One proposed rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub direction: Direction,
    /// Words; never empty.
    pub services: BTreeSet<u32>,
    /// Empty: everyone.
    pub remotes: Vec<IpNet>,
    pub evidence: Evidence,
    /// Names that the remotes were asked as, each with the addresses that it had.
    pub names: BTreeMap<Arc<str>, BTreeSet<IpAddr>>,
    /// What was seen, each address once however many programs used it.
    pub addresses: BTreeSet<IpAddr>,
    /// A flow that it is for: remote and service.
    pub sample: (IpAddr, u32),
}

impl Rule {
    /// What another rule saw, too.
    fn seen(&mut self, other: Self) {
        self.addresses.extend(other.addresses);
        for (name, addresses) in other.names {
            self.names.entry(name).or_default().extend(addresses);
        }
    }

    #[must_use]
    pub fn is_public(&self) -> bool {
        self.remotes.is_empty()
    }

    /// Names of which there was more than one address.
    #[must_use]
    pub fn rotting(&self) -> Vec<&str> {
        self.names.iter().filter(|(_, addresses)| addresses.len() > 1).map(|(name, _)| &**name).collect()
    }
}

/// A service as policies write it.
pub fn service_text(word: u32) -> String {
    let exactly = |ranges: &[crate::policy::model::ServiceRange]| match ranges {
        [one] => one.first == word && one.last == word,
        _ => false,
    };
    match BUILT_IN.iter().find(|(_, ranges)| exactly(ranges)) {
        Some((name, _)) => (*name).to_owned(),
        None => describe(word),
    }
}

/// Services of one rule, as policies write them.
pub fn services_text(words: &BTreeSet<u32>) -> Vec<String> {
    const DNS: [u32; 2] = [6 << 16 | 53, 17 << 16 | 53];
    let dns = DNS.iter().all(|word| words.contains(word));
    let rest = words.iter().filter(|word| !dns || !DNS.contains(word)).map(|word| service_text(*word));
    dns.then(|| "dns".to_owned()).into_iter().chain(rest).collect()
}

/// Everything that was left out: what it was, and its evidence. A remote that is unspecified stands for many.
pub type LeftOut = Vec<(Why, Direction, u32, IpAddr, Evidence)>;

/// The rules, most seen first within a direction; and what is left out.
pub fn rules(learner: Learner<'_>, most: usize, widest: Widest) -> (Vec<Rule>, LeftOut) {
    let scanners = learner.scanners();
    let mut left_out: BTreeMap<(Why, Direction, u32, IpAddr), Evidence> = BTreeMap::new();
    let mut leave = |why, direction, service, remote, evidence: &Evidence| {
        left_out.entry((why, direction, service, remote)).or_default().add(evidence);
    };
    for ((why, asked, remote), evidence) in &learner.left_out {
        leave(*why, asked.direction, asked.service, *remote, evidence);
    }
    let mut by_asked: BTreeMap<Asked, BTreeMap<IpAddr, Part>> = BTreeMap::new();
    for ((asked, remote), part) in learner.learned {
        if asked.direction == Direction::Inbound && scanners.contains(&remote) {
            leave(Why::Scan, asked.direction, asked.service, remote, &part.evidence);
        } else {
            by_asked.entry(asked).or_default().insert(remote, part);
        }
    }
    let mut rules: Vec<Rule> =
        together(by_asked).into_iter().map(|(asked, parts)| rule(&asked, &parts, widest)).collect();
    join_services(&mut rules);
    if rules.len() > most {
        join_programs(&mut rules, widest);
    }
    rules.sort_by(|a, b| {
        (a.direction, b.evidence.flows, &a.services).cmp(&(b.direction, a.evidence.flows, &b.services))
    });
    while rules.len() > most {
        let Some(least) = (0..rules.len()).min_by_key(|at| (rules[*at].evidence.flows, rules[*at].evidence.last))
        else {
            break;
        };
        let rule = rules.remove(least);
        let alone = match rule.remotes.as_slice() {
            [one] if one.prefix_len() == one.max_prefix_len() => one.addr(),
            _ => super::nobody(rule.sample.0),
        };
        for (number, service) in rule.services.iter().enumerate() {
            // Counted once, named by each service.
            let evidence = if number == 0 {
                rule.evidence.clone()
            } else {
                Evidence { flows: 0, bytes: 0, ..rule.evidence.clone() }
            };
            leave(Why::BeyondMaxRules, rule.direction, *service, alone, &evidence);
        }
    }
    let left_out =
        left_out.into_iter().map(|((why, way, service, remote), e)| (why, way, service, remote, e)).collect();
    (rules, left_out)
}

/// Public services are one rule whoever serves them; what has no known program joins the only one that is known.
fn together(by_asked: BTreeMap<Asked, BTreeMap<IpAddr, Part>>) -> BTreeMap<Asked, BTreeMap<IpAddr, Part>> {
    let mut remotes: BTreeMap<(Direction, u32), BTreeSet<IpAddr>> = BTreeMap::new();
    let mut programs: BTreeMap<(Direction, u32), BTreeSet<Arc<str>>> = BTreeMap::new();
    for (asked, parts) in &by_asked {
        let place = (asked.direction, asked.service);
        remotes.entry(place).or_default().extend(parts.keys().copied());
        programs.entry(place).or_default().extend(asked.program.clone());
    }
    let mut joined: BTreeMap<Asked, BTreeMap<IpAddr, Part>> = BTreeMap::new();
    for (mut asked, parts) in by_asked {
        let place = (asked.direction, asked.service);
        let public = asked.direction == Direction::Inbound && remotes[&place].len() > PUBLIC;
        let known = &programs[&place];
        if public || (asked.program.is_none() && known.len() == 1) {
            asked.program = known.first().cloned();
        }
        let into = joined.entry(asked).or_default();
        for (remote, part) in parts {
            let place = into.entry(remote).or_default();
            place.evidence.add(&part.evidence);
            place.names.extend(part.names);
        }
    }
    joined
}

fn rule(asked: &Asked, parts: &BTreeMap<IpAddr, Part>, widest: Widest) -> Rule {
    let mut evidence = Evidence::default();
    let mut names: BTreeMap<Arc<str>, BTreeSet<IpAddr>> = BTreeMap::new();
    for (remote, part) in parts {
        evidence.add(&part.evidence);
        for name in &part.names {
            names.entry(Arc::clone(name)).or_default().insert(*remote);
        }
    }
    let public = asked.direction == Direction::Inbound && parts.len() > PUBLIC;
    let remotes = if public { Vec::new() } else { sum_up(parts.keys().copied(), widest) };
    let sample = parts.keys().next().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    Rule {
        direction: asked.direction,
        services: [asked.service].into(),
        remotes,
        evidence,
        names,
        addresses: parts.keys().copied().collect(),
        sample: (sample, asked.service),
    }
}

/// Same program, same remotes: one rule with several services.
fn join_services(rules: &mut Vec<Rule>) {
    join(
        rules,
        |rule| (rule.direction, rule.remotes.clone(), rule.evidence.programs.clone()),
        |one, other| {
            one.services.extend(&other.services);
            one.seen(other);
        },
    );
}

/// Same services: one rule, whoever asked. Nothing becomes wider, since a rule names no program.
fn join_programs(rules: &mut Vec<Rule>, widest: Widest) {
    join(
        rules,
        |rule| (rule.direction, rule.services.clone()),
        |one, other| {
            let public = one.is_public() || other.is_public();
            one.seen(other);
            one.remotes = if public { Vec::new() } else { sum_up(one.addresses.iter().copied(), widest) };
        },
    );
}

fn join<K: Ord>(rules: &mut Vec<Rule>, key: impl Fn(&Rule) -> K, add: impl Fn(&mut Rule, Rule)) {
    let mut joined: BTreeMap<K, Rule> = BTreeMap::new();
    for rule in std::mem::take(rules) {
        match joined.entry(key(&rule)) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(rule);
            }
            std::collections::btree_map::Entry::Occupied(mut place) => {
                let evidence = rule.evidence.clone();
                add(place.get_mut(), rule);
                place.get_mut().evidence.add(&evidence);
            }
        }
    }
    rules.extend(joined.into_values());
}

/// Addresses as networks: those that were seen whole, or, where `widest` allows it, the smallest network that holds those
/// of one network of that width. Never wider than that: two such that lie side by side stay two.
pub fn sum_up(addresses: impl Iterator<Item = IpAddr>, widest: Widest) -> Vec<IpNet> {
    let mut widened: BTreeMap<IpNet, (IpAddr, IpAddr)> = BTreeMap::new();
    let mut whole: Vec<IpNet> = Vec::new();
    for address in addresses {
        match if address.is_ipv4() { widest.v4 } else { widest.v6 } {
            None => whole.push(IpNet::from(address)),
            Some(length) => {
                let Ok(net) = IpNet::new(address, length) else { continue };
                let span = widened.entry(net.trunc()).or_insert((address, address));
                *span = (span.0.min(address), span.1.max(address));
            }
        }
    }
    let mut nets = IpNet::aggregate(&whole);
    nets.extend(widened.into_values().map(|(low, high)| around(low, high)));
    nets.sort_unstable();
    nets
}

/// The smallest network that holds both.
fn around(low: IpAddr, high: IpAddr) -> IpNet {
    match (low, high) {
        (IpAddr::V4(low), IpAddr::V4(high)) => {
            let length = (low.to_bits() ^ high.to_bits()).leading_zeros() as u8;
            IpNet::V4(Ipv4Net::new_assert(low, length).trunc())
        }
        (IpAddr::V6(low), IpAddr::V6(high)) => {
            let length = (low.to_bits() ^ high.to_bits()).leading_zeros() as u8;
            IpNet::V6(Ipv6Net::new_assert(low, length).trunc())
        }
        (one, _) => IpNet::from(one),
    }
}
