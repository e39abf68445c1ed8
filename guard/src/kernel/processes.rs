//! The process programs, which only the daemon runs: they are not pinned and end with it, since nothing that enforces
//! depends on them. And the two rings beside that of events.

use std::{fs, os::fd::AsFd, path::Path};

use aya::maps::{Map, MapData, RingBuf};
use guard_common::abi::{Offsets, Owner};

use super::{
    Instance, KernelError,
    btf::{self, Btf},
    load, sys,
};

/// Program, and the raw tracepoint that it hangs on.
const PROGRAMS: [(&str, &str); 2] = [("process_exec", "sched_process_exec"), ("process_fork", "sched_process_fork")];

impl Instance {
    /// Loads and attaches them. On an error nothing is attached.
    pub fn watch_processes(&mut self) -> Result<(), KernelError> {
        let path = Path::new(btf::VMLINUX);
        let bytes = fs::read(path).map_err(KernelError::path("cannot read", path))?;
        let offsets = Btf::new(&bytes).ok_or("type information").and_then(|btf| offsets(&btf)).map_err(|missing| {
            KernelError::Damaged { path: path.to_owned(), why: format!("it does not tell of this kernel's {missing}") }
        })?;
        let programs = load::load(&self.pins, &self.settings, &|name| PROGRAMS.iter().any(|(own, _)| *own == name))?;
        // One that an older guard started has the maps only now.
        let map = self.pinned_map("TASK_OFFSETS")?;
        sys::update(map.as_fd(), &0_u32, &offsets, sys::ANY).map_err(KernelError::call("cannot write TASK_OFFSETS"))?;
        let mut watching = Vec::new();
        for (name, tracepoint) in PROGRAMS {
            let what = || KernelError::call(format!("cannot attach {name} to the tracepoint {tracepoint}"));
            let Some(program) = programs.get(name) else { continue };
            watching.push(sys::raw_tracepoint(tracepoint, program.as_fd()).map_err(what())?);
        }
        self.watching = watching;
        Ok(())
    }

    /// Takes what waits in a ring (`PROCESSES`, `ANSWERS`), at most `most`; how many there were.
    pub fn drain_ring(
        &mut self,
        name: &'static str,
        most: usize,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<usize, KernelError> {
        if !self.rings.contains_key(name) {
            let path = self.pins.map(name);
            let failed = |message: String| KernelError::Load { what: format!("cannot open {name}"), message };
            let map = MapData::from_pin(&path).map_err(|error| failed(error.to_string()))?;
            let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(|error| failed(error.to_string()))?;
            self.rings.insert(name, ring);
        }
        let mut taken = 0;
        if let Some(ring) = self.rings.get_mut(name) {
            while taken < most
                && let Some(item) = ring.next()
            {
                taken += 1;
                each(&item);
            }
        }
        Ok(taken)
    }

    /// Which process the socket layer saw with this socket.
    pub fn owner(&self, cookie: u64) -> Result<Option<Owner>, KernelError> {
        sys::lookup(self.map("OWNERS")?, &cookie).map_err(KernelError::call("cannot read OWNERS"))
    }

    fn pinned_map(&self, name: &str) -> Result<std::os::fd::OwnedFd, KernelError> {
        let path = self.pins.map(name);
        sys::pinned(&path)
            .map_err(KernelError::path("cannot open", &path))?
            .ok_or_else(|| KernelError::Damaged { path, why: "the map is not pinned there".to_owned() })
    }
}

/// All that the process programs read; else the name of the first that is not there.
fn offsets(btf: &Btf<'_>) -> Result<Offsets, &'static str> {
    let of = |name: &'static str| {
        let mut parts = name.split('.');
        let structure = parts.next().unwrap_or_default();
        btf.offset(structure, &parts.collect::<Vec<_>>()).ok_or(name)
    };
    Ok(Offsets {
        known: 1,
        task_pid: of("task_struct.pid")?,
        task_tgid: of("task_struct.tgid")?,
        task_real_parent: of("task_struct.real_parent")?,
        // `real_start_time` before 5.5.
        task_start_boottime: of("task_struct.start_boottime")?,
        task_mm: of("task_struct.mm")?,
        task_nsproxy: of("task_struct.nsproxy")?,
        mm_arg_start: of("mm_struct.arg_start")?,
        mm_arg_end: of("mm_struct.arg_end")?,
        nsproxy_mnt_ns: of("nsproxy.mnt_ns")?,
        nsproxy_net_ns: of("nsproxy.net_ns")?,
        mnt_namespace_inum: of("mnt_namespace.ns.inum")?,
        net_inum: of("net.ns.inum")?,
        binprm_file: of("linux_binprm.file")?,
        binprm_interp: of("linux_binprm.interp")?,
        file_inode: of("file.f_inode")?,
        file_dentry: of("file.f_path.dentry")?,
        inode_nlink: of("inode.i_nlink")?,
        dentry_name: of("dentry.d_name.name").or_else(|_| of("dentry.__d_name.name"))?,
        ..cgroup_offsets(&of).unwrap_or_default()
    })
}

/// The way from a process to the names of its control group: all of it or nothing, since the rest is of use without.
fn cgroup_offsets(of: &dyn Fn(&'static str) -> Result<u32, &'static str>) -> Option<Offsets> {
    Some(Offsets {
        task_cgroups: of("task_struct.cgroups").ok()?,
        css_set_cgroup: of("css_set.dfl_cgrp").ok()?,
        cgroup_node: of("cgroup.kn").ok()?,
        node_name: of("kernfs_node.name").ok()?,
        // `parent` before 6.15.
        node_parent: of("kernfs_node.__parent").or_else(|_| of("kernfs_node.parent")).ok()?,
        ..Offsets::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_all_that_the_programs_read() {
        // Not every kernel tells.
        let Ok(bytes) = fs::read(btf::VMLINUX) else { return };
        let offsets = offsets(&Btf::new(&bytes).unwrap()).unwrap();
        assert_eq!(offsets.task_tgid, offsets.task_pid + 4);
        assert_eq!(offsets.mm_arg_end, offsets.mm_arg_start + 8);
        assert!(offsets.file_dentry > 0 && offsets.dentry_name > 0);
        assert!(offsets.task_cgroups > 0 && offsets.node_name != offsets.node_parent);
    }
}
