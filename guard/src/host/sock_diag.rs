//! Every TCP, UDP and raw socket of this network namespace, by sock_diag (linux/inet_diag.h; IPv6-mapped addresses come out
//! as the IPv4 addresses that are on the wire).

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::netlink::{self, NetlinkError};

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Since Linux 4.5, where CONFIG_INET_DIAG_DESTROY is set.
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_PROTOCOL: u16 = 3;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
const IPPROTO_MPTCP: u32 = 262;
/// Asks for raw sockets (net/ipv4/raw_diag.c, since Linux 4.10); each answers with its protocol in the place of its port.
const RAW: u8 = 255;
/// How often a picture that changed while it was taken is taken again.
const TRIES: usize = 4;

/// One socket. `remote` is unspecified (`0.0.0.0:0`) where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// IP protocol: 6, 17 or 136 (UDP-Lite), 132 (SCTP); of a raw socket the one that it is for, without ports.
    pub protocol: u8,
    pub state: SocketState,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Index of the interface that it is bound to; 0: none.
    pub interface: u32,
    /// As `bpf_get_socket_cookie` gives it.
    pub cookie: u64,
    /// 0 where no process holds it any more (time-wait, half-open).
    pub inode: u32,
    pub uid: u32,
}

#[cfg(test)]
impl Socket {
    /// Of `inode`, which is its cookie too; one that listens where the remote has port 0.
    pub fn tcp(local: &str, remote: &str, inode: u32) -> Self {
        let remote: SocketAddr = remote.parse().unwrap();
        Self {
            protocol: 6,
            state: if remote.port() == 0 { SocketState::Listen } else { SocketState::Established },
            local: local.parse().unwrap(),
            remote,
            interface: 0,
            cookie: u64::from(inode),
            inode,
            uid: 0,
        }
    }
}

/// `enum` of net/tcp_states.h; UDP uses `Established` for connected and `Close` for unconnected sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    Other,
}

impl SocketState {
    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => Self::Other,
        }
    }
}

/// All sockets, and for which protocols the kernel could not be asked.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    pub all: Vec<Socket>,
    /// `udplite`, `sctp`…: the kernel has no handler for them.
    pub not_asked: Vec<&'static str>,
    /// A process may hold an MPTCP socket whose subflow is the TCP socket on the wire: subflow's ends to inode.
    pub mptcp: HashMap<(SocketAddr, SocketAddr), u32>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot list the {protocol} sockets of this host: {source}")]
pub struct SocketsError {
    pub protocol: &'static str,
    pub source: NetlinkError,
}

/// Asks the kernel. TCP and UDP must be there; a kernel without the others is told as such.
pub fn sockets() -> Result<Sockets, SocketsError> {
    let mut found = Sockets::default();
    for (protocol, name, must) in [(6, "tcp", true), (17, "udp", true), (136, "udplite", false), (132, "sctp", false)] {
        for family in [libc::AF_INET, libc::AF_INET6] {
            match dump_inet(family as u8, protocol, None) {
                Ok(mut sockets) => found.all.append(&mut sockets),
                // A host booted with ipv6.disable=1 has no IPv6 sockets to list.
                Err(error) if error.is_absent() && (!must || family == libc::AF_INET6) => {
                    if family == libc::AF_INET {
                        found.not_asked.push(name);
                    }
                }
                Err(source) => return Err(SocketsError { protocol: name, source }),
            }
        }
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        match dump_inet(family as u8, RAW, None) {
            Ok(raw) => found.all.extend(raw.into_iter().filter_map(of_protocol)),
            Err(_) if family == libc::AF_INET => found.not_asked.push("raw"),
            Err(_) => {}
        }
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        // Since Linux 5.9; without it there is no MPTCP to diagnose either.
        if let Ok(sockets) = dump_inet(family as u8, 0, Some(IPPROTO_MPTCP)) {
            found.mptcp.extend(sockets.iter().map(|socket| ((socket.local, socket.remote), socket.inode)));
        }
    }
    Ok(found)
}

impl Sockets {
    /// Whether a socket listens on (or is bound to, for UDP) this local end.
    #[must_use]
    pub fn listens(&self, protocol: u8, local: SocketAddr) -> bool {
        let waiting = if protocol == 6 { SocketState::Listen } else { SocketState::Close };
        self.all.iter().any(|socket| {
            socket.protocol == protocol
                && socket.state == waiting
                && socket.local.port() == local.port()
                && (socket.local.ip() == local.ip() || socket.local.ip().is_unspecified())
        })
    }

    /// As [`Self::listens`], prepared for many questions.
    #[must_use]
    pub fn listeners(&self) -> HashSet<(u8, SocketAddr)> {
        self.all
            .iter()
            .filter(|socket| match socket.protocol {
                6 => socket.state == SocketState::Listen,
                _ => socket.state == SocketState::Close,
            })
            .map(|socket| (socket.protocol, socket.local))
            .collect()
    }

    /// The inode by which a process holds this socket: its own, or that of the MPTCP socket above it.
    #[must_use]
    pub fn holder(&self, socket: &Socket) -> u32 {
        match socket.inode {
            0 => self.mptcp.get(&(socket.local, socket.remote)).copied().unwrap_or(0),
            inode => inode,
        }
    }
}

/// Whether `local` has a listener in a set made by [`Sockets::listeners`].
#[must_use]
pub fn has_listener(listeners: &HashSet<(u8, SocketAddr)>, protocol: u8, local: SocketAddr) -> bool {
    let any = |address: IpAddr| listeners.contains(&(protocol, SocketAddr::new(address, local.port())));
    any(local.ip()) || any(Ipv6Addr::UNSPECIFIED.into()) || (local.is_ipv4() && any(Ipv4Addr::UNSPECIFIED.into()))
}

/// A raw socket under its own protocol. One for TCP or UDP sends what other sockets have: it is no flow of its own.
fn of_protocol(mut raw: Socket) -> Option<Socket> {
    let protocol = u8::try_from(raw.local.port()).ok()?;
    raw.protocol = protocol;
    raw.local.set_port(0);
    raw.remote.set_port(0);
    (!crate::record::flow::has_ports(protocol)).then_some(raw)
}

fn dump_inet(family: u8, protocol: u8, wide_protocol: Option<u32>) -> Result<Vec<Socket>, NetlinkError> {
    // struct inet_diag_req_v2: family, protocol, extensions, pad, states, then a socket id left empty.
    let mut body = vec![family, protocol, 0, 0];
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.resize(8 + 48, 0);
    if let Some(protocol) = wide_protocol {
        netlink::put_attribute(&mut body, INET_DIAG_REQ_PROTOCOL, &protocol.to_ne_bytes());
    }
    let mut sockets = Vec::new();
    for _ in 0..TRIES {
        sockets.clear();
        let mut malformed = false;
        let consistent = netlink::dump(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, &body, |_, payload| {
            match parse_inet(protocol, payload) {
                Some(socket) => sockets.push(socket),
                None => malformed = true,
            }
        })?;
        if malformed {
            return Err(NetlinkError::Malformed);
        }
        if consistent {
            break;
        }
    }
    Ok(sockets)
}

/// Ends a TCP or UDP socket of this network namespace: whoever holds it gets ECONNABORTED, and a TCP peer a reset, where
/// that may leave. The cookie sees to it that it is this very socket.
pub fn destroy(socket: &Socket) -> Result<(), NetlinkError> {
    // An IPv6 socket that speaks IPv4 is found by its IPv4 addresses.
    let family = if socket.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut body = vec![family as u8, socket.protocol, 0, 0];
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.extend_from_slice(&socket.local.port().to_be_bytes());
    body.extend_from_slice(&socket.remote.port().to_be_bytes());
    for address in [socket.local.ip(), socket.remote.ip()] {
        let mut octets = [0; 16];
        match address {
            IpAddr::V4(address) => octets[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => octets = address.octets(),
        }
        body.extend_from_slice(&octets);
    }
    body.extend_from_slice(&socket.interface.to_ne_bytes());
    body.extend_from_slice(&(socket.cookie as u32).to_ne_bytes());
    body.extend_from_slice(&((socket.cookie >> 32) as u32).to_ne_bytes());
    netlink::command(NETLINK_SOCK_DIAG, SOCK_DESTROY, &body)
}

/// `struct inet_diag_msg`.
fn parse_inet(protocol: u8, bytes: &[u8]) -> Option<Socket> {
    let family = i32::from(*bytes.first()?);
    let end = |port_at: usize, address_at: usize| -> Option<SocketAddr> {
        let octets: [u8; 16] = bytes.get(address_at..address_at + 16)?.try_into().ok()?;
        let address = if family == libc::AF_INET {
            IpAddr::from([octets[0], octets[1], octets[2], octets[3]])
        } else {
            IpAddr::from(octets).to_canonical()
        };
        Some(SocketAddr::new(address, netlink::port(bytes, port_at)?))
    };
    Some(Socket {
        protocol,
        state: SocketState::from_number(*bytes.get(1)?),
        local: end(4, 8)?,
        remote: end(6, 24)?,
        interface: netlink::number(bytes, 40)?,
        cookie: u64::from(netlink::number(bytes, 44)?) | u64::from(netlink::number(bytes, 48)?) << 32,
        uid: netlink::number(bytes, 64)?,
        inode: netlink::number(bytes, 68)?,
    })
}

/// Peers of connected UNIX sockets of this network namespace, inode to inode.
pub fn unix_peers() -> Result<HashMap<u32, u32>, NetlinkError> {
    // struct unix_diag_req: family, protocol, pad, states, inode, show, cookie.
    let mut body = vec![libc::AF_UNIX as u8, 0, 0, 0];
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.extend_from_slice(&0u32.to_ne_bytes());
    body.extend_from_slice(&UDIAG_SHOW_PEER.to_ne_bytes());
    body.extend_from_slice(&[0xff; 8]);
    let mut peers = HashMap::new();
    netlink::dump(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, &body, |_, payload| {
        // struct unix_diag_msg is 16 bytes, the inode at 4.
        let Some(inode) = netlink::number(payload, 4) else { return };
        let peer = netlink::attributes(payload.get(16..).unwrap_or_default())
            .find(|(kind, _)| *kind == UNIX_DIAG_PEER)
            .and_then(|(_, value)| netlink::number(value, 0));
        if let Some(peer) = peer {
            peers.insert(inode, peer);
        }
    })?;
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_connection_of_this_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let sockets = sockets().unwrap();
        let found = sockets
            .all
            .iter()
            .find(|socket| socket.local == client.local_addr().unwrap() && socket.protocol == 6)
            .expect("the client's socket");
        assert_eq!(found.state, SocketState::Established);
        assert_eq!(found.remote, listener.local_addr().unwrap());
        assert_ne!(found.inode, 0);
        assert_ne!(found.cookie, 0);
        assert!(sockets.listens(6, listener.local_addr().unwrap()));
        assert!(has_listener(&sockets.listeners(), 6, listener.local_addr().unwrap()));
        assert!(!has_listener(&sockets.listeners(), 6, client.local_addr().unwrap()));
    }

    #[test]
    fn finds_a_raw_socket_by_its_protocol() {
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
        // SAFETY: a plain system call; the descriptor is ours if there is one.
        let socket = unsafe {
            match libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 253) {
                fd if fd >= 0 => OwnedFd::from_raw_fd(fd),
                // Not root.
                _ => return,
            }
        };
        let to = nix::sys::socket::SockaddrIn::new(127, 0, 0, 1, 0);
        nix::sys::socket::connect(socket.as_raw_fd(), &to).unwrap();
        let sockets = sockets().unwrap();
        if sockets.not_asked.contains(&"raw") {
            return;
        }
        let found = sockets.all.iter().find(|socket| socket.protocol == 253).expect("the raw socket");
        assert_eq!((found.state, found.remote), (SocketState::Established, "127.0.0.1:0".parse().unwrap()));
        assert_ne!((found.inode, found.cookie), (0, 0));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_one() {
        let mut bytes = vec![libc::AF_INET6 as u8, 1, 0, 0];
        bytes.extend_from_slice(&22u16.to_be_bytes());
        bytes.extend_from_slice(&4000u16.to_be_bytes());
        for address in ["::ffff:192.0.2.1", "::ffff:198.51.100.7"] {
            bytes.extend_from_slice(&address.parse::<Ipv6Addr>().unwrap().octets());
        }
        bytes.resize(72, 0);
        let socket = parse_inet(6, &bytes).unwrap();
        assert_eq!(socket.local, "192.0.2.1:22".parse().unwrap());
        assert_eq!(socket.remote, "198.51.100.7:4000".parse().unwrap());
        assert_eq!(parse_inet(6, &bytes[..71]), None);
    }

    #[test]
    fn a_destroyed_socket_is_gone_for_whoever_holds_it() {
        use std::io::Read;
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let all = sockets().unwrap().all;
        let found = all.iter().find(|socket| socket.local == client.local_addr().unwrap() && socket.protocol == 6);
        let mut other = *found.unwrap();
        other.cookie ^= 1;
        assert!(destroy(&other).unwrap_err().is_gone(), "another socket's cookie");
        destroy(found.unwrap()).unwrap();
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
    }

    #[test]
    fn unix_peers_point_at_each_other() {
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        let peers = unix_peers().unwrap();
        assert!(peers.iter().any(|(inode, peer)| peers.get(peer) == Some(inode)));
    }
}
