//! Reviewing what was recorded: flows to groups, groups to findings, findings to a report and a decision on each.

use std::sync::LazyLock;

pub mod acks;
mod crowd;
pub mod facts;
pub mod findings;
pub mod group;
pub mod init;
pub mod inputs;
pub mod judged;
pub mod observed;
pub mod recorded;
pub mod render;
pub mod report;
pub mod suggest;
pub mod words;

/// Rules of [`OBSERVING_POLICY`]: what they let through was seen, and nobody decided.
pub const OBSERVING: [&str; 2] = ["(observing) in", "(observing) out"];

/// The built-in policy of `guard observe`, and of captures that nobody's policy is asked about: nothing is denied, and
/// everything is recorded.
pub const OBSERVING_POLICY: &str = "\
version: 1
name: observing
mode: audit
inbound:
  - { name: \"(observing) in\", from: any, services: any }
outbound:
  - { name: \"(observing) out\", to: any, services: any }
";

/// Whether a policy is [`OBSERVING_POLICY`], by its SHA-256 in hex: another one may name its rules alike.
#[must_use]
pub fn is_observing(sha256: &str) -> bool {
    static BUILT_IN: LazyLock<Option<String>> = LazyLock::new(|| {
        let loaded = crate::policy::load_str("observing.yaml", OBSERVING_POLICY).ok()?;
        Some(crate::policy::effective::hex(&loaded.policy.sha256))
    });
    BUILT_IN.as_deref() == Some(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{effective::hex, load_str};

    #[test]
    fn only_the_built_in_policy_observes() {
        let sha256 = |text: &str| hex(&load_str("observing.yaml", text).unwrap().policy.sha256);
        assert!(is_observing(&sha256(OBSERVING_POLICY)));
        // The same names, and it denies nearly everything.
        assert!(!is_observing(&sha256(&OBSERVING_POLICY.replace("mode: audit", "mode: enforce"))));
        assert!(!is_observing(&sha256(&OBSERVING_POLICY.replace("from: any", "from: 192.0.2.1"))));
    }
}
