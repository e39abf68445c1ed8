//! The program that everything is measured above: it returns at once. Loaded by hand, since it has no object.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// `r0 = -1` (TCX_NEXT), `exit`: two instructions of `struct bpf_insn`.
const INSTRUCTIONS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x0000_0000_0000_0095];

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    rest: [u64; 14],
}

/// The same for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct Run {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u64; 12],
}

pub struct Empty(OwnedFd);

impl Empty {
    pub fn load() -> Result<Self> {
        let mut attr = Load {
            prog_type: BPF_PROG_TYPE_SCHED_CLS,
            insn_cnt: INSTRUCTIONS.len() as u32,
            insns: INSTRUCTIONS.as_ptr() as u64,
            license: c"Dual MIT/GPL".as_ptr() as u64,
            ..Load::default()
        };
        let fd = bpf(BPF_PROG_LOAD, &mut attr).context("loading the empty program")?;
        // SAFETY: the kernel has just given us this descriptor; nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) }))
    }

    /// Nanoseconds a run.
    pub fn run(&self, packet: &[u8], repeat: u32) -> Result<f64> {
        let mut attr = Run {
            prog_fd: self.0.as_raw_fd() as u32,
            data_size_in: packet.len() as u32,
            data_in: packet.as_ptr() as u64,
            repeat,
            ..Run::default()
        };
        bpf(BPF_PROG_TEST_RUN, &mut attr).context("running the empty program")?;
        Ok(f64::from(attr.duration))
    }
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is as long as stated, and what it points at is borrowed by the caller until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
