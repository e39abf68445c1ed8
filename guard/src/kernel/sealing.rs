//! The seal's programs at kernel functions (`fmod_ret`), which aya does not know: taken from the object by `aya_obj`, loaded
//! and attached by `bpf(2)`.

use std::{
    collections::HashMap,
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use aya_obj::{EbpfSectionKind, Object};

use super::{
    KernelError,
    btf::{self, Btf},
    load::Programs,
    pins::Pins,
    settings::Settings,
    sys::{self, F_RDONLY_PROG, MAP_TYPE_ARRAY},
};
use crate::object::OBJECT;

/// Programs, and the functions whose return values they may change.
pub const PROGRAMS: [(&str, &str); 2] =
    [("seal_option", "security_socket_setsockopt"), ("seal_create", "security_socket_create")];

/// The same, of the seal of `bpf(2)` (`admission`): all of them or none.
pub const PROGRAMS_OF_BPF: [(&str, &str); 6] = [
    (OF_BPF, "security_bpf"),
    ("seal_map", "security_bpf_map"),
    ("seal_prog", "security_bpf_prog"),
    ("seal_unlink", "security_inode_unlink"),
    ("seal_rename", "security_inode_rename"),
    ("seal_umount", "security_sb_umount"),
];
/// The first of them.
pub const OF_BPF: &str = "seal_bpf";

#[must_use]
pub fn is_of_bpf(program: &str) -> bool {
    PROGRAMS_OF_BPF.iter().any(|(name, _)| *name == program)
}

/// The object's global of each offset that the seal of `bpf(2)` reads at, and where it is.
const OFFSETS_OF_BPF: [(&str, &str, &[&str]); 13] = [
    ("TASK_LEADER", "task_struct", &["group_leader"]),
    ("TASK_STARTED", "task_struct", &["start_boottime"]),
    ("TASK_MM", "task_struct", &["mm"]),
    ("MAP_ID", "bpf_map", &["id"]),
    ("PROG_AUX", "bpf_prog", &["aux"]),
    ("AUX_ID", "bpf_prog_aux", &["id"]),
    ("AUX_USED_MAPS", "bpf_prog_aux", &["used_maps"]),
    ("AUX_USED_MAP_COUNT", "bpf_prog_aux", &["used_map_cnt"]),
    ("INODE_NUMBER", "inode", &["i_ino"]),
    ("INODE_SUPER", "inode", &["i_sb"]),
    ("SUPER_DEVICE", "super_block", &["s_dev"]),
    ("DENTRY_INODE", "dentry", &["d_inode"]),
    ("MOUNT_SUPER", "vfsmount", &["mnt_sb"]),
];

/// One element: the cgroup whose tasks are held.
pub const CGROUP: &str = "SEAL_CGROUP";

/// Whether such a program loads and attaches: tried with one that changes nothing, and gone again at once. A kernel may
/// load it and yet have no trampoline to attach it by.
#[must_use]
pub fn works() -> bool {
    work(&PROGRAMS, |_| true)
}

/// The same of the seal of `bpf(2)`, which must also know where to read.
#[must_use]
pub fn works_for_bpf() -> bool {
    work(&PROGRAMS_OF_BPF, |btf| OFFSETS_OF_BPF.iter().all(|(_, of, path)| btf.offset(of, path).is_some()))
}

fn work(programs: &[(&str, &str)], known: impl Fn(&Btf<'_>) -> bool) -> bool {
    let Ok(bytes) = fs::read(btf::VMLINUX) else { return false };
    let Some(btf) = Btf::new(&bytes).filter(known) else { return false };
    programs.iter().all(|(_, function)| {
        let Some(found) = btf.find(btf::FUNC, function) else { return false };
        sys::load_nothing_at(found.id).is_ok_and(|program| sys::attach_to_function(program.as_fd()).is_ok())
    })
}

/// How a packet socket shows that it goes round the qdisc: offset into `struct packet_sock`, mask and value of 8 bytes.
/// `None`: the kernel does not tell.
fn sign_of_bypass(btf: &Btf<'_>) -> Option<[u64; 3]> {
    if let Some(offset) = btf.offset("packet_sock", &["xmit"]) {
        let address = symbol("packet_direct_xmit")?;
        return Some([offset.into(), u64::MAX, address]);
    }
    // Later kernels keep a flag instead of a function.
    let bit = btf.enum_value("packet_sock_flags", "PACKET_SOCK_QDISC_BYPASS")?;
    let mask = 1_u64.checked_shl(bit)?;
    Some([btf.offset("packet_sock", &["flags"])?.into(), mask, mask])
}

/// Address of a kernel's function, where this process may see it.
fn symbol(name: &str) -> Option<u64> {
    let all = fs::read_to_string("/proc/kallsyms").ok()?;
    let line = all.lines().find(|line| line.split(' ').nth(2) == Some(name))?;
    u64::from_str_radix(line.split(' ').next()?, 16).ok().filter(|address| *address != 0)
}

/// Loads those that are wanted, against the pinned maps.
pub fn load(pins: &Pins, settings: &Settings, wanted: &dyn Fn(&str) -> bool) -> Result<Programs, KernelError> {
    let mut programs = Programs::new();
    let wanted: Vec<_> = PROGRAMS.iter().chain(&PROGRAMS_OF_BPF).filter(|(name, _)| wanted(name)).collect();
    if wanted.is_empty() {
        return Ok(programs);
    }
    let failed = |error: &dyn std::error::Error| KernelError::Load {
        what: "the seal's programs".to_owned(),
        message: error.to_string(),
    };
    let path = std::path::Path::new(btf::VMLINUX);
    let bytes = fs::read(path).map_err(KernelError::path("cannot read", path))?;
    let damaged = |why: &str| KernelError::Damaged { path: path.to_owned(), why: why.to_owned() };
    let btf = Btf::new(&bytes).ok_or_else(|| damaged("no type information of this machine's kind"))?;

    let mut object = Object::parse(OBJECT).map_err(|error| failed(&error))?;
    // Where the kernel does not tell, no socket shows the sign: a mask of nothing never gives 1.
    let [offset, mask, value] = sign_of_bypass(&btf).unwrap_or([0, 0, 1]).map(u64::to_ne_bytes);
    let sk = btf.offset("socket", &["sk"]).map(u64::from).ok_or_else(|| damaged("struct socket has no sk"))?;
    let sk = sk.to_ne_bytes();
    // Of no use where the seal of bpf(2) is not wanted; where it is, all were found.
    let places =
        OFFSETS_OF_BPF.map(|(name, of, path)| (name, u64::from(btf.offset(of, path).unwrap_or(0)).to_ne_bytes()));
    let (hz, features) = (settings.hz.to_ne_bytes(), settings.offers.bits().to_ne_bytes());
    let globals: HashMap<&str, (&[u8], bool)> = [
        ("HZ", &hz[..]),
        ("FEATURES", &features),
        ("BYPASS_OFFSET", &offset),
        ("BYPASS_MASK", &mask),
        ("BYPASS_VALUE", &value),
        ("SOCKET_SK", &sk),
    ]
    .into_iter()
    .chain(places.iter().map(|(name, bytes)| (*name, &bytes[..])))
    .map(|(name, bytes)| (name, (bytes, true)))
    .collect();
    object.patch_map_data(globals).map_err(|error| failed(&error))?;

    // Taken out, since the object is changed by what they tell.
    let maps = std::mem::take(&mut object.maps);
    let mut held = Vec::new();
    for (name, map) in &maps {
        held.push((name.as_str(), map_for(pins, name, map)?, map));
    }
    let text = object.functions.keys().map(|(section, _)| *section).collect();
    let of_maps = held.iter().map(|(name, fd, map)| (*name, fd.as_raw_fd(), *map));
    object.relocate_maps(of_maps, &text).map_err(|error| failed(&error))?;
    object.relocate_calls(&text).map_err(|error| failed(&error))?;

    for (name, function) in wanted {
        let what = || KernelError::call(format!("the kernel refused guard's program {name} (fmod_ret {function})"));
        let missing = || damaged(&format!("no function {function}"));
        let id = btf.find(btf::FUNC, function).ok_or_else(missing)?.id;
        let program = object.programs.get(*name).and_then(|program| object.functions.get(&program.function_key()));
        let program = program.ok_or_else(|| KernelError::Load {
            what: format!("the program {name}"),
            message: "guard's own object has it not".to_owned(),
        })?;
        let loaded = sys::load_at_function(name, id, &program.instructions, &object.license).map_err(what())?;
        programs.insert((*name).to_owned(), loaded);
    }
    Ok(programs)
}

/// The pinned map of that name; the object's constants, which are not pinned, in a map of these programs' own.
fn map_for(pins: &Pins, name: &str, map: &aya_obj::Map) -> Result<OwnedFd, KernelError> {
    if map.section_kind() == EbpfSectionKind::Undefined || !name.starts_with('.') {
        let path = pins.map(name);
        return sys::pinned(&path)
            .map_err(KernelError::path("cannot open", &path))?
            .ok_or_else(|| KernelError::Damaged { path, why: "the map is not pinned there".to_owned() });
    }
    let failed = || KernelError::call(format!("cannot make the map {name}"));
    let constant = map.section_kind() == EbpfSectionKind::Rodata;
    let flags = if constant { F_RDONLY_PROG } else { 0 };
    let made = sys::map_create("guard_constants", MAP_TYPE_ARRAY, map.value_size(), 1, flags, None).map_err(failed())?;
    sys::update_bytes(made.as_fd(), 0, map.data()).map_err(failed())?;
    if constant {
        // The verifier believes what nobody can change.
        sys::freeze(made.as_fd()).map_err(failed())?;
    }
    Ok(made)
}

/// Whose tasks are held from now on.
pub fn hold(map: BorrowedFd<'_>, settings: &Settings) -> Result<(), KernelError> {
    let cgroup = super::attach::open_cgroup(settings)?;
    sys::update(map, &0_u32, &(cgroup.as_raw_fd() as u32), sys::ANY)
        .map_err(KernelError::path("cannot tell the seal of the cgroup", &settings.cgroup))
}
