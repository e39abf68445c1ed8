//! Ten thousand policies: the compiled decision against the referee.
//!
//! `GUARD_POLICIES` asks for another number of policies, `GUARD_SEED` for other ones.

use anyhow::{Result, ensure};
use guard_tests::differential::{Userspace, check_all, expected_coverage};

const POLICIES: u64 = 10_000;
const QUESTIONS: usize = 40;

#[test]
fn userspace_and_referee_agree() -> Result<()> {
    let number = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (first, count) = (number("GUARD_SEED", 0), number("GUARD_POLICIES", POLICIES));
    let coverage = check_all(vec![Userspace; 2], first..first + count, QUESTIONS)?;
    println!("{count} policies, {QUESTIONS} questions each\n{coverage}");
    let missing = coverage.missing(&expected_coverage(), (count / 500).max(1) as usize);
    ensure!(count < POLICIES || missing.is_empty(), "hardly covered: {missing:#?}");
    Ok(())
}
