//! EVE records: Suricata's `flow` events, and guard's own of `flows.jsonl` (docs/records.md), whose several records of one
//! flow are put together again.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, BufRead},
    net::IpAddr,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use guard_common::Direction;
use serde::Deserialize;

use super::{
    super::observed::Fate,
    Summary,
    lines::{self, Lines},
    place::Placer,
    raw::{Raw, is_tcp, protocol, timestamp},
};
use crate::record::who::{FoundBy, Who};

/// Flows whose end has not been read.
const MOST_WAITING: usize = 300_000;
/// Names that are kept of one flow.
const MOST_NAMES: usize = 8;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Json {
    timestamp: String,
    flow_id: Option<u64>,
    in_iface: Option<String>,
    event_type: String,
    src_ip: Option<String>,
    src_port: Option<u16>,
    dest_ip: Option<String>,
    dest_port: Option<u16>,
    proto: Option<String>,
    icmp_type: Option<u8>,
    icmp_code: Option<u8>,
    host: Option<String>,
    flow: Option<Flow>,
    tcp: Option<Tcp>,
    packet: Option<String>,
    guard: Option<Guard>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Flow {
    pkts_toserver: u64,
    pkts_toclient: u64,
    bytes_toserver: u64,
    bytes_toclient: u64,
    start: Option<String>,
    end: Option<String>,
    state: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tcp {
    state: Option<String>,
    /// Hexadecimal: all flags that the server set.
    tcp_flags_tc: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Guard {
    event: String,
    verdict: String,
    dropped: bool,
    rule: Option<String>,
    reason: String,
    direction: String,
    generation: u32,
    program: Option<String>,
    pid: Option<u32>,
    uid: Option<u32>,
    adopted: bool,
    machine_id: String,
    listening: Option<bool>,
    who: Option<Who>,
    names: Vec<String>,
}

pub fn read(lines: &mut Lines<impl BufRead>, summary: &mut Summary, placer: &mut Placer<'_>) -> Option<io::Error> {
    let mut waiting = Waiting::default();
    let end = lines::each(lines, summary, |line, summary| {
        let json: Json = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let ours = json.guard.is_some();
        if !(json.event_type == "flow" || (ours && json.event_type == "drop")) {
            summary.other += 1;
            return Ok(());
        }
        let over = json.guard.as_ref().is_none_or(|guard| matches!(guard.event.as_str(), "end" | "socket_denied"));
        let id = json.flow_id.filter(|_| ours);
        let Some(raw) = raw(json)? else {
            summary.other += 1;
            return Ok(());
        };
        match id {
            Some(id) if over => placer.place(waiting.end(id, raw)),
            Some(id) => {
                if let Some(oldest) = waiting.begin(id, raw) {
                    summary.in_parts += 1;
                    placer.place(oldest);
                }
            }
            None => placer.place(raw),
        }
        Ok(())
    });
    for rest in waiting.rest() {
        placer.place(rest);
    }
    end
}

/// `None`: it has no ends, or is ICMP of an unknown type.
fn raw(json: Json) -> Result<Option<Raw>, String> {
    let (Some(source), Some(destination), Some(proto)) = (&json.src_ip, &json.dest_ip, &json.proto) else {
        return Ok(None);
    };
    let address = |name: &str, text: &str| text.parse::<IpAddr>().map_err(|_| format!("{name} is not an address"));
    let protocol = protocol(proto).ok_or("proto is not a protocol")?;
    let mut raw = Raw::new(address("src_ip", source)?, address("dest_ip", destination)?, protocol);
    if raw.is_icmp() {
        let (Some(kind), Some(code)) = (json.icmp_type, json.icmp_code) else { return Ok(None) };
        raw.icmp = Some((kind, code));
    } else {
        raw.source_port = json.src_port.unwrap_or(0);
        raw.destination_port = json.dest_port.unwrap_or(0);
    }
    let time = timestamp(&json.timestamp);
    let flow = json.flow.unwrap_or_default();
    raw.first = flow.start.as_deref().and_then(timestamp).or(time).ok_or("it has no time")?;
    raw.last = flow.end.as_deref().and_then(timestamp).or(time).unwrap_or(raw.first);
    raw.packets = [flow.pkts_toserver, flow.pkts_toclient];
    raw.bytes = [flow.bytes_toserver, flow.bytes_toclient];
    raw.reason = flow.state.unwrap_or_default().into();
    raw.host = json.host.unwrap_or_default().into();
    raw.interface = json.in_iface.map(Arc::from);
    raw.flow_id = json.flow_id;
    let tcp = json.tcp.unwrap_or_default();
    if is_tcp(protocol) {
        let flags = tcp.tcp_flags_tc.and_then(|flags| u8::from_str_radix(&flags, 16).ok());
        raw.refused = match flags {
            // Reset, and never SYN: nobody was there.
            Some(flags) => flags & 0b100 != 0 && flags & 0b10 == 0,
            None => tcp.state.as_deref() == Some("closed") && raw.is_bare_reset(),
        };
    }
    if let Some(guard) = json.guard {
        if ["sealed", "bpf_refused", "packet"].contains(&guard.event.as_str()) {
            return Ok(None);
        }
        raw.head = json.packet.and_then(|packet| STANDARD.decode(packet).ok()).unwrap_or_default();
        raw.head.truncate(256);
        of_guard(&mut raw, guard);
    }
    Ok(Some(raw))
}

fn of_guard(raw: &mut Raw, guard: Guard) {
    raw.direction = match guard.direction.as_str() {
        "inbound" => Some(Direction::Inbound),
        "outbound" => Some(Direction::Outbound),
        _ => None,
    };
    raw.fate = match (guard.verdict.as_str(), guard.dropped) {
        _ if guard.rule.as_deref().is_some_and(|rule| crate::review::OBSERVING.contains(&rule)) => Fate::Seen,
        ("deny", true) => Fate::Denied,
        ("deny", false) => Fate::WouldDeny,
        _ => Fate::Allowed,
    };
    raw.rule = guard.rule.map(Arc::from);
    raw.reason = guard.reason.into();
    raw.generation = guard.generation;
    raw.adopted = guard.adopted;
    raw.machine = guard.machine_id.into();
    raw.listening = guard.listening;
    raw.names = guard.names.into_iter().take(MOST_NAMES).map(Arc::from).collect();
    raw.who = guard.who.map(Arc::new).or_else(|| {
        let program = guard.program?;
        let path = program.starts_with('/');
        Some(Arc::new(Who {
            found_by: FoundBy::Socket,
            pid: guard.pid.unwrap_or(0),
            uid: guard.uid,
            comm: if path { String::new() } else { program.clone() },
            exe: path.then_some(program),
            ..Who::default()
        }))
    });
}

/// Flows of which the beginning was read.
#[derive(Default)]
struct Waiting {
    flows: HashMap<u64, Raw>,
    order: VecDeque<u64>,
}

impl Waiting {
    fn begin(&mut self, id: u64, raw: Raw) -> Option<Raw> {
        if let Some(flow) = self.flows.get_mut(&id) {
            // It was cut: what it is now counts.
            let before = std::mem::replace(flow, raw);
            add_what_is_missing(flow, before);
            return None;
        }
        self.flows.insert(id, raw);
        self.order.push_back(id);
        if self.flows.len() <= MOST_WAITING {
            // Ends leave holes in the order; never more than there are flows.
            if self.order.len() > 2 * MOST_WAITING {
                self.order.retain(|id| self.flows.contains_key(id));
            }
            return None;
        }
        while let Some(oldest) = self.order.pop_front() {
            if let Some(raw) = self.flows.remove(&oldest) {
                return Some(raw);
            }
        }
        None
    }

    fn end(&mut self, id: u64, mut raw: Raw) -> Raw {
        if let Some(before) = self.flows.remove(&id) {
            // An end does not say whether packets were dropped.
            if raw.fate == Fate::WouldDeny && before.fate == Fate::Denied {
                raw.fate = Fate::Denied;
            }
            add_what_is_missing(&mut raw, before);
        }
        raw
    }

    fn rest(mut self) -> Vec<Raw> {
        let order = std::mem::take(&mut self.order);
        order.iter().filter_map(|id| self.flows.remove(id)).collect()
    }
}

fn add_what_is_missing(flow: &mut Raw, before: Raw) {
    flow.first = flow.first.min(before.first);
    flow.adopted |= before.adopted;
    if flow.who.is_none() {
        flow.who = before.who;
    }
    if flow.names.is_empty() {
        flow.names = before.names;
    }
    if flow.head.is_empty() {
        flow.head = before.head;
    }
    if flow.interface.is_none() {
        flow.interface = before.interface;
    }
    flow.listening = flow.listening.or(before.listening);
    for way in 0..2 {
        flow.packets[way] = flow.packets[way].max(before.packets[way]);
        flow.bytes[way] = flow.bytes[way].max(before.bytes[way]);
    }
}
