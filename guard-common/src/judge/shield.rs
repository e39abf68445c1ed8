//! The shield's question: would the wire deny this inbound packet? Asked before packet sockets see it; nothing of a flow
//! is changed, since the wire judges what passes once more.

use super::{Asked, Context, Family, FlowTable, Host, host::Flows};
use crate::{
    Reason, Verdict,
    packet::{
        Packet,
        transport::{ACK, RST, SYN, TCP},
    },
};

/// `false` also where only the wire can say: fragments, essential traffic, TCP whose handshake was not seen, and flows
/// that another generation has judged.
#[inline(always)]
pub fn would_deny<F: Family, H: Host + Flows<F>>(host: &mut H, context: &Context, packet: &Packet) -> bool {
    if context.is_tracking() || context.is_outbound() || packet.essential != 0 || packet.is(Packet::FRAGMENT) {
        return false;
    }
    let key = F::key(packet, context);
    if Flows::<F>::find(host, FlowTable::Established, &key).is_some()
        || Flows::<F>::find(host, FlowTable::UnansweredInbound, &key).is_some()
        || Flows::<F>::find(host, FlowTable::UnansweredOutbound, &key).is_some()
    {
        return false;
    }
    if packet.protocol == TCP && packet.tcp_flags & (SYN | ACK | RST) != SYN {
        return match Flows::<F>::find(host, FlowTable::Denied, &key) {
            Some(flow) => {
                let view = Flows::<F>::view(host, flow);
                view.generation == context.generation && view.outcome.verdict() == Verdict::Deny
            }
            None => false,
        };
    }
    // Of a session whose flow was forgotten: the wire knows what to do.
    if packet.protocol == TCP && host.tcp_lives(packet, context.direction) {
        return false;
    }
    let (remote, _, local, local_port) = F::ends(&key);
    let service = u32::from(packet.protocol) << 16 | u32::from(local_port);
    let asked = Asked { direction: context.direction, ipv6: F::IPV6, remote, local, service };
    let answer = host.ask(context, &asked);
    let denied = answer.outcome.verdict() == Verdict::Deny;
    // An answer of ICMP or UDP may belong to a flow whose entry was evicted: that is the wire's to say, and it denies.
    denied && answer.outcome.reason() != Reason::TableFault
}
