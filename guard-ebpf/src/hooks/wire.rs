//! The wire layer: tcx ingress and egress (Linux 6.6), or clsact filters (5.10). The authority on what passes.
//!
//! Two pairs of programs, for devices with an Ethernet header and for those without (tun, WireGuard, GRE): what a program
//! is attached to is known then, and costs no look-up for each packet.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_redirect, macros::classifier, programs::TcContext};
use guard_common::{Direction, Reason};

use crate::{
    generation::Generation,
    hand::Hand,
    parts::{
        judge_v4, judge_v6, judge_without_flow, parse_essential, parse_headers, parse_nonlinear, report, settle_v4,
        settle_v6,
    },
    record::{count, count_index},
    skb,
};

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` for clsact: later programs run, and none means pass.
const NEXT: i32 = -1;
/// `TCX_DROP`, `TC_ACT_SHOT`.
const SHOT: i32 = 2;

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
        return drop_verdict(direction);
    };
    hand.begin(direction, skb::ifindex(skb), &generation);
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
    (hand.packets, hand.bytes) = skb::on_the_wire(skb, &hand.packet);
    // SAFETY: as above.
    if unsafe { judge(skb, hand) } != 0 {
        count(Reason::TableFault, direction, true, 1, 0);
        return drop_verdict(direction);
    }
    count_index(hand.counter_index(), hand.packets.into(), hand.bytes.into());
    if hand.ring | hand.decided != 0 {
        // SAFETY: as above.
        unsafe { report(skb) };
    }
    if hand.dropped != 0 { drop_verdict(direction) } else { NEXT }
}

/// The verdict by which the kernel frees the packet.
///
/// At egress a redirect to a device that cannot be: there is no interface 0, so `skb_do_redirect` frees the packet, and
/// `sch_handle_egress` tells the sender of success all the same (net/core/filter.c, net/core/dev.c; 5.10 to 6.18).
/// `TC_ACT_SHOT` would tell it `NET_XMIT_DROP`, which TCP takes for congestion of this host's own: it tries again without
/// backing off and gives a connection up after some eight seconds, though a wrong edit is undone only after minutes.
#[inline(always)]
fn drop_verdict(direction: Direction) -> i32 {
    match direction {
        Direction::Inbound => SHOT,
        // SAFETY: the helper takes two numbers and only notes them (4.4). It gives `TC_ACT_REDIRECT`.
        Direction::Outbound => unsafe { bpf_redirect(0, 0) as i32 },
    }
}

/// # Safety
///
/// `skb` is the program's context.
#[inline(always)]
unsafe fn judge(skb: *mut __sk_buff, hand: &mut Hand) -> i32 {
    let essential = hand.packet.essential != 0 && hand.is_judging();
    // SAFETY: each takes the program's context.
    unsafe {
        if hand.packet.refused().is_some() {
            return judge_without_flow();
        }
        match hand.packet.family {
            4 => {
                if essential && settle_v4() != 0 {
                    return 1;
                }
                judge_v4(skb)
            }
            6 => {
                if essential && settle_v6() != 0 {
                    return 1;
                }
                judge_v6(skb)
            }
            _ => judge_without_flow(),
        }
    }
}
