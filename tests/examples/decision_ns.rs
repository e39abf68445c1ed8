//! What a decision costs in the kernel: `cargo run --release -p guard-tests --example decision_ns`.
//!
//! Nanoseconds above a program that does all but decide, medians of nine runs over 65,536 random remotes, none, half
//! or all of them listed, and over one remote.

use std::{sync::Arc, time::Instant};

use anyhow::Result;
use guard::policy::model::ServiceRange;
use guard_common::{
    Direction,
    abi::Slot,
    decide::{Question, Subject},
};
use guard_tests::{
    probe::{CIRCLE, Probe, Prober},
    random::{self, Random},
};

fn main() -> Result<()> {
    println!(
        "{:>9} {:>4} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "CIDRs", "", "same", "none", "half", "all", "nodes", "compile"
    );
    for count in [10, 1_000, 100_000, 1_000_000] {
        let mut random = Random(count as u64);
        let (v4, v6) = (count, count.min(100_000));
        let set = Arc::new(random::prefixes(&mut random, v4, v6));
        let services = vec![ServiceRange { first: 6 << 16 | 443, last: 6 << 16 | 443 }];
        let policy = random::policy(vec![random::rule(Direction::Outbound, Arc::clone(&set), services)]);
        let begin = Instant::now();
        let compiled = random::compiled(&policy, 1)?;
        let compile = begin.elapsed();
        let mut prober = Prober::load()?;
        prober.0.fill(Slot(0), &compiled.nodes, compiled.rules)?;
        for ipv6 in [false, true] {
            let listed = |random: &mut Random| -> [u32; 4] {
                if ipv6 {
                    let range = set.v6[random.below(set.v6.len() as u64) as usize];
                    words(range.0 + u128::from(random.next()) % (range.1 - range.0 + 1).max(1))
                } else {
                    let range = set.v4[random.below(set.v4.len() as u64) as usize];
                    [range.0 + random.below(u64::from(range.1 - range.0) + 1) as u32, 0, 0, 0]
                }
            };
            let other = |random: &mut Random| -> [u32; 4] {
                if ipv6 {
                    words(0x2400_u128 << 112 | u128::from(random.next()) << 48)
                } else {
                    [random.next() as u32, 0, 0, 0]
                }
            };
            let mut line = Vec::new();
            for case in 0..4 {
                let same = listed(&mut random);
                let probes: Vec<_> = (0..CIRCLE)
                    .map(|_| {
                        let remote = match case {
                            0 => same,
                            1 => other(&mut random),
                            2 if random.one_in(2) => other(&mut random),
                            _ => listed(&mut random),
                        };
                        let question = Question {
                            direction: Direction::Outbound,
                            ipv6,
                            remote,
                            service: 6 << 16 | 443,
                            subject: Subject::default(),
                        };
                        Probe::ask(&question, 0)
                    })
                    .collect();
                prober.put(&probes)?;
                let nothing = prober.nanoseconds("probe_nothing", 9)?[4];
                let decide = prober.nanoseconds("probe_decide", 9)?[4];
                line.push(decide as i64 - nothing as i64);
            }
            let family = if ipv6 { "IPv6" } else { "IPv4" };
            println!(
                "{:>9} {family} {:>8} {:>8} {:>8} {:>8} {:>9} {:>6} ms",
                if ipv6 { v6 } else { v4 },
                line[0],
                line[1],
                line[2],
                line[3],
                compiled.nodes.len(),
                compile.as_millis()
            );
        }
    }
    Ok(())
}

const fn words(address: u128) -> [u32; 4] {
    [(address >> 96) as u32, (address >> 64) as u32, (address >> 32) as u32, address as u32]
}
