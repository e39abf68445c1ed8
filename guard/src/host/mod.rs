//! What this host holds and runs, read without changing anything: sockets, processes, forwarded flows, and which
//! connection carries the terminal that asks.

pub mod cgroup;
pub mod conntrack;
pub mod containers;
pub mod datagrams;
pub mod direct;
pub mod firewalls;
pub mod held;
pub mod identity;
pub(crate) mod netlink;
pub mod packet_sockets;
pub mod person;
pub mod picture;
pub mod processes;
pub mod route;
pub mod session;
pub mod sock_diag;
pub mod ssh;
pub mod translation;
pub mod watch;

pub use netlink::NetlinkError;
