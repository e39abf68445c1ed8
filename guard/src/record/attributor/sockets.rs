//! A picture of this namespace's sockets, taken again when it is asked for something newer, but never so often that it
//! costs more than a small part of the time: a scan must not make guard look at every socket for every probe.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{
    host::{
        identity::Identities,
        sock_diag::{self, SocketState, Sockets},
    },
    record::clock::boot_now,
};

/// A look may take at most this part of the time.
const SHARE: u32 = 20;
/// Between two looks at least.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub struct SocketMap {
    /// Boot-time nanoseconds when the picture was begun; 0: none yet.
    taken: u64,
    next: Option<Instant>,
    /// Listening, or bound and not connected: inode.
    waiting: HashMap<(u8, SocketAddr), u32>,
    connected: HashMap<(u8, SocketAddr, SocketAddr), u32>,
    inodes: HashSet<u32>,
    /// Which process holds which inode, and when that may be looked at again.
    holders: HashMap<u32, u32>,
    next_holders: Option<Instant>,
}

impl SocketMap {
    /// Whether the picture is not older than this (boot-time nanoseconds).
    pub const fn is_of(&self, time: u64) -> bool {
        self.taken != 0 && self.taken >= time
    }

    /// Looks again if the picture is older than `time`. Whether it did.
    pub fn look(&mut self, time: u64) -> bool {
        if self.is_of(time) || self.next.is_some_and(|next| Instant::now() < next) {
            return false;
        }
        let (began, taken) = (Instant::now(), boot_now());
        // A kernel that does not answer leaves the old picture.
        let looked = sock_diag::sockets().map(|sockets| self.take(&sockets)).is_ok();
        if looked {
            self.taken = taken;
        }
        self.next = Some(Instant::now() + PAUSE.max(began.elapsed() * SHARE));
        looked
    }

    fn take(&mut self, sockets: &Sockets) {
        self.waiting.clear();
        self.connected.clear();
        self.inodes.clear();
        for socket in &sockets.all {
            let inode = sockets.holder(socket);
            if inode != 0 {
                self.inodes.insert(inode);
            }
            let waits = if socket.protocol == 6 { SocketState::Listen } else { SocketState::Close };
            if socket.state == waits {
                self.waiting.insert((socket.protocol, socket.local), inode);
            } else {
                self.connected.insert((socket.protocol, socket.local, socket.remote), inode);
            }
        }
    }

    /// Of the socket that listens on, or is bound to, this local end.
    pub fn waiting(&self, protocol: u8, local: SocketAddr) -> Option<u32> {
        let any = |address: IpAddr| self.waiting.get(&(protocol, SocketAddr::new(address, local.port()))).copied();
        any(local.ip())
            .or_else(|| local.is_ipv4().then(|| any(Ipv4Addr::UNSPECIFIED.into())).flatten())
            .or_else(|| any(Ipv6Addr::UNSPECIFIED.into()))
    }

    pub fn connected(&self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
        self.connected.get(&(protocol, local, remote)).copied()
    }

    /// Whether one of these is an Internet socket.
    pub fn any_of_network(&mut self, inodes: &[u32]) -> bool {
        let has = |map: &Self| inodes.iter().any(|inode| map.inodes.contains(inode));
        has(self) || (self.look(boot_now()) && has(self))
    }

    /// The process that holds it.
    pub fn holder(&mut self, inode: u32, identities: &Identities) -> Option<u32> {
        if let Some(pid) = self.holders.get(&inode) {
            return Some(*pid);
        }
        if self.next_holders.is_some_and(|next| Instant::now() < next) {
            return None;
        }
        let began = Instant::now();
        self.holders = identities.socket_holders();
        self.next_holders = Some(Instant::now() + PAUSE.max(began.elapsed() * SHARE));
        self.holders.get(&inode).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_who_listens_and_who_is_connected() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(local).unwrap();
        let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut map = SocketMap::default();
        assert!(map.look(boot_now()));
        let identities = Identities::default();
        let own = Some(std::process::id());
        let inode = map.waiting(6, local).unwrap();
        assert_eq!(map.holder(inode, &identities), own);
        let inode = map.connected(6, client.local_addr().unwrap(), local).unwrap();
        assert_eq!(map.holder(inode, &identities), own);
        let to = SocketAddr::new([192, 0, 2, 1].into(), udp.local_addr().unwrap().port());
        assert!(map.waiting(17, to).is_some());
        assert_eq!(map.waiting(6, to), None);
        assert!(map.any_of_network(&[inode]) && !map.any_of_network(&[1]));
        // Not again at once, whatever is asked.
        assert!(!map.look(boot_now()));
        assert!(!map.is_of(boot_now()) && map.is_of(1));
    }
}
