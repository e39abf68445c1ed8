//! `cargo xtask bench`: what guard costs, as ratios taken side by side in one run.
//!
//! Two parts: `guard-bench` (package guard-tests) asks the loaded programs, the compiler and the replay engine; the
//! pair of hosts here compares no filter, guard, and nftables with the same allow-list on real traffic.

mod nftables;
mod pair;
mod table;
mod traffic;

use crate::lab::sandbox;
use crate::{packages, shell};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Measure: ns a packet, packets and connections a second beside no filter and nftables, times to publish, replay
#[derive(clap::Args)]
pub struct Args {
    /// Only these parts (repeatable): packets, decision, policy, instance, replay, review, pair
    #[arg(long = "part", value_name = "NAME")]
    parts: Vec<String>,
    /// Runs of each measurement; what is shown is the median
    #[arg(long, default_value_t = 7)]
    runs: usize,
    #[arg(long, hide = true)]
    inside: bool,
}

const PARTS: [&str; 7] = ["packets", "decision", "policy", "instance", "replay", "review", "pair"];

pub fn run(args: &Args) -> Result<bool> {
    if args.inside {
        return pair::measure(args.runs, &sandbox::inside().context("--inside is for the bench itself")?)
            .map(|()| true);
    }
    for part in &args.parts {
        anyhow::ensure!(PARTS.contains(&part.as_str()), "no part is called {part} (known: {})", PARTS.join(", "));
    }
    if args.runs < 3 {
        bail!("a median of fewer than three runs says nothing");
    }
    let install = shell::is_root();
    for needs in [packages::BUILD, packages::NETWORK] {
        if let Some(reason) = packages::ready(needs, install)? {
            bail!("{reason}");
        }
    }
    let build = ["build", "--release", "--package", "guard", "--package", "guard-tests", "--bins", "--locked"];
    let built = shell::run(shell::cargo().args(build), Duration::from_secs(1800))?;
    if !built.good {
        bail!("guard does not build ({})", built.how);
    }
    std::fs::create_dir_all(raw())?;
    println!("{}\n", machine());
    let mut good = true;
    for part in PARTS {
        if !args.parts.is_empty() && !args.parts.iter().any(|wanted| wanted == part) {
            continue;
        }
        if part == "pair" {
            good &= sandbox::enter(&["bench", "--inside", "--runs", &args.runs.to_string()])?;
            continue;
        }
        let mut bench = Command::new(shell::target().join("release/guard-bench"));
        bench.arg(part).args(["--runs", &args.runs.to_string()]);
        let ended = shell::run(bench.arg("--raw").arg(raw().join(format!("{part}.json"))), Duration::from_secs(1200))?;
        good &= ended.good;
    }
    println!("\nraw runs: {}", raw().display());
    Ok(good)
}

/// Where every single run is kept.
pub fn raw() -> PathBuf {
    shell::target().join("bench")
}

/// Processor and kernel: figures mean nothing without them.
fn machine() -> String {
    let first = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    format!("{cores} x {}, Linux {}, load {load}", first("/proc/cpuinfo", "model name"), kernel.trim())
}
