//! ICMP errors: only about a flow that is known and allowed, and outbound only to that flow's remote. (A redirect is
//! never let through: it would move a flow to another way.)

use super::{Context, Family, FlowTable, Host, host::Flows, lifetime};
use crate::{Reason, Verdict, packet::Packet};

#[inline(always)]
pub fn judge<F: Family, H: Host + Flows<F>>(host: &H, context: &Context, packet: &Packet) -> Reason {
    if !packet.is(Packet::WELL_FORMED) {
        return Reason::IcmpErrorUnknown;
    }
    let key = F::quoted_key(&packet.quoted, context);
    if context.is_outbound() && !same::<F>(&packet.destination, &packet.quoted.source) {
        return Reason::IcmpErrorUnknown;
    }
    let flow = match Flows::<F>::find(host, FlowTable::Established, &key) {
        Some(flow) => flow,
        None => match Flows::<F>::find(host, FlowTable::Unanswered, &key) {
            Some(flow) => flow,
            None => return Reason::IcmpErrorUnknown,
        },
    };
    let view = Flows::<F>::view(host, flow);
    let holds = view.generation == context.generation
        && view.outcome.verdict() == Verdict::Allow
        && (view.until == u64::MAX || host.boot_ns() < view.until)
        && !lifetime::is_over(&view, packet.quoted.protocol, host.jiffies(), host.hz());
    if holds { Reason::IcmpError } else { Reason::IcmpErrorUnknown }
}

#[inline(always)]
fn same<F: Family>(one: &[u32; 4], other: &[u32; 4]) -> bool {
    one[0] == other[0] && (!F::IPV6 || (one[1] == other[1] && one[2] == other[2] && one[3] == other[3]))
}
