//! What guard stands on besides the kernel's own features: looked at, and tried where trying leaves nothing behind.

use std::{fs, io, os::fd::AsRawFd, path::PathBuf};

use guard_common::Direction;
use nix::sys::statvfs::{FsFlags, statvfs};

use super::{
    attach::{self, HOOKS},
    filters, interfaces, load,
    pins::Pins,
    settings, sys,
};

/// What `bpf(2)`, its ids and attaching need. CAP_SYS_RESOURCE is not here: whether memory can be had is tried.
const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
/// To know whose a socket is, whoever that is.
const WISHED: [(u32, &str); 2] = [(2, "CAP_DAC_READ_SEARCH"), (19, "CAP_SYS_PTRACE")];

/// Capabilities that this process lacks (capabilities(7), by CapEff).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    pub needed: Vec<&'static str>,
    pub wished: Vec<&'static str>,
}

pub fn missing_capabilities() -> io::Result<Lacks> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    let effective =
        u64::from_str_radix(effective.trim(), 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let of = |list: &[(u32, &'static str)]| -> Vec<&'static str> {
        list.iter().filter(|(bit, _)| effective >> bit & 1 == 0).map(|(_, name)| *name).collect()
    };
    Ok(Lacks { needed: of(&NEEDED), wished: of(&WISHED) })
}

/// The kernel's lockdown: `none`, `integrity`, `confidentiality`; `None` where the kernel has none.
#[must_use]
pub fn lockdown() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

/// Whether memory for maps can be had: before Linux 5.11 they count against the limit of locked memory, which guard raises
/// for itself where it may. Tried with a map of the size that an ordinary policy needs.
pub fn memory() -> io::Result<()> {
    const BYTES: u32 = 32 << 20;
    load::raise_memory_limit();
    sys::map_create("guard_probe", sys::MAP_TYPE_ARRAY, 4096, BYTES / 4096, 0, None).map(drop)
}

/// Where pins go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bpffs {
    Mounted(PathBuf),
    /// guard mounts it at its first start.
    CanBeMounted(PathBuf),
    /// It is there and cannot be written to.
    ReadOnly(PathBuf),
    /// Neither is it there, nor the directory for it.
    Absent(PathBuf),
}

#[must_use]
pub fn bpffs() -> Bpffs {
    let Ok(pins) = Pins::find(None, "default") else { return Bpffs::Absent(PathBuf::new()) };
    let root = pins.root().to_owned();
    let read_only = statvfs(&root).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY));
    match (pins.is_bpffs(), root.is_dir()) {
        (true, _) if read_only => Bpffs::ReadOnly(root),
        (true, _) => Bpffs::Mounted(root),
        (false, true) => Bpffs::CanBeMounted(root),
        (false, false) => Bpffs::Absent(root),
    }
}

/// The root of cgroup2, and whether programs at it can be asked for, as they must be to be attached.
pub fn cgroup2() -> Option<(PathBuf, io::Result<()>)> {
    let root = settings::cgroup_root()?;
    let asked = fs::File::open(&root).and_then(|file| {
        for hook in HOOKS.iter().filter(|hook| matches!(hook.at, attach::At::Cgroup(_))) {
            sys::query(file.as_raw_fd() as u32, hook.attach_type())?;
        }
        Ok(())
    });
    Some((root, asked))
}

/// A control group hierarchy of version 1 beside it that names sockets by its own means (net_cls, net_prio): before Linux
/// 5.15 sockets there were no longer known by their cgroup2.
#[must_use]
pub fn net_cgroups_of_version_1() -> bool {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(2);
        fields.next() == Some("cgroup")
            && fields.next().is_some_and(|options| options.split(',').any(|one| matches!(one, "net_cls" | "net_prio")))
    })
}

/// A program that others have where guard will stand, on an interface that would be guarded.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Beside {
    pub interface: String,
    /// `tcx ingress`, `clsact egress`, `xdp`.
    pub hook: String,
    /// Untrusted text: its name, for people.
    pub program: String,
}

/// Of every interface that would be guarded by default. What guard itself has attached is there too, by its names.
pub fn beside() -> Result<Vec<Beside>, super::KernelError> {
    let mut found = Vec::new();
    for (device, why) in super::preview(&interfaces::Selection::default())?.0 {
        if !why.guarded() {
            continue;
        }
        let mut add = |hook: String, program: String| {
            found.push(Beside { interface: device.name.clone(), hook, program });
        };
        if device.xdp != 0 {
            add("xdp".to_owned(), super::status::describe(device.xdp));
        }
        for (direction, name) in [(Direction::Inbound, "ingress"), (Direction::Outbound, "egress")] {
            let hook = attach::TCX_INGRESS + u32::from(direction == Direction::Outbound);
            // A kernel without tcx has none.
            for id in sys::query(device.index, hook).unwrap_or_default() {
                add(format!("tcx {name}"), super::status::describe(id));
            }
            for filter in filters::filters(device.index, direction)? {
                let program = match filter.program {
                    0 => format!("{} filter, priority {}", filter.kind, filter.priority),
                    id => format!("{}, priority {}", super::status::describe(id), filter.priority),
                };
                add(format!("clsact {name}"), program);
            }
        }
    }
    Ok(found)
}
