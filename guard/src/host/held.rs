//! The flows that this host holds now: by its sockets, by connection tracking, by guard's own tables. What a policy
//! would cut is known from these before it is enforced.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use guard_common::{
    Direction, Reason, Verdict,
    abi::{Flow, TcpState},
    decide::{self, Decision, Node, Outcome, Question, Subject},
};

use super::{
    conntrack::Tracked,
    processes::Processes,
    route::{Routes, Way},
    sock_diag::{Socket, SocketState, Sockets, has_listener},
};
use crate::record::flow::{ICMPV6, Key, TCP, has_ports, words};

/// Who told of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Socket,
    Conntrack,
    Table,
}

impl Source {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Conntrack => "conntrack",
            Self::Table => "table",
        }
    }
}

/// One flow that crosses a guarded interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFlow {
    pub key: Key,
    pub direction: Direction,
    /// Index of the interface towards the remote; `None`: no route to it.
    pub interface: Option<u32>,
    pub tcp: TcpState,
    pub answered: bool,
    /// 0: no socket of ours.
    pub cookie: u64,
    /// It began before guard looked: nothing is known of its first packet.
    pub adopted: bool,
    pub source: Source,
    /// Who holds the socket.
    pub program: Option<(u32, String)>,
}

impl HeldFlow {
    #[must_use]
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        (
            SocketAddr::new(self.key.local(), self.key.local_port()),
            SocketAddr::new(self.key.remote(), self.key.remote_port()),
        )
    }

    /// As it is put into the flow tables before the first policy: not judged yet.
    #[must_use]
    pub fn adopted(&self, boot_ns: u64, jiffies: u64) -> Flow {
        Flow {
            outcome: Outcome::without_rule(Reason::Tracking),
            first_outcome: Outcome::without_rule(Reason::Tracking),
            last_seen: jiffies,
            until: u64::MAX,
            tcp: self.tcp as u8,
            direction: self.direction as u8,
            flags: Flow::ADOPTED | if self.answered { Flow::ANSWERED } else { 0 },
            ifindex: self.interface.unwrap_or(0),
            first_seen: boot_ns,
            socket_cookie: self.cookie,
            ..Flow::default()
        }
    }
}

/// What of the network the search needs.
pub struct Network<'a> {
    pub own: &'a HashSet<IpAddr>,
    /// Whether the wire layer judges what crosses the interface with this index.
    pub guarded: &'a dyn Fn(u32) -> bool,
    /// The same, but only between this host and those behind it: what is forwarded there is not judged.
    pub host_side: &'a dyn Fn(u32) -> bool,
}

/// Flows of sockets. A connected UDP or raw socket is a flow; an unconnected one does not know its peers.
pub fn of_sockets(
    sockets: &Sockets,
    processes: &Processes,
    network: &Network<'_>,
    routes: &mut Routes,
) -> Vec<HeldFlow> {
    let listeners = sockets.listeners();
    let mut flows = Vec::new();
    for socket in &sockets.all {
        let Some(tcp) = flow_state(socket) else { continue };
        let Some(interface) = leaves_by(socket.remote.ip(), socket.interface, network, routes) else { continue };
        let inbound = match socket.state {
            SocketState::SynReceived => true,
            SocketState::SynSent => false,
            // A raw socket has no port by which it could be one that others ask.
            _ => has_ports(socket.protocol) && has_listener(&listeners, socket.protocol, socket.local),
        };
        let Some(key) = key(socket.protocol, socket.remote, socket.local, interface.unwrap_or(socket.interface)) else {
            continue;
        };
        let holder = processes.holders(sockets.holder(socket)).next();
        flows.push(HeldFlow {
            key,
            direction: if inbound { Direction::Inbound } else { Direction::Outbound },
            interface,
            tcp,
            answered: !matches!(socket.state, SocketState::SynSent | SocketState::SynReceived),
            cookie: socket.cookie,
            adopted: true,
            source: Source::Socket,
            program: holder.map(|holder| (holder.pid, holder.program().unwrap_or(&holder.comm).to_owned())),
        });
    }
    flows
}

/// Flows that this host forwards: towards each guarded side one, as the packets look there.
pub fn of_conntrack(tracked: &[Tracked], network: &Network<'_>, routes: &mut Routes) -> Vec<HeldFlow> {
    let mut flows = Vec::new();
    for flow in tracked {
        let ours = |address: IpAddr| network.own.contains(&address);
        // A flow that begins or ends here has a socket (for UDP: `datagrams`), or is over.
        if ours(flow.original.source.ip()) || ours(flow.reply.source.ip()) {
            continue;
        }
        let sides = [
            (Direction::Inbound, flow.original.source, flow.original.destination),
            (Direction::Outbound, flow.reply.source, flow.reply.destination),
        ];
        for (direction, remote, local) in sides {
            let Some(interface) = leaves_by(remote.ip(), 0, network, routes) else { continue };
            // Towards those behind this host only what bears an address of ours there: a published port that one of them asks
            // for.
            if interface.is_some_and(|index| !(network.guarded)(index)) && !ours(local.ip()) {
                continue;
            }
            // Connection tracking keeps the identifier of an ICMP query at its source, the service at its
            // destination; the reply's own type would stand there on the way back.
            let (remote, local) = match (flow.protocol, direction) {
                (1 | 58, Direction::Outbound) => (
                    SocketAddr::new(remote.ip(), flow.original.destination.port()),
                    SocketAddr::new(local.ip(), flow.original.source.port()),
                ),
                _ => (remote, local),
            };
            let Some(key) = key(flow.protocol, remote, local, interface.unwrap_or(0)) else { continue };
            flows.push(HeldFlow {
                key,
                direction,
                interface,
                tcp: if flow.protocol == TCP { tracked_state(flow.tcp_state) } else { TcpState::None },
                answered: flow.answered,
                cookie: 0,
                adopted: true,
                source: Source::Conntrack,
                program: None,
            });
        }
    }
    flows
}

/// Flows of guard's own tables, where a running guard is taken over or reloaded. Those that are denied are not held.
pub fn of_tables(held: impl IntoIterator<Item = (Key, Flow)>) -> Vec<HeldFlow> {
    held.into_iter()
        .filter(|(key, flow)| match flow.generation {
            // What was tracked before a policy judged: the link's own control has no flow under any.
            0 => !is_link_control(key, Direction::from_u8(flow.direction)),
            _ => flow.outcome.verdict() == Verdict::Allow,
        })
        .map(|(key, flow)| HeldFlow {
            key,
            direction: Direction::from_u8(flow.direction),
            interface: (flow.ifindex != 0).then_some(flow.ifindex),
            tcp: tcp_state(flow.tcp),
            answered: flow.flags & Flow::ANSWERED != 0,
            cookie: flow.socket_cookie,
            adopted: flow.flags & Flow::ADOPTED != 0,
            source: Source::Table,
            program: None,
        })
        .collect()
}

/// Neighbour discovery (RFC 4861) and multicast listeners (RFC 3810): one packet is all there is of it.
fn is_link_control(key: &Key, direction: Direction) -> bool {
    key.protocol() == ICMPV6 && matches!(key.service(direction) >> 8, 130..=137 | 143)
}

/// One list: a flow that several told of stands once. The tables know best who began it, the sockets who holds it.
#[must_use]
pub fn merge(lists: impl IntoIterator<Item = Vec<HeldFlow>>) -> Vec<HeldFlow> {
    let mut merged: HashMap<Key, HeldFlow> = HashMap::new();
    for flow in lists.into_iter().flatten() {
        match merged.get_mut(&flow.key) {
            None => {
                merged.insert(flow.key, flow);
            }
            Some(known) => {
                if flow.source == Source::Table {
                    known.direction = flow.direction;
                    known.adopted = flow.adopted;
                    known.interface = flow.interface.or(known.interface);
                }
                known.program = known.program.take().or(flow.program);
                if known.cookie == 0 {
                    known.cookie = flow.cookie;
                }
            }
        }
    }
    let mut list: Vec<HeldFlow> = merged.into_values().collect();
    list.sort_unstable_by_key(|flow| (flow.direction, flow.key));
    list
}

/// How a policy decides a flow that is held. `class`: an interface's class in these tables.
#[must_use]
pub fn decide(nodes: &[Node], flow: &HeldFlow, class: &dyn Fn(u32) -> u32, now: u64) -> Decision {
    let (ipv6, remote, local) = match (flow.key.remote(), flow.key.local()) {
        (IpAddr::V6(remote), IpAddr::V6(local)) => (true, words(remote), words(local)),
        (remote, local) => (false, v4_word(remote), v4_word(local)),
    };
    let question = Question {
        direction: flow.direction,
        ipv6,
        remote,
        service: u32::from(flow.key.protocol()) << 16 | u32::from(flow.key.service(flow.direction)),
        subject: Subject {
            interface: Some(flow.interface.map_or(0, class)),
            local: decide::local_class(nodes, ipv6, local),
        },
    };
    decide::decide(nodes, &question, || now)
}

fn v4_word(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [address.into(), 0, 0, 0],
        IpAddr::V6(_) => [0; 4],
    }
}

/// The state that a socket's flow is in; `None`: it has none.
fn flow_state(socket: &Socket) -> Option<TcpState> {
    if socket.remote.ip().is_unspecified() || (socket.remote.port() == 0 && has_ports(socket.protocol)) {
        return None;
    }
    match (socket.protocol, socket.state) {
        (132, _) => None,
        (TCP, SocketState::Established) => Some(TcpState::Established),
        (TCP, SocketState::SynSent) => Some(TcpState::SynSent),
        (TCP, SocketState::SynReceived) => Some(TcpState::SynReceived),
        (TCP, SocketState::FinWait1 | SocketState::FinWait2 | SocketState::Closing) => Some(TcpState::FinWait),
        (TCP, SocketState::CloseWait) => Some(TcpState::CloseWait),
        (TCP, SocketState::LastAck) => Some(TcpState::LastAck),
        // ICMP's flows are by query, and a raw socket does not tell which it sends.
        (1 | 58, _) => None,
        (_, SocketState::Established) => Some(TcpState::None),
        _ => None,
    }
}

fn tracked_state(state: u8) -> TcpState {
    match state {
        1 | 9 => TcpState::SynSent,
        2 => TcpState::SynReceived,
        3 => TcpState::Established,
        4 => TcpState::FinWait,
        5 => TcpState::CloseWait,
        6 => TcpState::LastAck,
        7 => TcpState::TimeWait,
        8 => TcpState::Close,
        _ => TcpState::None,
    }
}

fn tcp_state(number: u8) -> TcpState {
    use TcpState as S;
    [S::SynSent, S::SynReceived, S::Established, S::FinWait, S::CloseWait, S::LastAck, S::TimeWait, S::Close]
        .into_iter()
        .find(|state| *state as u8 == number)
        .unwrap_or(S::None)
}

/// The interface towards a remote: `None` if what goes there is not judged, `Some(None)` if there is no route.
pub(super) fn leaves_by(remote: IpAddr, bound: u32, network: &Network<'_>, routes: &mut Routes) -> Option<Option<u32>> {
    if remote.is_loopback() || network.own.contains(&remote) {
        return None;
    }
    let way = if bound != 0 { Way::Interface(bound) } else { routes.to(remote) };
    match way {
        Way::Local => None,
        Way::Interface(index) => ((network.guarded)(index) || (network.host_side)(index)).then_some(Some(index)),
        Way::None => Some(None),
    }
}

pub fn key(protocol: u8, remote: SocketAddr, local: SocketAddr, interface: u32) -> Option<Key> {
    let on_link = match remote.ip() {
        IpAddr::V4(address) => address.is_link_local() || address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
    };
    let scope = if on_link { interface } else { 0 };
    Key::new(protocol, remote.ip(), remote.port(), local.ip(), local.port(), scope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{conntrack::Tuple, processes::Process};

    fn socket(state: SocketState, protocol: u8, local: &str, remote: &str, inode: u32) -> Socket {
        Socket {
            protocol,
            state,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            interface: 7,
            cookie: u64::from(inode),
            inode,
            uid: 0,
        }
    }

    fn all_of(all: Vec<Socket>) -> Sockets {
        Sockets { all, ..Sockets::default() }
    }

    fn network(own: &HashSet<IpAddr>) -> Network<'_> {
        Network { own, guarded: &|index| index == 7, host_side: &|index| index == 8 }
    }

    #[test]
    fn sockets_are_flows_with_a_direction() {
        let own = HashSet::from(["192.0.2.1".parse().unwrap()]);
        let sockets = all_of(vec![
            socket(SocketState::Listen, 6, "0.0.0.0:22", "0.0.0.0:0", 1),
            socket(SocketState::Established, 6, "192.0.2.1:22", "198.51.100.7:4000", 2),
            socket(SocketState::Established, 6, "192.0.2.1:40000", "203.0.113.9:443", 3),
            socket(SocketState::Established, 6, "192.0.2.1:40001", "192.0.2.1:22", 4),
            socket(SocketState::TimeWait, 6, "192.0.2.1:40002", "203.0.113.9:443", 0),
            socket(SocketState::Established, 17, "192.0.2.1:40003", "192.0.2.53:53", 5),
            socket(SocketState::Close, 17, "0.0.0.0:53", "0.0.0.0:0", 6),
            socket(SocketState::Established, 47, "192.0.2.1:0", "203.0.113.9:0", 7),
            socket(SocketState::Close, 47, "0.0.0.0:0", "0.0.0.0:0", 8),
            socket(SocketState::Established, 1, "192.0.2.1:0", "203.0.113.9:0", 9),
        ]);
        let processes = Processes::from_list(vec![Process {
            pid: 10,
            comm: "sshd".to_owned(),
            sockets: vec![2],
            ..Process::default()
        }]);
        let flows = of_sockets(&sockets, &processes, &network(&own), &mut Routes::default());
        let spoken: Vec<String> = flows.iter().map(|flow| flow.key.spoken(flow.direction)).collect();
        assert_eq!(
            spoken,
            [
                "in tcp 198.51.100.7 -> 22",
                "out tcp 203.0.113.9:443",
                "out udp 192.0.2.53:53",
                "out proto/47 203.0.113.9"
            ]
        );
        assert_eq!(flows[0].program, Some((10, "sshd".to_owned())));
        let adopted = flows[0].adopted(9, 8);
        assert_eq!((adopted.generation, adopted.tcp, adopted.socket_cookie), (0, TcpState::Established as u8, 2));
        assert_eq!(adopted.flags, Flow::ADOPTED | Flow::ANSWERED);
    }

    #[test]
    fn an_interface_that_is_not_guarded_has_no_flows() {
        let own = HashSet::new();
        let mut sockets = all_of(vec![socket(SocketState::Established, 6, "172.17.0.1:22", "172.17.0.2:4000", 2)]);
        sockets.all[0].interface = 9;
        assert!(of_sockets(&sockets, &Processes::default(), &network(&own), &mut Routes::default()).is_empty());
    }

    #[test]
    fn a_forwarded_flow_is_two_where_both_sides_are_guarded() {
        let own = HashSet::from(["192.0.2.5".parse().unwrap()]);
        let tracked = Tracked {
            protocol: 6,
            original: Tuple {
                source: "10.0.0.2:40000".parse().unwrap(),
                destination: "203.0.113.9:443".parse().unwrap(),
            },
            reply: Tuple {
                source: "203.0.113.9:443".parse().unwrap(),
                destination: "192.0.2.5:50000".parse().unwrap(),
            },
            answered: true,
            tcp_state: 3,
        };
        // Without routes in this test's namespace both sides count as unknown, which is judged.
        let mut routes = Routes::default();
        let everywhere = Network { own: &own, guarded: &|_| true, host_side: &|_| false };
        let flows = of_conntrack(&[tracked], &everywhere, &mut routes);
        let spoken: Vec<String> = flows.iter().map(|flow| flow.key.spoken(flow.direction)).collect();
        assert_eq!(spoken, ["in tcp 10.0.0.2 -> 443", "out tcp 203.0.113.9:443"]);
        assert_eq!(flows[1].key.local_port(), 50000);
        let mut ours = tracked;
        ours.original.source = "192.0.2.5:40000".parse().unwrap();
        assert!(of_conntrack(&[ours], &everywhere, &mut routes).is_empty());
    }

    #[test]
    fn the_links_own_control_is_not_held() {
        let report = key(ICMPV6, "[fe80::1]:0".parse().unwrap(), "[ff02::16]:0".parse().unwrap(), 7).unwrap();
        let Key::V6(mut report) = report else { panic!("{report:?}") };
        let tracked = Flow { direction: Direction::Inbound as u8, ..Flow::default() };
        report.local_port = 143 << 8;
        assert!(of_tables([(Key::V6(report), tracked)]).is_empty(), "a listener's report");
        report.local_port = 128 << 8;
        assert_eq!(of_tables([(Key::V6(report), tracked)]).len(), 1, "an echo request");
        // Its identifier is no type.
        report.remote_port = 143 << 8;
        assert_eq!(of_tables([(Key::V6(report), tracked)]).len(), 1);
    }

    #[test]
    fn one_flow_from_several_sources_stands_once() {
        let own = HashSet::new();
        let sockets = all_of(vec![socket(SocketState::Established, 6, "192.0.2.1:9000", "203.0.113.9:443", 3)]);
        let by_socket = of_sockets(&sockets, &Processes::default(), &network(&own), &mut Routes::default());
        let flow = Flow { direction: Direction::Inbound as u8, ifindex: 7, generation: 0, ..Flow::default() };
        let by_table = of_tables([(by_socket[0].key, flow)]);
        let merged = merge([by_socket, by_table]);
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].direction, merged[0].cookie), (Direction::Inbound, 3));
    }
}
