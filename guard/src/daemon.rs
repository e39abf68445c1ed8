//! The run loop and what it keeps.

pub mod attached;
pub mod change;
pub mod control;
pub mod difference;
pub mod engine;
#[cfg(test)]
pub(crate) mod fake;
pub mod gather;
pub mod impact;
pub mod kept;
pub mod report;
pub mod round;
pub mod run_loop;
pub mod service_manager;
pub mod state_dir;
pub mod watch;
pub mod way_back;
