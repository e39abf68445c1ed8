//! Which generation judges: asked once by every hook, shield and seal included.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use guard_common::{
    Direction,
    abi::{Slot, SlotFlags},
};

use crate::maps::STATE;

#[derive(Clone, Copy)]
pub struct Generation {
    pub slot: Slot,
    /// 0: no policy in force.
    pub number: u32,
    pub flags: SlotFlags,
}

impl Generation {
    /// The clock is read only while a deadline is pending. `None` is a fault.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        let state = STATE.get_ptr(0)?;
        // SAFETY: an array's element stays where it is. Userspace changes the word in one 8-byte store, and a slot's
        // information only while no program can see that slot.
        unsafe {
            let word = ptr::read_volatile(&raw const (*state).word);
            let slot = word.effective_slot(if word.is_pending() { boot_ns() } else { 0 });
            let info = &raw const (*state).slots[usize::from(slot.0 & 3)];
            Some(Self { slot, number: (*info).generation, flags: (*info).flags })
        }
    }

    /// Whether there is a policy at all.
    #[inline(always)]
    pub const fn judges(&self) -> bool {
        self.slot.0 != Slot::NONE.0
    }

    #[inline(always)]
    pub const fn enforces(&self, direction: Direction) -> bool {
        self.flags.enforces(direction)
    }
}

/// Whether a change waits for its confirmation (or was just undone).
#[inline(always)]
pub fn is_pending() -> bool {
    // SAFETY: as in [`Generation::current`].
    STATE.get_ptr(0).is_some_and(|state| unsafe { ptr::read_volatile(&raw const (*state).word) }.is_pending())
}

/// Nanoseconds since boot, suspends included: 38 ns to ask.
#[inline(always)]
pub fn boot_ns() -> u64 {
    // SAFETY: the helper takes nothing. 5.8.
    unsafe { bpf_ktime_get_boot_ns() }
}
