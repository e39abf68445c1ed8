//! What the process programs and the wire tell beside flows: which programs run, and answers of name servers. Each in a
//! ring buffer of its own, so that neither can crowd out the events of flows.

use super::FlowKeyV6;

/// Arguments are cut to this many bytes.
pub const PROCESS_ARGUMENT_BYTES: usize = 1024;
pub const PROCESS_PATH_BYTES: usize = 256;
pub const PROCESS_FILE_NAME_BYTES: usize = 32;
/// Levels of a control group's path that are told, and bytes of each: a container's id is in one of the last two
/// (`libpod-<id>.scope/container`).
pub const PROCESS_CGROUP_LEVELS: usize = 2;
pub const PROCESS_CGROUP_BYTES: usize = 96;
/// Answers are cut to this many bytes: more than any UDP answer on an Ethernet link is.
pub const ANSWER_BYTES: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProcessKind {
    /// A whole [`ProcessEvent`].
    Exec = 1,
    /// A [`ProcessHead`] only.
    Fork = 2,
}

/// Beginning of every event in the `PROCESSES` ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessHead {
    /// [`ProcessKind`].
    pub kind: u32,
    /// Process (thread group) ids, in the initial pid namespace. A fork's is the child's.
    pub pid: u32,
    pub parent: u32,
    /// Real user id.
    pub uid: u32,
    /// Boot-time nanoseconds: of the event, and of the process's start.
    pub time: u64,
    pub started: u64,
    /// `task_struct.comm`, NUL-padded.
    pub comm: [u8; 16],
}

/// A program was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessEvent {
    pub head: ProcessHead,
    /// Inodes of its namespaces; 0: not known.
    pub mount_ns: u32,
    pub netns: u32,
    /// Links of its file; 0: deleted, or never was a file.
    pub links: u32,
    /// How much of `args` is filled; more than its size: so long they were.
    pub args_bytes: u32,
    /// Last part of its file's path (`dentry.d_name`), NUL-terminated.
    pub file_name: [u8; PROCESS_FILE_NAME_BYTES],
    /// As it was asked for (`linux_binprm.interp`), NUL-terminated: may be relative.
    pub path: [u8; PROCESS_PATH_BYTES],
    /// NUL-terminated arguments.
    pub args: [u8; PROCESS_ARGUMENT_BYTES],
    /// Names of its control group (version 2) and of the one above, each NUL-terminated; empty: not known.
    pub cgroup: [[u8; PROCESS_CGROUP_BYTES]; PROCESS_CGROUP_LEVELS],
}

/// The one element of the `TASK_OFFSETS` array: bytes into the kernel's structures, as this kernel's type information has
/// them. `known` is 1 once they are filled in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Offsets {
    pub known: u32,
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_real_parent: u32,
    pub task_start_boottime: u32,
    pub task_mm: u32,
    pub task_nsproxy: u32,
    pub mm_arg_start: u32,
    pub mm_arg_end: u32,
    pub nsproxy_mnt_ns: u32,
    pub nsproxy_net_ns: u32,
    /// Of the inode's number: through `ns` (`ns_common`).
    pub mnt_namespace_inum: u32,
    pub net_inum: u32,
    pub binprm_file: u32,
    pub binprm_interp: u32,
    pub file_inode: u32,
    /// Through `f_path`.
    pub file_dentry: u32,
    pub inode_nlink: u32,
    /// Through `d_name`.
    pub dentry_name: u32,
    /// From here on to the names of its control group; 0: this kernel's are not known.
    pub task_cgroups: u32,
    pub css_set_cgroup: u32,
    pub cgroup_node: u32,
    pub node_name: u32,
    pub node_parent: u32,
}

/// An answer of a name server that passed, in the `ANSWERS` ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct AnswerEvent {
    /// Boot-time nanoseconds.
    pub time: u64,
    /// 4 or 6, as [`super::Event::family`].
    pub family: u32,
    /// How much of `bytes` is filled.
    pub length: u32,
    pub key: FlowKeyV6,
    /// What UDP carried.
    pub bytes: [u8; ANSWER_BYTES],
}

const _: () = {
    assert!(size_of::<ProcessHead>() == 48 && align_of::<ProcessHead>() == 8);
    assert!(size_of::<ProcessEvent>() == 1568);
    assert!(size_of::<Offsets>() == 96);
    assert!(size_of::<AnswerEvent>() == 2104 && align_of::<AnswerEvent>() == 8);
};
