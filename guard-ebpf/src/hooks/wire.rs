//! The wire layer: tcx ingress and egress (Linux 6.6), or clsact filters (5.10). The authority on what passes.
//!
//! Two pairs of programs, for devices with an Ethernet header and for those without (tun, WireGuard, GRE): what a program
//! is attached to is known then, and costs no look-up for each packet.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use guard_common::{Direction, Reason};

use crate::{
    generation::Generation,
    hand::Hand,
    parts::{judge_packet, parse_essential, parse_headers, parse_nonlinear, report},
    record::{count, count_index},
    skb,
};

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` for clsact: later programs run, and none means pass.
const NEXT: i32 = -1;
/// `TCX_DROP`, `TC_ACT_SHOT`.
const DROP: i32 = 2;

const ETHERNET: u32 = 1;
const NO_HEADER: u32 = 0;

#[classifier]
pub fn wire_ingress(context: TcContext) -> i32 {
    wire(context.skb.skb, Direction::Inbound, ETHERNET)
}

#[classifier]
pub fn wire_egress(context: TcContext) -> i32 {
    wire(context.skb.skb, Direction::Outbound, ETHERNET)
}

#[classifier]
pub fn wire_ingress_l3(context: TcContext) -> i32 {
    wire(context.skb.skb, Direction::Inbound, NO_HEADER)
}

#[classifier]
pub fn wire_egress_l3(context: TcContext) -> i32 {
    wire(context.skb.skb, Direction::Outbound, NO_HEADER)
}

#[inline(always)]
fn wire(skb: *mut __sk_buff, direction: Direction, link: u32) -> i32 {
    let (Some(generation), Some(hand)) = (Generation::current(), Hand::get()) else {
        count(Reason::TableFault, direction, true, 1, 0);
        return DROP;
    };
    // SAFETY: each takes this program's context.
    unsafe {
        parse_headers(skb, link);
        if hand.packet.refused == Reason::Truncated as u8 {
            parse_nonlinear(skb, link);
        }
        if hand.packet.needs_second_look() {
            parse_essential(skb);
        }
    }
    let (packets, bytes) = skb::on_the_wire(skb, &hand.packet);
    hand.set_context(direction, skb::ifindex(skb), &generation, packets, bytes);
    // SAFETY: takes this program's context.
    if unsafe { judge_packet(skb) } != 0 {
        count(Reason::TableFault, direction, true, 1, 0);
        return DROP;
    }
    count_index(hand.counter_index(), packets.into(), bytes.into());
    if hand.ring | hand.decided != 0 {
        // SAFETY: as above.
        unsafe { report(skb) };
    }
    if hand.dropped != 0 { DROP } else { NEXT }
}
