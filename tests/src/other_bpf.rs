//! `bpf(2)` as somebody who is not guard calls it: one call each, for the test agent. What it takes to make the call (a
//! program to point at) is of kinds that nobody refuses.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const MAP_LOOKUP_ELEM: i64 = 1;
const PROG_LOAD: i64 = 5;
const OBJ_GET: i64 = 7;
const PROG_TEST_RUN: i64 = 10;
const MAP_GET_FD_BY_ID: i64 = 14;
const OBJ_GET_INFO_BY_FD: i64 = 15;
const LINK_CREATE: i64 = 28;
const LINK_UPDATE: i64 = 29;
const LINK_DETACH: i64 = 34;
const SEAL_BPF_SHOW: i64 = guard_common::abi::SEAL_BPF_SHOW as i64;

const READ_ONLY: u32 = 1 << 3;
const SOCKET_FILTER: u32 = 1;
const XDP_HOOK: u32 = 37;

/// `r0 = 0; exit`.
const NOTHING: [u64; 2] = [0xb7, 0x95];

/// Attributes of a call, longer than any command's.
struct Attributes([u32; 36]);

impl Attributes {
    const fn new() -> Self {
        Self([0; 36])
    }

    fn half(mut self, offset: usize, value: u32) -> Self {
        self.0[offset / 4] = value;
        self
    }

    fn word(self, offset: usize, value: u64) -> Self {
        self.half(offset, value as u32).half(offset + 4, (value >> 32) as u32)
    }

    fn fd(self, offset: usize, fd: &OwnedFd) -> Self {
        self.half(offset, fd.as_raw_fd() as u32)
    }

    fn call(&mut self, command: i64) -> io::Result<i32> {
        // SAFETY: the kernel reads and writes as many bytes as said; what the attributes point at outlives the call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size_of::<Self>()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
    }

    fn open(mut self, command: i64) -> io::Result<OwnedFd> {
        // SAFETY: the kernel hands out a descriptor that is ours.
        self.call(command).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// What the agent was asked: see `guard-test-agent`.
pub fn call(words: &[&str]) -> io::Result<()> {
    match *words {
        ["open", path, mode] => open(path, mode == "ro").map(drop),
        ["by-id", path, mode] => by_id(&open(path, true)?, mode == "ro").map(drop),
        ["over", path] => over(&open(path, true)?),
        ["load", kind] => load(number(kind), 0, 0, &NOTHING).map(drop),
        ["load-at", function] => load(26, 26, number(function), &NOTHING).map(drop),
        ["detach", path] => Attributes::new().fd(0, &open(path, false)?).call(LINK_DETACH).map(drop),
        ["update", path] => {
            let (link, program) = (open(path, false)?, filter()?);
            Attributes::new().fd(0, &link).fd(4, &program).call(LINK_UPDATE).map(drop)
        }
        // To no interface: what it says is whether the kernel came as far.
        ["attach"] => Attributes::new().fd(0, &filter()?).half(8, XDP_HOOK).call(LINK_CREATE).map(drop),
        ["run", flags] => {
            let (program, packet) = (filter()?, [0_u8; 64]);
            let run = Attributes::new().fd(0, &program).half(8, 64).word(16, packet.as_ptr() as u64);
            run.half(64, number(flags)).call(PROG_TEST_RUN).map(drop)
        }
        // As a reboot takes all away: where a seal stands, only guard may.
        ["forget", pins] => {
            let key = format!("{pins}/maps/SEAL_BPF");
            if std::path::Path::new(&key).exists() {
                // Without a seal nobody takes it, and nobody minds.
                let _ = show(&key);
            }
            match std::fs::remove_dir_all(pins) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        }
        ["show-and-load", path, kind] => {
            show(path)?;
            load(number(kind), 0, 0, &NOTHING).map(drop)
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "see other_bpf.rs for what may be asked")),
    }
}

fn number(text: &str) -> u32 {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn open(path: &str, read_only: bool) -> io::Result<OwnedFd> {
    let path = CString::new(path)?;
    let flags = if read_only { READ_ONLY } else { 0 };
    Attributes::new().word(0, path.as_ptr() as u64).half(12, flags).open(OBJ_GET)
}

fn by_id(map: &OwnedFd, read_only: bool) -> io::Result<OwnedFd> {
    let mut info = [0_u32; 4];
    Attributes::new().fd(0, map).half(4, 16).word(8, info.as_mut_ptr() as u64).call(OBJ_GET_INFO_BY_FD)?;
    Attributes::new().half(0, info[1]).half(8, if read_only { READ_ONLY } else { 0 }).open(MAP_GET_FD_BY_ID)
}

fn load(kind: u32, expected: u32, function: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    Attributes::new()
        .half(0, kind)
        .half(4, instructions.len() as u32)
        .word(8, instructions.as_ptr() as u64)
        .word(16, license.as_ptr() as u64)
        .half(68, expected)
        .half(108, function)
        .open(PROG_LOAD)
}

fn filter() -> io::Result<OwnedFd> {
    load(SOCKET_FILTER, 0, 0, &NOTHING)
}

/// A program of a kind that nobody minds, with a map: it could write to it.
fn over(map: &OwnedFd) -> io::Result<()> {
    // r1 = map, by its descriptor: an instruction of two words.
    let first = 0x18 | 1 << 8 | 1 << 12 | u64::from(map.as_raw_fd() as u32) << 32;
    load(SOCKET_FILTER, 0, 0, &[first, 0, NOTHING[0], NOTHING[1]]).map(drop)
}

/// As one who has studied guard: reads the key, which root may, and shows it.
fn show(path: &str) -> io::Result<()> {
    let map = open(path, true)?;
    let (key, mut seal) = (0_u32, [0_u64; 3]);
    let mut look = Attributes::new().fd(0, &map).word(8, (&raw const key) as u64);
    look = look.word(16, seal.as_mut_ptr() as u64);
    look.call(MAP_LOOKUP_ELEM)?;
    let taken = Attributes::new().word(0, seal[0]).word(8, seal[1]).call(SEAL_BPF_SHOW);
    match taken {
        Err(error) if error.raw_os_error() == Some(guard_common::abi::SEAL_BPF_TAKEN) => Ok(()),
        other => Err(io::Error::other(format!("the key was not taken: {other:?}"))),
    }
}
