//! What the server passes on for others: judged as it comes in and as it goes out; containers behind it too.

use std::{net::SocketAddr, os::unix::fs::MetadataExt, time::Instant};

use guard_tests::{
    echo::{Echo, connect, speaks, tcp_reaches, udp_reaches},
    flows::{NOTHING, PASSES},
    frame::TCP,
    guard::Guard,
    new_world,
    process::{Process, run},
    witness::Witness,
    world::{Namespace, World},
};

fn policy(inbound: &str, outbound: &str) -> String {
    format!("version: 1\nname: forward\nmode: enforce\ninbound: [{inbound}]\noutbound: [{outbound}]\n")
}

const IN: &str = "{ name: in, from: any, services: [tcp/9000, udp/9000] }";
const OUT: &str = "{ name: out, to: any, services: [tcp/9000, udp/9000] }";

/// The client, over the second link, asks the intruder by way of the server.
#[test]
fn a_forwarded_packet_is_judged_twice() {
    let Some(world) = new_world("netns_forward a_forwarded_packet_is_judged_twice") else { return };
    let echoes: Vec<Echo> = [false, true]
        .into_iter()
        .flat_map(|ipv6| {
            let address = world.intruder.address(ipv6);
            [Echo::tcp(&world.intruder, address, 9000).unwrap(), Echo::udp(&world.intruder, address, 9000).unwrap()]
        })
        .collect();
    world.server.sysctl("ipv4/ip_forward", "1").unwrap();
    world.server.sysctl("ipv6/conf/all/forwarding", "1").unwrap();
    world
        .client
        .ip(&format!(
            "route add 203.0.113.9/32 via {} dev eth1 src {}\nroute add 2001:db8:bad::9/128 via {} dev eth1 src {}\n",
            World::BACK_V4[0],
            World::BACK_V4[1],
            World::BACK_V6[0],
            World::BACK_V6[1]
        ))
        .unwrap();
    world
        .router
        .ip("route add 198.51.100.128/25 via 192.0.2.10\nroute add 2001:db8:b::/64 via 2001:db8:2::10\n")
        .unwrap();
    let reach = |limit| -> Vec<bool> {
        echoes
            .iter()
            .enumerate()
            .map(|(number, echo)| {
                let reach = if number % 2 == 0 { tcp_reaches } else { udp_reaches };
                reach(&world.client, echo.address, limit).is_ok()
            })
            .collect()
    };
    assert_eq!(reach(PASSES), [true; 4], "without guard");
    let guard = Guard::start(&world, &policy(IN, OUT)).unwrap();
    assert_eq!(reach(PASSES), [true; 4], "listed both ways");
    let records = guard.wait_records(|record| record["dest_ip"] == world.intruder.v4.to_string()).unwrap();
    for direction in ["inbound", "outbound"] {
        assert!(records.iter().any(|record| record["guard"]["direction"] == direction), "{direction}: {records:#?}");
    }
    for (inbound, outbound) in [(IN, ""), ("", OUT)] {
        let done = guard.reload(&policy(inbound, outbound), &[]).unwrap();
        assert!(done.good(), "{}", done.text());
        let witness = Witness::start(&world.router, World::WIRE).unwrap();
        assert_eq!(reach(NOTHING), [false; 4], "listed one way only: {inbound}{outbound}");
        assert_eq!(witness.count(|packet| packet.destination_port == 9000), 0, "{inbound}{outbound}");
    }
}

/// A router with address translation both ways, by nftables, whose connection tracking knew its flows before guard came:
/// each is two, as its packets look on either side, and goes on exactly where both are listed.
#[test]
fn what_is_forwarded_with_nat_is_known_before_the_start() {
    let Some(world) = new_world("netns_forward what_is_forwarded_with_nat") else { return };
    world.server.sysctl("ipv4/ip_forward", "1").unwrap();
    world
        .client
        .ip(&format!("route add 203.0.113.9/32 via {} dev eth1 src {}\n", World::BACK_V4[0], World::BACK_V4[1]))
        .unwrap();
    let (server, inside) = (world.server.v4, World::BACK_V4[1]);
    let mut nft = world.operator.command("nft");
    nft.arg(format!(
        "add table ip nat; add chain ip nat out {{ type nat hook postrouting priority 100; }};
         add rule ip nat out oifname eth0 masquerade;
         add chain ip nat in {{ type nat hook prerouting priority -100; }};
         add rule ip nat in iifname eth0 tcp dport 8080 dnat to {inside}:9005"
    ));
    let set = run(&mut nft, PASSES).unwrap();
    assert!(set.good(), "{}", set.text());
    let outside = Echo::tcp(&world.intruder, world.intruder.v4.into(), 9000).unwrap();
    let _behind = Echo::tcp(&world.client, inside.into(), 9005).unwrap();
    let _server = Echo::udp(&world.server, server.into(), 9100).unwrap();
    let mut out = connect(&world.client, outside.address, PASSES).unwrap();
    let mut in_ = connect(&world.intruder, (server, 8080).into(), PASSES).unwrap();
    speaks(&mut out).unwrap();
    speaks(&mut in_).unwrap();
    udp_reaches(&world.responder, (server, 9100).into(), PASSES).unwrap();

    // What a policy that lists nothing would cut.
    let mut guard = Guard::prepare(&world, &policy("", "")).unwrap();
    let mut dry = guard.run_command(&["--dry-run", "--json"]).unwrap();
    let ended = run(&mut dry, PASSES * 4).unwrap();
    let line = ended.stdout.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{}", ended.text()));
    let json: serde_json::Value = serde_json::from_str(line).unwrap();
    let mut tracked: Vec<[String; 3]> = json["would_cut"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|cut| cut["known_from"] == "conntrack")
        .map(|cut| ["flow", "local", "program"].map(|field| cut[field].as_str().unwrap_or("-").to_owned()))
        .collect();
    tracked.sort();
    let program = std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let expected = [
        [format!("in tcp {inside} -> 9000"), "203.0.113.9".into(), "-".into()],
        ["in tcp 203.0.113.9 -> 8080".into(), server.to_string(), "-".into()],
        // Whose socket is not connected, and so does not know its peer.
        ["in udp 198.51.100.7 -> 9100".into(), server.to_string(), program],
        ["out tcp 203.0.113.9:9000".into(), server.to_string(), "-".into()],
        [format!("out tcp {inside}:9005"), "203.0.113.9".into(), "-".into()],
    ];
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(tracked, expected, "{json:#}");

    let listed = policy(
        "{ name: in, from: any, services: [tcp/9000, tcp/8080, udp/9100] }",
        "{ name: out, to: any, services: [tcp/9000, tcp/9005] }",
    );
    guard.write_policy(&listed).unwrap();
    guard.run(&[]).unwrap();
    assert_eq!(guard.status().unwrap()["enforcing"], true);
    speaks(&mut out).unwrap();
    speaks(&mut in_).unwrap();
    let ended = guard.reload(&listed.replace(", tcp/9005", ""), &[]).unwrap();
    assert!(ended.good(), "{}", ended.text());
    speaks(&mut out).unwrap();
    in_.set_read_timeout(Some(NOTHING)).unwrap();
    assert!(speaks(&mut in_).is_err(), "one side of it is listed no longer");
}

/// As every runtime makes one: a veth pair, one end on a bridge of the host, its traffic masqueraded.
fn container(world: &World) -> Namespace {
    let container = world.namespace("container").unwrap();
    world.server.sysctl("ipv4/ip_forward", "1").unwrap();
    world
        .server
        .ip(&format!(
            "link add docker0 type bridge\naddress add 192.0.2.193/28 dev docker0\nlink set docker0 up\n\
             link add veth1 type veth peer name eth0 netns {}\nlink set veth1 master docker0\nlink set veth1 up\n",
            container.name()
        ))
        .unwrap();
    container.ip("address add 192.0.2.194/28 dev eth0\nlink set eth0 up\nroute add default via 192.0.2.193\n").unwrap();
    let mut nft = world.operator.command("nft");
    nft.arg(
        "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; \
             add rule ip nat post oifname eth0 ip saddr 192.0.2.192/28 masquerade",
    );
    let set = run(&mut nft, PASSES).unwrap();
    assert!(set.good(), "{}", set.text());
    container
}

#[test]
fn a_container_gets_out_only_as_the_host_may() {
    let Some(world) = new_world("netns_forward a_container_gets_out") else { return };
    let container = container(&world);
    let listed = Echo::tcp(&world.intruder, world.intruder.v4.into(), 9000).unwrap();
    let unlisted = Echo::tcp(&world.intruder, world.intruder.v4.into(), 9001).unwrap();
    let on_host = Echo::tcp(&world.server, std::net::Ipv4Addr::new(192, 0, 2, 193).into(), 9002).unwrap();
    for echo in [&listed, &unlisted, &on_host] {
        tcp_reaches(&container, echo.address, PASSES).unwrap_or_else(|error| panic!("{}: {error}", echo.address));
    }
    let guard = Guard::start(&world, &policy("", OUT)).unwrap();
    let status = guard.status().unwrap();
    let guarded = |name: &str| {
        let lines = status["interfaces"].as_array().unwrap();
        lines.iter().find(|line| line["name"] == name).is_some_and(|line| line["guarded"] == true)
    };
    assert!(guarded("eth0") && guarded("eth1") && !guarded("veth1") && !guarded("docker0"), "{status:#}");
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    tcp_reaches(&container, listed.address, PASSES).unwrap();
    assert!(tcp_reaches(&container, unlisted.address, NOTHING).is_err());
    assert_eq!(witness.count(|packet| packet.protocol == TCP && packet.destination_port == 9001), 0);
    // Host and container still talk, and a guarded process may reach it too.
    tcp_reaches(&container, on_host.address, PASSES).unwrap();
    let inside = Echo::tcp(&container, std::net::Ipv4Addr::new(192, 0, 2, 194).into(), 9003).unwrap();
    tcp_reaches(&world.server, inside.address, PASSES).unwrap();
    let said = guard_tests::agent::ask(&world.server, &["connect", "tcp", &inside.address.to_string()]).unwrap();
    assert!(said.good(), "{said:?}");
}

/// Two engines, or one in another's container, give their first containers the same address.
#[test]
fn a_container_is_told_from_a_strangers_with_its_address() {
    let Some(world) = new_world("netns_forward a_container_is_told") else { return };
    let container = container(&world);
    let stranger = world.namespace("stranger").unwrap();
    stranger.ip("link add eth0 type bridge\naddress add 192.0.2.194/28 dev eth0\nlink set eth0 up\n").unwrap();
    // A namespace is known by the processes in it.
    let [_first, _second] = [&stranger, &container].map(|place| {
        let mut sleep = place.command("sleep");
        Process::spawn(sleep.arg("60")).unwrap()
    });
    let echo = Echo::tcp(&world.intruder, world.intruder.v4.into(), 9001).unwrap();
    let guard = Guard::start(&world, &policy("", OUT)).unwrap();
    let netns = std::fs::metadata(container.path()).unwrap().ino();
    let deadline = Instant::now() + PASSES * 4;
    loop {
        assert!(tcp_reaches(&container, echo.address, NOTHING).is_err());
        let records = guard.records().unwrap();
        if records.iter().any(|record| record["dest_port"] == 9001 && record["guard"]["who"]["netns"] == netns) {
            return;
        }
        assert!(Instant::now() < deadline, "{records:#?}");
    }
}

#[test]
fn a_macvlan_elsewhere_is_judged_at_its_lower_device() {
    let Some(world) = new_world("netns_forward a_macvlan_elsewhere") else { return };
    let other = world.namespace("other").unwrap();
    let link = format!("link add mv0 link eth0 netns {} type macvlan mode bridge", other.name());
    if let Err(error) = world.server.ip(&link) {
        guard_tests::skip::skip("netns_forward a_macvlan_elsewhere", &error.to_string());
        return;
    }
    other.ip("address add 192.0.2.77/24 dev mv0\nlink set mv0 up\nroute add default via 192.0.2.1\n").unwrap();
    let echo = Echo::udp(&world.intruder, world.intruder.v4.into(), 9001).unwrap();
    udp_reaches(&other, echo.address, PASSES).unwrap();
    let _guard = Guard::start(&world, &policy("", OUT)).unwrap();
    let before = echo.reached();
    assert!(udp_reaches(&other, echo.address, NOTHING).is_err());
    assert_eq!(echo.reached(), before, "it left by the macvlan");
}

#[test]
fn a_moved_interface_stays_guarded() {
    let Some(world) = new_world("netns_forward a_moved_interface") else { return };
    let other = world.namespace("elsewhere").unwrap();
    let echo = Echo::udp(&world.client, World::BACK_V4[1].into(), 9001).unwrap();
    udp_reaches(&world.server, echo.address, PASSES).unwrap();
    let _guard = Guard::start(&world, &policy("", OUT)).unwrap();
    world.server.ip(&format!("link set eth1 netns {}", other.name())).unwrap();
    other.ip(&format!("address add {}/25 dev eth1\nlink set eth1 up\n", World::BACK_V4[0])).unwrap();
    let before = echo.reached();
    let socket: SocketAddr = echo.address;
    assert!(udp_reaches(&other, socket, NOTHING * 2).is_err());
    assert_eq!(echo.reached(), before, "it left from another namespace");
}
