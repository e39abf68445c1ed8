//! Big policies of several shapes, and what compiling them takes.

use std::{sync::Arc, time::Instant};

use guard::policy::{
    compile::{CompileError, SizeReport, compile},
    model::{AddressSet, Policy, ServiceRange},
};
use guard_common::Direction;

use crate::{
    differential::CLOCKS,
    random::{self, Random, address_set},
};

/// How the entries of a policy are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One rule, one list of IPv4 CIDRs.
    List,
    /// Ten rules, each with its own list; the lists overlap.
    TenLists,
    /// One rule, one list of IPv6 prefixes and hosts.
    ListV6,
    /// A rule for each IPv4 host with a port.
    HostAndPort,
    /// A rule for each IPv6 host with a port.
    HostAndPortV6,
    /// One list of IPv4 hosts, every second address of one prefix, and one far away at either end.
    Dense,
}

impl Shape {
    pub const ALL: &'static [Self] =
        &[Self::List, Self::TenLists, Self::ListV6, Self::HostAndPort, Self::HostAndPortV6, Self::Dense];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::List => "one list",
            Self::TenLists => "ten lists",
            Self::ListV6 => "one list, IPv6",
            Self::HostAndPort => "host and port",
            Self::HostAndPortV6 => "host and port, IPv6",
            Self::Dense => "dense hosts",
        }
    }

    /// A policy with about `entries` CIDRs or rules.
    #[must_use]
    pub fn policy(self, entries: usize) -> Policy {
        let mut random = Random(entries as u64);
        let random = &mut random;
        let https = || vec![ServiceRange { first: 6 << 16 | 443, last: 6 << 16 | 443 }];
        let one = |set: AddressSet| random::rule(Direction::Outbound, Arc::new(set), https());
        let rules = match self {
            Self::List => vec![one(random::prefixes(random, entries, 0))],
            Self::TenLists => (0..10).map(|_| one(random::prefixes(random, entries.div_ceil(10), 0))).collect(),
            Self::ListV6 => vec![one(random::prefixes(random, 0, entries))],
            Self::HostAndPort => (0..entries).map(|_| host(random, false)).collect(),
            Self::HostAndPortV6 => (0..entries).map(|_| host(random, true)).collect(),
            Self::Dense => {
                let hosts = (0..entries as u32).map(|host| 0xc000_0000 + host * 2);
                vec![one(address_set(hosts.chain([1, u32::MAX - 1]).map(|host| (host, host)).collect(), vec![]))]
            }
        };
        random::policy(rules)
    }
}

fn host(random: &mut Random, ipv6: bool) -> guard::policy::model::Rule {
    let bits = random.next();
    let set = if ipv6 {
        let host = 0x2001_0db8_u128 << 96 | u128::from(bits);
        AddressSet { v4: vec![], v6: vec![(host, host)] }
    } else {
        AddressSet { v4: vec![(bits as u32, bits as u32)], v6: vec![] }
    };
    let port = (6 << 16) + 8000 + random.below(1000) as u32;
    random::rule(Direction::Outbound, Arc::new(set), vec![ServiceRange { first: port, last: port }])
}

#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Milliseconds.
    pub least: f64,
    pub median: f64,
    pub size: SizeReport,
}

/// Compiles `runs` times.
pub fn measure(policy: &Policy, runs: usize) -> Result<Measured, CompileError> {
    let mut size = SizeReport::default();
    let mut times = Vec::new();
    for _ in 0..runs.max(1) {
        let began = Instant::now();
        let compiled = compile(policy, CLOCKS, 1)?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        size = compiled.size_report();
    }
    times.sort_by(f64::total_cmp);
    Ok(Measured { least: times[0], median: times[times.len() / 2], size })
}
