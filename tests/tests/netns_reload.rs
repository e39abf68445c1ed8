//! Another policy in one step: under load, no packet is judged by a mixture of two.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use guard_tests::{
    echo::Echo,
    flows::{Flow, NOTHING, PASSES, serve},
    frame::UDP,
    guard::Guard,
    new_world,
    session::Session,
    witness::Witness,
    world::World,
};

/// A lets us ask the client on even ports, B the responder on odd ones. The remotes of one with the services of the
/// other would let the client be asked on odd ports.
fn policy(remote: &str, services: &str, filler: usize) -> String {
    // Enough rules that publishing takes a while.
    let many: Vec<String> = (0..filler)
        .map(|n| format!("  - {{ to: \"2001:db8:{:x}::/48\", services: tcp/{} }}\n", 0x1000 + n, 1000 + n % 60_000))
        .collect();
    format!(
        "version: 1\nname: half\nmode: enforce\ninbound: []\noutbound:\n  \
         - {{ name: half, to: {remote}, services: [{services}] }}\n{}",
        many.concat()
    )
}

fn a() -> String {
    policy("[192.0.2.20, \"2001:db8:2::20\"]", "udp/6000, udp/6002", 2000)
}

fn b() -> String {
    policy("[198.51.100.7, \"2001:db8:17::7\"]", "udp/6001, udp/6003", 3000)
}

#[test]
fn no_packet_is_judged_by_a_mixture() {
    let Some(world) = new_world("netns_reload no_packet_is_judged_by_a_mixture") else { return };
    let guard = Guard::start(&world, &a()).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    let stop = AtomicBool::new(false);
    let (mut sent, mut reloads) = (0u64, 0);
    thread::scope(|scope| {
        let senders: Vec<_> = [false, true]
            .into_iter()
            .map(|ipv6| {
                let (world, stop) = (&world, &stop);
                scope.spawn(move || flood(world, ipv6, stop))
            })
            .collect();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(6) || (reloads < 8 && start.elapsed() < PASSES * 12) {
            let next = if reloads % 2 == 0 { b() } else { a() };
            let done = guard.reload(&next, &[]).unwrap();
            assert!(done.good(), "{}", done.text());
            reloads += 1;
        }
        stop.store(true, Ordering::Relaxed);
        sent = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
    });
    assert!(reloads >= 8, "only {reloads} reloads");
    thread::sleep(NOTHING);

    let of = |host: &guard_tests::world::Host, odd: u16| {
        witness.count(|packet| {
            packet.protocol == UDP
                && (6000..6004).contains(&packet.destination_port)
                && packet.destination_port % 2 == odd
                && (packet.destination == host.address(false) || packet.destination == host.address(true))
        })
    };
    let listed = (of(&world.client, 0), of(&world.responder, 1));
    let mixed = (of(&world.client, 1), of(&world.responder, 0));
    assert_eq!(mixed, (0, 0), "of {sent} packets over {reloads} reloads; listed {listed:?}");
    assert!(listed.0 > 100 && listed.1 > 100, "both policies were in force: {listed:?} of {sent}");
    assert_eq!(witness.lost().unwrap(), 0);
    println!("{reloads} reloads, {sent} packets sent, {listed:?} passed by one or the other, none by a mixture");
}

/// All four combinations, over flows that last and over new ones.
fn flood(world: &World, ipv6: bool, stop: &AtomicBool) -> u64 {
    let any: std::net::IpAddr = if ipv6 { [0u16; 8].into() } else { [0u8; 4].into() };
    let open = || world.server.run(|| UdpSocket::bind((any, 0))).unwrap();
    let lasting = open();
    let targets: Vec<SocketAddr> = [&world.client, &world.responder]
        .into_iter()
        .flat_map(|host| (6000..6004).map(move |port| SocketAddr::from((host.address(ipv6), port))))
        .collect();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        // A bounded rate: some thousand packets a second.
        let fresh: Vec<UdpSocket> = world.server.run(|| (0..4).map(|_| UdpSocket::bind((any, 0)).unwrap()).collect());
        for target in &targets {
            for socket in fresh.iter().chain([&lasting]) {
                // Denied ones are dropped on their way, which UDP may or may not tell.
                let _ = socket.send_to(b"load", target);
                sent += 1;
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    sent
}

#[test]
fn a_flow_that_is_no_longer_listed_is_cut_and_one_that_is_goes_on() {
    let Some(world) = new_world("netns_reload a_flow_no_longer_listed") else { return };
    let list = |services: &str| {
        format!(
            "version: 1\nname: cut\nmode: enforce\ninbound:\n  - {{ name: in, from: any, services: [{services}] }}\n\
             outbound:\n  - {{ name: out, to: any, services: [{services}] }}\n"
        )
    };
    let guard = Guard::start(&world, &list("tcp/5000-5009, udp/5000-5009")).unwrap();
    let mut sessions = Vec::new();
    for ipv6 in [false, true] {
        for protocol in ["tcp", "udp"] {
            for (direction, base) in [("in", 5000), ("out", 5001)] {
                for (port, stays) in [(base, true), (base + 6, false)] {
                    let flow = Flow::new(&format!("{direction} {protocol} responder {port}"), ipv6);
                    sessions.push((flow, stays, Session::begin(&world, &flow).unwrap()));
                }
            }
        }
    }
    // This very process holds the sessions, so that guard takes them for its operator's own, and refuses.
    let fewer = list("tcp/5000-5003, udp/5000-5003");
    assert!(!guard.reload(&fewer, &[]).unwrap().good());
    let done = guard.reload(&fewer, &["--cut-me"]).unwrap();
    assert!(done.good(), "{}", done.text());
    for (flow, stays, session) in &mut sessions {
        for from_server in [true, false] {
            let spoke = session.speaks(from_server, if *stays { PASSES } else { NOTHING });
            assert_eq!(spoke.is_ok(), *stays, "{flow}, from the server {from_server}: {spoke:?}");
        }
        if !*stays {
            let cut = guard.wait_records(|r| flow.is_of(&world, r) && r["guard"]["event"] == "cut").unwrap();
            assert_eq!(cut.len(), 1, "{flow}: {cut:#?}");
            assert_eq!(cut[0]["guard"]["verdict"], "deny");
        }
    }
}

#[test]
fn an_invalid_policy_changes_nothing() {
    let Some(world) = new_world("netns_reload an_invalid_policy_changes_nothing") else { return };
    let flows = [Flow::new("in tcp client 80", false), Flow::new("in tcp client 81", false)];
    let _servers = serve(&world, &flows);
    let good = "version: 1\nname: good\nmode: enforce\ninbound:\n  - { from: any, services: tcp/80 }\noutbound: []\n";
    let guard = Guard::start(&world, good).unwrap();
    let before = guard.status().unwrap();
    for (bad, place) in [
        (
            "version: 1\nname: x\nmode: enforce\ninbound:\n  - { from: any, services: tcp/8999-80 }\noutbound: []\n",
            ":5:",
        ),
        ("version: 1\nname: x\nmode: enforce\ninbound:\n  - { from: nobody, services: tcp/81 }\noutbound: []\n", ":5:"),
        ("version: 1\nmode: [", ":2:"),
        ("", "policy.yaml"),
    ] {
        let ended = guard.reload(bad, &[]).unwrap();
        assert_eq!(ended.code(), Some(1), "{}", ended.text());
        assert!(ended.text().contains(place), "the place: {}", ended.text());
        let after = guard.status().unwrap();
        assert_eq!(
            (&after["generation"], &after["policy_sha256"], &after["enforcing"]),
            (&before["generation"], &before["policy_sha256"], &true.into()),
            "{after:#}"
        );
        assert!(flows[0].passes(&world, true) && !flows[1].passes(&world, false));
    }
    // A hangup reads the file again.
    guard
        .write_policy(
            "version: 1\nname: other\nmode: enforce\ninbound:\n  - { from: any, services: tcp/81 }\noutbound: []\n",
        )
        .unwrap();
    guard.signal(nix::sys::signal::Signal::SIGHUP).unwrap();
    guard.status_until(PASSES, |status| status["policy"] == "other").unwrap();
    assert!(!flows[0].passes(&world, false) && flows[1].passes(&world, true));
    assert!(Echo::tcp(&world.server, world.server.v4.into(), 80).is_err(), "the server of the test still listens");
}
