//! A probe, never attached: `BPF_PROG_TEST_RUN` of it twice gives the jiffies of a second.

use aya_ebpf::{
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_boot_ns},
    macros::classifier,
    programs::TcContext,
};

use crate::maps::CLOCK;

/// Writes both clocks to `CLOCK`. Returns 0 where that worked.
#[classifier]
pub fn clock(_context: TcContext) -> i32 {
    let Some(reading) = CLOCK.get_ptr_mut(0) else { return 1 };
    // SAFETY: an element of an array map stays where it is; nothing but this probe writes it.
    unsafe {
        (*reading).boot_ns = bpf_ktime_get_boot_ns();
        (*reading).jiffies = bpf_jiffies64();
    }
    0
}
