//! What the kernel programs and userspace share: the same source, compiled for both.
//!
//! Three parts, in the order in which a packet meets them:
//!
//! - [`packet`]: bytes to a [`packet::Packet`]: addresses, ports, fragments, what the parser refuses.
//! - [`decide`]: a question (direction, remote, service, context) to a verdict, a reason and a rule, by look-ups in
//!   the tables of one generation.
//! - [`judge`]: the way of one packet: essential traffic, fragments, known flows, TCP's handshake, and, where none of
//!   these settles it, the decision. Generic over [`judge::Host`], so that the programs (eBPF maps), `replay` and the
//!   tests (plain memory) run it alike.
//!
//! [`abi`] holds every type that crosses the border between kernel and userspace.
//!
//! Rules of this crate: it is a leaf, `no_std`, never allocates and never panics on input. Addresses and ports are
//! numbers in **host order** everywhere past the parser: an IPv4 address is a `u32`, an IPv6 address four `u32`,
//! the most significant first. Times are nanoseconds of the boot-time clock (`CLOCK_BOOTTIME`) unless a name says
//! otherwise. Lengths are bytes, as on the wire.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod decide;
pub mod judge;
pub mod packet;
pub mod reason;

pub use reason::{Direction, Reason, Verdict};
