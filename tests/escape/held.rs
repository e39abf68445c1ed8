//! By sockets that were made before guard was started.

use std::{
    io::Write,
    net::{IpAddr, TcpStream},
    os::fd::AsRawFd,
};

use anyhow::Result;
use guard_tests::{
    af_xdp::Sender,
    frame::{ICMP, ICMPV6, UDP, ethernet, icmp, ip, udp},
};

use crate::{
    attempt::{Act, Attempt, Expected, name},
    mark::{Mark, intruder, server},
    sockets::{bypass, family, packet_send, send, send_to},
    victim::socket,
};

fn row(ipv6: bool, what: &str, act: impl Fn(&mut dyn Iterator<Item = Mark>) -> Result<()> + 'static) -> Attempt {
    Attempt::out(name(ipv6, what), Act::Held(Box::new(act)))
}

pub fn all() -> Vec<Attempt> {
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        let to: IpAddr = intruder(ipv6);
        all.push(row(ipv6, "from before: udp, not connected", move |marks| {
            let socket = socket(family(ipv6), libc::SOCK_DGRAM, 0)?;
            each(marks, |mark| ignore(send_to(&socket, mark.text().as_bytes(), (to, mark.port()).into())))
        }));
        all.push(row(ipv6, "from before: udp, connected and in use", move |marks| {
            let socket = socket(family(ipv6), libc::SOCK_DGRAM, 0)?;
            nix::sys::socket::connect(
                socket.as_raw_fd(),
                &nix::sys::socket::SockaddrStorage::from(std::net::SocketAddr::from((to, 9001))),
            )?;
            send(&socket, b"a question that is answered")?;
            each(marks, |mark| ignore(send(&socket, mark.text().as_bytes())))
        }));
        all.push(row(ipv6, "from before: a session", move |marks| {
            let mut stream = TcpStream::connect((to, 9001))?;
            stream.set_nodelay(true)?;
            each(marks, |mark| ignore(stream.write_all(mark.text().as_bytes()).map_err(Into::into)))
        }));
        all.push(row(ipv6, "from before: a session of MPTCP", move |marks| {
            let socket = socket(family(ipv6), libc::SOCK_STREAM, 262)?;
            nix::sys::socket::connect(
                socket.as_raw_fd(),
                &nix::sys::socket::SockaddrStorage::from(std::net::SocketAddr::from((to, 9001))),
            )?;
            each(marks, |mark| ignore(send(&socket, mark.text().as_bytes())))
        }));
        all.push(row(ipv6, "from before: a raw socket", move |marks| {
            let protocol = if ipv6 { ICMPV6 } else { ICMP };
            let socket = socket(family(ipv6), libc::SOCK_RAW, protocol.into())?;
            each(marks, |mark| {
                let rest = [&[0, 7, 0, 1][..], mark.text().as_bytes()].concat();
                let kind = if ipv6 { 128 } else { 8 };
                ignore(send_to(&socket, &icmp(server(ipv6), to, kind, 0, &rest), (to, 0).into()))
            })
        }));
        for (what, round) in [("a packet socket", false), ("a packet socket with PACKET_QDISC_BYPASS", true)] {
            let attempt = row(ipv6, &format!("from before: {what}"), move |marks| {
                let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
                if round {
                    bypass(&socket)?;
                }
                each(marks, |mark| {
                    let datagram = udp((server(ipv6), mark.port()), (to, mark.port()), mark.text().as_bytes());
                    let kind = if ipv6 { 0x86dd } else { 0x0800 };
                    let frame = ethernet(
                        crate::mark::at::ROUTER_MAC,
                        crate::mark::at::SERVER_MAC,
                        kind,
                        &ip(server(ipv6), to, UDP, &datagram),
                    );
                    ignore(packet_send(&socket, kind, &frame))
                })
            });
            all.push(attempt);
        }
        // It knows frames and no families, and a queue has room for one.
        if !ipv6 {
            all.push(af_xdp());
        }
        all.push(Attempt::into_host(
            name(ipv6, "from before: a shell of the intruder's, inbound"),
            Act::Outside(Box::new(move |scene, mark| {
                let mut shell = &scene.shells[usize::from(ipv6)];
                ignore(shell.write_all(mark.text().as_bytes()).map_err(Into::into))
            })),
        ));
    }
    all
}

fn af_xdp() -> Attempt {
    let attempt = row(false, "from before: an AF_XDP socket", |marks| {
        let mut sender = Sender::new(nix::net::if_::if_nametoindex("eth0")?, &[0; 64])?;
        each(marks, |mark| {
            let to = intruder(false);
            let datagram = udp((server(false), mark.port()), (to, mark.port()), mark.text().as_bytes());
            let packet = ip(server(false), to, UDP, &datagram);
            let frame = ethernet(crate::mark::at::ROUTER_MAC, crate::mark::at::SERVER_MAC, 0x0800, &packet);
            ignore(sender.send_this(&frame).map_err(Into::into))
        })
    });
    attempt.expect(Expected::Gap("ended with its process, in a lockdown only; SECURITY.md"))
}

fn each(marks: &mut dyn Iterator<Item = Mark>, mut act: impl FnMut(Mark) -> Result<()>) -> Result<()> {
    for mark in marks {
        act(mark)?;
    }
    Ok(())
}

/// Refused or not: what counts is what left.
fn ignore(_: Result<()>) -> Result<()> {
    Ok(())
}
