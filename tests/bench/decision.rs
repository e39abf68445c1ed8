//! What a decision costs in the kernel: nanoseconds above a program that does all but decide, side by side.

use std::sync::Arc;

use anyhow::Result;
use guard::policy::model::{AddressSet, ServiceRange};
use guard_common::{
    Direction,
    abi::Slot,
    decide::{Question, Subject},
};
use guard_tests::{
    probe::{CIRCLE, Probe, Prober},
    random::{self, Random},
};

use crate::series::Series;

/// How the remotes of the questions are chosen.
#[derive(Clone, Copy)]
enum Remotes {
    Same,
    None,
    Half,
    All,
}

const REMOTES: [(Remotes, &str); 4] =
    [(Remotes::Same, "same"), (Remotes::None, "none"), (Remotes::Half, "half"), (Remotes::All, "all")];
const SIZES: [usize; 4] = [10, 1_000, 100_000, 1_000_000];
/// tcp/443.
const SERVICE: u32 = 6 << 16 | 443;

pub fn measure(runs: usize) -> Result<Vec<Series>> {
    let mut all = Vec::new();
    println!(
        "a decision in the kernel, ns above a program that does all else; remotes: one and the same, or random and"
    );
    println!("none, half or all of them listed; medians of {runs}, each of {CIRCLE} packets\n");
    println!("{:>9} {:>6} {:>8} {:>8} {:>8} {:>8}", "CIDRs", "", "same", "none", "half", "all");
    for size in SIZES {
        let mut random = Random(size as u64);
        let set = Arc::new(random::prefixes(&mut random, size, size));
        let services = vec![ServiceRange { first: SERVICE, last: SERVICE }];
        let policy = random::policy(vec![random::rule(Direction::Outbound, Arc::clone(&set), services)]);
        let compiled = random::compiled(&policy, 1)?;
        let mut prober = Prober::load()?;
        prober.0.fill(Slot(0), &compiled.nodes, compiled.rules)?;
        for (ipv6, family) in [(false, "IPv4"), (true, "IPv6")] {
            let mut line = format!("{size:>9} {family:>6}");
            for (remotes, name) in REMOTES {
                prober.put(&questions(&mut random, &set, ipv6, remotes))?;
                let mut series = Series::of(format!("decision {family} {size} CIDRs, {name}"), "ns");
                for _ in 0..runs {
                    // Beside each other, so that the machine's mood meets both.
                    let nothing = prober.nanoseconds("probe_nothing", 1)?[0];
                    let decide = prober.nanoseconds("probe_decide", 1)?[0];
                    series.runs.push(decide as f64 - nothing as f64);
                }
                line += &format!(" {:>8.0}", series.median());
                all.push(series);
            }
            println!("{line}");
        }
    }
    println!();
    Ok(all)
}

fn questions(random: &mut Random, set: &AddressSet, ipv6: bool, remotes: Remotes) -> Vec<Probe> {
    let same = listed(random, set, ipv6);
    (0..CIRCLE)
        .map(|_| {
            let remote = match remotes {
                Remotes::Same => same,
                Remotes::None => other(random, ipv6),
                Remotes::Half if random.one_in(2) => other(random, ipv6),
                Remotes::Half | Remotes::All => listed(random, set, ipv6),
            };
            let (direction, service) = (Direction::Outbound, SERVICE);
            Probe::ask(&Question { direction, ipv6, remote, service, subject: Subject::default() }, 0)
        })
        .collect()
}

fn listed(random: &mut Random, set: &AddressSet, ipv6: bool) -> [u32; 4] {
    if ipv6 {
        let (first, last) = set.v6[random.below(set.v6.len() as u64) as usize];
        words(first + u128::from(random.next()) % (last - first + 1).max(1))
    } else {
        let (first, last) = set.v4[random.below(set.v4.len() as u64) as usize];
        [first + random.below(u64::from(last - first) + 1) as u32, 0, 0, 0]
    }
}

/// Hardly ever listed.
fn other(random: &mut Random, ipv6: bool) -> [u32; 4] {
    if ipv6 { words(0x2400_u128 << 112 | u128::from(random.next()) << 48) } else { [random.next() as u32, 0, 0, 0] }
}

const fn words(address: u128) -> [u32; 4] {
    [(address >> 96) as u32, (address >> 64) as u32, (address >> 32) as u32, address as u32]
}
