//! Sockets that do not look like an ordinary connection. Each is tried by a process that the socket layer does not see, to
//! a port that is listed and to one that is not, without guard and with it; a witness outside says what left.

use std::{
    io,
    mem::{size_of, zeroed},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use guard_tests::{
    flows::{NOTHING, PASSES},
    frame::{TCP, UDP, ip, udp},
    guard::Guard,
    new_world,
    witness::Witness,
    world::{Namespace, World},
};

const POLICY: &str = "version: 1\nname: sockets\nmode: enforce\ninbound: []\n\
    outbound:\n  - { name: out, to: any, services: [tcp/7000, udp/7000] }\n";
const LISTED: u16 = 7000;
const OTHER: u16 = 7777;

/// Sends something that the witness sees, from a thread inside the server's namespace.
type Send = fn(IpAddr, u16) -> io::Result<()>;

/// One kind of socket: over which families, to which place, and what leaves.
struct Way {
    what: &'static str,
    families: &'static [bool],
    protocol: u8,
    /// Over the second link; else the first.
    back: bool,
    send: Send,
}

const BOTH: &[bool] = &[false, true];
const WAYS: &[Way] = &[
    Way { what: "a raw IP socket", families: BOTH, protocol: UDP, back: false, send: raw },
    Way { what: "a header of its own (IP_HDRINCL)", families: &[false], protocol: UDP, back: false, send: own_header },
    Way { what: "bound to a device", families: BOTH, protocol: UDP, back: true, send: bound_to_device },
    Way { what: "an IPv4-mapped address", families: &[false], protocol: UDP, back: false, send: mapped_datagram },
    Way { what: "an IPv4-mapped address", families: &[false], protocol: TCP, back: false, send: mapped_connection },
    Way { what: "MPTCP", families: BOTH, protocol: TCP, back: false, send: mptcp },
    Way { what: "data with the first packet", families: BOTH, protocol: TCP, back: false, send: fast_open },
];

#[test]
fn every_kind_of_socket_is_judged() {
    let Some(world) = new_world("netns_bypass_sockets every_kind") else { return };
    let front = Witness::start(&world.router, World::WIRE).unwrap();
    let back = Witness::start(&world.client, "eth1").unwrap();
    let tried = |way: &Way, ipv6: bool, port: u16, limit| -> bool {
        let to = match (way.back, ipv6) {
            (false, _) => world.client.address(ipv6),
            (true, true) => World::BACK_V6[1].into(),
            (true, false) => World::BACK_V4[1].into(),
        };
        let witness = if way.back { &back } else { &front };
        witness.forget();
        // What the sender is told is not what is asked here.
        let said = world.server.run(|| (way.send)(to, port));
        let left = witness.waits_for(limit, |packet| {
            packet.protocol == way.protocol && packet.destination_port == port && packet.destination == to
        });
        if !left {
            println!("{}, IPv6 {ipv6}, port {port}: {said:?}", way.what);
        }
        left
    };
    let mut has = Vec::new();
    for way in WAYS {
        for ipv6 in way.families {
            if way.what == "MPTCP" && !has_mptcp(&world.server) {
                guard_tests::skip::skip("netns_bypass_sockets MPTCP", "this kernel has no MPTCP");
                continue;
            }
            for port in [LISTED, OTHER] {
                assert!(tried(way, *ipv6, port, PASSES), "without guard: {}, IPv6 {ipv6}, port {port}", way.what);
            }
            has.push((way, *ipv6));
        }
    }
    let guard = Guard::start(&world, POLICY).unwrap();
    for (way, ipv6) in has {
        assert!(tried(way, ipv6, LISTED, PASSES), "listed: {}, IPv6 {ipv6}", way.what);
        let before = guard.packets("not_listed", "outbound", true).unwrap();
        assert!(!tried(way, ipv6, OTHER, NOTHING), "not listed, and it left: {}, IPv6 {ipv6}", way.what);
        let dropped = guard.packets("not_listed", "outbound", true).unwrap();
        assert!(dropped > before, "{}, IPv6 {ipv6}: not counted", way.what);
    }
    assert_eq!((front.lost().unwrap(), back.lost().unwrap()), (0, 0));
}

fn has_mptcp(place: &Namespace) -> bool {
    place.run(|| socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).is_ok())
}

fn done(result: isize) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let raw = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    done(raw as isize)?;
    // SAFETY: just made.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn family(address: IpAddr) -> i32 {
    if address.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET }
}

/// A kernel's address, with its length.
fn kernel(to: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: zero is a value of it, and each of the two is no longer than it.
    unsafe {
        let mut storage: libc::sockaddr_storage = zeroed();
        let length = match to {
            SocketAddr::V4(to) => {
                let address = (&raw mut storage).cast::<libc::sockaddr_in>();
                (*address).sin_family = libc::AF_INET as u16;
                (*address).sin_port = to.port().to_be();
                (*address).sin_addr.s_addr = u32::from(*to.ip()).to_be();
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(to) => {
                let address = (&raw mut storage).cast::<libc::sockaddr_in6>();
                (*address).sin6_family = libc::AF_INET6 as u16;
                (*address).sin6_port = to.port().to_be();
                (*address).sin6_addr.s6_addr = to.ip().octets();
                size_of::<libc::sockaddr_in6>()
            }
        };
        (storage, length as libc::socklen_t)
    }
}

fn send_to(socket: &OwnedFd, to: SocketAddr, bytes: &[u8], flags: i32) -> io::Result<()> {
    let (address, length) = kernel(to);
    let (bytes_at, address_at) = (bytes.as_ptr().cast(), (&raw const address).cast());
    // SAFETY: both are as long as said.
    done(unsafe { libc::sendto(socket.as_raw_fd(), bytes_at, bytes.len(), flags, address_at, length) })
}

/// Does not wait for an answer.
fn connect(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    let (address, length) = kernel(to);
    // SAFETY: as long as said.
    done(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } as isize)
}

/// The transport header by hand, the kernel's own IP header.
fn raw(to: IpAddr, port: u16) -> io::Result<()> {
    let socket = socket(family(to), libc::SOCK_RAW, libc::IPPROTO_UDP)?;
    send_to(&socket, (to, 0).into(), &udp((to, 4000), (to, port), b"raw"), 0)
}

fn own_header(to: IpAddr, port: u16) -> io::Result<()> {
    let from = IpAddr::from([192, 0, 2, 10]);
    let socket = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    send_to(&socket, (to, 0).into(), &ip(from, to, UDP, &udp((from, 4000), (to, port), b"own header")), 0)
}

fn bound_to_device(to: IpAddr, port: u16) -> io::Result<()> {
    let socket = socket(family(to), libc::SOCK_DGRAM, 0)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &"eth1".into())?;
    send_to(&socket, (to, port).into(), b"bound", 0)
}

fn mapped(to: IpAddr, port: u16) -> SocketAddr {
    let IpAddr::V4(to) = to else { panic!("{to} is not IPv4") };
    (Ipv4Addr::to_ipv6_mapped(&to), port).into()
}

fn mapped_datagram(to: IpAddr, port: u16) -> io::Result<()> {
    send_to(&socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?, mapped(to, port), b"mapped", 0)
}

fn mapped_connection(to: IpAddr, port: u16) -> io::Result<()> {
    connect(&socket(libc::AF_INET6, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?, mapped(to, port))
}

fn mptcp(to: IpAddr, port: u16) -> io::Result<()> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
    connect(&socket(family(to), kind, libc::IPPROTO_MPTCP)?, (to, port).into())
}

fn fast_open(to: IpAddr, port: u16) -> io::Result<()> {
    let socket = socket(family(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    send_to(&socket, (to, port).into(), b"at once", libc::MSG_FASTOPEN)
}
