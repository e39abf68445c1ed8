//! The run loop and what it keeps.

pub mod state_dir;
