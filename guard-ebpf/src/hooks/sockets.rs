//! Keeps the set of sockets of guard's own network namespace, where the kernel cannot say whose a packet is (before
//! 6.18): sock_create adds (5.10), sock_release takes away (5.10). What was there before, userspace adds.

use aya_ebpf::{
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock,
    programs::SockContext,
};

use crate::{globals::NETNS_COOKIE, maps::SOCKETS};

const PASS: i32 = 1;

#[cgroup_sock(sock_create)]
pub fn sockets_create(context: SockContext) -> i32 {
    // SAFETY: both helpers take this program type's context (5.7).
    unsafe {
        if bpf_get_netns_cookie(context.sock.cast()) == NETNS_COOKIE.load() {
            // A full set leaves the socket to the wire layer.
            let _ = SOCKETS.insert(bpf_get_socket_cookie(context.sock.cast()), 1, 0);
        }
    }
    PASS
}

#[cgroup_sock(sock_release)]
pub fn sockets_release(context: SockContext) -> i32 {
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_socket_cookie(context.sock.cast()) };
    let _ = SOCKETS.remove(cookie);
    PASS
}
