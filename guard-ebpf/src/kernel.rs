//! [`Host`] on the maps and helpers.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple},
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_jiffies64, bpf_sk_release, bpf_skc_lookup_tcp},
    maps::LruHashMap,
};
use guard_common::{
    Direction, Reason,
    abi::{Flow, FlowKeyV4, FlowKeyV6, FragmentKeyV4, FragmentKeyV6, FragmentValue, Interface, NoteKey},
    decide::Outcome,
    judge::{Answer, Asked, Context, FlowTable, FlowView, Flows, Host, TcpSocket, Touch, V4, V6},
    packet::Packet,
};

use crate::{
    generation::boot_ns,
    globals::HZ,
    hand::Hand,
    maps::{
        FLOWS_DENIED_V4, FLOWS_DENIED_V6, FLOWS_ESTABLISHED_V4, FLOWS_ESTABLISHED_V6, FLOWS_UNANSWERED_INBOUND_V4,
        FLOWS_UNANSWERED_INBOUND_V6, FLOWS_UNANSWERED_OUTBOUND_V4, FLOWS_UNANSWERED_OUTBOUND_V6, FRAGMENTS_V4,
        FRAGMENTS_V6, INTERFACES, NOTES,
    },
    parts::{ask_policy, find_tcp_socket, find_tcp_socket_frame},
    record::add,
    tables::SlotTables,
    verifier::forget,
};

/// The host of one packet.
///
/// `WITH` which context. Known when compiled, so that what needs one is not there without.
pub struct Kernel<const WITH: u8> {
    context: *mut c_void,
    /// Anything that the verifier cannot know.
    unknown: u32,
}

/// None: for parts that ask for no socket.
pub const NOTHING: u8 = 0;
pub const SKB: u8 = 1;
/// At XDP: it has no socket of its own, but others can be looked for.
pub const FRAME: u8 = 2;

impl Kernel<SKB> {
    #[inline(always)]
    pub const fn of_skb(skb: *mut c_void, unknown: u32) -> Self {
        Self { context: skb, unknown }
    }
}

impl Kernel<FRAME> {
    #[inline(always)]
    pub const fn of_frame(frame: *mut c_void, unknown: u32) -> Self {
        Self { context: frame, unknown }
    }
}

impl Kernel<NOTHING> {
    #[inline(always)]
    pub const fn without_packet(unknown: u32) -> Self {
        Self { context: ptr::null_mut(), unknown }
    }
}

impl<const WITH: u8> Kernel<WITH> {
    /// Of the packet in the hand.
    #[inline(always)]
    fn find_tcp_socket(&self) -> i32 {
        // SAFETY: each takes its program's context.
        unsafe {
            match WITH {
                SKB => find_tcp_socket(self.context.cast()),
                FRAME => find_tcp_socket_frame(self.context.cast()),
                _ => NO_SOCKET,
            }
        }
    }
}

impl<const WITH: u8> Host for Kernel<WITH> {
    type Tables = SlotTables;

    #[inline(always)]
    fn tables(&self, context: &Context) -> Option<&SlotTables> {
        SlotTables::of(context.slot)
    }

    #[inline(always)]
    fn boot_ns(&self) -> u64 {
        boot_ns()
    }

    #[inline(always)]
    fn jiffies(&self) -> u64 {
        // SAFETY: the helper takes nothing (5.6).
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn hz(&self) -> u64 {
        HZ.load().into()
    }

    #[inline(always)]
    fn interface(&self, ifindex: u32) -> Option<Interface> {
        // SAFETY: userspace replaces an element as a whole; what is read is the old or the new one, or some of each for
        // the one packet that meets the change.
        unsafe { INTERFACES.get(&ifindex) }.copied()
    }

    #[inline(always)]
    fn socket_cookie(&mut self) -> u64 {
        if WITH != SKB {
            return 0;
        }
        // SAFETY: the helper takes an skb, and gives 0 where that has no socket.
        unsafe { bpf_get_socket_cookie(self.context) }
    }

    #[inline(always)]
    fn tcp_socket(&mut self, _packet: &Packet, _direction: Direction) -> TcpSocket {
        match self.find_tcp_socket() & !LIVES {
            ACCEPTED => TcpSocket::Accepted,
            CONNECTED => TcpSocket::Connected,
            _ => TcpSocket::None,
        }
    }

    #[inline(always)]
    fn tcp_lives(&mut self, _packet: &Packet, _direction: Direction) -> bool {
        self.find_tcp_socket() & LIVES != 0
    }

    #[inline(always)]
    fn note(&self, key: &NoteKey) -> Option<u64> {
        // SAFETY: eight bytes, written at once.
        unsafe { NOTES.get(key) }.copied()
    }

    #[inline(always)]
    fn keep_note(&mut self, key: &NoteKey, now: u64) {
        let _ = NOTES.insert(key, now, 0);
    }

    #[inline(always)]
    fn ask(&mut self, _context: &Context, asked: &Asked) -> Answer {
        let fault = Answer { outcome: Outcome::without_rule(Reason::TableFault), ..Answer::default() };
        let Some(hand) = Hand::get() else { return fault };
        hand.asked = *asked;
        if ask_policy() == 0 { hand.answer } else { fault }
    }

    #[inline(always)]
    fn forget(&self, value: u32) -> u32 {
        forget(value, self.unknown)
    }
}

/// `TCP_LISTEN`.
const LISTEN: u32 = 10;

/// A connection as `bpf_sock_tuple` has it (network order): source is the remote. IPv4 takes the first words.
struct Ends {
    v4: [u32; 3],
    v6: [u32; 9],
}

impl Ends {
    #[inline(always)]
    fn of(packet: &Packet, direction: Direction) -> Self {
        let inbound = matches!(direction, Direction::Inbound);
        let (remote, remote_port, local, local_port) = if inbound {
            (&packet.source, packet.source_port, &packet.destination, packet.destination_port)
        } else {
            (&packet.destination, packet.destination_port, &packet.source, packet.source_port)
        };
        let ports = u32::from(remote_port.to_be()) | u32::from(local_port.to_be()) << 16;
        Self {
            v4: [remote[0].to_be(), local[0].to_be(), ports],
            v6: [
                remote[0].to_be(),
                remote[1].to_be(),
                remote[2].to_be(),
                remote[3].to_be(),
                local[0].to_be(),
                local[1].to_be(),
                local[2].to_be(),
                local[3].to_be(),
                ports,
            ],
        }
    }

    /// With 0:0 as remote only a listening socket is found.
    #[inline(always)]
    fn forget_remote(&mut self) {
        self.v4[0] = 0;
        self.v4[2] &= 0xffff_0000;
        self.v6[0] = 0;
        self.v6[1] = 0;
        self.v6[2] = 0;
        self.v6[3] = 0;
        self.v6[8] &= 0xffff_0000;
    }
}

/// [`TcpSocket`] as a part returns it.
pub const NO_SOCKET: i32 = 0;
pub const ACCEPTED: i32 = 1;
pub const CONNECTED: i32 = 2;
/// With either: [`Host::tcp_lives`].
pub const LIVES: i32 = 4;

/// By number (`enum` in include/net/tcp_states.h): all but TIME_WAIT (6), CLOSE (7), LISTEN (10), NEW_SYN_RECV (12).
const LIVING: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// # Safety
///
/// `context` is the program's.
#[inline(always)]
pub unsafe fn tcp_socket(context: *mut c_void, packet: &Packet, direction: Direction) -> i32 {
    let mut ends = Ends::of(packet, direction);
    // SAFETY: the caller's.
    unsafe {
        let lives = match look_up(context, &ends, packet.family) {
            Some(state) if state != LISTEN => (LIVING >> (state & 31) & 1) as i32 * LIVES,
            _ => return NO_SOCKET,
        };
        ends.forget_remote();
        match look_up(context, &ends, packet.family) {
            Some(LISTEN) => ACCEPTED | lives,
            _ => CONNECTED | lives,
        }
    }
}

/// The state of the socket that the kernel would give such a packet to.
///
/// # Safety
///
/// `context` is the program's.
#[inline(always)]
unsafe fn look_up(context: *mut c_void, ends: &Ends, family: u8) -> Option<u32> {
    // SAFETY: the helper reads as many bytes as stated (5.8), and what it gives is released here.
    unsafe {
        let (tuple, size) = if family == 6 {
            (ends.v6.as_ptr().cast_mut().cast::<bpf_sock_tuple>(), size_of_val(&ends.v6))
        } else {
            (ends.v4.as_ptr().cast_mut().cast::<bpf_sock_tuple>(), size_of_val(&ends.v4))
        };
        let socket = bpf_skc_lookup_tcp(context, tuple, size as u32, BPF_F_CURRENT_NETNS as i64 as u64, 0);
        if socket.is_null() {
            return None;
        }
        let state = ptr::read_volatile(&raw const (*socket).state);
        bpf_sk_release(socket.cast());
        Some(state)
    }
}

macro_rules! flows {
    ($family:ty, $key:ty, $fragment_key:ty, $established:ident, $inbound:ident, $outbound:ident, $denied:ident, $fragments:ident) => {
        impl<const WITH: u8> Flows<$family> for Kernel<WITH> {
            type Flow = *mut Flow;

            #[inline(always)]
            fn find(&self, table: FlowTable, key: &$key) -> Option<*mut Flow> {
                match table {
                    FlowTable::Established => $established.get_ptr_mut(key),
                    FlowTable::UnansweredInbound => $inbound.get_ptr_mut(key),
                    FlowTable::UnansweredOutbound => $outbound.get_ptr_mut(key),
                    FlowTable::Denied => $denied.get_ptr_mut(key),
                }
            }

            #[inline(always)]
            fn view(&self, flow: *mut Flow) -> FlowView {
                // SAFETY: an entry of a preallocated table. Were it reused while we hold it, then for a key that this
                // CPU has just evicted; the verdict would be that of another flow for this one packet.
                FlowView::from(unsafe { &*flow })
            }

            #[inline(always)]
            fn load(&self, flow: *mut Flow) -> Flow {
                // SAFETY: as above.
                unsafe { *flow }
            }

            #[inline(always)]
            fn touch(&mut self, flow: *mut Flow, touch: &Touch) {
                // SAFETY: as above; what other CPUs add meanwhile is not lost.
                unsafe { apply(flow, touch) }
            }

            #[inline(always)]
            fn insert(&mut self, table: FlowTable, key: &$key, flow: &Flow) -> bool {
                let table: &LruHashMap<$key, Flow> = match table {
                    FlowTable::Established => &$established,
                    FlowTable::UnansweredInbound => &$inbound,
                    FlowTable::UnansweredOutbound => &$outbound,
                    FlowTable::Denied => &$denied,
                };
                table.insert(key, flow, 0).is_ok()
            }

            #[inline(always)]
            fn remove(&mut self, table: FlowTable, key: &$key) {
                let table: &LruHashMap<$key, Flow> = match table {
                    FlowTable::Established => &$established,
                    FlowTable::UnansweredInbound => &$inbound,
                    FlowTable::UnansweredOutbound => &$outbound,
                    FlowTable::Denied => &$denied,
                };
                let _ = table.remove(key);
            }

            #[inline(always)]
            fn find_fragment(&self, key: &$fragment_key) -> Option<FragmentValue> {
                // SAFETY: an entry is written once, before it can be found.
                unsafe { $fragments.get(key) }.copied()
            }

            #[inline(always)]
            fn insert_fragment(&mut self, key: &$fragment_key, value: &FragmentValue) -> bool {
                $fragments.insert(key, value, 0).is_ok()
            }
        }
    };
}

flows!(
    V4,
    FlowKeyV4,
    FragmentKeyV4,
    FLOWS_ESTABLISHED_V4,
    FLOWS_UNANSWERED_INBOUND_V4,
    FLOWS_UNANSWERED_OUTBOUND_V4,
    FLOWS_DENIED_V4,
    FRAGMENTS_V4
);
flows!(
    V6,
    FlowKeyV6,
    FragmentKeyV6,
    FLOWS_ESTABLISHED_V6,
    FLOWS_UNANSWERED_INBOUND_V6,
    FLOWS_UNANSWERED_OUTBOUND_V6,
    FLOWS_DENIED_V6,
    FRAGMENTS_V6
);

/// # Safety
///
/// `flow` is an entry of a flow table.
#[inline(always)]
unsafe fn apply(flow: *mut Flow, touch: &Touch) {
    // SAFETY: see above.
    unsafe {
        if (*flow).last_seen != touch.now {
            (*flow).last_seen = touch.now;
        }
        if (*flow).tcp != touch.tcp {
            (*flow).tcp = touch.tcp;
        }
        if (*flow).flags != touch.flags {
            (*flow).flags = touch.flags;
        }
        // Last: what is written so, LLVM takes for anything in memory.
        let at = touch.direction as usize & 1;
        add(&raw mut (*flow).packets[at], touch.packets.into());
        add(&raw mut (*flow).bytes[at], touch.bytes.into());
    }
}
