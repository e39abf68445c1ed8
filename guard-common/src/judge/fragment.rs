//! Fragments: the first decides, the later ones follow it for 30 s.

use super::{Context, Family, Host, Judgement, host::Flows};
use crate::{Direction, Reason, Verdict, abi::FragmentValue, decide::Outcome, packet::Packet};

const SECONDS: u64 = 30;

/// Of a fragment, before its flow is asked: a later one goes as the first went, and a first one must not say something else
/// than another first. `None`: it is judged as any packet.
#[inline(always)]
pub fn before<F: Family, H: Host + Flows<F>>(host: &H, context: &Context, packet: &Packet) -> Option<Judgement> {
    if packet.is(Packet::LATER) {
        return Some(follow::<F, H>(host, context, packet));
    }
    if !context.is_tracking() && conflicts::<F, H>(host, context, packet) {
        return Some(Judgement::of_no_flow(context, Outcome::without_rule(Reason::FragmentConflict)));
    }
    None
}

/// Keeps what a first fragment was given, for the later ones; denied where that cannot be kept.
#[inline(always)]
pub fn after<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    packet: &Packet,
    first: Judgement,
) -> Judgement {
    if context.is_tracking() || enter::<F, H>(host, context, packet, &first) {
        return first;
    }
    Judgement::of_no_flow(context, Outcome::without_rule(Reason::FragmentTableFull))
}

#[inline(always)]
fn follow<F: Family, H: Host + Flows<F>>(host: &H, context: &Context, packet: &Packet) -> Judgement {
    if context.is_tracking() {
        return Judgement::tracking(context.direction);
    }
    match fresh::<F, H>(host, context, packet) {
        // One that an older generation has judged stands for nothing: a packet is never judged by two.
        Some(first) if first.generation == context.generation => {
            let outcome = match first.outcome.verdict() {
                Verdict::Allow => Outcome::without_rule(Reason::Fragment),
                Verdict::Deny => first.outcome,
            };
            let dropped =
                outcome.verdict() == Verdict::Deny && context.flags.enforces(Direction::from_u8(first.direction));
            Judgement { dropped, ..Judgement::of_no_flow(context, outcome) }
        }
        _ => Judgement::of_no_flow(context, Outcome::without_rule(Reason::FragmentNoFirst)),
    }
}

/// Whether another first fragment of the same packet said something else.
#[inline(always)]
fn conflicts<F: Family, H: Host + Flows<F>>(host: &H, context: &Context, packet: &Packet) -> bool {
    match fresh::<F, H>(host, context, packet) {
        Some(first) => first.generation == context.generation && first.ports != ports(packet),
        None => false,
    }
}

#[inline(always)]
fn enter<F: Family, H: Host + Flows<F>>(host: &mut H, context: &Context, packet: &Packet, first: &Judgement) -> bool {
    let value = FragmentValue {
        seen: host.jiffies(),
        ports: ports(packet),
        generation: context.generation,
        outcome: first.outcome,
        direction: first.direction as u8,
        reserved: [0; 3],
    };
    Flows::<F>::insert_fragment(host, &F::fragment_key(packet, context), &value)
}

#[inline(always)]
fn fresh<F: Family, H: Host + Flows<F>>(host: &H, context: &Context, packet: &Packet) -> Option<FragmentValue> {
    let first = Flows::<F>::find_fragment(host, &F::fragment_key(packet, context))?;
    let now = host.jiffies();
    if now > first.seen && now - first.seen > SECONDS * host.hz() { None } else { Some(first) }
}

#[inline(always)]
const fn ports(packet: &Packet) -> u32 {
    (packet.source_port as u32) << 16 | packet.destination_port as u32
}
