//! Who may use `bpf(2)` while a lockdown holds: guard, and for what is no danger to it, everybody.
//!
//! Root can detach any program, write to any map and load programs of its own. Where the kernel takes programs that change
//! what its functions return (`fmod_ret`), guard stands in the way, at the places where the kernel itself asks its security
//! modules: `security_bpf` (each call), `security_bpf_map` and `security_bpf_prog` (each descriptor that is handed out), and
//! for the pins `security_inode_unlink`, `security_inode_rename` and `security_sb_umount`. The same places could be taken by
//! BPF LSM programs, but only where `bpf` is in the kernel's list of security modules; where it is not they attach without
//! an error and are never run. `fmod_ret` works with and without, so there is one way and not two.
//!
//! **When.** While the policy in force says `lockdown: true` and enforces: so in every `guard lockdown`, and in `run` for who
//! writes it into the policy. It ends with that generation: by restore, rollback, release, or the kernel's own deadline.
//!
//! **What is refused to others.** Links: detached, or given another program. Guard's maps: opened for writing, or a program
//! loaded over them. Guard's pins: removed, renamed, their file system unmounted. Programs of the kinds that could send,
//! change or drop frames, or refuse what guard asks of the kernel: loaded, attached, detached. Programs run over packets,
//! with live frames too. Everything else is left alone: to list and to read, tracing, and the cgroup programs that service
//! managers and container engines attach (none lets through what guard's refuse). Nothing that is there already is taken
//! away; the watch names it.
//!
//! **Who is guard.** A process that has shown the key: 16 random bytes in the map `SEAL_BPF`, pinned beside the others and
//! readable by root. Every command of guard shows it at its start, to each instance that it finds. Not a certain file: a
//! rule by inode or path would lock out the new binary after an upgrade, the one on a responder's memory stick, and
//! everybody once the old file is gone. The key is in the kernel as long as the seal is, so nobody is ever locked out of
//! their own host, with the daemon dead and the state directory lost; any guard of this version or a later one can take
//! over. A guard that is older than this seal cannot: `guard release` first.
//!
//! **What it is worth.** It stops tools that do not know guard: bpftool, a rootkit's loader, whoever detaches and unpins what
//! they find. It does not stop root who has studied guard: who reads the key and shows it, runs guard itself, or makes a
//! process of guard's do it (ptrace, another library loaded into it). What they then do is noticed as ever. Nor does it
//! stop what needs no `bpf(2)`: a module, /dev/mem, kexec.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use guard_common::abi::SealBpf;

use super::{
    Instance, KernelError,
    pins::{self, Pins},
    sealing, sys,
};

const KEY: &str = "SEAL_BPF";

/// Shows this process to every instance whose pins are in that file system. What cannot be read there is no instance of
/// this guard's, or not this user's.
pub(super) fn introduce(bpffs: &Path) {
    let Ok(instances) = fs::read_dir(bpffs.join("guard")) else { return };
    for instance in instances.flatten() {
        let path = instance.path().join("maps").join(KEY);
        if let Ok(Some(map)) = sys::pinned_to_read(&path)
            && let Ok(Some(seal)) = sys::lookup::<u32, SealBpf>(map.as_fd(), &0)
        {
            sys::show_key(seal.key);
        }
    }
}

/// The same, where the pins are by default: at the start of every command, since those that open no instance (`snapshot`,
/// `doctor`) ask the kernel of maps and programs, too.
pub fn introduce_here() {
    introduce(&pins::default_root());
}

impl Instance {
    /// Shows this process to the seal of `bpf(2)`, once its programs stand. Draws the key where there is none yet.
    pub(super) fn show_to_seal(&self) -> Result<(), KernelError> {
        let failed = || KernelError::call("cannot show guard to its seal");
        let map = self.map(KEY)?;
        let before = sys::lookup::<u32, SealBpf>(map, &0).map_err(failed())?.unwrap_or_default();
        let mut seal = SealBpf { device: self.pins.device()?, ..before };
        if seal.key == [0; 2] {
            seal.key = random()?;
        }
        if seal != before {
            sys::update(map, &0_u32, &seal, sys::ANY).map_err(failed())?;
        }
        sys::show_key(seal.key);
        Ok(())
    }

    /// The same, and tells it what is guard's own now. What it knows already is not written again.
    pub(super) fn tell_seal(&self) -> Result<(), KernelError> {
        if !self.programs.contains_key(sealing::OF_BPF) {
            return Ok(());
        }
        self.show_to_seal()?;
        let failed = || KernelError::call("cannot tell the seal what is guard's own");
        become_set(self.map("OWN_DIRECTORIES")?, &self.pins.directories()?).map_err(failed())?;
        become_set(self.map("OWN_MAPS")?, &self.own_map_ids()?).map_err(failed())?;
        let loaded = self.programs.values().map(|program| sys::info_of_program(program.as_fd()).map(|info| info.id));
        let watching = self.watching.iter().map(|link| sys::info_of_link(link.as_fd()).map(|info| info.program_id));
        let programs = loaded.chain(watching).collect::<Result<_, _>>().map_err(failed())?;
        become_set(self.map("OWN_PROGRAMS")?, &programs).map_err(failed())
    }
}

/// Makes the keys of a hash what they should be.
fn become_set<K: sys::Plain + Ord>(map: BorrowedFd<'_>, wanted: &BTreeSet<K>) -> std::io::Result<()> {
    let found: BTreeSet<K> = sys::entries::<K, u8>(map)?.into_iter().map(|(key, _)| key).collect();
    // What is new first: it may be in use already.
    wanted.difference(&found).try_for_each(|key| sys::update(map, key, &1_u8, sys::ANY))?;
    found.difference(wanted).try_for_each(|key| sys::delete(map, key).map(drop))
}

/// From the kernel's generator; never zero, which is no key.
fn random() -> Result<[u64; 2], KernelError> {
    let mut key = [0_u64; 2];
    // SAFETY: as many bytes as the key has.
    let got = unsafe { libc::getrandom(key.as_mut_ptr().cast(), size_of_val(&key), 0) };
    if got != size_of_val(&key) as isize || key == [0; 2] {
        return Err(KernelError::call("cannot draw a key")(std::io::Error::last_os_error()));
    }
    Ok(key)
}

impl Pins {
    /// Shows this process to every instance here.
    pub(super) fn introduce(&self) {
        introduce(self.root());
    }
}
