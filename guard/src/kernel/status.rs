//! What is really attached, read back from the kernel.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    os::fd::{AsFd, AsRawFd},
};

use guard_common::{Direction, abi::Slot};
use serde::Serialize;

use super::{
    Feature, Instance, KernelError, TableHeader,
    attach::{self, At, HOOKS, Hook},
    filters,
    interfaces::{self, Device},
    objects, publish, sealing, sys,
};
use crate::host::firewalls::OtherFirewall;

/// One hook that is to be ours, and what was found there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HookStatus {
    /// `wire`, `shield`, `socket`, `seal`, `backstop`.
    pub layer: &'static str,
    /// `tcx ingress`, `cgroup connect4`…
    pub hook: String,
    /// Name of the interface, or path of the cgroup.
    pub target: String,
    /// Index of the interface; 0 for a cgroup.
    pub interface: u32,
    pub program: &'static str,
    pub attached: bool,
    /// What is attached has our instructions.
    pub ours: bool,
    /// No other program can end a packet's way before it.
    pub first: bool,
    pub problem: Option<String>,
}

impl HookStatus {
    #[must_use]
    pub const fn sound(&self) -> bool {
        self.attached && self.ours && self.first && self.problem.is_none()
    }
}

/// A program at one of our hooks that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Foreign {
    kind: &'static str,
    text: String,
}

impl Instance {
    /// Every hook that is to be ours, on every guarded interface and the cgroup.
    pub fn hooks(&self) -> Result<Vec<HookStatus>, KernelError> {
        Ok(self.look()?.0)
    }

    /// Programs of others at the hooks that guard uses.
    pub fn other_programs(&self) -> Result<Vec<OtherFirewall>, KernelError> {
        let foreign = self.look()?.1;
        Ok(foreign.into_iter().map(|foreign| OtherFirewall { kind: foreign.kind, table: foreign.text }).collect())
    }

    /// Of the tables in a slot, as the kernel has them; `None` where it is empty, or holds another map than was
    /// published there, or one that is not frozen.
    pub fn tables(&self, slot: Slot) -> Result<Option<TableHeader>, KernelError> {
        let Some(table) = publish::table_of(self.map("TABLES")?, slot)? else { return Ok(None) };
        let info = sys::info_of_map(table.as_fd()).map_err(KernelError::call("cannot read of a slot's tables"))?;
        let (frozen, _) =
            sys::frozen_and_memory(table.as_fd()).map_err(KernelError::call("cannot read of a slot's tables"))?;
        let published = self.published(slot.0)?;
        if !frozen || published.is_none_or(|published| published.map_id != info.id) {
            return Ok(None);
        }
        publish::header_of(table.as_fd())
    }

    /// Bytes of kernel memory that guard's maps hold, the tables of all slots too.
    pub fn memory(&self) -> Result<u64, KernelError> {
        let what = || KernelError::call("cannot read a map's memory");
        let mut bytes = 0;
        for map in self.maps.values() {
            bytes += sys::frozen_and_memory(map.as_fd()).map_err(what())?.1;
        }
        for slot in (0..Slot::TABLES as u8).map(Slot) {
            for outer in ["TABLES", "RULE_COUNTERS"] {
                if let Some(inner) = publish::table_of(self.map(outer)?, slot)? {
                    bytes += sys::frozen_and_memory(inner.as_fd()).map_err(what())?.1;
                }
            }
        }
        Ok(bytes)
    }

    /// Whether the shield is run by the drivers themselves on every guarded interface; `None` where there is no shield. It is
    /// the driver's to offer, and cannot be tried beforehand.
    pub(super) fn native_xdp(&self) -> Result<Option<Feature>, KernelError> {
        if !self.settings.programs.contains_key("shield") {
            return Ok(None);
        }
        let told = self.told()?;
        let guarded =
            |index: &u32| told.get(index).is_some_and(|told| told.flags & guard_common::abi::Interface::GUARDED != 0);
        let devices = interfaces::devices()?;
        let mut guarded = devices.values().filter(|device| guarded(&device.index));
        Ok(Some(Feature {
            name: "native_xdp",
            found: guarded.all(|device| device.xdp_native),
            required: false,
            lost_without: "the shield is generic XDP where the driver has none of its own: it drops as surely, and costs more \
                           a packet",
        }))
    }

    /// Ids of guard's maps, the tables and rule counters of every slot too.
    pub(super) fn own_map_ids(&self) -> Result<BTreeSet<u32>, KernelError> {
        let mut ids: BTreeSet<u32> = self.own_maps()?.into_iter().collect();
        for outer in ["TABLES", "RULE_COUNTERS"] {
            let inner = sys::entries_of_array(self.map(outer)?, Slot::TABLES as u32)
                .map_err(KernelError::call("cannot read the slots"))?;
            ids.extend(inner);
        }
        Ok(ids)
    }

    fn own_maps(&self) -> Result<HashSet<u32>, KernelError> {
        let ids = self.maps.values().map(|map| sys::info_of_map(map.as_fd()).map(|info| info.id));
        ids.collect::<std::io::Result<_>>().map_err(KernelError::call("cannot read of guard's own maps"))
    }

    fn look(&self) -> Result<(Vec<HookStatus>, Vec<Foreign>), KernelError> {
        let devices = interfaces::devices()?;
        let told = self.told()?;
        let maps = self.own_maps()?;
        let mut look = Look { instance: self, devices: &devices, maps, hooks: Vec::new(), foreign: Vec::new() };
        let wanted = |hook: &&Hook| self.settings.programs.contains_key(hook.program);
        for (index, interface) in told {
            let mut judged = false;
            for hook in HOOKS.iter().filter(wanted).filter(|hook| hook.belongs_on(interface.flags)) {
                look.interface(hook, index)?;
                judged = true;
            }
            if judged {
                look.beside(index)?;
            }
        }
        for hook in HOOKS.iter().filter(wanted).filter(|hook| matches!(hook.at, At::Cgroup(_))) {
            look.cgroup(hook);
        }
        for hook in HOOKS.iter().filter(wanted).filter(|hook| hook.at == At::Function) {
            look.function(hook);
        }
        Ok((look.hooks, look.foreign))
    }
}

struct Look<'a> {
    instance: &'a Instance,
    devices: &'a HashMap<u32, Device>,
    /// Ids of guard's own.
    maps: HashSet<u32>,
    hooks: Vec<HookStatus>,
    foreign: Vec<Foreign>,
}

impl Look<'_> {
    fn interface(&mut self, hook: &Hook, index: u32) -> Result<(), KernelError> {
        let device = self.devices.get(&index);
        let target = device.map_or_else(
            || format!("interface {index}, moved to another network namespace"),
            |device| device.name.clone(),
        );
        let (kind, programs) = match (hook.at, device) {
            // What is there cannot be asked from here: its link is all that is known.
            (_, None) => {
                let name = if matches!(hook.at, At::Xdp) { "xdp".to_owned() } else { format!("tcx {}", hook.name) };
                let ids = self.link(hook, index).map(|info| info.program_id).into_iter().collect();
                (name, ids)
            }
            (At::Xdp, Some(device)) => ("xdp".to_owned(), if device.xdp == 0 { Vec::new() } else { vec![device.xdp] }),
            (At::Wire(direction) | At::Host(direction), Some(_)) if !self.instance.settings().offers.tcx => {
                return self.filter(hook, direction, index, target);
            }
            _ => (
                format!("tcx {}", hook.name),
                sys::query(index, hook.attach_type())
                    .map_err(KernelError::call(format!("cannot ask for the programs of {target}")))?,
            ),
        };
        self.judge(hook, kind, target, index, &programs, true);
        Ok(())
    }

    /// What stands on a guarded interface at hooks that guard does not use here.
    fn beside(&mut self, index: u32) -> Result<(), KernelError> {
        let Some(device) = self.devices.get(&index) else { return Ok(()) };
        let settings = self.instance.settings();
        if device.xdp != 0 && !settings.programs.contains_key("shield") {
            let text = format!("xdp on {}: {}", device.name, describe(device.xdp));
            self.foreign.push(Foreign { kind: "xdp", text });
        }
        if settings.offers.tcx {
            for (direction, name) in [(Direction::Inbound, "ingress"), (Direction::Outbound, "egress")] {
                for filter in filters::filters(index, direction)? {
                    let text = format!(
                        "clsact {name} on {}: {} filter, priority {}",
                        device.name, filter.kind, filter.priority
                    );
                    self.foreign.push(Foreign { kind: "clsact", text });
                }
            }
        }
        Ok(())
    }

    fn cgroup(&mut self, hook: &Hook) {
        let settings = self.instance.settings();
        let target = settings.cgroup.display().to_string();
        let programs = attach::open_cgroup(settings).and_then(|cgroup| {
            sys::query(cgroup.as_raw_fd() as u32, hook.attach_type())
                .map_err(KernelError::call(format!("cannot ask for the programs of {target}")))
        });
        match programs {
            // Each program of a cgroup runs, whatever the others say: to be first means nothing.
            Ok(programs) => self.judge(hook, hook.name.to_owned(), target, 0, &programs, false),
            // The cgroup may be gone. The wire is looked at, and put back, all the same.
            Err(error) => self.hooks.push(HookStatus {
                layer: hook.layer,
                hook: hook.name.to_owned(),
                target,
                interface: 0,
                program: hook.program,
                attached: false,
                ours: false,
                first: false,
                problem: Some(error.to_string()),
            }),
        }
    }

    /// The kernel does not tell which programs a function has, so the link is what is looked at: the pinned one, else the
    /// one that this process holds. What others have there cannot lift a refusal.
    fn function(&mut self, hook: &Hook) {
        let target = match sealing::is_of_bpf(hook.program) {
            true => "this machine".to_owned(),
            false => self.instance.settings().cgroup.display().to_string(),
        };
        let held = || sys::info_of_link(self.instance.links.get(&hook.pin_name(0))?.as_fd()).ok();
        let programs: Vec<u32> = self.link(hook, 0).or_else(held).map(|info| info.program_id).into_iter().collect();
        self.judge(hook, hook.name.to_owned(), target, 0, &programs, false);
    }

    fn judge(&mut self, hook: &Hook, kind: String, target: String, index: u32, programs: &[u32], ordered: bool) {
        let device = self.devices.get(&index);
        let ours: Vec<bool> = programs.iter().map(|id| self.is_ours(hook, *id, device)).collect();
        let place = ours.iter().position(|ours| *ours);
        let attached = place.is_some();
        let first = attached && (!ordered || place == Some(0));
        let problem = if !attached {
            Some(match programs.first() {
                Some(other) => format!("detached; instead: {}", describe(*other)),
                None => "detached".to_owned(),
            })
        } else if !first {
            Some(format!("another program stands before it: {}", describe(programs[0])))
        } else if self.link(hook, index).is_none() {
            Some("its pin is gone: it would end with the daemon".to_owned())
        } else {
            None
        };
        for (id, _) in programs.iter().zip(&ours).filter(|(_, ours)| !**ours) {
            let kind_of = match hook.at {
                At::Cgroup(_) => "cgroup",
                At::Function => "fmod_ret",
                At::Xdp => "xdp",
                At::Wire(_) | At::Host(_) => "tcx",
            };
            self.foreign.push(Foreign { kind: kind_of, text: format!("{kind} on {target}: {}", describe(*id)) });
        }
        self.hooks.push(HookStatus {
            layer: hook.layer,
            hook: kind,
            target,
            interface: index,
            program: hook.program,
            attached,
            ours: attached,
            first,
            problem,
        });
    }

    fn filter(&mut self, hook: &Hook, direction: Direction, index: u32, target: String) -> Result<(), KernelError> {
        let filters = filters::filters(index, direction)?;
        let ethernet = self.devices.get(&index).is_none_or(|device| device.ethernet);
        let tag = self.instance.tag_of(hook.program_for(ethernet));
        let place = filters.iter().position(|filter| filter.tag == tag);
        let problem = match place {
            Some(0) => None,
            Some(_) => Some(format!("a {} filter stands before it", filters[0].kind)),
            None => Some("detached".to_owned()),
        };
        for filter in filters.iter().filter(|filter| filter.tag != tag) {
            let text =
                format!("clsact {} on {target}: {} filter, priority {}", hook.name, filter.kind, filter.priority);
            self.foreign.push(Foreign { kind: "clsact", text });
        }
        self.hooks.push(HookStatus {
            layer: hook.layer,
            hook: format!("clsact {}", hook.name),
            target,
            interface: index,
            program: hook.program,
            attached: place.is_some(),
            ours: place.is_some(),
            first: place == Some(0),
            problem,
        });
        Ok(())
    }

    /// The pinned link, where it is still attached.
    fn link(&self, hook: &Hook, index: u32) -> Option<sys::LinkInfo> {
        let link = sys::pinned(&self.instance.pins.link(&hook.pin_name(index))).ok()??;
        sys::info_of_link(link.as_fd()).ok().filter(|info| info.target != 0)
    }

    /// A program with the instructions that were loaded for this hook of such a device, over guard's own maps: the same
    /// instructions over others would judge by somebody else's tables. Its constants are a map of each load's own.
    fn is_ours(&self, hook: &Hook, id: u32, device: Option<&Device>) -> bool {
        let tag = |ethernet| self.instance.tag_of(hook.program_for(ethernet));
        let Ok(Some(program)) = objects::program(id) else { return false };
        let known = match device {
            Some(device) => program.tag == tag(device.ethernet),
            None => program.tag == tag(true) || program.tag == tag(false),
        };
        known && program.maps.iter().filter(|map| !self.maps.contains(map)).count() <= 1
    }
}

pub(super) fn describe(id: u32) -> String {
    match objects::program(id) {
        Ok(Some(program)) => format!("program {id} \"{}\" (loaded by uid {})", program.name, program.uid),
        _ => format!("program {id}"),
    }
}
