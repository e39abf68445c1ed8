//! Flows as `guard flows` prints them: from the kernel's tables, or from records as they are written.

use std::net::IpAddr;

use guard_common::{Direction, abi::Flow};
use serde::Serialize;
use serde_json::Value;

use super::{
    clock::Clock,
    eve::{Ends, TcpPart},
    flow::Key,
    recorder::RuleNames,
    sweep::Now,
};

/// One flow of the kernel's tables. Field names are stable; counts are `[inbound, outbound]` added up.
#[derive(Clone, Debug, Serialize)]
pub struct FlowLine {
    /// As `explain` reads it.
    pub flow: String,
    pub verdict: &'static str,
    pub rule: Option<std::sync::Arc<str>>,
    pub reason: &'static str,
    pub direction: &'static str,
    pub src_ip: IpAddr,
    pub src_port: Option<u16>,
    pub dest_ip: IpAddr,
    pub dest_port: Option<u16>,
    pub proto: String,
    pub community_id: String,
    pub packets: u64,
    pub bytes: u64,
    pub packets_in: u64,
    pub packets_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub generation: u32,
    /// RFC 3339-like, as in records.
    pub first_seen: String,
    pub last_seen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<&'static str>,
    pub answered: bool,
    pub adopted: bool,
    /// Seconds since its last packet.
    pub idle: u64,
    /// What the remote was asked as, the latest first; labels, never proof.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<std::sync::Arc<str>>,
}

impl FlowLine {
    #[must_use]
    pub fn new(key: &Key, flow: &Flow, names: &RuleNames, clock: Clock, now: &Now) -> Self {
        let direction = Direction::from_u8(flow.direction);
        let ends = Ends::new(key, direction);
        Self {
            flow: key.spoken(direction),
            verdict: flow.outcome.verdict().as_str(),
            rule: names.of(flow.generation, flow.outcome),
            reason: flow.outcome.reason().as_str(),
            direction: direction.as_str(),
            src_ip: ends.src_ip,
            src_port: ends.src_port,
            dest_ip: ends.dest_ip,
            dest_port: ends.dest_port,
            proto: ends.proto,
            community_id: ends.community_id,
            packets: flow.packets[0] + flow.packets[1],
            bytes: flow.bytes[0] + flow.bytes[1],
            packets_in: flow.packets[0],
            packets_out: flow.packets[1],
            bytes_in: flow.bytes[0],
            bytes_out: flow.bytes[1],
            generation: flow.generation,
            first_seen: clock.timestamp(flow.first_seen),
            last_seen: clock.timestamp(now.last_ns(flow).max(flow.first_seen)),
            tcp: TcpPart::new(flow).map(|tcp| tcp.state),
            answered: flow.flags & Flow::ANSWERED != 0,
            adopted: flow.flags & Flow::ADOPTED != 0,
            idle: now.idle(flow) / 1_000_000_000,
            names: Vec::new(),
        }
    }

    /// For people, one line.
    #[must_use]
    pub fn render(&self) -> String {
        let why = self.rule.as_deref().unwrap_or(self.reason);
        let state = self.tcp.unwrap_or(if self.answered { "answered" } else { "unanswered" });
        let names: Vec<&str> = self.names.iter().map(|name| &**name).collect();
        let names = if names.is_empty() { String::new() } else { format!("  asked as {}", names.join(", ")) };
        format!(
            "{:<5} {:<40} {:<11} in {:>9}  out {:>9}  {}{}",
            self.verdict,
            self.flow,
            state,
            bytes(self.bytes_in),
            bytes(self.bytes_out),
            crate::text::harmless(why),
            crate::text::harmless(&names),
        )
    }
}

/// A record as one line for people; a line that is no record is shown as it is.
#[must_use]
pub fn render_record(line: &str) -> String {
    let Ok(record) = serde_json::from_str::<Value>(line) else { return crate::text::harmless(line) };
    if let Some(missed) = record.get("missed") {
        return format!("({missed} records came too fast to be shown; flows.jsonl has them)");
    }
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let guard = &record["guard"];
    let end = |ip: &str, port: &str| {
        let address = text(&record[ip]);
        let address = if address.contains(':') { format!("[{address}]") } else { address };
        match record.get(port) {
            Some(port) => format!("{address}:{}", text(port)),
            None => address,
        }
    };
    let verdict = match (guard["verdict"].as_str(), guard["dropped"].as_bool()) {
        (Some("deny"), Some(true)) => "DENIED",
        (Some("deny"), _) => "would deny",
        _ => "allowed",
    };
    let why = match &guard["rule"] {
        Value::String(rule) => rule.clone(),
        _ => text(&guard["reason"]),
    };
    let time = text(&record["timestamp"]);
    // Time of day, to the millisecond.
    let time = time.get(11..23).unwrap_or(&time);
    let way = if guard["direction"] == "inbound" { "in " } else { "out" };
    let ends = if record.get("src_ip").is_some() {
        format!("{} {} -> {}", text(&record["proto"]), end("src_ip", "src_port"), end("dest_ip", "dest_port"))
    } else {
        String::new()
    };
    let mut shown = format!("{time}Z {verdict:<10} {way} {ends}  {}  {why}", text(&guard["event"]));
    let who = &guard["who"];
    if let Some(program) = who["exe"].as_str().or(who["comm"].as_str()).filter(|program| !program.is_empty()) {
        shown.push_str(&format!("  {program} {}", text(&who["pid"])));
    }
    for (at, name) in guard["names"].as_array().into_iter().flatten().enumerate() {
        shown.push_str(if at == 0 { "  asked as " } else { ", " });
        shown.push_str(&text(name));
    }
    crate::text::harmless(&shown)
}

/// `18.2 MB`: decimal units.
#[must_use]
pub fn bytes(count: u64) -> String {
    let (mut value, mut unit) = (count as f64, "B");
    for next in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use guard_common::{Reason, decide::Outcome};

    use super::*;
    use crate::record::flow::TCP;

    #[test]
    fn a_flow_is_one_line() {
        let key = Key::new(TCP, "203.0.113.9".parse().unwrap(), 443, "192.0.2.1".parse().unwrap(), 40000, 0).unwrap();
        let flow = Flow {
            generation: 2,
            outcome: Outcome::new(Reason::RuleAllow, 0),
            direction: Direction::Outbound as u8,
            tcp: guard_common::abi::TcpState::Established as u8,
            bytes: [18_200_000, 500],
            packets: [3, 4],
            ..Flow::default()
        };
        let mut names = RuleNames::default();
        names.insert(2, vec!["vendor".to_owned()], [true, true]);
        let now = Now { boot_ns: 5_000_000_000, jiffies: 250, hz: 250 };
        let line = FlowLine::new(&key, &flow, &names, Clock::at_boot(0), &now);
        assert_eq!((line.packets, line.rule.as_deref(), line.idle), (7, Some("vendor"), 1));
        let text = line.render();
        assert!(text.starts_with("allow out tcp 203.0.113.9:443"), "{text}");
        assert!(text.contains("established") && text.contains("18.2 MB") && text.ends_with("vendor"), "{text}");
    }

    #[test]
    fn records_are_shown_harmless() {
        let line = r#"{"timestamp":"2026-01-02T03:04:05.678901+0000","src_ip":"2001:db8::1","src_port":40000,
            "dest_ip":"2001:db8::9","dest_port":443,"proto":"TCP","guard":{"event":"begin","verdict":"deny",
            "dropped":true,"rule":null,"reason":"not_listed","direction":"outbound","who":{"exe":"a\u001b[2J","pid":7},"names":["b\u001b.example.org"]}}"#;
        assert_eq!(
            render_record(line),
            "03:04:05.678Z DENIED     out TCP [2001:db8::1]:40000 -> [2001:db8::9]:443  begin  not_listed  a\u{fffd}[2J 7  asked as \
             b\u{fffd}.example.org"
        );
        assert!(render_record("{\"missed\":3}").contains("3 records"));
        assert_eq!(render_record("\u{1b}"), "\u{fffd}");
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(18_200_000), "18.2 MB");
    }
}
