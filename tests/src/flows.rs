//! Flows as a table of a test writes them, tried with real sockets.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    echo::{Echo, tcp_reaches, udp_reaches},
    process,
    world::{Inside, World},
};

/// What a flow that must pass may take; a machine under load is no failure.
pub const PASSES: Duration = Duration::from_secs(5);
/// How long nothing must come of a flow that must not pass.
pub const NOTHING: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Ping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    Responder,
    Client,
    Intruder,
    /// The client, over the second link.
    Back,
}

/// A flow between the server and somebody outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub inbound: bool,
    pub protocol: Protocol,
    pub remote: Remote,
    /// Of the asked side; 0 for ping.
    pub port: u16,
    /// To the server's second address.
    pub second: bool,
    pub ipv6: bool,
}

impl Flow {
    /// `in tcp client 22`, `out ping intruder`, `in tcp client 22 second`.
    ///
    /// # Panics
    ///
    /// Where it is not of this form.
    #[must_use]
    pub fn new(text: &str, ipv6: bool) -> Self {
        let mut words = text.split(' ');
        let inbound = match words.next() {
            Some("in") => true,
            Some("out") => false,
            _ => panic!("{text}: in or out"),
        };
        let protocol = match words.next() {
            Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            Some("ping") => Protocol::Ping,
            _ => panic!("{text}: tcp, udp or ping"),
        };
        let remote = match words.next() {
            Some("responder") => Remote::Responder,
            Some("client") => Remote::Client,
            Some("intruder") => Remote::Intruder,
            Some("back") => Remote::Back,
            _ => panic!("{text}: responder, client, intruder or back"),
        };
        let port = match protocol {
            Protocol::Ping => 0,
            _ => words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{text}: a port")),
        };
        Self { inbound, protocol, remote, port, second: words.next() == Some("second"), ipv6 }
    }

    #[must_use]
    pub fn remote_address(&self, world: &World) -> IpAddr {
        match self.remote {
            Remote::Responder => world.responder.address(self.ipv6),
            Remote::Client => world.client.address(self.ipv6),
            Remote::Intruder => world.intruder.address(self.ipv6),
            Remote::Back if self.ipv6 => World::BACK_V6[1].into(),
            Remote::Back => World::BACK_V4[1].into(),
        }
    }

    #[must_use]
    pub fn local_address(&self, world: &World) -> IpAddr {
        match (self.remote, self.second, self.ipv6) {
            (Remote::Back, _, true) => World::BACK_V6[0].into(),
            (Remote::Back, _, false) => World::BACK_V4[0].into(),
            (_, true, true) => World::SECOND_V6.into(),
            (_, true, false) => World::SECOND_V4.into(),
            (_, false, ipv6) => world.server.address(ipv6),
        }
    }

    /// The asked side.
    #[must_use]
    pub fn asked(&self, world: &World) -> SocketAddr {
        let address = if self.inbound { self.local_address(world) } else { self.remote_address(world) };
        (address, self.port).into()
    }

    /// Where the remote is.
    #[must_use]
    pub fn place<'a>(&self, world: &'a World) -> &'a Inside {
        match self.remote {
            Remote::Responder => &world.responder,
            Remote::Client | Remote::Back => &world.client,
            Remote::Intruder => &world.intruder,
        }
    }

    /// Tries it: `Ok` where something said came back. Needs an [`Echo`] on the asked side ([`serve`]).
    pub fn attempt(&self, world: &World, limit: Duration) -> io::Result<()> {
        let place: &Inside = if self.inbound { self.place(world) } else { &world.server };
        match self.protocol {
            Protocol::Tcp => tcp_reaches(place, self.asked(world), limit),
            Protocol::Udp => udp_reaches(place, self.asked(world), limit),
            Protocol::Ping => ping(place, self.asked(world).ip(), limit),
        }
    }

    /// `attempt`, waiting as long as the expectation deserves; whether it passed.
    #[must_use]
    pub fn passes(&self, world: &World, expected: bool) -> bool {
        self.attempt(world, if expected { PASSES } else { NOTHING }).is_ok()
    }

    /// As `guard explain` reads it.
    #[must_use]
    pub fn question(&self, world: &World) -> String {
        let bracketed = |address: IpAddr| match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let remote = bracketed(self.remote_address(world));
        let icmp = if self.ipv6 { "icmpv6" } else { "icmp" };
        match (self.inbound, self.protocol) {
            (true, Protocol::Ping) => format!("in {icmp} {remote} echo-request"),
            (false, Protocol::Ping) => format!("out {icmp} {remote} echo-request"),
            (true, protocol) => format!("in {} {remote} -> {}", protocol.name(), self.port),
            (false, protocol) => format!("out {} {remote}:{}", protocol.name(), self.port),
        }
    }

    /// The same with all that a rule may ask for: our own address and the interface.
    #[must_use]
    pub fn full_question(&self, world: &World) -> String {
        let end = |address: IpAddr, port: u16| match self.protocol {
            Protocol::Ping => address.to_string(),
            _ => SocketAddr::from((address, port)).to_string(),
        };
        let (remote, local) = (self.remote_address(world), self.local_address(world));
        let interface = if self.remote == Remote::Back { "eth1" } else { "eth0" };
        let (direction, protocol) = (if self.inbound { "in" } else { "out" }, self.protocol.name());
        match (self.protocol, self.inbound) {
            (Protocol::Ping, _) => {
                let icmp = if self.ipv6 { "icmpv6" } else { "icmp" };
                let (from, to) = if self.inbound { (remote, local) } else { (local, remote) };
                format!("{direction} {icmp} {from} -> {to} echo-request on {interface}")
            }
            (_, true) => format!("in {protocol} {remote} -> {} on {interface}", end(local, self.port)),
            (_, false) => format!("out {protocol} {local} -> {} on {interface}", end(remote, self.port)),
        }
    }

    /// Whether a record is of this flow.
    #[must_use]
    pub fn is_of(&self, world: &World, record: &Value) -> bool {
        let proto = match (self.protocol, self.ipv6) {
            (Protocol::Tcp, _) => "TCP",
            (Protocol::Udp, _) => "UDP",
            (Protocol::Ping, false) => "ICMP",
            (Protocol::Ping, true) => "IPv6-ICMP",
        };
        let asker = if self.inbound { self.remote_address(world) } else { self.local_address(world) };
        let asked = self.asked(world);
        record["proto"] == proto
            && record["src_ip"] == asker.to_string()
            && record["dest_ip"] == asked.ip().to_string()
            && (self.protocol == Protocol::Ping || record["dest_port"] == self.port)
    }

    #[must_use]
    pub fn direction(&self) -> &'static str {
        if self.inbound { "inbound" } else { "outbound" }
    }
}

impl Protocol {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ping => "ping",
        }
    }

    #[must_use]
    pub const fn number(self, ipv6: bool) -> u8 {
        match (self, ipv6) {
            (Self::Tcp, _) => crate::frame::TCP,
            (Self::Udp, _) => crate::frame::UDP,
            (Self::Ping, false) => crate::frame::ICMP,
            (Self::Ping, true) => crate::frame::ICMPV6,
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.inbound { "in" } else { "out" };
        write!(f, "{direction} {} {:?} {}", self.protocol.name(), self.remote, self.port)?;
        if self.second {
            write!(f, " second")?;
        }
        write!(f, " {}", if self.ipv6 { "IPv6" } else { "IPv4" })
    }
}

/// One echo request, answered within `limit`.
pub fn ping(place: &Inside, to: IpAddr, limit: Duration) -> io::Result<()> {
    let seconds = limit.as_secs_f64().to_string();
    let mut command = place.command("ping");
    command.args(["-n", "-q", "-c", "1", "-W", &seconds, &to.to_string()]);
    let ended = process::run(&mut command, limit + Duration::from_secs(10)).map_err(io::Error::other)?;
    if ended.good() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::TimedOut, ended.text())) }
}

/// A server of ours for each address and port that these flows ask.
///
/// # Panics
///
/// Where one cannot be started.
#[must_use]
pub fn serve(world: &World, flows: &[Flow]) -> Vec<Echo> {
    let mut servers = BTreeMap::new();
    for flow in flows {
        let place: &Inside = if flow.inbound { &world.server } else { flow.place(world) };
        let asked = flow.asked(world);
        let start = match flow.protocol {
            Protocol::Tcp => Echo::tcp,
            Protocol::Udp => Echo::udp,
            Protocol::Ping => continue,
        };
        servers.entry((flow.protocol, asked)).or_insert_with(|| {
            start(place, asked.ip(), asked.port()).unwrap_or_else(|error| panic!("a server on {asked}: {error}"))
        });
    }
    servers.into_values().collect()
}

/// Tries all, some at a time, in order of the list; which did not do what was expected.
#[must_use]
pub fn try_all(world: &World, flows: &[(Flow, bool)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for some in flows.chunks(16) {
        thread::scope(|scope| {
            let tries: Vec<_> = some
                .iter()
                .map(|(flow, expected)| (flow, expected, scope.spawn(|| flow.passes(world, *expected))))
                .collect();
            for (flow, expected, passed) in tries {
                let passed = passed.join().expect("an attempt does not panic");
                if passed != *expected {
                    wrong.push(format!("{flow}: {}", if passed { "passed" } else { "did not pass" }));
                }
            }
        });
    }
    wrong
}

/// What must hold before a test may say anything: without guard, each of these flows passes.
///
/// # Panics
///
/// Where one does not.
pub fn all_pass_without_guard(world: &World, flows: impl IntoIterator<Item = Flow>) {
    let flows: Vec<(Flow, bool)> = flows.into_iter().map(|flow| (flow, true)).collect();
    let wrong = try_all(world, &flows);
    assert!(wrong.is_empty(), "without guard: {wrong:#?}");
}
