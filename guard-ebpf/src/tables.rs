//! One generation's nodes, in its slot of the array of maps.

use core::ptr;

use guard_common::{
    abi::Slot,
    decide::{Node, Tables},
};

use crate::maps::{TABLES, Table};

/// The nodes of a slot. Got once a packet, so that a packet is judged by one generation.
#[repr(transparent)]
pub struct SlotTables(Table);

impl SlotTables {
    /// `None`: the slot is empty, which is a fault, or stands for no policy.
    #[inline(always)]
    pub fn of(slot: Slot) -> Option<&'static Self> {
        // SAFETY: `Self` is a `Table` and nothing else; the inner map outlives the program's run.
        TABLES.get(u32::from(slot.0)).map(|table| unsafe { &*ptr::from_ref(table).cast::<Self>() })
    }
}

impl Tables for SlotTables {
    #[inline(always)]
    fn node(&self, index: u32) -> Option<&Node> {
        self.0.get(index)
    }
}
