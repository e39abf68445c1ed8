//! Which connection carries the terminal that asks: the one that must never be cut by accident.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use guard_common::Direction;

use super::{
    held::HeldFlow,
    processes::{Process, Processes},
    sock_diag::{Socket, SocketState, Sockets, has_listener},
    ssh,
};
use crate::record::flow::{TCP, UDP, protocol_name};

/// How a session's connection was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The nearest ancestor that holds an established connection.
    Ancestor,
    /// The same, of a client that is attached to the terminal multiplexer that runs this shell.
    Multiplexer,
    /// `SSH_CONNECTION`, after it was checked: established now and held by an SSH server.
    SshConnection,
    /// The connection found first stays on this host; this one carries it (a tunnel, an agent).
    Tunnel,
    /// The UDP socket of a mosh server, and a peer that it speaks with.
    Mosh,
    /// The same, whose peer is not known: the address that the mosh server was started from.
    MoshLogin,
}

impl Found {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ancestor => "ancestor",
            Self::Multiplexer => "multiplexer",
            Self::SshConnection => "ssh_connection",
            Self::Tunnel => "tunnel",
            Self::Mosh => "mosh",
            Self::MoshLogin => "mosh_login",
        }
    }
}

/// One connection that may carry this terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// TCP, or UDP of mosh.
    pub protocol: u8,
    pub local: SocketAddr,
    /// Port 0: not known ([`Found::MoshLogin`]).
    pub remote: SocketAddr,
    pub direction: Direction,
    pub cookie: u64,
    /// Who holds it.
    pub pid: u32,
    pub program: String,
    pub found: Found,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (remote, protocol) = (self.remote.ip(), protocol_name(self.protocol));
        match self.direction {
            Direction::Inbound => write!(f, "in {protocol} {remote} -> {}", self.local.port())?,
            Direction::Outbound => write!(f, "out {protocol} {}", self.remote)?,
        }
        write!(f, " ({} {})", self.program, self.pid)
    }
}

/// What was found about the terminal that asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Empty: nothing that leaves this host carries it, as far as can be seen. More than one: cannot be told apart.
    pub carriers: Vec<Carrier>,
}

impl Session {
    /// Another host's user sits at this terminal.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        !self.carriers.is_empty()
    }

    #[must_use]
    pub fn carried_by(&self, local: SocketAddr, remote: SocketAddr) -> Option<&Carrier> {
        self.carriers.iter().find(|carrier| carrier.local == local && carrier.remote == remote)
    }
}

/// What the search looks at.
pub struct Host<'a> {
    pub processes: &'a Processes,
    pub sockets: &'a Sockets,
    /// Peers of connected UNIX sockets, inode to inode; may be empty.
    pub unix_peers: &'a HashMap<u32, u32>,
    pub own: &'a std::collections::HashSet<IpAddr>,
    /// Flows whose peers their sockets do not know.
    pub held: &'a [HeldFlow],
    /// `SSH_CONNECTION` as a process was started with it.
    pub ssh_connection: &'a dyn Fn(u32) -> Option<String>,
}

/// What a process speaks over UDP with.
#[derive(Debug, Default)]
pub struct Datagrams {
    /// One a peer outside of this host that is known: by a connected socket, by connection tracking, by guard's own tables.
    pub carriers: Vec<Carrier>,
    /// Ports of its sockets of which no peer is known, though they may have any.
    pub unknown: Vec<u16>,
}

/// Ports of questions that any program asks beside its real work: DNS, NTP, STUN, SSDP, mDNS. A tunnel that hides behind one
/// of them has no known peer.
const QUESTIONS: [u16; 5] = [53, 123, 3478, 1900, 5353];

/// Whether a tunnel's process sends it by UDP cannot be seen; so all that it speaks with may carry it.
#[must_use]
pub fn datagrams(
    process: &Process,
    sockets: &Sockets,
    held: &[HeldFlow],
    outside: &dyn Fn(IpAddr) -> bool,
) -> Datagrams {
    let mut found = Datagrams::default();
    let mine =
        |socket: &&Socket| socket.protocol == UDP && process.sockets.binary_search(&sockets.holder(socket)).is_ok();
    for socket in sockets.all.iter().filter(mine).filter(|socket| !socket.local.ip().is_loopback()) {
        let connected = socket.state == SocketState::Established;
        let of_it = |flow: &&HeldFlow| {
            let (local, remote) = flow.ends();
            // guard's own tables may not know the socket.
            let same = match connected {
                true => (local, remote) == (socket.local, socket.remote),
                false => flow.cookie == socket.cookie || (flow.cookie == 0 && local.port() == socket.local.port()),
            };
            flow.key.protocol() == UDP && same && outside(remote.ip()) && !QUESTIONS.contains(&remote.port())
        };
        let before = found.carriers.len();
        found.carriers.extend(held.iter().filter(of_it).map(|flow| {
            let (local, remote) = flow.ends();
            Carrier {
                protocol: UDP,
                local,
                remote,
                direction: flow.direction,
                cookie: socket.cookie,
                pid: process.pid,
                program: process.program().unwrap_or(&process.comm).to_owned(),
                found: Found::Tunnel,
            }
        }));
        if !connected && socket.local.port() != 0 && found.carriers.len() == before {
            found.unknown.push(socket.local.port());
        }
    }
    found.unknown.sort_unstable();
    found.unknown.dedup();
    found
}

/// How many connections inside this host are followed from a terminal to the outside.
const MAX_TUNNELS: usize = 8;
/// How many multiplexers may run inside one another.
const MAX_NESTED: usize = 4;

/// Finds the connection behind process `pid`. `ssh_connection` is that variable of its environment, if set.
#[must_use]
pub fn find(host: &Host<'_>, pid: u32, ssh_connection: Option<&str>) -> Session {
    let listeners = host.sockets.listeners();
    let search = Search { host, listeners: &listeners, hint: ssh_connection.and_then(parse_ssh_connection) };
    let mut carriers = search.behind(pid, Found::Ancestor);
    if carriers.is_empty() {
        carriers = search.behind_multiplexer(pid, MAX_NESTED);
    }
    if carriers.is_empty() {
        carriers = search.by_environment();
    }
    Session { carriers: search.to_the_outside(carriers) }
}

struct Search<'a> {
    host: &'a Host<'a>,
    listeners: &'a std::collections::HashSet<(u8, SocketAddr)>,
    hint: Option<(SocketAddr, SocketAddr)>,
}

impl Search<'_> {
    /// Of the nearest ancestor that holds any.
    fn behind(&self, pid: u32, found: Found) -> Vec<Carrier> {
        self.host
            .processes
            .ancestors(pid)
            .skip(1)
            .map(|process| match self.held_by(process, found) {
                none if none.is_empty() => self.mosh(process),
                carriers => carriers,
            })
            .find(|carriers| !carriers.is_empty())
            .unwrap_or_default()
    }

    /// The established connections of a process. A session's server may hold others beside the session's own (port
    /// forwards): the one that `SSH_CONNECTION` names, else those that came in, are the better guess.
    fn held_by(&self, process: &Process, found: Found) -> Vec<Carrier> {
        let all: Vec<Carrier> = self
            .established()
            .filter(|socket| process.sockets.binary_search(&self.host.sockets.holder(socket)).is_ok())
            .map(|socket| self.carrier(socket, process, found))
            .collect();
        let named: Vec<Carrier> =
            all.iter().filter(|carrier| self.hint == Some((carrier.local, carrier.remote))).cloned().collect();
        if !named.is_empty() {
            return named;
        }
        let inbound: Vec<Carrier> =
            all.iter().filter(|carrier| carrier.direction == Direction::Inbound).cloned().collect();
        if inbound.is_empty() { all } else { inbound }
    }

    /// mosh has no connection: its server answers whoever has the key, from wherever that is. All peers that it has spoken
    /// with lately may be the terminal's; where none is known, the one that started it is taken.
    fn mosh(&self, process: &Process) -> Vec<Carrier> {
        if process.program() != Some("mosh-server") {
            return Vec::new();
        }
        let unconnected = |socket: &&Socket| {
            socket.protocol == UDP
                && socket.state == SocketState::Close
                && process.sockets.binary_search(&self.host.sockets.holder(socket)).is_ok()
        };
        let mut carriers = Vec::new();
        for socket in self.host.sockets.all.iter().filter(unconnected) {
            let carrier = |local, remote, found| Carrier {
                protocol: UDP,
                local,
                remote,
                direction: Direction::Inbound,
                cookie: socket.cookie,
                pid: process.pid,
                program: "mosh-server".to_owned(),
                found,
            };
            let of_it = |flow: &&HeldFlow| {
                flow.key.protocol() == UDP && flow.cookie == socket.cookie || {
                    // guard's own tables may not know the socket.
                    flow.key.protocol() == UDP
                        && flow.cookie == 0
                        && flow.direction == Direction::Inbound
                        && flow.key.local_port() == socket.local.port()
                }
            };
            let flows = self.host.held.iter().filter(of_it).map(HeldFlow::ends);
            let before = carriers.len();
            carriers.extend(flows.map(|(local, remote)| carrier(local, remote, Found::Mosh)));
            if carriers.len() == before {
                let login = (self.host.ssh_connection)(process.pid);
                let login = login.as_deref().and_then(parse_ssh_connection).or(self.hint);
                carriers.extend(login.map(|(local, remote)| {
                    let local = SocketAddr::new(local.ip(), socket.local.port());
                    carrier(local, SocketAddr::new(remote.ip(), 0), Found::MoshLogin)
                }));
            }
        }
        carriers
    }

    /// tmux and screen detach their server from the session: its clients' terminals, which it has open, lead back.
    fn behind_multiplexer(&self, pid: u32, depth: usize) -> Vec<Carrier> {
        if depth == 0 {
            return Vec::new();
        }
        let processes = self.host.processes;
        let Some(server) = processes.ancestors(pid).skip(1).find(|process| is_multiplexer(process)) else {
            return Vec::new();
        };
        let mut clients: Vec<u32> = Vec::new();
        for inode in &server.sockets {
            let Some(peer) = self.host.unix_peers.get(inode) else { continue };
            clients.extend(processes.holders(*peer).map(|process| process.pid));
        }
        let of_terminal = |process: &&Process| process.tty != 0 && server.terminals.contains(&process.tty);
        clients.extend(processes.iter().filter(of_terminal).filter(|process| is_multiplexer(process)).map(|p| p.pid));
        clients.sort_unstable();
        clients.dedup();
        clients.retain(|client| *client != server.pid);
        let mut carriers: Vec<Carrier> = Vec::new();
        for client in clients {
            let mut behind = self.behind(client, Found::Multiplexer);
            if behind.is_empty() {
                behind = self.behind_multiplexer(client, depth - 1);
            }
            for carrier in behind {
                if !carriers.contains(&carrier) {
                    carriers.push(carrier);
                }
            }
        }
        carriers
    }

    fn by_environment(&self) -> Vec<Carrier> {
        let Some((local, remote)) = self.hint else { return Vec::new() };
        self.established()
            .filter(|socket| socket.local == local && socket.remote == remote)
            .flat_map(|socket| {
                self.host
                    .processes
                    .holders(self.host.sockets.holder(socket))
                    .filter(|process| ssh::is_server(process))
                    .map(|process| self.carrier(socket, process, Found::SshConnection))
                    .take(1)
            })
            .collect()
    }

    /// A connection that stays on this host is carried by those of the process at its other end.
    fn to_the_outside(&self, carriers: Vec<Carrier>) -> Vec<Carrier> {
        let mut outside: Vec<Carrier> = Vec::new();
        let mut inside = carriers;
        let mut seen: Vec<(SocketAddr, SocketAddr)> = Vec::new();
        for _ in 0..MAX_TUNNELS {
            let mut next = Vec::new();
            for carrier in inside {
                let ends = (carrier.local, carrier.remote);
                if seen.contains(&ends) {
                    continue;
                }
                seen.push(ends);
                if !self.stays_here(carrier.remote.ip()) {
                    outside.push(carrier);
                    continue;
                }
                let other_end =
                    self.established().find(|socket| (socket.local, socket.remote) == (carrier.remote, carrier.local));
                let Some(other_end) = other_end else { continue };
                for process in self.host.processes.holders(self.host.sockets.holder(other_end)) {
                    next.extend(self.all_of(process));
                }
            }
            inside = next;
        }
        outside
    }

    fn all_of(&self, process: &Process) -> Vec<Carrier> {
        let by_tcp = self
            .established()
            .filter(|socket| process.sockets.binary_search(&self.host.sockets.holder(socket)).is_ok())
            .map(|socket| self.carrier(socket, process, Found::Tunnel));
        let by_udp = datagrams(process, self.host.sockets, self.host.held, &|remote| !self.stays_here(remote));
        by_tcp.chain(by_udp.carriers).collect()
    }

    fn stays_here(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.host.own.contains(&address)
    }

    fn established(&self) -> impl Iterator<Item = &Socket> {
        self.host.sockets.all.iter().filter(|socket| socket.protocol == TCP && socket.state == SocketState::Established)
    }

    fn carrier(&self, socket: &Socket, process: &Process, found: Found) -> Carrier {
        Carrier {
            protocol: TCP,
            local: socket.local,
            remote: socket.remote,
            direction: if has_listener(self.listeners, TCP, socket.local) {
                Direction::Inbound
            } else {
                Direction::Outbound
            },
            cookie: socket.cookie,
            pid: process.pid,
            program: process.program().unwrap_or(&process.comm).to_owned(),
            found,
        }
    }
}

fn is_multiplexer(process: &Process) -> bool {
    let program = process.program().unwrap_or_default();
    matches!(program, "tmux" | "screen" | "zellij" | "dtach" | "abduco") || process.comm.starts_with("tmux")
}

/// `client-address client-port server-address server-port` to (local, remote).
pub(super) fn parse_ssh_connection(text: &str) -> Option<(SocketAddr, SocketAddr)> {
    let mut words = text.split_ascii_whitespace();
    let mut end = || -> Option<SocketAddr> {
        // A link-local address may carry its interface.
        let address = words.next()?.split('%').next()?.parse::<IpAddr>().ok()?.to_canonical();
        Some(SocketAddr::new(address, words.next()?.parse().ok()?))
    };
    let remote = end()?;
    let local = end()?;
    Some((local, remote))
}

#[cfg(test)]
mod tests;
