//! The short way: a plain packet of a flow that this generation has judged and that it leaves as it is. In the kernel nearly
//! every packet goes it, before anything else is asked. It decides nothing of its own: where it gives an answer,
//! [`super::flow::find`] would give the same and leave the same behind (`judge/tests/short.rs` compares the two).

use super::{
    Context, Family, FlowTable, FlowView, Host, Judgement, Touch,
    flow::{holds, is_established},
    host::Flows,
    lifetime, tcp,
};
use crate::{
    Direction, Verdict,
    abi::{Flow, TcpState},
    packet::{
        Plain,
        transport::{TCP, UDP},
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    Settled(Judgement),
    /// It takes the long way, which has to look nowhere but among the unanswered of the other direction.
    Absent,
    /// It takes the long way.
    Long,
}

#[inline(always)]
pub fn short<F: Family, H: Host + Flows<F>>(host: &mut H, context: &Context, packet: &Plain) -> Short {
    if context.is_tracking() {
        return Short::Long;
    }
    let key = F::plain_key(packet, context);
    if let Some(flow) = Flows::<F>::find(host, FlowTable::Established, &key) {
        let view = Flows::<F>::view(host, flow);
        let heard = view.flags & Flow::ANSWERED != 0;
        if !heard && view.direction != context.direction as u8 {
            return Short::Long;
        }
        return follow::<F, H>(host, context, packet.protocol, flow, &view, Verdict::Allow);
    }
    let unanswered = match context.direction {
        Direction::Inbound => Flows::<F>::find(host, FlowTable::UnansweredInbound, &key),
        Direction::Outbound => Flows::<F>::find(host, FlowTable::UnansweredOutbound, &key),
    };
    let (flow, verdict) = match unanswered {
        Some(flow) => (flow, Verdict::Allow),
        None => match Flows::<F>::find(host, FlowTable::Denied, &key) {
            // Two CPUs may have begun a flow each, one way and the other: what passes is looked for before what does not.
            Some(_) if is_unanswered_otherwise::<F, H>(host, context, &key) => return Short::Long,
            Some(flow) => (flow, Verdict::Deny),
            None => return Short::Absent,
        },
    };
    let view = Flows::<F>::view(host, flow);
    // Of the unanswered only datagrams: nobody may ever answer them.
    let moves =
        verdict as u8 == Verdict::Allow as u8 && (packet.protocol == TCP || is_established(UDP, view.tcp, view.flags));
    if moves || view.direction != context.direction as u8 {
        return Short::Long;
    }
    follow::<F, H>(host, context, packet.protocol, flow, &view, verdict)
}

/// Whether a flow of these ends waits for an answer the other way.
#[inline(always)]
fn is_unanswered_otherwise<F: Family, H: Host + Flows<F>>(host: &mut H, context: &Context, key: &F::Key) -> bool {
    match context.direction {
        Direction::Inbound => Flows::<F>::find(host, FlowTable::UnansweredOutbound, key).is_some(),
        Direction::Outbound => Flows::<F>::find(host, FlowTable::UnansweredInbound, key).is_some(),
    }
}

/// Counts the packet where its flow has this verdict and goes on as it is.
#[inline(always)]
fn follow<F: Family, H: Host + Flows<F>>(
    host: &mut H,
    context: &Context,
    protocol: u8,
    flow: <H as Flows<F>>::Flow,
    view: &FlowView,
    verdict: Verdict,
) -> Short {
    const ESTABLISHED: u8 = TcpState::Established as u8;
    let seconds = if protocol == TCP {
        if !tcp::goes_on(view.tcp) {
            return Short::Long;
        }
        lifetime::seconds(TCP, ESTABLISHED, true)
    } else {
        lifetime::seconds(UDP, 0, view.flags & Flow::ANSWERED != 0)
    };
    let now = host.jiffies();
    if lifetime::is_silent(view, seconds, now, host.hz())
        || view.outcome.verdict() != verdict
        || !holds(host, context, view)
    {
        return Short::Long;
    }
    let touch = Touch {
        direction: context.direction,
        packets: context.packets,
        bytes: context.bytes,
        now,
        tcp: view.tcp,
        flags: view.flags,
    };
    Flows::<F>::touch(host, flow, &touch);
    Short::Settled(Judgement::of_flow(context, view.outcome, Direction::from_u8(view.direction)))
}
