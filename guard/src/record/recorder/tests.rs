use std::{collections::HashMap, path::Path};

use guard_common::abi::FlowKeyV6;

use super::*;
use crate::record::{begun_before::begun_before, sink::Limits};

fn event(kind: EventKind, time: u64) -> Event {
    Event {
        kind: kind as u8,
        family: 4,
        direction: Direction::Outbound as u8,
        dropped: 1,
        outcome: Outcome::new(Reason::RuleDeny, 1),
        generation: 3,
        ifindex: 0,
        time,
        socket_cookie: 9,
        key: FlowKeyV6 {
            remote: [0xcb00_7109, 0, 0, 0],
            local: [0xc000_0201, 0, 0, 0],
            remote_port: 4444,
            local_port: 40000,
            protocol_scope: 6,
        },
        owner: Owner::default(),
        packet_bytes: 60,
        head_bytes: 1,
        head: [0x45; HEAD_BYTES],
    }
}

fn recorder(directory: &Path) -> Recorder {
    let sink = Sink::open(directory.join("flows.jsonl"), Limits::default());
    let mut recorder = Recorder::new(sink, Tracker::default(), Clock::at_boot(0));
    recorder.names.insert(3, vec!["web".to_owned(), "no metadata".to_owned()], [false, true]);
    recorder
}

fn records(directory: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(directory.join("flows.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_denied_flow_is_told_once_with_its_rule_and_first_bytes() {
    let home = tempfile::tempdir().unwrap();
    let mut recorder = recorder(home.path());
    recorder.event(&event(EventKind::FlowBegan, 7));
    recorder.event(&event(EventKind::FlowBegan, 7));
    recorder.sink.flush();
    let records = records(home.path());
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["event_type"], "drop");
    assert_eq!(records[0]["guard"]["rule"], "no metadata");
    assert_eq!(records[0]["guard"]["event"], "begin");
    assert_eq!(records[0]["packet"], "RQ==");
    assert_eq!(records[0]["flow"]["pkts_toserver"], 1);
    let begun = begun_before(&home.path().join("flows.jsonl")).unwrap();
    assert_eq!(begun.ended, HashMap::from([(records[0]["flow_id"].as_u64().unwrap(), false)]));
    assert_eq!(begun.by_tuple.len(), 1);
}

#[test]
fn an_event_without_a_flow_has_no_ends() {
    let home = tempfile::tempdir().unwrap();
    let mut recorder = recorder(home.path());
    let mut packet = event(EventKind::PacketDenied, 7);
    packet.family = 0;
    packet.outcome = Outcome::without_rule(Reason::EtherType);
    recorder.event(&packet);
    recorder.sink.flush();
    let records = records(home.path());
    assert_eq!(records[0]["guard"]["event"], "packet");
    assert_eq!(records[0]["guard"]["reason"], "ethertype");
    assert_eq!(records[0].get("src_ip"), None);
}

#[test]
fn the_end_of_a_denied_flow_is_no_further_drop() {
    let home = tempfile::tempdir().unwrap();
    let mut recorder = recorder(home.path());
    recorder.event(&event(EventKind::FlowBegan, 7));
    let now = Now { boot_ns: 1_000_000_000_000, jiffies: 250_000, hz: 250 };
    let mut findings = recorder.tracker.look([], &now);
    findings.found.extend(recorder.tracker.look([], &now).found);
    for found in &findings.found {
        recorder.found(found, &now, None);
    }
    recorder.sink.flush();
    let records = records(home.path());
    assert_eq!(records.len(), 2);
    assert_eq!(records[1]["event_type"], "flow");
    assert_eq!(records[1]["guard"]["end"], "evicted");
    assert_eq!(records[1]["flow_id"], records[0]["flow_id"]);
    assert!(begun_before(&home.path().join("flows.jsonl")).unwrap().ended.values().all(|ended| *ended));
}
