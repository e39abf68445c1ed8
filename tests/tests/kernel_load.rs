//! Every program of the committed object passes this kernel's verifier, within its budget.

use anyhow::Result;
use guard_tests::{
    bpf::{OBJECT, Programs},
    budget,
};

#[test]
fn programs_load_within_their_budget() -> Result<()> {
    let programs = Programs::load(OBJECT, |_| {})?;
    let counts = programs.verified_instructions()?;
    for (name, count) in &counts {
        println!("{name:16} {count:7}");
    }
    budget::check(&counts)
}
