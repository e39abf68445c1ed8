//! Which programs run: raw tracepoints at exec and fork (4.17), so that a process is still named when it is gone before
//! anybody looks. They observe only; what they cannot tell is left out.

use core::ptr;

use aya_ebpf::{
    cty::c_void,
    helpers::{
        bpf_get_current_comm, bpf_get_current_uid_gid,
        generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user, bpf_probe_read_user_str},
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use guard_common::abi::{
    Lost, Offsets, PROCESS_ARGUMENT_BYTES, PROCESS_CGROUP_BYTES, PROCESS_FILE_NAME_BYTES, PROCESS_PATH_BYTES, ProcessEvent, ProcessHead,
    ProcessKind,
};

use crate::{
    generation::boot_ns,
    maps::{PROCESSES, TASK_OFFSETS},
    record::count_lost,
};

/// `(struct task_struct *task, pid_t old_pid, struct linux_binprm *binprm)`
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(context: RawTracePointContext) -> i32 {
    let Some(offsets) = offsets() else { return 0 };
    let task = context.arg::<*const c_void>(0) as usize;
    let binprm = context.arg::<*const c_void>(2) as usize;
    let Some(mut entry) = PROCESSES.reserve::<ProcessEvent>(0) else {
        count_lost(Lost::Processes);
        return 0;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the entry has room for a whole event; every address is read by helpers that fail where it is none.
    unsafe {
        fill_head(&raw mut (*event).head, ProcessKind::Exec, task, offsets);
        let parent: usize = read(task, offsets.task_real_parent);
        (*event).head.parent = read(parent, offsets.task_tgid);

        let namespaces: usize = read(task, offsets.task_nsproxy);
        let mount_ns: usize = read(namespaces, offsets.nsproxy_mnt_ns);
        (*event).mount_ns = read(mount_ns, offsets.mnt_namespace_inum);
        let netns: usize = read(namespaces, offsets.nsproxy_net_ns);
        (*event).netns = read(netns, offsets.net_inum);

        let file: usize = read(binprm, offsets.binprm_file);
        let inode: usize = read(file, offsets.file_inode);
        (*event).links = read(inode, offsets.inode_nlink);
        let dentry: usize = read(file, offsets.file_dentry);
        let name: usize = read(dentry, offsets.dentry_name);
        (*event).file_name[0] = 0;
        bpf_probe_read_kernel_str(
            (&raw mut (*event).file_name).cast(),
            PROCESS_FILE_NAME_BYTES as u32,
            name as *const c_void,
        );
        let path: usize = read(binprm, offsets.binprm_interp);
        (*event).path[0] = 0;
        bpf_probe_read_kernel_str((&raw mut (*event).path).cast(), PROCESS_PATH_BYTES as u32, path as *const c_void);

        (*event).cgroup[0][0] = 0;
        (*event).cgroup[1][0] = 0;
        if offsets.task_cgroups != 0 {
            let set: usize = read(task, offsets.task_cgroups);
            let group: usize = read(set, offsets.css_set_cgroup);
            let node: usize = read(group, offsets.cgroup_node);
            group_name((&raw mut (*event).cgroup[0]).cast(), node, offsets);
            let above: usize = read(node, offsets.node_parent);
            group_name((&raw mut (*event).cgroup[1]).cast(), above, offsets);
        }

        let mm: usize = read(task, offsets.task_mm);
        let start: u64 = read(mm, offsets.mm_arg_start);
        let end: u64 = read(mm, offsets.mm_arg_end);
        (*event).args_bytes = arguments((&raw mut (*event).args).cast(), start, end);
    }
    entry.submit(0);
    0
}

/// `(struct task_struct *parent, struct task_struct *child)`
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(context: RawTracePointContext) -> i32 {
    let Some(offsets) = offsets() else { return 0 };
    let parent = context.arg::<*const c_void>(0) as usize;
    let child = context.arg::<*const c_void>(1) as usize;
    // SAFETY: as above.
    let (pid, tgid): (u32, u32) = unsafe { (read(child, offsets.task_pid), read(child, offsets.task_tgid)) };
    // A thread.
    if pid != tgid {
        return 0;
    }
    let Some(mut entry) = PROCESSES.reserve::<ProcessHead>(0) else {
        count_lost(Lost::Processes);
        return 0;
    };
    let head = entry.as_mut_ptr();
    // SAFETY: the entry has room for a head; addresses as above.
    unsafe {
        fill_head(head, ProcessKind::Fork, child, offsets);
        (*head).parent = read(parent, offsets.task_tgid);
    }
    entry.submit(0);
    0
}

#[inline(always)]
fn offsets() -> Option<&'static Offsets> {
    // SAFETY: an array's element stays where it is; userspace writes it once, before the programs are attached.
    TASK_OFFSETS.get_ptr(0).map(|offsets| unsafe { &*offsets }).filter(|offsets| offsets.known != 0)
}

/// Everything but the parent.
#[inline(always)]
unsafe fn fill_head(head: *mut ProcessHead, kind: ProcessKind, task: usize, offsets: &Offsets) {
    // SAFETY: the caller's head is writable.
    unsafe {
        (*head).kind = kind as u32;
        (*head).pid = read(task, offsets.task_tgid);
        (*head).uid = bpf_get_current_uid_gid() as u32;
        (*head).time = boot_ns();
        (*head).started = read(task, offsets.task_start_boottime);
        (*head).comm = bpf_get_current_comm().unwrap_or([0; 16]);
    }
}

/// A control group's, by its node (`struct kernfs_node`).
#[inline(always)]
unsafe fn group_name(to: *mut c_void, node: usize, offsets: &Offsets) {
    // SAFETY: the caller's room is of that size; the helper writes nothing beyond, and an end where the address is bad.
    unsafe {
        let name: usize = read(node, offsets.node_name);
        bpf_probe_read_kernel_str(to, PROCESS_CGROUP_BYTES as u32, name as *const c_void);
    }
}

/// A field of the kernel's; 0 where there is nothing.
#[inline(always)]
unsafe fn read<T: Copy + Default>(base: usize, offset: u32) -> T {
    let mut value = T::default();
    // SAFETY: the helper (5.5) writes as many bytes as `value` has, zeroes where the address is bad.
    unsafe {
        bpf_probe_read_kernel(
            ptr::from_mut(&mut value).cast(),
            size_of::<T>() as u32,
            (base + offset as usize) as *const c_void,
        );
    }
    value
}

/// Copies what lies between two addresses of the current process; returns how long it is.
#[inline(always)]
unsafe fn arguments(to: *mut c_void, start: u64, end: u64) -> u32 {
    if start == 0 || end <= start {
        return 0;
    }
    let length = end - start;
    let most = PROCESS_ARGUMENT_BYTES as u64;
    // Less one, in 10 bits, and one more: as in `load_head`.
    let mut size = if length > most { most } else { length } - 1;
    // SAFETY: arithmetic on one register; then at most as many bytes as `to` has.
    unsafe {
        core::arch::asm!("{size} &= 1023", "{size} += 1", size = inout(reg) size, options(pure, nomem, nostack));
        if bpf_probe_read_user(to, size as u32, start as *const c_void) == 0 {
            return if length > most { most as u32 + 1 } else { length as u32 };
        }
        // A part is not in memory: the first alone.
        let read = bpf_probe_read_user_str(to, PROCESS_ARGUMENT_BYTES as u32, start as *const c_void);
        if read > 0 { read as u32 } else { 0 }
    }
}
