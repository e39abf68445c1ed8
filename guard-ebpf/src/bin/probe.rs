//! Programs for tests and benches only, around the parts of the real ones. Never shipped, never attached.
#![no_std]
#![no_main]

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::{classifier, map},
    maps::Array,
    programs::TcContext,
};
use guard_common::{
    abi::Slot,
    decide::{self, Question, Subject},
    reason::Direction,
};
use tables::SlotTables;

#[path = "../generation.rs"]
mod generation;
#[path = "../hand.rs"]
mod hand;
#[path = "../maps.rs"]
mod maps;
#[path = "../tables.rs"]
mod tables;

/// Questions, and the answers to them: each run takes the next one, in a circle.
#[map]
static PROBE: Array<Probe> = Array::with_max_entries(1 << 16, 0);
/// Runs so far.
#[map]
static RUNS: Array<u64> = Array::with_max_entries(1, 0);

/// Mirrored in `guard-tests`.
#[repr(C)]
struct Probe {
    remote: [u32; 4],
    service: u32,
    interface: u32,
    local: u32,
    direction: u8,
    ipv6: u8,
    slot: u8,
    needs_context: u8,
    outcome: u32,
    named: u32,
    until: u64,
}

#[inline(always)]
fn next() -> Option<&'static mut Probe> {
    let runs = RUNS.get_ptr_mut(0)?;
    // SAFETY: an array's element; tests run the probe on one CPU at a time.
    let run = unsafe {
        *runs += 1;
        *runs - 1
    };
    // SAFETY: as above.
    PROBE.get_ptr_mut(run as u32 & 0xffff).map(|probe| unsafe { &mut *probe })
}

/// What [`probe_decide`] costs beside the decision.
#[classifier]
pub fn probe_nothing(_context: TcContext) -> i32 {
    let Some(probe) = next() else { return 1 };
    probe.until = u64::from(probe.remote[0]);
    0
}

#[classifier]
pub fn probe_decide(_context: TcContext) -> i32 {
    let Some(probe) = next() else { return 1 };
    let Some(tables) = SlotTables::of(Slot(probe.slot)) else { return 2 };
    let question = Question {
        direction: Direction::from_u8(probe.direction),
        ipv6: probe.ipv6 != 0,
        remote: probe.remote,
        service: probe.service,
        subject: Subject {
            interface: (probe.interface != u32::MAX).then_some(probe.interface),
            local: (probe.local != u32::MAX).then_some(probe.local),
        },
    };
    // SAFETY: the helper takes nothing.
    let decision = decide::decide(tables, &question, || unsafe { bpf_ktime_get_boot_ns() });
    probe.outcome = decision.outcome.0;
    probe.until = decision.until;
    probe.needs_context = decision.needs_context.into();
    probe.named = decision.named.into();
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
