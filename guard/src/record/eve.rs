//! Records in the shape of Suricata's EVE: `flow` and `drop` events, one JSON object a line.
//!
//! What Suricata has no field for is in one object, `guard`. A flow's source is whoever began it. docs/records.md lists
//! every field.

use std::{net::IpAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use guard_common::{
    Direction, Reason, Verdict,
    abi::{Flow, TcpState},
    decide::Outcome,
};
use serde::Serialize;

use crate::daemon::difference::{Difference, Gap};

use super::{
    clock::{Clock, timestamp},
    flow::{ICMP, ICMPV6, Key, TCP, UDP, has_ports},
    who,
};

/// Version of a record's shape, which docs/records.schema.json describes: another one only where a field goes, or means
/// something else.
pub const SCHEMA: u32 = 1;

/// Link type of raw IP packets (LINKTYPE_RAW of the pcap formats).
const LINKTYPE_RAW: u32 = 101;

/// What a record tells of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Its first packet was judged.
    Begin,
    /// It was allowed, and is denied from now on.
    Cut,
    /// It ended: closed, idle for too long, or gone from the table.
    End,
    /// The socket layer refused it; no packet was sent.
    SocketDenied,
    /// The seal refused a socket option or family.
    Sealed,
    /// The seal of `bpf(2)` refused a call.
    BpfRefused,
    /// A packet that belongs to no flow.
    Packet,
}

#[derive(Clone, Debug, Serialize)]
pub struct Record {
    pub timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_iface: Option<String>,
    /// `drop` where packets are dropped, else `flow`.
    pub event_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    pub ends: Option<Ends>,
    pub host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<FlowPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop: Option<DropPart>,
    /// First bytes of a denied flow's first packet, from its IP header on, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_info: Option<PacketInfo>,
    pub guard: GuardPart,
}

#[derive(Clone, Debug, Serialize)]
pub struct Ends {
    pub src_ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_port: Option<u16>,
    pub dest_ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dest_port: Option<u16>,
    /// As Suricata names it: `TCP`, `UDP`, `ICMP`, `IPv6-ICMP`, else the number.
    pub proto: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    pub community_id: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct FlowPart {
    pub pkts_toserver: u64,
    pub pkts_toclient: u64,
    /// As on the wire, from the IP header on.
    pub bytes_toserver: u64,
    pub bytes_toclient: u64,
    pub start: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Seconds.
    pub age: u64,
    /// `new`, `established` or `closed`.
    pub state: &'static str,
    /// Of an end: `timeout`, `forced` (gone from the table) or `shutdown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    pub alerted: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct TcpPart {
    pub state: &'static str,
}

/// Of the packet that was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DropPart {
    pub len: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tos: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipid: Option<u16>,
    pub reason: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub struct PacketInfo {
    pub linktype: u32,
}

#[derive(Clone, Debug, Serialize)]
pub struct GuardPart {
    /// [`SCHEMA`].
    pub schema: u32,
    pub event: Moment,
    /// `allow` or `deny`.
    pub verdict: &'static str,
    /// Whether the packet was stopped: never in audit mode.
    pub dropped: bool,
    /// Name of the rule that decided; null where none did.
    pub rule: Option<Arc<str>>,
    pub reason: &'static str,
    pub direction: &'static str,
    pub generation: u32,
    /// `/etc/machine-id`; empty where there is none.
    pub machine_id: Arc<str>,
    /// Of a flow: [`crate::review::group::Group::id`], 16 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Of a flow: the remote as its group knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_group: Option<String>,
    /// Left out where no process is to be expected: nothing listens there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<who::Shared>,
    /// What the remote was asked as, the latest first. Labels, never proof.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<Arc<str>>,
    /// Inbound: whether something listened on the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listening: Option<bool>,
    /// Began before guard did.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// How an end was seen: `closed`, `idle`, `evicted` or `replaced`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<&'static str>,
    /// The doorbell was lost; written from the flow table.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

impl Ends {
    #[must_use]
    pub fn new(key: &Key, direction: Direction) -> Self {
        let (src_ip, src_port, dest_ip, dest_port) = key.ends(direction);
        let protocol = key.protocol();
        let ports = has_ports(protocol);
        let service = key.service(direction);
        Self {
            src_ip,
            src_port: ports.then_some(src_port),
            dest_ip,
            dest_port: ports.then_some(dest_port),
            proto: proto(protocol),
            icmp_type: key.is_icmp().then_some((service >> 8) as u8),
            icmp_code: key.is_icmp().then_some((service & 0xff) as u8),
            community_id: key.community_id(direction),
        }
    }
}

/// Suricata's name of a protocol, else its number.
#[must_use]
pub fn proto(protocol: u8) -> String {
    match protocol {
        ICMP => "ICMP".to_owned(),
        TCP => "TCP".to_owned(),
        UDP => "UDP".to_owned(),
        ICMPV6 => "IPv6-ICMP".to_owned(),
        47 => "GRE".to_owned(),
        50 => "ESP".to_owned(),
        51 => "AH".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

impl FlowPart {
    /// `last_ns`: boot time of its last packet.
    #[must_use]
    pub fn new(flow: &Flow, clock: Clock, last_ns: u64, end: Option<&'static str>) -> Self {
        let began_here = usize::from(flow.direction == Direction::Outbound as u8);
        let (to_server, to_client) = (began_here, 1 - began_here);
        let last_ns = last_ns.max(flow.first_seen);
        Self {
            pkts_toserver: flow.packets[to_server],
            pkts_toclient: flow.packets[to_client],
            bytes_toserver: flow.bytes[to_server],
            bytes_toclient: flow.bytes[to_client],
            start: clock.timestamp(flow.first_seen),
            end: end.map(|_| clock.timestamp(last_ns)),
            age: (last_ns - flow.first_seen) / 1_000_000_000,
            state: match end {
                Some("closed") => "closed",
                _ if flow.flags & Flow::ANSWERED != 0 => "established",
                _ => "new",
            },
            reason: end.map(|end| match end {
                "closed" | "idle" => "timeout",
                _ => "forced",
            }),
            alerted: false,
        }
    }
}

impl TcpPart {
    #[must_use]
    pub fn new(flow: &Flow) -> Option<Self> {
        let state = match flow.tcp {
            s if s == TcpState::SynSent as u8 => "syn_sent",
            s if s == TcpState::SynReceived as u8 => "syn_recv",
            s if s == TcpState::Established as u8 => "established",
            s if s == TcpState::FinWait as u8 => "fin_wait1",
            s if s == TcpState::CloseWait as u8 => "close_wait",
            s if s == TcpState::LastAck as u8 => "last_ack",
            s if s == TcpState::TimeWait as u8 => "time_wait",
            s if s == TcpState::Close as u8 => "closed",
            _ => return None,
        };
        Some(Self { state })
    }
}

impl DropPart {
    /// `head`: the packet's first bytes, from its IP header on; may be empty.
    #[must_use]
    pub fn new(length: u32, head: &[u8], reason: Reason) -> Self {
        let byte = |at: usize| head.get(at).copied();
        let mut part = Self { len: length, reason: reason.as_str(), ..Self::default() };
        match byte(0).map(|first| first >> 4) {
            Some(4) => {
                part.tos = byte(1);
                part.ttl = byte(8);
                part.ipid = byte(4).zip(byte(5)).map(|(high, low)| u16::from_be_bytes([high, low]));
            }
            Some(6) => {
                part.tos = byte(0).zip(byte(1)).map(|(high, low)| high << 4 | low >> 4);
                part.ttl = byte(7);
            }
            _ => {}
        }
        part
    }
}

impl GuardPart {
    #[must_use]
    pub fn new(event: Moment, outcome: Outcome, direction: Direction, generation: u32, rule: Option<Arc<str>>) -> Self {
        Self {
            schema: SCHEMA,
            event,
            verdict: outcome.verdict().as_str(),
            dropped: false,
            rule,
            reason: outcome.reason().as_str(),
            direction: direction.as_str(),
            generation,
            machine_id: "".into(),
            group: None,
            remote_group: None,
            who: None,
            names: Vec::new(),
            listening: None,
            adopted: false,
            end: None,
            late: false,
        }
    }
}

impl Record {
    #[must_use]
    pub fn new(unix_ns: i128, host: &str, guard: GuardPart) -> Self {
        Self {
            timestamp: timestamp(unix_ns),
            flow_id: None,
            in_iface: None,
            event_type: if guard.dropped && guard.event != Moment::End { "drop" } else { "flow" },
            ends: None,
            host: host.to_owned(),
            flow: None,
            tcp: None,
            drop: None,
            packet: None,
            packet_info: None,
            guard,
        }
    }

    /// Adds the first bytes of a packet that was denied.
    #[must_use]
    pub fn with_head(mut self, head: &[u8]) -> Self {
        if !head.is_empty() && self.guard.verdict == Verdict::Deny.as_str() {
            self.packet = Some(STANDARD.encode(head));
            self.packet_info = Some(PacketInfo { linktype: LINKTYPE_RAW });
        }
        self
    }
}

/// An `alert` event of the watch.
#[derive(Debug, Serialize)]
pub struct Alert<'a> {
    pub timestamp: String,
    pub event_type: &'static str,
    pub host: &'a str,
    pub alert: AlertPart,
    pub guard: AlertGuardPart<'a>,
}

/// As Suricata has it.
#[derive(Debug, Serialize)]
pub struct AlertPart {
    /// Nothing of it was prevented.
    pub action: &'static str,
    pub gid: u32,
    pub signature_id: u32,
    pub rev: u32,
    pub signature: String,
    pub category: &'static str,
    /// 1 is the gravest.
    pub severity: u8,
}

#[derive(Debug, Serialize)]
pub struct AlertGuardPart<'a> {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `alert`, or `alert_over` when what it tells of has ended.
    pub event: &'static str,
    #[serde(flatten)]
    pub difference: &'a Difference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<&'a Gap>,
    pub machine_id: &'a str,
}

impl<'a> Alert<'a> {
    #[must_use]
    pub fn new(
        unix_ns: i128,
        host: &'a str,
        machine_id: &'a str,
        difference: &'a Difference,
        gap: Option<&'a Gap>,
    ) -> Self {
        let kind = difference.kind;
        Self {
            timestamp: timestamp(unix_ns),
            event_type: "alert",
            host,
            alert: AlertPart {
                action: "allowed",
                gid: 1,
                signature_id: kind.signature(),
                rev: 1,
                signature: format!("guard: {}", kind.title()),
                category: "Integrity of the host firewall",
                severity: kind.severity(),
            },
            guard: AlertGuardPart {
                schema: SCHEMA,
                event: if gap.is_some() { "alert_over" } else { "alert" },
                difference,
                gap,
                machine_id,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_flow_is_a_drop_event() {
        let key = Key::new(TCP, "203.0.113.9".parse().unwrap(), 4444, "192.0.2.1".parse().unwrap(), 40000, 0).unwrap();
        let outcome = Outcome::without_rule(Reason::NotListed);
        let mut guard = GuardPart::new(Moment::Begin, outcome, Direction::Outbound, 7, None);
        let exe = Some("/usr/bin/nc".to_owned());
        guard.who = Some(who::Who { found_by: who::FoundBy::Socket, pid: 12, exe, ..who::Who::default() }.into());
        guard.dropped = true;
        let mut record = Record::new(1_767_323_045_678_901_234, "db1", guard).with_head(&[0x45]);
        record.flow_id = Some(key.flow_id(1));
        record.ends = Some(Ends::new(&key, Direction::Outbound));
        record.drop = Some(DropPart::new(60, &[0x45, 0, 0, 60, 1, 2, 0, 0, 64], Reason::NotListed));
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["event_type"], "drop");
        assert_eq!(json["timestamp"], "2026-01-02T03:04:05.678901+0000");
        assert_eq!(json["src_ip"], "192.0.2.1");
        assert_eq!(json["dest_port"], 4444);
        assert_eq!(json["proto"], "TCP");
        assert_eq!(json["packet_info"]["linktype"], 101);
        assert_eq!(
            json["drop"],
            serde_json::json!({"len": 60, "ttl": 64, "tos": 0, "ipid": 258, "reason": "not_listed"})
        );
        assert_eq!(json["guard"]["verdict"], "deny");
        assert_eq!(json["guard"]["rule"], serde_json::Value::Null);
        assert_eq!(json["guard"]["who"]["exe"], "/usr/bin/nc");
        assert_eq!(json["guard"]["direction"], "outbound");
        assert!(json["community_id"].as_str().unwrap().starts_with("1:"));
    }

    #[test]
    fn counts_are_from_who_began_it() {
        let mut flow = Flow {
            direction: Direction::Inbound as u8,
            packets: [3, 2],
            bytes: [300, 200],
            first_seen: 1_000_000_000,
            flags: Flow::ANSWERED,
            ..Flow::default()
        };
        let clock = Clock::at_boot(0);
        let part = FlowPart::new(&flow, clock, 4_500_000_000, None);
        assert_eq!((part.pkts_toserver, part.bytes_toclient, part.age), (3, 200, 3));
        assert_eq!((part.state, part.reason, part.end), ("established", None, None));
        flow.direction = Direction::Outbound as u8;
        let part = FlowPart::new(&flow, clock, 0, Some("evicted"));
        assert_eq!((part.pkts_toserver, part.age, part.reason), (2, 0, Some("forced")));
        assert_eq!(part.end.as_deref(), Some("1970-01-01T00:00:01.000000+0000"));
    }

    #[test]
    fn an_ipv6_packet_has_no_identification() {
        let part = DropPart::new(80, &[0x6a, 0xb0, 0, 0, 0, 40, 58, 255], Reason::NotListed);
        assert_eq!((part.tos, part.ttl, part.ipid), (Some(0xab), Some(255), None));
        assert_eq!(DropPart::new(0, &[], Reason::NotListed).ttl, None);
    }
}
