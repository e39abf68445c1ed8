use std::{net::IpAddr, ops::ControlFlow, path::Path, sync::Arc};

use guard_common::Direction;

use super::*;
use crate::{
    record::{
        flow::Key,
        who::{FoundBy, Parent, Who},
    },
    review::{
        group::Remote,
        observed::{Fate, Observed},
    },
};

const NOW: i64 = 1_764_000_000_000_000;
const SECOND: i64 = 1_000_000;

fn flow(id: u64, at: i64, remote: &str, port: u16) -> Observed {
    let remote: IpAddr = remote.parse().unwrap();
    Observed {
        flow_id: id,
        host: "db1".into(),
        machine: "m".into(),
        first: at,
        last: at,
        direction: Direction::Outbound,
        key: Key::new(6, remote, port, "192.0.2.1".parse().unwrap(), 40000, 0).unwrap(),
        interface: Some("eth0".into()),
        fate: Fate::Allowed,
        rule: Some("web".into()),
        reason: "rule_allow".into(),
        generation: 3,
        packets: [1, 2],
        bytes: [60, 200],
        answered: true,
        adopted: false,
        listening: None,
        who: Some(Arc::new(Who {
            found_by: FoundBy::Socket,
            pid: 12,
            started: 99,
            comm: "curl".into(),
            exe: Some("/usr/bin/curl".into()),
            args: vec!["curl".into(), "\u{1b}[2J".into()],
            parents: vec![Parent { pid: 7, exe: "/bin/sh".into() }],
            ..Who::default()
        })),
        names: vec!["cdn.example".into(), "b.example".into()],
        remote_group: Remote::network_of(remote),
        head: Vec::new(),
    }
}

fn scan(id: u64, at: i64, remote: &str, port: u16) -> Observed {
    let remote: IpAddr = remote.parse().unwrap();
    Observed {
        direction: Direction::Inbound,
        key: Key::new(6, remote, 50000, "192.0.2.1".parse().unwrap(), port, 0).unwrap(),
        fate: Fate::Denied,
        answered: false,
        listening: Some(false),
        who: None,
        names: Vec::new(),
        packets: [1, 0],
        bytes: [40, 0],
        remote_group: Remote::network_of(remote),
        ..flow(id, at, "203.0.113.9", port)
    }
}

fn begun(boot: &str, at: i64) -> Begun {
    Begun { host: "db1".into(), machine: "m".into(), boot: boot.into(), at }
}

fn put(writer: &mut Writer, flow: Observed, ended: bool) {
    writer.apply(&[Change { flow, ended }], NOW).unwrap();
}

fn all(path: &Path) -> Vec<Observed> {
    let mut flows = Vec::new();
    let reader = Reader::open(path).unwrap().unwrap();
    reader
        .flows(Span::ALL, &mut |flow| {
            flows.push(flow);
            ControlFlow::Continue(())
        })
        .unwrap();
    flows
}

#[test]
fn a_flow_comes_back_as_it_was_handed_in() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    let mut writer = Writer::open(&path, Limits::default(), &begun("a", NOW)).unwrap();
    let first = Observed { head: vec![0x45; 200], ..flow(1, NOW, "203.0.113.9", 443) };
    let v6 = Observed {
        key: Key::new(6, "fe80::1".parse().unwrap(), 22, "fe80::2".parse().unwrap(), 50000, 7).unwrap(),
        interface: None,
        rule: None,
        fate: Fate::WouldDeny,
        remote_group: Remote::Zone("example.org".into()),
        ..flow(2, NOW + 1, "203.0.113.9", 443)
    };
    put(&mut writer, first.clone(), false);
    put(&mut writer, v6.clone(), true);
    assert_eq!(all(&path), [first, v6]);
}

#[test]
fn changes_of_one_flow_are_one_row_until_it_ends() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    let mut writer = Writer::open(&path, Limits::default(), &begun("a", NOW)).unwrap();
    let begin = Observed { who: None, ..flow(1, NOW, "203.0.113.9", 443) };
    put(&mut writer, begin, false);
    let cut = Observed {
        last: NOW + 5 * SECOND,
        fate: Fate::Denied,
        bytes: [70, 900],
        reason: "not_listed".into(),
        ..flow(1, NOW, "203.0.113.9", 443)
    };
    put(&mut writer, cut.clone(), false);
    put(&mut writer, Observed { who: None, ..cut.clone() }, true);
    // The id is free again: ids repeat in another boot.
    put(&mut writer, flow(1, NOW + 9 * SECOND, "203.0.113.9", 443), false);
    assert_eq!(all(&path), [cut, flow(1, NOW + 9 * SECOND, "203.0.113.9", 443)]);
}

#[test]
fn what_was_open_in_another_boot_is_over() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    let mut writer = Writer::open(&path, Limits::default(), &begun("a", NOW)).unwrap();
    put(&mut writer, flow(1, NOW, "203.0.113.9", 443), false);
    drop(writer);
    let mut writer = Writer::open(&path, Limits::default(), &begun("a", NOW)).unwrap();
    put(&mut writer, flow(1, NOW, "203.0.113.9", 443), false);
    assert_eq!(all(&path).len(), 1, "a restart of guard goes on with its flows");
    drop(writer);
    let mut writer = Writer::open(&path, Limits::default(), &begun("b", NOW)).unwrap();
    put(&mut writer, flow(1, NOW + SECOND, "203.0.113.9", 443), false);
    assert_eq!(all(&path).len(), 2);
}

#[test]
fn scans_push_out_nothing_but_scans_and_their_sums_stay() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    let limits = Limits { unsolicited: 10, ..Limits::default() };
    let mut writer = Writer::open(&path, limits, &begun("a", NOW)).unwrap();
    put(&mut writer, flow(1, NOW, "203.0.113.9", 443), true);
    for number in 0..100u16 {
        put(&mut writer, scan(100 + u64::from(number), NOW + i64::from(number), "198.51.100.7", number), true);
    }
    // From a network with which this host talks: no stranger.
    put(&mut writer, scan(999, NOW, "203.0.113.77", 22), true);
    let flows = all(&path);
    assert_eq!(flows.iter().map(|flow| flow.flow_id).collect::<Vec<_>>(), [1, 999]);
    let reader = Reader::open(&path).unwrap().unwrap();
    let mut newest = Vec::new();
    reader
        .unsolicited(Span::ALL, &mut |flow| {
            newest.push(flow.flow_id);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(newest, (190..200).rev().collect::<Vec<_>>());
    let background = reader.background(Span::ALL).unwrap();
    assert_eq!(background.lines.len(), 1);
    let line = &background.lines[0];
    assert_eq!((line.flows, line.packets, line.bytes, line.addresses, line.ports), (100, 100, 4000, 1, 10));
    assert!(line.at_least && line.port.is_none());
}

#[test]
fn what_is_answered_after_all_was_not_unsolicited() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    let mut writer = Writer::open(&path, Limits::default(), &begun("a", NOW)).unwrap();
    let rings = |path: &Path| {
        let reader = Reader::open(path).unwrap().unwrap();
        let mut ids = Vec::new();
        reader
            .unsolicited(Span::ALL, &mut |flow| {
                ids.push(flow.flow_id);
                ControlFlow::Continue(())
            })
            .unwrap();
        (ids, reader.background(Span::ALL).unwrap().lines.iter().map(|line| line.flows).collect::<Vec<_>>())
    };
    // Observed: the first packet of every flow that comes in is one that nobody has answered yet.
    let mut first = scan(7, NOW, "198.51.100.7", 22);
    first.fate = Fate::Seen;
    put(&mut writer, first.clone(), false);
    assert_eq!(rings(&path), (vec![7], vec![1]));
    put(&mut writer, Observed { answered: true, packets: [9, 8], ..first }, true);
    assert_eq!(rings(&path), (vec![], vec![]));
    assert_eq!(all(&path).iter().map(|flow| flow.flow_id).collect::<Vec<_>>(), [7]);
}

#[test]
fn a_group_is_new_again_after_two_weeks_of_silence() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    let mut writer = Writer::open(&path, Limits::default(), &begun("a", NOW)).unwrap();
    let fresh = |path: &Path| Reader::open(path).unwrap().unwrap().groups(i64::MIN).unwrap()[0].fresh;
    put(&mut writer, flow(1, NOW, "203.0.113.9", 443), true);
    put(&mut writer, flow(2, NOW + 13 * DAY_US, "203.0.113.10", 443), true);
    assert_eq!(fresh(&path), NOW);
    let later = NOW + 28 * DAY_US;
    put(&mut writer, flow(3, later, "203.0.113.10", 443), true);
    assert_eq!(fresh(&path), later);
    let groups = Reader::open(&path).unwrap().unwrap().groups(i64::MIN).unwrap();
    assert_eq!((groups.len(), groups[0].first, groups[0].last), (1, NOW, later));
    assert_eq!(groups[0].id, groups[0].group.id());
}

#[test]
fn the_newest_are_kept_within_size_and_age() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    let limits = Limits { bytes: 2 << 20, age: DAY_US, ..Limits::default() };
    let mut writer = Writer::open(&path, limits, &begun("a", NOW)).unwrap();
    let mut id = 0;
    for batch in 0..40 {
        let changes: Vec<Change> = (0..1000)
            .map(|_| {
                id += 1;
                Change { flow: flow(id, NOW + batch, "203.0.113.9", 443), ended: true }
            })
            .collect();
        writer.apply(&changes, NOW).unwrap();
        while writer.forget(NOW, true).unwrap() {}
    }
    let kept = all(&path);
    assert!(kept.len() > 5000 && kept.len() < 30_000, "{}", kept.len());
    assert_eq!(kept.last().unwrap().flow_id, id);
    assert!(std::fs::metadata(&path).unwrap().len() < 3 << 20);
    writer.apply(&[Change { flow: flow(id + 1, NOW + 3 * DAY_US, "203.0.113.9", 443), ended: true }], NOW).unwrap();
    while writer.forget(NOW + 3 * DAY_US, true).unwrap() {}
    assert_eq!(all(&path).iter().map(|flow| flow.flow_id).collect::<Vec<_>>(), [id + 1]);
}

#[test]
fn gaps_are_when_no_guard_ran() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    let run = |from: i64, to: i64, lost: u64| {
        let mut writer = Writer::open(&path, Limits::default(), &begun("a", NOW + from * SECOND)).unwrap();
        writer.beat(&Losses { store: lost, ..Losses::default() }, NOW + to * SECOND).unwrap();
    };
    run(0, 1000, 1);
    run(1005, 2000, 2);
    run(3000, 4000, 4);
    let reader = Reader::open(&path).unwrap().unwrap();
    let span = |since: i64, until: i64| Span { since: NOW + since * SECOND, until: NOW + until * SECOND };
    let coverage = reader.coverage(span(500, 4000));
    assert_eq!(coverage.gaps, [(NOW + 2000 * SECOND, NOW + 3000 * SECOND)]);
    assert_eq!(coverage.covered, (500 + 995 + 1000) * SECOND);
    assert_eq!(coverage.losses.store, 7);
    assert_eq!(reader.coverage(span(2500, 5000)).gaps.len(), 2);
    assert_eq!(reader.coverage(span(-100, 100)).gaps, []);
}

#[test]
fn a_foreign_a_newer_and_a_damaged_file_are_told_apart() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    assert!(Reader::open(&path).unwrap().is_none());
    std::fs::write(&path, b"this is no database, and long enough to have been a header of one").unwrap();
    assert!(matches!(Reader::open(&path), Err(StoreError::Damaged { .. })));
    std::fs::remove_file(&path).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE a (b)").unwrap();
    assert!(matches!(Reader::open(&path), Err(StoreError::Foreign { .. })));
    drop(other);
    std::fs::remove_file(&path).unwrap();
    drop(Writer::open(&path, Limits::default(), &begun("a", NOW)).unwrap());
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", VERSION + 1).unwrap();
    assert!(matches!(Reader::open(&path), Err(StoreError::Version { found, .. }) if found == VERSION + 1));
    let refused = Writer::open(&path, Limits::default(), &begun("a", NOW));
    assert!(matches!(refused, Err(StoreError::Version { .. })));
}

#[test]
fn a_damaged_store_is_set_aside_and_a_new_one_begun() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    std::fs::write(&path, vec![7u8; 20_000]).unwrap();
    let recording = Recording::start(&path, Limits { age: i64::MAX / 4, ..Limits::default() }, begun("a", NOW));
    recording.flow(flow(1, NOW, "203.0.113.9", 443), true);
    let status = wait(&recording, |status| status.written == 1);
    assert_eq!((status.lost, &status.error), (0, &None));
    assert_eq!(std::fs::read(&status.set_aside[0]).unwrap(), vec![7u8; 20_000]);
    drop(recording);
    assert_eq!(all(&path).len(), 1);
}

#[test]
fn damage_while_it_is_written_costs_no_new_record() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    let mut writer = Writer::open(&path, Limits::default(), &begun("a", NOW)).unwrap();
    for number in 0..20_000 {
        let changes = [Change { flow: flow(number, NOW, "203.0.113.9", 443), ended: false }];
        if number % 1000 == 0 { writer.apply(&changes, NOW).unwrap() } else { continue }
    }
    drop(writer);
    // All but the first page, which names the tables.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let recording = Recording::start(&path, Limits { age: i64::MAX / 4, ..Limits::default() }, begun("a", NOW));
    recording.flow(flow(1, NOW, "203.0.113.9", 443), true);
    let status = wait(&recording, |status| status.written == 1);
    assert_eq!(status.set_aside.len(), 1, "{status:?}");
    drop(recording);
    assert_eq!(all(&path).len(), 1);
}

#[test]
fn a_store_that_was_moved_away_is_begun_anew() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE);
    let recording = Recording::start(&path, Limits { age: i64::MAX / 4, ..Limits::default() }, begun("a", NOW));
    recording.flow(flow(1, NOW, "203.0.113.9", 443), true);
    wait(&recording, |status| status.written == 1);
    std::fs::rename(&path, home.path().join("taken")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(5100));
    recording.flow(flow(2, NOW, "203.0.113.9", 443), true);
    drop(recording);
    assert_eq!(all(&path).iter().map(|flow| flow.flow_id).collect::<Vec<_>>(), [2]);
}

fn wait(recording: &Recording, done: impl Fn(&StoreStatus) -> bool) -> StoreStatus {
    for _ in 0..400 {
        let status = recording.status();
        if done(&status) {
            return status;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    panic!("{:?}", recording.status());
}
