//! What can go wrong between guard and the kernel: each says what failed, where, and what to do.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("{what}: {source}{}", hint(.source))]
    Call { what: String, source: io::Error },
    #[error("{what}: {message}")]
    Load { what: String, message: String },
    #[error("{what} {path}: {source}")]
    Path { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is not safe to use: {why}. Make it root's own (chown root:root, chmod 0700)")]
    Unsafe { path: PathBuf, why: &'static str },
    #[error("an instance's name has 1 to 64 letters, digits, `-` or `_`, not {0:?}")]
    InstanceName(String),
    #[error("nothing of guard is attached here (instance {0}); start it with: guard run POLICY")]
    NotRunning(String),
    #[error("instance {0} is running already; take it over with `guard run`, or take it down with `guard release`")]
    Running(String),
    #[error(
        "the kernel holds tables of another guard (ABI {found}, this one has {expected}): use that guard, or take it down \
         with this one's `guard release` (nothing is guarded until it runs again)"
    )]
    ForeignAbi { found: u32, expected: u32 },
    #[error("{path} is damaged or not guard's: {why}. Take it down with `guard release`, then run guard again")]
    Damaged { path: PathBuf, why: String },
    #[error(
        "instance {0} guards another network namespace: run this command in there (nsenter --net), or name another --instance"
    )]
    OtherNamespace(String),
    #[error(
        "a change waits for `guard confirm` or `guard rollback` ({seconds_left} s left); nothing else may be changed until then"
    )]
    Pending { seconds_left: u64 },
    #[error(
        "this kernel ({release}) cannot run guard: it lacks {lacks}. The oldest that can is Linux 5.10 with BTF. `guard \
         doctor` says more; `guard export nft POLICY` prints the same policy as an nftables ruleset"
    )]
    TooOld { release: String, lacks: String },
    #[error("nothing waits to be confirmed")]
    NotPending,
    #[error("too late: the deadline ends in less than a second, and the change before is restored; publish it again")]
    TooLate,
    #[error(
        "compiled for generation {found}, but the kernel's next one is {expected}: somebody else published; try again"
    )]
    Generation { found: u32, expected: u32 },
    #[error("what the kernel gave back is not what was published ({what}); nothing was changed")]
    ReadBack { what: &'static str },
    #[error("interface pattern {pattern:?}: {source}")]
    Pattern { pattern: String, source: globset::Error },
    #[error("no cgroup2 is mounted: mount it (mount -t cgroup2 none /sys/fs/cgroup), or name one by --cgroup")]
    NoCgroup,
    #[error("netlink: {0}")]
    Netlink(#[from] crate::host::netlink::NetlinkError),
    #[error(transparent)]
    Sockets(#[from] crate::host::sock_diag::SocketsError),
    /// The first start failed midway and was undone.
    #[error("{source}; everything that was attached was taken down again, so nothing is guarded")]
    StartUndone { source: Box<KernelError> },
}

impl KernelError {
    pub(super) fn call(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Call { what, source }
    }

    pub(super) fn path(what: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Path { what, path, source }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            " (run as root; in a container: with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN)"
        }
        Some(libc::EBUSY) => " (another program is there already: guard status names it)",
        _ => "",
    }
}
