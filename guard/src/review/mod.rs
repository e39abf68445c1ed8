//! Reviewing what was recorded: flows to groups, groups to findings, findings to a report and a decision on each.

pub mod acks;
pub mod facts;
pub mod findings;
pub mod group;
pub mod observed;
pub mod render;
pub mod report;
pub mod words;
