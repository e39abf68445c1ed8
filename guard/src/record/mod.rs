//! The way of a record: the kernel's flow tables (the truth) and its ring buffer (the doorbell) to lines that others
//! can read.

pub mod asked;
pub mod attributor;
pub mod begun_before;
pub mod clock;
pub mod community_id;
pub mod eve;
pub mod flagged;
pub mod flow;
pub mod observer;
mod recent;
pub mod recorder;
pub mod resolvers;
pub mod rule_names;
pub mod sink;
pub mod sweep;
pub mod view;
pub mod who;
