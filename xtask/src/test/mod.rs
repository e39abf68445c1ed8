//! `cargo xtask test`: every check and test there is, in one place and one order, each once.
//!
//! A step that cannot run is printed as SKIPPED with its reason. In CI everything that is skipped and does not stand in
//! `xtask/allowed-skips.txt` fails, so that a green run cannot hide a missing tool.

mod leftovers;
mod licences;
mod report;
mod steps;

use crate::{packages, shell};
use anyhow::{Context as _, Result};
use report::{Report, Result as Outcome};
use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Leave out what takes long: whole steps (see --list), and most of what kernel and netns have (under 10 minutes)
    #[arg(long)]
    quick: bool,
    /// Only these steps (see --list); repeatable
    #[arg(long = "step", value_name = "NAME")]
    steps: Vec<String>,
    /// Name the steps and stop
    #[arg(long)]
    list: bool,
    /// Install nothing, even as root
    #[arg(long)]
    no_install: bool,
}

/// What the steps may know of the run.
struct Run {
    install: bool,
    quick: bool,
    /// Tests that find that they cannot run add a line here: name, tab, reason.
    skips: PathBuf,
    scene: leftovers::Scene,
    /// Tests that failed, and passed when they were run again alone.
    unsteady: RefCell<Vec<String>>,
    /// A copy of this program: the build may replace the one that runs.
    own: PathBuf,
}

/// Runs the ladder; false if anything failed.
pub fn run(args: &Args) -> Result<bool> {
    let all = steps::all();
    if args.list {
        for step in &all {
            println!("{:<14} {}{}", step.name, step.what, if step.slow { " (not with --quick)" } else { "" });
        }
        return Ok(true);
    }
    for name in &args.steps {
        anyhow::ensure!(all.iter().any(|step| step.name == name), "no step is called {name} (see --list)");
    }
    let dir = tempfile::tempdir().context("no temporary directory")?;
    let own = dir.path().join("xtask");
    std::fs::copy(std::env::current_exe()?, &own).context("copying this program")?;
    shell::keep_own_program(own.clone());
    let run = Run {
        own,
        install: shell::is_root() && !args.no_install,
        quick: args.quick,
        skips: dir.path().join("skips"),
        scene: leftovers::Scene::now()?,
        unsteady: RefCell::default(),
    };
    let mut report = Report::new(std::env::var_os("CI").is_some(), args.quick)?;
    for step in all {
        if !args.steps.is_empty() && !args.steps.iter().any(|name| name == step.name) || args.quick && step.slow {
            continue;
        }
        println!("\n== {}: {}", step.name, step.what);
        let start = Instant::now();
        let outcome = packages::ready(step.needs, run.install)
            .and_then(|missing| match missing {
                Some(reason) => Ok(Outcome::Skipped(reason)),
                None => (step.run)(&run),
            })
            .unwrap_or_else(|error| Outcome::Failed { passed: 0, failed: 1, why: format!("{error:#}") });
        let skipped = steps::take_skips(&run.skips)?;
        report.add(step.name, start.elapsed(), outcome, skipped);
    }
    Ok(report.close(&run.unsteady.borrow()))
}
