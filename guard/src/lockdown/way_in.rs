//! The way in: the connection that carries this terminal, as a rule will name it, and what else hangs on it.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use guard_common::Direction;
use ipnet::{IpNet, Ipv6Net};
use serde::Serialize;

use super::sessions::{Behind, Family};
use crate::{
    host::{
        held::HeldFlow,
        picture::Picture,
        route::{Routes, Way as Route},
        session::{Carrier, datagrams},
        sock_diag::{Socket, SocketState},
        ssh,
    },
    kernel::{self, Device, Selection},
};

/// A connection that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Way {
    pub inbound: bool,
    pub remote: SocketAddr,
    pub local: SocketAddr,
    /// What the rule will name: the address, or its /64.
    pub range: IpNet,
    /// As a rule writes it: `tcp/22`.
    pub service: String,
    pub pid: u32,
    pub program: String,
    /// `ancestor`, `multiplexer`, `ssh_connection`, `tunnel`, `mosh`, `mosh_login`, `chosen`.
    pub found: &'static str,
    #[serde(skip)]
    pub cookie: u64,
}

/// Another connection to the same service, from where the way in comes from: a bastion's other users, or the intruder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Other {
    pub remote: SocketAddr,
    pub local: SocketAddr,
    pub pid: u32,
    pub program: String,
    pub uid: Option<u32>,
    pub terminal: bool,
    /// Boot-time nanoseconds.
    pub since_ns: u64,
    #[serde(skip)]
    pub cookie: u64,
}

/// Why what is needed to keep this terminal is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    pub interface: String,
    pub kind: String,
    /// The remote of the session that goes through it.
    pub session: SocketAddr,
    /// UDP ports of whoever drives it, of which no peer is known.
    pub ports: Vec<u16>,
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WayIn {
    pub ways: Vec<Way>,
    pub others: Vec<Other>,
    /// Port forwards inside the session that stays: `out tcp 192.0.2.80:3306`, `listens on 127.0.0.1:8080`.
    pub forwards: Vec<String>,
    /// The session comes over a tunnel, and what carries that one is not seen.
    pub unknown_tunnel: Option<Tunnel>,
    /// Where no way in was found: the sessions at SSH ports, those with a terminal first.
    pub candidates: Vec<Other>,
    /// Sessions of git over SSH, which are many and nobody's terminal.
    pub git_sessions: usize,
    /// Services at which an SSH server listens.
    pub ssh: Vec<String>,
}

impl WayIn {
    /// `held`: the flows of this host. `exact`: an IPv6 source is kept alone, not its /64.
    #[must_use]
    pub fn find(picture: &Picture, held: &[HeldFlow], exact: bool) -> Self {
        let family = Family::of(&picture.processes);
        let mut found = Self { ssh: ssh_services(picture), ..Self::default() };
        for carrier in &picture.session(held).carriers {
            found.add(way(carrier, exact));
        }
        found.look_through_tunnels(picture, held, exact);
        found.look_at_carriers(picture, held);
        found.others = found.beside(picture, &family);
        found.forwards = found.forwards_of(picture);
        if found.ways.is_empty() {
            found.find_candidates(picture, &family);
        }
        found
    }

    /// The person says that this one of the candidates is theirs.
    pub fn choose(&mut self, picture: &Picture, number: usize, exact: bool) {
        let Some(candidate) = self.candidates.get(number).cloned() else { return };
        self.add(Way {
            inbound: true,
            remote: candidate.remote,
            local: candidate.local,
            range: range(candidate.remote.ip(), exact),
            service: format!("tcp/{}", candidate.local.port()),
            pid: candidate.pid,
            program: candidate.program,
            found: "chosen",
            cookie: candidate.cookie,
        });
        self.others = self.beside(picture, &Family::of(&picture.processes));
        self.forwards = self.forwards_of(picture);
    }

    fn add(&mut self, way: Way) {
        if !self.ways.iter().any(|known| (known.local, known.remote) == (way.local, way.remote)) {
            self.ways.push(way);
        }
    }

    /// The ranges from which one may come in.
    #[must_use]
    pub fn ranges(&self) -> Vec<IpNet> {
        let mut ranges: Vec<IpNet> = self.ways.iter().map(|way| way.range).collect();
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    }

    /// The session may come over a VPN that ends on this host: then what carries the VPN has to stay, too.
    fn look_through_tunnels(&mut self, picture: &Picture, held: &[HeldFlow], exact: bool) {
        let devices = devices();
        let mut routes = Routes::default();
        for way in self.ways.clone() {
            let Route::Interface(index) = routes.to(way.remote.ip()) else { continue };
            let Some(device) = devices.get(&index).filter(|device| is_tunnel(device)) else { continue };
            let (mut outer, mut ports) = (Vec::new(), Vec::new());
            for pid in holders_of_tun(&device.name) {
                outer.extend(outside_connections(picture, pid, &device.name, &devices));
                let Some(process) = picture.processes.get(pid) else { continue };
                let outside = |remote: IpAddr| leaves_beside(&mut Routes::default(), remote, &device.name, &devices);
                let by_udp = datagrams(process, &picture.sockets, held, &outside);
                outer.extend(by_udp.carriers);
                ports.extend(by_udp.unknown);
            }
            // A connection beside a socket whose peers nobody knows: either may be what carries it.
            if outer.is_empty() || !ports.is_empty() {
                let (interface, kind) = (device.name.clone(), device.kind.clone());
                self.unknown_tunnel = Some(Tunnel { interface, kind, session: way.remote, ports });
            }
            for carrier in &outer {
                self.add(self::way(carrier, exact));
            }
        }
    }

    /// A session that ends on this host, at a program that carries it on: that one's sockets, too.
    fn look_at_carriers(&mut self, picture: &Picture, held: &[HeldFlow]) {
        let first = self.ways.iter().find(|way| way.found == "ancestor").or(self.ways.first()).map(|way| way.remote);
        for way in self.ways.iter().filter(|way| way.found == "tunnel") {
            let Some(process) = picture.processes.get(way.pid) else { continue };
            let ports = datagrams(process, &picture.sockets, held, &|_| true).unknown;
            if !ports.is_empty() && self.unknown_tunnel.is_none() {
                self.unknown_tunnel = Some(Tunnel {
                    interface: way.program.clone(),
                    kind: format!("pid {}", way.pid),
                    session: first.unwrap_or(way.remote),
                    ports,
                });
            }
        }
    }

    fn beside(&self, picture: &Picture, family: &Family<'_>) -> Vec<Other> {
        let mut others: Vec<Other> = established(picture)
            .filter(|socket| socket.protocol == 6)
            .filter(|socket| {
                self.ways.iter().any(|way| {
                    way.inbound
                        && way.local.port() == socket.local.port()
                        && way.range.contains(&socket.remote.ip())
                        && way.remote != socket.remote
                })
            })
            .filter_map(|socket| other(picture, family, socket).map(|(other, _)| other))
            .collect();
        others.sort_by_key(|other| other.since_ns);
        others
    }

    fn forwards_of(&self, picture: &Picture) -> Vec<String> {
        let mut forwards = Vec::new();
        for way in self.ways.iter().filter(|way| way.inbound) {
            let Some(process) = picture.processes.get(way.pid) else { continue };
            for socket in &picture.sockets.all {
                let held = process.sockets.binary_search(&picture.sockets.holder(socket)).is_ok();
                if !held || (socket.local, socket.remote) == (way.local, way.remote) {
                    continue;
                }
                match socket.state {
                    SocketState::Established => forwards.push(format!("out tcp {}", socket.remote)),
                    SocketState::Listen => forwards.push(format!("listens on {}", socket.local)),
                    _ => {}
                }
            }
        }
        forwards.sort();
        forwards.dedup();
        forwards
    }

    fn find_candidates(&mut self, picture: &Picture, family: &Family<'_>) {
        let ports: Vec<u16> = ssh::listening(picture);
        for socket in established(picture).filter(|socket| ports.contains(&socket.local.port())) {
            let Some((other, behind)) = other(picture, family, socket) else { continue };
            let git = !behind.terminal
                && behind.pids.iter().filter_map(|pid| picture.processes.get(*pid)).any(|process| {
                    process.program().is_some_and(|program| program.starts_with("git") || program == "gitlab-shell")
                });
            if git {
                self.git_sessions += 1;
            } else {
                self.candidates.push(other);
            }
        }
        self.candidates.sort_by_key(|candidate| (!candidate.terminal, candidate.since_ns));
    }
}

fn way(carrier: &Carrier, exact: bool) -> Way {
    let inbound = carrier.direction == Direction::Inbound;
    let port = if inbound { carrier.local.port() } else { carrier.remote.port() };
    Way {
        inbound,
        remote: carrier.remote,
        local: carrier.local,
        range: range(carrier.remote.ip(), exact || !inbound),
        service: format!("{}/{port}", if carrier.protocol == 6 { "tcp" } else { "udp" }),
        pid: carrier.pid,
        program: carrier.program.clone(),
        found: carrier.found.as_str(),
        cookie: carrier.cookie,
    }
}

/// A host of IPv6 changes its address within its /64 (RFC 8981).
fn range(address: IpAddr, exact: bool) -> IpNet {
    match address {
        IpAddr::V6(address) if !exact && !address.is_unicast_link_local() => {
            Ipv6Net::new(address, 64).map_or(IpNet::from(IpAddr::V6(address)), |net| net.trunc().into())
        }
        address => address.into(),
    }
}

fn established(picture: &Picture) -> impl Iterator<Item = &Socket> {
    picture.sockets.all.iter().filter(|socket| socket.state == SocketState::Established)
}

fn other(picture: &Picture, family: &Family<'_>, socket: &Socket) -> Option<(Other, Behind)> {
    let inode = picture.sockets.holder(socket);
    let behind = family.behind(inode)?;
    let holder = picture.processes.holders(inode).next()?;
    let other = Other {
        remote: socket.remote,
        local: socket.local,
        pid: holder.pid,
        program: holder.program().unwrap_or(&holder.comm).to_owned(),
        uid: behind.uid,
        terminal: behind.terminal,
        since_ns: behind.since_ns,
        cookie: socket.cookie,
    };
    Some((other, behind))
}

fn ssh_services(picture: &Picture) -> Vec<String> {
    let ports = ssh::listening(picture);
    if ports.is_empty() { vec!["tcp/22".to_owned()] } else { ports.iter().map(|port| format!("tcp/{port}")).collect() }
}

fn devices() -> BTreeMap<u32, Device> {
    let devices = kernel::preview(&Selection::default()).unwrap_or_default();
    devices.0.into_iter().map(|(device, _)| (device.index, device)).collect()
}

/// What is inside another packet on its way to this host.
fn is_tunnel(device: &Device) -> bool {
    matches!(
        device.kind.as_str(),
        "tun"
            | "wireguard"
            | "gre"
            | "gretap"
            | "ip6gre"
            | "ipip"
            | "ip6tnl"
            | "sit"
            | "vxlan"
            | "geneve"
            | "vti"
            | "vti6"
            | "xfrm"
            | "ppp"
            | "amt"
            | "ovpn"
    )
}

/// Processes that drive a tun device (fdinfo names it since Linux 3.14).
fn holders_of_tun(name: &str) -> Vec<u32> {
    let mut holders = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        for descriptor in fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            if fs::read_link(descriptor.path()).is_ok_and(|target| target == Path::new("/dev/net/tun")) {
                let info = entry.path().join("fdinfo").join(descriptor.file_name());
                let text = fs::read_to_string(info).unwrap_or_default();
                if text.lines().any(|line| line.strip_prefix("iff:").is_some_and(|value| value.trim() == name)) {
                    holders.push(pid);
                    break;
                }
            }
        }
    }
    holders
}

/// Connections of a VPN's process that do not go through the VPN itself.
fn outside_connections(picture: &Picture, pid: u32, tun: &str, devices: &BTreeMap<u32, Device>) -> Vec<Carrier> {
    let Some(process) = picture.processes.get(pid) else { return Vec::new() };
    let listeners = picture.sockets.listeners();
    let mut routes = Routes::default();
    established(picture)
        .filter(|socket| socket.protocol == 6)
        .filter(|socket| process.sockets.binary_search(&picture.sockets.holder(socket)).is_ok())
        .filter(|socket| leaves_beside(&mut routes, socket.remote.ip(), tun, devices))
        .map(|socket| Carrier {
            protocol: 6,
            local: socket.local,
            remote: socket.remote,
            direction: if crate::host::sock_diag::has_listener(&listeners, 6, socket.local) {
                Direction::Inbound
            } else {
                Direction::Outbound
            },
            cookie: socket.cookie,
            pid,
            program: process.program().unwrap_or(&process.comm).to_owned(),
            found: crate::host::session::Found::Tunnel,
        })
        .collect()
}

/// Whether what goes to this address leaves the host, and not by the tunnel itself.
fn leaves_beside(routes: &mut Routes, remote: IpAddr, tun: &str, devices: &BTreeMap<u32, Device>) -> bool {
    match routes.to(remote) {
        Route::Interface(index) => devices.get(&index).is_some_and(|device| device.name != tun),
        Route::Local | Route::None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::host::{
        conntrack,
        processes::{Process, Processes},
        sock_diag::Sockets,
    };

    fn process(pid: u32, parent: u32, program: &str, tty: u32, sockets: &[u32]) -> Process {
        Process {
            pid,
            parent,
            exe: Some(format!("/usr/bin/{program}").into()),
            tty,
            sockets: sockets.to_vec(),
            ..Process::default()
        }
    }

    /// This test's process stands below an sshd's session; a colleague and git come from the same place.
    fn picture() -> Picture {
        let own = std::process::id();
        let all = vec![
            Socket::tcp("0.0.0.0:22", "0.0.0.0:0", 100),
            Socket::tcp("192.0.2.1:22", "198.51.100.7:4000", 101),
            Socket::tcp("192.0.2.1:22", "198.51.100.7:4001", 102),
            Socket::tcp("192.0.2.1:22", "203.0.113.9:4002", 103),
            Socket::tcp("192.0.2.1:41000", "192.0.2.80:3306", 104),
        ];
        let processes = vec![
            process(1, 0, "sshd", 0, &[100]),
            process(10, 1, "sshd", 0, &[101, 104]),
            process(own, 10, "guard", 34816, &[]),
            process(20, 1, "sshd", 0, &[102]),
            process(21, 20, "bash", 34817, &[]),
            process(30, 1, "sshd", 0, &[103]),
            process(31, 30, "git-upload-pack", 0, &[]),
        ];
        Picture {
            sockets: Sockets { all, ..Sockets::default() },
            processes: Processes::from_list(processes),
            tracked: Vec::new(),
            conntrack: conntrack::Source::Absent,
            own: HashSet::from(["192.0.2.1".parse().unwrap()]),
            unix_peers: HashMap::new(),
        }
    }

    #[test]
    fn the_session_its_forwards_and_who_comes_from_the_same_place() {
        let found = WayIn::find(&picture(), &[], false);
        assert_eq!(found.ways.len(), 1);
        let way = &found.ways[0];
        assert_eq!((way.service.as_str(), way.range.to_string()), ("tcp/22", "198.51.100.7/32".to_owned()));
        assert_eq!(found.forwards, ["out tcp 192.0.2.80:3306"]);
        assert_eq!(found.others.len(), 1);
        assert_eq!((found.others[0].pid, found.others[0].terminal), (20, true));
        assert!(found.candidates.is_empty());
    }

    #[test]
    fn without_a_session_those_at_the_ssh_ports_are_told() {
        let mut picture = picture();
        let all: Vec<Process> = picture.processes.iter().filter(|p| p.pid != std::process::id()).cloned().collect();
        picture.processes = Processes::from_list(all);
        let found = WayIn::find(&picture, &[], false);
        assert!(found.ways.is_empty());
        assert_eq!(found.candidates.iter().map(|c| c.pid).collect::<Vec<_>>(), [20, 10], "terminals first");
        assert_eq!((found.git_sessions, found.ssh), (1, vec!["tcp/22".to_owned()]));
    }

    #[test]
    fn an_ipv6_host_moves_within_its_64() {
        let address: IpAddr = "2001:db8:17::7".parse().unwrap();
        assert_eq!(range(address, false).to_string(), "2001:db8:17::/64");
        assert_eq!(range(address, true).to_string(), "2001:db8:17::7/128");
        assert_eq!(range("198.51.100.7".parse().unwrap(), false).to_string(), "198.51.100.7/32");
    }
}
