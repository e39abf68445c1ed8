//! The socket layer: connect4/6 and sendmsg4/6 of a cgroup (5.10). Tells a program at once what the wire would deny,
//! and keeps which process asked. Where it cannot know, the wire judges.

use core::ptr;

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use guard_common::{
    Direction, Verdict,
    abi::{EventKind, Features, Flow, FlowKeyV4, FlowKeyV6, Near, SlotFlags},
    decide::{Decision, Question, Subject, decide},
};

use crate::{
    generation::{Generation, boot_ns},
    globals::{FEATURES, NETNS_COOKIE},
    maps::{FLOWS_DENIED_V4, FLOWS_DENIED_V6, NEAR_V4, NEAR_V6},
    record::{add, begin_event, count, count_lost, count_rule, current_owner, keep_owner},
    tables::SlotTables,
    verifier::forget_question,
};

/// The system call goes on, or fails with EPERM.
const PASS: i32 = 1;
const REFUSE: i32 = 0;

const TCP: u32 = 6;
const UDP: u32 = 17;
const SCTP: u32 = 132;
const UDP_LITE: u32 = 136;
/// What an MPTCP socket says; its subflows are TCP.
const MPTCP: u32 = 262;

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    ipv4(&context, Call::Connect)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    ipv4(&context, Call::Send)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    ipv6(&context, Call::Connect)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    ipv6(&context, Call::Send)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Connect,
    Send,
}

#[inline(always)]
fn ipv4(context: &SockAddrContext, call: Call) -> i32 {
    // SAFETY: the kernel's context; volatile, since the verifier wants each field read at its own offset.
    let address = unsafe { ptr::read_volatile(&raw const (*context.sock_addr).user_ip4) };
    judge(context, call, false, [u32::from_be(address), 0, 0, 0])
}

#[inline(always)]
fn ipv6(context: &SockAddrContext, call: Call) -> i32 {
    let mut address = [0; 4];
    // SAFETY: as above.
    unsafe {
        let words = &raw const (*context.sock_addr).user_ip6;
        address[0] = u32::from_be(ptr::read_volatile(words.cast::<u32>()));
        address[1] = u32::from_be(ptr::read_volatile(words.cast::<u32>().add(1)));
        address[2] = u32::from_be(ptr::read_volatile(words.cast::<u32>().add(2)));
        address[3] = u32::from_be(ptr::read_volatile(words.cast::<u32>().add(3)));
    }
    // connect4 is not run for mapped addresses, though the packets are IPv4. One call: each is a decision in line.
    let mapped = address[0] == 0 && address[1] == 0 && address[2] == 0xffff;
    judge(context, call, !mapped, if mapped { [address[3], 0, 0, 0] } else { address })
}

#[inline(always)]
fn judge(context: &SockAddrContext, call: Call, ipv6: bool, remote: [u32; 4]) -> i32 {
    let raw = context.sock_addr;
    // SAFETY: the helper takes this program type's context (5.7).
    if unsafe { bpf_get_netns_cookie(raw.cast()) } != NETNS_COOKIE.load() {
        // Before 5.14 nobody knows which namespace is ours: who asks is kept of all, and the wire finds its own by cookie.
        if NETNS_COOKIE.load() == 0 && !stays_here(ipv6, remote) {
            // SAFETY: as above.
            keep_owner(unsafe { bpf_get_socket_cookie(raw.cast()) }, boot_ns());
        }
        return PASS;
    }
    let Some(generation) = Generation::current() else { return REFUSE };
    let Some(protocol) = protocol(raw) else { return PASS };
    if stays_here(ipv6, remote) || near(ipv6, remote, &generation) {
        return PASS;
    }
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_socket_cookie(raw.cast()) };
    // Connecting UDP sends nothing: ping, and every resolver library, do it only to learn their own address, on ports
    // that they never use. What is sent after it is the wire's to deny.
    let asks = call == Call::Send || protocol == TCP || protocol == SCTP;
    let enforces = generation.judges() && generation.enforces(Direction::Outbound);
    if asks && enforces && FEATURES.load() & Features::LOCAL_DNAT == 0 {
        // SAFETY: the kernel's context.
        let port = unsafe { ptr::read_volatile(&raw const (*raw).user_port) };
        let port = u16::from_be(port as u16);
        let Some(tables) = SlotTables::of(generation.slot) else { return REFUSE };
        let mut question = Question {
            direction: Direction::Outbound,
            ipv6,
            remote,
            service: protocol << 16 | u32::from(port),
            subject: Subject::default(),
        };
        forget_question(&mut question, generation.number);
        // What a datagram socket sends from its own port may be an answer to a flow that came in. Its table cannot be
        // asked, since our address is not known yet: where such a flow could be allowed, the wire judges.
        let decision = decide(tables, &question, boot_ns);
        let mut passes = decision.outcome.verdict() == Verdict::Allow || decision.needs_context;
        let own = own_port(raw);
        if !passes && call == Call::Send && matches!(protocol, UDP | UDP_LITE) && own != 0 {
            let mut answered = Question { direction: Direction::Inbound, service: protocol << 16 | own, ..question };
            forget_question(&mut answered, generation.number);
            let inbound = decide(tables, &answered, boot_ns);
            passes = inbound.outcome.verdict() == Verdict::Allow || inbound.needs_context;
        }
        if !passes {
            refused(&generation, &decision, &question, cookie);
            return REFUSE;
        }
    }
    keep_owner(cookie, boot_ns());
    PASS
}

/// Protocols whose service is known before a packet is made; `None` for the others (ping and raw sockets).
#[inline(always)]
fn protocol(raw: *mut bpf_sock_addr) -> Option<u32> {
    // SAFETY: the kernel's context.
    match unsafe { ptr::read_volatile(&raw const (*raw).protocol) } {
        MPTCP => Some(TCP),
        protocol @ (TCP | UDP | SCTP | UDP_LITE) => Some(protocol),
        _ => None,
    }
}

/// The local port of a socket that is bound to one; 0.
#[inline(always)]
fn own_port(raw: *mut bpf_sock_addr) -> u32 {
    // SAFETY: the kernel's context, whose socket is never null (5.3); its port is in host order.
    unsafe { ptr::read_volatile(&raw const (*(*raw).__bindgen_anon_1.sk).src_port) }
}

/// Loopback, and the unspecified address, which means loopback here.
#[inline(always)]
fn stays_here(ipv6: bool, remote: [u32; 4]) -> bool {
    if ipv6 {
        remote[0] == 0 && remote[1] == 0 && remote[2] == 0 && remote[3] <= 1
    } else {
        remote[0] >> 24 == 127 || remote[0] == 0
    }
}

/// Whether nothing on the way there is judged by this generation.
#[inline(always)]
fn near(ipv6: bool, remote: [u32; 4], generation: &Generation) -> bool {
    let near = if ipv6 {
        let address = [remote[0].to_be(), remote[1].to_be(), remote[2].to_be(), remote[3].to_be()];
        NEAR_V6.get(&Key::new(128, address))
    } else {
        NEAR_V4.get(&Key::new(32, remote[0].to_be()))
    };
    match near {
        Some(near) => *near != Near::MEMBERS || !generation.flags.has(SlotFlags::CONTAINER_HOST),
        None => false,
    }
}

/// Keeps the refusal as a flow, and rings once.
#[inline(always)]
fn refused(generation: &Generation, decision: &Decision, question: &Question, cookie: u64) {
    let outcome = decision.outcome;
    // A refused call is counted as a packet of no bytes: none was ever sent.
    count(outcome.reason(), Direction::Outbound, true, 1, 0);
    let key = FlowKeyV6 {
        remote: question.remote,
        remote_port: question.service as u16,
        protocol_scope: question.service >> 16,
        ..FlowKeyV6::default()
    };
    let known =
        if question.ipv6 { FLOWS_DENIED_V6.get_ptr_mut(&key) } else { FLOWS_DENIED_V4.get_ptr_mut(&narrow(&key)) };
    if let Some(flow) = known {
        // SAFETY: an entry of a preallocated LRU hash: were it reused meanwhile, a count would go to another flow.
        unsafe {
            add(&raw mut (*flow).packets[Direction::Outbound as usize], 1);
            if (*flow).generation == generation.number {
                return;
            }
            (*flow).generation = generation.number;
            (*flow).outcome = outcome;
        }
    } else {
        let now = boot_ns();
        let flow = Flow {
            generation: generation.number,
            outcome,
            until: decision.until,
            direction: Direction::Outbound as u8,
            flags: Flow::AT_SOCKET,
            packets: [0, 1],
            first_seen: now,
            socket_cookie: cookie,
            first_outcome: outcome,
            ..Flow::default()
        };
        let kept = if question.ipv6 {
            FLOWS_DENIED_V6.insert(&key, &flow, 0)
        } else {
            FLOWS_DENIED_V4.insert(&narrow(&key), &flow, 0)
        };
        if kept.is_err() {
            count_lost(guard_common::abi::Lost::Events);
        }
    }
    count_rule(generation.slot, outcome);
    if let Some(mut entry) =
        begin_event(EventKind::SocketDenied as u8, Direction::Outbound as u8, 1, outcome, generation, 0)
    {
        let event = entry.as_mut_ptr();
        // SAFETY: the entry has room for a whole event.
        unsafe {
            (*event).family = if question.ipv6 { 6 } else { 4 };
            (*event).socket_cookie = cookie;
            (*event).key = key;
            (*event).owner = current_owner((*event).time);
        }
        entry.submit(0);
    }
}

#[inline(always)]
fn narrow(key: &FlowKeyV6) -> FlowKeyV4 {
    FlowKeyV4 {
        remote: key.remote[0],
        local: key.local[0],
        remote_port: key.remote_port,
        local_port: key.local_port,
        protocol_scope: key.protocol_scope,
    }
}
