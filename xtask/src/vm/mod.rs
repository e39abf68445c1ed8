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
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
        /// Only machines of this name (repeatable): plain, stacked, ipv6-off, hybrid, bpf-lsm, no-bpf-lsm, no-btf
        #[arg(long = "machine", value_name = "NAME")]
        machines: Vec<String>,
        /// Only what has this word in its name
        #[arg(long = "case", value_name = "WORD", conflicts_with = "write")]
        case: Option<String>,
        /// Machines at a time; each has two processors
        #[arg(long, value_name = "N", default_value_t = 1)]
        jobs: usize,
        /// Write the table to docs/kernels.md too, with the date and the commit
        #[arg(long)]
        write: bool,
    },
}

/// One kernel's result.
pub struct Answer {
    pub suite: &'static str,
    /// Which machine.
    pub machine: &'static str,
    /// Its version; none where it is not to be had, and `failures` says why.
    pub kernel: Option<String>,
    pub passed: u32,
    pub failures: Vec<String>,
    /// What it printed of the verifier's work: program and instructions.
    pub verified: Vec<(String, String)>,
    /// Seconds until the programs were loaded; from the command to a host that enforces.
    pub loaded: Option<String>,
    pub started: Option<String>,
    /// Until the payload had ended.
    pub seconds: f64,
}

pub fn run(args: &Args) -> Result<bool> {
    let answers = match &args.task {
        Task::Load { kernels } => load(kernels)?,
        Task::Test { kernels, machines, case, jobs, .. } => test(kernels, machines, case.as_deref(), *jobs)?,
    };
    let mut good = true;
    for answer in &answers {
        let name = answer.kernel.as_deref().unwrap_or("not to be had");
        println!("{:<20} {:<10} {name:<28} {}", answer.suite, answer.machine, answer.spoken());
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

/// One machine on a suite's kernel.
struct Machine {
    /// `GUARD_CASE` inside, where the command line says so. `plain`: as it comes, and everything else is odd in one way.
    name: &'static str,
    suite: &'static str,
    append: &'static str,
    /// Beyond those that every machine has.
    modules: &'static [&'static str],
    /// In every run of CI too.
    always: bool,
}

const fn plain(suite: &'static str) -> Machine {
    Machine { name: "plain", suite, append: "", modules: &[], always: false }
}

const fn odd(name: &'static str, suite: &'static str, append: &'static str) -> Machine {
    Machine { name, append, ..plain(suite) }
}

const fn stacked(suite: &'static str) -> Machine {
    Machine { modules: initramfs::STACKED, ..odd("stacked", suite, "GUARD_CASE=stacked") }
}

const fn always(machine: Machine) -> Machine {
    Machine { always: true, ..machine }
}

const MACHINES: &[Machine] = &[
    always(plain("bullseye")),
    always(plain("bookworm-security")),
    always(plain("bookworm-backports")),
    plain("trixie"),
    plain("trixie-backports"),
    stacked("bullseye"),
    stacked("bookworm-security"),
    stacked("bookworm-backports"),
    stacked("trixie-backports"),
    odd("ipv6-off", "bullseye", "ipv6.disable=1 GUARD_CASE=ipv6-off"),
    odd("ipv6-off", "bookworm-security", "ipv6.disable=1 GUARD_CASE=ipv6-off"),
    odd("hybrid", "bullseye", "GUARD_CASE=hybrid"),
    odd("hybrid", "bookworm-security", "GUARD_CASE=hybrid"),
    odd("bpf-lsm", "bullseye", "lsm=lockdown,yama,apparmor,bpf GUARD_CASE=bpf-lsm"),
    odd("no-bpf-lsm", "bookworm-security", "lsm=lockdown,yama,apparmor GUARD_CASE=no-bpf-lsm"),
    odd("no-btf", "bullseye", "GUARD_CASE=no-btf"),
    odd("no-btf", "bookworm-security", "GUARD_CASE=no-btf"),
];

/// What CI runs, in less than all its parts: the machines that are always run, of the suites that are named, or of all.
pub fn load(wanted: &[String]) -> Result<Vec<Answer>> {
    boot_all(&kernels::chosen(wanted)?, " GUARD_PART=ci", 1, |machine| {
        machine.always || (machine.name == "plain" && !wanted.is_empty())
    })
}

/// Every machine there is, or those of these names.
fn test(wanted: &[String], names: &[String], case: Option<&str>, jobs: usize) -> Result<Vec<Answer>> {
    let suites = if wanted.is_empty() { kernels::all() } else { kernels::chosen(wanted)? };
    if let Some(unknown) = names.iter().find(|name| MACHINES.iter().all(|machine| machine.name != *name)) {
        bail!("no machine is called {unknown}");
    }
    // The kernel hands on to the first program what it does not know itself.
    let only = case.map(|word| format!(" GUARD_ONLY={word}")).unwrap_or_default();
    boot_all(&suites, &only, jobs, |machine| names.is_empty() || names.iter().any(|name| name == machine.name))
}

/// `more`: at the end of each command line. `jobs` machines at a time; the answers are in the order of the suites.
fn boot_all(suites: &[Suite], more: &str, jobs: usize, wanted: impl Fn(&Machine) -> bool) -> Result<Vec<Answer>> {
    let dir = shell::target().join("vm");
    std::fs::create_dir_all(&dir)?;
    let payload = payload()?;
    let mut answers = Vec::new();
    let mut queue = Vec::new();
    for &suite in suites {
        let machines: Vec<&Machine> =
            MACHINES.iter().filter(|machine| machine.suite == suite.name && wanted(machine)).collect();
        if machines.is_empty() {
            continue;
        }
        println!("\n   {}", suite.name);
        let start = Instant::now();
        match kernels::fetch(suite, &dir) {
            Ok(kernel) => {
                println!("{} ({:.1} s)", kernel.version, start.elapsed().as_secs_f64());
                let kernel = Arc::new(kernel);
                queue.extend(machines.into_iter().map(|machine| (machine, Arc::clone(&kernel))));
            }
            Err(error) => {
                println!("SKIPPED {}: {error:#}", suite.name);
                answers.push(Answer { failures: vec![format!("{error:#}")], ..Answer::of(suite.name) });
            }
        }
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Answer)>> {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((machine, kernel)) = queue.get(number) else { return Ok(done) };
            println!("   {} {}", machine.suite, machine.name);
            done.push((number, boot(machine, more, kernel, &payload, &dir)?));
        }
    };
    let mut booted = std::thread::scope(|scope| -> Result<Vec<(usize, Answer)>> {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??);
        }
        Ok(all)
    })?;
    booted.sort_by_key(|(number, _)| *number);
    answers.extend(booted.into_iter().map(|(_, answer)| answer));
    Ok(answers)
}

impl Answer {
    const fn of(suite: &'static str) -> Self {
        Self {
            suite,
            machine: "plain",
            kernel: None,
            passed: 0,
            failures: Vec::new(),
            verified: Vec::new(),
            loaded: None,
            started: None,
            seconds: 0.0,
        }
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
const LIMIT: Duration = Duration::from_secs(900);

fn boot(machine: &Machine, more: &str, kernel: &Kernel, payload: &[PathBuf], dir: &std::path::Path) -> Result<Answer> {
    let initrd = dir.join(format!("{}-{}.cpio", machine.suite, machine.name));
    let archive = initramfs::build(kernel, payload, machine.modules)?;
    std::fs::write(&initrd, archive).with_context(|| initrd.display().to_string())?;
    let start = Instant::now();
    let output = qemu::boot(&kernel.image, &initrd, &format!("{}{more}", machine.append), LIMIT)?;
    std::fs::remove_file(&initrd)?;
    let mut answer =
        Answer { machine: machine.name, kernel: Some(kernel.version.clone()), ..Answer::of(machine.suite) };
    let mut ended = false;
    for line in output.lines().filter_map(|line| line.split_once("guard-vm: ")).map(|(_, line)| line.trim()) {
        if line.starts_with("passed ") {
            answer.passed += 1;
        } else if let Some(what) = line.strip_prefix("FAILED ") {
            answer.failures.push(what.to_owned());
        } else if let Some((program, count)) = line.strip_prefix("insns ").and_then(|rest| rest.split_once(' ')) {
            answer.verified.push((program.to_owned(), count.trim().to_owned()));
        } else if let Some(seconds) = line.strip_prefix("seconds loaded ") {
            answer.loaded = Some(seconds.to_owned());
        } else if let Some(seconds) = line.strip_prefix("seconds started ") {
            answer.started = Some(seconds.to_owned());
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
