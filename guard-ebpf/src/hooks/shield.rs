//! The shield: XDP (native 5.10, else generic). Drops what the wire would deny inbound before packet sockets see it, and
//! records it as the wire would. What passes is judged and counted by the wire.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use guard_common::{Direction, abi::Interface, packet::Packet};

use crate::{
    generation::Generation,
    hand::Hand,
    maps::INTERFACES,
    parts::{
        ABSENT, HELD, SETTLED, begin_frame, find_frame_v4, find_frame_v6, judge_without_flow, parse_frame, place_v4,
        place_v6, report_frame,
    },
    record::count_index,
};

#[xdp]
pub fn shield(context: XdpContext) -> u32 {
    if passes(context.ctx) { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
}

/// Where something is missing the wire, which fails closed, has the last word.
#[inline(always)]
fn passes(frame: *mut xdp_md) -> bool {
    let (Some(generation), Some(hand)) = (Generation::current(), Hand::get()) else { return true };
    if !generation.judges() || !generation.enforces(Direction::Inbound) {
        return true;
    }
    // SAFETY: the kernel's context.
    let ifindex = unsafe { (*frame).ingress_ifindex };
    // SAFETY: userspace replaces an element as a whole.
    let link = match unsafe { INTERFACES.get(&ifindex) } {
        Some(interface) => u32::from(interface.flags & Interface::NO_ETHERNET == 0),
        None => 1,
    };
    hand.begin(Direction::Inbound, ifindex, &generation);
    hand.dropped = 0;
    // SAFETY: takes this program's context.
    if unsafe { parse_frame(frame, link) } != 0 {
        return true;
    }
    // SAFETY: as above.
    if unsafe { judge(frame, hand) } != SETTLED || hand.dropped == 0 {
        return true;
    }
    count_index(hand.counter_index(), hand.packets.into(), hand.bytes.into());
    if hand.ring | hand.decided != 0 {
        // SAFETY: as above.
        unsafe { report_frame(frame) };
    }
    false
}

/// Without fragments, which it leaves to the wire; otherwise as the wire.
///
/// # Safety
///
/// `frame` is the program's context.
#[inline(always)]
unsafe fn judge(frame: *mut xdp_md, hand: &mut Hand) -> i32 {
    let v6 = match hand.packet.family {
        4 => false,
        6 => true,
        _ => return judge_without_flow(),
    };
    if hand.packet.refused != Packet::NOT_REFUSED {
        return judge_without_flow();
    }
    // SAFETY: each takes the program's context.
    let mut at = unsafe { if v6 { find_frame_v6(frame) } else { find_frame_v4(frame) } };
    if at == ABSENT {
        // SAFETY: takes the program's context.
        at = unsafe { begin_frame(frame) };
    }
    if at == HELD {
        at = if v6 { place_v6() } else { place_v4() };
    }
    at
}
