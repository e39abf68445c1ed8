//! Which end of a logged flow is ours: as given, as told by the record itself, else the most common address of each family.

use std::{collections::HashMap, net::IpAddr};

use guard_common::Direction;
use ipnet::IpNet;

use super::{super::observed::Observed, Summary, raw::Raw};

/// How many flows are looked at to find out whose log it is; as many packets are for a capture.
const SURVEYED: usize = 8192;

pub struct Placer<'a> {
    given: &'a [IpNet],
    sink: &'a mut dyn FnMut(Observed),
    /// Until it is known who is ours.
    waiting: Vec<Raw>,
    ours: Option<Vec<IpAddr>>,
    told: u64,
    flows: u64,
    foreign: u64,
    both_local: u64,
    other: u64,
}

impl<'a> Placer<'a> {
    pub fn new(given: &'a [IpNet], sink: &'a mut dyn FnMut(Observed)) -> Self {
        Self { given, sink, waiting: Vec::new(), ours: None, told: 0, flows: 0, foreign: 0, both_local: 0, other: 0 }
    }

    pub fn place(&mut self, raw: Raw) {
        if self.given.is_empty() {
            if let Some(direction) = raw.direction {
                self.told += 1;
                return self.put(raw, direction);
            }
            if self.ours.is_none() {
                self.waiting.push(raw);
                if self.waiting.len() >= SURVEYED {
                    self.decide();
                }
                return;
            }
        }
        self.by_address(raw);
    }

    pub fn finish(mut self, summary: &mut Summary) {
        if self.ours.is_none() && !self.waiting.is_empty() {
            self.decide();
        }
        summary.flows += self.flows;
        summary.foreign += self.foreign;
        summary.both_local += self.both_local;
        summary.other += self.other;
        summary.local = match (&self.ours, self.given) {
            (_, [_, ..]) => format!("{}, as given", join(self.given)),
            (Some(ours), _) if !ours.is_empty() => format!("{}, the most common address", join(ours)),
            _ if self.told > 0 => "as the records say".to_owned(),
            _ => "not known".to_owned(),
        };
    }

    fn decide(&mut self) {
        let mut seen: HashMap<IpAddr, (u64, u64)> = HashMap::new();
        for (order, raw) in (0u64..).zip(&self.waiting) {
            for (address, sent) in [(raw.source, true), (raw.destination, false)] {
                let seen = seen.entry(address).or_insert((0, 0));
                seen.0 += 1;
                if sent && seen.1 == 0 {
                    seen.1 = u64::MAX - order;
                }
            }
        }
        let most = |family: fn(&IpAddr) -> bool| {
            seen.iter()
                .filter(|(address, _)| family(address) && !is_group(**address) && !address.is_unspecified())
                .max_by_key(|(address, (count, first))| (*count, is_private(**address), *first, **address))
                .map(|(address, _)| *address)
        };
        self.ours = Some([most(IpAddr::is_ipv4), most(IpAddr::is_ipv6)].into_iter().flatten().collect());
        for raw in std::mem::take(&mut self.waiting) {
            self.by_address(raw);
        }
    }

    fn by_address(&mut self, raw: Raw) {
        let is_ours = |address: IpAddr| match &self.ours {
            Some(ours) => ours.contains(&address),
            None => self.given.iter().any(|net| net.contains(&address)),
        };
        if raw.source == raw.destination || (raw.source.is_loopback() && raw.destination.is_loopback()) {
            self.both_local += 1;
            return;
        }
        match (is_ours(raw.source), is_ours(raw.destination)) {
            (true, true) => self.both_local += 1,
            (true, false) => self.put(raw, Direction::Outbound),
            (false, true) => self.put(raw, Direction::Inbound),
            (false, false) => self.foreign += 1,
        }
    }

    fn put(&mut self, raw: Raw, direction: Direction) {
        match raw.observed(direction) {
            Some(flow) => {
                self.flows += 1;
                (self.sink)(flow);
            }
            None => self.other += 1,
        }
    }
}

fn join(list: &[impl ToString]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST)
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
    }
}
