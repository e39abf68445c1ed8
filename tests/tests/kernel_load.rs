//! Every program of the committed object passes this kernel's verifier, within its budget.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use guard_tests::bpf::{OBJECT, Programs};

/// Instructions that the verifier may process, by program (6.18 counts them so; older kernels count a little more).
const BUDGET: &str = include_str!("../ebpf/budget.json");

#[test]
fn programs_load_within_their_budget() -> Result<()> {
    let budget: BTreeMap<String, u32> = serde_json::from_str(BUDGET)?;
    let programs = Programs::load(OBJECT, |_| {})?;
    let counts = programs.verified_instructions()?;
    for (name, count) in &counts {
        println!("{name:16} {count:7}");
    }
    for (name, count) in &counts {
        let most = *budget.get(name).with_context(|| format!("{name} has no budget in tests/ebpf/budget.json"))?;
        ensure!(*count <= most, "{name}: the verifier processed {count} instructions, and may process {most}");
    }
    ensure!(budget.len() == counts.len(), "tests/ebpf/budget.json names programs that are not there");
    Ok(())
}
