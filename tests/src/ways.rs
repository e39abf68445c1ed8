//! The ways to ask the kernel for something: by a native system call, by a 32-bit one, by io_uring. What judges one way
//! may not judge another.

use std::{
    io,
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicU32, Ordering},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Native,
    /// `int $0x80` of this 64-bit process. A kernel without 32-bit system calls ends the process by a signal.
    ThirtyTwoBit,
    IoUring,
}

impl Way {
    /// `native`, `int80` or `uring`.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "native" => Some(Self::Native),
            "int80" => Some(Self::ThirtyTwoBit),
            "uring" => Some(Self::IoUring),
            _ => None,
        }
    }

    /// `socket(2)`; io_uring: 5.19.
    pub fn socket(self, family: i32, kind: i32, protocol: i32) -> io::Result<i32> {
        match self {
            // SAFETY: numbers only.
            Self::Native => done(unsafe { libc::socket(family, kind, protocol) }),
            Self::ThirtyTwoBit => int80(359, [family as u32, kind as u32, protocol as u32, 0, 0]),
            Self::IoUring => {
                let mut entry = [0_u8; 64];
                entry[0] = 45; // IORING_OP_SOCKET: domain, type and protocol in place of descriptor, offset and length.
                entry[4..8].copy_from_slice(&family.to_ne_bytes());
                entry[8..16].copy_from_slice(&(kind as u64).to_ne_bytes());
                entry[24..28].copy_from_slice(&protocol.to_ne_bytes());
                uring(&entry)
            }
        }
    }

    /// `setsockopt(2)`; io_uring: 6.7.
    pub fn set_option(self, socket: i32, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
        let low = Low::new(value)?;
        let length = value.len() as u32;
        match self {
            Self::Native => {
                // SAFETY: the value is as long as said.
                done(unsafe { libc::setsockopt(socket, level, name, low.0.as_ptr().cast(), length) })
            }
            Self::ThirtyTwoBit => int80(366, [socket as u32, level as u32, name as u32, low.0.as_ptr() as u32, length]),
            Self::IoUring => {
                let mut entry = [0_u8; 64];
                entry[0] = 46; // IORING_OP_URING_CMD
                entry[4..8].copy_from_slice(&socket.to_ne_bytes());
                entry[8..12].copy_from_slice(&3_u32.to_ne_bytes()); // SOCKET_URING_OP_SETSOCKOPT
                entry[16..20].copy_from_slice(&level.to_ne_bytes());
                entry[20..24].copy_from_slice(&name.to_ne_bytes());
                entry[44..48].copy_from_slice(&length.to_ne_bytes());
                entry[48..56].copy_from_slice(&(low.0.as_ptr() as u64).to_ne_bytes());
                uring(&entry)
            }
        }
        .map(drop)
    }
}

fn done(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

const PAGE: usize = 4096;

/// A page that 32-bit pointers reach, with a value at its start.
struct Low(NonNull<u8>);

impl Low {
    fn new(value: &[u8]) -> io::Result<Self> {
        assert!(value.len() <= PAGE, "one page");
        #[cfg(target_arch = "x86_64")]
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        #[cfg(not(target_arch = "x86_64"))]
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let low = map(PAGE, flags, -1, 0).map(Self)?;
        // SAFETY: a fresh page, longer than the value.
        unsafe { low.0.copy_from_nonoverlapping(NonNull::from(value).cast(), value.len()) };
        Ok(low)
    }
}

impl Drop for Low {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and borrowed by nobody.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

fn map(length: usize, flags: i32, file: i32, offset: i64) -> io::Result<NonNull<u8>> {
    // SAFETY: asks for a new mapping, which overlaps nothing.
    let at = unsafe { libc::mmap(null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, file, offset) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

#[cfg(target_arch = "x86_64")]
fn int80(number: u32, [a, b, c, d, e]: [u32; 5]) -> io::Result<i32> {
    let result: i32;
    // SAFETY: a system call; what its arguments point at lives until it returns (each caller's borrow). rbx, the first
    // argument's register, is LLVM's own, so that it is exchanged and put back; the kernel may change r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg rbx, r12",
            "int 0x80",
            "xchg rbx, r12",
            inlateout("eax") number => result,
            inout("r12") u64::from(a) => _,
            in("ecx") b,
            in("edx") c,
            in("esi") d,
            in("edi") e,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

#[cfg(not(target_arch = "x86_64"))]
fn int80(_: u32, _: [u32; 5]) -> io::Result<i32> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

/// `struct io_uring_params`, as words: of the offsets only those that are needed have names below.
type Params = [u32; 30];

/// Submits one entry to a ring of its own; its result.
fn uring(entry: &[u8; 64]) -> io::Result<i32> {
    const SQES: i64 = 0x1000_0000;
    const GETEVENTS: u32 = 1;
    let mut params: Params = [0; 30];
    // SAFETY: `params` is as long as the kernel's struct (120 bytes).
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1_u32, params.as_mut_ptr()) };
    let ring = done(ring as i32)?;
    // Words of struct io_uring_params: 2 flags... 5 features; 10 submission queue's offsets, 20 the completion queue's.
    let sq = |word: usize| params[10 + word] as usize;
    let cq = |word: usize| params[20 + word] as usize;
    // head, tail, mask, entries, flags, dropped, array; head, tail, mask, entries, overflow, entries' own place.
    let (sq_tail, sq_array, cq_tail, cq_cqes) = (sq(1), sq(6), cq(1), cq(5));
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
    // Both queues in one mapping (5.4).
    let queues = map(PAGE, flags, ring, 0)?;
    let entries = map(PAGE, flags, ring, SQES)?;
    // SAFETY: offsets that the kernel gave, inside what was mapped; nobody else uses this ring.
    unsafe {
        entries.copy_from_nonoverlapping(NonNull::from(entry).cast(), entry.len());
        queues.add(sq_array).cast::<u32>().write(0);
        AtomicU32::from_ptr(queues.add(sq_tail).cast().as_ptr()).store(1, Ordering::Release);
    }
    // SAFETY: numbers, and no signal mask.
    let entered =
        unsafe { libc::syscall(libc::SYS_io_uring_enter, ring, 1_u32, 1_u32, GETEVENTS, null_mut::<u8>(), 0) };
    let result = done(entered as i32).and_then(|_| {
        // SAFETY: as above; a completion is user data (8 bytes), then its result.
        unsafe {
            if AtomicU32::from_ptr(queues.add(cq_tail).cast().as_ptr()).load(Ordering::Acquire) == 0 {
                return Err(io::Error::from(io::ErrorKind::WouldBlock));
            }
            let result = queues.add(cq_cqes + 8).cast::<i32>().read();
            if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
        }
    });
    // SAFETY: ours, and used no more.
    unsafe {
        libc::munmap(queues.as_ptr().cast(), PAGE);
        libc::munmap(entries.as_ptr().cast(), PAGE);
        libc::close(ring);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_sets_an_option_that_nobody_guards() {
        let socket = Way::Native.socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        let priority = |way: Way, value: i32| -> io::Result<i32> {
            way.set_option(socket, libc::SOL_SOCKET, libc::SO_PRIORITY, &value.to_ne_bytes())?;
            let (mut now, mut length) = (0_i32, 4);
            let (now_at, length_at) = ((&raw mut now).cast(), &raw mut length);
            // SAFETY: both pointers are to values that outlive the call.
            done(unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PRIORITY, now_at, length_at) })?;
            Ok(now)
        };
        assert_eq!(priority(Way::Native, 3).unwrap(), 3);
        match priority(Way::IoUring, 4) {
            Ok(now) => assert_eq!(now, 4),
            Err(error) => println!("no setsockopt by io_uring here: {error}"),
        }
        // SAFETY: made above.
        unsafe { libc::close(socket) };
    }
}
