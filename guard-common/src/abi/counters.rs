//! Totals that the programs keep apart from the flows.

use crate::{Direction, Reason};

/// Per CPU, in the `COUNTERS` array, indexed by [`counter_index`]. Packets and bytes as on the wire (GSO segments).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// In a generation's inner map of `RULE_COUNTERS` (a plain array with `BPF_F_INNER_MAP`, not per CPU), indexed by rule
/// number: how many flows it decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RuleCounter {
    pub flows: u64,
}

/// Elements of the `COUNTERS` array.
pub const COUNTERS: u32 = (Reason::SLOTS as u32) << 2;

/// `dropped` is false for what was allowed, and for what audit mode let pass though it was denied.
#[must_use]
pub const fn counter_index(reason: Reason, direction: Direction, dropped: bool) -> u32 {
    (reason as u32) << 2 | (direction as u32) << 1 | dropped as u32
}

/// Index in the `LOST` array (per CPU, each a count): what could not be reported, though the verdict was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Lost {
    /// Events for which the ring buffer had no room.
    Events = 0,
    /// [`super::EventKind::PacketDenied`] events held back: at most one a second and reason.
    Suppressed = 1,
    /// Entries that `OWNERS` did not take.
    Owners = 2,
    /// Programs that were executed, and forks, for which the `PROCESSES` ring had no room.
    Processes = 3,
    /// Answers of name servers for which the `ANSWERS` ring had no room.
    Answers = 4,
}

/// Elements of the `LOST` array.
pub const LOST_SLOTS: u32 = 5;
