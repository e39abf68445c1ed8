//! What somebody else would do to guard's hooks: list, detach, get in front. By bpftool and plain `bpf()` calls.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{
    process::run,
    world::{Inside, mounts::BPFFS},
};

/// Pinned links of the world's BPF file system, by the names of their pins.
pub fn pinned_links(place: &Inside) -> Result<BTreeSet<String>> {
    let mut command = place.command("find");
    command.args([BPFFS, "-path", "*/links/*"]);
    let ended = run(&mut command, LIMIT)?;
    ensure!(ended.good(), "find: {}", ended.text());
    Ok(ended.stdout.lines().map(str::to_owned).collect())
}

/// As root could, at any time.
pub fn detach(place: &Inside, pin: &str) -> Result<()> {
    let mut command = place.command("bpftool");
    let ended = run(command.args(["link", "detach", "pinned", pin]), LIMIT)?;
    ensure!(ended.good(), "bpftool link detach pinned {pin}: {}", ended.text());
    Ok(())
}

/// Another program (`pass`) into a link that is there: in its place, with the link's pin and id as they were.
pub fn replace_in(place: &Inside, pin: &str) -> Result<()> {
    let mut command = place.command("bpftool");
    let ended = run(command.args(["-j", "link", "show", "pinned", pin]), LIMIT)?;
    ensure!(ended.good(), "bpftool link show pinned {pin}: {}", ended.text());
    let shown: serde_json::Value = serde_json::from_str(&ended.stdout)?;
    let shown = shown.get(0).unwrap_or(&shown);
    let id = shown["id"].as_u64().and_then(|id| u32::try_from(id).ok());
    let link = bpf(BPF_LINK_GET_FD_BY_ID, &[id.unwrap_or(0), 0, 0, 0])?;
    let program = load_pass()?;
    let update = [link.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
    // SAFETY: the kernel reads as many bytes as said.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw const update, size_of_val(&update)) };
    ensure!(result == 0, "link update: {}", io::Error::last_os_error());
    Ok(())
}

const LIMIT: Duration = Duration::from_secs(20);

const BPF_PROG_LOAD: i64 = 5;
const BPF_LINK_CREATE: i64 = 28;
const BPF_LINK_UPDATE: i64 = 29;
const BPF_LINK_GET_FD_BY_ID: i64 = 30;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;

/// A tc program of somebody else's that passes everything (TCX_PASS), in front of all others.
pub fn pass_in_front(place: &Inside, interface: u32, egress: bool) -> io::Result<OwnedFd> {
    place.run(|| {
        let program = load_pass()?;
        #[repr(C)]
        struct LinkCreate {
            program: u32,
            target: u32,
            attach_type: u32,
            flags: u32,
            relative: u32,
            reserved: u32,
            revision: u64,
        }
        let attach_type = if egress { BPF_TCX_EGRESS } else { BPF_TCX_INGRESS };
        let program = program.as_raw_fd() as u32;
        let create = LinkCreate {
            program,
            target: interface,
            attach_type,
            flags: BPF_F_BEFORE,
            relative: 0,
            reserved: 0,
            revision: 0,
        };
        bpf(BPF_LINK_CREATE, &create)
    })
}

/// Whether any program is attached at an interface's tcx hook, in this thread's network namespace.
pub fn any_at_tcx(interface: u32, egress: bool) -> io::Result<bool> {
    const BPF_PROG_QUERY: i64 = 16;
    #[repr(C)]
    struct Query {
        target: u32,
        attach_type: u32,
        flags: [u32; 2],
        programs: u64,
        count: u32,
        padding: u32,
        more: [u64; 4],
    }
    let mut programs = [0_u32; 8];
    let attach_type = if egress { BPF_TCX_EGRESS } else { BPF_TCX_INGRESS };
    let mut query = Query {
        target: interface,
        attach_type,
        flags: [0; 2],
        programs: programs.as_mut_ptr() as u64,
        count: 8,
        padding: 0,
        more: [0; 4],
    };
    // SAFETY: as many attributes as said, with room for as many programs as they say.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(query.count > 0) }
}

/// `r0 = 0; exit`.
fn load_pass() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct ProgLoad {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u64; 2],
        version: u32,
        flags: u32,
        name: [u8; 16],
    }
    let instructions: [u64; 2] = [0xb7, 0x95];
    let mut name = [0; 16];
    name[..8].copy_from_slice(b"somebody");
    let load = ProgLoad {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        count: 2,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 2],
        version: 0,
        flags: 0,
        name,
    };
    bpf(BPF_PROG_LOAD, &load)
}

fn bpf<T>(command: i64, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as said, of attributes whose pointers outlive the call; it hands back a
    // descriptor that is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>());
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}
