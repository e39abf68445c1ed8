//! What an instance was started with, kept in the kernel beside its maps (`META`), so that every command knows what to
//! expect there, and so does a daemon of another version.

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::BorrowedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{KernelError, features::Offers, interfaces::Selection, sealing, sys};

/// Pinned as `META`: element 0 holds [`Settings`], 1 to 3 the [`Published`] of slots 0 to 2; JSON, NUL-padded.
pub const META: &str = "META";
pub const META_BYTES: usize = 16_384;
pub const META_ENTRIES: u32 = 4;

/// What `run` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    pub selection: Selection,
    /// Drop denied inbound packets before packet sockets see them (XDP).
    pub shield: bool,
    /// Cgroup whose sockets the socket layer, the seal and the backstop hold; `None`: all (the root of cgroup2).
    pub cgroup: Option<PathBuf>,
    /// Entries of each flow table.
    pub flows: u32,
    /// Use clsact filters though the kernel has tcx.
    pub clsact: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { selection: Selection::default(), shield: false, cgroup: None, flows: 65_536, clsact: false }
    }
}

impl Options {
    /// The cgroup that is asked for, and its id (the inode of its directory).
    pub(super) fn cgroup(&self) -> Result<(PathBuf, u64), KernelError> {
        let cgroup = match &self.cgroup {
            Some(path) => path.clone(),
            None => cgroup_root().ok_or(KernelError::NoCgroup)?,
        };
        let id = fs::metadata(&cgroup).map_err(KernelError::path("no such cgroup:", &cgroup))?.ino();
        Ok((cgroup, id))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub abi: u32,
    /// Of the guard that loaded the programs.
    pub version: String,
    /// Of the eBPF object that the programs are from.
    pub object_sha256: String,
    pub netns_cookie: u64,
    /// Inode of the network namespace.
    pub netns: u64,
    pub cgroup: PathBuf,
    pub cgroup_id: u64,
    pub selection: Selection,
    pub shield: bool,
    pub flows: u32,
    pub offers: Offers,
    /// Jiffies a second.
    pub hz: u32,
    /// Boot-time nanoseconds of the first start.
    pub started_ns: u64,
    /// The programs that were loaded, with the kernel's hash of their instructions (hex).
    pub programs: BTreeMap<String, String>,
}

impl Settings {
    /// Probes the kernel.
    pub fn new(options: &Options) -> Result<Self, KernelError> {
        let mut offers = Offers::probe();
        offers.tcx &= !options.clsact;
        let (cgroup, cgroup_id) = options.cgroup()?;
        Ok(Self {
            abi: guard_common::abi::VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            object_sha256: crate::object::OBJECT_SHA256.to_owned(),
            netns_cookie: sys::netns_cookie().unwrap_or(0),
            netns: own_netns()?,
            cgroup,
            cgroup_id,
            selection: options.selection.clone(),
            shield: options.shield,
            flows: options.flows,
            offers,
            hz: super::features::tick_hz().map_err(KernelError::call("cannot measure the kernel's tick"))?,
            started_ns: sys::boot_ns(),
            programs: BTreeMap::new(),
        })
    }

    /// Whether a program is of use with these from the start; others are loaded when the first interface needs them.
    #[must_use]
    pub fn needs(&self, program: &str) -> bool {
        match program {
            _ if is_for_some(program) => false,
            // The daemon's own affair.
            "process_exec" | "process_fork" => false,
            "sockets_create" | "sockets_release" => !self.offers.netns_cookie_skb,
            "shield" => self.shield,
            "seal_option" | "seal_create" => self.offers.fmod_ret,
            of_bpf if sealing::is_of_bpf(of_bpf) => self.offers.bpf_seal,
            _ => true,
        }
    }
}

/// Of the wire's programs those that only some interfaces need: loaded when the first does.
#[must_use]
pub fn is_for_some(program: &str) -> bool {
    matches!(program, "wire_ingress_l3" | "wire_egress_l3" | "host_ingress" | "host_egress")
}

/// What was published into a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub generation: u32,
    /// Of the nodes: frozen, so that as long as the slot holds this map, it holds what was published.
    pub map_id: u32,
    pub nodes: u32,
    pub rules: u32,
    /// Unix time in nanoseconds, as text: JSON numbers are not exact that far.
    pub at: String,
    /// Of its rules with `interface`, for interfaces that appear while it holds.
    pub interface_patterns: Vec<String>,
}

pub fn read<T: for<'a> Deserialize<'a>>(
    meta: BorrowedFd<'_>,
    index: u32,
    path: &Path,
) -> Result<Option<T>, KernelError> {
    let mut bytes = [0; META_BYTES];
    if !sys::lookup_bytes(meta, index, &mut bytes).map_err(KernelError::path("cannot read", path))? {
        return Ok(None);
    }
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(text)
        .map(Some)
        .map_err(|error| KernelError::Damaged { path: path.to_owned(), why: error.to_string() })
}

pub fn write<T: Serialize>(meta: BorrowedFd<'_>, index: u32, value: &T, path: &Path) -> Result<(), KernelError> {
    let damaged = |why: String| KernelError::Damaged { path: path.to_owned(), why };
    let mut text = serde_json::to_vec(value).map_err(|error| damaged(error.to_string()))?;
    if text.len() >= META_BYTES {
        return Err(damaged(format!(
            "{} bytes of settings do not fit into {META_BYTES}; name fewer patterns",
            text.len()
        )));
    }
    text.resize(META_BYTES, 0);
    sys::update_bytes(meta, index, &text).map_err(KernelError::path("cannot write", path))
}

/// Inode of this thread's network namespace.
pub fn own_netns() -> Result<u64, KernelError> {
    let path = Path::new("/proc/thread-self/ns/net");
    Ok(fs::metadata(path).map_err(KernelError::path("cannot read", path))?.ino())
}

/// Where cgroup2 is mounted.
pub fn cgroup_root() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").ok()?;
    text.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some("cgroup2")).then(|| before.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}
