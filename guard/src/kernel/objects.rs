//! Every BPF program, map and link of this machine, whoever made it, and what is attached where. Nothing is changed:
//! a descriptor is opened, asked, and closed.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::sys;

/// Enough for any host; ids beyond are not listed, which [`ids`] says.
const MOST: usize = 20_000;

/// What has ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Program,
    Map,
    /// Linux 5.8.
    Link,
}

/// All ids, in rising order, and whether there are more than are listed. Needs CAP_SYS_ADMIN.
pub fn ids(kind: Kind) -> io::Result<(Vec<u32>, bool)> {
    let (mut found, mut last) = (Vec::new(), 0);
    while let Some(id) = sys::next_id(kind, last)? {
        if found.len() == MOST {
            return Ok((found, true));
        }
        found.push(id);
        last = id;
    }
    Ok((found, false))
}

#[derive(Clone, Debug, Serialize)]
pub struct Program {
    pub id: u32,
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    /// Hash of the instructions, hex.
    pub tag: String,
    /// Boot time in nanoseconds.
    pub loaded_at_boot_ns: u64,
    pub uid: u32,
    pub maps: Vec<u32>,
    /// Bytes, as the verifier left them.
    pub instruction_bytes: u32,
    /// Of the device that it was made for; 0: none.
    pub interface: u32,
    /// Its licence is GPL-compatible, so that it may call helpers that change what other programs see.
    pub gpl_compatible: bool,
    #[serde(skip)]
    pub kind_number: u32,
}

/// `None`: it is gone.
pub fn program(id: u32) -> io::Result<Option<Program>> {
    let Some(fd) = gone(sys::program_by_id(id))? else { return Ok(None) };
    let mut words = [0_u64; 16];
    sys::raw_info(fd.as_fd(), &mut words)?;
    let count = sys::half(&words, 52).min(1024);
    let mut maps = vec![0_u32; count as usize];
    if count > 0 {
        let mut again = [0_u64; 16];
        // nr_map_ids and map_ids: how many there is room for, and where.
        again[6] = u64::from(count) << 32;
        again[7] = maps.as_mut_ptr() as u64;
        sys::raw_info(fd.as_fd(), &mut again)?;
        maps.truncate(sys::half(&again, 52) as usize);
    }
    let kind = sys::half(&words, 0);
    Ok(Some(Program {
        id: sys::half(&words, 4),
        kind: named(PROGRAM_TYPES, kind),
        name: text(&words[8..10]),
        tag: words[1].to_ne_bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
        loaded_at_boot_ns: words[5],
        uid: sys::half(&words, 48),
        maps,
        instruction_bytes: sys::half(&words, 20),
        interface: sys::half(&words, 80),
        gpl_compatible: sys::half(&words, 84) & 1 == 1,
        kind_number: kind,
    }))
}

#[derive(Clone, Debug, Serialize)]
pub struct Map {
    pub id: u32,
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    pub key_bytes: u32,
    pub value_bytes: u32,
    pub entries: u32,
    pub flags: u32,
}

/// `None`: it is gone.
pub fn map(id: u32) -> io::Result<Option<Map>> {
    let Some(fd) = gone(sys::map_by_id(id))? else { return Ok(None) };
    let mut words = [0_u64; 10];
    sys::raw_info(fd.as_fd(), &mut words)?;
    Ok(Some(Map {
        id: sys::half(&words, 4),
        kind: named(MAP_TYPES, sys::half(&words, 0)),
        name: text(&words[3..5]),
        key_bytes: sys::half(&words, 8),
        value_bytes: sys::half(&words, 12),
        entries: sys::half(&words, 16),
        flags: sys::half(&words, 20),
    }))
}

#[derive(Clone, Debug, Serialize)]
pub struct Link {
    pub id: u32,
    #[serde(rename = "type")]
    pub kind: String,
    pub program: u32,
    /// Index of the interface (xdp, tcx, netkit); 0: it is gone, or of another kind.
    pub interface: u32,
    /// Inode number of the cgroup's directory, or of the network namespace; 0: of another kind.
    pub target: u64,
    /// `BPF_*` of linux/bpf.h, where the kind has one.
    pub attach_type: Option<u32>,
}

/// `None`: it is gone.
pub fn link(id: u32) -> io::Result<Option<Link>> {
    let Some(fd) = gone(sys::link_by_id(id))? else { return Ok(None) };
    let mut words = [0_u64; 8];
    sys::raw_info(fd.as_fd(), &mut words)?;
    let kind = sys::half(&words, 0);
    let (mut interface, mut target, mut attach_type) = (0, 0, None);
    match kind {
        2 => attach_type = Some(sys::half(&words, 16)),
        3 => (target, attach_type) = (words[2], Some(sys::half(&words, 24))),
        5 => (target, attach_type) = (u64::from(sys::half(&words, 16)), Some(sys::half(&words, 20))),
        6 => interface = sys::half(&words, 16),
        11 | 13 => (interface, attach_type) = (sys::half(&words, 16), Some(sys::half(&words, 20))),
        _ => {}
    }
    Ok(Some(Link {
        id: sys::half(&words, 4),
        kind: named(LINK_TYPES, kind),
        program: sys::half(&words, 8),
        interface,
        target,
        attach_type,
    }))
}

/// Programs at an interface's tcx hook, in the order in which they run (Linux 6.6); of this thread's network namespace.
pub fn at_tcx(interface: u32, inbound: bool) -> io::Result<Vec<u32>> {
    sys::query(interface, super::features::TCX_INGRESS + u32::from(!inbound))
}

/// Programs of a cgroup, by attach type: those that were attached there, not inherited ones.
pub fn at_cgroup(cgroup: &Path) -> io::Result<Vec<(&'static str, Vec<u32>)>> {
    use std::os::fd::AsRawFd;
    let directory = fs::File::open(cgroup)?;
    let mut found = Vec::new();
    for &(number, name) in CGROUP_HOOKS {
        match sys::query(directory.as_raw_fd() as u32, number) {
            Ok(ids) if !ids.is_empty() => found.push((name, ids)),
            // A kernel that does not know the hook has nothing there.
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Where BPF file systems are mounted, by a mount table (`/proc/self/mounts`).
#[must_use]
pub fn bpffs(mounts: &str) -> Vec<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let place = fields.next()?;
            (fields.next()? == "bpf").then(|| PathBuf::from(place))
        })
        .collect()
}

/// Ids of the programs behind the links that guard has pinned below `bpffs`.
#[must_use]
pub fn guards_own(bpffs: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for instance in fs::read_dir(bpffs.join("guard")).into_iter().flatten().flatten() {
        let mut places = vec![instance.path()];
        while let Some(place) = places.pop() {
            for entry in fs::read_dir(place).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => places.push(entry.path()),
                    Ok(_) => found.extend(program_behind(&entry.path())),
                    Err(_) => {}
                }
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Of a pinned program, or of a pinned link.
fn program_behind(pin: &Path) -> Option<u32> {
    let object = sys::pinned(pin).ok().flatten()?;
    use std::os::fd::AsRawFd;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("prog_id:")).and_then(|id| id.trim().parse().ok())
}

fn gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn text(words: &[u64]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn named(names: &[&str], number: u32) -> String {
    names.get(number as usize).map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// `enum bpf_prog_type`, as bpftool names them.
const PROGRAM_TYPES: &[&str] = &[
    "unspec",
    "socket_filter",
    "kprobe",
    "sched_cls",
    "sched_act",
    "tracepoint",
    "xdp",
    "perf_event",
    "cgroup_skb",
    "cgroup_sock",
    "lwt_in",
    "lwt_out",
    "lwt_xmit",
    "sock_ops",
    "sk_skb",
    "cgroup_device",
    "sk_msg",
    "raw_tracepoint",
    "cgroup_sock_addr",
    "lwt_seg6local",
    "lirc_mode2",
    "sk_reuseport",
    "flow_dissector",
    "cgroup_sysctl",
    "raw_tracepoint_writable",
    "cgroup_sockopt",
    "tracing",
    "struct_ops",
    "ext",
    "lsm",
    "sk_lookup",
    "syscall",
    "netfilter",
];

/// `enum bpf_map_type`.
const MAP_TYPES: &[&str] = &[
    "unspec",
    "hash",
    "array",
    "prog_array",
    "perf_event_array",
    "percpu_hash",
    "percpu_array",
    "stack_trace",
    "cgroup_array",
    "lru_hash",
    "lru_percpu_hash",
    "lpm_trie",
    "array_of_maps",
    "hash_of_maps",
    "devmap",
    "sockmap",
    "cpumap",
    "xskmap",
    "sockhash",
    "cgroup_storage",
    "reuseport_sockarray",
    "percpu_cgroup_storage",
    "queue",
    "stack",
    "sk_storage",
    "devmap_hash",
    "struct_ops",
    "ringbuf",
    "inode_storage",
    "task_storage",
    "bloom_filter",
    "user_ringbuf",
    "cgrp_storage",
    "arena",
];

/// `enum bpf_link_type`.
const LINK_TYPES: &[&str] = &[
    "unspec",
    "raw_tracepoint",
    "tracing",
    "cgroup",
    "iter",
    "netns",
    "xdp",
    "perf_event",
    "kprobe_multi",
    "struct_ops",
    "netfilter",
    "tcx",
    "uprobe_multi",
    "netkit",
    "sockmap",
];

/// `enum bpf_attach_type`: those of cgroups that touch the network, and devices.
const CGROUP_HOOKS: &[(u32, &str)] = &[
    (0, "inet_ingress"),
    (1, "inet_egress"),
    (2, "inet_sock_create"),
    (3, "sock_ops"),
    (6, "device"),
    (8, "inet4_bind"),
    (9, "inet6_bind"),
    (10, "inet4_connect"),
    (11, "inet6_connect"),
    (12, "inet4_post_bind"),
    (13, "inet6_post_bind"),
    (14, "udp4_sendmsg"),
    (15, "udp6_sendmsg"),
    (18, "sysctl"),
    (19, "udp4_recvmsg"),
    (20, "udp6_recvmsg"),
    (21, "getsockopt"),
    (22, "setsockopt"),
    (29, "inet4_getpeername"),
    (30, "inet6_getpeername"),
    (31, "inet4_getsockname"),
    (32, "inet6_getsockname"),
    (34, "inet_sock_release"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_just_loaded_is_found() {
        let exit = [(0xb7, 0, 0, 0), (0x95, 0, 0, 0)];
        let Ok(fd) = sys::load(3, 0, 0, &exit) else { return };
        let mine = sys::info_of_program(fd.as_fd()).unwrap();
        let (all, more) = ids(Kind::Program).unwrap();
        assert!(all.contains(&mine.id) && !more);
        let found = program(mine.id).unwrap().unwrap();
        assert_eq!((found.kind.as_str(), found.tag, found.instruction_bytes), ("sched_cls", mine.tag_text(), 16));
        assert!(found.gpl_compatible && found.maps.is_empty() && found.loaded_at_boot_ns > 0);
        drop(fd);
    }

    #[test]
    fn a_map_is_found_with_its_sizes() {
        let Ok(fd) = sys::map_create("mine", sys::MAP_TYPE_ARRAY, 16, 7, 0, None) else { return };
        let mine = sys::info_of_map(fd.as_fd()).unwrap();
        let found = map(mine.id).unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.kind.as_str(), found.entries), ("mine", "array", 7));
        assert_eq!((found.key_bytes, found.value_bytes), (4, 16));
    }

    #[test]
    fn bpffs_is_found_in_the_mount_table() {
        let mounts = "none /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\nx /y/bpf tmpfs rw 0 0\n";
        assert_eq!(bpffs(mounts), [PathBuf::from("/sys/fs/bpf")]);
    }
}
