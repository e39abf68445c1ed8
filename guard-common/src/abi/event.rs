//! The ring buffer's records: the doorbell. The flow tables hold the truth.

use crate::{abi::FlowKeyV6, decide::Outcome};

/// How much of a denied flow's first packet is kept, from its network header on.
pub const HEAD_BYTES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// First packet of a flow, judged by a policy for the first time.
    FlowBegan = 1,
    /// A flow that was allowed is denied by a newer generation, or its rule expired.
    FlowCut = 2,
    /// The socket layer refused a connect or a send.
    SocketDenied = 3,
    /// The seal refused a socket option or family.
    Sealed = 4,
    /// A packet that belongs to no flow was denied (malformed, ethertype, fragment): at most one a second and reason.
    PacketDenied = 5,
    /// The seal of `bpf(2)` refused a call: at most one a second of each process and [`super::Refused`], which stands in the
    /// place of the cookie.
    BpfRefused = 6,
}

/// Which process: filled in by the socket layer, where it runs in the process's own context. `pid` 0: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Owner {
    /// Process (thread group) id, in the initial pid namespace.
    pub pid: u32,
    pub uid: u32,
    /// Boot-time nanoseconds when the socket asked.
    pub time: u64,
    /// `task_struct.comm`, NUL-padded.
    pub comm: [u8; 16],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// [`EventKind`].
    pub kind: u8,
    /// 4 or 6: `key` is the flow's; an IPv4 flow's addresses are in the first word of each field. 0: no flow.
    pub family: u8,
    /// Direction of the flow, or of the packet where there is none.
    pub direction: u8,
    /// 1: dropped or refused. 0: passed (allowed, or denied in audit mode).
    pub dropped: u8,
    pub outcome: Outcome,
    pub generation: u32,
    pub ifindex: u32,
    /// Boot-time nanoseconds.
    pub time: u64,
    pub socket_cookie: u64,
    pub key: FlowKeyV6,
    pub owner: Owner,
    /// Bytes of the packet, as on the wire.
    pub packet_bytes: u32,
    /// How much of `head` is filled; 0 where nothing was denied.
    pub head_bytes: u32,
    pub head: [u8; HEAD_BYTES],
}

const _: () = {
    assert!(size_of::<Owner>() == 32);
    assert!(size_of::<Event>() == 368 && align_of::<Event>() == 8);
};
