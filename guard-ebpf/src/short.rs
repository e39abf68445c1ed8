//! The short way of the wire: a plain packet of an established flow, judged without [`Hand`](crate::hand::Hand) and
//! without a call of a part.

use aya_ebpf::bindings::__sk_buff;
use guard_common::{
    Direction,
    judge::{Context, Short, V4, V6, short},
    packet::{
        Bytes, Link, Plain,
        plain::{self, LONGEST_V4, LONGEST_V6},
        transport::UDP,
    },
};

use crate::{
    generation::Generation,
    kernel::Kernel,
    skb::{self, Head},
};

const ETHERNET: usize = 14;

/// Also how many packets and bytes it was on the wire, where it is settled.
#[inline(always)]
pub fn judge(skb: *mut __sk_buff, direction: Direction, link: Link, generation: &Generation) -> (Short, u32, u32) {
    look(skb, direction, link, generation).unwrap_or((Short::Long, 0, 0))
}

/// `None`: bytes that do not all lie in the linear part, short datagrams, and what is not plain.
#[inline(always)]
fn look(skb: *mut __sk_buff, direction: Direction, link: Link, generation: &Generation) -> Option<(Short, u32, u32)> {
    let at = |headers| context(skb, direction, generation, headers);
    match link {
        Link::Ethernet => {
            let head = Head::<{ ETHERNET + LONGEST_V4 }>::of_skb(skb)?;
            match plain::network(&head, link)? {
                (4, network) => v4(skb, &head, network, at),
                (_, network) => v6(skb, &Head::<{ ETHERNET + LONGEST_V6 }>::of_skb(skb)?, network, at),
            }
        }
        Link::None => {
            let head = Head::<LONGEST_V4>::of_skb(skb)?;
            match plain::network(&head, link)? {
                (4, network) => v4(skb, &head, network, at),
                (_, network) => v6(skb, &Head::<LONGEST_V6>::of_skb(skb)?, network, at),
            }
        }
    }
}

#[inline(always)]
fn v4<B: Bytes>(
    skb: *mut __sk_buff,
    head: &B,
    network: u32,
    context: impl Fn(u32) -> Context,
) -> Option<(Short, u32, u32)> {
    let (plain, headers) = plain::v4(head, network, skb::length(skb))?;
    let context = context(headers);
    if may_be_answer(&plain, context.direction) {
        return None;
    }
    Some((short::<V4, _>(&mut Kernel::without_packet(0), &context, &plain), context.packets, context.bytes))
}

#[inline(always)]
fn v6<B: Bytes>(
    skb: *mut __sk_buff,
    head: &B,
    network: u32,
    context: impl Fn(u32) -> Context,
) -> Option<(Short, u32, u32)> {
    let (plain, headers) = plain::v6(head, network, skb::length(skb))?;
    let context = context(headers);
    if may_be_answer(&plain, context.direction) {
        return None;
    }
    Some((short::<V6, _>(&mut Kernel::without_packet(0), &context, &plain), context.packets, context.bytes))
}

/// What a name server may have sent goes the long way, which hands it on.
#[inline(always)]
fn may_be_answer(plain: &Plain, direction: Direction) -> bool {
    plain.source_port == 53 && plain.protocol == UDP && matches!(direction, Direction::Inbound)
}

#[inline(always)]
fn context(skb: *mut __sk_buff, direction: Direction, generation: &Generation, headers: u32) -> Context {
    let (packets, bytes) = skb::train(skb, headers);
    Context {
        direction,
        ifindex: skb::ifindex(skb),
        slot: generation.slot,
        generation: generation.number,
        flags: generation.flags,
        packets,
        bytes,
    }
}
