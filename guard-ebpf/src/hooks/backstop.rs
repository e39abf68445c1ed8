//! The backstop: cgroup_skb (5.10). Holds sockets whose packets cross an interface that userspace has not told the
//! programs about yet; there the wire layer does not judge. Under `container_host: guard` also those that go round the bridge device, by
//! one of its ports. Sees neither forwarded packets nor packet sockets.

use core::ptr;

use aya_ebpf::{
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use guard_common::{
    Direction, Reason,
    abi::{EventKind, Features, Interface, SlotFlags},
    decide::Outcome,
};

use crate::{
    generation::Generation,
    globals::{FEATURES, NETNS_COOKIE},
    maps::{INTERFACES, SOCKETS},
    record::{begin_event, count, may_report},
};

const PASS: i32 = 1;
const DROP: i32 = 0;

/// Index of the loopback device, in every network namespace.
const LOOPBACK: u32 = 1;

#[cgroup_skb(ingress)]
pub fn backstop_ingress(context: SkBuffContext) -> i32 {
    backstop(&context, Direction::Inbound)
}

#[cgroup_skb(egress)]
pub fn backstop_egress(context: SkBuffContext) -> i32 {
    backstop(&context, Direction::Outbound)
}

#[inline(always)]
fn backstop(context: &SkBuffContext, direction: Direction) -> i32 {
    let skb = context.skb.skb;
    // SAFETY: the kernel's context.
    let ifindex = unsafe { ptr::read_volatile(&raw const (*skb).ifindex) };
    if ifindex == LOOPBACK {
        return PASS;
    }
    // SAFETY: userspace replaces whole entries.
    let known = unsafe { INTERFACES.get(&ifindex) };
    // A bridge hands up on a port itself what is addressed to one of its link-local groups (01:80:c2:00:00:0x), IP too; and
    // a socket may be bound to a port. Neither crosses the bridge device, where the wire judges.
    let is_member = matches!(known, Some(interface) if interface.flags & Interface::MEMBER != 0);
    if (known.is_some() && !is_member) || !is_ours(context) {
        return PASS;
    }
    let Some(generation) = Generation::current() else { return DROP };
    if !generation.judges() || (is_member && !generation.flags.has(SlotFlags::CONTAINER_HOST)) {
        return PASS;
    }
    let dropped = generation.enforces(direction);
    let bytes = context.len();
    count(Reason::UnknownInterface, direction, dropped, 1, u64::from(bytes));
    if may_report(Reason::UnknownInterface) {
        let outcome = Outcome::without_rule(Reason::UnknownInterface);
        if let Some(mut entry) =
            begin_event(EventKind::PacketDenied as u8, direction as u8, dropped.into(), outcome, &generation, ifindex)
        {
            let event = entry.as_mut_ptr();
            // SAFETY: the entry has room for a whole event.
            unsafe { (*event).packet_bytes = bytes };
            entry.submit(0);
        }
    }
    if dropped { DROP } else { PASS }
}

/// Whether the socket is of guard's own network namespace.
#[inline(always)]
fn is_ours(context: &SkBuffContext) -> bool {
    if FEATURES.load() & Features::NETNS_COOKIE_SKB != 0 {
        // SAFETY: the helper takes this program type's context (6.18).
        return unsafe { bpf_get_netns_cookie(context.skb.skb.cast()) } == NETNS_COOKIE.load();
    }
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_socket_cookie(context.skb.skb.cast()) };
    SOCKETS.get_ptr(&cookie).is_some()
}
