//! What a packet's way asks of its host: eBPF maps and helpers in the kernel, plain memory in `replay` and tests.

use super::{Answer, Asked, Context, answer, family::Family};
use crate::{
    Direction,
    abi::{Flow, FragmentValue, Interface, NoteKey},
    decide::{Outcome, Tables},
    packet::Packet,
};

/// Everything but the flow tables, which are [`Flows`] of each family. Methods do not fail: what cannot be had is `None`
/// or `false`, and the judge denies.
pub trait Host: Flows<super::V4> + Flows<super::V6> {
    type Tables: Tables + ?Sized;

    /// The tables of the context's slot ([`Context::slot`]); never asked for where that is none. `None` is a fault.
    fn tables(&self, context: &Context) -> Option<&Self::Tables>;

    /// Nanoseconds of the boot-time clock. Asked seldom: for a new flow, a new judgement, an outcome that expires.
    fn boot_ns(&self) -> u64;

    /// The cheapest clock; asked for every packet.
    fn jiffies(&self) -> u64;

    /// Jiffies a second.
    fn hz(&self) -> u64;

    /// What userspace has told of an interface; `None`: nothing yet.
    fn interface(&self, ifindex: u32) -> Option<Interface>;

    /// Of the packet's own socket, where it has one; 0. Asked for new flows only.
    fn socket_cookie(&mut self) -> u64;

    /// Which socket of ours holds the connection that a TCP packet belongs to.
    ///
    /// Only [`Packet::source`], `destination` and ports count; `direction` says which end is ours. In the kernel:
    /// `bpf_skc_lookup_tcp` with both ends. Nothing, or a listening socket (state 10), is [`TcpSocket::None`]. Else a
    /// second look-up with remote 0:0 tells whether our port listens. Every socket found is released.
    fn tcp_socket(&mut self, packet: &Packet, direction: Direction) -> TcpSocket;

    /// Whether a socket of ours holds the connection that a TCP packet belongs to, and has not ended it: no listening one,
    /// none that waits in TIME_WAIT, no request for one. As [`Host::tcp_socket`] otherwise. A host without sockets: never.
    #[inline(always)]
    fn tcp_lives(&mut self, _packet: &Packet, _direction: Direction) -> bool {
        false
    }

    /// When something was last noted, in jiffies; `None`: never, or long ago. The `NOTES` LRU map.
    fn note(&self, key: &NoteKey) -> Option<u64>;

    /// Notes something now. That this fails only costs what it would have allowed.
    fn keep_note(&mut self, key: &NoteKey, now: u64);

    /// The policy's answer. In the kernel [`super::answer`] is a function of its own.
    #[inline(always)]
    fn ask(&mut self, context: &Context, asked: &Asked) -> Answer {
        answer(self, context, asked)
    }

    /// `value` itself; in the kernel one of which the verifier knows nothing any more. See
    /// [`crate::packet::Bytes::forget`].
    #[inline(always)]
    fn forget(&self, value: u32) -> u32 {
        value
    }
}

/// Which socket of ours holds a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpSocket {
    /// None; a socket that only listens holds no connection.
    None,
    /// One whose local port listens: the remote began it.
    Accepted,
    /// One whose local port does not: we began it.
    Connected,
}

/// One of a family's four flow tables.
///
/// What is not answered lies apart by the direction of the flow, so that a flood to a port that is open inbound takes no
/// room from what this host waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowTable {
    Established = 0,
    UnansweredInbound = 1,
    UnansweredOutbound = 2,
    Denied = 3,
}

impl FlowTable {
    pub const COUNT: usize = 4;

    /// `None` for a number that no table has.
    #[must_use]
    #[inline(always)]
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Established),
            1 => Some(Self::UnansweredInbound),
            2 => Some(Self::UnansweredOutbound),
            3 => Some(Self::Denied),
            _ => None,
        }
    }

    /// For flows of this direction.
    #[must_use]
    #[inline(always)]
    pub const fn unanswered(direction: Direction) -> Self {
        match direction {
            Direction::Inbound => Self::UnansweredInbound,
            Direction::Outbound => Self::UnansweredOutbound,
        }
    }
}

/// The flow tables and the fragment table of one family.
pub trait Flows<F: Family> {
    /// Where a flow lies: good only until the next call that inserts or removes. In the kernel a pointer to the map's
    /// value.
    type Flow: Copy;

    fn find(&self, table: FlowTable, key: &F::Key) -> Option<Self::Flow>;

    /// A copy of what a known flow's packet has to know.
    fn view(&self, flow: Self::Flow) -> FlowView;

    /// A copy of all of it.
    fn load(&self, flow: Self::Flow) -> Flow;

    /// One more packet (or train of segments) of a flow: adds to `packets` and `bytes` of the direction, sets
    /// `last_seen` and `tcp`, and `flags` where [`Touch::flags`] has changed. Other CPUs do the same at the same time.
    fn touch(&mut self, flow: Self::Flow, touch: &Touch);

    /// Puts a flow in, in place of one that has this key. `false`: it could not be kept, and the packet is denied.
    fn insert(&mut self, table: FlowTable, key: &F::Key, flow: &Flow) -> bool;

    /// Takes a flow out; nothing happens where it is not there.
    fn remove(&mut self, table: FlowTable, key: &F::Key);

    fn find_fragment(&self, key: &F::FragmentKey) -> Option<FragmentValue>;

    /// As [`Flows::insert`].
    fn insert_fragment(&mut self, key: &F::FragmentKey, value: &FragmentValue) -> bool;
}

/// Fields of [`Flow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowView {
    pub generation: u32,
    pub outcome: Outcome,
    pub until: u64,
    pub last_seen: u64,
    pub tcp: u8,
    pub direction: u8,
    pub flags: u16,
}

impl From<&Flow> for FlowView {
    #[inline(always)]
    fn from(flow: &Flow) -> Self {
        Self {
            generation: flow.generation,
            outcome: flow.outcome,
            until: flow.until,
            last_seen: flow.last_seen,
            tcp: flow.tcp,
            direction: flow.direction,
            flags: flow.flags,
        }
    }
}

/// What a packet leaves behind in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The packet's: which counters.
    pub direction: Direction,
    pub packets: u32,
    pub bytes: u32,
    /// Jiffies.
    pub now: u64,
    pub tcp: u8,
    pub flags: u16,
}

impl Touch {
    /// For hosts that hold a flow by itself.
    #[inline(always)]
    pub fn apply(&self, flow: &mut Flow) {
        let (inbound, outbound) = match self.direction {
            Direction::Inbound => (u64::MAX, 0),
            Direction::Outbound => (0, u64::MAX),
        };
        flow.packets[0] = flow.packets[0].wrapping_add(u64::from(self.packets) & inbound);
        flow.packets[1] = flow.packets[1].wrapping_add(u64::from(self.packets) & outbound);
        flow.bytes[0] = flow.bytes[0].wrapping_add(u64::from(self.bytes) & inbound);
        flow.bytes[1] = flow.bytes[1].wrapping_add(u64::from(self.bytes) & outbound);
        flow.last_seen = self.now;
        flow.tcp = self.tcp;
        flow.flags = self.flags;
    }
}
