//! Every program of the committed object passes this kernel's verifier, within its budget.

use anyhow::Result;
use guard_tests::bpf::Programs;

#[test]
fn programs_load_within_their_budget() -> Result<()> {
    let object = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../guard/ebpf/guard.bpf.o"))?;
    let programs = Programs::load(&object, |_| {})?;
    for (name, count) in programs.verified_instructions()? {
        println!("{name:20} {count}");
    }
    Ok(())
}
