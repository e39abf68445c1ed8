//! ICMP errors: only about a flow that is known and allowed, and outbound only to that flow's remote. (A redirect is
//! never let through: it would move a flow to another way.)

use super::{Context, Family, FlowTable, Host, flow::holds, host::Flows, lifetime};
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
    let mut found = Flows::<F>::find(host, FlowTable::Established, &key);
    if found.is_none() {
        found = Flows::<F>::find(host, FlowTable::UnansweredInbound, &key);
    }
    if found.is_none() {
        found = Flows::<F>::find(host, FlowTable::UnansweredOutbound, &key);
    }
    let Some(flow) = found else { return Reason::IcmpErrorUnknown };
    let view = Flows::<F>::view(host, flow);
    let holds = holds(host, context, &view)
        && view.outcome.verdict() == Verdict::Allow
        && !lifetime::is_over(&view, packet.quoted.protocol, host.jiffies(), host.hz());
    if holds { Reason::IcmpError } else { Reason::IcmpErrorUnknown }
}

#[inline(always)]
fn same<F: Family>(one: &[u32; 4], other: &[u32; 4]) -> bool {
    one[0] == other[0] && (!F::IPV6 || (one[1] == other[1] && one[2] == other[2] && one[3] == other[3]))
}
