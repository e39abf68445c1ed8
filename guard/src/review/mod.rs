//! Reviewing what was recorded: flows to groups, groups to findings, findings to a report and a decision on each.

pub mod acks;
pub mod facts;
pub mod findings;
pub mod group;
pub mod init;
pub mod inputs;
pub mod judged;
pub mod observed;
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
