//! A device without an Ethernet header (tun): whoever holds its descriptor is the outside, and sees what really leaves.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, UdpSocket},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    thread,
    time::{Duration, Instant},
};

use guard_tests::{
    flows::{NOTHING, PASSES},
    frame::{Packet, UDP, ethernet_ip, ip, udp},
    guard::Guard,
    new_world,
    world::World,
};

const POLICY: &str = "version: 1\nname: tun\nmode: enforce\n\
    inbound:\n  - { name: in, from: any, services: udp/7000, interface: t0 }\n\
    outbound:\n  - { name: out, to: any, services: udp/7000, interface: t0 }\n";
const LISTED: u16 = 7000;
const OTHER: u16 = 7777;

/// Our address on the device, and the one behind it.
fn ends(ipv6: bool) -> (IpAddr, IpAddr) {
    if ipv6 {
        ([0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1].into(), [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 2].into())
    } else {
        ([203, 0, 113, 129].into(), [203, 0, 113, 130].into())
    }
}

/// The far side of `t0` in the server's namespace.
struct Tunnel(File);

impl Tunnel {
    fn open(world: &World) -> io::Result<Self> {
        let file = world.server.run(|| {
            let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
            // struct ifreq: a name of 16 bytes, then the flags.
            let mut request = [0_u8; 40];
            request[..2].copy_from_slice(b"t0");
            request[16..18].copy_from_slice(&((libc::IFF_TUN | libc::IFF_NO_PI) as u16).to_ne_bytes());
            // SAFETY: reads and writes the 40 bytes of a struct ifreq.
            let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
            if made < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
        })?;
        let ((v4, _), (v6, _)) = (ends(false), ends(true));
        world.server.ip(&format!("address add {v4}/30 dev t0\naddress add {v6}/64 dev t0 nodad\nlink set t0 up\n"))?;
        Ok(Self(file))
    }

    /// Whether a datagram to that port comes out within `limit`.
    fn comes_out(&mut self, to: IpAddr, port: u16, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        let mut packet = [0; 2048];
        while Instant::now() < deadline {
            match self.0.read(&mut packet) {
                Ok(length) => {
                    // The parser takes frames.
                    let frame = ethernet_ip([0; 6], [0; 6], &packet[..length]);
                    let found = Packet::parse(&frame).is_some_and(|packet| {
                        packet.protocol == UDP && packet.destination == to && packet.destination_port == port
                    });
                    if found {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(2)),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// What leaves for a port behind the tunnel, and what arrives from there.
fn passes(world: &World, tunnel: &mut Tunnel, ipv6: bool, port: u16, limit: Duration) -> (bool, bool) {
    let (own, far) = ends(ipv6);
    let socket = world.server.run(|| UdpSocket::bind((own, port))).unwrap();
    socket.set_read_timeout(Some(limit)).unwrap();
    // From another port, so that it is no answer to what came in.
    let asking = world.server.run(|| UdpSocket::bind((own, 0))).unwrap();
    asking.connect((far, port)).unwrap();
    asking.send(b"out").unwrap();
    let out = tunnel.comes_out(far, port, limit).unwrap();
    tunnel.0.write_all(&ip(far, own, UDP, &udp((far, 4000), (own, port), b"in"))).unwrap();
    let mut heard = [0; 8];
    (out, socket.recv(&mut heard).is_ok_and(|length| &heard[..length] == b"in"))
}

#[test]
fn a_tunnel_is_judged_both_ways() {
    let Some(world) = new_world("netns_bypass_tun a_tunnel") else { return };
    let mut tunnel = Tunnel::open(&world).unwrap();
    for ipv6 in [false, true] {
        for port in [LISTED, OTHER] {
            let found = passes(&world, &mut tunnel, ipv6, port, PASSES);
            assert_eq!(found, (true, true), "without guard: IPv6 {ipv6}, port {port}");
        }
    }
    let guard = Guard::start(&world, POLICY).unwrap();
    let status = guard.status().unwrap();
    let wired = status["hooks"].as_array().unwrap().iter().filter(|hook| hook["target"] == "t0").count();
    assert!(status["enforcing"] == true && wired >= 2, "{status:#}");
    for ipv6 in [false, true] {
        assert_eq!(passes(&world, &mut tunnel, ipv6, LISTED, PASSES), (true, true), "listed: IPv6 {ipv6}");
        let counted = |direction| guard.packets("not_listed", direction, true).unwrap();
        let before = (counted("outbound"), counted("inbound"));
        assert_eq!(passes(&world, &mut tunnel, ipv6, OTHER, NOTHING), (false, false), "not listed: IPv6 {ipv6}");
        assert_eq!((counted("outbound"), counted("inbound")), (before.0 + 1, before.1 + 1), "IPv6 {ipv6}");
    }
}
