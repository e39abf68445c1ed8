//! A packet over IP and its flow, in three steps: what the tables know of it ([`find`]), a flow that it begins ([`begin`]),
//! the policy's word and the flow's place ([`place`]).
//!
//! The steps hand the flow on in `held`. In the kernel that is the per-CPU hand, so that it takes no room on the stack and
//! all that came before is one way to the verifier.

use super::{
    Context, Family, FlowTable, FlowView, Host, Judgement, Ring, Settled, Touch, ask::ask, host::Flows, lifetime, tcp,
};
use crate::{
    Direction, Reason, Verdict,
    abi::{Flow, TcpState},
    decide::Outcome,
    packet::{
        Packet,
        transport::{ICMP, ICMPV6, TCP},
    },
};

/// What the tables know of a packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// All there is to say of the packet.
    Settled(Judgement),
    /// It is in `held`, and has to be judged, or has become something that stands in another table than this.
    Held(FlowTable),
    /// None, or one that is over and lies in this table.
    Absent(Option<FlowTable>),
}

/// The first step, for a packet with all its headers. `absent`: the short way has looked where it looks and found none
/// ([`Short::Absent`](super::Short::Absent)).
#[inline(always)]
pub fn find<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    packet: &Packet,
    settled: Settled,
    absent: bool,
    held: &mut Flow,
) -> Found {
    if let Settled::As(reason) = settled {
        return Found::Settled(Judgement::of_no_flow(context, Outcome::without_rule(reason)));
    }
    let key = F::key(packet, context);
    // One table after the other, and what is found is one thing from then on. Always in this order: a table that is chosen
    // by the packet's direction would be a look-up that the kernel cannot inline.
    let inbound = absent && !context.is_outbound();
    let outbound = absent && context.is_outbound();
    let mut found = None;
    if !absent {
        found = Flows::<F>::find(host, FlowTable::Established, &key).map(|flow| (FlowTable::Established, flow));
    }
    if found.is_none() && !inbound {
        let table = FlowTable::UnansweredInbound;
        found = Flows::<F>::find(host, FlowTable::UnansweredInbound, &key).map(|flow| (table, flow));
    }
    if found.is_none() && !outbound {
        let table = FlowTable::UnansweredOutbound;
        found = Flows::<F>::find(host, FlowTable::UnansweredOutbound, &key).map(|flow| (table, flow));
    }
    if found.is_none() && !absent {
        found = Flows::<F>::find(host, FlowTable::Denied, &key).map(|flow| (FlowTable::Denied, flow));
    }
    match found {
        Some((table, flow)) => known::<F, H>(host, context, packet, table, flow, held),
        None => Found::Absent(None),
    }
}

#[inline(always)]
fn known<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    packet: &Packet,
    table: FlowTable,
    flow: <H as Flows<F>>::Flow,
    held: &mut Flow,
) -> Found {
    let now = host.jiffies();
    let mut view = Flows::<F>::view(host, flow);
    let mut over = lifetime::is_over(&view, packet.protocol, now, host.hz());
    if packet.protocol == TCP
        && !matches!(table, FlowTable::Denied)
        && tcp::is_doubtful(over, view.tcp, packet.tcp_flags, context.is_outbound())
        && host.tcp_lives(packet, context.direction)
    {
        view.tcp = TcpState::Established as u8;
        over = false;
    }
    if over {
        return Found::Absent(Some(table));
    }
    view.tcp = host.forget(view.tcp.into()) as u8;
    let direction = Direction::from_u8(view.direction);
    let original = view.direction == context.direction as u8;
    let current = view.generation == context.generation;
    let refused_before = current && view.outcome.verdict() == Verdict::Deny;

    // Nothing of it ever passed, so the other end may begin a flow of its own with the same two ends: else whoever can
    // write a resolver's address into a packet could bar us from it, port by port.
    let barred = view.generation != 0 && view.outcome.verdict() == Verdict::Deny && view.flags & Flow::ANSWERED == 0;
    if barred && !original && context.flags.enforces(direction) {
        return Found::Absent(Some(table));
    }

    let mut tcp = view.tcp;
    if packet.protocol == TCP {
        match tcp::step(view.tcp, packet.tcp_flags, original) {
            tcp::Step::To(state) => tcp = state,
            tcp::Step::Anew => return Found::Absent(Some(table)),
            // What is denied or only tracked stays that, whatever it does.
            tcp::Step::Refuse if refused_before || context.is_tracking() => {}
            tcp::Step::Refuse => {
                let outcome = Outcome::without_rule(Reason::NoHandshake);
                return Found::Settled(Judgement::of_no_flow(context, outcome));
            }
        }
    } else if is_icmp(packet) && packet.is(Packet::ICMP_ANSWER) == original {
        // A question of the other side with our question's numbers, or an answer before any question.
        return Found::Absent(Some(table));
    }

    // What the flow has become is one thing from here on, however it came about.
    let tcp = host.forget(tcp.into()) as u8;
    let flags = if original { view.flags } else { view.flags | Flow::ANSWERED };
    let flags = host.forget(flags.into()) as u16;
    let touch = Touch { direction: context.direction, packets: context.packets, bytes: context.bytes, now, tcp, flags };
    let settled = holds(host, context, &view) || context.is_tracking();
    let promoted = is_unanswered(table) && is_established(packet.protocol, tcp, flags);
    if !settled || promoted {
        *held = Flows::<F>::load(host, flow);
        touch.apply(held);
        return Found::Held(table);
    }
    Flows::<F>::touch(host, flow, &touch);
    Found::Settled(if context.is_tracking() {
        Judgement::tracking(direction)
    } else {
        Judgement::of_flow(context, view.outcome, direction)
    })
}

/// Whether what a flow was given is this generation's, and has not expired.
#[inline(always)]
pub(super) fn holds<H: Host + ?Sized>(host: &H, context: &Context, flow: &FlowView) -> bool {
    flow.generation == context.generation && (flow.until == u64::MAX || host.boot_ns() < flow.until)
}

#[inline(always)]
const fn is_icmp(packet: &Packet) -> bool {
    packet.protocol == if packet.family == 6 { ICMPV6 } else { ICMP }
}

#[inline(always)]
const fn is_unanswered(table: FlowTable) -> bool {
    matches!(table, FlowTable::UnansweredInbound | FlowTable::UnansweredOutbound)
}

/// Whether a flow is kept among the established: heard from both ends. Of TCP that goes on without a handshake, a socket of
/// ours is as good: else whoever writes an ACK could fill that table, and evict sessions from it.
#[inline(always)]
pub(super) const fn is_established(protocol: u8, tcp: u8, flags: u16) -> bool {
    if protocol == TCP {
        tcp::is_established(tcp) && flags & (Flow::ANSWERED | Flow::HELD) != 0
    } else {
        flags & Flow::ANSWERED != 0
    }
}

/// The second step, where there is none: the flow that this packet begins; not judged yet. `Some`: it begins none.
#[inline(always)]
pub fn begin<H: Host>(host: &mut H, context: &Context, packet: &Packet, held: &mut Flow) -> Option<Judgement> {
    let beginning = if packet.protocol == TCP {
        match tcp::begin(host, context, packet) {
            Some(beginning) => beginning,
            None => return Some(refused(context, Reason::NoHandshake)),
        }
    } else {
        if is_icmp(packet) && packet.is(Packet::ICMP_ANSWER) {
            return Some(refused(context, Reason::IcmpAnswerUnknown));
        }
        tcp::Beginning { direction: context.direction, state: 0, adopted: false, held: false }
    };
    // LLVM would make slow calls to `memset` of a known zero.
    let zero = u64::from(host.forget(0));
    held.generation = zero as u32;
    held.outcome = Outcome::without_rule(Reason::Tracking);
    held.until = u64::MAX;
    held.tcp = beginning.state;
    held.direction = beginning.direction as u8;
    let adopted = if beginning.adopted || context.is_tracking() { Flow::ADOPTED } else { 0 };
    // Its socket may say that the other end began it. It has been heard then: else each of these packets would find a flow
    // of which nothing ever passed, and begin it once more.
    let answered = if beginning.direction as u8 == context.direction as u8 { 0 } else { Flow::ANSWERED };
    let by_socket = if beginning.held { Flow::HELD } else { 0 };
    held.flags = adopted | answered | by_socket;
    held.ifindex = context.ifindex;
    held.packets = [zero; 2];
    held.bytes = [zero; 2];
    held.first_seen = host.boot_ns();
    held.socket_cookie = host.socket_cookie();
    held.first_outcome = Outcome::without_rule(Reason::Tracking);
    held.cut_generation = zero as u32;
    let touch = Touch {
        direction: context.direction,
        packets: context.packets,
        bytes: context.bytes,
        now: host.jiffies(),
        tcp: held.tcp,
        flags: held.flags,
    };
    touch.apply(held);
    None
}

/// The last step: asks the policy where this generation has not said it yet, and puts the flow where it belongs now.
/// `from`: where one with its key stands.
#[inline(always)]
pub fn place<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    packet: &Packet,
    settled: Settled,
    held: &mut Flow,
    from: Option<FlowTable>,
) -> Judgement {
    let key = F::key(packet, context);
    let direction = Direction::from_u8(held.direction);
    let mut judgement = Judgement::tracking(direction);
    if !context.is_tracking() {
        if !holds(host, context, &FlowView::from(&*held)) {
            let unlisted = match settled {
                Settled::As(reason) | Settled::Policy(reason) => reason,
            };
            match ask::<F, H>(host, context, packet, &key, held, unlisted) {
                Ok((outcome, until)) => {
                    judgement.decided = true;
                    judgement.ring = judged(held, context, outcome, until);
                }
                Err(reason) => return refused(context, reason),
            }
        }
        judgement.outcome = held.outcome;
        judgement.dropped = held.outcome.verdict() == Verdict::Deny && context.flags.enforces(direction);
    }

    let denied = held.generation != 0 && held.outcome.verdict() == Verdict::Deny;
    let to = if denied {
        FlowTable::Denied
    } else if is_established(packet.protocol, held.tcp, held.flags)
        || (matches!(from, Some(FlowTable::Established)) && held.flags & (Flow::ANSWERED | Flow::HELD) != 0)
    {
        FlowTable::Established
    } else {
        FlowTable::unanswered(direction)
    };
    if !Flows::<F>::insert(host, to, &key, held) {
        return refused(context, Reason::FlowTableFull);
    }
    match from {
        Some(from) if from as u8 != to as u8 => Flows::<F>::remove(host, from, &key),
        _ => {}
    }
    judgement
}

/// A packet that gets a reason for itself, and no flow keeps it.
#[inline(always)]
fn refused(context: &Context, reason: Reason) -> Judgement {
    Judgement::of_no_flow(context, Outcome::without_rule(reason))
}

/// Writes an outcome into its flow; which event that is.
#[inline(always)]
fn judged(held: &mut Flow, context: &Context, outcome: Outcome, until: u64) -> Ring {
    let first = held.generation == 0;
    let cut = !first && held.outcome.verdict() == Verdict::Allow && outcome.verdict() == Verdict::Deny;
    held.generation = context.generation;
    held.outcome = outcome;
    held.until = until;
    if first {
        held.first_outcome = outcome;
        Ring::FlowBegan
    } else if cut {
        held.cut_generation = context.generation;
        Ring::FlowCut
    } else {
        Ring::No
    }
}
