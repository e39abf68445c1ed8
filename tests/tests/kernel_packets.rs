//! Ten thousand policies, each with a sequence of packets: the loaded programs of the wire, the judge in userspace and the
//! referee agree on every packet, and at the end on every flow and counter.
//!
//! `GUARD_POLICIES` asks for another number of policies, `GUARD_SEED` for other ones.

use anyhow::{Result, ensure};
use guard_tests::{
    generate::Times,
    parity::{OUT_OF_REACH, check_all, expected_coverage},
    parity_kernel::{Kernel, Place},
    skip,
};

const POLICIES: u64 = 10_000;
/// To put tables into a slot waits for every running program: many threads wait side by side.
const THREADS: usize = 6;

#[test]
fn kernel_userspace_and_referee_agree_on_packets() -> Result<()> {
    if !skip::is_root() {
        skip::skip("kernel_userspace_and_referee_agree_on_packets", "loading programs needs root");
        return Ok(());
    }
    let number = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (first, count) = (number("GUARD_SEED", 0), number("GUARD_POLICIES", POLICIES));
    let place = Place::make()?;
    let kernels = (0..THREADS.min(count as usize)).map(|_| Ok(vec![Kernel::load(&place)?])).collect::<Result<_>>()?;
    let coverage = check_all(kernels, first..first + count, Times::Coarse)?;
    println!("{count} policies, each with a sequence of packets\n{coverage}");
    for (reason, why) in OUT_OF_REACH {
        println!("out of reach: {} ({why})", reason.as_str());
    }
    let missing = coverage.missing(&expected_coverage(), (count / 1000).max(1) as usize);
    ensure!(count < POLICIES || missing.is_empty(), "hardly covered: {missing:#?}");
    Ok(())
}
