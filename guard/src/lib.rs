//! guard: allow-lists for what enters and leaves a Linux host, enforced in the kernel; uncommon flows recorded.

pub mod cli;
pub mod daemon;
pub mod doctor;
pub mod handover;
pub mod host;
pub mod journal;
pub mod kernel;
pub mod lockdown;
pub mod object;
pub mod policy;
pub mod record;
pub mod replay;
pub mod review;
pub mod snapshot;
pub mod store;
pub mod text;
