//! The seal's cgroup form: refuses the socket options that lead round the wire layer, by a cgroup setsockopt program
//! (5.10). 32-bit system calls pass by it (SECURITY.md), unless `seal_function` stands beside it.
//!
//! Sockets of every network namespace: an interface that was guarded may have been moved to another.

use aya_ebpf::{bindings::bpf_sockopt, macros::cgroup_sockopt, programs::SockoptContext};
use guard_common::{
    Direction, Reason,
    abi::{EventKind, Features, Owner},
    decide::Outcome,
};

use crate::{
    generation::Generation,
    globals::FEATURES,
    record::{begin_event, count, current_owner},
};

const PASS: i32 = 1;
pub const REFUSE: i32 = 0;

pub const SOL_PACKET: i32 = 263;
pub const PACKET_QDISC_BYPASS: i32 = 20;
/// Every option of an AF_XDP socket: without them it cannot send.
pub const SOL_XDP: i32 = 283;

#[cgroup_sockopt(setsockopt)]
pub fn seal_setsockopt(context: SockoptContext) -> i32 {
    if goes_round(&context) && refuse(FEATURES.load() & Features::CURRENT_SOCKOPT != 0) == REFUSE {
        return REFUSE;
    }
    if FEATURES.load() & Features::OPTLEN_ZERO != 0 {
        // The kernel then takes the option as the program gave it, however long; with `optlen` left alone, 5.10 fails
        // every option above 4,096 bytes.
        // SAFETY: the kernel's context; the field is writable.
        unsafe { (*context.sockopt).optlen = 0 };
    }
    PASS
}

#[inline(always)]
fn goes_round(context: &SockoptContext) -> bool {
    // SAFETY: the kernel's context.
    let (level, name) = unsafe { ((*context.sockopt).level, (*context.sockopt).optname) };
    level == SOL_XDP || (level == SOL_PACKET && name == PACKET_QDISC_BYPASS && is_set(context.sockopt))
}

/// Whether the option's value is anything but 0: to switch the bypass off is what a clean-up does.
#[inline(always)]
fn is_set(option: *const bpf_sockopt) -> bool {
    // SAFETY: the kernel's context; the value is read within its bounds.
    unsafe {
        let value = (*option).__bindgen_anon_2.optval.cast::<u8>();
        let end = (*option).__bindgen_anon_3.optval_end.cast::<u8>();
        if value.add(4) > end {
            // The kernel takes nothing but a whole integer; so this is refused with or without us.
            return true;
        }
        (*value | *value.add(1) | *value.add(2) | *value.add(3)) != 0
    }
}

/// Records; refuses where the policy enforces. `process_known`: whether programs of this kind may ask who runs.
#[inline(always)]
pub fn refuse(process_known: bool) -> i32 {
    let Some(generation) = Generation::current() else { return REFUSE };
    if !generation.judges() {
        return PASS;
    }
    let dropped = generation.enforces(Direction::Outbound);
    count(Reason::Sealed, Direction::Outbound, dropped, 1, 0);
    let outcome = Outcome::without_rule(Reason::Sealed);
    if let Some(mut entry) =
        begin_event(EventKind::Sealed as u8, Direction::Outbound as u8, dropped.into(), outcome, &generation, 0)
    {
        let event = entry.as_mut_ptr();
        if process_known {
            // SAFETY: the entry has room for a whole event.
            unsafe { (*event).owner = current_owner((*event).time) };
        } else {
            // SAFETY: as above. 5.10 knows only the user here.
            unsafe {
                (*event).owner = Owner {
                    uid: aya_ebpf::helpers::bpf_get_current_uid_gid() as u32,
                    time: (*event).time,
                    ..Owner::default()
                };
            }
        }
        entry.submit(0);
    }
    if dropped { REFUSE } else { PASS }
}
