//! Proof from inside, before anybody is told that the host is contained: what is unlisted does not leave, what is in force
//! is what was meant, and nothing stands before it. Needs neither a route nor IPv6 nor somebody who answers.

use std::{
    io,
    mem::{size_of, zeroed},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use guard_common::{Direction, Verdict};
use serde::Serialize;

use crate::{
    daemon::{
        change::{Examined, in_force},
        engine::Engine,
        report::Hook,
    },
    host::held,
    policy::{
        answer::answer,
        model::{FlowQuery, Policy},
    },
    record::flow::UDP,
};

/// What was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Proof {
    pub passed: Vec<String>,
    /// Enforcement does not hold: each in a sentence.
    pub failed: Vec<String>,
    /// Could not be tried, which does not mean that it fails.
    pub notes: Vec<String>,
}

impl Proof {
    #[must_use]
    pub fn holds(&self) -> bool {
        self.failed.is_empty()
    }
}

/// Documentation addresses (RFC 5737, RFC 3849): nobody is there, whatever passes.
const V4: [[u8; 3]; 3] = [[203, 0, 113], [198, 51, 100], [192, 0, 2]];

/// Tries everything. `examined` is of what was published.
pub fn run(engine: &dyn Engine, policy: &Policy, examined: &Examined) -> anyhow::Result<Proof> {
    let mut proof = Proof::default();
    read_back(engine, examined, &mut proof)?;
    let refused = sockets(policy, examined, &mut proof);
    frames(engine, policy, examined, refused, &mut proof)?;
    Ok(proof)
}

fn read_back(engine: &dyn Engine, examined: &Examined, proof: &mut Proof) -> anyhow::Result<()> {
    let read = engine.read_back()?;
    let compiled = &examined.compiled;
    let (slot, generation) = match in_force(&read) {
        Some((slot, generation)) => (usize::from(slot.0), generation),
        None => {
            proof.failed.push("no policy is in force".to_owned());
            return Ok(());
        }
    };
    let same = generation == compiled.generation
        && read.policies[slot] == Some(compiled.policy_sha256)
        && read.state.slots[slot].flags == compiled.flags;
    for direction in [Direction::Inbound, Direction::Outbound] {
        if !read.state.slots[slot].flags.enforces(direction) {
            proof.failed.push(format!("{}: decided, and nothing is dropped", direction.as_str()));
        }
    }
    if same {
        proof.passed.push("tables read back equal".to_owned());
    } else {
        proof.failed.push("what is in force is not what was compiled".to_owned());
    }
    let before = proof.failed.len();
    for hook in &read.hooks {
        if let Some(problem) = problem_of(hook) {
            proof.failed.push(format!("{} {} on {}: {problem}", hook.layer, hook.hook, hook.target));
        }
    }
    for line in engine.interfaces()?.iter().filter(|line| line.guarded) {
        for way in ["ingress", "egress"] {
            let hooked = |hook: &Hook| hook.layer == "wire" && hook.target == line.name && hook.hook.contains(way);
            if !read.hooks.iter().any(hooked) {
                proof.failed.push(format!("{}: nothing of ours at {way}", line.name));
            }
        }
    }
    if proof.failed.len() == before {
        proof.passed.push(format!("first in line everywhere ({} hooks)", read.hooks.len()));
    }
    Ok(())
}

fn problem_of(hook: &Hook) -> Option<&str> {
    match (&hook.problem, hook.attached, hook.ours, hook.first) {
        (Some(problem), ..) => Some(problem),
        (None, false, ..) => Some("not attached"),
        (None, _, false, _) => Some("not ours"),
        (None, _, _, false) => Some("another program stands before it"),
        _ => None,
    }
}

/// An address and port that the policy denies.
fn unlisted(policy: &Policy, examined: &Examined, ipv6: bool, protocol: u8, salt: u16) -> Option<SocketAddr> {
    for number in 0..64_u16 {
        let at = salt.wrapping_add(number);
        let address: IpAddr = if ipv6 {
            [0x2001, 0xdb8, at, 0, 0, 0, 0, 0x77].into()
        } else {
            let [a, b, c] = V4[usize::from(at % 3)];
            [a, b, c, 20 + (at / 3 % 200) as u8].into()
        };
        let port = 40_000 + at % 20_000;
        let query = FlowQuery {
            direction: Direction::Outbound,
            remote: address,
            remote_port: None,
            local: None,
            service: u32::from(protocol) << 16 | u32::from(port),
            interface: None,
        };
        let denied = answer(policy, &examined.compiled, &query, examined.clocks).explanation.verdict == Verdict::Deny;
        if denied {
            return Some(SocketAddr::new(address, port));
        }
    }
    None
}

/// A connection to nowhere: refused at once where the socket layer holds this process. By family.
fn sockets(policy: &Policy, examined: &Examined, proof: &mut Proof) -> [bool; 2] {
    let mut refused = [false; 2];
    for (at, family) in [(0, "IPv4"), (1, "IPv6")] {
        let Some(to) = unlisted(policy, examined, at == 1, 6, std::process::id() as u16) else {
            proof.notes.push(format!("{family}: the policy lists every documentation address"));
            continue;
        };
        match connect(to) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                refused[at] = true;
                proof.passed.push(format!("{family}: unlisted refused at once"));
            }
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                proof.notes.push(format!("{family}: this host has none"));
            }
            Ok(()) => proof.failed.push(format!("{family}: a connection to {to}, which is not listed, was made")),
            // No route, or on its way to the wire: that one is asked next.
            Err(_) => {}
        }
    }
    refused
}

/// Frames as root could send them, on every guarded interface: they must be found denied in the flow tables.
fn frames(
    engine: &dyn Engine,
    policy: &Policy,
    examined: &Examined,
    refused: [bool; 2],
    proof: &mut Proof,
) -> anyhow::Result<()> {
    let generation = examined.compiled.generation;
    let mut sent: Vec<(String, &str, SocketAddr)> = Vec::new();
    let mut missing = Vec::new();
    for line in engine.interfaces()?.iter().filter(|line| line.guarded) {
        for (at, family) in [(0, "IPv4"), (1, "IPv6")] {
            let salt = (std::process::id() as u16).wrapping_mul(31).wrapping_add(line.index as u16 * 64 + at as u16);
            let Some(to) = unlisted(policy, examined, at == 1, UDP, salt) else { continue };
            let tried = (line.name.clone(), family, to);
            match until_denied(engine, to, generation, || send(line.index, to))? {
                Ok(denied) => {
                    if !denied {
                        missing.push(tried.clone());
                    }
                    sent.push(tried);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {
                    proof.notes.push(format!("{} is down", line.name));
                }
                Err(error) => proof.notes.push(format!("{} {family}: not tried: {error}", line.name)),
            }
        }
    }
    for (interface, family, to) in &missing {
        proof.failed.push(format!("{interface} {family}: a frame to {to}, which is not listed, was not denied"));
    }
    for (at, family) in [(0, "IPv4"), (1, "IPv6")] {
        let tried = sent.iter().filter(|(_, of, _)| *of == family).count();
        let denied = tried - missing.iter().filter(|(_, of, _)| *of == family).count();
        if denied > 0 {
            proof.passed.push(format!("{family}: {denied} of {tried} frames dropped at the wire"));
        } else if tried == 0 && !refused[at] {
            proof.notes.push(format!("{family}: nothing could be sent to be refused"));
        }
    }
    Ok(())
}

/// Sends a frame until it is found denied, or was not for long enough. Asked for by itself and at once, and again: whoever
/// sends more from addresses that are made up than the table of what was denied holds, pushes the frame's own entry out.
fn until_denied(
    engine: &dyn Engine,
    to: SocketAddr,
    generation: u32,
    send: impl Fn() -> io::Result<()>,
) -> anyhow::Result<io::Result<bool>> {
    const TRIES: usize = 20;
    let from: IpAddr = if to.is_ipv6() { FROM_V6.into() } else { FROM_V4.into() };
    let from = SocketAddr::new(from, FROM_PORT);
    let Some(key) = held::key(UDP, to, from, 0) else { return Ok(Ok(false)) };
    for number in 0..TRIES {
        match send() {
            // The queue's answer to a frame that a program dropped.
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Ok(Err(error)),
            _ => {}
        }
        // The programs run in the sender's own system call.
        let found = engine.flow(&key)?;
        if found.is_some_and(|flow| flow.generation == generation && flow.outcome.verdict() == Verdict::Deny) {
            return Ok(Ok(true));
        }
        // What holds it up, if anything, is short; a frame that is not denied is not denied twenty times.
        std::thread::sleep(Duration::from_millis(if number < TRIES / 2 { 0 } else { 10 }));
    }
    Ok(Ok(false))
}

fn connect(to: SocketAddr) -> io::Result<()> {
    let family = if to.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    let socket = socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    // SAFETY: a struct of integers, as large as any address.
    let mut address: libc::sockaddr_storage = unsafe { zeroed() };
    let length = match to {
        SocketAddr::V4(to) => {
            // SAFETY: the storage is large enough and aligned for every kind of address.
            let v4 = unsafe { &mut *(&raw mut address).cast::<libc::sockaddr_in>() };
            v4.sin_family = family as u16;
            v4.sin_port = to.port().to_be();
            v4.sin_addr.s_addr = u32::from(*to.ip()).to_be();
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(to) => {
            // SAFETY: as above.
            let v6 = unsafe { &mut *(&raw mut address).cast::<libc::sockaddr_in6>() };
            v6.sin6_family = family as u16;
            v6.sin6_port = to.port().to_be();
            v6.sin6_addr.s6_addr = to.ip().octets();
            size_of::<libc::sockaddr_in6>()
        }
    };
    // SAFETY: the address is ours and as long as said.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length as libc::socklen_t) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One UDP packet by a packet socket, which needs no route; the kernel writes the link's own header, where there is one.
fn send(interface: u32, to: SocketAddr) -> io::Result<()> {
    // Protocol 0: it hears nothing.
    let socket = socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
    let packet = packet(to);
    // SAFETY: a struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    let kind = if to.is_ipv6() { libc::ETH_P_IPV6 } else { libc::ETH_P_IP };
    address.sll_protocol = (kind as u16).to_be();
    address.sll_ifindex = interface as i32;
    // Locally administered, nobody's.
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&[2, 0, 0x67, 0x75, 0x61, 0x72]);
    // SAFETY: buffer and address are ours and as long as said.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Where the frames say that they are from, documentation addresses, too: an answer, were there one, would go nowhere.
const FROM_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const FROM_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0xfe);
/// Discard.
const FROM_PORT: u16 = 9;

/// No checksum of UDP (RFC 768).
fn packet(to: SocketAddr) -> Vec<u8> {
    const LENGTH: u16 = 8;
    let mut udp = Vec::new();
    for word in [FROM_PORT, to.port(), LENGTH, 0] {
        udp.extend(word.to_be_bytes());
    }
    let mut packet = Vec::new();
    match to.ip() {
        IpAddr::V4(to) => {
            packet.extend([0x45, 0, 0, 20 + LENGTH as u8, 0, 1, 0, 0, 1, UDP, 0, 0]);
            packet.extend(FROM_V4.octets());
            packet.extend(to.octets());
            let sum: u32 = packet.as_chunks::<2>().0.iter().map(|two| u32::from(u16::from_be_bytes(*two))).sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        }
        IpAddr::V6(to) => {
            packet.extend([0x60, 0, 0, 0, 0, LENGTH as u8, UDP, 1]);
            packet.extend(FROM_V6.octets());
            packet.extend(to.octets());
        }
    }
    packet.extend(udp);
    packet
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor is new and nobody else's.
    unsafe {
        let raw = libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol);
        if raw < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(raw)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        daemon::{change::clocks, fake::FakeEngine},
        policy::{compile::compile, load_str},
    };

    fn examined(mode: &str) -> (Policy, Examined) {
        let text = format!("version: 1\nname: x\nmode: {mode}\ninbound: []\noutbound: []\n");
        let policy = load_str("x.yaml", &text).unwrap().policy;
        let clocks = clocks();
        let compiled = compile(&policy, clocks, 1).unwrap();
        let (held, session, impact) = Default::default();
        (policy, Examined { compiled, clocks, held, session, impact })
    }

    fn read_back_of(engine: &dyn Engine, examined: &Examined) -> Vec<String> {
        let mut proof = Proof::default();
        read_back(engine, examined, &mut proof).unwrap();
        proof.failed
    }

    #[test]
    fn what_is_in_force_must_be_what_was_meant() {
        let (_, good) = examined("enforce");
        let mut engine = FakeEngine::default();
        assert_eq!(read_back_of(&engine, &good), ["no policy is in force"]);
        engine.publish(&good.compiled, None).unwrap();
        assert!(read_back_of(&engine, &good).is_empty());
        let mut forged = FakeEngine { forges_policy: true, ..FakeEngine::default() };
        forged.publish(&good.compiled, None).unwrap();
        assert_eq!(read_back_of(&forged, &good), ["what is in force is not what was compiled"]);
    }

    #[test]
    fn a_policy_that_only_audits_proves_nothing() {
        let (_, audits) = examined("audit");
        let mut engine = FakeEngine::default();
        engine.publish(&audits.compiled, None).unwrap();
        let failed = read_back_of(&engine, &audits);
        assert!(failed.len() == 2 && failed[0].contains("nothing is dropped"), "{failed:?}");
    }

    #[test]
    fn an_address_that_is_listed_is_not_asked_for() {
        let text = "version: 1\nname: x\nmode: enforce\ninbound: []\noutbound:\n  \
                    - { to: [203.0.113.0/24, 198.51.100.0/24], services: any }\n";
        let policy = load_str("x.yaml", text).unwrap().policy;
        let (_, mut examined) = examined("enforce");
        examined.compiled = compile(&policy, examined.clocks, 1).unwrap();
        for salt in 0..200 {
            let to = unlisted(&policy, &examined, false, UDP, salt).unwrap();
            assert!(to.ip().to_string().starts_with("192.0.2."), "{to}");
        }
    }

    /// Whoever floods the table pushes the entry out again and again.
    #[test]
    fn a_frame_is_sent_again_until_it_is_found() {
        let to: SocketAddr = "203.0.113.77:40000".parse().unwrap();
        let key = held::key(UDP, to, SocketAddr::new(FROM_V4.into(), FROM_PORT), 0).unwrap();
        let mut engine = FakeEngine::default();
        let sent = std::cell::Cell::new(0);
        let send = || {
            sent.set(sent.get() + 1);
            Err(io::Error::from_raw_os_error(libc::ENOBUFS))
        };
        assert!(!until_denied(&engine, to, 3, send).unwrap().unwrap(), "not denied");
        assert!(sent.replace(0) > 10, "tried again");
        let outcome = guard_common::decide::Outcome::without_rule(guard_common::Reason::NotListed);
        engine.flows.push((key, guard_common::abi::Flow { generation: 3, outcome, ..Default::default() }));
        assert!(until_denied(&engine, to, 3, send).unwrap().unwrap());
        assert_eq!(sent.get(), 1);
        assert!(!until_denied(&engine, to, 4, send).unwrap().unwrap(), "by the policy from before");
        assert!(until_denied(&engine, to, 3, || Err(io::Error::from_raw_os_error(libc::ENETDOWN))).unwrap().is_err());
    }

    #[test]
    fn a_packet_is_one_that_the_parser_takes() {
        let v4 = packet("203.0.113.77:40000".parse().unwrap());
        assert_eq!((v4.len(), v4[9]), (28, UDP));
        let sum: u32 = v4[..20].as_chunks::<2>().0.iter().map(|two| u32::from(u16::from_be_bytes(*two))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the header's checksum");
        let v6 = packet("[2001:db8:1::77]:40000".parse().unwrap());
        assert_eq!((v6.len(), v6[6], v6[5]), (48, UDP, 8));
    }

    #[test]
    fn a_hook_of_somebody_else_is_told() {
        let hook = Hook {
            layer: "wire".to_owned(),
            hook: "tcx egress".to_owned(),
            target: "eth0".to_owned(),
            attached: true,
            ours: true,
            first: false,
            problem: None,
        };
        assert_eq!(problem_of(&hook), Some("another program stands before it"));
        assert_eq!(problem_of(&Hook { first: true, ..hook }), None);
    }
}
