//! Programs to hooks: links that outlive this process by their pins, or clsact filters where there is no tcx.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use guard_common::{Direction, abi::Interface};

use super::{
    KernelError,
    pins::{Pins, pin_over},
    sealing,
    settings::Settings,
    sys::{self, LINK_FIRST, XDP_GENERIC, XDP_NATIVE},
};

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// tcx or clsact, of each guarded interface.
    Wire(Direction),
    /// The same, of the host's side of each bridge with containers or VMs.
    Host(Direction),
    /// Each guarded interface.
    Xdp,
    /// `BPF_CGROUP_*`, of the instance's cgroup.
    Cgroup(u32),
    /// A kernel function, for the tasks of the instance's cgroup.
    Function,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The program's name in the object; of the wire layer, the one for devices with an Ethernet header.
    pub program: &'static str,
    /// The one for devices without; `None`: the same.
    pub without_ethernet: Option<&'static str>,
    /// `wire`, `shield`, `socket`, `seal`, `backstop`.
    pub layer: &'static str,
    pub at: At,
    /// The hook as people name it.
    pub name: &'static str,
}

const fn hook(program: &'static str, layer: &'static str, at: At, name: &'static str) -> Hook {
    Hook { program, without_ethernet: None, layer, at, name }
}

const fn wire(program: &'static str, l3: &'static str, direction: Direction, name: &'static str) -> Hook {
    Hook { program, without_ethernet: Some(l3), layer: "wire", at: At::Wire(direction), name }
}

/// Every hook that guard may use. One whose program is not loaded is not used.
pub const HOOKS: &[Hook] = &[
    wire("wire_ingress", "wire_ingress_l3", Direction::Inbound, "ingress"),
    wire("wire_egress", "wire_egress_l3", Direction::Outbound, "egress"),
    hook("host_ingress", "wire", At::Host(Direction::Inbound), "ingress"),
    hook("host_egress", "wire", At::Host(Direction::Outbound), "egress"),
    hook("shield", "shield", At::Xdp, "xdp"),
    hook("connect4", "socket", At::Cgroup(10), "cgroup connect4"),
    hook("connect6", "socket", At::Cgroup(11), "cgroup connect6"),
    hook("sendmsg4", "socket", At::Cgroup(14), "cgroup sendmsg4"),
    hook("sendmsg6", "socket", At::Cgroup(15), "cgroup sendmsg6"),
    hook("seal_setsockopt", "seal", At::Cgroup(22), "cgroup setsockopt"),
    hook("seal_option", "seal", At::Function, "fmod_ret setsockopt"),
    hook("seal_create", "seal", At::Function, "fmod_ret socket"),
    hook(sealing::OF_BPF, "seal", At::Function, "fmod_ret bpf"),
    hook("seal_map", "seal", At::Function, "fmod_ret bpf_map"),
    hook("seal_prog", "seal", At::Function, "fmod_ret bpf_prog"),
    hook("seal_unlink", "seal", At::Function, "fmod_ret unlink"),
    hook("seal_rename", "seal", At::Function, "fmod_ret rename"),
    hook("seal_umount", "seal", At::Function, "fmod_ret umount"),
    hook("backstop_ingress", "backstop", At::Cgroup(0), "cgroup_skb ingress"),
    hook("backstop_egress", "backstop", At::Cgroup(1), "cgroup_skb egress"),
    hook("sockets_create", "socket", At::Cgroup(2), "cgroup sock_create"),
    hook("sockets_release", "socket", At::Cgroup(34), "cgroup sock_release"),
];

pub const TCX_INGRESS: u32 = super::features::TCX_INGRESS;
pub const XDP: u32 = 37;

/// Priority and handle of guard's clsact filters: before every other's, and found again by them.
pub const FILTER_PRIORITY: u16 = 1;
const FILTER_HANDLE: u16 = 0x6764;

impl Hook {
    /// The program for a device.
    #[must_use]
    pub fn program_for(&self, ethernet: bool) -> &'static str {
        if ethernet { self.program } else { self.without_ethernet.unwrap_or(self.program) }
    }

    /// Name of its link's pin; 0 for a cgroup.
    #[must_use]
    pub fn pin_name(&self, interface: u32) -> String {
        match self.at {
            At::Cgroup(_) | At::Function => self.program.to_owned(),
            At::Wire(_) | At::Host(_) | At::Xdp => format!("{}_{interface}", self.program),
        }
    }

    /// As the kernel numbers it (`enum bpf_attach_type`).
    #[must_use]
    pub const fn attach_type(&self) -> u32 {
        match self.at {
            At::Wire(direction) | At::Host(direction) => TCX_INGRESS + direction as u32,
            At::Xdp => XDP,
            At::Cgroup(kind) => kind,
            At::Function => sys::MODIFY_RETURN,
        }
    }

    /// Of an interface; else there is one of it an instance.
    #[must_use]
    pub const fn of_interface(&self) -> bool {
        matches!(self.at, At::Wire(_) | At::Host(_) | At::Xdp)
    }

    /// At tc: its direction.
    #[must_use]
    pub const fn at_tc(&self) -> Option<Direction> {
        match self.at {
            At::Wire(direction) | At::Host(direction) => Some(direction),
            At::Xdp | At::Cgroup(_) | At::Function => None,
        }
    }

    /// Whether it has its place on an interface that the programs were told this of.
    #[must_use]
    pub const fn belongs_on(&self, flags: u32) -> bool {
        let which = if matches!(self.at, At::Host(_)) { Interface::HOST_SIDE } else { Interface::GUARDED };
        self.of_interface() && flags & which != 0
    }
}

pub fn open_cgroup(settings: &Settings) -> Result<File, KernelError> {
    File::open(&settings.cgroup).map_err(KernelError::path("no such cgroup:", &settings.cgroup))
}

/// Attaches to a cgroup or an interface, first in line where the kernel knows an order, and pins.
pub fn attach_link(
    pins: &Pins,
    hook: &Hook,
    program: BorrowedFd<'_>,
    settings: &Settings,
    interface: u32,
) -> Result<OwnedFd, KernelError> {
    let what = || format!("cannot attach {} ({} {})", hook.program, hook.layer, target(settings, hook, interface));
    let link = match hook.at {
        At::Cgroup(kind) => {
            let cgroup = open_cgroup(settings)?;
            sys::link_create(program, cgroup.as_raw_fd() as u32, kind, 0)
        }
        At::Function => sys::attach_to_function(program),
        At::Wire(_) | At::Host(_) => sys::link_create(program, interface, hook.attach_type(), LINK_FIRST),
        At::Xdp => sys::link_create(program, interface, XDP, XDP_NATIVE)
            .or_else(|_| sys::link_create(program, interface, XDP, XDP_GENERIC)),
    }
    .map_err(KernelError::call(what()))?;
    pin_over(link.as_fd(), &pins.link(&hook.pin_name(interface)))?;
    Ok(link)
}

/// A clsact filter (4.5), which stays when this process ends. An older one of ours is replaced in place.
pub fn attach_filter(pins: &Pins, program: &str, direction: Direction, interface: &str) -> Result<(), KernelError> {
    let what = || format!("cannot attach {program} (clsact of {interface})");
    let failed = |error: &dyn std::error::Error| KernelError::Load { what: what(), message: error.to_string() };
    match qdisc_add_clsact(interface) {
        Ok(()) => {}
        Err(TcError::AlreadyAttached) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(TcError::IoError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(failed(&error)),
    }
    let mut program = SchedClassifier::from_pin(pins.program(program)).map_err(|error| failed(&error))?;
    let attach_type = match direction {
        Direction::Inbound => TcAttachType::Ingress,
        Direction::Outbound => TcAttachType::Egress,
    };
    let handle = TcHandle::new(0, FILTER_HANDLE);
    let options = NlOptions { priority: FILTER_PRIORITY, handle, ..NlOptions::default() };
    let id = match program.attach_with_options(interface, attach_type, TcAttachOptions::Netlink(options)) {
        Ok(id) => id,
        // One is there already: replaced in place.
        Err(_) => SchedClassifierLink::attached(interface, attach_type, FILTER_PRIORITY, handle, None)
            .map_err(|error| failed(&error))
            .and_then(|link| program.attach_to_link(link).map_err(|error| failed(&error)))?,
    };
    let link = program.take_link(id).map_err(|error| failed(&error))?;
    // Dropped, it would detach. It holds nothing but numbers.
    std::mem::forget(link);
    Ok(())
}

/// Takes our clsact filter away; nothing where there is none.
pub fn detach_filter(direction: Direction, interface: &str) {
    let attach_type = match direction {
        Direction::Inbound => TcAttachType::Ingress,
        Direction::Outbound => TcAttachType::Egress,
    };
    let handle = TcHandle::new(0, FILTER_HANDLE);
    // Dropped, it detaches.
    drop(SchedClassifierLink::attached(interface, attach_type, FILTER_PRIORITY, handle, None));
}

/// What a hook hangs on, for people.
#[must_use]
pub fn target(settings: &Settings, hook: &Hook, interface: u32) -> String {
    match hook.at {
        At::Function if sealing::is_of_bpf(hook.program) => "this machine".to_owned(),
        At::Cgroup(_) | At::Function => format!("cgroup {}", settings.cgroup.display()),
        At::Wire(_) | At::Host(_) | At::Xdp => format!("interface {interface}"),
    }
}
