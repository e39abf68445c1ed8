//! The socket layer, the seal and the backstop, attached to a cgroup of this test, in a network namespace of this test.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, Program};
use guard_common::{
    Direction, Reason,
    abi::{Features, Flow, FlowKeyV4, FlowKeyV6, Interface, Slot, SlotFlags, SlotInfo, State, StateWord},
    decide::{Descriptor, Header, Line, Node, Target, Word, root_node},
};
use guard_tests::bpf::{OBJECT, Programs, lookup, update};
use nix::sched::{CloneFlags, unshare};

/// Rule 0: tcp/443 outbound, to any address; rule 1: udp/5300 inbound, from any. Nothing else.
fn tables() -> Vec<Node> {
    let mut nodes = vec![Node::default(); Header::FIRST_FREE as usize + 2];
    let (outbound, inbound) = (Header::FIRST_FREE, Header::FIRST_FREE + 1);
    let everywhere = |target: Target| {
        let mut node = Node::default();
        node.0[Descriptor::FIRST] = 1;
        node.0[Descriptor::BELOW] = target.0;
        node.0[Descriptor::ABOVE] = target.0;
        node
    };
    for ipv6 in [false, true] {
        nodes[root_node(Direction::Inbound, ipv6) as usize] = everywhere(Target::line(Word::Service, inbound));
        nodes[root_node(Direction::Outbound, ipv6) as usize] = everywhere(Target::line(Word::Service, outbound));
    }
    for (line, service, rule) in [(outbound, 6 << 16 | 443, 0), (inbound, 17 << 16 | 5300, 1)] {
        let node = &mut nodes[line as usize].0;
        node[..Line::TARGETS].fill(u32::MAX);
        node[Line::TARGETS..].fill(Target::NOT_LISTED.0);
        node[0] = 0;
        node[1] = service;
        node[2] = service + 1;
        node[Line::TARGETS + 1] = Target::allow(rule).0;
    }
    nodes
}

/// A cgroup with this process in it; on drop the process goes back and the cgroup away.
struct Cgroup {
    path: PathBuf,
    before: PathBuf,
}

impl Cgroup {
    fn enter() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let root = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(2).filter(|kind| *kind == "cgroup2").and(line.split(' ').nth(1)))
            .next()
            .context("cgroup2 is not mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("not in a cgroup2")?;
        let before = Path::new(root).join(own);
        let path = Path::new(root).join(format!("guard-test-socket-{}", std::process::id()));
        fs::create_dir(&path)?;
        let cgroup = Self { path, before };
        fs::write(cgroup.path.join("cgroup.procs"), std::process::id().to_string())?;
        Ok(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), std::process::id().to_string());
        let _ = fs::remove_dir(&self.path);
    }
}

fn socket(domain: i32, kind: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers, gives a descriptor that nothing else owns.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: as above.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

fn set_option(socket: &OwnedFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: `value` is as long as stated.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn netns_cookie() -> Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    let (mut cookie, mut length) = (0_u64, 8);
    // SAFETY: both pointers are to values that live until the call returns.
    let result = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut length)
    };
    ensure!(result == 0, io::Error::last_os_error());
    Ok(cookie)
}

/// Loopback up, which also gives it 127.0.0.1 and ::1.
fn loopback_up() -> Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    // SAFETY: zero is a value of this C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    // SAFETY: the request outlives the call.
    ensure!(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) } == 0);
    Ok(())
}

fn connect(to: &str) -> io::Result<()> {
    let to: SocketAddr = to.parse().map_err(io::Error::other)?;
    TcpStream::connect_timeout(&to, Duration::from_millis(100)).map(drop)
}

fn send(to: &str) -> io::Result<()> {
    send_from(0, to)
}

fn send_from(port: u16, to: &str) -> io::Result<()> {
    let to: SocketAddr = to.parse().map_err(io::Error::other)?;
    let from = if to.is_ipv4() { "0.0.0.0" } else { "::" };
    UdpSocket::bind((from, port))?.send_to(b"x", to).map(drop)
}

fn refused(result: io::Result<()>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
}

/// Whatever came of it, the socket layer let it go on.
fn passed(result: io::Result<()>) -> bool {
    !refused(result)
}

fn attach(programs: &mut Programs, cgroup: &Cgroup) -> Result<()> {
    for (name, program) in programs.ebpf.programs_mut() {
        let directory = fs::File::open(&cgroup.path)?;
        // Links always allow others beside them; the kernel refuses flags that say so.
        let mode = CgroupAttachMode::Single;
        match program {
            Program::CgroupSockAddr(program) => {
                program.attach(directory, mode).context(name.to_owned())?;
            }
            Program::CgroupSockopt(program) => {
                program.attach(directory, mode).context(name.to_owned())?;
            }
            Program::CgroupSock(program) => {
                program.attach(directory, mode).context(name.to_owned())?;
            }
            Program::CgroupSkb(program) => {
                let hook =
                    if name.ends_with("egress") { CgroupSkbAttachType::Egress } else { CgroupSkbAttachType::Ingress };
                program.attach(directory, hook, mode).context(name.to_owned())?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn publish(programs: &Programs, flags: u32) -> Result<()> {
    let mut state = State { word: StateWord::settled(Slot(0)), abi: guard_common::abi::VERSION, ..State::default() };
    state.slots[0] = SlotInfo { generation: 1, flags: SlotFlags(flags) };
    programs.set_state(&state)
}

const QDISC_BYPASS: (i32, i32) = (263, 20);

#[test]
fn sockets_are_told_what_the_wire_would_deny() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    loopback_up()?;
    let cgroup = Cgroup::enter()?;
    let cookie = netns_cookie()?;
    let features = Features::NETNS_COOKIE_SKB | Features::NETNS_COOKIE_SOCKOPT | Features::CURRENT_SOCKOPT;
    let mut programs = Programs::load(OBJECT, |loader| {
        loader.override_global("NETNS_COOKIE", &cookie, true).override_global("FEATURES", &features, true);
    })?;
    programs.fill(Slot(0), &tables(), 2)?;
    programs.set_state(&State { word: StateWord::TRACKING, ..State::default() })?;
    attach(&mut programs, &cgroup)?;

    // No policy: everything goes on.
    ensure!(passed(connect("192.0.2.1:80")) && passed(send("[2001:db8::1]:53")));

    publish(&programs, SlotFlags::ENFORCE_INBOUND | SlotFlags::ENFORCE_OUTBOUND)?;
    ensure!(passed(connect("192.0.2.1:443")) && passed(connect("[2001:db8::1]:443")));
    ensure!(refused(connect("192.0.2.1:80")), "IPv4, not listed");
    ensure!(refused(connect("192.0.2.1:80")), "again");
    ensure!(refused(connect("[2001:db8::1]:80")), "IPv6, not listed");
    ensure!(refused(connect("[::ffff:192.0.2.2]:80")), "a mapped address is IPv4");
    ensure!(passed(connect("[::ffff:192.0.2.2]:443")));
    ensure!(refused(send("192.0.2.1:443")), "another protocol");
    ensure!(refused(send("[2001:db8::1]:443")));
    ensure!(passed(connect("127.0.0.1:9")) && passed(connect("[::1]:9")) && passed(connect("0.0.0.0:9")));

    // What a server sends may be an answer, which the wire knows; what another socket of ours sends is not.
    for to in ["192.0.2.9:3000", "[2001:db8::9]:3000"] {
        ensure!(passed(send_from(5300, to)) && refused(send_from(5301, to)), "a server's answer to {to}");
    }

    // The refusals are in the flow table, once each, and counted.
    let mut flow = Flow::default();
    let key = FlowKeyV4 { remote: 0xc000_0201, remote_port: 80, protocol_scope: 6, ..FlowKeyV4::default() };
    lookup(programs.map("FLOWS_DENIED_V4")?, &key, &mut flow)?;
    ensure!(flow.packets == [0, 2] && flow.flags & Flow::AT_SOCKET != 0 && flow.generation == 1, "{flow:?}");
    ensure!(flow.outcome.reason() == Reason::NotListed && flow.outcome.rule().is_none());
    let key = FlowKeyV4 { remote: 0xc000_0202, ..key };
    lookup(programs.map("FLOWS_DENIED_V4")?, &key, &mut flow).context("the mapped address")?;
    let key =
        FlowKeyV6 { remote: [0x2001_0db8, 0, 0, 1], remote_port: 443, protocol_scope: 17, ..FlowKeyV6::default() };
    lookup(programs.map("FLOWS_DENIED_V6")?, &key, &mut flow)?;
    ensure!(programs.counted(Reason::NotListed, Direction::Outbound, true)?.packets == 8);

    // Near destinations are left to whoever judges there.
    update(programs.map("NEAR_V4")?, &(24_u32, 0xc000_0200_u32.to_be()), &1_u8)?;
    ensure!(passed(connect("192.0.2.1:80")) && refused(connect("198.51.100.1:80")));

    seal()?;
    ensure!(programs.counted(Reason::Sealed, Direction::Outbound, true)?.packets == 1);
    backstop(&programs)?;

    // Audit: nothing is refused.
    publish(&programs, 0)?;
    ensure!(passed(connect("198.51.100.1:80")) && passed(send("[2001:db8::1]:443")));
    let packet = socket(libc::AF_PACKET, libc::SOCK_RAW)?;
    set_option(&packet, QDISC_BYPASS.0, QDISC_BYPASS.1, &1_i32.to_ne_bytes())?;
    ensure!(programs.counted(Reason::Sealed, Direction::Outbound, false)?.packets == 1);
    Ok(())
}

fn seal() -> Result<()> {
    let packet = socket(libc::AF_PACKET, libc::SOCK_RAW)?;
    let set = |value: i32| set_option(&packet, QDISC_BYPASS.0, QDISC_BYPASS.1, &value.to_ne_bytes());
    ensure!(refused(set(1)), "qdisc bypass on");
    ensure!(set(0).is_ok(), "qdisc bypass off");
    // Any other option of the same level, and a large one.
    set_option(&packet, 263, 8, &1_i32.to_ne_bytes()).context("PACKET_AUXDATA")?;
    Ok(())
}

/// A device that userspace has not told the programs about.
fn backstop(programs: &Programs) -> Result<()> {
    let made = std::process::Command::new("ip")
        .args(["link", "add", "guard0", "type", "veth", "peer", "name", "guard1"])
        .status()?;
    ensure!(made.success());
    for arguments in [
        "addr add 203.0.113.1/24 dev guard0",
        "link set guard0 up",
        "link set guard1 up",
        "neigh add 203.0.113.2 lladdr 02:00:00:00:00:02 dev guard0",
    ] {
        ensure!(std::process::Command::new("ip").args(arguments.split(' ')).status()?.success(), "ip {arguments}");
    }
    let index = nix::net::if_::if_nametoindex("guard0")?;
    // What the socket layer lets on is dropped: the interface is unknown.
    update(programs.map("NEAR_V4")?, &(24_u32, 0xcb00_7100_u32.to_be()), &1_u8)?;
    let before = programs.counted(Reason::UnknownInterface, Direction::Outbound, true)?.packets;
    ensure!(send("203.0.113.2:53").is_err_and(|error| error.kind() == ErrorKind::PermissionDenied));
    ensure!(programs.counted(Reason::UnknownInterface, Direction::Outbound, true)?.packets == before + 1);
    update(programs.map("INTERFACES")?, &index, &Interface::default())?;
    send("203.0.113.2:53").context("an interface that is known, and not guarded")?;
    Ok(())
}
