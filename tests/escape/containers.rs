//! From a container on a bridge of the server to the server itself, past every rule. By design that is not judged where the policy
//! does not say `container_host: guard`; where it does, all of it is blocked ([`crate::suite`] has both).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::Result;
use guard_tests::{
    frame::{Ipv4Fields, UDP, ethernet_ip, ip, ipv4, udp},
    witness::send_frame,
    world::{Namespace, World},
};

use crate::{
    attempt::{Act, Attempt, Expected, name},
    mark::{Mark, server},
    scene::Scene,
    victim,
};

const BY_DESIGN: Expected = Expected::Allowed("container_host: ignore, the default");

/// What all rows are called, and nothing else is.
pub const CALLED: &str = "from a container";

const BRIDGE_V4: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
const BRIDGE_V6: Ipv6Addr = Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, 1);
const BRIDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0x30, 1];
const OWN_V4: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 2);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, 2);
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0x30, 2];

fn bridge(ipv6: bool) -> IpAddr {
    if ipv6 { BRIDGE_V6.into() } else { BRIDGE_V4.into() }
}

fn own(ipv6: bool) -> IpAddr {
    if ipv6 { OWN_V6.into() } else { OWN_V4.into() }
}

/// The container, on a bridge of the server.
pub fn place(world: &World) -> std::io::Result<Namespace> {
    let place = world.namespace("container")?;
    world.server.ip(&format!(
        "link add ci0 address 02:00:00:00:30:01 type bridge mcast_snooping 0\naddress add {BRIDGE_V4}/24 dev ci0\n\
         address add {BRIDGE_V6}/64 dev ci0 nodad\nlink set ci0 up\n\
         link add ci1 type veth peer name eth0 address 02:00:00:00:30:02 netns {}\n\
         link set ci1 master ci0\nlink set ci1 up\n",
        place.name()
    ))?;
    for interface in ["all", "ci0", "ci1"] {
        world.server.sysctl(&format!("ipv4/conf/{interface}/rp_filter"), "0")?;
    }
    place.ip(&format!(
        "address add {OWN_V4}/24 dev eth0\naddress add {OWN_V6}/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via {BRIDGE_V4}\nroute add default via {BRIDGE_V6}\n"
    ))?;
    Ok(place)
}

fn row(ipv6: bool, what: &str, act: impl Fn(&Scene, &Mark) -> Result<()> + 'static) -> Attempt {
    Attempt::into_host(name(ipv6, &format!("{CALLED}: {what}")), Act::Outside(Box::new(act))).expect(BY_DESIGN)
}

pub fn all() -> Vec<Attempt> {
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        for (whose, to) in [("the bridge's address", bridge(ipv6)), ("the address of its link", server(ipv6))] {
            let to = SocketAddr::new(to, victim::PORT);
            all.push(row(ipv6, &format!("TCP to {whose}"), move |scene, mark| {
                use std::io::Write;
                let patience = Duration::from_millis(400);
                let mut stream = guard_tests::echo::connect(&scene.container, to, patience)?;
                Ok(stream.write_all(mark.text().as_bytes())?)
            }));
            all.push(row(ipv6, &format!("UDP to {whose}"), move |scene, mark| {
                let any: IpAddr = if to.is_ipv6() { [0_u16; 8].into() } else { [0_u8; 4].into() };
                let socket = scene.container.run(|| UdpSocket::bind((any, 0)))?;
                socket.send_to(mark.text().as_bytes(), to)?;
                Ok(())
            }));
        }
        frames(ipv6, &mut all);
    }
    all.push(row(false, "UDP in two fragments", |scene, mark| {
        let datagram = udp((OWN_V4.into(), 4000), (BRIDGE_V4.into(), victim::PORT), mark.text().as_bytes());
        for (fragment, part) in [(0x2000, &datagram[..16]), (2, &datagram[16..])] {
            let fields = Ipv4Fields { id: mark.number + 1, fragment, ..Ipv4Fields::default() };
            send(scene, BRIDGE_MAC, &ipv4(OWN_V4, BRIDGE_V4, UDP, &fields, part))?;
        }
        Ok(())
    }));
    all.push(row(false, "UDP with a record-route option", |scene, mark| {
        let datagram = udp((OWN_V4.into(), 4000), (BRIDGE_V4.into(), victim::PORT), mark.text().as_bytes());
        let fields = Ipv4Fields { options: vec![7, 7, 4, 0, 0, 0, 0, 0], ..Ipv4Fields::default() };
        send(scene, BRIDGE_MAC, &ipv4(OWN_V4, BRIDGE_V4, UDP, &fields, &datagram))
    }));
    all.push(row(false, "UDP to the bridge's broadcast address", |scene, mark| {
        let to = Ipv4Addr::new(172, 30, 0, 255);
        let datagram = udp((OWN_V4.into(), 4000), (to.into(), victim::PORT), mark.text().as_bytes());
        send(scene, [0xff; 6], &ip(OWN_V4.into(), to.into(), UDP, &datagram))
    }));
    all
}

fn frames(ipv6: bool, all: &mut Vec<Attempt>) {
    let stranger: IpAddr =
        if ipv6 { Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 9).into() } else { [198, 51, 100, 99].into() };
    for (what, mac, from) in [
        // A bridge hands these up on the port, not on the bridge device.
        ("a frame to a bridge's link-local group", [0x01, 0x80, 0xc2, 0, 0, 3], own(ipv6)),
        ("a frame to LLDP's group", [0x01, 0x80, 0xc2, 0, 0, 0x0e], own(ipv6)),
        ("a frame to everybody", [0xff; 6], own(ipv6)),
        ("a forged source, as if passed on", BRIDGE_MAC, stranger),
    ] {
        for (whose, to) in [("the bridge's address", bridge(ipv6)), ("the address of its link", server(ipv6))] {
            all.push(row(ipv6, &format!("{what}, UDP to {whose}"), move |scene, mark| {
                let datagram = udp((from, 4000), (to, victim::PORT), mark.text().as_bytes());
                send(scene, mac, &ip(from, to, UDP, &datagram))
            }));
        }
    }
    all.push(row(ipv6, "a raw protocol to the bridge's address", move |scene, mark| {
        send(scene, BRIDGE_MAC, &ip(own(ipv6), bridge(ipv6), 253, mark.text().as_bytes()))
    }));
}

fn send(scene: &Scene, to: [u8; 6], packet: &[u8]) -> Result<()> {
    Ok(send_frame(&scene.container, "eth0", &ethernet_ip(to, OWN_MAC, packet))?)
}
