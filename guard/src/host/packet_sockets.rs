//! Which sockets speak to a device directly (AF_PACKET and AF_XDP), as the kernel lists them. Which way they send is asked
//! of each ([`super::direct`]).

use std::{collections::BTreeSet, fs};

use super::{netlink, processes::Processes};

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// Inodes of those in this network namespace. Kernels without xdp_diag list no AF_XDP socket, though there be some.
#[must_use]
pub fn inodes() -> BTreeSet<u32> {
    let mut found = packet();
    // struct xdp_diag_req (linux/xdp_diag.h): family, protocol, pad, inode, what to show, cookie. The answer has its inode
    // in the same place.
    let mut body = vec![libc::AF_XDP as u8, 0, 0, 0];
    body.extend_from_slice(&[0; 8]);
    body.extend_from_slice(&[0xff; 8]);
    let _ = netlink::dump(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, &body, |_, payload| {
        found.extend(netlink::number(payload, 4));
    });
    found
}

/// Of AF_PACKET alone; without the kernel's own.
#[must_use]
pub fn packet() -> BTreeSet<u32> {
    // sk, references, type, protocol, interface, running, memory, user, inode.
    let text = fs::read_to_string("/proc/thread-self/net/packet").unwrap_or_default();
    let inodes = text.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(8)?.parse().ok());
    inodes.filter(|inode| *inode != 0).collect()
}

/// Who holds them: `dhclient 612, tcpdump 700 and 2 more`.
#[must_use]
pub fn holders(inodes: &BTreeSet<u32>) -> String {
    const SHOWN: usize = 4;
    let processes = Processes::read().unwrap_or_default();
    let mut names: BTreeSet<String> = BTreeSet::new();
    for inode in inodes {
        match processes.holders(*inode).next() {
            Some(process) => names.insert(format!("{} {}", process.program().unwrap_or(&process.comm), process.pid)),
            None => names.insert("unknown process".to_owned()),
        };
    }
    let shown: Vec<&str> = names.iter().map(String::as_str).take(SHOWN).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
