//! Flows of UDP sockets that are not connected: a server's (mosh, DNS), or a client's that names its peer with each packet.
//! Such a socket does not know its peers; connection tracking does, where it runs.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use guard_common::{Direction, abi::TcpState};

use super::{
    conntrack::Tracked,
    held::{HeldFlow, Network, Source, key, leaves_by},
    processes::Processes,
    route::Routes,
    sock_diag::{Socket, SocketState, Sockets},
};
use crate::record::flow::UDP;

/// Tracked flows of UDP that begin or end here, as they look on the wire; those whose socket is gone are over.
pub fn of_datagrams(
    tracked: &[Tracked],
    sockets: &Sockets,
    processes: &Processes,
    network: &Network<'_>,
    routes: &mut Routes,
) -> Vec<HeldFlow> {
    let unconnected = |socket: &&Socket| socket.protocol == UDP && socket.state == SocketState::Close;
    let bound: HashMap<SocketAddr, &Socket> =
        sockets.all.iter().filter(unconnected).map(|socket| (socket.local, socket)).collect();
    let at = |local: SocketAddr| {
        let any = |address: IpAddr| bound.get(&SocketAddr::new(address, local.port()));
        any(local.ip()).or_else(|| any(Ipv6Addr::UNSPECIFIED.into())).or_else(|| any(Ipv4Addr::UNSPECIFIED.into()))
    };
    let mut flows = Vec::new();
    for flow in tracked.iter().filter(|flow| flow.protocol == UDP) {
        // Our end as the socket has it, then both as the wire does: addresses may be translated in between.
        let (direction, ours, remote, local) = if network.own.contains(&flow.original.source.ip()) {
            (Direction::Outbound, flow.original.source, flow.reply.source, flow.reply.destination)
        } else if network.own.contains(&flow.reply.source.ip()) {
            (Direction::Inbound, flow.reply.source, flow.original.source, flow.original.destination)
        } else {
            continue;
        };
        let Some(socket) = at(ours) else { continue };
        let Some(interface) = leaves_by(remote.ip(), socket.interface, network, routes) else { continue };
        let Some(key) = key(UDP, remote, local, interface.unwrap_or(socket.interface)) else { continue };
        let holder = processes.holders(sockets.holder(socket)).next();
        flows.push(HeldFlow {
            key,
            direction,
            interface,
            tcp: TcpState::None,
            answered: flow.answered,
            cookie: socket.cookie,
            adopted: true,
            source: Source::Conntrack,
            program: holder.map(|holder| (holder.pid, holder.program().unwrap_or(&holder.comm).to_owned())),
        });
    }
    flows
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::host::{conntrack::Tuple, processes::Process};

    fn tracked(original: [&str; 2], reply: [&str; 2]) -> Tracked {
        let tuple = |[source, destination]: [&str; 2]| Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        Tracked { protocol: UDP, original: tuple(original), reply: tuple(reply), answered: true, tcp_state: 0 }
    }

    #[test]
    fn what_an_unconnected_socket_does_not_know_is_asked_of_connection_tracking() {
        let socket = |local: &str, inode| Socket {
            protocol: UDP,
            state: SocketState::Close,
            local: local.parse().unwrap(),
            remote: "0.0.0.0:0".parse().unwrap(),
            interface: 7,
            cookie: u64::from(inode),
            inode,
            uid: 0,
        };
        let all = vec![socket("0.0.0.0:60001", 1), socket("192.0.2.1:40000", 2)];
        let sockets = Sockets { all, ..Sockets::default() };
        let mosh = Process { pid: 10, comm: "mosh-server".into(), sockets: vec![1], ..Process::default() };
        let own = HashSet::from(["192.0.2.1".parse().unwrap()]);
        let network = Network { own: &own, guarded: &|index| index == 7, host_side: &|_| false };
        let list = [
            tracked(["198.51.100.7:4000", "192.0.2.1:60001"], ["192.0.2.1:60001", "198.51.100.7:4000"]),
            // Sent to a port that is forwarded to mosh's, as it looks on the wire.
            tracked(["198.51.100.8:4000", "192.0.2.9:600"], ["192.0.2.1:60001", "198.51.100.8:4000"]),
            tracked(["192.0.2.1:40000", "192.0.2.53:53"], ["192.0.2.53:53", "192.0.2.1:40000"]),
            // Its socket is gone, and one that is only passed on.
            tracked(["192.0.2.1:40009", "192.0.2.53:53"], ["192.0.2.53:53", "192.0.2.1:40009"]),
            tracked(["10.0.0.2:40000", "192.0.2.53:53"], ["192.0.2.53:53", "192.0.2.1:50000"]),
        ];
        let processes = Processes::from_list(vec![mosh]);
        let flows = of_datagrams(&list, &sockets, &processes, &network, &mut Routes::default());
        let spoken: Vec<String> = flows.iter().map(|flow| flow.key.spoken(flow.direction)).collect();
        assert_eq!(spoken, ["in udp 198.51.100.7 -> 60001", "in udp 198.51.100.8 -> 600", "out udp 192.0.2.53:53"]);
        assert_eq!((flows[0].cookie, flows[0].program.clone()), (1, Some((10, "mosh-server".to_owned()))));
    }
}
