//! What a flow asks of the policy, and what the policy says.

use super::{Context, Family, Host};
use crate::{
    Direction, Reason, Verdict,
    abi::{Flow, Interface, Slot, SlotFlags},
    decide::{Outcome, Question, Subject, decide, local_class},
    packet::Packet,
};

/// The policy's answer for a flow, and until when it holds. An error keeps no flow.
#[inline(always)]
pub(super) fn ask<F: Family, H: Host>(
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
        if interface.flags & (Interface::GUARDED | Interface::HOST_SIDE) == 0 {
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
