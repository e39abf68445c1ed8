//! The daemon dies, comes back, cannot keep up: the kernel goes on, and nothing is forgotten in silence.

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use guard_tests::{
    cases::policy,
    flows::{Flow, NOTHING, PASSES, serve},
    frame::TCP,
    guard::Guard,
    new_world,
    session::{Session, Speaking},
    witness::Witness,
    world::World,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Listed and not listed, in both directions and families.
fn flows() -> Vec<(Flow, bool)> {
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        for (text, allowed) in [
            ("in tcp responder 8001", true),
            ("out tcp responder 443", true),
            ("in tcp client 8002", false),
            ("out tcp responder 444", false),
        ] {
            all.push((Flow::new(text, ipv6), allowed));
        }
    }
    all
}

fn sessions(world: &World) -> Vec<(Flow, Speaking)> {
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        for text in ["in tcp responder 8101", "out udp intruder 8102", "out tcp intruder 8103"] {
            let flow = Flow::new(text, ipv6);
            all.push((flow, Session::begin(world, &flow).unwrap().keep_speaking()));
        }
    }
    all
}

fn said(sessions: &[(Flow, Speaking)]) -> u64 {
    sessions.iter().map(|(_, session)| session.said()).sum()
}

#[test]
fn killed_and_restarted_it_loses_no_flow() {
    let Some(world) = new_world("netns_daemon killed_and_restarted") else { return };
    let flows = flows();
    let _servers = serve(&world, &flows.iter().map(|(flow, _)| *flow).collect::<Vec<_>>());
    let mut guard = Guard::start(&world, &policy("enforce")).unwrap();
    let sessions = sessions(&world);
    let first = guard.status().unwrap();
    let wait = |guard: &Guard| {
        for (flow, _) in &sessions {
            guard.wait_records(|record| flow.is_of(&world, record)).unwrap();
        }
    };
    wait(&guard);

    for round in 0..3 {
        let before = said(&sessions);
        if round < 2 {
            guard.kill().unwrap();
        } else {
            let ended = guard.stop().unwrap();
            assert!(ended.good(), "{}", ended.text());
            let text = ended.text().to_lowercase();
            assert!(text.contains("still") && text.contains("guard release"), "it says what holds: {text}");
        }
        for (flow, allowed) in &flows {
            assert_eq!(flow.passes(&world, *allowed), *allowed, "round {round}, no daemon: {flow}");
        }
        let status = guard.status().unwrap();
        assert_eq!(
            (&status["enforcing"], &status["generation"], status["daemon"].is_null()),
            (&true.into(), &first["generation"], true),
            "{status:#}"
        );
        guard.run(&[]).unwrap();
        let status = guard.status().unwrap();
        assert_eq!((&status["enforcing"], status["daemon"].is_null()), (&true.into(), false), "{status:#}");
        assert_eq!(status["policy_sha256"], first["policy_sha256"], "{status:#}");
        for (flow, allowed) in &flows {
            assert_eq!(flow.passes(&world, *allowed), *allowed, "round {round}, adopted: {flow}");
        }
        assert!(said(&sessions) > before, "round {round}: the sessions stand still");
    }
    // Each session is still the flow that it was: begun once, and never ended.
    for (flow, _) in &sessions {
        let records = guard.records().unwrap();
        let of_it =
            |event: &str| records.iter().filter(|r| flow.is_of(&world, r) && r["guard"]["event"] == event).count();
        assert_eq!((of_it("begin"), of_it("end"), of_it("cut")), (1, 0, 0), "{flow}");
    }
    for (flow, session) in sessions {
        let slowest = session.slowest();
        session.finish().unwrap_or_else(|error| panic!("{flow}: {error}"));
        assert!(slowest < 2000, "{flow}: an exchange took {slowest} ms");
    }
}

#[test]
fn what_began_without_a_daemon_is_recorded_by_the_next() {
    let Some(world) = new_world("netns_daemon what_began_without") else { return };
    let flows = flows();
    let _servers = serve(&world, &flows.iter().map(|(flow, _)| *flow).collect::<Vec<_>>());
    let mut guard = Guard::start(&world, &policy("enforce")).unwrap();
    guard.kill().unwrap();
    for (flow, allowed) in &flows {
        assert_eq!(flow.passes(&world, *allowed), *allowed, "{flow}");
    }
    guard.run(&[]).unwrap();
    for (flow, allowed) in &flows {
        let records = guard
            .wait_records(|record| flow.is_of(&world, record) && record["guard"]["event"] == "begin")
            .unwrap_or_else(|error| panic!("{flow}: {error:#}"));
        assert_eq!(records.len(), 1, "{flow}: {records:#?}");
        assert_eq!(records[0]["guard"]["verdict"], if *allowed { "allow" } else { "deny" }, "{flow}: {records:#?}");
    }
}

#[test]
fn more_flows_than_it_can_hear_of_are_still_recorded() {
    let Some(world) = new_world("netns_daemon more_flows_than_it_can_hear") else { return };
    const FLOWS: u16 = 30_000;
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    guard.signal(Signal::SIGSTOP).unwrap();
    let socket = world.client.run(|| std::net::UdpSocket::bind("192.0.2.20:20000")).unwrap();
    for number in 0..FLOWS {
        let to = SocketAddr::from((world.server.v4, 10_000 + number));
        // A full queue on the way would be our own loss.
        while socket.send_to(b"probe", to).is_err() {
            thread::sleep(Duration::from_millis(1));
        }
        if number % 500 == 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }
    let counted = guard.packets("not_listed", "inbound", true).unwrap();
    guard.signal(Signal::SIGCONT).unwrap();
    let status = guard
        .status_until(Duration::from_secs(20), |_| ports(&guard.records().unwrap()).len() as u64 + 100 >= counted)
        .unwrap_or_else(|error| panic!("{counted} packets, {error:#}"));
    assert!(counted >= u64::from(FLOWS) * 99 / 100, "only {counted} of {FLOWS} arrived");
    assert!(status["lost"]["events"].as_u64() > Some(0), "the ring buffer held them all: raise the number\n{status:#}");
    // One record each, whether the bell rang or not.
    let records = guard.records().unwrap();
    let begins = records.iter().filter(|r| r["guard"]["event"] == "begin" && r["src_port"] == 20_000).count();
    assert_eq!(begins, ports(&records).len(), "no flow began twice");
    assert!(records.iter().any(|record| record["guard"]["late"] == true));
}

fn ports(records: &[Value]) -> BTreeSet<u64> {
    let of_it = records.iter().filter(|r| r["guard"]["event"] == "begin" && r["src_port"] == 20_000);
    of_it.filter_map(|record| record["dest_port"].as_u64()).collect()
}

#[test]
fn a_second_daemon_of_one_instance_is_refused() {
    let Some(world) = new_world("netns_daemon a_second_daemon") else { return };
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    let mut second = guard.run_command(&[]).unwrap();
    let ended = guard_tests::process::run(&mut second, PASSES * 2).unwrap();
    assert_eq!(ended.code(), Some(3), "{}", ended.text());
    assert_eq!(guard.status().unwrap()["enforcing"], true);
}

#[test]
fn starting_is_quick_and_opens_no_gap() {
    let Some(world) = new_world("netns_daemon starting_is_quick") else { return };
    let flow = Flow::new("out tcp responder 22", false);
    let _servers = serve(&world, &[flow]);
    let mut guard = Guard::prepare(&world, &policy("enforce")).unwrap();
    guard.run(&[]).unwrap();
    // Its own share of a processor: tests run side by side.
    let took = guard.daemon().unwrap().cpu_time().unwrap();
    println!("{took:?} of a processor until enforcing");
    assert!(took < Duration::from_secs(3), "{took:?} of a processor until enforcing");
    // From the ready line on, nothing passes: not one packet.
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    for _ in 0..3 {
        assert!(flow.attempt(&world, NOTHING / 4).is_err());
    }
    assert_eq!(witness.count(|packet| packet.protocol == TCP && packet.destination_port == 22), 0);
}
