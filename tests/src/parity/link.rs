//! What a host needs on its link: in its form, and in every way out of it.

use std::net::{IpAddr, Ipv4Addr};

use guard_common::{Direction, Reason};

use super::{
    forms::{self, Inner, Way, ethernet},
    packet::{Below, Body, Packet, Says},
    scene::{Maker, address, below},
};
use crate::frame;

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];

const fn group(last: u8) -> [u8; 6] {
    [0x01, 0x80, 0xc2, 0, 0, last]
}

pub fn below_ip(maker: &mut Maker) {
    let good = maker.random.percent(70);
    let right = maker.random.percent(80);
    let to = |last| if right { group(last) } else { OURS };
    match maker.random.below(12) {
        0 | 1 => {
            let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1 + maker.random.below(2) as u8];
            arp.resize(28, 7);
            if !good {
                match maker.random.below(4) {
                    0 => arp[7] = 3,
                    1 => arp[4] = 8,
                    2 => arp.resize(47, 0),
                    _ => arp[1] = 6,
                }
            } else if maker.random.percent(50) {
                // Filled up to the shortest frame.
                arp.resize(46, 0);
            }
            below(maker, Below::Arp, [0xff; 6], (0x0806, &arp), good, false, "ARP");
        }
        2 => {
            let mut eapol = vec![2, 0, 0, 8];
            eapol.resize(12, 1);
            if !good {
                match maker.random.below(3) {
                    0 => eapol[0] = 9,
                    1 => eapol[3] = 20,
                    _ => eapol.resize(80, 0),
                }
            }
            below(maker, Below::Eapol, to(3), (0x888e, &eapol), good, right, "EAPOL");
        }
        3 => {
            let mut lacp = vec![1 + maker.random.below(2) as u8; 1];
            lacp.resize(110, 3);
            if !good {
                if maker.random.percent(50) { lacp[0] = 3 } else { lacp.push(0) }
            }
            below(maker, Below::Lacp, to(2), (0x8809, &lacp), good, right, "LACP");
        }
        4 | 5 => {
            // LLC, then protocol 0, version 2, type 2 (a rapid one); or the first version's two.
            let (kind, length): (&[u8], usize) = match maker.random.below(3) {
                0 => (&[0x42, 0x42, 3, 0, 0, 2, 2], 39),
                1 => (&[0x42, 0x42, 3, 0, 0, 0, 0], 38),
                _ => (&[0x42, 0x42, 3, 0, 0, 0, 0x80], 7),
            };
            let mut bpdu = kind.to_vec();
            bpdu.resize(length, 4);
            let mut said = length;
            if good {
                bpdu.resize(46, 0);
            } else {
                match maker.random.below(4) {
                    0 => bpdu[2] = 7,
                    1 => bpdu[5] = 9,
                    2 => said = length + 1,
                    _ => bpdu.resize(90, 0),
                }
            }
            below(maker, Below::Stp, to(0), (said as u16, &bpdu), good, right, "STP");
        }
        6 | 7 => {
            let last = *maker.random.of(&[0, 3, 0xe]);
            let lldp = vec![2; if good { 100 } else { 1501 }];
            below(maker, Below::Lldp, to(last), (0x88cc, &lldp), good, right, "LLDP");
        }
        8 => below(maker, Below::Macsec, OURS, (0x88e5, &[5; 60]), true, false, "MACsec"),
        9 => {
            let mut pppoe = [6; 40];
            pppoe[0] = if good { 0x11 } else { 0x12 };
            let kind = *maker.random.of(&[0x8863, 0x8864]);
            below(maker, Below::Pppoe, OURS, (kind, &pppoe), good, false, "PPPoE");
        }
        10 => {
            // LLC that is no spanning tree; AppleTalk, FCoE, PTP, a type that nobody has, MPLS with an IPv4 packet.
            let kind = *maker.random.of(&[60, 0x809b, 0x8906, 0x88f7, 0xffff, 0x8847, 0x0600]);
            below(maker, Below::Other, OURS, (kind, &[0x45; 64]), false, false, "another ethertype");
        }
        _ => {
            let direction = if good { Direction::Inbound } else { Direction::Outbound };
            let ip = frame::ip(address("192.0.2.9"), address("192.0.2.1"), 17, &[0; 8]);
            let packet = if right {
                let bytes = ethernet(&OURS, &[0x8100, 0x8100, 0x8100], 0x0800, &ip);
                let says = Says::Below { what: Below::Other, form: false, to_group: false };
                Packet { direction, device: 0, bytes, says, label: "three VLAN tags" }
            } else {
                // The second tag's type is not there.
                let bytes = ethernet(&OURS, &[0x8100, 0x8100], 0x0800, &[])[..17].to_vec();
                let says = Says::Refused { family: 0, reason: Reason::Truncated };
                Packet { direction, device: 0, bytes, says, label: "frame cut in its tags" }
            };
            maker.push(packet);
        }
    }
}

/// Neighbour discovery, and who listens to which group.
pub fn neighbours(maker: &mut Maker) {
    const ADDRESSES: [&str; 7] =
        ["fe80::1", "fe80::2", "2001:db8:5::7", "2001:db8:5::8", "ff02::1", "ff02::1:ff00:7", "ff05::2"];
    let random = &mut maker.random;
    let direction = if random.percent(50) { Direction::Inbound } else { Direction::Outbound };
    let device = if random.percent(80) { random.below(6) } else { random.below(super::DEVICES.len()) };
    let from = address(random.of::<&str>(&["fe80::1", "fe80::2", "2001:db8:5::7", "2001:db8:5::8", "::"]));
    let way = Way { direction, device, from, to: address(random.of::<&str>(&ADDRESSES)) };
    let good = random.percent(75);
    if random.percent(15) {
        // One advertises an address that is not its own, and that one is asked.
        let target = address("2001:db8:5::9");
        let advertised = |kind, bytes, way: Way, maker: &mut Maker| {
            let advertised = (kind == 136).then_some(target);
            let body = Body::NeighbourDiscovery { form: true, hop_limit: 255, advertised };
            let bytes = frame::icmp(way.from, way.to, kind, 0, bytes);
            let inner = Inner { protocol: 58, ports: (0, u16::from(kind) << 8), body, bytes, hop_limit: 255 };
            let packet = forms::whole(&mut maker.random, way, &inner, "neighbour discovery");
            maker.push(packet);
        };
        let IpAddr::V6(bits) = target else { return };
        let bytes = [vec![0; 4], bits.octets().to_vec()].concat();
        let to = address("fe80::2");
        advertised(136, &bytes, Way { direction: Direction::Inbound, device, from: address("fe80::1"), to }, maker);
        advertised(135, &bytes, Way { direction: Direction::Outbound, device, from: to, to: target }, maker);
        return;
    }
    let (kind, bytes, advertised);
    let mld = random.percent(40);
    if mld {
        (kind, bytes) = listener(maker, good);
        advertised = None;
    } else {
        let target = address(random.of::<&str>(&["fe80::9", "2001:db8:5::7", "2001:db8:5::8"]));
        (kind, bytes) = discovery(maker, good, target);
        advertised = (kind == 136).then_some(target);
    }
    let random = &mut maker.random;
    let right = if mld { 1 } else { 255 };
    let hop_limit = if random.percent(85) { right } else { *random.of(&[0, 2, 64, 254]) };
    let code = u8::from(!good && bytes.is_empty());
    let form = good;
    let body =
        if mld { Body::Mld { form, hop_limit } } else { Body::NeighbourDiscovery { form, hop_limit, advertised } };
    let inner = Inner {
        protocol: 58,
        ports: (0, u16::from(kind) << 8 | u16::from(code)),
        body,
        bytes: frame::icmp(way.from, way.to, kind, code, &bytes),
        hop_limit,
    };
    let label = if mld { "MLD" } else { "neighbour discovery" };
    if maker.random.percent(6) {
        let packets = forms::fragments(&mut maker.random, way, &inner, 0x3_0001);
        packets.into_iter().for_each(|packet| maker.push(packet));
    } else {
        let packet = forms::whole(&mut maker.random, way, &inner, label);
        maker.push(packet);
    }
}

/// Type, and what follows the checksum. Not good: with a code where nothing follows.
fn discovery(maker: &mut Maker, good: bool, target: IpAddr) -> (u8, Vec<u8>) {
    let random = &mut maker.random;
    let kind = 133 + random.below(4) as u8;
    let source_address: &[u8] = &[1, 1, 2, 0, 0, 0, 0, 2];
    let mut bytes = vec![0; 4];
    let options: &[&[u8]] = match kind {
        133 => &[source_address, &[14, 1, 1, 2, 3, 4, 5, 6]],
        134 => {
            bytes.resize(12, 1);
            &[
                source_address,
                &[5, 1, 0, 0, 0, 0, 5, 220],
                &[
                    3, 4, 64, 0xc0, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 5, 0, 0, 0, 0, 0, 0, 0,
                    0, 0, 0,
                ],
            ]
        }
        _ => {
            if let IpAddr::V6(target) = target {
                bytes.extend(target.octets());
            }
            if kind == 135 { &[source_address] } else { &[&[2, 1, 2, 0, 0, 0, 0, 2]] }
        }
    };
    let shortest = bytes.len();
    for option in options {
        if random.percent(60) {
            bytes.extend(*option);
        }
    }
    if !good {
        match random.below(5) {
            // An option that a host does not send, one of no length, one longer than the rest, bytes after the last.
            0 => bytes.extend([200, 1, 0, 0, 0, 0, 0, 0]),
            1 => bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]),
            2 => bytes.extend([14, 2, 0, 0, 0, 0, 0, 0]),
            3 => bytes.extend([1, 1, 7]),
            _ if shortest > 4 => bytes.truncate(shortest - 1),
            _ => bytes.clear(),
        }
    }
    (kind, bytes)
}

fn listener(maker: &mut Maker, good: bool) -> (u8, Vec<u8>) {
    let random = &mut maker.random;
    let kind = *random.of(&[130, 130, 131, 132, 143, 143]);
    let mut bytes = vec![0; 4 + 16];
    match kind {
        // A query of the second version, with two sources.
        130 if random.percent(50) => {
            bytes.extend([2, 125, 0, 2]);
            bytes.extend([9; 32]);
        }
        143 => {
            // Two records, the second with one source.
            bytes = vec![0, 0, 0, 2, 4, 0, 0, 0];
            bytes.extend([0xff; 16]);
            bytes.extend([3, 0, 0, 1]);
            bytes.extend([0xff; 32]);
        }
        _ => {}
    }
    if !good {
        match random.below(3) {
            0 => bytes.push(0),
            1 if kind == 143 => bytes[5] = 1,
            2 if kind == 143 => bytes[4] = 9,
            _ => bytes.truncate(bytes.len() - 1),
        }
    }
    (kind, bytes)
}

pub fn dhcp(maker: &mut Maker) {
    let ipv4 = maker.random.percent(55);
    for outbound in [true, false, true, false] {
        if maker.random.percent(80) {
            if ipv4 { four(maker, outbound) } else { six(maker, outbound) }
        }
    }
}

/// Almost always in the direction in which it should go.
fn direction(maker: &mut Maker, outbound: bool) -> Direction {
    if maker.random.percent(7) != outbound { Direction::Outbound } else { Direction::Inbound }
}

fn transaction(maker: &mut Maker) -> u32 {
    if maker.random.percent(85) { maker.transaction } else { maker.random.next() as u32 & 0x00ff_ffff }
}

fn device(maker: &mut Maker) -> usize {
    if maker.random.percent(90) { 0 } else { maker.device() }
}

fn four(maker: &mut Maker, to_server: bool) {
    let (direction, transaction, device) = (direction(maker, to_server), transaction(maker), device(maker));
    let random = &mut maker.random;
    let server: IpAddr = Ipv4Addr::new(192, 0, 2, 67 + random.below(2) as u8).into();
    let broadcast = address("255.255.255.255");
    let (from, to) = match to_server {
        true if random.percent(50) => (address("0.0.0.0"), broadcast),
        true => (address("192.0.2.1"), server),
        false => (server, if random.percent(60) { broadcast } else { address("192.0.2.1") }),
    };
    let message = if to_server { 1 } else { 2 };
    let mut bytes = vec![message, 1, 6, 0];
    bytes.extend(transaction.to_be_bytes());
    bytes.resize(236, 0);
    bytes.extend([0x63, 0x82, 0x53, 0x63, 53, 1, if to_server { 1 } else { 2 }, 0]);
    if to_server {
        bytes.extend([55, 3, 1, 3, 6]);
    } else {
        // Anything that a server likes.
        bytes.extend([43, 2, 9, 9]);
    }
    let good = random.percent(75);
    let mut after = Vec::new();
    let bad = random.below(if to_server { 7 } else { 5 });
    match (good, bad) {
        (true, _) => {}
        (false, 0) => bytes[0] = 3 - message,
        (false, 1) => bytes[2] = 17,
        (false, 2) => bytes[237] = 0,
        // A length that goes beyond the end.
        (false, 3) => bytes.extend([61, 200]),
        // Something after the datagram.
        (false, 4) => after = vec![0; 3],
        (false, 5) => bytes[60] = 1,
        // An option that no client sends.
        (false, _) => bytes.extend([224, 1, 1]),
    }
    if good || bad != 3 {
        bytes.push(255);
        bytes.resize(300, 0);
    }
    let ports = if to_server { (68, 67) } else { (67, 68) };
    let bytes = [frame::udp((from, ports.0), (to, ports.1), &bytes), after].concat();
    let inner =
        Inner { protocol: 17, ports, body: Body::Dhcp { form: good, message, transaction }, bytes, hop_limit: 64 };
    let way = Way { direction, device, from, to };
    let packet = forms::whole(&mut maker.random, way, &inner, "DHCPv4");
    maker.push(packet);
}

fn six(maker: &mut Maker, to_server: bool) {
    let (direction, transaction, device) = (direction(maker, to_server), transaction(maker), device(maker));
    let random = &mut maker.random;
    let from = address(if random.percent(90) { "fe80::1" } else { "2001:db8:2::1" });
    let to = match to_server {
        true if random.percent(90) => "ff02::1:2",
        true => "fe80::67",
        false if random.percent(90) => "fe80::1",
        false => "2001:db8:2::1",
    };
    let way = Way { direction, device, from, to: address(to) };
    let message = match to_server {
        true => *random.of(&[1, 1, 3, 4, 5, 6, 8, 9, 11, 12, 2]),
        false => *random.of(&[2, 7, 7, 10, 1]),
    };
    let mut bytes = (u32::from(message) << 24 | transaction).to_be_bytes().to_vec();
    bytes.extend([0, 1, 0, 4, 1, 2, 3, 4, 0, 8, 0, 2, 0, 0]);
    let good = random.percent(80);
    let mut after = Vec::new();
    if !good {
        match random.below(4) {
            0 => bytes.extend([0, 200, 0, 0]),
            1 => bytes.extend([0, 0, 0, 0]),
            2 => bytes.extend([0, 3, 0, 9, 1]),
            _ => after = vec![7],
        }
    }
    let ports = if to_server { (546, 547) } else { (547, 546) };
    let bytes = [frame::udp((from, ports.0), (way.to, ports.1), &bytes), after].concat();
    let inner =
        Inner { protocol: 17, ports, body: Body::Dhcp { form: good, message, transaction }, bytes, hop_limit: 1 };
    let packet = forms::whole(&mut maker.random, way, &inner, "DHCPv6");
    maker.push(packet);
}
