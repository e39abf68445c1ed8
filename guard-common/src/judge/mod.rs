//! The way of one packet: [`Packet`] and [`Context`] to a [`Judgement`].
//!
//! 1. What could not be parsed is denied.
//! 2. A [plain](crate::packet::plain) packet of a flow that is known takes the [`short`] way: what follows would say the same.
//! 3. [`essential`] traffic and ICMP errors ([`icmp_error`]) have rules of their own.
//! 4. A later [`fragment`] follows its first.
//! 5. A known flow is followed: found, not over ([`lifetime`]), possible where its TCP stands ([`tcp`]), judged by this
//!    very generation, and its outcome not expired.
//! 6. What is left is judged by the policy: a new flow by the direction of this packet (TCP without SYN: by its socket), a
//!    known one by its own. The flow then stands in the table for what it has become.
//!
//! Bytes are not looked at here, see [`crate::packet`]. Counting by reason and sending events is the hook's part: a
//! [`Judgement`] says what to count and whether to ring.

mod ask;
pub mod essential;
mod family;
pub mod flow;
pub mod fragment;
mod host;
pub mod icmp_error;
pub mod lifetime;
pub mod shield;
mod short;
pub mod tcp;

#[cfg(test)]
mod tests;

pub use ask::{Answer, Asked, answer};
pub use essential::Settled;
pub use family::{Family, V4, V6};
pub use flow::Found;
pub use host::{FlowTable, FlowView, Flows, Host, TcpSocket, Touch};
pub use short::{Short, short};

use crate::{
    Direction, Reason, Verdict,
    abi::{EventKind, Flow, FlowKeyV6, Slot, SlotFlags},
    decide::Outcome,
    packet::Packet,
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

impl Ring {
    /// The inverse of `self as u8`; a number that none has rings nothing.
    #[must_use]
    #[inline(always)]
    pub const fn from_u8(number: u8) -> Self {
        const BEGAN: u8 = Ring::FlowBegan as u8;
        const CUT: u8 = Ring::FlowCut as u8;
        const DENIED: u8 = Ring::PacketDenied as u8;
        match number {
            BEGAN => Self::FlowBegan,
            CUT => Self::FlowCut,
            DENIED => Self::PacketDenied,
            _ => Self::No,
        }
    }
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
/// In the kernel its steps are functions of their own, so that the verifier walks each once: [`without_flow`], [`settle`],
/// those of [`fragment`] and [`flow`], and behind [`Host::ask`] [`answer`]. Only [`short`] is part of the program itself.
#[inline(always)]
pub fn judge<H: Host>(host: &mut H, context: &Context, packet: &Packet) -> Judgement {
    if let Some(judgement) = without_flow(host, context, packet) {
        return judgement;
    }
    if let Some(plain) = packet.plain() {
        let known = match packet.family {
            4 => short::<V4, H>(host, context, &plain),
            _ => short::<V6, H>(host, context, &plain),
        };
        return match known {
            Short::Settled(judgement) => judgement,
            Short::Absent => long(host, context, packet, true),
            Short::Long => long(host, context, packet, false),
        };
    }
    long(host, context, packet, false)
}

/// Of a packet over IP, whatever it is. `absent`: as [`flow::find`] has it.
#[inline(always)]
fn long<H: Host>(host: &mut H, context: &Context, packet: &Packet, absent: bool) -> Judgement {
    match packet.family {
        4 => {
            let settled = settle::<V4, H>(host, context, packet);
            ip::<V4, H>(host, context, packet, settled, absent)
        }
        _ => {
            let settled = settle::<V6, H>(host, context, packet);
            ip::<V6, H>(host, context, packet, settled, absent)
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

/// Of an IPv4 or IPv6 packet. The kernel goes the same steps, each a function of its own.
#[inline(always)]
fn ip<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    packet: &Packet,
    settled: Settled,
    absent: bool,
) -> Judgement {
    if packet.is(Packet::FRAGMENT)
        && let Some(judgement) = fragment::before::<F, H>(host, context, packet)
    {
        return judgement;
    }
    let mut held = Flow::default();
    let judgement = match flow::find::<F, H>(host, context, packet, settled, absent, &mut held) {
        Found::Settled(judgement) => judgement,
        Found::Held(from) => flow::place::<F, H>(host, context, packet, settled, &mut held, Some(from)),
        Found::Absent(from) => match flow::begin(host, context, packet, &mut held) {
            None => flow::place::<F, H>(host, context, packet, settled, &mut held, from),
            Some(judgement) => judgement,
        },
    };
    if packet.is(Packet::FRAGMENT) {
        return fragment::after::<F, H>(host, context, packet, judgement);
    }
    judgement
}
