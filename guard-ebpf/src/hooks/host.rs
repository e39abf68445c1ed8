//! The host's side of a bridge: what passes between containers or VMs and this host itself, where the policy asks for it
//! (`container_host: guard`). The same judge as the wire's, behind a gate.
//!
//! It stands at the bridge device (or at a container's veth that is no bridge's port), since that is where frames pass between
//! the bridge and this host's stack: what members say to one another stays in the bridge and is never seen here, a broadcast
//! is judged once and its copies for members are left alone, and a container that starts later is behind the same device.
//! What this host only passes on crosses the device too, and is let through here: it is judged once, where it leaves.
//!
//! Which of the two a packet is, is asked of the kernel's own routing (`bpf_fib_lookup`, 4.18), not of a table that userspace
//! would have to keep: inbound, only what routing would pass on is passed on, and whatever else it says (an address of ours, a
//! group, no way there, forwarding off, a header that cannot be read) is judged. Outbound what this host made itself is
//! judged, and what bears an address of ours as its source. So a packet cannot be forged to look passed on and reach this host.
//!
//! What a bridge hands up on a port itself does not come this way: the backstop holds it.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_fib_lookup, macros::classifier, programs::TcContext};
use guard_common::{
    Direction,
    abi::SlotFlags,
    packet::{
        ethernet::{IPV4, IPV6},
        transport::{ICMP, ICMPV6, SCTP, TCP, UDP, UDP_LITE},
    },
};

use super::wire::{ETHERNET, NEXT, Side, fault, wire};
use crate::{generation::Generation, skb};

#[classifier]
pub fn host_ingress(context: TcContext) -> i32 {
    host(context.skb.skb, Direction::Inbound)
}

#[classifier]
pub fn host_egress(context: TcContext) -> i32 {
    host(context.skb.skb, Direction::Outbound)
}

#[inline(always)]
fn host(skb: *mut __sk_buff, direction: Direction) -> i32 {
    let Some(generation) = Generation::current() else { return fault(direction) };
    if generation.judges() && !generation.flags.has(SlotFlags::CONTAINER_HOST) {
        return NEXT;
    }
    // SAFETY: this program's context.
    if unsafe { passes_on(skb, direction as u32) } == 1 {
        return NEXT;
    }
    wire(skb, direction, ETHERNET, Side::Host, &generation)
}

/// 1: this host only passes the packet on, and it is not judged here.
///
/// # Safety
///
/// `skb` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn passes_on(skb: *mut __sk_buff, direction: u32) -> i32 {
    // SAFETY: the caller's.
    unsafe { if direction == Direction::Inbound as u32 { comes_through(skb) } else { goes_through(skb) }.into() }
}

/// Where the network header stands: on a device with Ethernet headers, tags being in the skb.
const NETWORK: u32 = 14;

#[inline(always)]
unsafe fn comes_through(skb: *mut __sk_buff) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let Some(mut way) = Way::of_packet(skb, NETWORK) else { return false };
        way.is_passed_on(skb)
    }
}

#[inline(always)]
unsafe fn goes_through(skb: *mut __sk_buff) -> bool {
    // SAFETY: the caller's; `skb_iif` is 0 for what this host made itself.
    unsafe {
        let Some(mut way) = Way::of_packet(skb, NETWORK) else { return false };
        if (*skb).ingress_ifindex == 0 {
            return is_error_about_others(skb, &way);
        }
        way.turn();
        way.leads_elsewhere(skb)
    }
}

/// An error of this host's own about what a container sent to somebody else: too large, no way there, time exceeded. It
/// belongs to what is passed on. What it quotes has to have come from whom it goes to.
#[inline(always)]
unsafe fn is_error_about_others(skb: *mut __sk_buff, way: &Way) -> bool {
    let (quoted_at, kinds) = match (way.family(), way.protocol()) {
        // Unreachable, time exceeded, parameter problem.
        (INET, ICMP) => (NETWORK + 20 + 8, 1_u32 << 3 | 1 << 11 | 1 << 12),
        (INET6, ICMPV6) => (NETWORK + 40 + 8, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4),
        _ => return false,
    };
    // SAFETY: the caller's.
    unsafe {
        let Some([head]) = skb::load::<1>(skb, quoted_at - 8) else { return false };
        if head & 0xff > 31 || kinds >> (head & 31) & 1 == 0 {
            return false;
        }
        let Some(mut quoted) = Way::of_headers(skb, quoted_at, way.family()) else { return false };
        quoted.0[SOURCE..SOURCE + 4] == way.0[DESTINATION..DESTINATION + 4] && quoted.is_passed_on(skb)
    }
}

const INET: u32 = 2;
const INET6: u32 = 10;

/// `struct bpf_fib_lookup` (include/uapi/linux/bpf.h), as words: family, protocol and ports; the interface; source and
/// destination. All but the interface and the family as on the wire.
struct Way([u32; 16]);

const INTERFACE: usize = 2;
const TOS: usize = 3;
const SOURCE: usize = 4;
const DESTINATION: usize = 8;

impl Way {
    /// The way of the packet that an Ethernet header stands before. `None`: it is neither IPv4 nor IPv6, or cut short.
    #[inline(always)]
    unsafe fn of_packet(skb: *mut __sk_buff, at: u32) -> Option<Self> {
        // SAFETY: the caller's. The frame says what it is: `skb->protocol` is the choice of whoever sent it here.
        unsafe {
            let [kind] = skb::load::<1>(skb, at - 2)?;
            match (kind as u16).to_be() {
                IPV4 => Self::of_headers(skb, at, INET),
                IPV6 => Self::of_headers(skb, at, INET6),
                _ => None,
            }
        }
    }

    #[inline(always)]
    unsafe fn of_headers(skb: *mut __sk_buff, at: u32, family: u32) -> Option<Self> {
        let mut way = Self([0; 16]);
        // SAFETY: the caller's.
        unsafe {
            let (protocol, ports_at) = if family == INET {
                let ip = skb::load::<5>(skb, at)?;
                if ip[0] & 0xf0 != 0x40 {
                    return None;
                }
                way.0[TOS] = ip[0] >> 8 & 0xff;
                way.0[SOURCE] = ip[3];
                way.0[DESTINATION] = ip[4];
                // Options, and fragments: ports are not looked for, as routing does not in a fragment.
                let plain = ip[0] & 0xf == 5 && ip[1].to_be() & 0x3fff == 0;
                (ip[2] >> 8 & 0xff, if plain { at + 20 } else { 0 })
            } else {
                let ip = skb::load::<10>(skb, at)?;
                if ip[0] & 0xf0 != 0x60 {
                    return None;
                }
                way.0[TOS] = ip[0] & 0x0fff_ffff_u32.to_be();
                way.0[SOURCE..SOURCE + 4].copy_from_slice(&ip[2..6]);
                way.0[DESTINATION..DESTINATION + 4].copy_from_slice(&ip[6..10]);
                (ip[1] >> 16 & 0xff, at + 40)
            };
            way.0[0] = family | protocol << 8;
            // Rules of routing may ask for ports.
            if ports_at != 0
                && matches!(protocol as u8, TCP | UDP | SCTP | UDP_LITE)
                && let Some([ports]) = skb::load::<1>(skb, ports_at)
            {
                way.0[0] |= ports << 16;
                way.0[1] = ports >> 16;
            }
        }
        Some(way)
    }

    #[inline(always)]
    const fn family(&self) -> u32 {
        self.0[0] & 0xff
    }

    #[inline(always)]
    const fn protocol(&self) -> u8 {
        (self.0[0] >> 8) as u8
    }

    /// The way back to the source.
    #[inline(always)]
    fn turn(&mut self) {
        self.0[0] &= 0xff;
        self.0[1] = 0;
        let source = [self.0[4], self.0[5], self.0[6], self.0[7]];
        self.0[SOURCE..SOURCE + 4].copy_from_slice(&[0; 4]);
        self.0[DESTINATION..DESTINATION + 4].copy_from_slice(&source);
    }

    /// Whether this host would pass on what goes there.
    #[inline(always)]
    unsafe fn is_passed_on(&mut self, skb: *mut __sk_buff) -> bool {
        // SAFETY: the caller's.
        matches!(unsafe { self.ask(skb) }, SUCCESS | TUNNEL | NO_NEIGHBOUR | TOO_LARGE)
    }

    /// Whether it is nothing of this host's own.
    #[inline(always)]
    unsafe fn leads_elsewhere(&mut self, skb: *mut __sk_buff) -> bool {
        // SAFETY: the caller's.
        matches!(unsafe { self.ask(skb) }, SUCCESS | BLACKHOLE..=PROHIBIT | TUNNEL | NO_NEIGHBOUR | TOO_LARGE)
    }

    #[inline(always)]
    unsafe fn ask(&mut self, skb: *mut __sk_buff) -> i64 {
        self.0[INTERFACE] = skb::ifindex(skb);
        // SAFETY: the helper takes this context, and reads and writes the 64 bytes of its struct.
        unsafe { bpf_fib_lookup(skb.cast(), self.0.as_mut_ptr().cast(), 64, 0) as i64 }
    }
}

/// `BPF_FIB_LKUP_RET_*`. Others: an address of ours or of many (4), forwarding off (5), no answer (below 0).
const SUCCESS: i64 = 0;
const BLACKHOLE: i64 = 1;
const PROHIBIT: i64 = 3;
const TUNNEL: i64 = 6;
const NO_NEIGHBOUR: i64 = 7;
const TOO_LARGE: i64 = 8;
