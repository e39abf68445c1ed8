//! What the programs leave behind: counters, events, owners.

use core::ptr;

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated::bpf_jiffies64},
    maps::ring_buf::RingBufEntry,
};
use guard_common::{
    Direction, Reason,
    abi::{Counter, Event, Lost, Owner, RuleCounter, Slot, counter_index},
    decide::Outcome,
};

use crate::{
    generation::{Generation, boot_ns},
    globals::HZ,
    maps::{COUNTERS, EVENTS, HOST_SIDE, LIMITS, LOST, OWNERS, RULE_COUNTERS},
};

/// Adds to the totals of a reason. Bytes as on the wire.
#[inline(always)]
pub fn count(reason: Reason, direction: Direction, dropped: bool, packets: u64, bytes: u64) {
    count_index(counter_index(reason, direction, dropped), packets, bytes);
}

#[inline(always)]
pub fn count_index(index: u32, packets: u64, bytes: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        let counter: *mut Counter = counter;
        // SAFETY: this CPU's own element. Programs of another kind may interrupt this one between load and store and
        // lose one packet of a total; the cost of a locked add is not worth that.
        unsafe {
            (*counter).packets += packets;
            (*counter).bytes += bytes;
        }
    }
}

/// Of these totals, what was judged between this host and those behind it: no uplink has counted it.
#[inline(always)]
pub fn count_host_side(direction: Direction, dropped: bool, packets: u32) {
    if matches!(direction, Direction::Outbound) && dropped {
        return;
    }
    if let Some(counted) = HOST_SIDE.get_ptr_mut(direction as u32) {
        // SAFETY: as above.
        unsafe { *counted += u64::from(packets) };
    }
}

#[inline(always)]
pub fn count_lost(what: Lost) {
    if let Some(lost) = LOST.get_ptr_mut(what as u32) {
        // SAFETY: this CPU's own element.
        unsafe { *lost += 1 };
    }
}

/// One more flow that a rule decided.
#[inline(always)]
pub fn count_rule(slot: Slot, outcome: Outcome) {
    let Some(rule) = outcome.rule() else { return };
    if let Some(counters) = RULE_COUNTERS.get(u32::from(slot.0))
        && let Some(counter) = counters.get_ptr_mut(rule)
    {
        let counter: *mut RuleCounter = counter;
        // SAFETY: an array's element stays where it is while a program that found its map runs.
        unsafe { add(&raw mut (*counter).flows, 1) };
    }
}

/// A 64-bit add that other CPUs cannot lose, without its result (5.10 has no fetching atomics).
///
/// # Safety
///
/// `to` points into a map's element or to the stack, aligned to 8.
#[inline(always)]
pub unsafe fn add(to: *mut u64, amount: u64) {
    // SAFETY: writes the 8 bytes that `to` points at; the caller vouches for them. `AtomicU64` does not compile for this
    // target.
    unsafe {
        core::arch::asm!("lock *(u64 *)({to} + 0) += {amount}", to = in(reg) to, amount = in(reg) amount);
    }
}

/// The process that runs now. Only where a program runs in its context.
#[inline(always)]
pub fn current_owner(now: u64) -> Owner {
    Owner {
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        time: now,
        comm: bpf_get_current_comm().unwrap_or([0; 16]),
    }
}

/// Keeps who owns a socket, unless that is known.
#[inline(always)]
pub fn keep_owner(socket_cookie: u64, now: u64) {
    if OWNERS.get_ptr(&socket_cookie).is_none() && OWNERS.insert(&socket_cookie, current_owner(now), 0).is_err() {
        count_lost(Lost::Owners);
    }
}

/// Room in the ring buffer for an event ([`guard_common::abi::EventKind`], [`Direction`]), with everything that every event has; the rest is zero but for `head`, which
/// is left as it is. `None` is counted.
#[inline(always)]
pub fn begin_event(
    kind: u8,
    direction: u8,
    dropped: u8,
    outcome: Outcome,
    generation: &Generation,
    ifindex: u32,
) -> Option<RingBufEntry<Event>> {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count_lost(Lost::Events);
        return None;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the entry has room for a whole event.
    unsafe {
        (*event).kind = kind;
        (*event).family = 0;
        (*event).direction = direction;
        (*event).dropped = dropped;
        (*event).outcome = outcome;
        (*event).generation = generation.number;
        (*event).ifindex = ifindex;
        (*event).time = boot_ns();
        (*event).socket_cookie = 0;
        zero_words(&raw mut (*event).key);
        zero_words(&raw mut (*event).owner);
        (*event).packet_bytes = 0;
        (*event).head_bytes = 0;
    }
    Some(entry)
}

/// Whether a packet of no flow that is denied for `reason` may be reported: at most one a second and reason.
#[inline(always)]
pub fn may_report(reason: Reason) -> bool {
    let Some(last) = LIMITS.get_ptr_mut(reason as u32) else { return false };
    // SAFETY: the helper takes nothing; an array's element stays where it is. CPUs may race to report one packet more.
    unsafe {
        let now = bpf_jiffies64();
        if now.wrapping_sub(*last) < u64::from(HZ.load()) && *last != 0 {
            count_lost(Lost::Suppressed);
            return false;
        }
        *last = now;
    }
    true
}

/// Zeroes plain data whose size is a multiple of 8, word by word: LLVM would call `memset`, which goes byte by byte.
///
/// # Safety
///
/// `to` is writable and aligned to 4, and zero is a value of `T`.
#[inline(always)]
pub unsafe fn zero_words<T>(to: *mut T) {
    let mut at = 0;
    while at < size_of::<T>() / 4 {
        // SAFETY: within `T`; volatile, so that the loop stays stores.
        unsafe { ptr::write_volatile(to.cast::<u32>().add(at), 0) };
        at += 1;
    }
}
