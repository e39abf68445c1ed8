//! Raw `bpf(2)`: what aya does not offer (batches, freezing, maps in memory, queries, links of every kind alike).
//!
//! Each call names the kernel that first knew it. Attributes are written by offset into `union bpf_attr`
//! (include/uapi/linux/bpf.h), whose layout never changes.

mod info;
mod map;

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use guard_common::abi;
pub use info::*;
pub use map::*;

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_TEST_RUN: libc::c_int = 10;
const PROG_GET_NEXT_ID: libc::c_int = 11;
const MAP_GET_NEXT_ID: libc::c_int = 12;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const MAP_GET_FD_BY_ID: libc::c_int = 14;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const MAP_FREEZE: libc::c_int = 22;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_GET_FD_BY_ID: libc::c_int = 30;
const LINK_GET_NEXT_ID: libc::c_int = 31;
const LINK_DETACH: libc::c_int = 34;

pub const MAP_TYPE_ARRAY: u32 = 2;
pub const MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

pub const F_RDONLY_PROG: u32 = 1 << 7;
pub const F_MMAPABLE: u32 = 1 << 10;
pub const F_INNER_MAP: u32 = 1 << 12;

/// Flags of an update.
pub const ANY: u64 = 0;
pub const NOEXIST: u64 = 1;
pub const EXIST: u64 = 2;

/// `BPF_F_BEFORE` without a relative: first in line (6.6).
pub const LINK_FIRST: u32 = 1 << 3;
/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE`.
pub const XDP_GENERIC: u32 = 1 << 1;
pub const XDP_NATIVE: u32 = 1 << 2;

/// `struct bpf_insn`: opcode, destination | source << 4, offset, immediate.
pub type Instruction = (u8, u8, i16, i32);

struct Attr([u64; 18]);

impl Attr {
    const fn new() -> Self {
        Self([0; 18])
    }

    fn u32(self, offset: usize, value: u32) -> Self {
        self.bytes(offset, &value.to_ne_bytes())
    }

    fn u64(mut self, offset: usize, value: u64) -> Self {
        self.0[offset / 8] = value;
        self
    }

    fn fd(self, offset: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(offset, fd.as_raw_fd() as u32)
    }

    fn pointer<T: ?Sized>(self, offset: usize, to: *const T) -> Self {
        self.u64(offset, to.cast::<u8>() as u64)
    }

    fn bytes(mut self, offset: usize, bytes: &[u8]) -> Self {
        for (at, byte) in (offset..).zip(bytes) {
            let mut word = self.0[at / 8].to_ne_bytes();
            word[at % 8] = *byte;
            self.0[at / 8] = u64::from_ne_bytes(word);
        }
        self
    }

    fn read_u32(&self, offset: usize) -> u32 {
        let word = self.0[offset / 8].to_ne_bytes();
        let at = offset % 8;
        u32::from_ne_bytes([word[at], word[at + 1], word[at + 2], word[at + 3]])
    }
}

/// Every pointer in `attr` must be to memory that the caller borrows until this returns, of the length that the
/// command takes; each caller below says why.
fn bpf(command: libc::c_int, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: `attr` is longer than any attribute of the commands used here and zero past what they set; the pointers
    // in it are as the comment above says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(&mut attr.0), size_of::<[u64; 18]>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn own(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just given this descriptor to us; nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn found(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(OBJ_PIN, &mut Attr::new().pointer(0, path.as_ptr()).fd(8, object)).map(drop)
}

/// `None`: nothing is pinned there.
pub fn pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    match bpf(OBJ_GET, &mut Attr::new().pointer(0, path.as_ptr())) {
        Ok(fd) => Ok(Some(own(fd))),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A map that is pinned there, to read only (4.15). `None`: nothing is pinned there.
pub fn pinned_to_read(path: &Path) -> io::Result<Option<OwnedFd>> {
    const READ_ONLY: u32 = 1 << 3;
    let path = CString::new(path.as_os_str().as_bytes())?;
    match bpf(OBJ_GET, &mut Attr::new().pointer(0, path.as_ptr()).u32(12, READ_ONLY)) {
        Ok(fd) => Ok(Some(own(fd))),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// No command of the kernel's, but one that the seal of `bpf(2)` waits for. Whether it took the key; without a seal the
/// kernel refuses.
pub fn show_key(key: [u64; 2]) -> bool {
    let result = bpf(abi::SEAL_BPF_SHOW as libc::c_int, &mut Attr::new().u64(0, key[0]).u64(8, key[1]));
    result.is_err_and(|error| error.raw_os_error() == Some(abi::SEAL_BPF_TAKEN))
}

pub fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf(MAP_GET_FD_BY_ID, &mut Attr::new().u32(0, id)).map(own)
}

pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf(PROG_GET_FD_BY_ID, &mut Attr::new().u32(0, id)).map(own)
}

/// The next id above `after`; `None`: that was the last.
pub fn next_id(kind: super::objects::Kind, after: u32) -> io::Result<Option<u32>> {
    use super::objects::Kind;
    let command = match kind {
        Kind::Program => PROG_GET_NEXT_ID,
        Kind::Map => MAP_GET_NEXT_ID,
        Kind::Link => LINK_GET_NEXT_ID,
    };
    let mut attr = Attr::new().u32(0, after);
    found(bpf(command, &mut attr)).map(|ok| ok.then(|| attr.read_u32(4)))
}

/// 5.8.
pub fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf(LINK_GET_FD_BY_ID, &mut Attr::new().u32(0, id)).map(own)
}

/// A program written by hand, for probing. `expected` is its attach type, where the kernel wants one.
pub fn load(kind: u32, expected: u32, btf_id: u32, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let words: Vec<u64> = instructions
        .iter()
        .map(|(code, registers, offset, immediate)| {
            let [o0, o1] = offset.to_ne_bytes();
            let [i0, i1, i2, i3] = immediate.to_ne_bytes();
            u64::from_ne_bytes([*code, *registers, o0, o1, i0, i1, i2, i3])
        })
        .collect();
    let mut attr = Attr::new()
        .u32(0, kind)
        .u32(4, words.len() as u32)
        .pointer(8, words.as_ptr())
        .pointer(16, c"GPL".as_ptr())
        .u32(68, expected)
        .u32(108, btf_id);
    bpf(PROG_LOAD, &mut attr).map(own)
}

const TRACING: u32 = 26;
/// `BPF_MODIFY_RETURN`: of programs at functions whose return value they may change.
pub const MODIFY_RETURN: u32 = 26;

/// A program that leaves the return value of a function as it is, for probing. `function`: its number in the kernel's BTF.
pub fn load_nothing_at(function: u32) -> io::Result<OwnedFd> {
    load(TRACING, MODIFY_RETURN, function, &[(0xb7, 0, 0, 0), (0x95, 0, 0, 0)])
}

/// A program of the object at a function of the kernel (5.7).
pub fn load_at_function(
    name: &str,
    function: u32,
    instructions: &[aya_obj::generated::bpf_insn],
    license: &CStr,
) -> io::Result<OwnedFd> {
    let mut attr = Attr::new()
        .u32(0, TRACING)
        .u32(4, instructions.len() as u32)
        .pointer(8, instructions.as_ptr())
        .pointer(16, license.as_ptr())
        .bytes(48, &name.as_bytes()[..name.len().min(15)])
        .u32(68, MODIFY_RETURN)
        .u32(108, function);
    let refused = match bpf(PROG_LOAD, &mut attr) {
        Ok(fd) => return Ok(own(fd)),
        Err(error) => error,
    };
    // Once more, for the verifier's reasons.
    let mut log = vec![0_u8; 1 << 20];
    attr = attr.u32(24, 1).u32(28, log.len() as u32).pointer(32, log.as_mut_ptr());
    match bpf(PROG_LOAD, &mut attr) {
        Ok(fd) => Ok(own(fd)),
        Err(_) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
            let said = String::from_utf8_lossy(&log[end.saturating_sub(1500)..end]).into_owned();
            Err(io::Error::new(refused.kind(), format!("{refused}: {said}")))
        }
    }
}

/// Attaches a program to the function that it was loaded for. The link cannot be updated or detached: it ends with its
/// last descriptor and pin.
pub fn attach_to_function(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    bpf(RAW_TRACEPOINT_OPEN, &mut Attr::new().fd(8, program)).map(own)
}

/// Attaches to a raw tracepoint (4.17), for as long as the descriptor is open.
pub fn raw_tracepoint(name: &str, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    bpf(RAW_TRACEPOINT_OPEN, &mut Attr::new().pointer(0, name.as_ptr()).fd(8, program)).map(own)
}

/// `BPF_PROG_TEST_RUN` over an empty Ethernet frame; what the program returned.
pub fn test_run(program: BorrowedFd<'_>) -> io::Result<u32> {
    let frame = [0_u8; 64];
    let mut attr = Attr::new().fd(0, program).u32(8, 64).pointer(16, frame.as_ptr()).u32(32, 1);
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok(attr.read_u32(4))
}

/// 5.7 for cgroups, 5.9 for XDP, 6.6 for tcx. `target`: a cgroup's descriptor or an interface's index.
pub fn link_create(program: BorrowedFd<'_>, target: u32, hook: u32, flags: u32) -> io::Result<OwnedFd> {
    bpf(LINK_CREATE, &mut Attr::new().fd(0, program).u32(4, target).u32(8, hook).u32(12, flags)).map(own)
}

/// Replaces the program in place: no packet sees a gap.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_UPDATE, &mut Attr::new().fd(0, link).fd(4, program)).map(drop)
}

/// 5.9.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut Attr::new().fd(0, link)).map(drop)
}

/// Ids of the programs at a hook, in the order in which they run.
pub fn query(target: u32, hook: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    loop {
        let mut attr = Attr::new().u32(0, target).u32(4, hook).pointer(16, ids.as_mut_ptr()).u32(24, ids.len() as u32);
        match bpf(PROG_QUERY, &mut attr) {
            Ok(_) => {
                ids.truncate(attr.read_u32(24) as usize);
                return Ok(ids);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => ids.resize(ids.len() * 4, 0),
            Err(error) => return Err(error),
        }
    }
}

/// `SO_NETNS_COOKIE` of this thread's network namespace (5.14).
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let (mut cookie, mut length) = (0_u64, 8);
    // SAFETY: both pointers are to values that outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// `CLOCK_BOOTTIME` in nanoseconds: the clock of deadlines and expiries.
#[must_use]
pub fn boot_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one struct. The clock exists since 2.6.39, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
