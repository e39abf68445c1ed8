//! Ten thousand policies, each with a sequence of packets: the judge in userspace, with the host that `replay` has,
//! against the referee, to the nanosecond and the millisecond of every bound.
//!
//! `GUARD_POLICIES` asks for another number of policies, `GUARD_SEED` for other ones.

use anyhow::{Result, ensure};
use guard_tests::{
    generate::Times,
    parity::{OUT_OF_REACH, check_all, expected_coverage, memory::Userspace},
};

const POLICIES: u64 = 10_000;

#[test]
fn userspace_and_referee_agree_on_packets() -> Result<()> {
    let number = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (first, count) = (number("GUARD_SEED", 0), number("GUARD_POLICIES", POLICIES));
    let coverage = check_all::<Userspace>(vec![vec![], vec![]], first..first + count, Times::Exact)?;
    println!("{count} policies, each with a sequence of packets\n{coverage}");
    for (reason, why) in OUT_OF_REACH {
        println!("out of reach: {} ({why})", reason.as_str());
    }
    let missing = coverage.missing(&expected_coverage(), (count / 1000).max(1) as usize);
    ensure!(count < POLICIES || missing.is_empty(), "hardly covered: {missing:#?}");
    Ok(())
}
