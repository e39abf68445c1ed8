//! What strangers tried and did not get, as the store keeps it: sums, and how many addresses and ports there were.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use super::{
    facts::Facts,
    group::Service,
    observed::{Fate, Observed},
};
use crate::store::BackgroundLine;

/// Addresses that are counted; above, "at least".
const MOST_ADDRESSES: usize = 200_000;

/// By protocol, and by port where something listens.
#[derive(Default)]
pub struct Crowd {
    lines: BTreeMap<(u8, Option<u16>), Line>,
    addresses: usize,
}

#[derive(Default)]
struct Line {
    flows: u64,
    packets: u64,
    bytes: u64,
    passed: u64,
    ports: HashSet<u16>,
    addresses: HashSet<IpAddr, foldhash::fast::RandomState>,
    at_least: bool,
}

impl Crowd {
    pub fn add(&mut self, flow: &Observed) {
        let service = Service::of(&flow.key, flow.direction);
        let sums = [1, flow.packets[0].saturating_add(flow.packets[1]), flow.bytes[0].saturating_add(flow.bytes[1])];
        let passed = u64::from(flow.fate != Fate::Denied);
        self.put(service, flow.listening == Some(true), sums, passed, [flow.remote()]);
    }

    /// All flows of a group at once.
    pub fn add_group(&mut self, facts: &Facts) {
        let sums = [
            facts.flows,
            facts.packets[0].saturating_add(facts.packets[1]),
            facts.bytes[0].saturating_add(facts.bytes[1]),
        ];
        let passed = facts.flows - facts.fates[1];
        let listens = facts.listening == Some(true);
        self.put(facts.group.service, listens, sums, passed, facts.remotes.iter().copied());
    }

    fn put(
        &mut self,
        service: Service,
        listens: bool,
        sums: [u64; 3],
        passed: u64,
        remotes: impl IntoIterator<Item = IpAddr>,
    ) {
        let line = self.lines.entry((service.protocol, listens.then_some(service.port))).or_default();
        let [flows, packets, bytes] = sums;
        line.flows += flows;
        line.packets = line.packets.saturating_add(packets);
        line.bytes = line.bytes.saturating_add(bytes);
        line.passed += passed;
        line.ports.insert(service.port);
        for remote in remotes {
            if self.addresses >= MOST_ADDRESSES {
                line.at_least |= !line.addresses.contains(&remote);
            } else if line.addresses.insert(remote) {
                self.addresses += 1;
            }
        }
    }

    #[must_use]
    pub fn lines(&self) -> Vec<BackgroundLine> {
        let line = |((protocol, port), line): (&(u8, Option<u16>), &Line)| BackgroundLine {
            protocol: *protocol,
            port: *port,
            flows: line.flows,
            packets: line.packets,
            bytes: line.bytes,
            passed: line.passed,
            addresses: line.addresses.len() as u64,
            ports: line.ports.len() as u64,
            at_least: line.at_least,
        };
        self.lines.iter().map(line).collect()
    }
}
