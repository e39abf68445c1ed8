//! The seal of `bpf(2)` (`fmod_ret`, 5.7): while a lockdown holds, whoever is not guard may not touch what is guard's, and
//! loads no program of a kind that could go round it. `kernel::admission` says why it is as it is.
//!
//! What is judged here is what the kernel itself goes by: the attributes as it copied them, and the object that it is
//! about to hand out. A descriptor's number is never followed: another thread could put something else under it.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_kernel,
        generated::{bpf_get_current_task, bpf_jiffies64},
    },
};
use guard_common::{
    Direction, Reason,
    abi::{Admitted, EventKind, Lost, Refused, SEAL_BPF_SHOW, SEAL_BPF_TAKEN, SlotFlags},
    decide::Outcome,
};

use super::seal_function::words;
use crate::{
    generation::Generation,
    globals::HZ,
    maps::{ADMITTED, OWN_DIRECTORIES, OWN_MAPS, OWN_PROGRAMS, SEAL_BPF, SEAL_BPF_TOLD},
    record::{begin_event, count, count_lost, current_owner},
};

/// Where the kernel keeps what is read here: bytes into its structs, from its type information.
macro_rules! offsets {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        pub static $name: Global<u64> = Global::new(0);
    )* };
}
offsets! {
    TASK_LEADER TASK_STARTED TASK_MM
    MAP_ID PROG_AUX AUX_ID AUX_USED_MAPS AUX_USED_MAP_COUNT
    INODE_NUMBER INODE_SUPER SUPER_DEVICE DENTRY_INODE MOUNT_SUPER
}

const PASS: i32 = 0;
const EPERM: i32 = -1;

// `enum bpf_cmd` (linux/bpf.h), whose numbers never change.
const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const PROG_TEST_RUN: u32 = 10;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// `enum bpf_prog_type`, a bit each: what can send, change or drop frames, stand in for a part of another program, or
/// refuse what guard asks of the kernel: sched_cls, sched_act, xdp, the lwt kinds, sock_ops, sk_skb, sk_msg,
/// flow_dissector, cgroup_sockopt, ext, lsm, sk_lookup, netfilter. Not among them: the cgroup kinds that service managers
/// and container engines attach in the ordinary course (skb, sock, sock_addr, device, sysctl). Every program of a cgroup is
/// run, so that none lets through what guard's refuse, and the wire judges after them.
const KINDS: u64 = bits(&[3, 4, 6, 10, 11, 12, 13, 14, 16, 19, 22, 25, 28, 29, 30, 32]);
/// Of these the ones that change what a function returns.
const TRACING: u32 = 26;
const MODIFY_RETURN: u32 = 26;
/// `enum bpf_attach_type` of the same.
const HOOKS: u64 = bits(&[3, 4, 5, 7, 17, 21, 22, 26, 27, 33, 35, 36, 37, 38, 43, 45, 46, 47, 54, 55]);

/// `BPF_F_TEST_XDP_LIVE_FRAMES` (5.18).
const LIVE_FRAMES: u32 = 1 << 1;

/// `FMODE_WRITE`.
const WRITE: u32 = 2;

/// A program has no more maps (`MAX_USED_MAPS`).
const MOST_MAPS: u32 = 64;

const fn bits(numbers: &[u32]) -> u64 {
    let (mut bits, mut at) = (0, 0);
    while at < numbers.len() {
        bits |= 1 << numbers[at];
        at += 1;
    }
    bits
}

#[inline(always)]
const fn has(bits: u64, number: u32) -> bool {
    number < 64 && bits >> number & 1 == 1
}

/// `security_bpf(int cmd, union bpf_attr *attr, unsigned int size)`: the attributes are the kernel's own copy, zero past
/// what the caller gave.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/seal_bpf")]
extern "C" fn seal_bpf(arguments: *mut c_void) -> i32 {
    let [command, attributes] = words(arguments);
    let command = command as u32;
    if command == SEAL_BPF_SHOW {
        return show(attributes);
    }
    let word = |offset: u64| read::<u32>(attributes + offset);
    let refused = match command {
        LINK_DETACH | LINK_UPDATE => Some(Refused::Link),
        PROG_LOAD => {
            let kind = word(0);
            (has(KINDS, kind) || (kind == TRACING && word(68) == MODIFY_RETURN)).then_some(Refused::Load)
        }
        PROG_ATTACH | PROG_DETACH | LINK_CREATE => has(HOOKS, word(8)).then_some(Refused::Attach),
        // Over a packet of the caller's: guard's own program would take it for one that came.
        PROG_TEST_RUN => (word(8) != 0 || word(64) & LIVE_FRAMES != 0).then_some(Refused::Run),
        _ => None,
    };
    match refused {
        Some(refused) => judge(refused),
        None => PASS,
    }
}

/// `security_bpf_map(struct bpf_map *map, fmode_t fmode)`: a descriptor of a map is about to be handed out.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/seal_map")]
extern "C" fn seal_map(arguments: *mut c_void) -> i32 {
    let [map, mode] = words(arguments);
    if mode as u32 & WRITE != 0 && is_own(map) { judge(Refused::Map) } else { PASS }
}

/// `security_bpf_prog(struct bpf_prog *prog)`: a descriptor of a program is about to be handed out, also of one that was
/// just loaded. A program may write to any map that it was loaded with, even by a descriptor that may only be read.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/seal_prog")]
extern "C" fn seal_prog(arguments: *mut c_void) -> i32 {
    let [program] = words(arguments);
    let aux: u64 = read(program + PROG_AUX.load());
    let id: u32 = read(aux + AUX_ID.load());
    if OWN_PROGRAMS.get_ptr(&id).is_some() {
        return PASS;
    }
    let count: u32 = read(aux + AUX_USED_MAP_COUNT.load());
    let maps: u64 = read(aux + AUX_USED_MAPS.load());
    let mut at = 0;
    while at < MOST_MAPS {
        if at >= count {
            break;
        }
        if is_own(read(maps + 8 * u64::from(at))) {
            return judge(Refused::Map);
        }
        at += 1;
    }
    PASS
}

/// `security_inode_unlink(struct inode *dir, struct dentry *dentry)`
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/seal_unlink")]
extern "C" fn seal_unlink(arguments: *mut c_void) -> i32 {
    let [directory] = words(arguments);
    if holds_pins(directory) { judge(Refused::Pin) } else { PASS }
}

/// `security_inode_rename(struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir, …)`: what is there under
/// the new name is unlinked, and a directory that moves takes its pins with it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/seal_rename")]
extern "C" fn seal_rename(arguments: *mut c_void) -> i32 {
    let [from, what, to] = words(arguments);
    if holds_pins(from) || holds_pins(to) || holds_pins(read(what + DENTRY_INODE.load())) {
        judge(Refused::Pin)
    } else {
        PASS
    }
}

/// `security_sb_umount(struct vfsmount *mnt, int flags)`
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/seal_umount")]
extern "C" fn seal_umount(arguments: *mut c_void) -> i32 {
    let [mount] = words(arguments);
    if is_bpffs(read(mount + MOUNT_SUPER.load())) { judge(Refused::Pin) } else { PASS }
}

/// The key, in two words: whoever shows it is guard from now on. The answer is an error, as it would be without this
/// program, but one that no kernel gives here.
#[inline(always)]
fn show(attributes: u64) -> i32 {
    let Some(seal) = SEAL_BPF.get(0) else { return PASS };
    let [first, second] = [read::<u64>(attributes), read::<u64>(attributes + 8)];
    if seal.key == [0, 0] || seal.key != [first, second] {
        return PASS;
    }
    let (process, this) = current();
    if ADMITTED.insert(&process, &this, 0).is_err() {
        return PASS;
    }
    -SEAL_BPF_TAKEN
}

/// The process that runs now, as it cannot be mistaken for a later one of its number, or for what it executes later.
#[inline(always)]
fn current() -> (u32, Admitted) {
    // SAFETY: the helper takes nothing.
    let task = unsafe { bpf_get_current_task() };
    let leader: u64 = read(task + TASK_LEADER.load());
    let started = read(leader + TASK_STARTED.load());
    let memory = read(task + TASK_MM.load());
    ((bpf_get_current_pid_tgid() >> 32) as u32, Admitted { started, memory })
}

#[inline(always)]
fn is_admitted() -> bool {
    let (process, this) = current();
    // SAFETY: copied out before anything else happens to it; an entry that changes meanwhile is another's, and not equal.
    unsafe { ADMITTED.get(&process) }.is_some_and(|admitted| *admitted == this)
}

#[inline(always)]
fn is_own(map: u64) -> bool {
    let id: u32 = read(map + MAP_ID.load());
    OWN_MAPS.get_ptr(&id).is_some()
}

#[inline(always)]
fn is_bpffs(superblock: u64) -> bool {
    let device: u32 = read(superblock + SUPER_DEVICE.load());
    SEAL_BPF.get(0).is_some_and(|seal| seal.device != 0 && seal.device == device)
}

#[inline(always)]
fn holds_pins(directory: u64) -> bool {
    let number: u64 = read(directory + INODE_NUMBER.load());
    // In this order: other file systems are many.
    is_bpffs(read(directory + INODE_SUPER.load())) && OWN_DIRECTORIES.get_ptr(&number).is_some()
}

/// Zero where nothing can be read.
#[inline(always)]
fn read<T: Default>(address: u64) -> T {
    // SAFETY: the helper checks the address; integers only.
    unsafe { bpf_probe_read_kernel(address as *const T) }.unwrap_or_default()
}

/// Refuses where the seal holds and another than guard asks.
#[inline(always)]
fn judge(refused: Refused) -> i32 {
    let Some(generation) = Generation::current() else { return PASS };
    if !generation.judges() || !generation.flags.has(SlotFlags::LOCKDOWN) || is_admitted() {
        return PASS;
    }
    let enforces = generation.enforces(Direction::Outbound) || generation.enforces(Direction::Inbound);
    count(Reason::BpfRefused, Direction::Outbound, enforces, 1, 0);
    if may_tell(refused) {
        tell(refused, enforces, &generation);
    }
    if enforces { EPERM } else { PASS }
}

/// Once a second for each process and kind: who asks in a loop must not crowd out the flows.
#[inline(always)]
fn may_tell(refused: Refused) -> bool {
    let key = bpf_get_current_pid_tgid() >> 32 << 32 | refused as u64;
    // SAFETY: the helper takes nothing; the value is one word.
    let (now, last) = unsafe { (bpf_jiffies64(), SEAL_BPF_TOLD.get(&key).copied()) };
    if last.is_some_and(|last| now.wrapping_sub(last) < u64::from(HZ.load())) {
        count_lost(Lost::Suppressed);
        return false;
    }
    SEAL_BPF_TOLD.insert(&key, &now, 0).is_ok()
}

#[inline(always)]
fn tell(refused: Refused, dropped: bool, generation: &Generation) {
    let kind = EventKind::BpfRefused as u8;
    let outcome = Outcome::without_rule(Reason::BpfRefused);
    if let Some(mut entry) = begin_event(kind, Direction::Outbound as u8, dropped.into(), outcome, generation, 0) {
        let event = entry.as_mut_ptr();
        // SAFETY: the entry has room for a whole event.
        unsafe {
            (*event).owner = current_owner((*event).time);
            (*event).socket_cookie = refused as u64;
        }
        entry.submit(0);
    }
}
