//! The seal at kernel functions (`fmod_ret`, 5.7, where the kernel has trampolines and type information): refuses AF_XDP
//! sockets, and the socket options that lead round the wire layer, however they are asked for: by native and 32-bit
//! system calls and by io_uring. No later program can lift a refusal.
//!
//! Held are the tasks of guard's cgroup, in every network namespace.
//!
//! aya knows no such programs and would refuse their section's true name; userspace loads them by hand (`kernel::sealing`).

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_probe_read_kernel;

use super::seal::{PACKET_QDISC_BYPASS, REFUSE, SOL_PACKET, SOL_XDP, refuse};
use crate::{
    globals::{BYPASS_MASK, BYPASS_OFFSET, BYPASS_VALUE, SOCKET_SK},
    maps::SEAL_CGROUP,
};

const PASS: i32 = 0;
const EPERM: i32 = -1;

const AF_XDP: i32 = 44;

/// `security_socket_setsockopt(struct socket *sock, int level, int optname)`; then what is returned so far.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/seal_option")]
extern "C" fn seal_option(arguments: *mut c_void) -> i32 {
    let [socket, level, name, so_far] = words(arguments);
    let (level, name) = (level as i32, name as i32);
    // The hook does not tell the option's value, and to look at it in the caller's memory would be no proof: another
    // thread may change it. So what is asked of a socket that does not go round is refused, even 0, which changes
    // nothing there; one that does go round may be told anything, and a clean-up tells it 0.
    let goes_round = level == SOL_XDP || (level == SOL_PACKET && name == PACKET_QDISC_BYPASS && !bypasses(socket));
    judge(so_far as i32, goes_round)
}

/// `security_socket_create(int family, int type, int protocol, int kern)`; then what is returned so far.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/seal_create")]
extern "C" fn seal_create(arguments: *mut c_void) -> i32 {
    let [family, _, _, by_kernel, so_far] = words(arguments);
    judge(so_far as i32, family as i32 == AF_XDP && by_kernel as i32 == 0)
}

#[inline(always)]
fn judge(so_far: i32, goes_round: bool) -> i32 {
    if so_far != 0 {
        return so_far;
    }
    if goes_round && SEAL_CGROUP.holds_current() && refuse(true) == REFUSE { EPERM } else { PASS }
}

/// Whether a packet socket goes round the qdisc as it is.
#[inline(always)]
fn bypasses(socket: u64) -> bool {
    // SAFETY: the helper checks the address; what cannot be read does not go round.
    unsafe {
        let Ok(sk) = bpf_probe_read_kernel((socket + SOCKET_SK.load()) as *const u64) else { return false };
        bpf_probe_read_kernel((sk + BYPASS_OFFSET.load()) as *const u64)
            .is_ok_and(|word| word & BYPASS_MASK.load() == BYPASS_VALUE.load())
    }
}

/// A traced function's arguments, each in a word of its own.
#[inline(always)]
pub fn words<const N: usize>(arguments: *mut c_void) -> [u64; N] {
    // SAFETY: the kernel's context has a word for each argument, and one for the value so far; volatile, so that each is
    // read as a word, as the verifier wants.
    core::array::from_fn(|at| unsafe { arguments.cast::<u64>().add(at).read_volatile() })
}
