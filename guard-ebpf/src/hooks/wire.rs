//! The wire layer: tcx ingress and egress (Linux 6.6), or clsact filters (5.10). The authority on what passes.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use guard_common::{Direction, Reason, packet::{self, Link, Packet}};
use crate::{maps::PACKET, skb::{Direct, Loaded}};

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` for clsact: later programs run, and none means pass.
const NEXT: i32 = -1;

#[classifier]
pub fn wire_ingress(context: TcContext) -> i32 {
    wire(&context, Direction::Inbound)
}

#[classifier]
pub fn wire_egress(context: TcContext) -> i32 {
    wire(&context, Direction::Outbound)
}

#[inline(always)]
fn wire(context: &TcContext, _direction: Direction) -> i32 {
    let skb = context.skb.skb;
    // SAFETY: the kernel's context.
    if unsafe { parse_frame(skb) } != 0 {
        return NEXT;
    }
    let Some(packet) = PACKET.get_ptr_mut(0) else { return NEXT };
    if unsafe { (*packet).needs_second_look() } && unsafe { parse_essential(skb) } != 0 {
        return NEXT;
    }
    NEXT
}

#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn parse_frame(skb: *mut __sk_buff) -> i32 {
    let Some(packet) = PACKET.get_ptr_mut(0) else { return 1 };
    let (data, end, length) = unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).len) };
    let bytes = Direct::new(data, end, length);
    packet::parse(&bytes, Link::Ethernet, length, unsafe { &mut *packet });
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn parse_essential(skb: *mut __sk_buff) -> i32 {
    let Some(packet) = PACKET.get_ptr_mut(0) else { return 1 };
    let (data, end, length) = unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).len) };
    let bytes = Direct::new(data, end, length);
    packet::parse_essential(&bytes, unsafe { &mut *packet });
    0
}
