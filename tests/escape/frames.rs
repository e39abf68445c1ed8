//! IP packets that no ordinary program sends, in either direction: ports that are tricks, TCP without a handshake,
//! protocols without ports, fragments, options, extension headers.

use std::net::IpAddr;

use guard_tests::frame::{
    ACK, FIN, ICMP, ICMPV6, Ipv4Fields, RST, SYN, TCP, UDP, ethernet_ip, icmp, ip, ipv4, ipv6, tcp, transport_checksum,
    udp,
};

use crate::{
    attempt::{Act, Attempt, Direction, Expected, name},
    mark::{Mark, Sign, at, intruder, responder, server},
    victim,
};

const PSH: u8 = 8;
const URG: u8 = 32;

/// From whom to whom, on the link between the server and its router.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub direction: Direction,
    pub from: IpAddr,
    pub to: IpAddr,
}

impl Ends {
    #[must_use]
    pub fn new(direction: Direction, ipv6: bool) -> Self {
        match direction {
            Direction::Out => Self { direction, from: server(ipv6), to: intruder(ipv6) },
            Direction::In => Self { direction, from: intruder(ipv6), to: server(ipv6) },
        }
    }

    #[must_use]
    pub fn ipv6(&self) -> bool {
        self.from.is_ipv6()
    }

    #[must_use]
    pub fn frame(&self, packet: &[u8]) -> Vec<u8> {
        match self.direction {
            Direction::Out => ethernet_ip(at::ROUTER_MAC, at::SERVER_MAC, packet),
            Direction::In => ethernet_ip(at::SERVER_MAC, at::ROUTER_MAC, packet),
        }
    }

    #[must_use]
    pub fn ip(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.frame(&ip(self.from, self.to, protocol, payload))
    }

    /// A datagram with the mark: outbound between any ports, inbound to the one where somebody listens.
    #[must_use]
    pub fn datagram(&self, mark: &Mark) -> Vec<u8> {
        udp((self.from, mark.port()), (self.to, victim::PORT), mark.text().as_bytes())
    }

    fn attempt(self, what: &str, sign: Sign, frames: impl Fn(&Self, &Mark) -> Vec<Vec<u8>> + 'static) -> Attempt {
        let name = name(self.ipv6(), what);
        match self.direction {
            Direction::Out => Attempt::out(name, Act::FramesOut(Box::new(move |mark| frames(&self, mark)))),
            Direction::In => Attempt::into_host(name, Act::FramesIn(Box::new(move |mark| frames(&self, mark)))),
        }
        .sign(sign)
    }
}

pub fn all() -> Vec<Attempt> {
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        for direction in [Direction::Out, Direction::In] {
            let ends = Ends::new(direction, ipv6);
            ports(ends, &mut all);
            flags(ends, &mut all);
            protocols(ends, &mut all);
            fragments(ends, &mut all);
            if ipv6 {
                extensions(ends, &mut all);
            } else {
                options(ends, &mut all);
            }
            icmp_kinds(ends, &mut all);
        }
        listed_remote(ipv6, &mut all);
    }
    all
}

/// Ports that careless filters let through.
fn ports(ends: Ends, all: &mut Vec<Attempt>) {
    let tricks: &[(u16, u16)] = match ends.direction {
        // 0: the attempt's own.
        Direction::Out => &[
            (0, 0),
            (53, 0),
            (0, 53),
            (0, 123),
            (123, 123),
            (67, 68),
            (68, 67),
            (500, 500),
            (0, 443),
            (443, 0),
            (5353, 5353),
            (546, 547),
            (547, 546),
            (20, 0),
            (0, 4789),
            (22, 0),
            (161, 0),
            (0, 0xffff),
        ],
        Direction::In => &[(0, 0), (53, 0), (67, 0), (68, 0), (123, 0), (443, 0), (5353, 0), (547, 0), (1, 0)],
    };
    for &(source, destination) in tricks {
        let what = format!("udp from port {} to {}", own(source), own(destination));
        all.push(ends.attempt(&what, Sign::Text, move |ends, mark| {
            let to = match (destination, ends.direction) {
                (0, Direction::In) => victim::PORT,
                (0, Direction::Out) => mark.port(),
                (port, _) => port,
            };
            let from = if source == 0 { mark.port() } else { source };
            vec![ends.ip(UDP, &udp((ends.from, from), (ends.to, to), mark.text().as_bytes()))]
        }));
    }
    if ends.direction == Direction::Out {
        all.push(ends.attempt("udp with a wrong checksum", Sign::Text, |ends, mark| {
            let mut datagram = ends.datagram(mark);
            datagram[6] ^= 0xff;
            vec![ends.ip(UDP, &datagram)]
        }));
        all.push(ends.attempt("udp without a payload", Sign::Port, |ends, mark| {
            vec![ends.ip(UDP, &udp((ends.from, mark.port()), (ends.to, mark.port()), &[]))]
        }));
        all.push(ends.attempt("udp whose length says less than there is", Sign::Text, |ends, mark| {
            let mut datagram = ends.datagram(mark);
            datagram[4..6].copy_from_slice(&8u16.to_be_bytes());
            vec![ends.ip(UDP, &datagram)]
        }));
    }
}

fn own(port: u16) -> String {
    if port == 0 { "any".to_owned() } else { port.to_string() }
}

/// TCP segments without the handshake that belongs to them.
fn flags(ends: Ends, all: &mut Vec<Attempt>) {
    let kinds: &[(&str, u8)] = &[
        ("SYN", SYN),
        ("ACK", ACK),
        ("PSH-ACK", PSH | ACK),
        ("RST", RST),
        ("RST-ACK", RST | ACK),
        ("FIN", FIN),
        ("FIN-ACK", FIN | ACK),
        ("SYN-ACK", SYN | ACK),
        ("SYN-FIN", SYN | FIN),
        ("Xmas", FIN | PSH | URG),
        ("null", 0),
        ("every flag", 0xff),
    ];
    for &(label, flags) in kinds {
        match ends.direction {
            Direction::Out => {
                for (source, destination) in [(0, 0), (22, 0), (80, 0), (443, 0), (0, 443), (0, 53)] {
                    // The whole list for one pair of ports; what stands for answers of a service for the others.
                    if (source, destination) != (0, 0) && !matches!(label, "SYN" | "ACK" | "PSH-ACK" | "SYN-ACK") {
                        continue;
                    }
                    let what = format!("tcp {label} with data, port {} to {}", own(source), own(destination));
                    all.push(ends.attempt(&what, Sign::Text, move |ends, mark| {
                        let from = if source == 0 { mark.port() } else { source };
                        let to = if destination == 0 { mark.port() } else { destination };
                        let segment =
                            tcp((ends.from, from), (ends.to, to), flags, mark.word(), 1, mark.text().as_bytes());
                        vec![ends.ip(TCP, &segment)]
                    }));
                }
            }
            // A RST is never answered, nor is what an open port has no use for; a closed one answers the rest.
            Direction::In if flags & RST == 0 => {
                all.push(ends.attempt(&format!("tcp {label} to a closed port"), Sign::Port, move |ends, mark| {
                    let segment = tcp((ends.from, mark.port()), (ends.to, 6999), flags, mark.word(), 1, &[]);
                    vec![ends.ip(TCP, &segment)]
                }));
                if flags & (SYN | ACK) != 0 && flags & FIN == 0 {
                    all.push(ends.attempt(&format!("tcp {label} to an open port"), Sign::Port, move |ends, mark| {
                        let segment =
                            tcp((ends.from, mark.port()), (ends.to, victim::PORT), flags, mark.word(), 1, &[]);
                        vec![ends.ip(TCP, &segment)]
                    }));
                }
            }
            Direction::In => {}
        }
    }
    if ends.direction == Direction::In {
        for source in [20, 53, 80, 443] {
            all.push(ends.attempt(
                &format!("tcp SYN from port {source} to an open port"),
                Sign::Word,
                move |ends, mark| {
                    // Its answer acknowledges one more.
                    let sequence = mark.word().wrapping_sub(1);
                    vec![ends.ip(TCP, &tcp((ends.from, source), (ends.to, victim::PORT), SYN, sequence, 0, &[]))]
                },
            ));
        }
    }
}

/// Everything that is no TCP, UDP or ICMP.
fn protocols(ends: Ends, all: &mut Vec<Attempt>) {
    let numbers: &[(u8, &str)] = &[
        (2, "IGMP"),
        (4, "IPv4 in IP"),
        (41, "IPv6 in IP"),
        (33, "DCCP"),
        (46, "RSVP"),
        (47, "GRE"),
        (50, "ESP"),
        (88, "EIGRP"),
        (89, "OSPF"),
        (94, "IPIP"),
        (97, "EtherIP"),
        (103, "PIM"),
        (108, "IPComp"),
        (112, "VRRP"),
        (115, "L2TP"),
        (132, "SCTP"),
        (136, "UDP-Lite"),
        (137, "MPLS in IP"),
        (143, "Ethernet in IP"),
        (253, "experimental"),
        (255, "reserved"),
    ];
    for &(number, label) in numbers {
        if ends.direction == Direction::In && !victim::RAW.contains(&number) {
            continue;
        }
        all.push(ends.attempt(&format!("protocol {number} ({label})"), Sign::Text, move |ends, mark| {
            let text = mark.text();
            let payload = match number {
                4 => ip(responder(false), server(false), UDP, &[&[0; 8], text.as_bytes()].concat()),
                41 => ip(responder(true), server(true), UDP, &[&[0; 8], text.as_bytes()].concat()),
                47 => [&[0, 0, 8, 0], &ip(server(false), responder(false), 253, text.as_bytes())[..]].concat(),
                // Ports, and a checksum over all of it.
                136 => {
                    let mut datagram = udp((ends.from, mark.port()), (ends.to, victim::PORT), text.as_bytes());
                    datagram[4..8].copy_from_slice(&[0; 4]);
                    let sum = transport_checksum(ends.from, ends.to, 136, &datagram);
                    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
                    datagram
                }
                _ => [&mark.port().to_be_bytes(), &victim::PORT.to_be_bytes()[..], &[0; 8], text.as_bytes()].concat(),
            };
            vec![ends.ip(number, &payload)]
        }));
    }
}

/// One fragment of `whole`, from `start` on, of either family.
pub fn fragment(ends: &Ends, protocol: u8, id: u16, start: usize, more: bool, data: &[u8]) -> Vec<u8> {
    fragment_to(ends, ends.to, protocol, id, start, more, data)
}

fn fragment_to(ends: &Ends, to: IpAddr, protocol: u8, id: u16, start: usize, more: bool, data: &[u8]) -> Vec<u8> {
    ends.frame(&match (ends.from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let fields =
                Ipv4Fields { id, fragment: u16::from(more) << 13 | (start / 8) as u16, ..Ipv4Fields::default() };
            ipv4(from, to, protocol, &fields, data)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let word = (start as u16) & 0xfff8 | u16::from(more);
            let header = [&[protocol, 0], &word.to_be_bytes()[..], &u32::from(id).to_be_bytes()].concat();
            ipv6(from, to, 44, 64, &[&header, data].concat())
        }
        _ => unreachable!("one family"),
    })
}

fn fragments(ends: Ends, all: &mut Vec<Attempt>) {
    // A datagram of 64 bytes, with the mark in its first and in its last part.
    fn long(ends: &Ends, mark: &Mark) -> Vec<u8> {
        let text = mark.text();
        let payload = [text.as_bytes(), &[b'.'; 28][..], text.as_bytes()].concat();
        udp((ends.from, mark.port()), (ends.to, victim::PORT), &payload)
    }
    all.push(ends.attempt("fragments in order", Sign::Text, |ends, mark| {
        let (whole, id) = (long(ends, mark), mark.port());
        vec![fragment(ends, UDP, id, 0, true, &whole[..32]), fragment(ends, UDP, id, 32, false, &whole[32..])]
    }));
    all.push(ends.attempt("fragments, the last one first", Sign::Text, |ends, mark| {
        let (whole, id) = (long(ends, mark), mark.port());
        vec![fragment(ends, UDP, id, 32, false, &whole[32..]), fragment(ends, UDP, id, 0, true, &whole[..32])]
    }));
    all.push(ends.attempt("fragments, the first one tiny", Sign::Text, |ends, mark| {
        let (whole, id) = (long(ends, mark), mark.port());
        vec![fragment(ends, UDP, id, 0, true, &whole[..8]), fragment(ends, UDP, id, 8, false, &whole[8..])]
    }));
    if ends.direction == Direction::Out {
        all.push(ends.attempt("a later fragment alone", Sign::Text, |ends, mark| {
            vec![fragment(ends, UDP, mark.port(), 64, false, mark.text().as_bytes())]
        }));
        all.push(ends.attempt("a middle fragment alone", Sign::Text, |ends, mark| {
            vec![fragment(ends, TCP, mark.port(), 64, true, &[mark.text().as_bytes(), b"xx"].concat())]
        }));
        all.push(ends.attempt("fragments that overlap", Sign::Text, |ends, mark| {
            let (whole, id) = (long(ends, mark), mark.port());
            vec![fragment(ends, UDP, id, 0, true, &whole[..40]), fragment(ends, UDP, id, 32, false, &whole[32..])]
        }));
        all.push(ends.attempt("a later fragment at the very end", Sign::Text, |ends, mark| {
            vec![fragment(ends, UDP, mark.port(), 0xfff0, false, mark.text().as_bytes())]
        }));
        all.push(ends.attempt("a tcp segment whose flags are in the second fragment", Sign::Text, |ends, mark| {
            let segment = tcp((ends.from, mark.port()), (ends.to, 443), SYN, mark.word(), 0, mark.text().as_bytes());
            vec![
                fragment(ends, TCP, mark.port(), 0, true, &segment[..8]),
                fragment(ends, TCP, mark.port(), 8, false, &segment[8..]),
            ]
        }));
    }
}

/// IPv4 options.
fn options(ends: Ends, all: &mut Vec<Attempt>) {
    let IpAddr::V4(responder) = responder(false) else { return };
    let IpAddr::V4(intruder) = intruder(false) else { return };
    let route = |kind: u8, via: std::net::Ipv4Addr| [&[kind, 7, 4], &via.octets()[..], &[0]].concat();
    let kinds = [
        ("no-operations", vec![1; 8], false),
        ("record route", [&[7, 39, 4][..], &[0; 36], &[0]].concat(), false),
        ("timestamps", [&[68, 36, 5, 0][..], &[0; 32]].concat(), false),
        ("router alert", vec![148, 4, 0, 0], false),
        ("an unknown option", vec![0x9e, 8, 1, 2, 3, 4, 5, 6], false),
        ("forty bytes of options", vec![1; 40], false),
        ("a loose source route", route(131, responder), true),
        ("a strict source route", route(137, responder), true),
    ];
    for (label, options, routed) in kinds {
        // The kernels refuse source routes by themselves: nothing would be live.
        if ends.direction == Direction::In && routed {
            continue;
        }
        all.push(ends.attempt(&format!("udp with {label}"), Sign::Text, move |ends, mark| {
            let (IpAddr::V4(from), IpAddr::V4(to)) = (ends.from, ends.to) else { return Vec::new() };
            let fields = Ipv4Fields { options: options.clone(), ..Ipv4Fields::default() };
            vec![ends.frame(&ipv4(from, to, UDP, &fields, &ends.datagram(mark)))]
        }));
    }
    if ends.direction == Direction::Out {
        for (label, kind) in [("loose", 131), ("strict", 137)] {
            // To a listed remote and service, which is only the way to another.
            all.push(ends.attempt(
                &format!("tcp to a listed remote with a {label} source route to another"),
                Sign::Text,
                move |ends, mark| {
                    let IpAddr::V4(from) = ends.from else { return Vec::new() };
                    let fields = Ipv4Fields {
                        options: [&[kind, 7, 4], &intruder.octets()[..], &[0]].concat(),
                        ..Ipv4Fields::default()
                    };
                    let (a, b) = ((ends.from, mark.port()), (responder.into(), 443));
                    let segment = tcp(a, b, SYN, mark.word(), 0, mark.text().as_bytes());
                    vec![ends.frame(&ipv4(from, responder, TCP, &fields, &segment))]
                },
            ));
        }
    }
}

/// Headers: number, and bytes after the next-header field.
type Chain = Vec<(u8, Vec<u8>)>;

/// Chains of IPv6 extension headers, and whether a host takes what follows them.
fn extensions(ends: Ends, all: &mut Vec<Attempt>) {
    const PAD: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];
    let pad = |number: u8| (number, PAD.to_vec());
    let atomic = (44, vec![0, 0, 0, 0, 0, 0, 9]);
    let chains: Vec<(&str, Chain, bool)> = vec![
        ("hop-by-hop options", vec![pad(0)], true),
        ("destination options", vec![pad(60)], true),
        ("hop-by-hop and destination options", vec![pad(0), pad(60)], true),
        ("an atomic fragment header", vec![atomic.clone()], true),
        ("destination options and an atomic fragment", vec![pad(60), atomic.clone()], true),
        ("seven destination options", vec![pad(60); 7], false),
        ("nine destination options", vec![pad(60); 9], false),
        ("two atomic fragment headers", vec![atomic.clone(), atomic.clone()], false),
        ("hop-by-hop options in second place", vec![pad(60), pad(0)], false),
        ("an authentication header", vec![(51, [&[4, 0, 0][..], &[0; 20]].concat())], false),
        (
            "a routing header of type 0",
            vec![(43, [&[2, 0, 1][..], &[0; 4], &at::RESPONDER_V6.octets()].concat())],
            false,
        ),
        ("a segment routing header", vec![(43, [&[2, 4, 1][..], &[0; 4], &at::RESPONDER_V6.octets()].concat())], false),
        ("a mobility header", vec![(135, PAD.to_vec())], false),
        ("a HIP header", vec![(139, PAD.to_vec())], false),
        ("a Shim6 header", vec![(140, PAD.to_vec())], false),
        ("two kilobytes less of padding", vec![(60, [&[127, 1, 0xfe][..], &[0; 1020]].concat())], false),
        ("a router alert", vec![(0, vec![0, 5, 2, 0, 0, 1, 0])], false),
        ("an unknown option that asks for an answer", vec![(60, vec![0, 0xde, 4, 1, 2, 3, 4])], false),
    ];
    for (label, chain, answered) in chains {
        if ends.direction == Direction::In && !answered {
            continue;
        }
        all.push(ends.attempt(&format!("udp after {label}"), Sign::Text, move |ends, mark| {
            let (IpAddr::V6(from), IpAddr::V6(to)) = (ends.from, ends.to) else { return Vec::new() };
            let (first, payload) = chained(&chain, UDP, &ends.datagram(mark));
            vec![ends.frame(&ipv6(from, to, first, 64, &payload))]
        }));
    }
    if ends.direction == Direction::Out {
        all.push(
            ends.attempt("no next header, and data", Sign::Text, |ends, mark| {
                vec![ends.ip(59, mark.text().as_bytes())]
            }),
        );
        all.push(ends.attempt("data in destination options", Sign::Text, |ends, mark| {
            let (IpAddr::V6(from), IpAddr::V6(to)) = (ends.from, ends.to) else { return Vec::new() };
            let option = [&[2, 0x1e, 20][..], mark.text().as_bytes(), &[0; 6], &[0]].concat();
            let (first, payload) = chained(&[(60, option)], 59, &[]);
            vec![ends.frame(&ipv6(from, to, first, 64, &payload))]
        }));
        all.push(ends.attempt("a mapped address as destination", Sign::Text, |ends, mark| {
            let IpAddr::V6(from) = ends.from else { return Vec::new() };
            let to = at::INTRUDER_V4.to_ipv6_mapped();
            let datagram = udp((ends.from, mark.port()), (to.into(), 53), mark.text().as_bytes());
            vec![ends.frame(&ipv6(from, to, UDP, 64, &datagram))]
        }));
        for (label, kind) in [("routing header of type 0", 0), ("segment routing header", 4)] {
            all.push(ends.attempt(
                &format!("tcp to a listed remote with a {label} to another"),
                Sign::Text,
                move |ends, mark| {
                    let (IpAddr::V6(from), IpAddr::V6(to)) = (ends.from, responder(true)) else { return Vec::new() };
                    let route = [&[2, kind, 1][..], &[0; 4], &at::INTRUDER_V6.octets()].concat();
                    let segment =
                        tcp((ends.from, mark.port()), (to.into(), 443), SYN, mark.word(), 0, mark.text().as_bytes());
                    let (first, payload) = chained(&[(43, route)], TCP, &segment);
                    vec![ends.frame(&ipv6(from, to, first, 64, &payload))]
                },
            ));
        }
    }
}

fn chained(chain: &[(u8, Vec<u8>)], last: u8, data: &[u8]) -> (u8, Vec<u8>) {
    let mut payload = Vec::new();
    for (place, (_, rest)) in chain.iter().enumerate() {
        payload.push(chain.get(place + 1).map_or(last, |(number, _)| *number));
        payload.extend(rest);
    }
    payload.extend(data);
    (chain.first().map_or(last, |(number, _)| *number), payload)
}

/// ICMP as a tunnel: in questions, in answers to none, in kinds that nobody uses.
fn icmp_kinds(ends: Ends, all: &mut Vec<Attempt>) {
    let ipv6 = ends.ipv6();
    let protocol = if ipv6 { ICMPV6 } else { ICMP };
    let kinds: &[(u8, &str)] = match (ends.direction, ipv6) {
        (Direction::In, false) => &[(8, "echo request")],
        (Direction::In, true) => &[(128, "echo request")],
        (Direction::Out, false) => &[
            (8, "echo request"),
            (0, "echo reply"),
            (4, "source quench"),
            (5, "redirect"),
            (9, "router advertisement"),
            (10, "router solicitation"),
            (13, "timestamp request"),
            (14, "timestamp reply"),
            (15, "information request"),
            (17, "address mask request"),
            (30, "traceroute"),
            (40, "photuris"),
            (42, "extended echo"),
            (200, "unassigned"),
        ],
        (Direction::Out, true) => &[
            (128, "echo request"),
            (129, "echo reply"),
            (137, "redirect"),
            (138, "router renumbering"),
            (139, "node information query"),
            (140, "node information reply"),
            (141, "inverse discovery"),
            (144, "home agent request"),
            (151, "multicast router"),
            (160, "extended echo"),
            (200, "private"),
            (133, "router solicitation"),
            (134, "router advertisement"),
            (135, "neighbour solicitation"),
            (136, "neighbour advertisement"),
            (130, "listener query"),
            (131, "listener report"),
            (143, "listener report v2"),
        ],
    };
    for &(kind, label) in kinds {
        all.push(ends.attempt(&format!("icmp {kind} ({label}) with data"), Sign::Text, move |ends, mark| {
            let rest = [&mark.word().to_be_bytes()[..], mark.text().as_bytes()].concat();
            vec![ends.ip(protocol, &icmp(ends.from, ends.to, kind, 0, &rest))]
        }));
    }
    let errors: &[(u8, u8)] =
        if ipv6 { &[(1, 4), (2, 0), (3, 0), (4, 0)] } else { &[(3, 3), (3, 4), (11, 0), (12, 0)] };
    if ends.direction == Direction::Out {
        for &(kind, code) in errors {
            all.push(ends.attempt(
                &format!("icmp error {kind}/{code} about a flow that is not"),
                Sign::Text,
                move |ends, mark| {
                    // As if the intruder had asked something of us.
                    let asked = udp((ends.to, mark.port()), (ends.from, 6001), mark.text().as_bytes());
                    let quoted = [&[0; 4][..], &ip(ends.to, ends.from, UDP, &asked)].concat();
                    vec![ends.ip(protocol, &icmp(ends.from, ends.to, kind, code, &quoted))]
                },
            ));
            all.push(ends.attempt(
                &format!("icmp error {kind}/{code} about a known flow of another"),
                Sign::Text,
                move |ends, mark| {
                    // The responder's session with the server's port 80, which is open meanwhile.
                    let segment = tcp(
                        (responder(ipv6), crate::scene::HELD_PORT),
                        (ends.from, 80),
                        ACK,
                        1,
                        1,
                        mark.text().as_bytes(),
                    );
                    let quoted = [&[0; 4][..], &ip(responder(ipv6), ends.from, TCP, &segment)].concat();
                    vec![ends.ip(protocol, &icmp(ends.from, ends.to, kind, code, &quoted))]
                },
            ));
        }
        all.push(ends.attempt("icmp error about nothing at all", Sign::Text, move |ends, mark| {
            let rest = [&[0; 4][..], mark.text().as_bytes()].concat();
            vec![ends.ip(protocol, &icmp(ends.from, ends.to, if ipv6 { 1 } else { 3 }, 1, &rest))]
        }));
    }
}

/// To whom the policy lists, for what it does not: and what it allows by design.
fn listed_remote(ipv6: bool, all: &mut Vec<Attempt>) {
    let ends = Ends { direction: Direction::Out, from: server(ipv6), to: responder(ipv6) };
    all.push(ends.attempt("listed remote, tcp to another port", Sign::Text, |ends, mark| {
        vec![ends.ip(TCP, &tcp((ends.from, mark.port()), (ends.to, 444), SYN, mark.word(), 0, mark.text().as_bytes()))]
    }));
    all.push(ends.attempt("listed remote, udp to the port that is listed for tcp", Sign::Text, |ends, mark| {
        vec![ends.ip(UDP, &udp((ends.from, mark.port()), (ends.to, 443), mark.text().as_bytes()))]
    }));
    for (label, flags) in [("SYN-ACK", SYN | ACK), ("RST", RST), ("Xmas", FIN | PSH | URG), ("null", 0)] {
        all.push(ends.attempt(
            &format!("listed remote and port, tcp {label} of no session"),
            Sign::Text,
            move |ends, mark| {
                vec![ends.ip(TCP, &tcp((ends.from, mark.port()), (ends.to, 443), flags, 1, 1, mark.text().as_bytes()))]
            },
        ));
    }
    all.push(
        ends.attempt("listed remote and port, tcp ACK of no session", Sign::Text, |ends, mark| {
            vec![ends.ip(TCP, &tcp((ends.from, mark.port()), (ends.to, 443), ACK, 1, 1, mark.text().as_bytes()))]
        })
        .expect(Expected::Allowed("may be of a session older than guard: the policy is asked, and lists it")),
    );
    all.push(ends.attempt("listed remote, a second and different first fragment", Sign::Text, |ends, mark| {
        let (a, id) = ((ends.from, mark.port()), mark.port());
        let listed = tcp(a, (ends.to, 443), SYN, 1, 0, &[0; 12]);
        let other = tcp(a, (ends.to, 444), SYN, 1, 0, &[mark.text().as_bytes(), &[0; 6]].concat());
        vec![fragment(ends, TCP, id, 0, true, &listed), fragment(ends, TCP, id, 0, true, &other)]
    }));
    all.push(ends.attempt(
        "listed remote, a second fragment over the first one's ports and flags",
        Sign::Text,
        |ends, mark| {
            let (a, id) = ((ends.from, mark.port()), mark.port());
            let listed = tcp(a, (ends.to, 443), SYN, 1, 0, &[0; 12]);
            vec![fragment(ends, TCP, id, 0, true, &listed), fragment(ends, TCP, id, 8, false, mark.text().as_bytes())]
        },
    ));
    all.push(
        ends.attempt("listed remote and port, from an address that is not ours", Sign::Text, move |ends, mark| {
            let from: IpAddr = if ipv6 { at::CLIENT_V6.into() } else { at::CLIENT_V4.into() };
            let segment = tcp((from, mark.port()), (ends.to, 443), SYN, mark.word(), 0, mark.text().as_bytes());
            vec![ends.frame(&ip(from, ends.to, TCP, &segment))]
        })
        .expect(Expected::Allowed("the rule names the remote; our own address only where it says `local`")),
    );
    all.push(
        ends.attempt("listed remote and port, to a neighbour's Ethernet address", Sign::Text, |ends, mark| {
            let segment = tcp((ends.from, mark.port()), (ends.to, 443), SYN, mark.word(), 0, mark.text().as_bytes());
            vec![ethernet_ip(at::CLIENT_MAC, at::SERVER_MAC, &ip(ends.from, ends.to, TCP, &segment))]
        })
        .expect(Expected::Allowed("rules name IP addresses; who stands for them on the link is not judged")),
    );
    all.push(
        ends.attempt("listed remote and port, with data in the SYN", Sign::Text, |ends, mark| {
            vec![ends.ip(TCP, &tcp((ends.from, mark.port()), (ends.to, 443), SYN, 1, 0, mark.text().as_bytes()))]
        })
        .expect(Expected::Allowed("listed")),
    );
}
