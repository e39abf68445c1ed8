//! The decision in the kernel is the decision in userspace, on generated policies.

use anyhow::{Result, ensure};
use guard_common::{abi::Slot, decide::decide};
use guard_tests::{
    probe::{Probe, Prober},
    random::{self, Random},
};

#[test]
fn kernel_and_userspace_decide_alike() -> Result<()> {
    let mut prober = Prober::load()?;
    let (mut allowed, mut contexts, mut timed) = (0, 0, 0);
    for seed in 0..300 {
        let mut random = Random(seed);
        let policy = random::small_policy(&mut random);
        let compiled = random::compiled(&policy, 1)?;
        let slot = Slot((seed % 3) as u8);
        prober.0.fill(slot, &compiled.nodes, compiled.rules)?;
        let questions: Vec<_> =
            (0..500).map(|_| Probe::ask(&random::question(&mut random, &compiled, &policy), slot.0)).collect();
        for probe in prober.ask(&questions)? {
            let question = probe.question();
            // The clock stands at 2^40 ns for userspace and at some other moment for the kernel: what a rule's
            // expiry makes of that is another test's; here both see the same step.
            let expected = decide(compiled.nodes.as_slice(), &question, boot_time);
            ensure!(probe.answer() == expected, "seed {seed}: {question:?}: {:?}, not {expected:?}", probe.answer());
            allowed += u32::from(expected.outcome.verdict() == guard_common::Verdict::Allow);
            contexts += u32::from(expected.needs_context);
            timed += u32::from(expected.until != u64::MAX);
        }
    }
    println!("150,000 questions: {allowed} allowed, {contexts} needed a context, {timed} change with time");
    ensure!(allowed > 1000 && contexts > 100 && timed > 100);
    Ok(())
}

/// The same clock as the kernel's.
fn boot_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a value that lives until the call returns.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
