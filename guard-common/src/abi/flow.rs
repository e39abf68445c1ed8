//! Flow and fragment tables: keys and values.
//!
//! A key names the two ends as *remote* and *local* (never sorted), so that both directions of a flow have one key and
//! a packet forwarded between two uplinks has two. For a link-local remote the interface is part of the key.

use crate::decide::Outcome;

/// 16 bytes. Ports: for ICMP queries the service (type of the request in the high byte, code in the low) stands where the
/// asked side's port would stand, the identifier on the other side: so a ping of ours and one of theirs never meet.
/// Protocols without ports have 0 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKeyV4 {
    pub remote: u32,
    pub local: u32,
    pub remote_port: u16,
    pub local_port: u16,
    /// Protocol in the low byte; above it the interface's index (24 bits) where the remote means something on its link
    /// only (169.254.0.0/16, 224.0.0.0/4, 255.255.255.255; fe80::/10, ff00::/8), else 0.
    pub protocol_scope: u32,
}

/// 40 bytes; otherwise as [`FlowKeyV4`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKeyV6 {
    pub remote: [u32; 4],
    pub local: [u32; 4],
    pub remote_port: u16,
    pub local_port: u16,
    pub protocol_scope: u32,
}

/// One flow, in one of four LRU tables a family ([`crate::judge::FlowTable`]).
///
/// Counters are indexed by the *packet's* direction: `[inbound, outbound]`. They and `last_seen` are updated by many
/// CPUs with plain or locked adds; the rest is written when the flow is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// The generation that judged it last; 0: none yet (tracked or adopted before the first policy).
    pub generation: u32,
    pub outcome: Outcome,
    /// Boot-time nanoseconds until which `outcome` holds; `u64::MAX`: as long as its generation.
    pub until: u64,
    /// Jiffies (`bpf_jiffies64`): the cheapest clock, for idle time only.
    pub last_seen: u64,
    /// [`TcpState`]; 0 for other protocols.
    pub tcp: u8,
    /// [`crate::Direction`] of the flow's first packet.
    pub direction: u8,
    /// [`Flow::ANSWERED`] and others.
    pub flags: u16,
    /// Interface of the first packet.
    pub ifindex: u32,
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    /// Boot-time nanoseconds of the first packet.
    pub first_seen: u64,
    /// Of the local socket, where one was seen; else 0. Finds the `OWNERS` entry.
    pub socket_cookie: u64,
    /// The outcome of the first judgement that a policy made: what the record of its beginning says.
    pub first_outcome: Outcome,
    /// 0, or the generation that first denied a flow that had been allowed: it was cut.
    pub cut_generation: u32,
}

impl Flow {
    /// A packet of the other direction was seen.
    pub const ANSWERED: u16 = 1;
    /// Began before a policy was in force: put there by userspace from sock_diag or conntrack, met while tracking, or
    /// adopted without its handshake.
    pub const ADOPTED: u16 = 1 << 1;
    /// Userspace has written the record of its beginning.
    pub const REPORTED: u16 = 1 << 2;
    /// Refused by the socket layer: no packet was ever sent.
    pub const AT_SOCKET: u16 = 1 << 3;
    /// TCP without its handshake: a socket of this host holds the connection.
    pub const HELD: u16 = 1 << 4;
}

/// As conntrack names them; lifetimes are conntrack's defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpState {
    #[default]
    None = 0,
    SynSent = 1,
    SynReceived = 2,
    Established = 3,
    FinWait = 4,
    CloseWait = 5,
    LastAck = 6,
    TimeWait = 7,
    Close = 8,
}

/// Names a fragmented IPv4 packet (RFC 791: source, destination, protocol, identification), and the interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKeyV4 {
    pub source: u32,
    pub destination: u32,
    pub ifindex: u32,
    pub id: u16,
    pub protocol: u8,
    /// [`crate::Direction`] of the packet.
    pub direction: u8,
}

/// Names a fragmented IPv6 packet (RFC 8200 section 4.5), and the interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKeyV6 {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub ifindex: u32,
    pub id: u32,
    /// Next header of the fragment header.
    pub protocol: u8,
    pub direction: u8,
    pub reserved: u16,
}

/// What the first fragment was given; later ones follow it for 30 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentValue {
    /// Jiffies of the first fragment.
    pub seen: u64,
    /// Hash or copy of the ports: a second first fragment that differs is refused.
    pub ports: u32,
    pub generation: u32,
    pub outcome: Outcome,
    /// [`crate::Direction`] of the flow that it belongs to.
    pub direction: u8,
    pub reserved: [u8; 3],
}

/// Key of the `NOTES` LRU hash; its value is a `u64`, the jiffies when it was noted. What the link has told, which
/// essential traffic goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct NoteKey {
    /// [`NoteKind`].
    pub kind: u32,
    pub ifindex: u32,
    pub value: [u32; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NoteKind {
    /// A DHCP transaction that a client of this host began: its identifier, then 4 or 6.
    DhcpTransaction = 1,
    /// The IPv4 address of a DHCP server on the link. Userspace may note the server of a lease that is older than guard.
    DhcpServer = 2,
    /// An IPv6 address that neighbour discovery has shown to be on the link.
    Neighbour = 3,
}

const _: () = {
    assert!(size_of::<NoteKey>() == 24);
    assert!(size_of::<FlowKeyV4>() == 16 && size_of::<FlowKeyV6>() == 40);
    assert!(size_of::<Flow>() == 88 && align_of::<Flow>() == 8);
    assert!(size_of::<FragmentKeyV4>() == 16 && size_of::<FragmentKeyV6>() == 44);
    assert!(size_of::<FragmentValue>() == 24);
};
