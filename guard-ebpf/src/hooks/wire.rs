//! The wire layer: tcx ingress and egress (Linux 6.6), or clsact filters (5.10). The authority on what passes.
//!
//! Two pairs of programs, for devices with an Ethernet header and for those without (tun, WireGuard, GRE): what a program
//! is attached to is known then, and costs no look-up for each packet.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::bpf_redirect,
    macros::classifier,
    programs::TcContext,
};
use guard_common::{
    Direction, Reason,
    abi::SlotFlags,
    judge::Short,
    packet::{
        Link, Packet,
        ethernet::{IPV4, IPV6},
    },
};

use crate::{
    generation::Generation,
    hand::Hand,
    parts::{
        ABSENT, FAULT, HELD, SETTLED, after_v4, after_v6, before_v4, before_v6, begin_flow, find_v4, find_v6,
        judge_without_flow, parse_essential, parse_headers, parse_nonlinear, place_v4, place_v6, report, settle_v4,
        settle_v6, share_answer,
    },
    record::{count, count_host_side, count_index},
    reject::{is_from_behind, is_own_answer, reject_v4, reject_v6},
    short, skb,
};

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` for clsact: later programs run, and none means pass.
pub const NEXT: i32 = -1;
/// `TCX_DROP`, `TC_ACT_SHOT`.
const SHOT: i32 = 2;

pub const ETHERNET: u32 = 1;
const ETHERNET_BYTES: u32 = 14;
const NO_HEADER: u32 = 0;

#[classifier]
pub fn wire_ingress(context: TcContext) -> i32 {
    uplink(context.skb.skb, Direction::Inbound, ETHERNET)
}

#[classifier]
pub fn wire_egress(context: TcContext) -> i32 {
    uplink(context.skb.skb, Direction::Outbound, ETHERNET)
}

#[classifier]
pub fn wire_ingress_l3(context: TcContext) -> i32 {
    uplink(context.skb.skb, Direction::Inbound, NO_HEADER)
}

#[classifier]
pub fn wire_egress_l3(context: TcContext) -> i32 {
    uplink(context.skb.skb, Direction::Outbound, NO_HEADER)
}

#[inline(always)]
fn uplink(skb: *mut __sk_buff, direction: Direction, link: u32) -> i32 {
    let Some(generation) = Generation::current() else { return fault(direction) };
    if matches!(direction, Direction::Inbound) && is_own_answer(skb) {
        return NEXT;
    }
    wire(skb, direction, link, Side::Uplink, &generation)
}

/// Where a program stands. Known when compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where frames leave this host.
    Uplink,
    /// Between this host and those behind it ([`super::host`]).
    Host,
}

#[inline(always)]
pub fn wire(skb: *mut __sk_buff, direction: Direction, link: u32, side: Side, generation: &Generation) -> i32 {
    let kind = if link == NO_HEADER { Link::None } else { Link::Ethernet };
    let (known, packets, bytes) = short::judge(skb, direction, kind, generation);
    if let Short::Settled(judgement) = known {
        count(judgement.outcome.reason(), direction, judgement.dropped, packets.into(), bytes.into());
        if side == Side::Host {
            count_host_side(direction, judgement.dropped, packets);
        }
        return if judgement.dropped { deny(skb, direction, link, side, generation) } else { NEXT };
    }
    let Some(hand) = Hand::get() else { return fault(direction) };
    hand.begin(direction, skb::ifindex(skb), generation);
    if known == Short::Absent {
        hand.set_absent();
    }
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
    if unsafe { judge(skb, hand) } != SETTLED {
        return fault(direction);
    }
    count_index(hand.counter_index(), hand.packets.into(), hand.bytes.into());
    if side == Side::Host {
        count_host_side(direction, hand.dropped != 0, hand.packets);
    }
    if hand.ring | hand.decided != 0 {
        // SAFETY: as above.
        unsafe { report(skb) };
    }
    if hand.is_answer() {
        // SAFETY: as above.
        unsafe { share_answer(skb) };
    }
    if hand.dropped != 0 { deny(skb, direction, link, side, generation) } else { NEXT }
}

/// Drops it, or sends back an answer in its place.
#[inline(always)]
fn deny(skb: *mut __sk_buff, direction: Direction, link: u32, side: Side, generation: &Generation) -> i32 {
    if matches!(direction, Direction::Inbound)
        || side == Side::Host
        || !generation.flags.has(SlotFlags::REJECT_OUTBOUND)
        || !is_from_behind(skb)
    {
        return drop_verdict(direction);
    }
    let at = if link == NO_HEADER { 0 } else { ETHERNET_BYTES };
    // SAFETY: this program's context.
    let answered = unsafe {
        match u16::from_be((*skb).protocol as u16) {
            IPV4 => reject_v4(skb, at),
            IPV6 => reject_v6(skb, at),
            _ => 0,
        }
    };
    if answered != 1 {
        return drop_verdict(direction);
    }
    // SAFETY: the helper takes two numbers. Back in, by the same interface.
    unsafe { bpf_redirect(skb::ifindex(skb), BPF_F_INGRESS.into()) as i32 }
}

/// What cannot be, and is denied.
#[inline(always)]
pub fn fault(direction: Direction) -> i32 {
    count(Reason::TableFault, direction, true, 1, 0);
    drop_verdict(direction)
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

/// [`SETTLED`], with the judgement in the hand; anything else is a fault.
///
/// # Safety
///
/// `skb` is the program's context.
#[inline(always)]
unsafe fn judge(skb: *mut __sk_buff, hand: &mut Hand) -> i32 {
    let v6 = match hand.packet.family {
        4 => false,
        6 => true,
        _ => return judge_without_flow(),
    };
    if hand.packet.refused().is_some() {
        return judge_without_flow();
    }
    if hand.packet.essential != 0 && hand.is_judging() && (if v6 { settle_v6() } else { settle_v4() }) != 0 {
        return FAULT;
    }
    let fragment = hand.packet.is(Packet::FRAGMENT);
    if fragment {
        let before = if v6 { before_v6() } else { before_v4() };
        if before != ABSENT {
            return before;
        }
    }
    // SAFETY: each takes the program's context.
    let mut at = unsafe { if v6 { find_v6(skb) } else { find_v4(skb) } };
    if at == ABSENT {
        // SAFETY: as above.
        at = unsafe { begin_flow(skb) };
    }
    if at == HELD {
        at = if v6 { place_v6() } else { place_v4() };
    }
    if fragment && at == SETTLED {
        at = if v6 { after_v6() } else { after_v4() };
    }
    at
}
