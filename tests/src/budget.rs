//! How many instructions the verifier may process of each program (`tests/ebpf/budget.json`): it gives up at a million, and
//! what grows fast here is near that on an older kernel.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// By kernel family (`6.1`), and `any` for those that are not named.
const BUDGET: &str = include_str!("../ebpf/budget.json");

/// Loaded by guard alone, where a kernel has what they need.
const AT_FUNCTIONS: [&str; 2] = ["seal_create", "seal_option"];

/// That every program is there and within its budget. A count of 0: this kernel does not tell (before 5.16).
pub fn check(counts: &[(String, u32)]) -> Result<()> {
    let budget = check_some(counts)?;
    let gone: Vec<&String> = budget
        .keys()
        .filter(|name| counts.iter().all(|(there, _)| there != *name) && !AT_FUNCTIONS.contains(&name.as_str()))
        .collect();
    ensure!(gone.is_empty(), "tests/ebpf/budget.json names programs that are not there: {gone:?}");
    Ok(())
}

/// That these programs are; the budget of this machine's kernel.
pub fn check_some(counts: &[(String, u32)]) -> Result<BTreeMap<String, u32>> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let budgets: BTreeMap<String, BTreeMap<String, u32>> = serde_json::from_str(BUDGET)?;
    let budget = budgets.get(family(&release)).or_else(|| budgets.get("any")).context("no budget for any kernel")?;
    for (name, count) in counts {
        let most = *budget.get(name).with_context(|| format!("{name} has no budget in tests/ebpf/budget.json"))?;
        ensure!(*count <= most, "{name}: the verifier processed {count} instructions, and may process {most}");
    }
    Ok(budget.clone())
}

/// `6.1` of `6.1.0-57-cloud-amd64`.
fn family(release: &str) -> &str {
    let end = release.match_indices(|c: char| !c.is_ascii_digit()).nth(1).map_or(release.len(), |(at, _)| at);
    &release[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_two_numbers() {
        assert_eq!(["6.1.0-57-cloud-amd64\n", "5.10.0", "7.3+deb", "6.18"].map(family), ["6.1", "5.10", "7.3", "6.18"]);
    }

    #[test]
    fn every_kernel_has_a_budget_for_the_same_programs() {
        let budgets: BTreeMap<String, BTreeMap<String, u32>> = serde_json::from_str(BUDGET).unwrap();
        let names = |budget: &BTreeMap<String, u32>| budget.keys().cloned().collect::<Vec<_>>();
        for (family, budget) in &budgets {
            assert_eq!(names(budget), names(&budgets["any"]), "{family}");
            assert!(budget.values().all(|most| *most < 1_000_000), "{family}: the verifier itself gives up");
        }
    }
}
