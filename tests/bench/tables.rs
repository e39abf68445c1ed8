//! From a policy's files to its tables in the kernel: time and memory for each size.

use std::{
    fmt::Write,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use guard_common::abi::Slot;
use guard_tests::{
    probe::Prober,
    random::{self, Random},
};

use crate::series::Series;

pub fn measure(runs: usize) -> Result<Vec<Series>> {
    let mut all = Vec::new();
    println!("from a policy's files to its tables in the kernel, ms (medians of {runs})\n");
    println!("{:<34} {:>8} {:>9} {:>9} {:>13} {:>12}", "", "parse", "compile", "publish", "tables", "peak memory");
    for (name, write) in policies() {
        let dir = tempfile::tempdir()?;
        write(dir.path())?;
        let policy = dir.path().join("policy.yaml");
        let mut parse = Series::of(format!("parse {name}"), "ms");
        let mut compile = Series::of(format!("compile {name}"), "ms");
        let mut publish = Series::of(format!("publish {name}"), "ms");
        let mut memory = Series::of(format!("peak memory {name}"), "MiB");
        let mut bytes = 0;
        for _ in 0..runs {
            let mut prober = Prober::load()?;
            let before = resident(true)?;
            let start = Instant::now();
            let loaded = guard::policy::load(&policy).map_err(|_| anyhow!("{name} is not valid"))?;
            parse.runs.push(milliseconds(start));
            let start = Instant::now();
            let compiled = random::compiled(&loaded.policy, 1)?;
            compile.runs.push(milliseconds(start));
            bytes = compiled.size_report().bytes;
            let start = Instant::now();
            prober.0.fill(Slot(0), &compiled.nodes, compiled.rules)?;
            publish.runs.push(milliseconds(start));
            memory.runs.push(resident(false)? - before);
        }
        println!(
            "{name:<34} {:>8.1} {:>9.1} {:>9.1} {:>9} KiB {:>8.0} MiB",
            parse.median(),
            compile.median(),
            publish.median(),
            bytes / 1024,
            memory.median()
        );
        all.extend([parse, compile, publish, memory]);
    }
    println!();
    Ok(all)
}

pub fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// MiB that this process holds now, with the peak forgotten; or the peak since then.
fn resident(forget: bool) -> Result<f64> {
    if forget {
        // Since Linux 4.0: sets the peak to what is held now.
        fs::write("/proc/self/clear_refs", "5")?;
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

type Writer = Box<dyn Fn(&Path) -> Result<()>>;

pub fn policies() -> Vec<(String, Writer)> {
    let mut all: Vec<(String, Writer)> = Vec::new();
    for size in [10_u64, 1_000, 100_000, 1_000_000] {
        let write = move |dir: &Path| {
            let (mut random, mut list) = (Random(size), String::new());
            for number in 0..size {
                // Of 20 to 32 bits, and one in five of 32 to 64 bits.
                if number % 5 == 0 {
                    let bits = 32 + random.below(33) as u32;
                    let address = 0x2001_u128 << 112 | u128::from(random.next()) << 48;
                    writeln!(list, "{}/{bits}", Ipv6Addr::from(address & !(u128::MAX >> bits)))?;
                } else {
                    let bits = 20 + random.below(13) as u32;
                    let address = 0x0100_0000 + random.below(0xde00_0000) as u32;
                    writeln!(list, "{}/{bits}", Ipv4Addr::from(address & !(u64::from(u32::MAX) >> bits) as u32))?;
                }
            }
            fs::write(dir.join("list.txt"), list)?;
            let rule = "  - { name: listed, to: listed, services: https }\n";
            put(dir, "groups:\n  listed: { file: list.txt }\n", rule)
        };
        all.push((format!("{size} CIDRs in a list file"), Box::new(write)));
    }
    for size in [1_000_u32, 100_000] {
        let write = move |dir: &Path| {
            let mut random = Random(u64::from(size));
            let mut rules = String::new();
            for number in 0..size {
                let address = Ipv4Addr::from(0x0100_0000 + random.below(0xde00_0000) as u32);
                let port = 1 + random.below(65_535);
                writeln!(rules, "  - {{ name: r{number}, to: {address}, services: tcp/{port} }}")?;
            }
            put(dir, "", &rules)
        };
        all.push((format!("{size} host-and-port rules"), Box::new(write)));
    }
    all
}

fn put(dir: &Path, groups: &str, outbound: &str) -> Result<()> {
    let text = format!("version: 1\nname: bench\nmode: enforce\n{groups}inbound: []\noutbound:\n{outbound}");
    Ok(fs::write(dir.join("policy.yaml"), text)?)
}
