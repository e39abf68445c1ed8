//! `on_deny: { outbound: reject }`: what a container, or another machine behind this host, is told when its packet is not
//! passed on: a TCP reset, else "administratively prohibited". The packet itself becomes its answer and goes back in where
//! it would have gone out, so that connection tracking finds whose it is, whatever translated its addresses on the way.
//!
//! Only what came in by an interface that is not guarded is answered: nothing is ever said toward the outside. This host's
//! own programs are told by the socket layer.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INVALIDATE_HASH},
    helpers::generated::{bpf_jiffies64, bpf_skb_change_tail, bpf_skb_store_bytes},
};
use guard_common::{
    abi::{Interface, Rejects},
    packet::transport::{ICMP, ICMPV6, TCP},
};

use crate::{
    generation::is_pending,
    globals::{HZ, REJECT_MARK},
    maps::{INTERFACES, REJECTS},
    skb::load,
};

/// RFC 9293, 3.1.
const FIN: u32 = 1;
const SYN: u32 = 2;
const RST: u32 = 4;
const ACK: u32 = 16;

const IPV6_FRAGMENT: u32 = 44;

/// Whether a packet that leaves, and is denied, came from behind this host.
#[inline(always)]
pub fn is_from_behind(skb: *const __sk_buff) -> bool {
    // SAFETY: the kernel's context. `skb_iif`; 0 for what this host made itself.
    let from = unsafe { (*skb).ingress_ifindex };
    if from == 0 {
        return false;
    }
    // SAFETY: userspace replaces whole entries.
    match unsafe { INTERFACES.get(from) } {
        Some(interface) => interface.flags & Interface::GUARDED == 0,
        // One that is not known yet may lead outside.
        None => false,
    }
}

/// Whether this is such an answer, on its way back in. Its mark is taken off. Nobody outside can set one.
#[inline(always)]
pub fn is_own_answer(skb: *mut __sk_buff) -> bool {
    let mark = REJECT_MARK.load();
    // SAFETY: the kernel's context, of which this field may be written.
    unsafe {
        if mark == 0 || (*skb).mark != mark {
            return false;
        }
        (*skb).mark = 0;
    }
    true
}

/// Turns a denied IPv4 packet into its answer: 1 where that is done, and 0 where it is to be dropped.
///
/// # Safety
///
/// `skb` is the program's context; `at` is where its network header begins: 14 or 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn reject_v4(skb: *mut __sk_buff, at: u32) -> i32 {
    // SAFETY: the helpers take the context, and as many bytes as each array has.
    unsafe { answer_v4(skb, at).into() }
}

/// The same of IPv6.
///
/// # Safety
///
/// As [`reject_v4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn reject_v6(skb: *mut __sk_buff, at: u32) -> i32 {
    // SAFETY: as above.
    unsafe { answer_v6(skb, at).into() }
}

#[inline(always)]
unsafe fn answer_v4(skb: *mut __sk_buff, at: u32) -> bool {
    // A header without options and the eight bytes behind it, which is what an error quotes (RFC 792).
    let Some(old) = (unsafe { load::<7>(skb, at) }) else { return false };
    let (first, source, destination) = (old[0].to_be(), old[3], old[4]);
    let protocol = old[2].to_be() >> 16 & 0xff;
    let is_fragment = old[1].to_be() & 0x3fff != 0;
    // RFC 1122, 3.2.2: no error about fragments, nor about what goes to many.
    if first >> 24 != 0x45 || is_fragment || destination.to_be() >= 0xe000_0000 {
        return false;
    }
    if protocol == u32::from(TCP) {
        let Some(tcp) = (unsafe { load::<5>(skb, at + 20) }) else { return false };
        let payload = (first & 0xffff).saturating_sub(20 + data_offset(&tcp));
        let Some(reset) = reset(&tcp, payload) else { return false };
        let mut new = [0; 10];
        new[..5].copy_from_slice(&header_v4(40, TCP, destination, source));
        new[5..].copy_from_slice(&reset);
        let pseudo = sum(&[source, destination, u32::from(TCP).to_be(), 20_u32.to_be()]);
        // The low half of a word is its first two bytes: the target is little-endian.
        new[9] = u32::from(checksum(pseudo + sum(&reset)));
        return unsafe { allowed() && become_answer(skb, at, &new, true) };
    }
    // None about an error: of ICMP only about a request.
    if protocol == u32::from(ICMP) && old[5] & 0xff != 8 {
        return false;
    }
    let mut new = [0; 14];
    new[..5].copy_from_slice(&header_v4(56, ICMP, destination, source));
    // Destination unreachable, communication administratively prohibited (RFC 1812, 5.2.7.1).
    new[5] = 3 | 13 << 8;
    new[7..].copy_from_slice(&old);
    new[5] |= u32::from(checksum(sum(&new[5..]))) << 16;
    unsafe { allowed() && become_answer(skb, at, &new, false) }
}

#[inline(always)]
unsafe fn answer_v6(skb: *mut __sk_buff, at: u32) -> bool {
    let Some(old) = (unsafe { load::<12>(skb, at) }) else { return false };
    let protocol = old[1].to_be() >> 8 & 0xff;
    // RFC 4443, 2.4 (e): no error about what goes to many.
    if old[0].to_be() >> 28 != 6 || old[6] & 0xff == 0xff || protocol == IPV6_FRAGMENT {
        return false;
    }
    if protocol == u32::from(TCP) {
        let Some(tcp) = (unsafe { load::<5>(skb, at + 40) }) else { return false };
        let payload = (old[1].to_be() >> 16).saturating_sub(data_offset(&tcp));
        let Some(reset) = reset(&tcp, payload) else { return false };
        let mut new = [0; 15];
        new[..10].copy_from_slice(&header_v6(20, TCP, &old));
        new[10..].copy_from_slice(&reset);
        let pseudo = sum(&old[2..10]) + sum(&[u32::from(TCP).to_be(), 20_u32.to_be()]);
        new[14] = u32::from(checksum(pseudo + sum(&reset)));
        return unsafe { allowed() && become_answer(skb, at, &new, true) };
    }
    // Echo request alone: neither errors (below 128) nor what the link says.
    if protocol == u32::from(ICMPV6) && old[10] & 0xff != 128 {
        return false;
    }
    let mut new = [0; 24];
    new[..10].copy_from_slice(&header_v6(56, ICMPV6, &old));
    // Destination unreachable, communication administratively prohibited (RFC 4443, 3.1).
    new[10] = 1 | 1 << 8;
    new[12..].copy_from_slice(&old);
    let pseudo = sum(&old[2..10]) + sum(&[u32::from(ICMPV6).to_be(), 56_u32.to_be()]);
    new[10] |= u32::from(checksum(pseudo + sum(&new[10..]))) << 16;
    unsafe { allowed() && become_answer(skb, at, &new, false) }
}

/// In bytes.
#[inline(always)]
fn data_offset(tcp: &[u32; 5]) -> u32 {
    (tcp[3].to_be() >> 28) * 4
}

/// The reset that answers a segment (RFC 9293, 3.10.7.1), its checksum left out. None answers a reset, and none a session
/// while a change waits for its confirmation: what the deadline undoes shall cost nobody a session.
#[inline(always)]
fn reset(tcp: &[u32; 5], payload: u32) -> Option<[u32; 5]> {
    let flags = tcp[3].to_be() >> 16 & 0x3f;
    if flags & RST != 0 {
        return None;
    }
    let ports = tcp[0].rotate_left(16);
    if flags & ACK != 0 {
        if is_pending() {
            return None;
        }
        return Some([ports, tcp[2], 0, (5 << 28 | RST << 16_u32).to_be(), 0]);
    }
    let length = payload + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let acknowledged = tcp[1].to_be().wrapping_add(length);
    Some([ports, 0, acknowledged.to_be(), (5 << 28 | (RST | ACK) << 16).to_be(), 0])
}

#[inline(always)]
fn header_v4(length: u32, protocol: u8, source: u32, destination: u32) -> [u32; 5] {
    let mut header = [
        (0x4500_0000 | length).to_be(),
        0x4000_u32.to_be(),
        (64 << 24 | u32::from(protocol) << 16).to_be(),
        source,
        destination,
    ];
    header[2] |= u32::from(checksum(sum(&header))) << 16;
    header
}

/// From the other's destination to its source.
#[inline(always)]
fn header_v6(length: u32, protocol: u8, old: &[u32; 12]) -> [u32; 10] {
    let rest = (length << 16 | u32::from(protocol) << 8 | 64).to_be();
    [0x6000_0000_u32.to_be(), rest, old[6], old[7], old[8], old[9], old[2], old[3], old[4], old[5]]
}

/// RFC 1071: of words in whatever order they lie in memory.
#[inline(always)]
fn sum(words: &[u32]) -> u64 {
    let mut total = 0;
    for word in words {
        total += u64::from(*word);
    }
    total
}

#[inline(always)]
fn checksum(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// Takes one from what this CPU may answer in this second.
#[inline(always)]
unsafe fn allowed() -> bool {
    let Some(rejects) = REJECTS.get_ptr_mut(0) else { return false };
    let rejects: *mut Rejects = rejects;
    // SAFETY: this CPU's own element.
    unsafe {
        let now = bpf_jiffies64();
        if now - (*rejects).since >= u64::from(HZ.load()) {
            (*rejects).since = now;
            (*rejects).left = Rejects::PER_SECOND;
        }
        if (*rejects).left == 0 {
            (*rejects).withheld += 1;
            return false;
        }
        (*rejects).left -= 1;
    }
    true
}

/// Writes the answer over the packet, the other way round on the link, and counts it.
#[inline(always)]
unsafe fn become_answer<const WORDS: usize>(skb: *mut __sk_buff, at: u32, new: &[u32; WORDS], is_reset: bool) -> bool {
    let length = 4 * WORDS as u32;
    let flags = u64::from(BPF_F_INVALIDATE_HASH);
    let Some(rejects) = REJECTS.get_ptr_mut(0) else { return false };
    let rejects: *mut Rejects = rejects;
    // SAFETY: the helpers take the context, and as many bytes as each array has; the counts are this CPU's own.
    unsafe {
        // Refuses a train of segments, whose sender will send its first one alone when nobody answers.
        let mut done = bpf_skb_change_tail(skb.cast(), at + length, 0) == 0
            && bpf_skb_store_bytes(skb.cast(), at, new.as_ptr().cast(), length, flags) == 0;
        if done && at != 0 {
            done = match load::<3>(skb, 0) {
                Some(old) => {
                    let turned =
                        [old[1] >> 16 | old[2] << 16, old[2] >> 16 | old[0] << 16, old[0] >> 16 | old[1] << 16];
                    bpf_skb_store_bytes(skb.cast(), 0, turned.as_ptr().cast(), 12, 0) == 0
                }
                None => false,
            };
        }
        match (done, is_reset) {
            (false, _) => (*rejects).withheld += 1,
            (true, true) => (*rejects).resets += 1,
            (true, false) => (*rejects).prohibited += 1,
        }
        if done {
            (*skb).mark = REJECT_MARK.load();
        }
        done
    }
}
