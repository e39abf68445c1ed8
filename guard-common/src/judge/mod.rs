//! The way of one packet: [`Packet`] and [`Context`] to a [`Judgement`].
//!
//! 1. What could not be parsed is denied.
//! 2. [`essential`] traffic and ICMP errors ([`icmp_error`]) have rules of their own.
//! 3. A later [`fragment`] follows its first.
//! 4. A known flow is followed: found, not over ([`lifetime`]), possible where its TCP stands ([`tcp`]), judged by this
//!    very generation, and its outcome not expired. This is the short way that nearly every packet takes.
//! 5. What is left is judged by the policy: a new flow by the direction of this packet (TCP without SYN: by its socket), a
//!    known one by its own. The flow then stands in the table for what it has become.
//!
//! Bytes are not looked at here, see [`crate::packet`]. Counting by reason and sending events is the hook's part: a
//! [`Judgement`] says what to count and whether to ring.

pub mod essential;
mod family;
pub mod fragment;
mod host;
pub mod icmp_error;
pub mod lifetime;
pub mod shield;
pub mod tcp;

#[cfg(test)]
mod tests;

pub use essential::Settled;
pub use family::{Family, V4, V6};
pub use host::{FlowTable, FlowView, Flows, Host, TcpSocket, Touch};

use crate::{
    Direction, Reason, Verdict,
    abi::{EventKind, Flow, FlowKeyV6, Interface, Slot, SlotFlags},
    decide::{Outcome, Question, Subject, decide, local_class},
    packet::{
        Packet,
        transport::{ICMP, ICMPV6, TCP},
    },
};

/// Where and when a packet is met; read once, so that one generation judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub direction: Direction,
    pub ifindex: u32,
    /// [`Slot::NONE`]: no policy is in force, and packets are tracked only.
    pub slot: Slot,
    /// Of the slot ([`crate::abi::SlotInfo`]).
    pub generation: u32,
    pub flags: SlotFlags,
    /// As on the wire: segments of a train, and all their bytes.
    pub packets: u32,
    pub bytes: u32,
}

impl Context {
    #[must_use]
    #[inline(always)]
    pub const fn is_tracking(&self) -> bool {
        self.slot.0 >= Slot::NONE.0
    }

    #[must_use]
    #[inline(always)]
    pub const fn is_outbound(&self) -> bool {
        matches!(self.direction, Direction::Outbound)
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub outcome: Outcome,
    /// Denied in a direction that is enforced (a flow's own: its answers are let through where it is only audited). The only field that a hook's return value depends on.
    pub dropped: bool,
    /// The policy was asked, and this outcome is its answer for a flow: the rule's counter goes up by one.
    pub decided: bool,
    pub ring: Ring,
    /// Of the flow; of the packet where it belongs to none.
    pub direction: Direction,
}

/// Which event a packet gives rise to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ring {
    No = 0,
    /// [`EventKind::FlowBegan`], with [`event_key`].
    FlowBegan = EventKind::FlowBegan as u8,
    /// [`EventKind::FlowCut`], with [`event_key`].
    FlowCut = EventKind::FlowCut as u8,
    /// [`EventKind::PacketDenied`], at most one a second and reason.
    PacketDenied = EventKind::PacketDenied as u8,
}

impl Judgement {
    #[inline(always)]
    const fn tracking(direction: Direction) -> Self {
        let outcome = Outcome::without_rule(Reason::Tracking);
        Self { outcome, dropped: false, decided: false, ring: Ring::No, direction }
    }

    /// Of a packet that no flow keeps.
    #[inline(always)]
    fn of_no_flow(context: &Context, outcome: Outcome) -> Self {
        if context.is_tracking() {
            return Self::tracking(context.direction);
        }
        let denied = outcome.verdict() == Verdict::Deny;
        Self {
            outcome,
            dropped: denied && context.flags.enforces(context.direction),
            decided: false,
            ring: if denied { Ring::PacketDenied } else { Ring::No },
            direction: context.direction,
        }
    }

    #[inline(always)]
    fn of_flow(context: &Context, outcome: Outcome, direction: Direction) -> Self {
        Self {
            outcome,
            dropped: outcome.verdict() == Verdict::Deny && context.flags.enforces(direction),
            decided: false,
            ring: Ring::No,
            direction,
        }
    }
}

/// Judges one packet. `packet` is read only.
///
/// In the kernel its parts are functions of their own, so that the verifier walks each once: [`without_flow`],
/// [`settle`], [`ip`], and behind [`Host::ask`] [`answer`].
#[inline(always)]
pub fn judge<H: Host>(host: &mut H, context: &Context, packet: &Packet) -> Judgement {
    if let Some(judgement) = without_flow(host, context, packet) {
        return judgement;
    }
    match packet.family {
        4 => {
            let settled = settle::<V4, H>(host, context, packet);
            ip::<V4, H>(host, context, packet, settled)
        }
        _ => {
            let settled = settle::<V6, H>(host, context, packet);
            ip::<V6, H>(host, context, packet, settled)
        }
    }
}

/// Of what could not be parsed, and of what is neither IPv4 nor IPv6.
#[inline(always)]
pub fn without_flow<H: Host>(host: &H, context: &Context, packet: &Packet) -> Option<Judgement> {
    let reason = match packet.refused() {
        Some(reason) => reason,
        None if matches!(packet.family, 4 | 6) => return None,
        None => essential::below_ip(host, context, packet),
    };
    Some(Judgement::of_no_flow(context, Outcome::without_rule(reason)))
}

/// Of essential traffic over IP; what is not essential is the policy's to decide.
#[inline(always)]
pub fn settle<F: Family, H: Host + Flows<F>>(host: &mut H, context: &Context, packet: &Packet) -> Settled {
    if packet.essential == 0 || context.is_tracking() {
        return Settled::Policy(Reason::NotListed);
    }
    essential::settle::<F, H>(host, context, packet)
}

/// The key for an event about an IP packet's flow: both families in the shape of the larger one.
#[must_use]
#[inline(always)]
pub fn event_key(packet: &Packet, context: &Context) -> FlowKeyV6 {
    if packet.family == 6 {
        return V6::key(packet, context);
    }
    let key = V4::key(packet, context);
    FlowKeyV6 {
        remote: [key.remote, 0, 0, 0],
        local: [key.local, 0, 0, 0],
        remote_port: key.remote_port,
        local_port: key.local_port,
        protocol_scope: key.protocol_scope,
    }
}

/// Of an IPv4 or IPv6 packet.
#[inline(always)]
pub fn ip<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    packet: &Packet,
    settled: Settled,
) -> Judgement {
    if packet.is(Packet::LATER) {
        return fragment::follow::<F, H>(host, context, packet);
    }
    let first = packet.is(Packet::FRAGMENT) && !context.is_tracking();
    if first && fragment::conflicts::<F, H>(host, context, packet) {
        return Judgement::of_no_flow(context, Outcome::without_rule(Reason::FragmentConflict));
    }
    let judgement = whole::<F, H>(host, context, packet, settled);
    if first && !fragment::enter::<F, H>(host, context, packet, &judgement) {
        return Judgement::of_no_flow(context, Outcome::without_rule(Reason::FragmentTableFull));
    }
    judgement
}

/// A packet with all its headers.
#[inline(always)]
fn whole<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    packet: &Packet,
    settled: Settled,
) -> Judgement {
    let unlisted = match settled {
        Settled::As(reason) => return Judgement::of_no_flow(context, Outcome::without_rule(reason)),
        Settled::Policy(reason) => reason,
    };
    let key = F::key(packet, context);
    let now = host.jiffies();
    // One table after the other, and what is found is one thing from then on.
    let found = match Flows::<F>::find(host, FlowTable::Established, &key) {
        Some(flow) => Some((FlowTable::Established, flow)),
        None => match Flows::<F>::find(host, FlowTable::Unanswered, &key) {
            Some(flow) => Some((FlowTable::Unanswered, flow)),
            None => Flows::<F>::find(host, FlowTable::Denied, &key).map(|flow| (FlowTable::Denied, flow)),
        },
    };
    let from = found.map(|(table, _)| table);
    let known = match found {
        Some((table, flow)) => known::<F, H>(host, context, packet, table, flow, now),
        None => Known::Absent,
    };
    let held = match known {
        Known::Settled(judgement) => return judgement,
        Known::Judge(held) => held,
        Known::Absent => match begin::<F, H>(host, context, packet, now) {
            Ok(held) => held,
            Err(reason) => return Judgement::of_no_flow(context, Outcome::without_rule(reason)),
        },
    };
    anew::<F, H>(host, context, packet, &key, held, from, unlisted, now)
}

enum Known {
    Settled(Judgement),
    /// It has to be judged, or has become something that stands in another table.
    Judge(Flow),
    /// It is over.
    Absent,
}

#[inline(always)]
fn known<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    packet: &Packet,
    table: FlowTable,
    flow: <H as Flows<F>>::Flow,
    now: u64,
) -> Known {
    let view = Flows::<F>::view(host, flow);
    if lifetime::is_over(&view, packet.protocol, now, host.hz()) {
        return Known::Absent;
    }
    let direction = Direction::from_u8(view.direction);
    let original = view.direction == context.direction as u8;
    let current = view.generation == context.generation;
    let refused_before = current && view.outcome.verdict() == Verdict::Deny;

    // Nothing of it ever passed, so the other end may begin a flow of its own with the same two ends: else whoever can
    // write a resolver's address into a packet could bar us from it, port by port.
    let barred = view.generation != 0 && view.outcome.verdict() == Verdict::Deny && view.flags & Flow::ANSWERED == 0;
    if barred && !original && context.flags.enforces(direction) {
        return Known::Absent;
    }

    let mut tcp = view.tcp;
    if packet.protocol == TCP {
        match tcp::step(view.tcp, packet.tcp_flags, original) {
            tcp::Step::To(state) => tcp = state,
            tcp::Step::Anew => return Known::Absent,
            // What is denied or only tracked stays that, whatever it does.
            tcp::Step::Refuse if refused_before || context.is_tracking() => {}
            tcp::Step::Refuse => {
                let outcome = Outcome::without_rule(Reason::NoHandshake);
                return Known::Settled(Judgement::of_no_flow(context, outcome));
            }
        }
    } else if is_icmp::<F>(packet) && packet.is(Packet::ICMP_ANSWER) == original {
        // A question of the other side with our question's numbers, or an answer before any question.
        return Known::Absent;
    }

    // What the flow has become is one thing from here on, however it came about.
    let tcp = host.forget(tcp.into()) as u8;
    let flags = if original { view.flags } else { view.flags | Flow::ANSWERED };
    let flags = host.forget(flags.into()) as u16;
    let touch = Touch { direction: context.direction, packets: context.packets, bytes: context.bytes, now, tcp, flags };
    let judged = current && (view.until == u64::MAX || host.boot_ns() < view.until);
    let settled = judged || context.is_tracking();
    let promoted = matches!(table, FlowTable::Unanswered) && is_established(packet.protocol, tcp, flags);
    if !settled || promoted {
        let mut held = Flows::<F>::load(host, flow);
        touch.apply(&mut held);
        return Known::Judge(held);
    }
    Flows::<F>::touch(host, flow, &touch);
    Known::Settled(if context.is_tracking() {
        Judgement::tracking(direction)
    } else {
        Judgement::of_flow(context, view.outcome, direction)
    })
}

#[inline(always)]
const fn is_icmp<F: Family>(packet: &Packet) -> bool {
    packet.protocol == if F::IPV6 { ICMPV6 } else { ICMP }
}

/// Whether a flow is kept among the established: heard from both ends.
#[inline(always)]
const fn is_established(protocol: u8, tcp: u8, flags: u16) -> bool {
    if protocol == TCP { tcp::is_established(tcp) } else { flags & Flow::ANSWERED != 0 }
}

/// The flow that this packet begins; not judged yet.
#[inline(always)]
fn begin<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    packet: &Packet,
    now: u64,
) -> Result<Flow, Reason> {
    let beginning = if packet.protocol == TCP {
        tcp::begin(host, context, packet).ok_or(Reason::NoHandshake)?
    } else {
        if is_icmp::<F>(packet) && packet.is(Packet::ICMP_ANSWER) {
            return Err(Reason::IcmpAnswerUnknown);
        }
        tcp::Beginning { direction: context.direction, state: 0, adopted: false }
    };
    // LLVM would make slow calls to `memset` of a known zero.
    let zero = u64::from(host.forget(0));
    let mut held = Flow {
        generation: 0,
        outcome: Outcome::without_rule(Reason::Tracking),
        until: u64::MAX,
        last_seen: now,
        tcp: beginning.state,
        direction: beginning.direction as u8,
        flags: if beginning.adopted || context.is_tracking() { Flow::ADOPTED } else { 0 },
        ifindex: context.ifindex,
        packets: [zero; 2],
        bytes: [zero; 2],
        first_seen: host.boot_ns(),
        socket_cookie: host.socket_cookie(),
        first_outcome: Outcome::without_rule(Reason::Tracking),
        cut_generation: 0,
    };
    let touch = Touch {
        direction: context.direction,
        packets: context.packets,
        bytes: context.bytes,
        now,
        tcp: held.tcp,
        flags: held.flags,
    };
    touch.apply(&mut held);
    Ok(held)
}

/// Asks the policy where this generation has not said it yet, and puts the flow where it belongs now.
#[expect(clippy::too_many_arguments, reason = "one place for all ways that end in a judgement, and no struct to spill")]
#[inline(always)]
fn anew<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    packet: &Packet,
    key: &F::Key,
    mut held: Flow,
    from: Option<FlowTable>,
    unlisted: Reason,
    now: u64,
) -> Judgement {
    let direction = Direction::from_u8(held.direction);
    let mut judgement = Judgement::tracking(direction);
    let settled = held.generation == context.generation && (held.until == u64::MAX || host.boot_ns() < held.until);
    if !context.is_tracking() {
        if !settled {
            match ask::<F, H>(host, context, packet, key, &held, unlisted) {
                Ok((outcome, until)) => {
                    judgement.decided = true;
                    judgement.ring = judged(&mut held, context, outcome, until);
                }
                Err(reason) => return Judgement::of_no_flow(context, Outcome::without_rule(reason)),
            }
        }
        judgement.outcome = held.outcome;
        judgement.dropped = held.outcome.verdict() == Verdict::Deny && context.flags.enforces(direction);
    }

    held.last_seen = now;
    let denied = held.generation != 0 && held.outcome.verdict() == Verdict::Deny;
    let to = if denied {
        FlowTable::Denied
    } else if is_established(packet.protocol, held.tcp, held.flags)
        || (matches!(from, Some(FlowTable::Established)) && held.flags & Flow::ANSWERED != 0)
    {
        FlowTable::Established
    } else {
        FlowTable::Unanswered
    };
    if !Flows::<F>::insert(host, to, key, &held) {
        return Judgement::of_no_flow(context, Outcome::without_rule(Reason::FlowTableFull));
    }
    match from {
        Some(from) if from as u8 != to as u8 => Flows::<F>::remove(host, from, key),
        _ => {}
    }
    judgement
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

/// The policy's answer for a flow, and until when it holds. An error keeps no flow.
#[inline(always)]
fn ask<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    packet: &Packet,
    key: &F::Key,
    held: &Flow,
    unlisted: Reason,
) -> Result<(Outcome, u64), Reason> {
    let direction = Direction::from_u8(held.direction);
    let (remote, remote_port, local, local_port) = F::ends(key);
    let port = match direction {
        Direction::Inbound => local_port,
        Direction::Outbound => remote_port,
    };
    let service = u32::from(packet.protocol) << 16 | u32::from(port);
    let answer = host.ask(context, &Asked { direction, ipv6: F::IPV6, remote, local, service });
    if !answer.keeps {
        return Err(answer.outcome.reason());
    }
    let mut outcome = answer.outcome;
    if outcome.reason() == Reason::NotListed {
        outcome = Outcome::without_rule(unlisted);
    }
    // What began before the lockdown may be an implant's session with a source port that the policy opens to anyone.
    if context.flags.has(SlotFlags::LOCKDOWN)
        && held.flags & Flow::ADOPTED != 0
        && direction == Direction::Inbound
        && outcome.verdict() == Verdict::Allow
        && !answer.named
    {
        outcome = Outcome::without_rule(Reason::UnnamedRemote);
    }
    Ok((outcome, answer.until))
}

/// What a flow asks of the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Asked {
    pub direction: Direction,
    pub ipv6: bool,
    /// IPv4: the first word; the others are 0.
    pub remote: [u32; 4],
    pub local: [u32; 4],
    /// As [`Question::service`].
    pub service: u32,
}

/// What the policy says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Answer {
    pub outcome: Outcome,
    /// As [`crate::decide::Decision::named`].
    pub named: bool,
    /// The flow is kept with this outcome. Else the packet alone has it.
    pub keeps: bool,
    pub until: u64,
}

/// Asks the tables of the context's slot; [`Host::ask`] by default.
#[inline(always)]
pub fn answer<H: Host + ?Sized>(host: &H, context: &Context, asked: &Asked) -> Answer {
    match answered(host, context, asked) {
        Ok(answer) => answer,
        Err(reason) => Answer { outcome: Outcome::without_rule(reason), ..Answer::default() },
    }
}

#[inline(always)]
fn answered<H: Host + ?Sized>(host: &H, context: &Context, asked: &Asked) -> Result<Answer, Reason> {
    let interface = host.interface(context.ifindex);
    if let Some(interface) = &interface {
        if interface.flags & Interface::LOOPBACK != 0 && context.flags.has(SlotFlags::LOOPBACK) {
            return Err(Reason::Loopback);
        }
        if interface.flags & Interface::GUARDED == 0 {
            return Err(Reason::NotGuarded);
        }
    }
    let class = if context.flags.has(SlotFlags::BY_INTERFACE) {
        let [first, second, third] = interface.ok_or(Reason::UnknownInterface)?.class;
        match context.slot {
            Slot(0) => first,
            Slot(1) => second,
            Slot(2) => third,
            _ => return Err(Reason::TableFault),
        }
    } else {
        0
    };
    let tables = host.tables(context).ok_or(Reason::TableFault)?;
    let local = if context.flags.has(SlotFlags::BY_LOCAL) {
        local_class(tables, asked.ipv6, asked.local).ok_or(Reason::TableFault)?
    } else {
        0
    };
    let question = Question {
        direction: asked.direction,
        ipv6: asked.ipv6,
        remote: asked.remote,
        service: asked.service,
        subject: Subject { interface: Some(host.forget(class)), local: Some(host.forget(local)) },
    };
    let decision = decide(tables, &question, || host.boot_ns());
    Ok(Answer { outcome: decision.outcome, named: decision.named, keeps: true, until: decision.until })
}
