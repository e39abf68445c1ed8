//! Too much of everything: what was there stays, and what is lost is counted.

use std::{net::IpAddr, thread, time::Duration};

use guard_tests::{
    flows::{Flow, PASSES},
    frame::{SYN, TCP, UDP, ethernet_ip, ip, tcp, udp},
    guard::Guard,
    new_world,
    session::Session,
    witness::send_frames,
    world::{Namespace, World},
};

const POLICY: &str = "version: 1\nname: floods\nmode: enforce\n\
    inbound:\n  - { name: open, from: any, services: [tcp/7000-7009, udp/7000-7009] }\n\
    outbound:\n  - { name: out, to: any, services: [tcp/7000-7009, udp/7000-7009] }\n";

/// Bounded in number and rate: a few seconds' worth.
const FRAMES: u32 = 150_000;
const RATE: u32 = 60_000;

/// From addresses of a documentation network, each port of each: as a scanner with spoofed sources.
fn flood(world: &World, protocol: u8, port: u16) {
    let to: IpAddr = world.server.v4.into();
    let frames = (0..FRAMES).map(|number| {
        let from = IpAddr::from([203, 0, 113, 10 + (number % 200) as u8]);
        let source = (from, 1024 + (number / 200) as u16);
        let payload = match protocol {
            TCP => tcp(source, (to, port), SYN, number, 0, b""),
            _ => udp(source, (to, port), b""),
        };
        ethernet_ip(world.server.mac, world.client.mac, &ip(from, to, protocol, &payload))
    });
    send_frames(&world.client, "eth0", RATE, frames).unwrap();
}

/// Under a lockdown, with its shield: each packet of a flood is in guard's totals, or was lost before it came to guard, as the
/// devices count; and the daemon's memory does not grow with the number of flows that were ever seen.
#[test]
fn a_flood_is_accounted_for_and_takes_no_memory() {
    let Some(world) = new_world("netns_floods a_flood_is_accounted_for") else { return };
    let guard = Guard::prepare(&world, POLICY).unwrap();
    let cgroup = world.cgroup().to_str().unwrap();
    let all = ["--yes", "--allow-from", "198.51.100.7", "--evidence", "none", "--confirm-within", "none"];
    guard.tell("lockdown", &[&all[..], &["--cgroup", cgroup]].concat()).unwrap();
    let status = guard.status_until(PASSES * 2, |status| status["daemon"]["answers"] == true).unwrap();
    let pid = status["daemon"]["pid"].as_u64().unwrap();
    let denied = || guard.packets("not_listed", "inbound", true).unwrap();
    let came = || statistic(&world.server, "rx_packets") + statistic(&world.server, "rx_dropped");
    let mut resident = Vec::new();
    for port in [8000, 8001, 8002] {
        let before = (denied(), came());
        flood(&world, UDP, port);
        // What is still in a queue.
        thread::sleep(Duration::from_millis(500));
        let (counted, came) = (denied() - before.0, came() - before.1);
        println!("sent {FRAMES}, came {came}, counted {counted}");
        assert!(counted <= u64::from(FRAMES) && counted + 16 >= came.min(u64::from(FRAMES)), "{counted} of {came}");
        assert!(counted >= u64::from(FRAMES) / 2, "the flood did not arrive: {counted}");
        // The daemon reads what the tables hold.
        thread::sleep(PASSES);
        resident.push(resident_kib(pid));
    }
    println!("daemon, resident: {resident:?} KiB");
    // The first ones fill what is kept of flows; after that there is no more to keep.
    assert!(resident[2] < resident[1] * 3 / 2 && resident[2] < 512 << 10, "{resident:?} KiB");
    let read = guard.status().unwrap();
    assert_eq!((&read["enforcing"], &read["problems"]), (&true.into(), &serde_json::json!([])), "{read:#}");
}

/// Of the world's link, as the kernel counts.
fn statistic(place: &Namespace, name: &str) -> u64 {
    // Of the thread's own network namespace, whichever /sys is mounted.
    let text = place.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
    let field = |number: usize| line.split_ascii_whitespace().nth(number).unwrap().parse().unwrap();
    match name {
        "rx_packets" => field(1),
        _ => field(3),
    }
}

fn resident_kib(pid: u64) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

#[test]
fn a_flood_evicts_no_established_flow() {
    let Some(world) = new_world("netns_floods a_flood_evicts_no_established") else { return };
    let guard = Guard::start(&world, POLICY).unwrap();
    let mut sessions = Vec::new();
    for ipv6 in [false, true] {
        for text in ["in tcp responder 7001", "out tcp intruder 7002", "in udp responder 7003", "out udp client 7004"] {
            let flow = Flow::new(text, ipv6);
            sessions.push((flow, Session::begin(&world, &flow).unwrap()));
        }
    }
    // What is told of a session, in all files: the floods fill several, and the first may be gone at the end.
    let told = |flow: &Flow, session: &Session, event: &str| {
        let port = session.asker(flow).unwrap().port();
        let records = guard.all_records_with(&format!("\"src_port\":{port},")).unwrap();
        let mine = records.iter().filter(|record| flow.is_of(&world, record) && record["src_port"] == port);
        mine.filter(|record| record["guard"]["event"] == event).count()
    };
    for (flow, session) in &sessions {
        let port = session.asker(flow).unwrap().port();
        let begins = |record: &serde_json::Value| record["src_port"] == port && record["guard"]["event"] == "begin";
        guard.wait_records(|record| flow.is_of(&world, record) && begins(record)).unwrap();
        assert_eq!(told(flow, session, "begin"), 1, "{flow}");
    }
    // Unanswered ones that are allowed, denied ones, and opening ones.
    for (protocol, port) in [(UDP, 7005), (UDP, 8000), (TCP, 7006)] {
        flood(&world, protocol, port);
        for (flow, session) in &mut sessions {
            for from_server in [true, false] {
                session.speaks(from_server, PASSES).unwrap_or_else(|error| panic!("{flow}, after {port}: {error}"));
            }
        }
        // None was lost in between and found again. One flood fits into the files that are kept.
        for (flow, session) in &sessions {
            let (begun, ended) = (told(flow, session, "begin"), told(flow, session, "end"));
            assert!(begun <= 1 && ended == 0, "{flow}, after {port}: {begun} {ended}");
        }
    }
    let status = guard.status().unwrap();
    let counted: u64 = status["reasons"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|line| line["direction"] == "inbound")
        .filter_map(|line| line["packets"].as_u64())
        .sum();
    assert!(counted >= u64::from(FRAMES) * 5 / 2, "only {counted} of {} arrived", FRAMES * 3);
    // What the table could not hold is missing in no total.
    let status = guard.status_until(PASSES * 2, |status| status["daemon"]["answers"] == true).unwrap();
    let daemon = &status["daemon"];
    assert!(daemon["flows_held"].as_u64() > Some(0) && daemon["detail_lost_packets"].is_array(), "{status:#}");
    thread::sleep(PASSES / 5);
    for (flow, session) in &sessions {
        let (begun, ended) = (told(flow, session, "begin"), told(flow, session, "end"));
        assert!(begun <= 1 && ended == 0, "{flow}: {begun} {ended}");
    }
}

/// Tables that hold few: what flows had counted when they were pushed out is missing in their records, and said.
#[test]
fn what_eviction_took_is_said() {
    let Some(world) = new_world("netns_floods what_eviction_took") else { return };
    let guard = Guard::start_with(&world, POLICY, &["--flows", "1024"]).unwrap();
    assert_eq!(guard.status().unwrap()["flows"]["room"], 1024);
    let to: IpAddr = world.server.v4.into();
    // Each three times in a row: its first is in the event, the others only in the table.
    let frames = (0..FRAMES / 10 * 3).map(|number| {
        let from = IpAddr::from([203, 0, 113, 10 + (number / 3 % 200) as u8]);
        let source = (from, 1024 + (number / 600) as u16);
        ethernet_ip(world.server.mac, world.client.mac, &ip(from, to, UDP, &udp(source, (to, 7005), b"")))
    });
    send_frames(&world.client, "eth0", RATE, frames).unwrap();
    let lost = |status: &serde_json::Value| status["daemon"]["detail_lost_packets"][0].as_u64().unwrap_or(0);
    let status = guard.status_until(PASSES * 2, |status| lost(status) > 0).unwrap();
    assert!(status["flows"]["held"].as_u64().is_some_and(|held| held <= 8 * 1024), "{status:#}");
    let said = guard.tell("status", &[]).unwrap();
    assert!(said.text().contains("in the totals and in no flow's record:"), "{}", said.text());
}
