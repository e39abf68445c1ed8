//! By the kernel's own sockets, with every option that has ever been a way round something.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Result, ensure};
use guard_tests::frame::{ICMP, ICMPV6, UDP, icmp, ip, udp};
use nix::sys::socket::SockaddrStorage;

use crate::{
    attempt::{Act, Attempt, Expected, name},
    mark::{Mark, Sign, at, intruder, server},
    victim::{option, socket},
};

const IP_TRANSPARENT: i32 = 19;
const IPV6_TRANSPARENT: i32 = 75;
const IPV6_HDRINCL: i32 = 36;
const UDP_LITE: i32 = 136;
const UDP_SEGMENT: i32 = 103;
const TCP_REPAIR_WINDOW: i32 = 29;

pub fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    // SAFETY: the buffer is as long as said.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    ensure!(sent >= 0, "send: {}", io::Error::last_os_error());
    Ok(())
}

pub fn send_to(socket: &OwnedFd, bytes: &[u8], to: SocketAddr) -> Result<()> {
    send_flags(socket, bytes, to, 0)
}

fn send_flags(socket: &OwnedFd, bytes: &[u8], to: SocketAddr, flags: i32) -> Result<()> {
    let flags = nix::sys::socket::MsgFlags::from_bits_retain(flags);
    nix::sys::socket::sendto(socket.as_raw_fd(), bytes, &SockaddrStorage::from(to), flags)?;
    Ok(())
}

pub const fn family(ipv6: bool) -> i32 {
    if ipv6 { libc::AF_INET6 } else { libc::AF_INET }
}

fn any(ipv6: bool) -> IpAddr {
    if ipv6 { [0u16; 8].into() } else { [0u8; 4].into() }
}

fn bind(socket: &OwnedFd, to: SocketAddr) -> Result<()> {
    Ok(nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(to))?)
}

fn connect(socket: &OwnedFd, to: SocketAddr) -> Result<()> {
    Ok(nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?)
}

/// A connection whose first segment is enough; whether anybody answers is not waited for.
pub fn syn(socket: &OwnedFd, to: SocketAddr) -> Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    match nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    std::thread::sleep(Duration::from_millis(20));
    Ok(())
}

pub fn all() -> Vec<Attempt> {
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        datagrams(ipv6, &mut all);
        streams(ipv6, &mut all);
        raw(ipv6, &mut all);
        packets(ipv6, &mut all);
    }
    mapped(&mut all);
    absent(&mut all);
    all
}

fn row(ipv6: bool, what: &str, act: impl Fn(&Mark) -> Result<()> + 'static) -> Attempt {
    Attempt::out(name(ipv6, what), Act::Inside(Box::new(act)))
}

/// A datagram by a socket that was prepared in one way or another.
fn datagram(ipv6: bool, what: &str, prepare: impl Fn(&OwnedFd) -> Result<()> + 'static) -> Attempt {
    row(ipv6, what, move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_DGRAM, 0)?;
        prepare(&socket)?;
        send_to(&socket, mark.text().as_bytes(), (intruder(ipv6), mark.port()).into())
    })
}

fn set(level: i32, name: i32, value: i32) -> impl Fn(&OwnedFd) -> Result<()> {
    move |socket| option(socket.as_raw_fd(), level, name, &value)
}

fn datagrams(ipv6: bool, all: &mut Vec<Attempt>) {
    all.push(datagram(ipv6, "socket: udp, not connected", |_| Ok(())));
    all.push(row(ipv6, "socket: udp, connected", move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_DGRAM, 0)?;
        connect(&socket, (intruder(ipv6), mark.port()).into())?;
        send(&socket, mark.text().as_bytes())
    }));
    all.push(row(ipv6, "socket: udp, connected to who is listed, sent to another", move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_DGRAM, 0)?;
        let router: IpAddr = if ipv6 { "2001:db8:2::1".parse()? } else { "192.0.2.1".parse()? };
        connect(&socket, (router, 53).into())?;
        send_to(&socket, mark.text().as_bytes(), (intruder(ipv6), mark.port()).into())
    }));
    for port in [53, 67, 123, 443, 22, 80] {
        all.push(row(ipv6, &format!("socket: udp bound to port {port}"), move |mark| {
            let socket = socket(family(ipv6), libc::SOCK_DGRAM, 0)?;
            option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, &1i32)?;
            bind(&socket, (server(ipv6), port).into())?;
            send_to(&socket, mark.text().as_bytes(), (intruder(ipv6), mark.port()).into())
        }));
    }
    for (what, level, name, value) in [
        ("SO_MARK", libc::SOL_SOCKET, libc::SO_MARK, 1),
        ("SO_PRIORITY 7", libc::SOL_SOCKET, libc::SO_PRIORITY, 7),
        ("MSG_ZEROCOPY allowed", libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1),
        ("UDP_CORK", libc::IPPROTO_UDP, libc::UDP_CORK, 0),
        ("UDP_SEGMENT", libc::IPPROTO_UDP, UDP_SEGMENT, 1000),
    ] {
        all.push(datagram(ipv6, &format!("socket: udp with {what}"), set(level, name, value)));
    }
    all.push(datagram(ipv6, "socket: udp with SO_BINDTODEVICE", |socket| device(socket, "eth0")));
    all.push(row(ipv6, "socket: udp with SO_BINDTODEVICE, by the second link", move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_DGRAM, 0)?;
        device(&socket, "eth1")?;
        let to: IpAddr = if ipv6 { "2001:db8:b::130".parse()? } else { "198.51.100.130".parse()? };
        send_to(&socket, mark.text().as_bytes(), (to, mark.port()).into())
    }));
    let transparent = if ipv6 { (libc::IPPROTO_IPV6, IPV6_TRANSPARENT) } else { (libc::IPPROTO_IP, IP_TRANSPARENT) };
    all.push(datagram(ipv6, "socket: udp with IP_TRANSPARENT from another's address", move |socket| {
        option(socket.as_raw_fd(), transparent.0, transparent.1, &1i32)?;
        let other: IpAddr = if ipv6 { at::CLIENT_V6.into() } else { at::CLIENT_V4.into() };
        bind(socket, (other, 4000).into())
    }));
    let hops = if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) } else { (libc::IPPROTO_IP, libc::IP_TTL) };
    all.push(datagram(ipv6, "socket: udp that lives one hop", set(hops.0, hops.1, 1)));
    all.push(row(ipv6, "socket: udp in segments", move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_DGRAM, 0)?;
        option(socket.as_raw_fd(), libc::IPPROTO_UDP, UDP_SEGMENT, &14i32)?;
        send_to(&socket, mark.text().repeat(10).as_bytes(), (intruder(ipv6), mark.port()).into())
    }));
    all.push(row(ipv6, "socket: udp larger than a frame", move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_DGRAM, 0)?;
        send_to(&socket, mark.text().repeat(300).as_bytes(), (intruder(ipv6), mark.port()).into())
    }));
    all.push(row(ipv6, "socket: udp by sendmmsg", move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_DGRAM, 0)?;
        connect(&socket, (intruder(ipv6), mark.port()).into())?;
        let text = mark.text();
        let mut part = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() };
        // SAFETY: one message of one part, all of it alive during the call.
        let sent = unsafe {
            let mut message: libc::mmsghdr = std::mem::zeroed();
            message.msg_hdr.msg_iov = &raw mut part;
            message.msg_hdr.msg_iovlen = 1;
            libc::sendmmsg(socket.as_raw_fd(), &raw mut message, 1, 0)
        };
        ensure!(sent == 1, "sendmmsg: {}", io::Error::last_os_error());
        Ok(())
    }));
    all.push(row(ipv6, "socket: udp by splice from a pipe", move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_DGRAM, 0)?;
        connect(&socket, (intruder(ipv6), mark.port()).into())?;
        let (read, write) = nix::unistd::pipe()?;
        nix::unistd::write(&write, mark.text().as_bytes())?;
        let none = std::ptr::null_mut();
        // SAFETY: both descriptors are open, and no offset is given.
        let moved = unsafe { libc::splice(read.as_raw_fd(), none, socket.as_raw_fd(), none, 14, 0) };
        ensure!(moved == 14, "splice: {}", io::Error::last_os_error());
        Ok(())
    }));
    all.push(row(ipv6, "socket: UDP-Lite", move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_DGRAM, UDP_LITE)?;
        send_to(&socket, mark.text().as_bytes(), (intruder(ipv6), mark.port()).into())
    }));
    all.push(row(ipv6, "socket: ping", move |mark| {
        // Root is in no group that may: net.ipv4.ping_group_range.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
        let protocol = if ipv6 { ICMPV6 } else { ICMP };
        let socket = socket(family(ipv6), libc::SOCK_DGRAM, protocol.into())?;
        let kind = if ipv6 { 128 } else { 8 };
        let rest = [&[0, 1, 0, 1][..], mark.text().as_bytes()].concat();
        send_to(&socket, &icmp(server(ipv6), intruder(ipv6), kind, 0, &rest), (intruder(ipv6), 0).into())
    }));
    let group: IpAddr = if ipv6 { [0xff05, 0, 0, 0, 0, 0, 0, 0x77].into() } else { [239, 7, 7, 7].into() };
    all.push(row(ipv6, "socket: udp to a group", move |mark| {
        let socket = UdpSocket::bind((server(ipv6), 0))?;
        socket.send_to(mark.text().as_bytes(), (group, mark.port()))?;
        Ok(())
    }));
    if !ipv6 {
        all.push(row(ipv6, "socket: udp to broadcast", move |mark| {
            let socket = UdpSocket::bind((server(false), 0))?;
            socket.set_broadcast(true)?;
            socket.send_to(mark.text().as_bytes(), (Ipv4Addr::new(192, 0, 2, 255), mark.port()))?;
            Ok(())
        }));
        all.push(datagram(ipv6, "socket: udp with IP_OPTIONS", |socket| {
            option(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, &[7u8, 7, 4, 0, 0, 0, 0, 0])
        }));
    } else {
        all.push(datagram(ipv6, "socket: udp with destination options", |socket| {
            let options = [0u8, 0, 1, 4, 0, 0, 0, 0];
            option(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &options)
        }));
        all.push(datagram(ipv6, "socket: udp with hop-by-hop options", |socket| {
            let options = [0u8, 0, 1, 4, 0, 0, 0, 0];
            option(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, &options)
        }));
    }
}

fn device(socket: &OwnedFd, name: &str) -> Result<()> {
    // SAFETY: the name is as long as said.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            name.len() as libc::socklen_t,
        )
    };
    ensure!(set == 0, "SO_BINDTODEVICE: {}", io::Error::last_os_error());
    Ok(())
}

fn streams(ipv6: bool, all: &mut Vec<Attempt>) {
    let to = move |mark: &Mark| SocketAddr::from((intruder(ipv6), mark.port()));
    all.push(
        row(ipv6, "socket: tcp", move |mark| syn(&socket(family(ipv6), libc::SOCK_STREAM, 0)?, to(mark)))
            .sign(Sign::Port),
    );
    all.push(row(ipv6, "socket: tcp, a whole session", move |mark| {
        use std::io::Write;
        let mut stream = TcpStream::connect_timeout(&(intruder(ipv6), 443).into(), Duration::from_millis(300))?;
        stream.write_all(mark.text().as_bytes())?;
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }));
    all.push(
        row(ipv6, "socket: MPTCP", move |mark| syn(&socket(family(ipv6), libc::SOCK_STREAM, 262)?, to(mark)))
            .sign(Sign::Port),
    );
    all.push(
        row(ipv6, "socket: tcp with fast open", move |mark| {
            let socket = socket(family(ipv6), libc::SOCK_STREAM, 0)?;
            send_flags(&socket, mark.text().as_bytes(), to(mark), libc::MSG_FASTOPEN | libc::MSG_DONTWAIT).or_else(
                |error| {
                    let under_way = error.downcast_ref() == Some(&nix::errno::Errno::EINPROGRESS);
                    if under_way { Ok(()) } else { Err(error) }
                },
            )
        })
        .sign(Sign::Port),
    );
    for port in [22, 53, 80] {
        all.push(
            row(ipv6, &format!("socket: tcp bound to port {port}"), move |mark| {
                let socket = socket(family(ipv6), libc::SOCK_STREAM, 0)?;
                option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32)?;
                let own: IpAddr = if ipv6 { "2001:db8:2::11".parse()? } else { "192.0.2.11".parse()? };
                bind(&socket, (own, port).into())?;
                syn(&socket, to(mark))
            })
            .sign(Sign::Port),
        );
    }
    for (what, device_name, mark_value) in [("SO_BINDTODEVICE", "eth0", 0), ("SO_MARK", "", 7)] {
        all.push(
            row(ipv6, &format!("socket: tcp with {what}"), move |mark| {
                let socket = socket(family(ipv6), libc::SOCK_STREAM, 0)?;
                if mark_value != 0 {
                    option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK, &mark_value)?;
                } else {
                    device(&socket, device_name)?;
                }
                syn(&socket, to(mark))
            })
            .sign(Sign::Port),
        );
    }
    all.push(row(ipv6, "socket: tcp put together by TCP_REPAIR", move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_STREAM, 0)?;
        let fd = socket.as_raw_fd();
        option(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, &1i32)?;
        bind(&socket, (server(ipv6), 0).into())?;
        connect(&socket, (intruder(ipv6), mark.port()).into())?;
        // What the other end takes, and what we do: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
        option(fd, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &[0u32, 65_535, 65_535, 65_535, 0])?;
        // Off, without a probe of the other's window, which would be answered by a reset.
        option(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, &-1i32)?;
        send(&socket, mark.text().as_bytes())
    }));
}

/// Raw IP sockets.
fn raw(ipv6: bool, all: &mut Vec<Attempt>) {
    for protocol in [1u8, 6, 17, 47, 50, 58, 132, 136, 253] {
        // The other family's ICMP is nothing that the kernel would send by itself, and it does.
        all.push(row(ipv6, &format!("raw socket: protocol {protocol}"), move |mark| {
            let socket = socket(family(ipv6), libc::SOCK_RAW, protocol.into())?;
            let payload = match protocol {
                17 => udp((server(ipv6), mark.port()), (intruder(ipv6), mark.port()), mark.text().as_bytes()),
                _ => [&[8, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0][..], mark.text().as_bytes()]
                    .concat(),
            };
            send_to(&socket, &payload, (intruder(ipv6), 0).into())
        }));
    }
    let whole = move |mark: &Mark, from: IpAddr| {
        let datagram = udp((from, mark.port()), (intruder(ipv6), mark.port()), mark.text().as_bytes());
        ip(from, intruder(ipv6), UDP, &datagram)
    };
    all.push(row(ipv6, "raw socket: the whole header is ours", move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        if ipv6 {
            option(socket.as_raw_fd(), libc::IPPROTO_IPV6, IPV6_HDRINCL, &1i32)?;
        }
        send_to(&socket, &whole(mark, server(ipv6)), (intruder(ipv6), 0).into())
    }));
    all.push(row(ipv6, "raw socket: the whole header, from another's address", move |mark| {
        let socket = socket(family(ipv6), libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        if ipv6 {
            option(socket.as_raw_fd(), libc::IPPROTO_IPV6, IPV6_HDRINCL, &1i32)?;
        }
        let other: IpAddr = if ipv6 { at::CLIENT_V6.into() } else { at::CLIENT_V4.into() };
        send_to(&socket, &whole(mark, other), (intruder(ipv6), 0).into())
    }));
}

/// Packet sockets, which go past the IP stack.
fn packets(ipv6: bool, all: &mut Vec<Attempt>) {
    let packet = move |mark: &Mark| {
        let datagram = udp((server(ipv6), mark.port()), (intruder(ipv6), mark.port()), mark.text().as_bytes());
        ip(server(ipv6), intruder(ipv6), UDP, &datagram)
    };
    // What the socket says of the frame need not be true.
    for (what, protocol) in [
        ("its own type", if ipv6 { 0x86dd } else { 0x0800u16 }),
        ("ARP", 0x0806),
        ("EAPOL", 0x888e),
        ("loopback", 0x9000),
        ("0", 0),
    ] {
        all.push(row(ipv6, &format!("packet socket, datagram, that says {what}"), move |mark| {
            let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
            let kind = if ipv6 { 0x86dd } else { 0x0800u16 };
            let frame = guard_tests::frame::ethernet(at::ROUTER_MAC, at::SERVER_MAC, kind, &packet(mark));
            packet_send(&socket, protocol, &frame)
        }));
    }
    all.push(row(ipv6, "packet socket without a header of ours", move |mark| {
        let socket = socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
        packet_send(&socket, if ipv6 { 0x86dd } else { 0x0800 }, &packet(mark))
    }));
    all.push(row(ipv6, "packet socket with PACKET_VNET_HDR", move |mark| {
        const PACKET_VNET_HDR: i32 = 15;
        let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        option(socket.as_raw_fd(), libc::SOL_PACKET, PACKET_VNET_HDR, &1i32)?;
        let kind = if ipv6 { 0x86dd } else { 0x0800u16 };
        let frame = guard_tests::frame::ethernet(at::ROUTER_MAC, at::SERVER_MAC, kind, &packet(mark));
        packet_send(&socket, kind, &[&[0; 10][..], &frame].concat())
    }));
    all.push(row(ipv6, "packet socket with PACKET_QDISC_BYPASS", move |mark| {
        let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        bypass(&socket)?;
        let kind = if ipv6 { 0x86dd } else { 0x0800u16 };
        let frame = guard_tests::frame::ethernet(at::ROUTER_MAC, at::SERVER_MAC, kind, &packet(mark));
        packet_send(&socket, kind, &frame)
    }));
}

/// From here on the socket's frames go to the driver straight away, past tc.
pub fn bypass(socket: &OwnedFd) -> Result<()> {
    option(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32)
}

/// By `eth0`, to the router, whatever the protocol is said to be.
pub fn packet_send(socket: &OwnedFd, protocol: u16, bytes: &[u8]) -> Result<()> {
    // SAFETY: a struct of integers; buffer and address are as long as said.
    let sent = unsafe {
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = protocol.to_be();
        to.sll_ifindex = nix::net::if_::if_nametoindex("eth0")? as i32;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&at::ROUTER_MAC);
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        libc::sendto(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0, (&raw const to).cast(), length)
    };
    ensure!(sent >= 0, "send: {}", io::Error::last_os_error());
    Ok(())
}

/// IPv4 by IPv6 sockets.
fn mapped(all: &mut Vec<Attempt>) {
    let to = |mark: &Mark| SocketAddr::from((at::INTRUDER_V4.to_ipv6_mapped(), mark.port()));
    all.push(Attempt::out(
        "mapped address, udp",
        Act::Inside(Box::new(move |mark| {
            let socket = socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
            bind(&socket, (any(true), 0).into())?;
            send_to(&socket, mark.text().as_bytes(), to(mark))
        })),
    ));
    all.push(
        Attempt::out(
            "mapped address, tcp",
            Act::Inside(Box::new(move |mark| syn(&socket(libc::AF_INET6, libc::SOCK_STREAM, 0)?, to(mark)))),
        )
        .sign(Sign::Port),
    );
    all.push(
        Attempt::out(
            "mapped address, MPTCP",
            Act::Inside(Box::new(move |mark| syn(&socket(libc::AF_INET6, libc::SOCK_STREAM, 262)?, to(mark)))),
        )
        .sign(Sign::Port),
    );
}

/// Families and protocols that this kernel does not have: tried all the same, so that one that has them tells.
fn absent(all: &mut Vec<Attempt>) {
    for (what, family, kind, protocol) in [
        ("SCTP", libc::AF_INET, libc::SOCK_STREAM, 132),
        ("DCCP", libc::AF_INET, 6, 33),
        ("TIPC", 30, libc::SOCK_DGRAM, 0),
        ("L2TP", libc::AF_INET, libc::SOCK_DGRAM, 115),
        ("CAN", 29, libc::SOCK_RAW, 1),
        ("RDS", 21, libc::SOCK_SEQPACKET, 0),
        ("SMC", 43, libc::SOCK_STREAM, 0),
    ] {
        all.push(
            Attempt::out(
                format!("socket: {what}"),
                Act::Inside(Box::new(move |mark| {
                    let socket = socket(family, kind, protocol)?;
                    send_to(&socket, mark.text().as_bytes(), (intruder(false), mark.port()).into())
                })),
            )
            .expect(Expected::NotHere("no such family or protocol")),
        );
    }
}
