//! Devices over devices, and tunnels, on kernels that have them: what the policy does not list does not pass, inside or
//! outside; what it lists does; each packet is judged once where only one frame leaves, twice where the tuples differ.
//! The far end is outside the guarded host, and a capture there the witness.

mod kinds;
mod sctp;

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use guard_tests::{
    echo::{Echo, tcp_reaches, udp_reaches, udp_socket, udp_speaks},
    guard::Guard,
    process::run,
    witness::Witness,
    world::{Inside, Namespace, World},
};
use serde_json::Value;

use self::kinds::{Kind, Level, Protocol, all, mac};

/// An emulated processor is slow, and each of a round waits beside the others.
const LIMIT: Duration = Duration::from_secs(30);
const ONCE: Duration = Duration::from_secs(3);
const LISTED: u16 = 7000;
const UNLISTED: u16 = 7001;

struct Stage {
    world: World,
    kinds: Vec<Kind>,
    /// Where each kind's inner end at the server is: the server itself, or a namespace of its own.
    pods: Vec<Option<Namespace>>,
    witnesses: Vec<Witness>,
    _echoes: Vec<Echo>,
}

/// One thing that is tried: of which kind, by whom, how, and to which port.
#[derive(Clone, Copy)]
struct Attempt {
    kind: usize,
    outbound: bool,
    protocol: Protocol,
    port: u16,
}

impl Stage {
    fn set() -> Result<Self> {
        let world = World::create().context("a world")?;
        for place in [&world.server, &world.client] {
            place.sysctl("ipv4/tcp_l3mdev_accept", "1")?;
            place.sysctl("ipv4/udp_l3mdev_accept", "1")?;
        }
        for link in ["eth2", "eth3", "eth4", "eth5", "eth6", "eth7"] {
            let (ours, theirs, far) = (mac(link, 0), mac(link, 1), world.client.name());
            world.server.ip(&format!(
                "link add {link} address {ours} type veth peer name {link} address {theirs} netns {far}\nlink set {link} up\n"
            ))?;
            world.client.ip(&format!("link set {link} up\n"))?;
        }
        let kinds = all();
        let pods = kinds.iter().map(|kind| kind.pod.map(|_| world.namespace(kind.top)).transpose());
        let pods = pods.collect::<std::io::Result<Vec<_>>>()?;
        let links = ["eth1", "eth2", "eth3", "eth4", "eth5", "eth6", "eth7"];
        let witnesses = links.iter().map(|link| Witness::start(&world.client, link));
        let witnesses = witnesses.collect::<std::io::Result<Vec<_>>>()?;
        let places: Vec<&Inside> = [&*world.server as &Inside, &world.client]
            .into_iter()
            .chain(pods.iter().flatten().map(|pod| &**pod))
            .collect();
        let any: IpAddr = [0_u16; 8].into();
        let mut echoes = Vec::new();
        for place in places {
            for port in [LISTED, UNLISTED] {
                echoes.push(Echo::tcp(place, any, port)?);
                echoes.push(Echo::udp(place, any, port)?);
                sctp::echo(place, port).context("SCTP")?;
            }
        }
        Ok(Self { kinds, pods, witnesses, _echoes: echoes, world })
    }

    /// Makes every kind at one end; which cannot be made here, and why.
    fn make(&self, end: usize) -> Vec<String> {
        let mut failed = Vec::new();
        for (kind, pod) in self.kinds.iter().zip(&self.pods) {
            let made = match (pod, end) {
                (Some(pod), 0) => self
                    .world
                    .server
                    .ip(&kind.pod.unwrap_or_default()[0].replace("{pod}", pod.name()))
                    .and_then(|()| pod.ip(&kind.lines(0))),
                (_, 0) => self.world.server.ip(&kind.lines(0)),
                _ => self.world.client.ip(&kind.lines(1)),
            };
            if let Err(error) = made.map_err(anyhow::Error::from).and_then(|()| self.keys(kind, end)) {
                failed.push(format!("{}: {error:#}", kind.name));
            }
        }
        failed
    }

    /// WireGuard's.
    fn keys(&self, kind: &Kind, end: usize) -> Result<()> {
        if kind.top != "wg0" {
            return Ok(());
        }
        let file = |end: usize| self.world.dir().join(format!("wg{end}"));
        let wg = |place: &Inside, line: &str| -> Result<String> {
            let ended = run(place.command("sh").args(["-c", line]), LIMIT)?;
            ensure!(ended.good(), "{line}: {}", ended.text());
            Ok(ended.stdout.trim().to_owned())
        };
        for end in [0, 1] {
            if !file(end).exists() {
                wg(&self.world.server, &format!("umask 077; wg genkey > {}", file(end).display()))?;
            }
        }
        let place: &Inside = if end == 0 { &self.world.server } else { &self.world.client };
        let peer = wg(place, &format!("wg pubkey < {}", file(1 - end).display()))?;
        let (own, inner, outer) = (file(end), kind.addresses()[1 - end], Kind::OUTER[1 - end]);
        wg(
            place,
            &format!(
                "wg set wg0 listen-port 51820 private-key {} peer {peer} allowed-ips {inner}/32 endpoint {outer}:51820",
                own.display()
            ),
        )?;
        Ok(())
    }

    fn near(&self, kind: usize) -> &Inside {
        self.pods[kind].as_ref().map_or(&self.world.server, |pod| pod)
    }

    fn try_once(&self, attempt: Attempt, limit: Duration) -> bool {
        let [server, client] = self.kinds[attempt.kind].addresses();
        let far: &Inside = &self.world.client;
        let (from, to) = if attempt.outbound { (self.near(attempt.kind), client) } else { (far, server) };
        let to = SocketAddr::new(to, attempt.port);
        let reaches = match attempt.protocol {
            Protocol::Tcp => tcp_reaches,
            Protocol::Udp => udp_reaches,
            Protocol::Sctp => sctp::reaches,
        };
        reaches(from, to, limit).is_ok()
    }

    /// All at once: those of kinds that `passes` says yes to have to pass at the listed port, all others not. Without a
    /// policy everything has to.
    fn round(&self, what: &str, open: bool, passes: impl Fn(&Kind) -> bool, failed: &mut Vec<String>) -> Result<()> {
        self.witnesses.iter().for_each(Witness::forget);
        let mut attempts = Vec::new();
        for kind in 0..self.kinds.len() {
            for outbound in [true, false] {
                for &protocol in self.kinds[kind].protocols {
                    attempts.extend([LISTED, UNLISTED].map(|port| Attempt { kind, outbound, protocol, port }));
                }
            }
        }
        let expected = |attempt: &Attempt| open || (attempt.port == LISTED && passes(&self.kinds[attempt.kind]));
        let results: Vec<bool> = thread::scope(|scope| {
            let tried: Vec<_> = attempts
                .iter()
                .map(|attempt| {
                    let wanted = expected(attempt);
                    scope.spawn(move || {
                        let start = Instant::now();
                        loop {
                            let passed = self.try_once(*attempt, ONCE);
                            if passed == wanted || start.elapsed() > LIMIT {
                                return passed;
                            }
                        }
                    })
                })
                .collect();
            tried.into_iter().map(|thread| thread.join().unwrap_or(false)).collect()
        });
        for witness in &self.witnesses {
            ensure!(witness.lost()? == 0, "a witness lost frames: it proves nothing");
        }
        for (attempt, passed) in attempts.iter().zip(results) {
            let kind = &self.kinds[attempt.kind];
            let way = if attempt.outbound { "out" } else { "in" };
            let name = format!("{what}: {} {way} {:?} {}", kind.name, attempt.protocol, attempt.port);
            let wanted = expected(attempt);
            if passed != wanted {
                failed.push(format!("{name} {}", if passed { "PASSED" } else { "does not pass" }));
            }
            let seen = self.left(kind, attempt);
            if attempt.outbound && kind.legible && seen != wanted {
                failed.push(format!("{name}: {}", if seen { "a frame LEFT" } else { "the witness saw nothing" }));
            }
        }
        Ok(())
    }

    /// Whether a frame left the server that carries this attempt's tuple, at whatever depth.
    fn left(&self, kind: &Kind, attempt: &Attempt) -> bool {
        let [from, to] = kind.addresses();
        self.any_frame(|frame| carries(frame, from, to, attempt.protocol, attempt.port))
    }

    fn any_frame(&self, wanted: impl Fn(&[u8]) -> bool) -> bool {
        self.witnesses.iter().any(|witness| !witness.frames(|seen| !seen.outgoing && wanted(&seen.frame)).is_empty())
    }

    /// Ten datagrams there and back, one kind after the other: what each level counted of them. Ends of earlier connections
    /// may come in between, so that it is asked again where it is too much.
    fn counts(&self, guard: &Guard, failed: &mut Vec<String>) -> Result<()> {
        const DATAGRAMS: u64 = 10;
        let kinds = self.kinds.iter().enumerate().filter(|(_, kind)| kind.protocols.contains(&Protocol::Udp));
        for (number, kind) in kinds {
            let [server, client] = kind.addresses();
            let socket = udp_socket(self.near(number), server.is_ipv6(), LIMIT)?;
            let speak = || {
                udp_speaks(&socket, SocketAddr::new(client, LISTED)).with_context(|| format!("{}: counted", kind.name))
            };
            // The first one may be asked for again: of it nothing is said.
            speak()?;
            let levels = if kind.level == Level::Lowest { 1 } else { 2 };
            let mut told = Vec::new();
            for _ in 0..4 {
                let before = allowed(&guard.status()?);
                for _ in 0..DATAGRAMS {
                    speak()?;
                }
                let after = allowed(&guard.status()?);
                told.push([after[0] - before[0], after[1] - before[1]]);
                if told.last() == Some(&[levels * DATAGRAMS; 2]) {
                    break;
                }
            }
            println!("guard-vm: stacked: {}: {DATAGRAMS} datagrams each way were counted {told:?}", kind.name);
            if told.last() != Some(&[levels * DATAGRAMS; 2]) {
                failed.push(format!("{}: {DATAGRAMS} datagrams each way were counted {told:?}", kind.name));
            }
        }
        Ok(())
    }
}

/// Packets out and in that a rule allowed, and MACsec's frames.
fn allowed(status: &Value) -> [u64; 2] {
    ["outbound", "inbound"].map(|direction| {
        let lines = status["reasons"].as_array().into_iter().flatten();
        lines
            .filter(|line| {
                line["direction"] == direction && (line["reason"] == "rule_allow" || line["reason"] == "macsec")
            })
            .filter_map(|line| line["packets"].as_u64())
            .sum()
    })
}

/// An IP header's two addresses, and the destination port behind them: anywhere in a frame.
fn carries(frame: &[u8], from: IpAddr, to: IpAddr, protocol: Protocol, port: u16) -> bool {
    let addresses = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => return false,
    };
    // IPv4 has the protocol 3 bytes before the addresses, IPv6 two.
    let before = if from.is_ipv4() { 3 } else { 2 };
    frame.windows(addresses.len() + 4).enumerate().any(|(at, window)| {
        window.starts_with(&addresses)
            && window[addresses.len() + 2..] == port.to_be_bytes()
            && at >= before
            && frame[at - before] == protocol as u8
    })
}

fn policy(kinds: &[Kind], inner: bool, outer: bool) -> String {
    let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
    let mut rule = |name: String, remote: IpAddr, services: &str| {
        inbound.push(format!("  - {{ name: \"{name} in\", from: \"{remote}\", services: [{services}] }}\n"));
        outbound.push(format!("  - {{ name: \"{name} out\", to: \"{remote}\", services: [{services}] }}\n"));
    };
    for kind in kinds.iter().filter(|_| inner) {
        let services = if kind.protocols == [Protocol::Sctp] { "sctp/7000" } else { "tcp/7000, udp/7000" };
        rule(kind.name.to_owned(), kind.addresses()[1], services);
    }
    let mut services: Vec<&str> = kinds
        .iter()
        .filter_map(|kind| match kind.level {
            Level::Both(service) if outer && !service.is_empty() => Some(service),
            _ => None,
        })
        .collect();
    services.sort_unstable();
    services.dedup();
    if !services.is_empty() {
        rule("outer".to_owned(), Kind::OUTER[1].into(), &services.join(", "));
    }
    let list = |rules: Vec<String>| if rules.is_empty() { " []\n".to_owned() } else { format!("\n{}", rules.concat()) };
    format!("version: 1\nname: stacked\nmode: enforce\ninbound:{}outbound:{}", list(inbound), list(outbound))
}

pub fn devices() -> Result<()> {
    let stage = Stage::set()?;
    let kinds = &stage.kinds;
    let mut failed: Vec<String> = [1, 0].into_iter().flat_map(|end| stage.make(end)).collect();
    stage.round("without guard", true, |_| true, &mut failed)?;
    // What follows proves nothing of a kind that does not work.
    ensure!(failed.is_empty(), "{}", failed.join("; "));

    let mut guard = Guard::start(&stage.world, &policy(kinds, false, false))?;
    let status = guard.status()?;
    println!("guard-vm: stacked: interfaces {}", status["interfaces"]);
    ensure!(status["enforcing"] == true, "guard does not say that it enforces: {}", status["problems"]);
    stage.round("nothing listed", false, |_| false, &mut failed)?;
    let to_wireguard =
        |frame: &[u8]| carries(frame, Kind::OUTER[0].into(), Kind::OUTER[1].into(), Protocol::Udp, 51820);
    if stage.any_frame(to_wireguard) {
        failed.push("nothing listed: a frame of WireGuard LEFT".to_owned());
    }
    let change = |inner, outer| -> Result<()> {
        let done = guard.reload(&policy(kinds, inner, outer), &["--cut-me"])?;
        ensure!(done.good(), "reload: {}", done.text());
        Ok(())
    };
    change(true, false)?;
    // MACsec's frames are essential traffic, and a policy does not list them.
    let once = |kind: &Kind| matches!(kind.level, Level::Lowest | Level::Both(""));
    stage.round("only what is inside is listed", false, once, &mut failed)?;
    change(false, true)?;
    stage.round("only the tunnels are listed", false, |_| false, &mut failed)?;
    change(true, true)?;
    stage.round("all is listed", false, |_| true, &mut failed)?;
    stage.counts(&guard, &mut failed)?;

    // Made anew under guard, as an intruder would.
    change(false, false)?;
    for kind in kinds {
        if !kind.unmake.is_empty() {
            stage.world.server.ip(&format!("{}\n", kind.unmake)).with_context(|| format!("{}: away", kind.name))?;
        }
    }
    for (kind, pod) in kinds.iter().zip(&stage.pods) {
        if let Some(pod) = pod {
            pod.ip(&format!("link del {}\n", kind.top))?;
        }
    }
    failed.extend(stage.make(0));
    stage.round("made under guard, nothing listed", false, |_| false, &mut failed)?;
    change(true, true)?;
    stage.round("made under guard, all is listed", false, |_| true, &mut failed)?;
    guard.stop()?;
    guard.release()?;
    for failure in &failed {
        println!("guard-vm: stacked: {failure}");
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}
