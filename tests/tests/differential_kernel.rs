//! The loaded decision as the third party: the referee against BPF_PROG_TEST_RUN, on the same generated policies.

use anyhow::{Result, ensure};
use guard::policy::compile::{Clocks, Compiled};
use guard_common::{
    abi::Slot,
    decide::{Decision, Question},
};
use guard_tests::{
    differential::{Decider, check_all, expected_coverage},
    probe::{Probe, Prober},
    skip,
};

const POLICIES: u64 = 10_000;
const QUESTIONS: usize = 40;

#[test]
fn kernel_and_referee_agree() -> Result<()> {
    if !skip::is_root() {
        skip::skip("kernel_and_referee_agree", "loading programs needs root");
        return Ok(());
    }
    let clocks = now();
    // To put tables into a slot waits for every running program: many threads wait side by side.
    let kernels = (0..16).map(|_| Ok(Kernel { prober: Prober::load()?, clocks, slot: 0 })).collect::<Result<_>>()?;
    let coverage = check_all::<Kernel>(kernels, 0..POLICIES, QUESTIONS)?;
    println!("{POLICIES} policies, {QUESTIONS} questions each\n{coverage}");
    // The kernel's clock stands where it stands.
    let asked = expected_coverage().into_iter().filter(|what| !what.contains("expiry")).collect::<Vec<_>>();
    let missing = coverage.missing(&asked, 20);
    ensure!(missing.is_empty(), "hardly covered: {missing:#?}");
    Ok(())
}

struct Kernel {
    prober: Prober,
    clocks: Clocks,
    slot: u8,
}

impl Decider for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn decide(&mut self, compiled: &Compiled, questions: &[(Question, u64)]) -> Result<Vec<Decision>> {
        self.slot = (self.slot + 1) % Slot::TABLES as u8;
        self.prober.0.fill_nodes(Slot(self.slot), &compiled.nodes)?;
        let probes: Vec<Probe> = questions.iter().map(|(question, _)| Probe::ask(question, self.slot)).collect();
        Ok(self.prober.ask(&probes)?.iter().map(Probe::answer).collect())
    }

    fn own_clock(&self) -> Option<Clocks> {
        Some(self.clocks)
    }
}

/// Some wall time, and the kernel's own time since boot.
fn now() -> Clocks {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a value that lives until the call returns.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let boot_ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
    Clocks { unix_ns: 1_900_000_000_000_000_000, boot_ns }
}
