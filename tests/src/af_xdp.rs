//! An AF_XDP socket that really sends (Documentation/networking/af_xdp.rst), with one frame in its memory.

use std::{
    io,
    mem::size_of_val,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicU32, Ordering},
};

const SOL_XDP: i32 = 283;
const XDP_MMAP_OFFSETS: i32 = 1;
const XDP_TX_RING: i32 = 3;
const XDP_UMEM_REG: i32 = 4;
const XDP_UMEM_FILL_RING: i32 = 5;
const XDP_UMEM_COMPLETION_RING: i32 = 6;
const XDP_COPY: u16 = 2;
const TX_RING: i64 = 0x8000_0000;
const COMPLETION_RING: i64 = 0x1_8000_0000;

const FRAME: usize = 4096;
const FRAMES: usize = 4;

/// Sends a frame past everything that looks at what leaves. Needs no program, and no more of the driver than any has.
pub fn send(interface: u32, frame: &[u8]) -> io::Result<()> {
    Sender::new(interface, frame)?.send()
}

/// The socket, ready to send its frame again and again.
pub struct Sender {
    socket: OwnedFd,
    /// Producer and consumer of a ring, and its descriptors.
    transmit: [NonNull<u8>; 3],
    completion: [NonNull<u8>; 3],
    length: usize,
    memory: NonNull<u8>,
}

impl Sender {
    /// Another frame.
    pub fn send_this(&mut self, frame: &[u8]) -> io::Result<()> {
        assert!(frame.len() <= FRAME, "one frame");
        // SAFETY: the socket's memory, which lives as long as the process, is longer than the frame.
        unsafe { self.memory.copy_from_nonoverlapping(NonNull::from(frame).cast(), frame.len()) };
        self.length = frame.len();
        self.send()
    }

    /// One more time. What was sent before is taken back first: the rings are short.
    pub fn send(&self) -> io::Result<()> {
        // SAFETY: inside the mappings, by the kernel's own offsets, which live as long as the process. The descriptor: where,
        // how long, options.
        unsafe {
            let cell = |at: NonNull<u8>| AtomicU32::from_ptr(at.cast().as_ptr());
            let [completed, taken, _] = self.completion;
            cell(taken).store(cell(completed).load(Ordering::Acquire), Ordering::Release);
            let [producer, _, descriptors] = self.transmit;
            let number = cell(producer).load(Ordering::Relaxed);
            descriptors.cast::<[u64; 2]>().add(number as usize % FRAMES).write([0, self.length as u64]);
            cell(producer).store(number.wrapping_add(1), Ordering::Release);
        }
        let raw = self.socket.as_raw_fd();
        // SAFETY: no buffer: what is in the ring is sent.
        done(unsafe { libc::sendto(raw, null_mut(), 0, libc::MSG_DONTWAIT, null_mut(), 0) } as i32).map(drop)
    }

    pub fn new(interface: u32, frame: &[u8]) -> io::Result<Self> {
        prepare(interface, frame)
    }
}

fn prepare(interface: u32, frame: &[u8]) -> io::Result<Sender> {
    assert!(frame.len() <= FRAME, "one frame");
    // SAFETY: numbers only.
    let raw = done(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just made.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let memory = map(FRAME * FRAMES, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
    // SAFETY: fresh memory, longer than the frame.
    unsafe { memory.copy_from_nonoverlapping(NonNull::from(frame).cast(), frame.len()) };
    // struct xdp_umem_reg: address, length, chunk's size and headroom, flags.
    set(&socket, XDP_UMEM_REG, &[memory.as_ptr() as u64, (FRAME * FRAMES) as u64, FRAME as u64, 0])?;
    for ring in [XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_TX_RING] {
        set(&socket, ring, &(FRAMES as u32))?;
    }
    // Of each ring (receive, transmit, fill, completion): producer, consumer, descriptors, flags.
    let (mut offsets, mut length) = ([0_u64; 16], 128);
    let (offsets_at, length_at) = (offsets.as_mut_ptr().cast(), &raw mut length);
    // SAFETY: room for the whole struct, as `length` says.
    done(unsafe { libc::getsockopt(raw, SOL_XDP, XDP_MMAP_OFFSETS, offsets_at, length_at) })?;
    let ring = |at: usize, entry: usize, place: i64| {
        let [producer, consumer, descriptors, _] = [0, 1, 2, 3].map(|field| offsets[at * 4 + field] as usize);
        let ring = map(descriptors + FRAMES * entry, libc::MAP_SHARED | libc::MAP_POPULATE, raw, place)?;
        // SAFETY: within the mapping, which is as long as the kernel's own offsets say.
        Ok::<_, io::Error>([producer, consumer, descriptors].map(|offset| unsafe { ring.add(offset) }))
    };
    let (transmit, completion) = (ring(1, 16, TX_RING)?, ring(3, 8, COMPLETION_RING)?);
    // struct sockaddr_xdp: family and flags, interface, queue, whose memory.
    let address = [libc::AF_XDP as u32 | u32::from(XDP_COPY) << 16, interface, 0, 0];
    // SAFETY: as long as said.
    done(unsafe { libc::bind(raw, address.as_ptr().cast(), size_of_val(&address) as u32) })?;
    Ok(Sender { socket, transmit, completion, length: frame.len(), memory })
}

fn set<T>(socket: &OwnedFd, name: i32, value: &T) -> io::Result<()> {
    let value_at = std::ptr::from_ref(value).cast();
    // SAFETY: the value is as long as said.
    done(unsafe { libc::setsockopt(socket.as_raw_fd(), SOL_XDP, name, value_at, size_of_val(value) as u32) }).map(drop)
}

fn done(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Left to the process's end, as the socket's memory must outlive what is under way.
fn map(length: usize, flags: i32, file: i32, offset: i64) -> io::Result<NonNull<u8>> {
    // SAFETY: asks for a new mapping, which overlaps nothing.
    let at = unsafe { libc::mmap(null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, file, offset) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}
