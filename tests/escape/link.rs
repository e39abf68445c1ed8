//! What is below IP, or is needed on a link: tags, unknown types, and the essentials as a cover.

use guard_tests::frame::{ICMPV6, UDP, ethernet, icmp, ip, ipv6, udp};

use crate::{
    attempt::{Act, Attempt, Direction, Expected},
    frames::Ends,
    mark::{Mark, Sign, at},
    victim,
};

const BROADCAST: [u8; 6] = [0xff; 6];

fn row(what: &str, frame: impl Fn(&Mark) -> Vec<u8> + 'static) -> Attempt {
    Attempt::out(what, Act::FramesOut(Box::new(move |mark| vec![frame(mark)])))
}

pub fn all() -> Vec<Attempt> {
    let mut all = Vec::new();
    types(&mut all);
    tags(&mut all);
    essentials(&mut all);
    groups(&mut all);
    all
}

fn types(all: &mut Vec<Attempt>) {
    let kinds: &[(u16, &str, [u8; 6])] = &[
        (0x88b5, "a local experimental type", at::ROUTER_MAC),
        (0x0842, "wake on LAN", BROADCAST),
        (0x22f0, "AVTP", [0x91, 0xe0, 0xf0, 0, 1, 0]),
        (0x8035, "RARP", BROADCAST),
        (0x809b, "AppleTalk", at::ROUTER_MAC),
        (0x8137, "IPX", BROADCAST),
        (0x8808, "a pause frame", [1, 0x80, 0xc2, 0, 0, 1]),
        (0x8847, "MPLS", at::ROUTER_MAC),
        (0x8848, "MPLS multicast", at::ROUTER_MAC),
        (0x8863, "PPPoE discovery", BROADCAST),
        (0x8864, "PPPoE session", at::ROUTER_MAC),
        (0x8892, "PROFINET", at::ROUTER_MAC),
        (0x88a2, "ATA over Ethernet", BROADCAST),
        (0x88ca, "TIPC", BROADCAST),
        (0x88cc, "LLDP", [1, 0x80, 0xc2, 0, 0, 0xe]),
        (0x88e1, "HomePlug", BROADCAST),
        (0x88e5, "MACsec", at::ROUTER_MAC),
        (0x88f7, "PTP", [1, 0x1b, 0x19, 0, 0, 0]),
        (0x8902, "CFM", at::ROUTER_MAC),
        (0x8906, "FCoE", at::ROUTER_MAC),
        (0x8914, "FIP", at::ROUTER_MAC),
        (0x8915, "RoCE", at::ROUTER_MAC),
        (0x892f, "HSR", at::ROUTER_MAC),
        (0x9000, "Ethernet loopback", at::ROUTER_MAC),
        (0x4305, "batman-adv", BROADCAST),
        (0xfffe, "the last type", at::ROUTER_MAC),
        (0x0600, "the first type", at::ROUTER_MAC),
    ];
    for &(kind, label, to) in kinds {
        all.push(row(&format!("frame of {label} ({kind:#06x})"), move |mark| {
            ethernet(
                to,
                at::SERVER_MAC,
                kind,
                &[&[0x11, 0, 0, 0, 0, 20][..], mark.text().as_bytes(), &[0; 26]].concat(),
            )
        }));
    }
    let llc = |length: u16, head: &'static [u8]| {
        move |mark: &Mark| {
            let body = [head, mark.text().as_bytes(), &[0; 40]].concat();
            ethernet(at::ROUTER_MAC, at::SERVER_MAC, length, &body)
        }
    };
    all.push(row("LLC frame", llc(40, &[0xe0, 0xe0, 3])));
    all.push(row("LLC frame, raw 802.3", llc(40, &[0xff, 0xff])));
    all.push(row("LLC frame of length 0", llc(0, &[0xaa, 0xaa, 3])));
    all.push(row("LLC frame longer than it says", llc(3, &[0x42, 0x43, 3])));
    all.push(row("SNAP frame (CDP)", llc(40, &[0xaa, 0xaa, 3, 0, 0, 0xc, 0x20, 0])));
    all.push(row("SNAP frame with IPv4 in it", move |mark| {
        let ends = Ends::new(Direction::Out, false);
        let packet = ip(ends.from, ends.to, UDP, &ends.datagram(mark));
        let body = [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &packet].concat();
        ethernet(at::ROUTER_MAC, at::SERVER_MAC, body.len() as u16, &body)
    }));
    for (label, kind, ipv6) in [("IPv6 in a frame of IPv4", 0x0800, true), ("IPv4 in a frame of IPv6", 0x86dd, false)] {
        all.push(row(label, move |mark| {
            let ends = Ends::new(Direction::Out, ipv6);
            ethernet(at::ROUTER_MAC, at::SERVER_MAC, kind, &ip(ends.from, ends.to, UDP, &ends.datagram(mark)))
        }));
    }
    for version in [0u8, 5, 7, 15] {
        all.push(row(&format!("IP of version {version}"), move |mark| {
            let ends = Ends::new(Direction::Out, false);
            let mut packet = ip(ends.from, ends.to, UDP, &ends.datagram(mark));
            packet[0] = version << 4 | 5;
            ethernet(at::ROUTER_MAC, at::SERVER_MAC, 0x0800, &packet)
        }));
    }
    all.push(row("IPv4 whose header says 4 words", |mark| {
        let ends = Ends::new(Direction::Out, false);
        let mut packet = ip(ends.from, ends.to, UDP, &ends.datagram(mark));
        packet[0] = 0x44;
        ethernet(at::ROUTER_MAC, at::SERVER_MAC, 0x0800, &packet)
    }));
    all.push(row("IPv4 that is shorter than it says", |mark| {
        let ends = Ends::new(Direction::Out, false);
        let mut packet = ip(ends.from, ends.to, UDP, &ends.datagram(mark));
        packet[2..4].copy_from_slice(&1000u16.to_be_bytes());
        ethernet(at::ROUTER_MAC, at::SERVER_MAC, 0x0800, &packet)
    }));
}

/// VLAN tags, with IPv4 and IPv6 in them, outbound and (priority tags) inbound.
fn tags(all: &mut Vec<Attempt>) {
    let kinds: &[(&str, &[(u16, u16)])] = &[
        ("a VLAN tag", &[(0x8100, 5)]),
        ("a priority tag", &[(0x8100, 0)]),
        ("a service tag", &[(0x88a8, 5)]),
        ("an old double tag", &[(0x9100, 5)]),
        ("QinQ", &[(0x88a8, 5), (0x8100, 6)]),
        ("two VLAN tags", &[(0x8100, 5), (0x8100, 6)]),
        ("three VLAN tags", &[(0x8100, 5), (0x8100, 6), (0x8100, 7)]),
        ("a tag of type 0x9200", &[(0x9200, 5)]),
    ];
    for ipv6 in [false, true] {
        for &(label, tags) in kinds {
            all.push(row(&format!("v{} udp with {label}", if ipv6 { 6 } else { 4 }), move |mark| {
                let ends = Ends::new(Direction::Out, ipv6);
                tagged(&ends.ip(UDP, &ends.datagram(mark)), tags)
            }));
        }
        let what = format!("v{} udp with a priority tag", if ipv6 { 6 } else { 4 });
        all.push(Attempt::into_host(
            what,
            Act::FramesIn(Box::new(move |mark| {
                let ends = Ends::new(Direction::In, ipv6);
                vec![tagged(&ends.ip(UDP, &ends.datagram(mark)), &[(0x8100, 0)])]
            })),
        ));
    }
    all.push(row("an unknown type with a VLAN tag", |mark| {
        tagged(&ethernet(at::ROUTER_MAC, at::SERVER_MAC, 0x88b5, mark.text().as_bytes()), &[(0x8100, 5)])
    }));
}

fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tags: Vec<u8> = tags.iter().flat_map(|(kind, tag)| [kind.to_be_bytes(), tag.to_be_bytes()].concat()).collect();
    [&frame[..12], &tags, &frame[12..]].concat()
}

/// Frames that look like what a host needs, with something more in them.
fn essentials(all: &mut Vec<Attempt>) {
    fn arp(operation: u8, target: [u8; 4], tail: &[u8]) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        let body = [&head[..], &at::SERVER_MAC, &at::SERVER_V4.octets(), &[0; 6], &target, tail].concat();
        ethernet(BROADCAST, at::SERVER_MAC, 0x0806, &body)
    }
    all.push(row("ARP with data behind it, longer than the shortest frame", |mark| {
        arp(1, [192, 0, 2, 1], &[mark.text().as_bytes(), &[0; 40]].concat())
    }));
    all.push(row("ARP with data where the padding would be", |mark| arp(1, [192, 0, 2, 1], mark.text().as_bytes())));
    all.push(row("ARP answer with data behind it", |mark| {
        arp(2, [192, 0, 2, 1], &[mark.text().as_bytes(), &[0; 40]].concat())
    }));
    for (operation, label) in [(3, "reverse request"), (8, "inverse request"), (25, "unassigned operation")] {
        all.push(row(&format!("ARP {label}"), move |mark| arp(operation, [192, 0, 2, 1], mark.text().as_bytes())));
    }
    all.push(row("ARP for another kind of address", |mark| {
        let body = [&[0, 1, 0x88, 0xb5, 6, 14, 0, 1][..], &at::SERVER_MAC, mark.text().as_bytes(), &[0; 20]].concat();
        ethernet(BROADCAST, at::SERVER_MAC, 0x0806, &body)
    }));
    all.push(
        row("ARP whose target hardware address is the message", |mark| {
            let head = [0, 1, 8, 0, 6, 4, 0, 1];
            let word = [&mark.word().to_be_bytes()[..], &[0; 2]].concat();
            let body = [&head[..], &at::SERVER_MAC, &at::SERVER_V4.octets(), &word, &[192, 0, 2, 1]].concat();
            ethernet(BROADCAST, at::SERVER_MAC, 0x0806, &body)
        })
        .sign(Sign::Word)
        .expect(Expected::Allowed("a question of RFC 826's form: 6 bytes on the link, at most")),
    );
    for (label, kind, to) in [
        ("EAPOL to somebody else than the switch", 0x888e, at::CLIENT_MAC),
        ("LACP to somebody else than the switch", 0x8809, at::CLIENT_MAC),
    ] {
        all.push(row(label, move |mark| {
            let body = [&[1, 0, 0, 14][..], mark.text().as_bytes(), &[0; 28]].concat();
            ethernet(to, at::SERVER_MAC, kind, &body)
        }));
    }
    all.push(row("EAPOL longer than it says", |mark| {
        let body = [&[1, 1, 0, 0][..], mark.text().as_bytes(), &[0; 60]].concat();
        ethernet([1, 0x80, 0xc2, 0, 0, 3], at::SERVER_MAC, 0x888e, &body)
    }));
    all.push(row("LACP longer than it is", |mark| {
        let body = [&[1, 1][..], &[0; 120], mark.text().as_bytes()].concat();
        ethernet([1, 0x80, 0xc2, 0, 0, 2], at::SERVER_MAC, 0x8809, &body)
    }));
    all.push(row("spanning tree where no bridge runs it", |mark| {
        let body = [&[0x42, 0x42, 3, 0, 0, 0, 0][..], mark.text().as_bytes(), &[0; 18]].concat();
        ethernet([1, 0x80, 0xc2, 0, 0, 0], at::SERVER_MAC, 38, &body)
    }));
    neighbour_discovery(all);
    dhcp(all);
}

fn neighbour_discovery(all: &mut Vec<Attempt>) {
    const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    let group = |last: u16| std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, last);
    let message = move |to: std::net::Ipv6Addr, hops: u8, kind: u8, rest: &[u8]| {
        let from = at::SERVER_V6;
        let message = icmp(from.into(), to.into(), kind, 0, rest);
        ethernet(ALL_NODES, at::SERVER_MAC, 0x86dd, &ipv6(from, to, ICMPV6, hops, &message))
    };
    let solicit = |options: &[u8]| [&[0; 4][..], &at::CLIENT_V6.octets(), options].concat();
    // Hop limit, type, and options around the text.
    type Options = fn(&[u8]) -> Vec<u8>;
    let rows: Vec<(&str, u8, u8, Options)> = vec![
        ("with an option that is not known", 255, 135, |text| [&[253, 2][..], text].concat()),
        ("with data after its options", 255, 135, |text| [&[1, 1][..], &[0; 6], text].concat()),
        ("with a link-layer address that is too long", 255, 135, |text| [&[1, 5][..], text, &[0; 24]].concat()),
        ("with a nonce that is too long", 255, 135, |text| [&[14, 2][..], text].concat()),
        ("with an option of length 0", 255, 135, |text| [&[1, 0][..], text].concat()),
        ("that was passed on", 64, 135, |text| [&[1, 2][..], text].concat()),
    ];
    for (label, hops, kind, options) in rows {
        all.push(row(&format!("v6 neighbour discovery {label}"), move |mark| {
            message(group(1), hops, kind, &solicit(&options(mark.text().as_bytes())))
        }));
    }
    all.push(row("v6 listener report with auxiliary data", move |mark| {
        let record = [&[4, 4, 0, 0][..], &group(0x99).octets(), mark.text().as_bytes(), &[0; 2]].concat();
        message(group(0x16), 1, 143, &[&[0, 0, 0, 1][..], &record].concat())
    }));
    all.push(row("v6 listener report with data behind it", move |mark| {
        let record = [&[4, 0, 0, 0][..], &group(0x99).octets(), mark.text().as_bytes()].concat();
        message(group(0x16), 1, 143, &[&[0, 0, 0, 1][..], &record].concat())
    }));
    all.push(row("v6 listener report from a global address", move |mark| {
        let mut address = [0; 16];
        address[..2].copy_from_slice(&[0xff, 2]);
        address[2..].copy_from_slice(mark.text().as_bytes());
        message(group(0x16), 1, 143, &[&[0, 0, 0, 1, 4, 0, 0, 0][..], &address].concat())
    }));
    all.push(
        row("v6 neighbour solicitation whose target is the message", move |mark| {
            let target = [&[0xfe, 0x80][..], mark.text().as_bytes()].concat();
            message(group(1), 255, 135, &[&[0; 4][..], &target].concat())
        })
        .expect(Expected::Allowed("neighbour discovery in its exact form: an address a message, on the link")),
    );
}

fn dhcp(all: &mut Vec<Attempt>) {
    fn discover(to: [u8; 4], file: &[u8], options: &[u8], tail: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 236];
        body[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, 4]);
        body[28..34].copy_from_slice(&at::SERVER_MAC);
        body[108..108 + file.len()].copy_from_slice(file);
        body.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1]);
        body.extend(options);
        body.push(255);
        body.extend(tail);
        let (from, to) = (std::net::Ipv4Addr::UNSPECIFIED, std::net::Ipv4Addr::from(to));
        let mac = if to.is_broadcast() { BROADCAST } else { at::ROUTER_MAC };
        ethernet(
            mac,
            at::SERVER_MAC,
            0x0800,
            &ip(from.into(), to.into(), UDP, &udp((from.into(), 68), (to.into(), 67), &body)),
        )
    }
    const ALL: [u8; 4] = [255; 4];
    all.push(row("DHCP with data in the file's name", |mark| discover(ALL, mark.text().as_bytes(), &[], &[])));
    all.push(row("DHCP with an option for private use", |mark| {
        discover(ALL, &[], &[&[224, 14][..], mark.text().as_bytes()].concat(), &[])
    }));
    all.push(row("DHCP with data after its end", |mark| discover(ALL, &[], &[], mark.text().as_bytes())));
    all.push(row("DHCP to a server that never answered", |mark| {
        discover([203, 0, 113, 9], &[], &[&[12, 14][..], mark.text().as_bytes()].concat(), &[])
    }));
    all.push(row("DHCP as a server", |mark| {
        let (from, to) = (at::SERVER_V4, std::net::Ipv4Addr::BROADCAST);
        let datagram = udp((from.into(), 67), (to.into(), 68), mark.text().as_bytes());
        ethernet(BROADCAST, at::SERVER_MAC, 0x0800, &ip(from.into(), to.into(), UDP, &datagram))
    }));
    all.push(
        row("DHCP with a host name", |mark| discover(ALL, &[], &[&[12, 14][..], mark.text().as_bytes()].concat(), &[]))
            .expect(Expected::Allowed("a client's message in its exact form, on the link: hosts tell their names")),
    );
    let six = |from: std::net::Ipv6Addr, to: std::net::Ipv6Addr, body: &[u8]| {
        let datagram = udp((from.into(), 546), (to.into(), 547), body);
        ethernet([0x33, 0x33, 0, 1, 0, 2], at::SERVER_MAC, 0x86dd, &ipv6(from, to, UDP, 1, &datagram))
    };
    let servers = std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    let local = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10);
    all.push(row("v6 DHCP to a unicast server", move |mark| {
        let mut frame =
            six(local, at::INTRUDER_V6, &[&[1, 1, 2, 3, 0, 39, 0, 14][..], mark.text().as_bytes()].concat());
        frame[..6].copy_from_slice(&at::ROUTER_MAC);
        frame
    }));
    all.push(row("v6 DHCP from a global address", move |mark| {
        six(at::SERVER_V6, servers, &[&[1, 1, 2, 3, 0, 39, 0, 14][..], mark.text().as_bytes()].concat())
    }));
    all.push(row("v6 DHCP with an unassigned option", move |mark| {
        six(local, servers, &[&[1, 1, 2, 3, 0xff, 0, 0, 14][..], mark.text().as_bytes()].concat())
    }));
    all.push(row("v6 DHCP with data after its options", move |mark| {
        six(local, servers, &[&[1, 1, 2, 3, 0, 14, 0, 0][..], mark.text().as_bytes()].concat())
    }));
}

/// Groups and broadcast.
fn groups(all: &mut Vec<Attempt>) {
    let v4: &[([u8; 4], u16)] = &[
        ([255, 255, 255, 255], 0),
        ([192, 0, 2, 255], 0),
        ([224, 0, 0, 1], 0),
        ([224, 0, 0, 251], 5353),
        ([224, 0, 0, 252], 5355),
        ([239, 255, 255, 250], 1900),
        ([239, 1, 1, 1], 0),
        ([255, 255, 255, 255], 67),
        ([224, 0, 0, 22], 0),
    ];
    for &(to, port) in v4 {
        let to = std::net::Ipv4Addr::from(to);
        let what = format!("v4 udp to {to}{}", if port == 0 { String::new() } else { format!(" port {port}") });
        all.push(row(&what, move |mark| {
            let mac = if to.is_multicast() {
                [1, 0, 0x5e, to.octets()[1] & 0x7f, to.octets()[2], to.octets()[3]]
            } else {
                BROADCAST
            };
            let port = if port == 0 { mark.port() } else { port };
            let datagram = udp((at::SERVER_V4.into(), mark.port()), (to.into(), port), mark.text().as_bytes());
            ethernet(mac, at::SERVER_MAC, 0x0800, &ip(at::SERVER_V4.into(), to.into(), UDP, &datagram))
        }));
    }
    for (to, port) in [("ff02::1", 0), ("ff02::fb", 5353), ("ff05::1", 0), ("ff0e::1", 0), ("ff02::1:2", 0)] {
        let Ok(to) = to.parse::<std::net::Ipv6Addr>() else { continue };
        all.push(row(&format!("v6 udp to {to}"), move |mark| {
            let last = to.octets();
            let port = if port == 0 { mark.port() } else { port };
            let datagram = udp((at::SERVER_V6.into(), mark.port()), (to.into(), port), mark.text().as_bytes());
            let mac = [0x33, 0x33, last[12], last[13], last[14], last[15]];
            ethernet(mac, at::SERVER_MAC, 0x86dd, &ipv6(at::SERVER_V6, to, UDP, 1, &datagram))
        }));
    }
    let inbound: &[(std::net::IpAddr, [u8; 6], &str)] = &[
        (std::net::Ipv4Addr::BROADCAST.into(), BROADCAST, "broadcast"),
        (std::net::Ipv4Addr::new(192, 0, 2, 255).into(), BROADCAST, "the network's broadcast"),
        (std::net::Ipv4Addr::new(224, 0, 0, 251).into(), [1, 0, 0x5e, 0, 0, 251], "a group that was joined"),
        (std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(), [0x33, 0x33, 0, 0, 0, 1], "all nodes"),
    ];
    for &(to, mac, label) in inbound {
        let what = format!("v{} udp to {label}", if to.is_ipv6() { 6 } else { 4 });
        let frame = move |mark: &Mark| {
            let from: std::net::IpAddr = if to.is_ipv6() { at::CLIENT_V6.into() } else { at::CLIENT_V4.into() };
            let datagram = udp((from, mark.port()), (to, victim::PORT), mark.text().as_bytes());
            let kind = if to.is_ipv6() { 0x86dd } else { 0x0800 };
            vec![ethernet(mac, at::CLIENT_MAC, kind, &ip(from, to, UDP, &datagram))]
        };
        all.push(Attempt::into_host(what, Act::FramesIn(Box::new(frame))));
    }
}
