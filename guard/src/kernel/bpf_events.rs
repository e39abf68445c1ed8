//! Which BPF programs are loaded on this machine, and by whom, told by the kernel (`PERF_RECORD_BPF_EVENT`, 5.1): also of one
//! that is gone again before anybody could list it. Of the whole machine, whatever namespace its loader is in.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

/// Pages of data a CPU, a power of two: room for some 800 events between two looks.
const PAGES: usize = 8;

/// One program, as it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub id: u32,
    /// Hash of its instructions.
    pub tag: [u8; 8],
    /// Of the process that loaded it; 0: of a PID namespace that cannot be seen from here.
    pub pid: u32,
}

/// A ring a CPU.
#[derive(Debug)]
pub struct BpfEvents {
    rings: Vec<Ring>,
}

impl BpfEvents {
    /// Needs CAP_PERFMON or CAP_SYS_ADMIN, and a kernel with perf events.
    pub fn open() -> io::Result<Self> {
        // SAFETY: asks for a number.
        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) }.max(1);
        let mut rings = Vec::new();
        for cpu in 0..cpus {
            match Ring::open(cpu as i32) {
                Ok(ring) => rings.push(ring),
                // It is not switched on.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        if rings.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(Self { rings }) }
    }

    /// What was loaded since the last call, and how many events found no room.
    pub fn drain(&mut self) -> (Vec<Loaded>, u64) {
        let (mut loaded, mut lost) = (Vec::new(), 0);
        for ring in &mut self.rings {
            ring.drain(&mut |record| match record.first_chunk::<4>().map(|kind| u32::from_ne_bytes(*kind)) {
                Some(RECORD_LOST) => lost += number(record, 16).unwrap_or(1),
                Some(RECORD_BPF_EVENT) => loaded.extend(program(record)),
                _ => {}
            });
        }
        (loaded, lost)
    }
}

const RECORD_LOST: u32 = 2;
const RECORD_BPF_EVENT: u32 = 18;
const PROG_LOAD: u16 = 1;

/// After the header of 8 bytes: event, flags, id, tag; then, as asked for, process, thread and time.
fn program(record: &[u8]) -> Option<Loaded> {
    let word = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let event = record.get(8..10)?.try_into().ok().map(u16::from_ne_bytes)?;
    let tag = record.get(16..24)?.try_into().ok()?;
    (event == PROG_LOAD).then_some(Loaded { id: word(12)?, tag, pid: word(24).filter(|pid| *pid != u32::MAX)? })
}

fn number(record: &[u8], at: usize) -> Option<u64> {
    record.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes)
}

#[derive(Debug)]
struct Ring {
    start: NonNull<u8>,
    page: usize,
    /// Closed after the mapping.
    _fd: OwnedFd,
}

// SAFETY: the mapping belongs to the ring alone, wherever it is used from.
unsafe impl Send for Ring {}

impl Ring {
    fn open(cpu: i32) -> io::Result<Self> {
        // struct perf_event_attr (linux/perf_event.h), whose layout never changes.
        const SIZE: u32 = 112;
        const SOFTWARE: u64 = 1;
        const DUMMY: u64 = 9;
        const SAMPLE_TID_TIME: u64 = 1 << 1 | 1 << 2;
        const SAMPLE_ID_ALL: u64 = 1 << 18;
        const BPF_EVENT: u64 = 1 << 30;
        const FD_CLOEXEC: u64 = 1 << 3;
        let mut attr = [0_u64; SIZE as usize / 8];
        attr[0] = SOFTWARE | u64::from(SIZE) << 32;
        attr[1] = DUMMY;
        attr[3] = SAMPLE_TID_TIME;
        attr[5] = SAMPLE_ID_ALL | BPF_EVENT;
        // SAFETY: the kernel reads as many bytes as the attributes say they have.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), -1, cpu, -1, FD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given this descriptor to us; nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        // SAFETY: asks for a new mapping, which overlaps nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                page * (1 + PAGES),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                std::os::fd::AsRawFd::as_raw_fd(&fd),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { start, page, _fd: fd })
    }

    /// `data_head` (1024) and `data_tail` (1032) of struct perf_event_mmap_page.
    fn cell(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: within the first page, aligned by 8; the kernel writes the one and reads the other in single words.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    fn drain(&mut self, each: &mut dyn FnMut(&[u8])) {
        let size = PAGES * self.page;
        let head = self.cell(1024).load(Ordering::Acquire);
        let tail = self.cell(1032).load(Ordering::Relaxed);
        let length = usize::try_from(head.wrapping_sub(tail)).unwrap_or(usize::MAX).min(size);
        let at = (tail % size as u64) as usize;
        let mut bytes = vec![0_u8; length];
        let first = length.min(size - at);
        // SAFETY: both parts lie within the data pages, and the kernel writes nothing between tail and head until tail moves.
        unsafe {
            let data = self.start.as_ptr().add(self.page);
            std::ptr::copy_nonoverlapping(data.add(at), bytes.as_mut_ptr(), first);
            std::ptr::copy_nonoverlapping(data, bytes.as_mut_ptr().add(first), length - first);
        }
        self.cell(1032).store(head, Ordering::Release);
        let mut rest = &bytes[..];
        while let Some(size) = rest.get(6..8).and_then(|size| size.try_into().ok()).map(u16::from_ne_bytes) {
            let Some((record, more)) = rest.split_at_checked(usize::from(size).max(8)) else { break };
            each(record);
            rest = more;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: unmaps what `open` mapped; nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.page * (1 + PAGES)) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::kernel::sys;

    #[test]
    fn a_program_that_is_gone_at_once_is_told_with_its_loader() {
        let Ok(mut events) = BpfEvents::open() else { return };
        let exit = [(0xb7, 0, 0, 0), (0x95, 0, 0, 0)];
        let Ok(fd) = sys::load(3, 0, 0, &exit) else { return };
        let mine = sys::info_of_program(fd.as_fd()).unwrap();
        drop(fd);
        let (loaded, lost) = events.drain();
        assert!(
            loaded.contains(&Loaded { id: mine.id, tag: mine.tag, pid: std::process::id() }),
            "{loaded:?}, lost {lost}"
        );
        assert!(!events.drain().0.iter().any(|again| again.id == mine.id), "told once");
    }
}
