//! The run loop and what it keeps.

pub mod control;
pub mod state_dir;
