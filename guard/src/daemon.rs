//! The run loop and what it keeps.

pub mod control;
pub mod impact;
pub mod report;
pub mod state_dir;
pub mod way_back;
