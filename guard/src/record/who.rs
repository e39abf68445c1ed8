//! Who a flow belongs to. Every part may be unknown, and unknown is said.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Arguments are cut to this many bytes in all.
pub const ARGUMENT_BYTES: usize = 1024;
/// Parents that are named, the nearest first.
pub const PARENTS: usize = 8;

/// The process that a flow belongs to. All texts are the host's own and may be anything: show them harmless.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Who {
    pub found_by: FoundBy,
    /// Process (thread group) id, in the initial pid namespace.
    pub pid: u32,
    /// When it started, in boot-time nanoseconds cut to clock ticks (`/proc/PID/stat`, field 22); 0 if unknown. With
    /// `pid` it names a process for as long as the machine is up.
    #[serde(default)]
    pub started: u64,
    /// `task_struct.comm`.
    #[serde(default)]
    pub comm: String,
    /// Path as the kernel names it, without ` (deleted)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    #[serde(default)]
    pub exe_kind: ExeKind,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// There were more than [`ARGUMENT_BYTES`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub args_cut: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The nearest first, at most [`PARENTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<Parent>,
    /// Of systemd, by its cgroup: `ssh.service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// Inode of its network namespace, where it is not guard's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<u64>,
    /// What is unusual about it as such; empty for nearly all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unusual: Vec<Unusual>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Parent {
    pub pid: u32,
    /// Its executable, or its `comm` where that could not be read.
    pub exe: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Container {
    /// As its engine names it, in full where known.
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// How it was found, which says how sure it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// It was not.
    #[default]
    Unknown,
    /// It asked for the flow itself (connect, sendmsg): seen in its own context.
    Socket,
    /// It accepted the connection, or owns the listening or receiving socket.
    Accept,
    /// The socket is older than guard, or its owner was not seen: looked up by sock_diag and /proc afterwards.
    SockDiag,
    /// Forwarded: the container by its veth or network namespace.
    Forwarded,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExeKind {
    #[default]
    File,
    /// The file is gone since it started.
    Deleted,
    /// It never was a file: memfd_create(2).
    Memfd,
    /// A path inside a container's overlay, not this host's.
    Overlay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unusual {
    DeletedExe,
    Memfd,
    /// Executable in /tmp, /var/tmp, /dev/shm or another folder that everybody can write.
    WorldWritablePlace,
    /// A shell or interpreter whose standard streams are a socket.
    SocketOnStandardStreams,
}

impl Unusual {
    /// Follows "the program …".
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::DeletedExe => "runs from a file that was deleted",
            Self::Memfd => "runs from memory, never was a file (memfd)",
            Self::WorldWritablePlace => "runs from a folder that everybody can write",
            Self::SocketOnStandardStreams => "is a shell or interpreter with a socket on its standard streams",
        }
    }
}

impl Unusual {
    /// In a word or two, where there is no room for more.
    #[must_use]
    pub const fn brief(self) -> &'static str {
        match self {
            Self::DeletedExe => "file deleted",
            Self::Memfd => "runs from memory",
            Self::WorldWritablePlace => "in a world-writable folder",
            Self::SocketOnStandardStreams => "a shell on a socket",
        }
    }
}

impl Who {
    /// The program as groups and rules of people name it: path, else `comm`; `None` if unknown.
    #[must_use]
    pub fn program(&self) -> Option<&str> {
        if self.found_by == FoundBy::Unknown {
            return self.container.as_ref().map(|container| container.id.as_str());
        }
        match &self.exe {
            Some(exe) => Some(exe),
            None if !self.comm.is_empty() => Some(&self.comm),
            None => self.container.as_ref().map(|container| container.id.as_str()),
        }
    }
}

/// Flows of one process share it.
pub type Shared = Arc<Who>;
