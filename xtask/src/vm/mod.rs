//! `cargo xtask vm`: the committed object on Debian's kernels, each in a small virtual machine of its own.
//!
//! A machine is a kernel, taken from the distribution's package, and an initramfs of a few megabytes with the programs
//! under test and the libraries that they name: no disk, no network, results over the serial line.

mod initramfs;
mod kernels;
mod libraries;
mod qemu;

use crate::shell;
use anyhow::{Context as _, Result, bail};
use kernels::Kernel;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Load, attach in a namespace, pass one allowed and one denied flow
    Load {
        /// Only this suite (repeatable): bullseye, bookworm-security, bookworm-backports, trixie, trixie-backports
        #[arg(long = "kernel", value_name = "SUITE")]
        kernels: Vec<String>,
    },
}

/// One kernel's result.
pub struct Answer {
    pub suite: &'static str,
    /// Its version; none where it is not to be had, and `failures` says why.
    pub kernel: Option<String>,
    pub passed: u32,
    pub failures: Vec<String>,
}

pub fn run(args: &Args) -> Result<bool> {
    let Task::Load { kernels } = &args.task;
    let answers = load(kernels)?;
    let mut good = true;
    for answer in &answers {
        let name = answer.kernel.as_deref().unwrap_or("not to be had");
        let result = match (&answer.kernel, answer.failures.is_empty()) {
            (None, _) => format!("SKIPPED: {}", answer.failures.join("; ")),
            (_, true) => format!("{} passed", answer.passed),
            (_, false) => format!("FAILED: {}", answer.failures.join("; ")),
        };
        good &= answer.kernel.is_none() || answer.failures.is_empty();
        println!("{:<20} {name:<28} {result}", answer.suite);
    }
    Ok(good && answers.iter().any(|answer| answer.kernel.is_some()))
}

/// Runs the payload on each kernel in turn: those of the suites that are named, or one each of 5.10, 6.1 and 6.12.
pub fn load(wanted: &[String]) -> Result<Vec<Answer>> {
    let dir = shell::target().join("vm");
    std::fs::create_dir_all(&dir)?;
    let payload = payload()?;
    let mut answers = Vec::new();
    for suite in kernels::chosen(wanted)? {
        println!("\n   {}", suite.name);
        let start = Instant::now();
        match kernels::fetch(suite, &dir) {
            Ok(kernel) => {
                println!("{} ({:.1} s)", kernel.version, start.elapsed().as_secs_f64());
                answers.push(boot(suite.name, &kernel, &payload, &dir)?);
            }
            Err(error) => {
                println!("SKIPPED {}: {error:#}", suite.name);
                let failures = vec![format!("{error:#}")];
                answers.push(Answer { suite: suite.name, kernel: None, passed: 0, failures });
            }
        }
    }
    Ok(answers)
}

/// What runs inside: the payload, and what it calls.
fn payload() -> Result<Vec<PathBuf>> {
    // As the tests are built, so that nothing is built twice.
    let build = ["build", "--workspace", "--bins", "--locked", "--quiet"];
    let built = shell::run(shell::cargo().args(build), Duration::from_secs(1200))?;
    if !built.good {
        bail!("the payload does not build ({})", built.how);
    }
    let debug = shell::target().join("debug");
    Ok(["guard-vm-load", "guard", "guard-test-agent"].map(|name| debug.join(name)).into())
}

/// A kernel takes ten seconds by itself; more where the verifier is emulated beside other work.
const LIMIT: Duration = Duration::from_secs(600);

fn boot(suite: &'static str, kernel: &Kernel, payload: &[PathBuf], dir: &std::path::Path) -> Result<Answer> {
    let initrd = dir.join(format!("{suite}.cpio"));
    std::fs::write(&initrd, initramfs::build(kernel, payload)?).with_context(|| initrd.display().to_string())?;
    let start = Instant::now();
    let output = qemu::boot(&kernel.image, &initrd, LIMIT)?;
    let (mut passed, mut failures, mut ended) = (0, Vec::new(), false);
    for line in output.lines().filter_map(|line| line.split_once("guard-vm: ")).map(|(_, line)| line.trim()) {
        if line.starts_with("passed ") {
            passed += 1;
        } else if let Some(what) = line.strip_prefix("FAILED ") {
            failures.push(what.to_owned());
        }
        ended |= line == "end";
    }
    // Never tried again: a guest that panics is a finding.
    if !ended {
        failures.push("the machine ended before its payload did".into());
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
    Ok(Answer { suite, kernel: Some(kernel.version.clone()), passed, failures })
}
