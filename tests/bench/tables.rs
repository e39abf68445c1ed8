//! From a policy to its tables in the kernel: time and memory for each size.

use std::{sync::Arc, time::Instant};

use anyhow::Result;
use guard::policy::model::{Policy, Rule, ServiceRange};
use guard_common::{Direction, abi::Slot};
use guard_tests::{
    probe::Prober,
    random::{self, Random},
};

use crate::series::Series;

pub fn measure(runs: usize) -> Result<Vec<Series>> {
    let mut all = Vec::new();
    println!("from a checked policy to its tables in the kernel, ms (medians of {runs})\n");
    println!("{:<34} {:>9} {:>9} {:>11}", "", "compile", "publish", "tables");
    for (name, policy) in policies() {
        let mut compile = Series::of(format!("compile {name}"), "ms");
        let mut publish = Series::of(format!("publish {name}"), "ms");
        let mut bytes = 0;
        for _ in 0..runs {
            let start = Instant::now();
            let compiled = random::compiled(&policy, 1)?;
            compile.runs.push(milliseconds(start));
            bytes = compiled.size_report().bytes;
            let mut prober = Prober::load()?;
            let start = Instant::now();
            prober.0.fill(Slot(0), &compiled.nodes, compiled.rules)?;
            publish.runs.push(milliseconds(start));
        }
        println!("{name:<34} {:>9.1} {:>9.1} {:>8} KiB", compile.median(), publish.median(), bytes / 1024);
        all.extend([compile, publish]);
    }
    println!();
    Ok(all)
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn policies() -> Vec<(String, Policy)> {
    let port = |port: u32| ServiceRange { first: 6 << 16 | port, last: 6 << 16 | port };
    let mut all = Vec::new();
    for size in [10, 1_000, 100_000, 1_000_000] {
        let set = Arc::new(random::prefixes(&mut Random(size as u64), size, size / 4));
        let policy = random::policy(vec![random::rule(Direction::Outbound, set, vec![port(443)])]);
        all.push((format!("{size} IPv4 and {} IPv6 CIDRs", size / 4), policy));
    }
    for size in [1_000, 100_000] {
        let mut random = Random(size);
        let rules: Vec<Rule> = (0..size)
            .map(|_| {
                let address = random.next() as u32;
                let set = Arc::new(random::address_set(vec![(address, address)], Vec::new()));
                random::rule(Direction::Outbound, set, vec![port(random.next() as u32 & 0xffff)])
            })
            .collect();
        all.push((format!("{size} host-and-port rules"), random::policy(rules)));
    }
    all
}
