use guard_common::{Reason, decide::Outcome};

use super::*;
use crate::record::flow::TCP;

fn key(port: u16) -> Key {
    Key::new(TCP, "203.0.113.9".parse().unwrap(), port, "192.0.2.1".parse().unwrap(), 40000, 0).unwrap()
}

fn flow(first_seen: u64, packets: u64) -> Flow {
    Flow {
        generation: 1,
        outcome: Outcome::new(Reason::RuleAllow, 0),
        first_seen,
        last_seen: 1000,
        tcp: TcpState::Established as u8,
        packets: [0, packets],
        bytes: [0, packets * 100],
        ..Flow::default()
    }
}

fn at(jiffies: u64) -> Now {
    Now { boot_ns: jiffies * 4_000_000, jiffies, hz: 250 }
}

fn kinds(findings: &Findings) -> Vec<Finding> {
    findings.found.iter().map(|found| found.finding).collect()
}

fn expired(findings: &Findings) -> Vec<Key> {
    findings.expired.iter().map(|(key, _)| *key).collect()
}

#[test]
fn a_doorbell_and_the_table_give_one_beginning() {
    let mut tracker = Tracker::default();
    let id = tracker.began(key(1), flow(5, 1)).unwrap();
    assert_eq!(tracker.began(key(1), flow(5, 1)), None);
    let findings = tracker.look([(key(1), flow(5, 3))], &at(1000));
    assert_eq!(kinds(&findings), []);
    assert_eq!(tracker.sum().packets, [0, 3]);
    // Gone from the table: an end with what was seen last.
    let findings = tracker.look([], &at(1000));
    assert_eq!(kinds(&findings), [Finding::End(How::Evicted)]);
    assert_eq!((findings.found[0].flow_id, findings.found[0].flow.packets), (id, [0, 3]));
    assert_eq!(tracker.sum().packets, [0, 3]);
    assert_eq!(tracker.held(), 0);
}

#[test]
fn a_lost_doorbell_is_made_good() {
    let mut tracker = Tracker::default();
    let findings = tracker.look([(key(1), flow(5, 3))], &at(1000));
    assert_eq!(kinds(&findings), [Finding::Begin]);
    assert_eq!(kinds(&tracker.look([(key(1), flow(5, 4))], &at(1000))), []);
    let mut cut = flow(5, 4);
    cut.cut_generation = 2;
    assert_eq!(kinds(&tracker.look([(key(1), cut)], &at(1000))), [Finding::Cut]);
    assert_eq!(kinds(&tracker.look([(key(1), cut)], &at(1000))), []);
    assert_eq!(tracker.cut(key(1), cut), None);
}

#[test]
fn a_doorbell_that_comes_after_the_dump_waits_for_the_next_look() {
    let mut tracker = Tracker::default();
    tracker.began(key(1), flow(5, 1));
    assert_eq!(kinds(&tracker.look([], &at(1000))), []);
    assert_eq!(kinds(&tracker.look([], &at(1000))), [Finding::End(How::Evicted)]);
}

#[test]
fn a_flow_that_is_only_tracked_has_no_beginning_yet() {
    let mut tracker = Tracker::default();
    let mut tracked = flow(5, 1);
    tracked.generation = 0;
    assert_eq!(kinds(&tracker.look([(key(1), tracked)], &at(1000))), []);
    // Judged later than it was first seen: the event's time is the judgement's.
    let id = tracker.began(key(1), flow(9, 1)).unwrap();
    assert_eq!(id, key(1).flow_id(5));
    assert_eq!(kinds(&tracker.look([(key(1), flow(5, 2))], &at(1000))), []);
}

#[test]
fn an_event_of_a_tracked_flow_that_no_look_saw_is_the_same_flow() {
    let mut tracker = Tracker::default();
    let id = tracker.began(key(1), flow(9, 1)).unwrap();
    assert_eq!(kinds(&tracker.look([(key(1), flow(5, 2))], &at(1000))), []);
    let findings = tracker.look([], &at(1000));
    assert_eq!(findings.found[0].flow_id, id);
}

#[test]
fn what_goes_on_after_its_end_is_told_in_another_record() {
    let mut tracker = Tracker::default();
    let first = tracker.look([(key(1), flow(5, 9))], &at(1000)).found[0].flow_id;
    let mut reset = flow(5, 10);
    reset.tcp = TcpState::Close as u8;
    let findings = tracker.look([(key(1), reset)], &at(1000 + 250 * 3));
    assert_eq!(kinds(&findings), [Finding::End(How::Closed)]);
    assert_eq!((findings.found[0].flow_id, findings.found[0].flow.packets), (first, [0, 10]));
    // A late packet of a closed one is none that goes on.
    reset.packets[1] += 1;
    assert_eq!(kinds(&tracker.look([(key(1), reset)], &at(1000 + 250 * 4))), []);
    // The reset was not its remote's, and the socket knew better.
    let mut on = flow(5, 16);
    on.last_seen = 1000 + 250 * 5;
    let findings = tracker.look([(key(1), on)], &at(1000 + 250 * 5));
    assert_eq!(kinds(&findings), [Finding::Begin]);
    let (second, told) = (findings.found[0].flow_id, findings.found[0].flow.packets);
    assert_ne!(second, first);
    let findings = tracker.look([], &at(1000 + 250 * 6));
    assert_eq!(kinds(&findings), [Finding::End(How::Evicted)]);
    // Each packet is in one record but for the late one, as ever.
    assert_eq!((findings.found[0].flow_id, findings.found[0].flow.packets, told), (second, [0, 5], [0, 5]));
    assert_eq!(tracker.sum().packets, [0, 16]);
}

#[test]
fn idle_and_closed_flows_end_once_and_are_deleted_when_their_time_is_over() {
    let mut tracker = Tracker::default();
    tracker.began(key(1), flow(5, 1));
    let mut closed = flow(5, 9);
    closed.tcp = TcpState::TimeWait as u8;
    let findings = tracker.look([(key(1), closed)], &at(1000 + 250 * 2));
    assert_eq!(kinds(&findings), [Finding::End(How::Closed)]);
    assert!(findings.expired.is_empty());
    let findings = tracker.look([(key(1), closed)], &at(1000 + 250 * 121));
    assert_eq!(kinds(&findings), []);
    assert_eq!(expired(&findings), [key(1)]);

    let findings = tracker.look([(key(2), flow(5, 1))], &at(1000 + 250 * 432_001));
    assert_eq!(kinds(&findings), [Finding::Begin, Finding::End(How::Idle)]);
    assert_eq!(expired(&findings), [key(2)]);
}

#[test]
fn the_store_is_told_of_what_goes_on_as_it_grows() {
    let mut tracker = Tracker::default();
    let grown = |tracker: &mut Tracker, seconds: u64, packets: u64| {
        let now = at(1000 + 250 * seconds);
        let flow = Flow { first_seen: at(1000).boot_ns, last_seen: now.jiffies, ..flow(0, packets) };
        let grown = tracker.look([(key(1), flow)], &now).grown;
        grown.first().map(|grown| grown.flow.packets[1])
    };
    // Twice as old each time, at least two seconds, at most a minute; and nothing where nothing came.
    let told: Vec<Option<u64>> = (0..=10).map(|second| grown(&mut tracker, second, 10 + second)).collect();
    let seconds: Vec<usize> = (0..told.len()).filter(|second| told[*second].is_some()).collect();
    assert_eq!(seconds, [2, 4, 8]);
    assert_eq!(told[8], Some(18));
    assert_eq!(grown(&mut tracker, 100, 18), None);
    assert_eq!(grown(&mut tracker, 101, 500), Some(500));
    assert_eq!(grown(&mut tracker, 160, 600), None);
    assert_eq!(grown(&mut tracker, 161, 601), Some(601));
}

#[test]
fn a_new_flow_in_an_old_ones_place() {
    let mut tracker = Tracker::default();
    tracker.look([(key(1), flow(5, 3))], &at(1000));
    let findings = tracker.look([(key(1), flow(7, 2))], &at(1000));
    assert_eq!(kinds(&findings), [Finding::End(How::Replaced), Finding::Begin]);
    assert_eq!(tracker.sum().packets, [0, 5]);
    assert!(tracker.began(key(1), flow(8, 1)).is_none(), "its own doorbell");
    assert!(tracker.began(key(1), flow(7 + 2 * SAME_FLOW, 1)).is_some());
    assert_eq!(tracker.sum().packets, [0, 6]);
}

#[test]
fn what_a_former_process_recorded_does_not_begin_again() {
    let mut before = BegunBefore::default();
    // The event's time is a little later than the flow's own.
    before.began(key(1).flow_id(5 + 700), &key(1).community_id(Direction::Inbound));
    before.began(key(4).flow_id(5), "");
    before.ended(key(4).flow_id(5));
    let mut closed = flow(5, 3);
    closed.tcp = TcpState::TimeWait as u8;
    before.began(77, &key(3).community_id(Direction::Inbound));
    let mut tracker = Tracker::new(before);
    let mut adopted = flow(9, 1);
    adopted.flags = Flow::ADOPTED;
    let held = [(key(1), flow(5, 3)), (key(2), flow(6, 1)), (key(3), adopted), (key(4), closed)];
    let findings = tracker.look(held, &at(2000));
    assert_eq!(kinds(&findings), [Finding::Begin]);
    assert_eq!(findings.found[0].key, key(2));
    let ends = tracker.look([], &at(2000));
    assert!(ends.found.iter().any(|found| found.flow_id == 77));
    assert!(ends.found.iter().all(|found| found.key != key(4)));
    assert_eq!(tracker.cut(key(3), flow(1 << 30, 1)), Some(77));
}

#[test]
fn a_refusal_at_the_socket_ends_when_no_more_come() {
    let mut tracker = Tracker::default();
    let mut refused = flow(5, 1);
    refused.flags = Flow::AT_SOCKET;
    refused.last_seen = 0;
    let id = tracker.refused(key(1), refused);
    assert_eq!(tracker.refused(key(1), refused), id);
    let minute = 60_000_000_000 / 4_000_000;
    let start = 250_000;
    refused.packets[1] = 2;
    assert_eq!(kinds(&tracker.look([(key(1), refused)], &at(start))), []);
    assert_eq!(kinds(&tracker.look([(key(1), refused)], &at(start + minute))), []);
    let findings = tracker.look([(key(1), refused)], &at(start + 3 * minute));
    assert_eq!(kinds(&findings), [Finding::End(How::Idle)]);
    assert_eq!(expired(&findings), [key(1)]);
}

#[test]
fn an_entry_seen_in_two_tables_counts_once() {
    let mut tracker = Tracker::default();
    tracker.look([(key(1), flow(5, 3)), (key(1), flow(5, 2))], &at(1000));
    assert_eq!(tracker.sum().packets, [0, 3]);
}
