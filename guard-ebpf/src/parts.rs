//! The parts of the wire's programs: global functions, each walked by the verifier once and for itself. They pass
//! [`Hand`] from one to the next. Each returns 0, or 1 where there is no hand, which cannot be. A part takes the context
//! only where it uses it: LLVM would pass anything in place of an argument that nobody reads.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use guard_common::{
    Verdict,
    abi::{AnswerEvent, Event, EventKind, Lost, Owner},
    decide::Outcome,
    judge::{self, Context, Found, Host, V4, V6, event_key},
    packet::{self, Link},
};

use crate::{
    generation::{Generation, boot_ns},
    hand::Hand,
    kernel::{self, Kernel},
    maps::{ANSWERS, OWNERS},
    record::{begin_event, count_lost, count_rule, may_report},
    skb::{self, Direct, Loaded},
};

/// Headers, by direct access.
///
/// # Safety
///
/// `skb` is the program's context; so below.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn parse_headers(skb: *mut __sk_buff, link: u32) -> i32 {
    let Some(hand) = Hand::get() else { return 1 };
    let length = skb::length(skb);
    let bytes = Direct::of_skb(skb);
    packet::parse_headers(&bytes, link_of(link), length, &mut hand.packet);
    0
}

/// Headers once more, where they do not lie in the skb's linear part.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn parse_nonlinear(skb: *mut __sk_buff, link: u32) -> i32 {
    let Some(hand) = Hand::get() else { return 1 };
    let length = skb::length(skb);
    let bytes = Loaded::new(skb, length);
    packet::parse_headers(&bytes, link_of(link), length, &mut hand.packet);
    0
}

/// The form of essential traffic. Rare: so the bytes are loaded wherever they lie.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn parse_essential(skb: *mut __sk_buff) -> i32 {
    let Some(hand) = Hand::get() else { return 1 };
    let bytes = Loaded::new(skb, skb::length(skb));
    packet::parse_essential(&bytes, &mut hand.packet);
    0
}

/// What is denied or allowed without looking at flows.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_without_flow() -> i32 {
    let Some(hand) = Hand::get() else { return 1 };
    let context = hand.context();
    let host = Kernel::without_packet(context.bytes);
    match judge::without_flow(&host, &context, &hand.packet) {
        Some(judgement) => hand.set_judgement(&judgement),
        None => return 1,
    }
    0
}

/// What the step of a flow says: the packet has its judgement;
pub const SETTLED: i32 = 0;
/// its flow is in the hand, and to be placed;
pub const HELD: i32 = 1;
/// it has none;
pub const ABSENT: i32 = 2;
/// there is no hand, which cannot be.
pub const FAULT: i32 = 3;

#[inline(always)]
fn found(hand: &mut Hand, found: Found) -> i32 {
    match found {
        Found::Settled(judgement) => {
            hand.set_judgement(&judgement);
            SETTLED
        }
        Found::Held(from) => {
            hand.set_from(Some(from));
            HELD
        }
        Found::Absent(from) => {
            hand.set_from(from);
            ABSENT
        }
    }
}

macro_rules! family {
    ($family:ty, $settle:ident, $before:ident, $find:ident, $find_frame:ident, $place:ident, $after:ident) => {
        /// Essential traffic.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $settle() -> i32 {
            let Some(hand) = Hand::get() else { return FAULT };
            let context = hand.context();
            let mut host = Kernel::without_packet(context.bytes);
            let settled = judge::settle::<$family, _>(&mut host, &context, &hand.packet);
            hand.set_settled(settled);
            0
        }

        /// A fragment, before its flow is asked: [`SETTLED`] or [`ABSENT`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $before() -> i32 {
            let Some(hand) = Hand::get() else { return FAULT };
            let context = hand.context();
            let host = Kernel::without_packet(context.bytes);
            match judge::fragment::before::<$family, _>(&host, &context, &hand.packet) {
                Some(judgement) => hand.set_judgement(&judgement),
                None => return ABSENT,
            }
            SETTLED
        }

        /// The packet's flow.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub unsafe extern "C" fn $find(skb: *mut __sk_buff) -> i32 {
            let Some(hand) = Hand::get() else { return FAULT };
            let context = hand.context();
            let mut host = Kernel::of_skb(skb.cast(), context.bytes);
            let (settled, absent) = (hand.settled(), hand.is_absent());
            let known =
                judge::flow::find::<$family, _>(&mut host, &context, &hand.packet, settled, absent, &mut hand.held);
            found(hand, known)
        }

        /// The same at XDP.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub unsafe extern "C" fn $find_frame(frame: *mut xdp_md) -> i32 {
            let Some(hand) = Hand::get() else { return FAULT };
            let context = hand.context();
            let mut host = Kernel::of_frame(frame.cast(), context.bytes);
            if !judge::shield::would_deny::<$family, _>(&mut host, &context, &hand.packet) {
                // The hook has set that it is not dropped.
                return SETTLED;
            }
            let (settled, absent) = (hand.settled(), hand.is_absent());
            let known =
                judge::flow::find::<$family, _>(&mut host, &context, &hand.packet, settled, absent, &mut hand.held);
            found(hand, known)
        }

        /// Judges the flow, and puts it where it belongs.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $place() -> i32 {
            let Some(hand) = Hand::get() else { return FAULT };
            let context = hand.context();
            let mut host = Kernel::without_packet(context.bytes);
            let (settled, from) = (hand.settled(), hand.from());
            let judgement =
                judge::flow::place::<$family, _>(&mut host, &context, &hand.packet, settled, &mut hand.held, from);
            hand.set_judgement(&judgement);
            SETTLED
        }

        /// Keeps what a first fragment was given.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $after() -> i32 {
            let Some(hand) = Hand::get() else { return FAULT };
            let context = hand.context();
            let mut host = Kernel::without_packet(context.bytes);
            let judgement = hand.judgement();
            let judgement = judge::fragment::after::<$family, _>(&mut host, &context, &hand.packet, judgement);
            hand.set_judgement(&judgement);
            SETTLED
        }
    };
}

family!(V4, settle_v4, before_v4, find_v4, find_frame_v4, place_v4, after_v4);
family!(V6, settle_v6, before_v6, find_v6, find_frame_v6, place_v6, after_v6);

/// The flow that the packet begins: [`SETTLED`] where it begins none, or [`HELD`].
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn begin_flow(skb: *mut __sk_buff) -> i32 {
    let Some(hand) = Hand::get() else { return FAULT };
    let context = hand.context();
    let mut host = Kernel::of_skb(skb.cast(), context.bytes);
    begin(hand, &mut host, &context)
}

/// The same at XDP: there too a socket says which way its session began.
///
/// # Safety
///
/// `frame` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn begin_frame(frame: *mut xdp_md) -> i32 {
    let Some(hand) = Hand::get() else { return FAULT };
    let context = hand.context();
    let mut host = Kernel::of_frame(frame.cast(), context.bytes);
    begin(hand, &mut host, &context)
}

#[inline(always)]
fn begin<H: Host>(hand: &mut Hand, host: &mut H, context: &Context) -> i32 {
    match judge::flow::begin(host, context, &hand.packet, &mut hand.held) {
        Some(judgement) => {
            hand.set_judgement(&judgement);
            SETTLED
        }
        None => HELD,
    }
}

/// Headers of a frame at XDP.
///
/// # Safety
///
/// `frame` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn parse_frame(frame: *mut xdp_md, link: u32) -> i32 {
    let Some(hand) = Hand::get() else { return 1 };
    // SAFETY: the kernel's context.
    let (data, end, unknown) = unsafe { ((*frame).data as usize, (*frame).data_end as usize, (*frame).rx_queue_index) };
    let length = (end - data) as u32;
    packet::parse_headers(&Direct::new(data, end, unknown), link_of(link), length, &mut hand.packet);
    hand.packets = 1;
    hand.bytes = length;
    0
}

/// As [`report`]. A frame has no socket.
///
/// # Safety
///
/// `frame` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn report_frame(frame: *mut xdp_md) -> i32 {
    let Some(hand) = Hand::get() else { return 1 };
    let context = hand.context();
    let outcome = Outcome(hand.outcome);
    if hand.decided != 0 {
        count_rule(context.slot, outcome);
    }
    if hand.ring == 0 || (hand.ring == EventKind::PacketDenied as u8 && !may_report(outcome.reason())) {
        return 0;
    }
    let generation = Generation { slot: context.slot, number: context.generation, flags: context.flags };
    let Some(mut entry) =
        begin_event(hand.ring, hand.judged_direction, hand.dropped, outcome, &generation, context.ifindex)
    else {
        return 0;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the entry has room for a whole event.
    unsafe {
        if hand.packet.refused().is_none() && hand.packet.family != 0 {
            (*event).family = hand.packet.family;
            (*event).key = event_key(&hand.packet, &context);
        }
        (*event).packet_bytes = hand.bytes;
        // The shield reports only what it drops.
        let event: *mut Event = event;
        (*event).head_bytes = skb::copy_head(frame, hand.packet.network_at.into(), &raw mut (*event).head);
    }
    entry.submit(0);
    0
}

/// The policy's answer to [`Hand::asked`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ask_policy() -> i32 {
    let Some(hand) = Hand::get() else { return 1 };
    let context = hand.context();
    let host = Kernel::without_packet(context.bytes);
    hand.answer = judge::answer(&host, &context, &hand.asked);
    0
}

/// The socket that holds the packet's TCP connection: [`kernel::ACCEPTED`] and others.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn find_tcp_socket(skb: *mut __sk_buff) -> i32 {
    let Some(hand) = Hand::get() else { return kernel::NO_SOCKET };
    // SAFETY: the caller's context.
    unsafe { kernel::tcp_socket(skb.cast(), &hand.packet, hand.context().direction) }
}

/// The same at XDP (5.2).
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn find_tcp_socket_frame(frame: *mut xdp_md) -> i32 {
    let Some(hand) = Hand::get() else { return kernel::NO_SOCKET };
    // SAFETY: the caller's context.
    unsafe { kernel::tcp_socket(frame.cast(), &hand.packet, hand.context().direction) }
}

/// Counts for the rule, and rings.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn report(skb: *mut __sk_buff) -> i32 {
    let Some(hand) = Hand::get() else { return 1 };
    let context = hand.context();
    let outcome = Outcome(hand.outcome);
    if hand.decided != 0 {
        count_rule(context.slot, outcome);
    }
    if hand.ring == 0 || (hand.ring == EventKind::PacketDenied as u8 && !may_report(outcome.reason())) {
        return 0;
    }
    let generation = Generation { slot: context.slot, number: context.generation, flags: context.flags };
    let Some(mut entry) =
        begin_event(hand.ring, hand.judged_direction, hand.dropped, outcome, &generation, context.ifindex)
    else {
        return 0;
    };
    let event = entry.as_mut_ptr();
    let cookie = skb::socket_cookie(skb);
    // SAFETY: the entry has room for a whole event; an owner is written once, before it can be found.
    unsafe {
        // What could not be parsed has no ends that mean anything.
        if hand.packet.refused().is_none() && hand.packet.family != 0 {
            (*event).family = hand.packet.family;
            (*event).key = event_key(&hand.packet, &context);
        }
        (*event).packet_bytes = hand.bytes;
        (*event).socket_cookie = cookie;
        if cookie != 0
            && let Some(owner) = OWNERS.get(&cookie)
        {
            let owner: &Owner = owner;
            (*event).owner = *owner;
        }
        if outcome.verdict() == Verdict::Deny {
            let event: *mut Event = event;
            (*event).head_bytes = skb::load_head(skb, hand.packet.network_at.into(), &raw mut (*event).head);
        }
    }
    entry.submit(0);
    0
}

/// Hands an answer of a name server to whoever names addresses.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn share_answer(skb: *mut __sk_buff) -> i32 {
    let Some(hand) = Hand::get() else { return 1 };
    let context = hand.context();
    let Some(mut entry) = ANSWERS.reserve::<AnswerEvent>(0) else {
        count_lost(Lost::Answers);
        return 0;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the entry has room for a whole event.
    unsafe {
        (*event).time = boot_ns();
        (*event).family = hand.packet.family.into();
        (*event).key = event_key(&hand.packet, &context);
        (*event).length = skb::load_answer(skb, u32::from(hand.packet.transport_at) + 8, &raw mut (*event).bytes);
    }
    entry.submit(0);
    0
}

#[inline(always)]
const fn link_of(link: u32) -> Link {
    if link == 0 { Link::None } else { Link::Ethernet }
}
