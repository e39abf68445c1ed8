//! Ten thousand policies: the compiled decision against the referee.
//!
//! `GUARD_POLICIES` asks for another number of policies, `GUARD_SEED` for other ones.

use std::{ops::Range, thread};

use anyhow::{Result, ensure};
use guard::policy::compile::Clocks;
use guard_tests::differential::{Coverage, Decider, Userspace, check, expected_coverage};

const POLICIES: u64 = 10_000;
const QUESTIONS: usize = 40;
const CLOCKS: Clocks = Clocks { unix_ns: 1_900_000_000_123_456_789, boot_ns: 1 << 52 };

#[test]
fn userspace_and_referee_agree() -> Result<()> {
    let number = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (first, count) = (number("GUARD_SEED", 0), number("GUARD_POLICIES", POLICIES));
    let half = first + count / 2;
    let other = thread::spawn(move || run(half..first + count));
    let mut coverage = run(first..half)?;
    coverage.add(other.join().expect("the other half panicked")?);

    println!("{count} policies, {QUESTIONS} questions each\n{coverage}");
    let missing = coverage.missing(&expected_coverage(), (count / 500).max(1) as usize);
    ensure!(count < POLICIES || missing.is_empty(), "hardly covered: {missing:#?}");
    Ok(())
}

fn run(seeds: Range<u64>) -> Result<Coverage> {
    let mut coverage = Coverage::default();
    let mut decider: Box<dyn Decider> = Box::new(Userspace);
    for seed in seeds {
        check(seed, QUESTIONS, CLOCKS, &mut *decider, &mut coverage)?;
    }
    Ok(coverage)
}
