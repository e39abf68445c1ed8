//! Reviewing what was recorded: flows to groups, groups to findings, findings to a report and a decision on each.

pub mod group;
pub mod observed;
