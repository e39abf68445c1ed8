//! Frames that no ordinary program sends, each refused under its own reason, in both directions: a witness outside sees
//! none of those that leave.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
};

use guard_tests::{
    echo::{Echo, udp_reaches, udp_socket},
    flows::{NOTHING, PASSES},
    frame::{ACK, FIN, ICMP, ICMPV6, Ipv4Fields, SYN, TCP, UDP, ethernet, ethernet_ip, icmp, ip, ipv4, ipv6, tcp, udp},
    guard::Guard,
    new_world,
    witness::{Witness, send_frame},
    world::{Host, World},
};

const POLICY: &str = "version: 1\nname: wire\nmode: enforce\n\
    inbound:\n  - { name: in, from: any, services: [tcp/7000, udp/7000, ping] }\n\
    outbound:\n  - { name: out, to: any, services: [tcp/7000, udp/7000, ping] }\n";

/// One kind of frame, several of it where it takes several; the last one is what is refused.
struct Kind {
    reason: &'static str,
    what: &'static str,
    frames: Vec<Vec<u8>>,
}

/// Frames from one host to the other on the same link.
fn kinds(from: &Host, to: &Host) -> Vec<Kind> {
    let mut kinds = Vec::new();
    let (a4, b4, a6, b6) = (from.v4, to.v4, from.v6, to.v6);
    let frame = |packet: &[u8]| ethernet_ip(to.mac, from.mac, packet);
    let mut add = |reason, what, frames: Vec<Vec<u8>>| kinds.push(Kind { reason, what, frames });

    add("ethertype", "a local experiment's", vec![ethernet(to.mac, from.mac, 0x88b5, &[0; 50])]);
    add("ethertype", "LLC of no known kind", vec![ethernet(to.mac, from.mac, 46, &[0xaa; 46])]);
    add("essential_malformed", "ARP with a load", vec![ethernet(to.mac, from.mac, 0x0806, &arp(from, to, 100))]);

    let datagram = udp((a4.into(), 4000), (b4.into(), 7000), b"payload");
    let mut bad = ip(a4.into(), b4.into(), UDP, &datagram);
    bad[0] = 0x44;
    add("bad_ipv4", "a header of 16 bytes", vec![frame(&bad)]);
    let short = ip(a4.into(), b4.into(), UDP, &datagram);
    add("truncated", "shorter than it says", vec![frame(&short[..short.len() - 4])]);
    let route = Ipv4Fields { options: [&[131, 7, 4][..], &b4.octets(), &[0]].concat(), ..Ipv4Fields::default() };
    add("source_route", "a loose source route", vec![frame(&ipv4(a4, b4, UDP, &route, &datagram))]);

    let mut bad = ip(a6.into(), b6.into(), UDP, &datagram);
    bad[0] = 0x50;
    add("bad_ipv6", "version 5", vec![ethernet(to.mac, from.mac, 0x86dd, &bad)]);
    let routing = [&[UDP, 2, 0, 1, 0, 0, 0, 0][..], &b6.octets()].concat();
    add("source_route", "a routing header", vec![frame(&ipv6(a6, b6, 43, 64, &[&routing[..], &datagram].concat()))]);
    let options: Vec<u8> = (0..12).flat_map(|n| [if n == 11 { UDP } else { 60 }, 0, 1, 4, 0, 0, 0, 0]).collect();
    add("extension_chain", "twelve headers", vec![frame(&ipv6(a6, b6, 60, 64, &[&options[..], &datagram].concat()))]);

    for (a, b) in [(IpAddr::V4(a4), IpAddr::V4(b4)), (a6.into(), b6.into())] {
        let v6 = a.is_ipv6();
        let segment = |flags, port| tcp((a, 4001), (b, port), flags, 1, 0, b"");
        add("bad_transport", "SYN and FIN", vec![frame(&ip(a, b, TCP, &segment(SYN | FIN, 7000)))]);
        let mut offset = segment(SYN, 7000);
        offset[12] = 4 << 4;
        add("bad_transport", "a TCP header of 16 bytes", vec![frame(&ip(a, b, TCP, &offset))]);
        let mut length = udp((a, 4001), (b, 7000), b"1234");
        length[5] = 7;
        add("bad_transport", "a UDP length of 7", vec![frame(&ip(a, b, UDP, &length))]);
        add("no_handshake", "SYN and ACK to nobody", vec![frame(&ip(a, b, TCP, &segment(SYN | ACK, 7000)))]);
        add("not_listed", "a bare ACK", vec![frame(&ip(a, b, TCP, &segment(ACK, 7777)))]);
        for protocol in [4, 41, 47, 50, 132, 136, 253] {
            add("not_listed", "another protocol", vec![frame(&ip(a, b, protocol, &[7; 40]))]);
        }

        let whole = udp((a, 4002), (b, 7000), &[7; 1200]);
        let other = udp((a, 4002), (b, 7001), &[7; 1200]);
        let fragment = |id, offset: usize, more, payload: &[u8], protocol| {
            frame(&match (a, b) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    let fragment = u16::from(more) << 13 | (offset / 8) as u16;
                    ipv4(a, b, protocol, &Ipv4Fields { id, fragment, ..Ipv4Fields::default() }, payload)
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    let mut header = vec![protocol, 0];
                    header.extend((offset as u16 | u16::from(more)).to_be_bytes());
                    header.extend(u32::from(id).to_be_bytes());
                    header.extend(payload);
                    ipv6(a, b, 44, 64, &header)
                }
                _ => unreachable!("one family"),
            })
        };
        add("fragment_no_first", "a later fragment alone", vec![fragment(101, 800, false, &whole[800..], UDP)]);
        let tiny = segment(SYN, 7000);
        add("fragment_tiny", "8 bytes of TCP", vec![fragment(102, 0, true, &tiny[..8], TCP)]);
        add("fragment_tiny", "over the TCP header", vec![fragment(103, 8, false, &tiny[8..16], TCP)]);
        let first = fragment(104, 0, true, &whole[..800], UDP);
        add("fragment_conflict", "two firsts", vec![first, fragment(104, 0, true, &other[..800], UDP)]);
        // Not a reason of its own: it gets that of its first.
        let first = fragment(105, 0, true, &other[..800], UDP);
        add("not_listed", "what follows a denied first", vec![first, fragment(105, 800, false, &other[800..], UDP)]);

        let (redirect, unreachable, reply, protocol) = if v6 { (137, 1, 129, ICMPV6) } else { (5, 3, 0, ICMP) };
        let quoted = ip(b, a, UDP, &udp((b, 5353), (a, 9999), b"x"));
        let with = |kind, code, rest: &[u8]| frame(&ip(a, b, protocol, &icmp(a, b, kind, code, rest)));
        let moved = match a {
            IpAddr::V4(a) => [&a.octets()[..], &quoted].concat(),
            IpAddr::V6(a) => [&[0; 4][..], &a.octets(), &a.octets()].concat(),
        };
        add("icmp_redirect", "a redirect", vec![with(redirect, 0, &moved)]);
        let error = with(unreachable, 1, &[&[0; 4][..], &quoted].concat());
        add("icmp_error_unknown", "an error about nothing", vec![error]);
        add("icmp_answer_unknown", "an answer to nothing", vec![with(reply, 0, &[0x55, 0x55, 0, 1, 9, 9, 9, 9])]);
    }
    // Neighbour discovery that came from further away than the link.
    let solicitation = icmp(a6.into(), b6.into(), 135, 0, &[&[0; 4][..], &b6.octets()].concat());
    add("essential_malformed", "hop limit 64", vec![frame(&ipv6(a6, b6, ICMPV6, 64, &solicitation))]);
    let loaded = [&[0; 4][..], &b6.octets(), &[253, 2], &[b'!'; 14]].concat();
    let loaded = icmp(a6.into(), b6.into(), 135, 0, &loaded);
    add("essential_malformed", "an unknown option", vec![frame(&ipv6(a6, b6, ICMPV6, 255, &loaded))]);
    kinds
}

fn arp(from: &Host, to: &Host, length: usize) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, 2];
    message.extend(from.mac);
    message.extend(from.v4.octets());
    message.extend(to.mac);
    message.extend(to.v4.octets());
    message.resize(length, 0x55);
    message
}

const TIMES: u64 = 3;

#[test]
fn what_cannot_be_judged_is_refused_under_its_own_reason() {
    let Some(world) = new_world("netns_wire what_cannot_be_judged") else { return };
    // Outbound ones are sent by a packet socket on the guarded host: through tc egress, past its IP stack.
    let ways = [(false, &world.client, &world.server), (true, &world.server, &world.client)];
    {
        let witness = Witness::start(&world.router, World::WIRE).unwrap();
        for kind in kinds(&world.server, &world.client) {
            let frame = kind.frames.last().unwrap();
            send_frame(&world.server, "eth0", frame).unwrap();
            let mut patience = 200;
            while witness.frames(|seen| !seen.outgoing && seen.frame == *frame).is_empty() {
                patience -= 1;
                assert!(patience > 0, "without guard, {} leaves", kind.what);
                thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }

    let guard = Guard::start(&world, POLICY).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    let mut wrong = Vec::new();
    for (outbound, from, to) in ways {
        let direction = if outbound { "outbound" } else { "inbound" };
        for kind in kinds(from, to) {
            let before = guard.packets(kind.reason, direction, true).unwrap();
            for _ in 0..TIMES {
                for frame in &kind.frames {
                    // Inbound by the link without a bridge, which may look at IP headers too.
                    let sent = send_frame(from, if outbound { "eth0" } else { "eth1" }, frame);
                    // What is dropped on its way out is gone without a word to its sender.
                    assert!(sent.is_ok(), "{}: {sent:?}", kind.what);
                }
            }
            thread::sleep(NOTHING / 20);
            let after = guard.packets(kind.reason, direction, true).unwrap();
            if after < before + TIMES {
                wrong.push(format!("{direction} {}: {} counted {}", kind.what, kind.reason, after - before));
            }
            if outbound {
                let refused = kind.frames.last().unwrap();
                let left = witness.frames(|seen| !seen.outgoing && seen.frame == *refused).len();
                if left > 0 {
                    wrong.push(format!("{left} of {} ({}) left", kind.what, kind.reason));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{:#}", guard.status().unwrap()["reasons"]);
    assert_eq!(witness.lost().unwrap(), 0);

    // Packets without a flow are told too, at most one a second and reason.
    let records = guard.wait_records(|record| record["guard"]["event"] == "packet").unwrap();
    let mut by_reason = BTreeMap::new();
    for record in &records {
        let key = format!("{} {}", record["guard"]["reason"], record["guard"]["direction"]);
        *by_reason.entry(key).or_insert(0) += 1;
    }
    assert!(by_reason.len() >= 20, "{by_reason:#?}");
}

/// What the socket layer cannot see: a datagram of a connected socket, of a process that is in no guarded cgroup.
#[test]
fn a_sender_is_not_told_that_the_wire_drops() {
    let Some(world) = new_world("netns_wire a_sender_is_not_told") else { return };
    let sender = |to: IpAddr| {
        let any: IpAddr = if to.is_ipv6() { [0_u16; 8].into() } else { [0_u8; 4].into() };
        let socket = world.server.run(|| UdpSocket::bind((any, 0))).unwrap();
        // Without it, Linux hides from a sender what happens to its datagrams.
        let set = if to.is_ipv6() {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6RecvErr, &true)
        } else {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4RecvErr, &true)
        };
        set.unwrap();
        socket.connect((to, 7777)).unwrap();
        socket
    };
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    let left = |packet: &guard_tests::frame::Packet| packet.protocol == UDP && packet.destination_port == 7777;
    for ipv6 in [false, true] {
        sender(world.client.address(ipv6)).send(b"without guard").unwrap();
        assert!(witness.waits_for(PASSES, |packet| left(packet) && packet.destination.is_ipv6() == ipv6));
    }
    let guard = Guard::start(&world, POLICY).unwrap();
    witness.forget();
    for ipv6 in [false, true] {
        let before = guard.packets("not_listed", "outbound", true).unwrap();
        let socket = sender(world.client.address(ipv6));
        for _ in 0..TIMES {
            assert_eq!(socket.send(b"denied").unwrap(), 6, "neither an error now");
        }
        socket.set_read_timeout(Some(NOTHING)).unwrap();
        let error = socket.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "nor one later");
        assert_eq!(guard.packets("not_listed", "outbound", true).unwrap(), before + TIMES, "but each is counted");
    }
    assert_eq!(witness.count(left), 0);
    assert_eq!(witness.lost().unwrap(), 0);
}

#[test]
fn fragments_follow_their_first() {
    let Some(world) = new_world("netns_wire fragments_follow_their_first") else { return };
    let mut echoes = Vec::new();
    for ipv6 in [false, true] {
        for port in [7000, 7001] {
            echoes.push(Echo::udp(&world.server, world.server.address(ipv6), port).unwrap());
            echoes.push(Echo::udp(&world.responder, world.responder.address(ipv6), port).unwrap());
        }
    }
    let large = vec![b'x'; 9000];
    let there_and_back = |place: &guard_tests::world::Inside, to: SocketAddr, limit| -> bool {
        let socket = udp_socket(place, to.is_ipv6(), limit).unwrap();
        let mut back = vec![0; 10_000];
        // Refused by the socket layer, it is told at once.
        socket.send_to(&large, to).is_ok() && socket.recv(&mut back).is_ok_and(|length| back[..length] == large)
    };
    for echo in &echoes {
        let place = if echo.address.ip() == world.server.address(echo.address.is_ipv6()) {
            &world.responder
        } else {
            &world.server
        };
        assert!(there_and_back(place, echo.address, PASSES), "without guard: {}", echo.address);
    }
    let guard = Guard::start(&world, POLICY).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    for echo in &echoes {
        let inbound = echo.address.ip() == world.server.address(echo.address.is_ipv6());
        let place = if inbound { &world.responder } else { &world.server };
        let listed = echo.address.port() == 7000;
        let passed = there_and_back(place, echo.address, if listed { PASSES } else { NOTHING });
        assert_eq!(passed, listed, "{}", echo.address);
    }
    for direction in ["inbound", "outbound"] {
        // Four requests and four answers of 9,000 bytes, each six or seven later fragments.
        assert!(guard.packets("fragment", direction, false).unwrap() >= 20, "{direction}");
    }
    // No later fragment of what is not listed left: those seen are of the four that are.
    let later = witness.count(|packet| packet.protocol == UDP && packet.fragment_offset > 0);
    assert!((20..=28).contains(&later), "{later} later fragments left");
}

#[test]
fn icmp_errors_about_known_flows_pass() {
    let Some(world) = new_world("netns_wire icmp_errors_about_known_flows") else { return };
    let _echoes: Vec<Echo> = [false, true]
        .map(|ipv6| Echo::tcp(&world.intruder, world.intruder.address(ipv6), 7000).unwrap())
        .into_iter()
        .collect();
    // Narrower beyond the router, which has to tell the server so.
    world.router.ip("link set intruder0 mtu 1300").unwrap();
    let transfer = |ipv6: bool, limit| -> std::io::Result<()> {
        use std::io::{Read, Write};
        let to = SocketAddr::from((world.intruder.address(ipv6), 7000));
        let mut stream = guard_tests::echo::connect(&world.server, to, limit)?;
        let data = vec![b'y'; 60_000];
        stream.write_all(&data)?;
        let mut back = vec![0; data.len()];
        stream.read_exact(&mut back)
    };
    let forget = || {
        world.server.ip("route flush cache").unwrap();
        let mut v6 = std::process::Command::new("ip");
        let v6 = v6.args(["-6", "-n", world.server.name(), "route", "flush", "cache"]).status().unwrap();
        assert!(v6.success());
    };
    // Without them, a connection hangs: what shows that this test can fail.
    let off = format!("{POLICY}essentials: {{ icmp_errors: false }}\n");
    let guard = Guard::start(&world, &off).unwrap();
    for ipv6 in [false, true] {
        assert!(transfer(ipv6, PASSES / 5).is_err(), "without path MTU, IPv6: {ipv6}");
    }
    assert!(guard.packets("essential_off", "inbound", true).unwrap() >= 2);
    let done = guard.reload(POLICY, &[]).unwrap();
    assert!(done.good(), "{}", done.text());
    forget();
    for ipv6 in [false, true] {
        transfer(ipv6, PASSES).unwrap_or_else(|error| panic!("IPv6 {ipv6}: {error}"));
    }
    assert!(guard.packets("icmp_error", "inbound", false).unwrap() >= 2);

    // Outbound: nobody listens on a port that is listed, and whoever asked is told.
    for ipv6 in [false, true] {
        let any: IpAddr = world.client.address(ipv6);
        let socket = world.client.run(|| UdpSocket::bind((any, 0))).unwrap();
        socket.connect((world.server.address(ipv6), 7000)).unwrap();
        socket.set_read_timeout(Some(PASSES)).unwrap();
        socket.send(b"anybody there?").unwrap();
        let error = socket.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "IPv6 {ipv6}");
    }
    assert!(guard.packets("icmp_error", "outbound", false).unwrap() >= 2);
}

#[test]
fn neighbours_are_found_again() {
    let Some(world) = new_world("netns_wire neighbours_are_found_again") else { return };
    let echoes: Vec<Echo> = [false, true]
        .map(|ipv6| Echo::udp(&world.client, world.client.address(ipv6), 7000).unwrap())
        .into_iter()
        .collect();
    let forget = || {
        for host in [&world.server, &world.client] {
            for interface in ["eth0", "eth1"] {
                host.ip(&format!("neigh flush dev {interface}")).unwrap();
            }
        }
    };
    let off = format!("{POLICY}essentials: {{ arp: false, neighbour_discovery: false }}\n");
    let guard = Guard::start(&world, &off).unwrap();
    forget();
    for echo in &echoes {
        assert!(udp_reaches(&world.server, echo.address, NOTHING).is_err(), "without neighbours: {}", echo.address);
    }
    let done = guard.reload(POLICY, &[]).unwrap();
    assert!(done.good(), "{}", done.text());
    for _ in 0..2 {
        forget();
        for echo in &echoes {
            let reached = udp_reaches(&world.server, echo.address, PASSES);
            assert!(reached.is_ok(), "{}: {reached:?}\n{:#}", echo.address, guard.status().unwrap()["reasons"]);
        }
        // And whoever looks for us finds us.
        forget();
        for ipv6 in [false, true] {
            guard_tests::flows::ping(&world.client, world.server.address(ipv6), PASSES).unwrap();
        }
    }
    for direction in ["inbound", "outbound"] {
        for reason in ["arp", "neighbour_discovery"] {
            assert!(guard.packets(reason, direction, false).unwrap() >= 2, "{reason} {direction}");
        }
    }
}

#[test]
fn a_lease_is_had_and_kept_by_dhcp() {
    let Some(world) = new_world("netns_wire a_lease_is_had") else { return };
    let client = |limit: &str| {
        let mut command = world.server.command("busybox");
        // One try of so many packets; the script would configure the interface, and need not.
        command.args(["udhcpc", "-i", "eth1", "-n", "-q", "-f", "-B", "-t", limit, "-T", "1", "-s", "/bin/true"]);
        guard_tests::process::run(&mut command, PASSES * 3)
    };
    if client("1").is_err() {
        guard_tests::skip::skip("netns_wire a_lease_is_had", "busybox (udhcpc) is not installed");
        return;
    }
    let lease_file = format!("--dhcp-leasefile={}", world.dir().join("leases").display());
    let range = "--dhcp-range=198.51.100.140,198.51.100.160,1h";
    let arguments = ["--port=0", "--interface=eth1", "--bind-interfaces", "--dhcp-authoritative", range, &lease_file];
    let dnsmasq = guard_tests::servers::dnsmasq(&world.client, world.dir(), &arguments).unwrap();
    let mut leased = client("3").unwrap();
    for _ in 0..3 {
        if !leased.good() {
            leased = client("3").unwrap();
        }
    }
    assert!(
        leased.good() && leased.text().contains("198.51.100.1"),
        "without guard: {}{}",
        leased.text(),
        dnsmasq.output()
    );

    let off = format!("{POLICY}essentials: {{ dhcp: false }}\n");
    let guard = Guard::start(&world, &off).unwrap();
    assert!(!client("2").unwrap().good(), "switched off");
    assert!(guard.packets("essential_off", "outbound", true).unwrap() >= 2);
    let done = guard.reload(POLICY, &[]).unwrap();
    assert!(done.good(), "{}", done.text());
    let leased = client("3").unwrap();
    assert!(leased.good(), "{}\n{:#}", leased.text(), guard.status().unwrap()["reasons"]);
    for direction in ["inbound", "outbound"] {
        assert!(guard.packets("dhcpv4", direction, false).unwrap() >= 2, "{direction}");
    }
}
