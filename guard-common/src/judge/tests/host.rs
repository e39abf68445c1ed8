//! A host of plain maps, with a clock that tests turn.

use std::{collections::HashMap, hash::Hash, vec, vec::Vec};

use crate::{
    Direction,
    abi::{Flow, FragmentValue, Interface, NoteKey, Slot, SlotFlags},
    decide::{Descriptor, Line, Node, Target, Word, root_node},
    judge::{Context, Family, FlowTable, FlowView, Flows, Host, Judgement, TcpSocket, Touch, V4, V6, judge},
    packet::{Link, Packet, parse},
};

pub const SECOND: u64 = 250;

pub const ALL: u32 = SlotFlags::ENFORCE_INBOUND
    | SlotFlags::ENFORCE_OUTBOUND
    | SlotFlags::ARP
    | SlotFlags::EAPOL
    | SlotFlags::LACP
    | SlotFlags::STP
    | SlotFlags::LLDP
    | SlotFlags::MACSEC
    | SlotFlags::PPPOE
    | SlotFlags::NEIGHBOUR_DISCOVERY
    | SlotFlags::MLD
    | SlotFlags::DHCPV4
    | SlotFlags::DHCPV6
    | SlotFlags::ICMP_ERRORS
    | SlotFlags::LOOPBACK;

pub struct Store<F: Family> {
    pub flows: [HashMap<F::Key, Flow>; FlowTable::COUNT],
    pub fragments: HashMap<F::FragmentKey, FragmentValue>,
}

pub struct Memory {
    pub v4: Store<V4>,
    pub v6: Store<V6>,
    pub tables: Vec<Node>,
    pub notes: HashMap<NoteKey, u64>,
    pub interface: Option<Interface>,
    pub socket: TcpSocket,
    /// The socket has not ended the connection.
    pub lives: bool,
    /// Inserts fail.
    pub full: bool,
    pub now: u64,
    pub context: Context,
}

/// Outbound: rule 0 icmp echo requests (v4 numbers), 1 tcp/443, 2 udp/53. Inbound: rule 3 tcp/22. To and from anyone.
pub fn tables() -> Vec<Node> {
    let line = |intervals: &[(u32, Target)]| {
        let mut node = [0; 16];
        for place in 0..Line::INTERVALS {
            let (start, target) = intervals.get(place).copied().unwrap_or((u32::MAX, Target::NOT_LISTED));
            node[place] = start;
            node[Line::TARGETS + place] = target.0;
        }
        Node(node)
    };
    let none = Target::NOT_LISTED;
    let mut nodes = vec![Node([0; 16]); 9];
    nodes[7] = line(&[
        (0, none),
        (1 << 16 | 0x800, Target::allow(0)),
        (1 << 16 | 0x801, none),
        (6 << 16 | 443, Target::allow(1)),
        (6 << 16 | 444, none),
        (17 << 16 | 53, Target::allow(2)),
        (17 << 16 | 54, none),
    ]);
    nodes[8] = line(&[(0, none), (6 << 16 | 22, Target::allow(3)), (6 << 16 | 23, none)]);
    for (direction, node) in [(Direction::Outbound, 7), (Direction::Inbound, 8)] {
        for ipv6 in [false, true] {
            let root = &mut nodes[root_node(direction, ipv6) as usize].0;
            root[Descriptor::FIRST] = 1;
            root[Descriptor::BELOW] = Target::line(Word::Service, node).0;
            root[Descriptor::ABOVE] = Target::line(Word::Service, node).0;
        }
    }
    nodes
}

impl Memory {
    pub fn new() -> Self {
        Self {
            v4: Store::default(),
            v6: Store::default(),
            tables: tables(),
            notes: HashMap::new(),
            interface: Some(Interface { flags: Interface::GUARDED, class: [0; 3] }),
            socket: TcpSocket::None,
            lives: false,
            full: false,
            now: 1000 * SECOND,
            context: Context {
                direction: Direction::Inbound,
                ifindex: 2,
                slot: Slot(0),
                generation: 1,
                flags: SlotFlags(ALL),
                packets: 1,
                bytes: 100,
            },
        }
    }

    pub fn see(&mut self, direction: Direction, link: Link, bytes: &[u8]) -> Judgement {
        let mut packet = Packet::default();
        parse(bytes, link, bytes.len() as u32, &mut packet);
        let context = Context { direction, ..self.context };
        judge(self, &context, &packet)
    }

    pub fn outbound(&mut self, bytes: &[u8]) -> Judgement {
        self.see(Direction::Outbound, Link::None, bytes)
    }

    pub fn inbound(&mut self, bytes: &[u8]) -> Judgement {
        self.see(Direction::Inbound, Link::None, bytes)
    }

    pub fn count(&self, table: FlowTable) -> usize {
        self.v4.flows[table as usize].len() + self.v6.flows[table as usize].len()
    }
}

impl<F: Family> Default for Store<F> {
    fn default() -> Self {
        Self { flows: Default::default(), fragments: HashMap::new() }
    }
}

impl Host for Memory {
    type Tables = [Node];

    fn tables(&self, _: &Context) -> Option<&[Node]> {
        Some(&self.tables)
    }

    fn boot_ns(&self) -> u64 {
        self.now * (1_000_000_000 / SECOND)
    }

    fn jiffies(&self) -> u64 {
        self.now
    }

    fn hz(&self) -> u64 {
        SECOND
    }

    fn interface(&self, _: u32) -> Option<Interface> {
        self.interface
    }

    fn socket_cookie(&mut self) -> u64 {
        0
    }

    fn tcp_socket(&mut self, _: &Packet, _: Direction) -> TcpSocket {
        self.socket
    }

    fn tcp_lives(&mut self, _: &Packet, _: Direction) -> bool {
        self.lives
    }

    fn note(&self, key: &NoteKey) -> Option<u64> {
        self.notes.get(key).copied()
    }

    fn keep_note(&mut self, key: &NoteKey, now: u64) {
        self.notes.insert(*key, now);
    }
}

macro_rules! flows {
    ($family:ident, $field:ident) => {
        impl Flows<$family> for Memory {
            type Flow = (FlowTable, <$family as Family>::Key);

            fn find(&self, table: FlowTable, key: &<$family as Family>::Key) -> Option<Self::Flow> {
                self.$field.flows[table as usize].contains_key(key).then_some((table, *key))
            }

            fn view(&self, (table, key): Self::Flow) -> FlowView {
                FlowView::from(&self.$field.flows[table as usize][&key])
            }

            fn load(&self, (table, key): Self::Flow) -> Flow {
                self.$field.flows[table as usize][&key]
            }

            fn touch(&mut self, (table, key): Self::Flow, touch: &Touch) {
                touch.apply(self.$field.flows[table as usize].get_mut(&key).unwrap());
            }

            fn insert(&mut self, table: FlowTable, key: &<$family as Family>::Key, flow: &Flow) -> bool {
                !self.full && insert(&mut self.$field.flows[table as usize], *key, *flow)
            }

            fn remove(&mut self, table: FlowTable, key: &<$family as Family>::Key) {
                self.$field.flows[table as usize].remove(key);
            }

            fn find_fragment(&self, key: &<$family as Family>::FragmentKey) -> Option<FragmentValue> {
                self.$field.fragments.get(key).copied()
            }

            fn insert_fragment(&mut self, key: &<$family as Family>::FragmentKey, value: &FragmentValue) -> bool {
                !self.full && insert(&mut self.$field.fragments, *key, *value)
            }
        }
    };
}

flows!(V4, v4);
flows!(V6, v6);

fn insert<K: Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: V) -> bool {
    map.insert(key, value);
    true
}
