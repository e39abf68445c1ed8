//! `on_deny`: what those behind this host are told when their packet is not passed on. Containers here are namespaces behind
//! a bridge, translated (IPv4) or routed (IPv6), as every runtime makes them.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use guard_tests::{
    echo::{Echo, connect, speaks, tcp_reaches, udp_socket},
    flows::{NOTHING, PASSES},
    frame::{ICMP, ICMPV6, TCP},
    guard::Guard,
    new_world,
    process::run,
    witness::Witness,
    world::{Namespace, World},
};

const INSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 194);
const INSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x5, 0, 0, 0, 0, 2);

/// Of `curl`: refused, and not later than this.
const AT_ONCE: Duration = Duration::from_millis(1000);

fn policy(outbound: &str, on_deny: &str) -> String {
    format!("version: 1\nname: behind\nmode: enforce\non_deny: {on_deny}\ninbound: []\noutbound: [{outbound}]\n")
}

const LISTED: &str = "{ name: out, to: any, services: [tcp/9000, udp/9000] }";

/// A namespace on a bridge of the server, which translates what it sends over IPv4.
fn container(world: &World) -> Namespace {
    let container = world.namespace("container").unwrap();
    world.server.sysctl("ipv4/ip_forward", "1").unwrap();
    world.server.sysctl("ipv6/conf/all/forwarding", "1").unwrap();
    world
        .server
        .ip(&format!(
            "link add docker0 type bridge\naddress add 192.0.2.193/28 dev docker0\n\
             address add 2001:db8:5::1/64 dev docker0 nodad\nlink set docker0 up\n\
             link add veth1 type veth peer name eth0 netns {}\nlink set veth1 master docker0\nlink set veth1 up\n",
            container.name()
        ))
        .unwrap();
    container
        .ip(&format!(
            "address add {INSIDE_V4}/28 dev eth0\naddress add {INSIDE_V6}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via 192.0.2.193\nroute add default via 2001:db8:5::1\n"
        ))
        .unwrap();
    world.router.ip("route add 2001:db8:5::/64 via 2001:db8:2::10\n").unwrap();
    let mut nft = world.operator.command("nft");
    nft.arg(
        "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; \
         add rule ip nat post oifname eth0 ip saddr 192.0.2.192/28 masquerade",
    );
    let set = run(&mut nft, PASSES).unwrap();
    assert!(set.good(), "{}", set.text());
    container
}

fn echoes(world: &World, port: u16) -> Vec<Echo> {
    [false, true].into_iter().map(|v6| Echo::tcp(&world.intruder, world.intruder.address(v6), port).unwrap()).collect()
}

/// What a datagram to nobody's port there is answered with, within a second.
fn udp_error(place: &Namespace, to: SocketAddr) -> std::io::Result<()> {
    let socket = udp_socket(place, to.is_ipv6(), AT_ONCE)?;
    socket.connect(to)?;
    socket.send(b"anybody there?")?;
    socket.recv(&mut [0; 64]).map(drop)
}

#[test]
fn a_denied_container_is_told_at_once_and_nobody_outside_is() {
    let Some(world) = new_world("netns_on_deny a_denied_container_is_told_at_once") else { return };
    let container = container(&world);
    let (listed, unlisted) = (echoes(&world, 9000), echoes(&world, 9001));
    for echo in listed.iter().chain(&unlisted) {
        tcp_reaches(&container, echo.address, PASSES).unwrap_or_else(|error| panic!("{}: {error}", echo.address));
    }
    let guard = Guard::start(&world, &policy(LISTED, "{ outbound: reject }")).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    for (listed, unlisted) in listed.iter().zip(&unlisted) {
        tcp_reaches(&container, listed.address, PASSES).unwrap();
        let start = Instant::now();
        let error = tcp_reaches(&container, unlisted.address, PASSES).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{}: {error}", unlisted.address);
        assert!(start.elapsed() < AT_ONCE, "{}: {:?}", unlisted.address, start.elapsed());
        let error = udp_error(&container, unlisted.address).unwrap_err();
        let told = [libc::EHOSTUNREACH, libc::EACCES, libc::ECONNREFUSED];
        assert!(error.raw_os_error().is_some_and(|code| told.contains(&code)), "{}: {error}", unlisted.address);
    }
    for address in [false, true].map(|v6| world.intruder.address(v6).to_string()) {
        let ping = run(container.command("ping").args(["-c1", "-W2", &address]), PASSES).unwrap();
        let text = ping.text();
        assert!(!ping.good() && (text.contains("prohibited") || text.contains("Packet filtered")), "{text}");
    }
    let status = guard.status().unwrap();
    assert_eq!(status["rejected"]["resets"], 2, "{:#}", status["rejected"]);
    assert_eq!(status["rejected"]["prohibited"], 4, "{:#}", status["rejected"]);
    assert_eq!(status["rejected"]["withheld"], 0);
    assert_eq!(status["enforcing"], true);
    let screen = guard.ask("status", &[]).unwrap();
    assert!(screen.stdout.contains("containers told at once: 2 by TCP reset, 4 by ICMP"), "{}", screen.text());
    let outside = [world.intruder.address(false), world.intruder.address(true)];
    assert_eq!(
        witness.count(|packet| {
            let leaves = outside.contains(&packet.destination);
            leaves && (packet.destination_port == 9001 || matches!(packet.protocol, ICMP | ICMPV6))
        }),
        0,
        "neither the packet nor its answer left"
    );
    // This host's own programs are told by the socket layer, as ever.
    let said = guard_tests::agent::ask(&world.server, &["connect", "tcp", &unlisted[0].address.to_string()]).unwrap();
    assert!(said.refused(), "{said:?}");
}

#[test]
fn a_session_that_is_cut_is_reset_and_a_drop_says_nothing() {
    let Some(world) = new_world("netns_on_deny a_session_that_is_cut_is_reset") else { return };
    let container = container(&world);
    let echoes = echoes(&world, 9000);
    let guard = Guard::start(&world, &policy(LISTED, "{}")).unwrap();
    let mut sessions: Vec<_> = echoes.iter().map(|echo| connect(&container, echo.address, PASSES).unwrap()).collect();
    for session in &mut sessions {
        speaks(session).unwrap();
    }
    // A change that nobody confirms costs no session.
    let done = guard.reload(&policy("", "{}"), &["--confirm-within", "5s"]).unwrap();
    assert!(done.good(), "{}", done.text());
    for echo in &echoes {
        assert_eq!(tcp_reaches(&container, echo.address, NOTHING).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    for session in &mut sessions {
        session.set_read_timeout(Some(PASSES * 4)).unwrap();
        speaks(session).unwrap();
    }
    guard.status_until(PASSES, |status| status["deadline"].is_null()).unwrap();
    let done = guard.reload(&policy("", "{}"), &[]).unwrap();
    assert!(done.good(), "{}", done.text());
    for session in &mut sessions {
        // The reset answers the first byte that is sent.
        let _ = session.write_all(b"x");
        let error = session.read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    let done = guard.reload(&policy("", "{ inbound: drop, outbound: drop }"), &[]).unwrap();
    assert!(done.good(), "{}", done.text());
    let before = guard.status().unwrap()["rejected"].clone();
    for echo in &echoes {
        let error = tcp_reaches(&container, echo.address, NOTHING).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    }
    assert_eq!(guard.status().unwrap()["rejected"], before);
}

/// From one guarded interface to another: both are outside.
#[test]
fn a_router_tells_nobody_outside() {
    let Some(world) = new_world("netns_on_deny a_router_tells_nobody_outside") else { return };
    world.server.sysctl("ipv4/ip_forward", "1").unwrap();
    world
        .client
        .ip(&format!("route add 203.0.113.9/32 via {} dev eth1 src {}\n", World::BACK_V4[0], World::BACK_V4[1]))
        .unwrap();
    world.router.ip("route add 198.51.100.128/25 via 192.0.2.10\n").unwrap();
    let echo = Echo::tcp(&world.intruder, world.intruder.v4.into(), 9000).unwrap();
    tcp_reaches(&world.client, echo.address, PASSES).unwrap();
    let policy =
        "version: 1\nname: router\nmode: enforce\ninbound: [{ from: any, services: tcp/9000 }]\noutbound: []\n";
    let guard = Guard::start(&world, policy).unwrap();
    let witness = Witness::start(&world.client, "eth1").unwrap();
    let error = tcp_reaches(&world.client, echo.address, NOTHING).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    let towards: IpAddr = World::BACK_V4[1].into();
    assert_eq!(witness.count(|packet| packet.destination == towards && matches!(packet.protocol, TCP | ICMP)), 0);
    assert_eq!(guard.status().unwrap()["rejected"]["resets"], 0);
}

/// Whoever floods is told a bounded number of times, and the rest is counted.
#[test]
fn answers_are_limited() {
    let Some(world) = new_world("netns_on_deny answers_are_limited") else { return };
    let container = container(&world);
    let guard = Guard::start(&world, &policy("", "{}")).unwrap();
    let to: SocketAddr = (world.intruder.v4, 9001).into();
    let start = Instant::now();
    let socket = udp_socket(&container, false, NOTHING).unwrap();
    let sent = 20_000;
    for _ in 0..sent {
        // An error that came back for an earlier one is told here.
        let _ = socket.send_to(b"x", to);
    }
    let seconds = start.elapsed().as_secs() + 2;
    let rejected = guard.status().unwrap()["rejected"].clone();
    let (told, withheld) = (rejected["prohibited"].as_u64().unwrap(), rejected["withheld"].as_u64().unwrap());
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(told > 0 && told <= guard_common::abi::Rejects::PER_SECOND * cpus * seconds, "{rejected} in {seconds} s");
    assert!(withheld > 0 && told + withheld <= sent, "{rejected}");
}
