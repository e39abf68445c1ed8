//! The judge's host in plain memory: what eBPF maps are in the kernel. Nothing is evicted, and every flow that was is kept
//! for the report.

use std::{collections::HashMap, hash::Hash};

use foldhash::fast::RandomState;
use guard_common::{
    Direction,
    abi::{Flow, FragmentValue, Interface, NoteKey},
    decide::Node,
    judge::{Context, Family, FlowTable, FlowView, Flows, Host, TcpSocket, Touch, V4, V6},
    packet::Packet,
};

/// Milliseconds are this host's jiffies.
const HZ: u64 = 1000;
pub const NS_A_JIFFY: u64 = 1_000_000_000 / HZ;

pub struct Memory<'a> {
    /// `None` is a fault.
    tables: Option<&'a [Node]>,
    pub v4: Store<V4>,
    pub v6: Store<V6>,
    notes: HashMap<NoteKey, u64, RandomState>,
    /// Of the packet that is judged: greater than that of any before, so that `first_seen` names a flow.
    pub now: u64,
    /// That the packet crosses; `None`: one that is not known.
    pub interface: Option<Interface>,
    /// Which socket of ours holds a TCP connection ([`Host::tcp_socket`]); [`guessed`], where nothing says more.
    pub sockets: fn(&Packet, Direction) -> TcpSocket,
    /// A socket that was found has not ended its connection ([`Host::tcp_lives`]); of a guess nobody knows.
    pub sockets_live: bool,
}

/// One family's flows and fragments.
pub struct Store<F: Family> {
    /// Which flow has a key now, by its place in `flows`.
    places: HashMap<F::Key, u32, RandomState>,
    flows: Vec<Held<F::Key>>,
    /// Flows whose key another has taken.
    over: Vec<(F::Key, Flow)>,
    fragments: HashMap<F::FragmentKey, FragmentValue, RandomState>,
}

struct Held<K> {
    key: K,
    table: FlowTable,
    flow: Flow,
}

impl<'a> Memory<'a> {
    #[must_use]
    pub fn new(tables: Option<&'a [Node]>, interface: Option<Interface>, boot_ns: u64) -> Self {
        Self {
            tables,
            v4: Store::default(),
            v6: Store::default(),
            notes: HashMap::default(),
            now: boot_ns,
            interface,
            sockets: guessed,
            sockets_live: false,
        }
    }

    /// The same flows, under other tables and on another interface.
    #[must_use]
    pub fn with(self, tables: Option<&[Node]>, interface: Option<Interface>) -> Memory<'_> {
        let Self { v4, v6, notes, now, sockets, sockets_live, .. } = self;
        Memory { tables, v4, v6, notes, now, interface, sockets, sockets_live }
    }

    /// Flows and fragments: what grows with a capture.
    pub fn held(&self) -> usize {
        self.v4.held() + self.v6.held() + self.notes.len()
    }

    /// Forgets them all.
    pub fn forget(&mut self) {
        self.v4 = Store::default();
        self.v6 = Store::default();
        self.notes = HashMap::default();
    }
}

impl<F: Family> Default for Store<F> {
    fn default() -> Self {
        Self { places: HashMap::default(), flows: Vec::new(), over: Vec::new(), fragments: HashMap::default() }
    }
}

impl<F: Family> Store<F>
where
    F::Key: Hash + Eq,
{
    /// The flows that a key has now, each with its table.
    pub fn current(&self) -> impl Iterator<Item = (F::Key, FlowTable, &Flow)> {
        self.flows.iter().map(|held| (held.key, held.table, &held.flow))
    }

    fn held(&self) -> usize {
        self.flows.len() + self.over.len() + self.fragments.len()
    }

    /// Every flow there was.
    pub fn all(&self) -> impl Iterator<Item = (F::Key, &Flow)> {
        self.over.iter().map(|(key, flow)| (*key, flow)).chain(self.flows.iter().map(|held| (held.key, &held.flow)))
    }

    #[inline]
    fn find(&self, table: FlowTable, key: &F::Key) -> Option<u32> {
        let place = *self.places.get(key)?;
        (self.flows.get(place as usize)?.table == table).then_some(place)
    }

    fn insert(&mut self, table: FlowTable, key: &F::Key, flow: &Flow) -> bool {
        let Ok(next) = u32::try_from(self.flows.len()) else { return false };
        let place = *self.places.entry(*key).or_insert(next);
        match self.flows.get_mut(place as usize) {
            None => self.flows.push(Held { key: *key, table, flow: *flow }),
            Some(held) => {
                if held.flow.first_seen != flow.first_seen {
                    self.over.push((*key, held.flow));
                }
                held.table = table;
                held.flow = *flow;
            }
        }
        true
    }
}

impl Host for Memory<'_> {
    type Tables = [Node];

    #[inline]
    fn tables(&self, _: &Context) -> Option<&[Node]> {
        self.tables
    }

    #[inline]
    fn boot_ns(&self) -> u64 {
        self.now
    }

    #[inline]
    fn jiffies(&self) -> u64 {
        self.now / NS_A_JIFFY
    }

    #[inline]
    fn hz(&self) -> u64 {
        HZ
    }

    #[inline]
    fn interface(&self, _: u32) -> Option<Interface> {
        self.interface
    }

    fn socket_cookie(&mut self) -> u64 {
        0
    }

    fn tcp_socket(&mut self, packet: &Packet, direction: Direction) -> TcpSocket {
        (self.sockets)(packet, direction)
    }

    fn tcp_lives(&mut self, packet: &Packet, direction: Direction) -> bool {
        self.sockets_live && (self.sockets)(packet, direction) != TcpSocket::None
    }

    fn note(&self, key: &NoteKey) -> Option<u64> {
        self.notes.get(key).copied()
    }

    fn keep_note(&mut self, key: &NoteKey, now: u64) {
        self.notes.insert(*key, now);
    }
}

/// A capture has no sockets. Of a connection that began before it, the lower port is taken for the service; a packet that
/// opens or resets nothing that was seen stays without one.
fn guessed(packet: &Packet, direction: Direction) -> TcpSocket {
    const SYN_RST: u8 = 0b110;
    let (remote, local) = match direction {
        Direction::Inbound => (packet.source_port, packet.destination_port),
        Direction::Outbound => (packet.destination_port, packet.source_port),
    };
    if packet.tcp_flags & SYN_RST != 0 || remote == local {
        TcpSocket::None
    } else if local < remote {
        TcpSocket::Accepted
    } else {
        TcpSocket::Connected
    }
}

macro_rules! flows {
    ($family:ident, $field:ident) => {
        impl Flows<$family> for Memory<'_> {
            type Flow = u32;

            #[inline]
            fn find(&self, table: FlowTable, key: &<$family as Family>::Key) -> Option<u32> {
                self.$field.find(table, key)
            }

            #[inline]
            fn view(&self, flow: u32) -> FlowView {
                FlowView::from(&self.$field.flows[flow as usize].flow)
            }

            #[inline]
            fn load(&self, flow: u32) -> Flow {
                self.$field.flows[flow as usize].flow
            }

            #[inline]
            fn touch(&mut self, flow: u32, touch: &Touch) {
                touch.apply(&mut self.$field.flows[flow as usize].flow);
            }

            fn insert(&mut self, table: FlowTable, key: &<$family as Family>::Key, flow: &Flow) -> bool {
                self.$field.insert(table, key, flow)
            }

            /// A key stands in one table only: what was put into another has left this one.
            fn remove(&mut self, _: FlowTable, _: &<$family as Family>::Key) {}

            fn find_fragment(&self, key: &<$family as Family>::FragmentKey) -> Option<FragmentValue> {
                self.$field.fragments.get(key).copied()
            }

            fn insert_fragment(&mut self, key: &<$family as Family>::FragmentKey, value: &FragmentValue) -> bool {
                self.$field.fragments.insert(*key, *value);
                true
            }
        }
    };
}

flows!(V4, v4);
flows!(V6, v6);
