//! The layers beside the wire: what a program is told at its socket, what the seal refuses, what the shield hides.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use guard_tests::{
    agent::{ask, command},
    echo::Echo,
    flows::{NOTHING, PASSES},
    frame::{UDP, ethernet_ip, ip, udp},
    guard::Guard,
    new_world,
    process::run,
    witness::{Witness, send_frame},
    world::World,
};

/// The intruder may be reached on 9000, and asks on 9000.
const POLICY: &str = r#"
version: 1
name: layers
mode: MODE
inbound:
  - { name: in, from: [203.0.113.9, "2001:db8:bad::9"], services: [tcp/9000, udp/9000] }
outbound:
  - { name: out, to: [203.0.113.9, "2001:db8:bad::9"], services: [tcp/9000, udp/9000] }
"#;

fn policy(mode: &str) -> String {
    POLICY.replace("MODE", mode)
}

/// The server at the intruder's, and the calls that must be allowed and denied there.
fn calls(world: &World, port: u16) -> Vec<Vec<String>> {
    let mut calls = Vec::new();
    let mapped = IpAddr::V6(world.intruder.v4.to_ipv6_mapped());
    for address in [world.intruder.address(false), world.intruder.address(true), mapped] {
        let to = SocketAddr::from((address, port)).to_string();
        calls.push(vec!["connect".to_owned(), "tcp".to_owned(), to.clone()]);
        calls.push(vec!["send".to_owned(), to]);
    }
    calls
}

fn call(world: &World, call: &[String]) -> guard_tests::agent::Said {
    ask(&world.server, &call.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
}

fn serve(world: &World) -> Vec<Echo> {
    let mut servers = Vec::new();
    for ipv6 in [false, true] {
        for port in [9000, 9001] {
            servers.push(Echo::tcp(&world.intruder, world.intruder.address(ipv6), port).unwrap());
            servers.push(Echo::udp(&world.intruder, world.intruder.address(ipv6), port).unwrap());
        }
    }
    servers
}

#[test]
fn a_socket_is_told_at_once() {
    let Some(world) = new_world("netns_layers a_socket_is_told_at_once") else { return };
    let _servers = serve(&world);
    for denied in calls(&world, 9001) {
        assert!(call(&world, &denied).good(), "without guard: {denied:?}");
    }
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    for allowed in calls(&world, 9000) {
        let said = call(&world, &allowed);
        assert!(said.good(), "{allowed:?}: {said:?}");
    }
    for denied in calls(&world, 9001) {
        let said = call(&world, &denied);
        assert!(said.refused() && said.took < Duration::from_millis(500), "{denied:?}: {said:?}");
    }
    // Who asked is known.
    let records = guard
        .wait_records(|record| record["guard"]["event"] == "socket_denied" && record["dest_port"] == 9001)
        .unwrap();
    for record in &records {
        let who = &record["guard"]["who"];
        let program = who["exe"].as_str().or(who["comm"].as_str()).unwrap_or_default();
        assert!(program.contains("guard-test-agen"), "{record}");
        assert!(who["pid"].as_u64() > Some(1), "{record}");
        assert_eq!(who["found_by"], "socket", "{record}");
        assert_eq!((&record["guard"]["verdict"], &record["guard"]["reason"]), (&"deny".into(), &"not_listed".into()));
    }
    // Connecting UDP sends nothing, and resolvers and ping do it on ports that they never use: no refusal, no record.
    for ipv6 in [false, true] {
        let to = SocketAddr::from((world.intruder.address(ipv6), 9002)).to_string();
        assert!(ask(&world.server, &["connect", "udp", &to]).unwrap().good());
    }
    assert!(!guard.records().unwrap().iter().any(|record| record["dest_port"] == 9002));
    // What stays on the host is no affair of it.
    let local = Echo::tcp(&world.server, [127, 0, 0, 1].into(), 9001).unwrap();
    assert!(ask(&world.server, &["connect", "tcp", &local.address.to_string()]).unwrap().good());

    // Whoever is outside the cgroup is denied all the same, by the wire.
    let to = SocketAddr::from((world.intruder.v4, 9001));
    let said = guard_tests::echo::connect(&world.operator, to, NOTHING);
    assert_eq!(said.err().map(|error| error.kind()), Some(std::io::ErrorKind::TimedOut));
}

#[test]
fn in_audit_mode_no_socket_is_told_anything() {
    let Some(world) = new_world("netns_layers in_audit_mode_no_socket") else { return };
    let _servers = serve(&world);
    let guard = Guard::start(&world, &policy("audit")).unwrap();
    for denied in calls(&world, 9001) {
        assert!(call(&world, &denied).good(), "{denied:?}");
    }
    let denied = guard.wait_records(|r| r["dest_port"] == 9001 && r["guard"]["event"] == "begin").unwrap();
    assert_eq!(denied[0]["guard"]["verdict"], "deny");
    assert_eq!(denied[0]["guard"]["dropped"], false);
}

/// A datagram to a port that is not listed, as a frame of the server's own.
fn denied_frame(world: &World, ipv6: bool) -> Vec<u8> {
    let (from, to) = (world.server.address(ipv6), world.intruder.address(ipv6));
    ethernet_ip(World::ROUTER_MAC, world.server.mac, &ip(from, to, UDP, &udp((from, 4000), (to, 9001), b"out")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_seal_refuses_the_ways_round() {
    let Some(world) = new_world("netns_layers the_seal_refuses") else { return };
    let frame = hex(&denied_frame(&world, false));
    let escaped = |witness: &Witness| witness.count(|packet| packet.destination_port == 9001);
    {
        let witness = Witness::start(&world.router, World::WIRE).unwrap();
        assert!(ask(&world.server, &["bypass", "native", "eth0", "1", &frame]).unwrap().good(), "without guard");
        assert!(witness.waits_for(PASSES, |packet| packet.destination_port == 9001), "without guard");
        assert!(!ask(&world.server, &["xdp", "native"]).unwrap().refused(), "without guard");
    }
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    // Without the option, the wire drops them. To switch it off is no harm; but where the seal is at kernel functions, it
    // does not know the value, and refuses to change what goes its right way.
    let off = ask(&world.server, &["bypass", "native", "eth0", "0", &frame]).unwrap();
    assert_eq!(off.refused(), guard.sealed_at_functions().unwrap(), "{off:?}");
    let said = ask(&world.server, &["bypass", "native", "eth0", "1", &frame]).unwrap();
    assert!(said.refused(), "{said:?}");
    assert!(ask(&world.server, &["xdp", "native"]).unwrap().refused());
    std::thread::sleep(NOTHING);
    assert_eq!(escaped(&witness), 0);
    guard.wait_records(|record| record["guard"]["event"] == "sealed").unwrap();
    assert!(guard.packets("sealed", "outbound", true).unwrap() >= 2);
}

#[test]
fn the_shield_hides_what_is_denied_from_packet_sockets() {
    let Some(world) = new_world("netns_layers the_shield_hides") else { return };
    let heard = |port: u16| {
        // As an implant would: a packet socket on the guarded host, for what nobody lets in.
        let implant = Witness::start(&world.server, "eth0").unwrap();
        for ipv6 in [false, true] {
            let (from, to) = (world.intruder.address(ipv6), world.server.address(ipv6));
            let packet = ip(from, to, UDP, &udp((from, 4000), (to, port), b"magic"));
            for _ in 0..5 {
                send_frame(&world.client, "eth0", &ethernet_ip(world.server.mac, world.client.mac, &packet)).unwrap();
            }
        }
        std::thread::sleep(NOTHING);
        implant.count(|packet| packet.destination_port == port)
    };
    assert_eq!(heard(9001), 10, "without guard");
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    assert_eq!(heard(9001), 10, "the wire alone cannot hide them; if it could, no shield were needed");
    guard.release().unwrap();
    drop(guard);

    let guard = Guard::start_with(&world, &policy("enforce"), &["--shield"]).unwrap();
    let status = guard.status().unwrap();
    assert!(status["hooks"].as_array().unwrap().iter().any(|hook| hook["layer"] == "shield"), "{status:#}");
    assert_eq!(status["enforcing"], true, "{status:#}");
    assert_eq!(heard(9001), 0);
    // What it drops is told of as the wire would, with its beginning.
    for ipv6 in [false, true] {
        let (from, to) = (world.intruder.address(ipv6), world.server.address(ipv6));
        let records = guard.wait_records(|r| r["event_type"] == "drop" && r["src_ip"] == from.to_string()).unwrap();
        let packet = ip(from, to, UDP, &udp((from, 4000), (to, 9001), b"magic"));
        let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &packet);
        assert_eq!(records[0]["packet"], encoded, "{records:#?}");
    }
    assert_eq!(heard(9000), 10, "what is allowed is heard");
    // It breaks nothing that is allowed.
    let _servers = serve(&world);
    for ipv6 in [false, true] {
        let to = SocketAddr::from((world.intruder.address(ipv6), 9000));
        guard_tests::echo::tcp_reaches(&world.server, to, PASSES).unwrap();
        guard_tests::echo::udp_reaches(&world.server, to, PASSES).unwrap();
    }
}

#[test]
fn the_backstop_holds_sockets_until_a_new_interface_is_guarded() {
    let Some(world) = new_world("netns_layers the_backstop_holds") else { return };
    let link = |number: u8| {
        let (here, there) = (format!("192.0.2.{}", 121 + 4 * number), format!("192.0.2.{}", 122 + 4 * number));
        world
            .server
            .ip(&format!(
                "link add eth{number} type veth peer name eth{number} netns {}\naddress add {here}/30 dev eth{number}\n\
                 link set eth{number} up\n",
                world.client.name()
            ))
            .unwrap();
        world.client.ip(&format!("address add {there}/30 dev eth{number}\nlink set eth{number} up\n")).unwrap();
        there
    };
    let listed = POLICY.replace("MODE", "enforce").replace("203.0.113.9,", "192.0.2.128/25,");
    let mut guard = Guard::start(&world, &listed).unwrap();

    // The daemon cannot see the new one: until it does, nothing of a guarded process goes there, listed or not.
    guard.signal(nix::sys::signal::Signal::SIGSTOP).unwrap();
    let there = link(2);
    let echo = Echo::tcp(&world.client, there.parse().unwrap(), 9000).unwrap();
    let said = ask(&world.server, &["connect", "tcp", &echo.address.to_string()]).unwrap();
    assert!(!said.good(), "{said:?}");
    assert_eq!(echo.reached(), 0);
    assert!(guard.packets("unknown_interface", "outbound", true).unwrap() >= 1);
    // Whoever is not held by the backstop gets there, and is counted.
    let unheld = Echo::udp(&world.client, there.parse().unwrap(), 9001).unwrap();
    guard_tests::echo::udp_reaches(&world.operator, unheld.address, PASSES).unwrap();
    guard.signal(nix::sys::signal::Signal::SIGCONT).unwrap();
    let guarded = |status: &serde_json::Value, name: &str| {
        let lines = status["interfaces"].as_array().unwrap();
        lines.iter().any(|line| line["name"] == name && line["guarded"] == true)
    };
    let status = guard.status_until(PASSES, |status| guarded(status, "eth2") && status["enforcing"] == true).unwrap();
    assert!(status["problems"].as_array().unwrap().is_empty(), "{status:#}");
    assert!(ask(&world.server, &["connect", "tcp", &echo.address.to_string()]).unwrap().good());
    let notices = status["daemon"]["notices"].as_array().unwrap().iter().filter_map(|notice| notice.as_str());
    let passed = notices.filter_map(|notice| notice.strip_prefix("eth2 is guarded now; up to ")).collect::<Vec<_>>();
    let numbers = |text: &str| text.split(' ').filter_map(|word| word.parse().ok()).collect::<Vec<u64>>();
    assert!(passed.len() == 1 && numbers(passed[0])[..2].iter().all(|count| *count >= 1), "{status:#}");

    // With the daemon at work: guarded within a moment, and gone without a trace.
    let there = link(3);
    guard.status_until(PASSES, |status| guarded(status, "eth3")).unwrap();
    let unlisted = Echo::udp(&world.client, there.parse().unwrap(), 9001).unwrap();
    assert!(guard_tests::echo::udp_reaches(&world.operator, unlisted.address, NOTHING).is_err());
    assert_eq!(unlisted.reached(), 0);
    world.server.ip("link delete eth3").unwrap();
    guard.status_until(PASSES, |status| !guarded(status, "eth3") && status["enforcing"] == true).unwrap();

    // Renamed, moved under a bridge: still guarded.
    world
        .server
        .ip("link set eth2 down\nlink set eth2 name uplink\nlink add br0 type bridge\nlink set uplink master br0\n\
             link set uplink up\nlink set br0 up\n")
        .unwrap();
    guard.status_until(PASSES, |status| guarded(status, "uplink")).unwrap();
    guard.stop().unwrap();
}

#[test]
fn a_mapped_address_is_judged_as_what_it_is() {
    let Some(world) = new_world("netns_layers a_mapped_address") else { return };
    let _servers = serve(&world);
    // IPv6 is allowed everywhere, IPv4 nowhere: a mapped address is IPv4.
    let policy = "version: 1\nname: six\nmode: enforce\ninbound: []\noutbound:\n  \
                  - { to: \"::/0\", services: [tcp/9000, udp/9000] }\n";
    let _guard = Guard::start(&world, policy).unwrap();
    let six = SocketAddr::from((world.intruder.v6, 9000)).to_string();
    let mapped = SocketAddr::from((world.intruder.v4.to_ipv6_mapped(), 9000)).to_string();
    assert!(ask(&world.server, &["connect", "tcp", &six]).unwrap().good());
    for call in [&["connect", "tcp", &mapped][..], &["send", &mapped]] {
        assert!(ask(&world.server, call).unwrap().refused(), "{call:?}");
    }
}

#[test]
fn a_process_in_a_cgroup_below_is_held_too() {
    let Some(world) = new_world("netns_layers a_process_in_a_cgroup_below") else { return };
    let _servers = serve(&world);
    let _guard = Guard::start(&world, &policy("enforce")).unwrap();
    let below = world.cgroup().join("below");
    std::fs::create_dir(&below).unwrap();
    let place = world.server.in_cgroup(&below).unwrap();
    let to = SocketAddr::from((world.intruder.v4, 9001)).to_string();
    let ended = run(&mut command(&place, &["connect", "tcp", &to]).unwrap(), PASSES * 2).unwrap();
    assert!(ended.stdout.starts_with("1 "), "EPERM: {}", ended.text());
}
