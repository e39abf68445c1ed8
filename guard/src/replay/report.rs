//! What a replay says: one object a flow, then the totals; or both for people.

use std::{collections::BTreeMap, fmt::Write as _};

use guard_common::{Direction, Reason, Verdict, abi::Flow, decide::Outcome};
use jiff::Timestamp;
use serde::Serialize;

use super::{Replay, Skipped};
use crate::{
    policy::model::Policy,
    record::{
        eve::proto,
        flow::{Key, has_ports},
    },
};

/// One flow; names as in Suricata's EVE where it has them. Source is whoever sent the first packet.
#[derive(Clone, Debug, Serialize)]
pub struct FlowLine {
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Of the first packet.
    pub timestamp: String,
    pub verdict: &'static str,
    /// The deciding rule's name, or `outbound[2]`.
    pub rule: Option<String>,
    pub reason: &'static str,
    pub direction: &'static str,
    pub src_ip: String,
    /// Null for protocols without ports.
    pub src_port: Option<u16>,
    pub dest_ip: String,
    pub dest_port: Option<u16>,
    pub proto: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// Both directions.
    pub packets: u64,
    pub bytes: u64,
    pub community_id: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    pub flows: u64,
    pub packets: u64,
    pub bytes: u64,
}

/// The last object.
#[derive(Clone, Debug, Serialize)]
pub struct Totals {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub packets: u64,
    pub bytes: u64,
    pub flows: u64,
    /// Packets and bytes here are of all packets, those that belong to no flow too.
    pub allowed: Sum,
    pub denied: Sum,
    /// Not judged.
    pub skipped: Skipped,
    /// Packets and bytes by reason.
    pub reasons: BTreeMap<&'static str, Sum>,
    /// How it was told which end is the host.
    pub local: String,
    pub first: Option<String>,
    pub last: Option<String>,
    /// Why the capture ended before its end.
    pub broken: Option<String>,
}

pub fn timestamp(unix_ns: i128) -> String {
    Timestamp::from_nanosecond(unix_ns)
        .map_or_else(|_| unix_ns.to_string(), |time| time.strftime("%Y-%m-%dT%H:%M:%S.%6f+0000").to_string())
}

#[must_use]
pub fn flow_line(policy: &Policy, replay: &Replay<'_>, key: &Key, flow: &Flow) -> FlowLine {
    let direction = Direction::from_u8(flow.direction);
    let (source, source_port, destination, destination_port) = key.ends(direction);
    let ports = has_ports(key.protocol());
    let service = key.service(direction);
    FlowLine {
        kind: "flow",
        timestamp: timestamp(replay.unix_ns(flow.first_seen)),
        verdict: flow.outcome.verdict().as_str(),
        rule: rule(policy, flow.outcome),
        reason: flow.outcome.reason().as_str(),
        direction: direction.as_str(),
        src_ip: source.to_string(),
        src_port: ports.then_some(source_port),
        dest_ip: destination.to_string(),
        dest_port: ports.then_some(destination_port),
        proto: proto(key.protocol()),
        icmp_type: key.is_icmp().then_some((service >> 8) as u8),
        icmp_code: key.is_icmp().then_some((service & 0xff) as u8),
        packets: flow.packets.iter().sum(),
        bytes: flow.bytes.iter().sum(),
        community_id: key.community_id(direction),
    }
}

pub fn rule(policy: &Policy, outcome: Outcome) -> Option<String> {
    outcome.rule().and_then(|number| policy.rules.get(number as usize)).map(crate::policy::model::Rule::label)
}

#[must_use]
pub fn totals(replay: &Replay<'_>, flows: &[(Key, Flow)], broken: Option<String>) -> Totals {
    let mut allowed = Sum::default();
    let mut denied = Sum::default();
    let mut reasons = BTreeMap::new();
    for reason in Reason::ALL {
        let counted = replay.counted(*reason);
        if counted.packets == 0 {
            continue;
        }
        let sum = if reason.verdict() == Verdict::Allow { &mut allowed } else { &mut denied };
        sum.packets += counted.packets;
        sum.bytes += counted.bytes;
        let of_reason = flows.iter().filter(|(_, flow)| flow.outcome.reason() == *reason).count() as u64;
        reasons.insert(reason.as_str(), Sum { flows: of_reason, packets: counted.packets, bytes: counted.bytes });
    }
    for (_, flow) in flows {
        match flow.outcome.verdict() {
            Verdict::Allow => allowed.flows += 1,
            Verdict::Deny => denied.flows += 1,
        }
    }
    let any = replay.packets > 0;
    Totals {
        kind: "totals",
        packets: replay.packets,
        bytes: replay.bytes,
        flows: flows.len() as u64,
        allowed,
        denied,
        skipped: replay.skipped,
        reasons,
        local: replay.side().to_string(),
        first: any.then(|| timestamp(replay.unix_ns(super::START_NS))),
        last: any.then(|| timestamp(replay.last)),
        broken,
    }
}

/// The answer first: for people.
#[must_use]
pub fn headline(policy: &Policy, totals: &Totals) -> String {
    let mut text = String::new();
    let denied = totals.denied;
    let would = if denied.packets == 0 { "would pass" } else { "would have been cut" };
    let _ = match denied.packets {
        0 if totals.packets == 0 => writeln!(text, "No packets: nothing to judge."),
        0 => writeln!(text, "All {} flows {would} under {}.", totals.flows, policy.name),
        _ => writeln!(
            text,
            "{} of {} flows {would} under {}: {} packets, {} bytes denied; {} packets, {} bytes allowed.",
            denied.flows,
            totals.flows,
            policy.name,
            denied.packets,
            denied.bytes,
            totals.allowed.packets,
            totals.allowed.bytes
        ),
    };
    let _ = writeln!(text, "  host      {}", totals.local);
    if let (Some(first), Some(last)) = (&totals.first, &totals.last) {
        let _ = writeln!(text, "  captured  {first} to {last}, {} packets", totals.packets);
    }
    if totals.skipped.foreign > 0 {
        let _ =
            writeln!(text, "  skipped   {} packets of other hosts (--local says who is ours)", totals.skipped.foreign);
    }
    if totals.skipped.both_local > 0 {
        let _ = writeln!(text, "  skipped   {} packets between local addresses", totals.skipped.both_local);
    }
    if let Some(cut) = totals.reasons.get(Reason::Truncated.as_str()) {
        let _ = writeln!(
            text,
            "  warning   {} packets were captured too short to be judged, and count as denied: capture with tcpdump -s 0",
            cut.packets
        );
    }
    if let Some(broken) = &totals.broken {
        let _ = writeln!(text, "  warning   the capture breaks off: {broken}");
    }
    text
}
