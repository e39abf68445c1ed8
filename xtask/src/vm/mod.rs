//! `cargo xtask vm`: the committed object on Debian's kernels, each in a small virtual machine of its own.
//!
//! A machine is a kernel, taken from the distribution's package, and an initramfs of a few megabytes with the programs
//! under test and the libraries that they name: no disk, no network, results over the serial line.

mod initramfs;
pub mod kernels;
mod libraries;
mod qemu;
mod table;

use crate::shell;
use anyhow::{Context as _, Result, bail};
use kernels::{Kernel, Suite};
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
    /// The whole matrix: every kernel, and machines that are odd in one way each; or those of one kernel
    Test {
        /// Only this suite (repeatable)
        #[arg(long = "kernel", value_name = "SUITE")]
        kernels: Vec<String>,
        /// Write the table to docs/kernels.md too, with the date and the commit
        #[arg(long)]
        write: bool,
    },
}

/// One kernel's result.
pub struct Answer {
    pub suite: &'static str,
    /// How the machine is odd; empty: it is not.
    pub odd: &'static str,
    /// Its version; none where it is not to be had, and `failures` says why.
    pub kernel: Option<String>,
    pub passed: u32,
    pub failures: Vec<String>,
    /// What it printed of the verifier's work: program and instructions.
    pub verified: Vec<(String, String)>,
    /// Until the payload had ended.
    pub seconds: f64,
}

pub fn run(args: &Args) -> Result<bool> {
    let answers = match &args.task {
        Task::Load { kernels } => load(kernels)?,
        Task::Test { kernels, .. } => test(kernels)?,
    };
    let mut good = true;
    for answer in &answers {
        let name = answer.kernel.as_deref().unwrap_or("not to be had");
        println!("{:<20} {:<10} {name:<28} {}", answer.suite, answer.odd, answer.spoken());
        good &= answer.kernel.is_none() || answer.failures.is_empty();
    }
    if matches!(args.task, Task::Test { write: true, .. }) {
        table::write(&answers)?;
    }
    Ok(good && answers.iter().any(|answer| answer.kernel.is_some()))
}

impl Answer {
    fn spoken(&self) -> String {
        match (&self.kernel, self.failures.is_empty()) {
            (None, _) => format!("SKIPPED: {}", self.failures.join("; ")),
            (_, true) => format!("{} passed", self.passed),
            (_, false) => format!("FAILED: {}", self.failures.join("; ")),
        }
    }
}

/// A machine that is odd in one way.
struct Odd {
    /// `GUARD_CASE` inside; empty: only the command line is odd.
    name: &'static str,
    suite: &'static str,
    append: &'static str,
}

const ODD: &[Odd] = &[
    Odd { name: "ipv6-off", suite: "bullseye", append: "ipv6.disable=1 GUARD_CASE=ipv6-off" },
    Odd { name: "ipv6-off", suite: "bookworm-security", append: "ipv6.disable=1 GUARD_CASE=ipv6-off" },
    Odd { name: "hybrid", suite: "bullseye", append: "GUARD_CASE=hybrid" },
    Odd { name: "hybrid", suite: "bookworm-security", append: "GUARD_CASE=hybrid" },
    Odd { name: "bpf-lsm", suite: "bullseye", append: "lsm=lockdown,yama,apparmor,bpf GUARD_CASE=bpf-lsm" },
    Odd { name: "no-bpf-lsm", suite: "bookworm-security", append: "lsm=lockdown,yama,apparmor GUARD_CASE=no-bpf-lsm" },
    Odd { name: "no-btf", suite: "bullseye", append: "GUARD_CASE=no-btf" },
    Odd { name: "no-btf", suite: "bookworm-security", append: "GUARD_CASE=no-btf" },
];

/// Runs the payload on each kernel in turn: those of the suites that are named, or one each of 5.10, 6.1 and 6.12.
pub fn load(wanted: &[String]) -> Result<Vec<Answer>> {
    machines(&kernels::chosen(wanted)?, &[])
}

/// The same on every kernel there is, and on the odd machines.
fn test(wanted: &[String]) -> Result<Vec<Answer>> {
    let suites = if wanted.is_empty() { kernels::all() } else { kernels::chosen(wanted)? };
    machines(&suites, ODD)
}

fn machines(suites: &[Suite], odd: &[Odd]) -> Result<Vec<Answer>> {
    let dir = shell::target().join("vm");
    std::fs::create_dir_all(&dir)?;
    let payload = payload()?;
    let mut answers = Vec::new();
    for &suite in suites {
        println!("\n   {}", suite.name);
        let start = Instant::now();
        match kernels::fetch(suite, &dir) {
            Ok(kernel) => {
                println!("{} ({:.1} s)", kernel.version, start.elapsed().as_secs_f64());
                answers.push(boot(suite.name, ("", ""), &kernel, &payload, &dir)?);
                for odd in odd.iter().filter(|odd| odd.suite == suite.name) {
                    println!("   {} {}", suite.name, odd.name);
                    answers.push(boot(suite.name, (odd.name, odd.append), &kernel, &payload, &dir)?);
                }
            }
            Err(error) => {
                println!("SKIPPED {}: {error:#}", suite.name);
                answers.push(Answer { failures: vec![format!("{error:#}")], ..Answer::of(suite.name) });
            }
        }
    }
    Ok(answers)
}

impl Answer {
    const fn of(suite: &'static str) -> Self {
        Self { suite, odd: "", kernel: None, passed: 0, failures: Vec::new(), verified: Vec::new(), seconds: 0.0 }
    }
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

/// `odd`: what the machine is called, and what its command line has more.
fn boot(
    suite: &'static str,
    odd: (&'static str, &str),
    kernel: &Kernel,
    payload: &[PathBuf],
    dir: &std::path::Path,
) -> Result<Answer> {
    let initrd = dir.join(format!("{suite}.cpio"));
    std::fs::write(&initrd, initramfs::build(kernel, payload)?).with_context(|| initrd.display().to_string())?;
    let start = Instant::now();
    let output = qemu::boot(&kernel.image, &initrd, odd.1, LIMIT)?;
    let mut answer = Answer { odd: odd.0, kernel: Some(kernel.version.clone()), ..Answer::of(suite) };
    let mut ended = false;
    for line in output.lines().filter_map(|line| line.split_once("guard-vm: ")).map(|(_, line)| line.trim()) {
        if line.starts_with("passed ") {
            answer.passed += 1;
        } else if let Some(what) = line.strip_prefix("FAILED ") {
            answer.failures.push(what.to_owned());
        } else if let Some((program, count)) = line.strip_prefix("insns ").and_then(|rest| rest.split_once(' ')) {
            answer.verified.push((program.to_owned(), count.trim().to_owned()));
        }
        ended |= line == "end";
    }
    // Never tried again: a guest that panics is a finding.
    if !ended {
        answer.failures.push("the machine ended before its payload did".into());
    }
    answer.seconds = start.elapsed().as_secs_f64();
    println!("{:.1} s", answer.seconds);
    Ok(answer)
}
