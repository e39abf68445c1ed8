//! A mount namespace that has a BPF file system of its own at its usual place, so that pins of two worlds never meet,
//! and go by themselves with the last process (or descriptor) that holds the namespace.

use std::{fs::File, io, thread};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

pub const BPFFS: &str = "/sys/fs/bpf";

/// The descriptor of a new mount namespace.
pub fn create() -> io::Result<File> {
    // A thread of its own: it leaves the process's mount namespace for good, and ends.
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)?;
        File::open("/proc/thread-self/ns/mnt")
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the thread that makes the mount namespace panicked")))
}
