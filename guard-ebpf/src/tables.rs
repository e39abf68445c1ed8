//! One generation's nodes, in its slot of the array of maps.

use guard_common::{
    abi::Slot,
    decide::{Node, Tables},
};

use crate::maps::{TABLES, Table};

/// The nodes of a slot. Got once a packet, so that a packet is judged by one generation.
#[derive(Clone, Copy)]
pub struct SlotTables(&'static Table);

impl SlotTables {
    /// `None`: the slot is empty, which is a fault, or stands for no policy.
    #[inline(always)]
    pub fn of(slot: Slot) -> Option<Self> {
        TABLES.get(u32::from(slot.0)).map(Self)
    }
}

impl Tables for SlotTables {
    #[inline(always)]
    fn node(&self, index: u32) -> Option<&Node> {
        self.0.get(index)
    }
}
