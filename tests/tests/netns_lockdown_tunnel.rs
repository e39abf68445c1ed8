//! A session that comes over a VPN which ends on this host in a program of its own: what carries the VPN has to stay, also
//! where the program speaks UDP and has a TCP connection beside it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

use guard_tests::{
    guard::Guard,
    new_world,
    process::{Process, run},
    world::{Namespace, World},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const BEFORE: &str = "version: 1\nname: before\nmode: enforce\ninbound:\n  - { from: any, services: any }\n\
    outbound:\n  - { to: any, services: any }\n";
/// Inside the tunnel: the server's end, the client's.
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];
/// Outside of it, on the server.
const PORT: u16 = 5555;

fn tun(namespace: &Namespace, name: &str, address: Ipv4Addr) -> io::Result<File> {
    let file = namespace.run(|| {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        // struct ifreq: a name of 16 bytes, then the flags.
        let mut request = [0_u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&((libc::IFF_TUN | libc::IFF_NO_PI) as u16).to_ne_bytes());
        // SAFETY: reads and writes the 40 bytes of a struct ifreq.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
        if made < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
    })?;
    namespace.ip(&format!("address add {address}/30 dev {name}\nlink set {name} up\n"))?;
    Ok(file)
}

/// What comes out of a device goes to the other end as a datagram, and what comes from there into the device.
fn carry(device: &File, outer: &UdpSocket, to: Option<(IpAddr, u16)>) {
    let (mut from_device, outer_out) = (device.try_clone().unwrap(), outer.try_clone().unwrap());
    let (mut into_device, outer_in) = (device.try_clone().unwrap(), outer.try_clone().unwrap());
    thread::spawn(move || {
        let mut packet = [0; 2048];
        while let Ok(length) = from_device.read(&mut packet) {
            // Refused or not: the session shows what became of it.
            let _ = match to {
                Some(to) => outer_out.send_to(&packet[..length], to),
                None => outer_out.send(&packet[..length]),
            };
        }
    });
    thread::spawn(move || {
        let mut packet = [0; 2048];
        loop {
            if let Ok(length) = outer_in.recv(&mut packet) {
                let _ = into_device.write_all(&packet[..length]);
            }
        }
    });
}

/// This test's process drives both ends of a VPN between client and server, and holds the session that comes over it: so a
/// command that it starts finds the session among those of its parent.
struct Vpn {
    near: TcpStream,
    far: TcpStream,
    _beside: TcpStream,
    _listeners: [TcpListener; 2],
}

impl Vpn {
    fn start(world: &World, connected: bool) -> Self {
        let client: IpAddr = world.client.v4.into();
        let devices = [tun(&world.server, "vpn0", INNER[0]).unwrap(), tun(&world.client, "vpn0", INNER[1]).unwrap()];
        let near = world.server.run(|| UdpSocket::bind((world.server.v4, PORT))).unwrap();
        let far = world.client.run(|| UdpSocket::bind((world.client.v4, PORT))).unwrap();
        if connected {
            near.connect((client, PORT)).unwrap();
        }
        carry(&devices[0], &near, (!connected).then_some((client, PORT)));
        carry(&devices[1], &far, Some((world.server.v4.into(), PORT)));
        // A coordinator's connection: by TCP, to the outside, and not what carries the session.
        let coordinator = world.intruder.run(|| TcpListener::bind((world.intruder.v4, 443))).unwrap();
        let beside = world.server.run(|| TcpStream::connect((world.intruder.v4, 443))).unwrap();
        let listener = world.server.run(|| TcpListener::bind((INNER[0], 2222))).unwrap();
        let far = world.client.run(|| TcpStream::connect_timeout(&(INNER[0], 2222).into(), LIMIT)).unwrap();
        let near = listener.accept().unwrap().0;
        let vpn = Self { near, far, _beside: beside, _listeners: [coordinator, listener] };
        vpn.speaks();
        vpn
    }

    fn speaks(&self) {
        for (mut from, mut to) in [(&self.near, &self.far), (&self.far, &self.near)] {
            to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            from.write_all(b"key").unwrap();
            to.read_exact(&mut [0; 3]).unwrap();
        }
    }
}

fn arguments<'a>(world: &'a World, more: &[&'a str]) -> Vec<&'a str> {
    let cgroup = world.cgroup().to_str().unwrap();
    [&["--json", "--evidence", "none", "--cgroup", cgroup], more].concat()
}

/// The plan's ways in, as `tcp/22 to ADDRESS`.
fn ways(guard: &Guard, world: &World) -> Vec<(String, String)> {
    let ended = guard.ask("lockdown", &arguments(world, &["--dry-run"])).unwrap();
    assert!(ended.good(), "{}", ended.text());
    let plan: Value = serde_json::from_str(ended.stdout.lines().next().unwrap()).unwrap();
    let ways = plan["plan"]["way_in"]["ways"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    ways.map(|way| (text(&way["service"]), text(&way["remote"]))).collect()
}

/// The session goes on through the flip, and after it.
fn holds(guard: &Guard, world: &World, vpn: &Vpn) {
    let mut command = guard.command("lockdown").unwrap();
    command.args(arguments(world, &["--yes", "--confirm-within", "5m"]));
    let mut process = Process::spawn(&mut command).unwrap();
    process.wait_line(LIMIT, |line| line.contains("\"event\":\"contained\"")).unwrap();
    for _ in 0..10 {
        vpn.speaks();
        thread::sleep(Duration::from_millis(50));
    }
    guard.tell("rollback", &[]).unwrap();
    process.finish(LIMIT).unwrap();
}

#[test]
fn the_udp_that_carries_a_vpn_stays() {
    let Some(world) = new_world("netns_lockdown_tunnel connected") else { return };
    let guard = Guard::prepare(&world, BEFORE).unwrap();
    let vpn = Vpn::start(&world, true);
    let outer = (format!("udp/{PORT}"), format!("{}:{PORT}", world.client.v4));
    let found = ways(&guard, &world);
    assert!(found.contains(&outer), "{found:?}");
    holds(&guard, &world, &vpn);
}

/// The socket itself does not know whom it speaks with: guard's tables do, where it runs already.
#[test]
fn where_nobody_knows_what_carries_it_the_lockdown_is_refused() {
    let Some(world) = new_world("netns_lockdown_tunnel unconnected") else { return };
    let mut guard = Guard::prepare(&world, BEFORE).unwrap();
    let vpn = Vpn::start(&world, false);
    let refused = run(guard.command("lockdown").unwrap().args(arguments(&world, &["--yes"])), LIMIT).unwrap();
    assert_eq!(refused.code(), Some(3), "{}", refused.text());
    for part in ["comes over vpn0 (tun)", &format!("udp/{PORT}"), "--allow-from"] {
        assert!(refused.stdout.contains(part), "{part}: {}", refused.text());
    }
    assert_eq!(guard.status().unwrap()["mode"], "none", "nothing was changed");

    guard.run(&[]).unwrap();
    vpn.speaks();
    let found = ways(&guard, &world);
    assert!(
        found.iter().any(|(service, remote)| {
            service == &format!("udp/{PORT}") && remote == &format!("{}:{PORT}", world.client.v4)
        }),
        "{found:?}"
    );
    holds(&guard, &world, &vpn);
}
