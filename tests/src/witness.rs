//! A capture outside the guarded host: what it sees has really left, whatever guard says of it.

use std::{
    io,
    mem::zeroed,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{frame::Packet, world::Namespace};

/// Captures from [`Witness::start`] until it is dropped.
#[derive(Debug)]
pub struct Witness {
    socket: OwnedFd,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

/// One frame.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Sent by the namespace that the witness sits in; else it came in there.
    pub outgoing: bool,
    pub at: Instant,
    pub frame: Vec<u8>,
}

impl Seen {
    #[must_use]
    pub fn packet(&self) -> Option<Packet> {
        Packet::parse(&self.frame)
    }
}

impl Witness {
    pub fn start(namespace: &Namespace, interface: &str) -> io::Result<Self> {
        let index = namespace.interface_index(interface);
        let socket = namespace.run(|| packet_socket(index))?;
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let reader = {
            let (seen, stop, raw) = (Arc::clone(&seen), Arc::clone(&stop), socket.as_raw_fd());
            // The descriptor outlives the thread: `drop` waits for it.
            thread::spawn(move || read(raw, &seen, &stop))
        };
        Ok(Self { socket, seen, stop, reader: Some(reader) })
    }

    /// How many IP packets that came in (left the server, where the witness sits on [`World::WIRE`]) match.
    ///
    /// [`World::WIRE`]: crate::world::World::WIRE
    #[must_use]
    pub fn count(&self, wanted: impl Fn(&Packet) -> bool) -> usize {
        self.frames(|seen| !seen.outgoing && seen.packet().is_some_and(|packet| wanted(&packet))).len()
    }

    /// The same for what went out: towards the server.
    #[must_use]
    pub fn count_towards(&self, wanted: impl Fn(&Packet) -> bool) -> usize {
        self.frames(|seen| seen.outgoing && seen.packet().is_some_and(|packet| wanted(&packet))).len()
    }

    #[must_use]
    pub fn frames(&self, wanted: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|seen| wanted(seen)).cloned().collect()
    }

    /// Waits until at least one packet that left matches.
    #[must_use]
    pub fn waits_for(&self, limit: Duration, wanted: impl Fn(&Packet) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        while self.count(&wanted) == 0 {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// All frames so far as a pcap file (version 2.4, Ethernet), for other programs to read.
    pub fn write_pcap(&self, path: &Path) -> io::Result<()> {
        let mut file: Vec<u8> = Vec::new();
        for word in [0xa1b2_c3d4_u32, 2 | 4 << 16, 0, 0, 1 << 17, 1] {
            file.extend(word.to_ne_bytes());
        }
        for seen in self.frames(|_| true) {
            let length = seen.frame.len() as u32;
            for word in [0, 0, length, length] {
                file.extend(word.to_ne_bytes());
            }
            file.extend(&seen.frame);
        }
        std::fs::write(path, file)
    }

    pub fn forget(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Frames that the kernel could not hand over, since the last call: a witness that lost something proves nothing.
    pub fn lost(&self) -> io::Result<u32> {
        #[repr(C)]
        struct Statistics {
            packets: u32,
            drops: u32,
        }
        let mut statistics = Statistics { packets: 0, drops: 0 };
        let mut length = size_of::<Statistics>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes of a struct that is ours.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics.drops) }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // It does not panic.
            let _ = reader.join();
        }
    }
}

/// Sends one frame as it is, past the namespace's own IP stack (but through its qdisc layer).
pub fn send_frame(namespace: &Namespace, interface: &str, frame: &[u8]) -> io::Result<()> {
    let index = namespace.interface_index(interface);
    let socket = namespace.run(|| packet_socket(index))?;
    // SAFETY: the buffer is `frame.len()` bytes long.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The same for many, at most `rate` a second.
pub fn send_frames(
    namespace: &Namespace,
    interface: &str,
    rate: u32,
    frames: impl Iterator<Item = Vec<u8>>,
) -> io::Result<()> {
    let index = namespace.interface_index(interface);
    let socket = namespace.run(|| packet_socket(index))?;
    let start = Instant::now();
    for (number, frame) in (1u32..).zip(frames) {
        // SAFETY: the buffer is `frame.len()` bytes long.
        let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let due = Duration::from_secs(1) * number / rate;
        if number % 64 == 0 && due > start.elapsed() {
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    Ok(())
}

/// A raw packet socket of every protocol, bound to one interface of the thread's own namespace.
pub fn packet_socket(index: u32) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain system calls on a descriptor that is ours, with structs and lengths that belong together.
    unsafe {
        // Protocol 0: it hears nothing until it is bound.
        let raw = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(raw);
        let size: libc::c_int = 64 << 20;
        let set = libc::setsockopt(
            raw,
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut address: libc::sockaddr_ll = zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        if libc::bind(raw, (&raw const address).cast(), length) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

fn read(raw: i32, seen: &Mutex<Vec<Seen>>, stop: &AtomicBool) {
    // Frames are larger than the MTU where segmentation is left to the (virtual) device.
    let mut buffer = vec![0u8; 1 << 17];
    while !stop.load(Ordering::Relaxed) {
        let mut poll = libc::pollfd { fd: raw, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        if unsafe { libc::poll(&raw mut poll, 1, 20) } <= 0 {
            continue;
        }
        loop {
            // SAFETY: a struct of integers.
            let mut from: libc::sockaddr_ll = unsafe { zeroed() };
            let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: buffer and address are ours and as long as said.
            let got = unsafe {
                libc::recvfrom(
                    raw,
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                    (&raw mut from).cast(),
                    &raw mut length,
                )
            };
            let Ok(got) = usize::try_from(got) else { break };
            let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
            let frame = buffer[..got].to_vec();
            let one = Seen { outgoing, at: Instant::now(), frame };
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(one);
        }
    }
}
