//! bpf(2) that fails: a program is run under a seccomp filter, and this process answers each of its bpf calls (seccomp(2),
//! `SECCOMP_RET_USER_NOTIF`), those of its children too. One of them gets an error; all others go on to the kernel.

use std::{
    io::{self, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::process::Process;

/// Which call fails, counted from 0 over all threads and children, and how.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub at: usize,
    pub errno: i32,
}

/// A program whose bpf calls are answered here. Dropped, what still runs of it gets ENOSYS from bpf(2).
#[derive(Debug)]
pub struct Faulty {
    pub process: Process,
    calls: Arc<Mutex<Vec<u32>>>,
    stop: Arc<AtomicBool>,
    answers: Option<JoinHandle<()>>,
}

impl Faulty {
    pub fn spawn(command: &mut Command, fault: Option<Fault>) -> Result<Self> {
        let (here, there) = UnixStream::pair()?;
        let told = there.as_raw_fd();
        // SAFETY: between fork and exec only system calls are made, on memory of this closure's own.
        unsafe {
            command.pre_exec(move || hand(told, &listen()?));
        }
        let process = Process::spawn(command).context("under a seccomp filter")?;
        drop(there);
        let listener = receive(&here)?;
        let (calls, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (own_calls, own_stop) = (Arc::clone(&calls), Arc::clone(&stop));
        let answers = thread::spawn(move || answer(&listener, fault, &own_calls, &own_stop));
        Ok(Self { process, calls, stop, answers: Some(answers) })
    }

    /// Commands of the bpf calls so far (`enum bpf_cmd`), in their order.
    #[must_use]
    pub fn calls(&self) -> Vec<u32> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(answers) = self.answers.take() {
            let _ = answers.join();
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    nr: i32,
    arch: u32,
    instruction: u64,
    arguments: [u64; 6],
}

#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const _: () = assert!(size_of::<Notification>() == 80 && size_of::<Response>() == 24);

/// `_IOWR('!', 0, struct seccomp_notif)`, `_IOWR('!', 1, struct seccomp_notif_resp)` (linux/seccomp.h).
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const CONTINUE: u32 = 1;

/// A filter that asks its listener about bpf(2), and lets all else pass. In the child.
fn listen() -> io::Result<OwnedFd> {
    const X86_64: u32 = 0xc000_003e;
    const NEW_LISTENER: libc::c_ulong = 1 << 3;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut steps = [
        step(load, 0, 0, 4),
        step(equal, 0, 3, X86_64),
        step(load, 0, 0, 0),
        step(equal, 0, 1, libc::SYS_bpf as u32),
        step(libc::BPF_RET, 0, 0, 0x7fc0_0000),
        step(libc::BPF_RET, 0, 0, 0x7fff_0000),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the program and its steps live through the call, which copies them; the descriptor is new.
    unsafe {
        let listener = libc::syscall(libc::SYS_seccomp, 1, NEW_LISTENER, &raw const program);
        if listener < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(listener as i32)) }
    }
}

/// Room for one descriptor, aligned as a control message has to be.
#[repr(C, align(8))]
struct Control([u8; 24]);

/// One byte with a descriptor beside it (unix(7), `SCM_RIGHTS`). In the child.
fn hand(to: RawFd, descriptor: &OwnedFd) -> io::Result<()> {
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = Control([0; 24]);
    // SAFETY: integers and pointers, of which zero is one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: the control message's header and one number fit in its 24 bytes; all of it lives through the call.
    let sent = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(descriptor.as_raw_fd());
        libc::sendmsg(to, &raw const message, 0)
    };
    if sent == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn receive(from: &UnixStream) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part
            && let [descriptor] = descriptors[..]
        {
            // SAFETY: the kernel has just made it for this process, and nobody else has its number.
            return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    anyhow::bail!("no descriptor came")
}

/// Answers until nobody is left who could ask, or it is told to stop.
fn answer(listener: &OwnedFd, fault: Option<Fault>, calls: &Mutex<Vec<u32>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut wait = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives through the call.
        let ready = unsafe { libc::poll(&raw mut wait, 1, 50) };
        if ready <= 0 {
            continue;
        }
        if wait.revents & libc::POLLIN == 0 {
            // Nobody is left.
            return;
        }
        let mut asked = Notification::default();
        // SAFETY: as large as the kernel writes, and zero, as it wants it.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut asked) } != 0 {
            // Who asked has been killed.
            continue;
        }
        let at = {
            let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
            calls.push(asked.arguments[0] as u32);
            calls.len() - 1
        };
        let (error, flags) = match fault {
            Some(fault) if fault.at == at => (-fault.errno, 0),
            _ => (0, CONTINUE),
        };
        let response = Response { id: asked.id, value: 0, error, flags };
        // SAFETY: as large as the kernel reads. It fails where who asked has been killed.
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw const response) };
    }
}
