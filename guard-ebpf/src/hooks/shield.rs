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
    parts::{judge_without_flow, parse_frame, report_frame, shield_v4, shield_v6},
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
    let judged = if hand.packet.refused != Packet::NOT_REFUSED {
        judge_without_flow()
    } else {
        match hand.packet.family {
            4 => shield_v4(),
            6 => shield_v6(),
            _ => judge_without_flow(),
        }
    };
    if judged != 0 || hand.dropped == 0 {
        return true;
    }
    count_index(hand.counter_index(), hand.packets.into(), hand.bytes.into());
    if hand.ring | hand.decided != 0 {
        report_frame();
    }
    false
}
