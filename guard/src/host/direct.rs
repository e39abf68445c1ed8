//! Sockets that speak to a device directly (AF_PACKET, AF_XDP), by the descriptors of those who hold them: whether they go
//! round the wire layer, and how they are made to stop.
//!
//! No list of the kernel's shows PACKET_QDISC_BYPASS, and many kernels list no AF_XDP socket at all: so each socket is taken
//! out of its holder's descriptors (pidfd_getfd, Linux 5.6) and asked. One that only an io_uring holds, or a message on its
//! way, is in nobody's descriptors.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, btree_map::Entry},
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::processes;

/// How long a process may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// `SIOCGSKNS` (linux/sockios.h): the network namespace of a socket, as a descriptor.
const SIOCGSKNS: libc::Ioctl = 0x894c;
/// `PIDFD_THREAD` (Linux 6.9): of a thread, not of its process.
const PIDFD_THREAD: libc::c_uint = libc::O_EXCL as libc::c_uint;
/// `KCMP_FILES` (linux/kcmp.h).
const KCMP_FILES: libc::c_int = 2;

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    pub inode: u32,
    /// AF_XDP; else AF_PACKET.
    pub xdp: bool,
    /// Inode of its network namespace; of its holder's, where it could not be asked.
    pub namespace: u64,
    pub way: Way,
    pub holders: Vec<Holder>,
}

/// Which way it sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through the qdisc, where the wire layer looks.
    Wire,
    /// Past it: PACKET_QDISC_BYPASS is set, or it is AF_XDP.
    Round,
    /// It could not be asked, and why.
    Unknown(String),
}

/// A process, or a thread with descriptors of its own, that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    thread: u32,
    /// Clock ticks since boot: with the pid, names the process for good.
    start: u64,
    descriptor: i32,
    pub program: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.program, self.pid)
    }
}

/// All of this machine, in every network namespace, by inode. Needs root; what ends meanwhile is left out.
#[must_use]
pub fn find() -> Vec<Direct> {
    let mut found: BTreeMap<u32, Direct> = BTreeMap::new();
    let mut others: HashSet<u32> = HashSet::new();
    for pid in numbers(Path::new("/proc")) {
        let mut known: Option<(u64, String)> = None;
        for thread in threads(pid) {
            let place = PathBuf::from(format!("/proc/{pid}/task/{thread}/fd"));
            for descriptor in numbers(&place) {
                let path = place.join(descriptor.to_string());
                let Some(inode) = fs::read_link(&path).ok().and_then(|to| processes::socket(to.as_os_str())) else {
                    continue;
                };
                if others.contains(&inode) {
                    continue;
                }
                let socket = match found.entry(inode) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => {
                        let xdp = match protocol_name(&path).as_deref() {
                            Some("XDP") => true,
                            Some("PACKET") => false,
                            _ => {
                                others.insert(inode);
                                continue;
                            }
                        };
                        let way = Way::Unknown("nobody could be asked".to_owned());
                        place.insert(Direct { inode, xdp, namespace: 0, way, holders: Vec::new() })
                    }
                };
                if known.is_none() {
                    known = processes::start_and_program(pid);
                }
                let again = socket.holders.iter().any(|holder| (holder.pid, holder.thread) == (pid, thread));
                if let (false, Some((start, program))) = (again, &known) {
                    let (start, program, descriptor) = (*start, program.clone(), descriptor as i32);
                    socket.holders.push(Holder { pid, thread, start, descriptor, program });
                }
            }
        }
    }
    found.into_values().filter(|socket| !socket.holders.is_empty()).map(Direct::asked).collect()
}

impl Direct {
    fn asked(mut self) -> Self {
        let of_holder = |holder: &Holder| fs::metadata(format!("/proc/{}/ns/net", holder.pid)).map(|file| file.ino());
        self.namespace = self.holders.iter().find_map(|holder| of_holder(holder).ok()).unwrap_or(0);
        let way = |socket: &OwnedFd| match self.xdp {
            true => Ok(Way::Round),
            false => bypasses(socket).map(|round| if round { Way::Round } else { Way::Wire }),
        };
        match self.take() {
            Ok(socket) => {
                self.way = way(&socket).unwrap_or_else(|error| Way::Unknown(error.to_string()));
                self.namespace = namespace(&socket).unwrap_or(self.namespace);
            }
            // It is one all the same.
            Err(_) if self.xdp => self.way = Way::Round,
            Err(error) => self.way = Way::Unknown(error.to_string()),
        }
        self
    }

    /// The socket itself, from whichever holder gives it.
    fn take(&self) -> io::Result<OwnedFd> {
        let mut failed = io::Error::from_raw_os_error(libc::ESRCH);
        for holder in &self.holders {
            match holder.take(self.inode) {
                Ok(socket) => return Ok(socket),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Sends through the qdisc from now on; of a packet socket only. That it is so is read back.
    pub fn bring_back(&self) -> io::Result<()> {
        let socket = self.take()?;
        let off = 0_i32;
        // SAFETY: the value is as long as said.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const off).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        if bypasses(&socket)? {
            Err(io::Error::other("the kernel took the option and kept the old one"))
        } else {
            Ok(())
        }
    }

    /// `AF_XDP socket of xdp-tool 4410`.
    #[must_use]
    pub fn spoken(&self) -> String {
        let mut holders: Vec<String> = self.holders.iter().map(ToString::to_string).collect();
        holders.dedup();
        let kind = if self.xdp { "AF_XDP socket" } else { "packet socket" };
        format!("{kind} of {}", holders.join(", "))
    }
}

impl Holder {
    fn open(&self, thread: bool) -> io::Result<OwnedFd> {
        let (id, flags) = if thread { (self.thread, PIDFD_THREAD) } else { (self.pid, 0) };
        // SAFETY: numbers only; the descriptor is new and nobody else's.
        let process = unsafe { owned(libc::syscall(libc::SYS_pidfd_open, id, flags)) }?;
        // The number may have become another's since it was read.
        match processes::start_and_program(self.pid) {
            Some((start, _)) if start == self.start => Ok(process),
            _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    fn take(&self, inode: u32) -> io::Result<OwnedFd> {
        let process = self.open(self.thread != self.pid)?;
        // SAFETY: as above.
        let socket = unsafe { owned(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), self.descriptor, 0)) }?;
        let file = fs::File::from(socket);
        // So may the descriptor's.
        if file.metadata()?.ino() == u64::from(inode) {
            Ok(file.into())
        } else {
            Err(io::Error::from_raw_os_error(libc::EBADF))
        }
    }

    /// Ends the process, and waits until it has: what it held is closed then. Good if it ended by itself.
    pub fn end(&self) -> io::Result<()> {
        let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ESRCH);
        let process = match self.open(false) {
            Err(error) if gone(&error) => return Ok(()),
            process => process?,
        };
        // SAFETY: a descriptor of ours and numbers; no further information.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                process.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if sent < 0 {
            let error = io::Error::last_os_error();
            return if gone(&error) { Ok(()) } else { Err(error) };
        }
        let deadline = Instant::now() + ENDS_WITHIN;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, which is ours.
            let ready = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as libc::c_int) };
            if ready > 0 {
                return Ok(());
            }
            if ready == 0 {
                return Err(io::Error::other("it was killed, and has not ended yet"));
            }
        }
    }
}

/// SAFETY: `result` is what a system call returned that gives a new descriptor, or is below 0.
unsafe fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: as the caller says.
        Ok(raw) if raw >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bypasses(socket: &OwnedFd) -> io::Result<bool> {
    let (mut value, mut length) = (0_i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: room for the value, as long as said.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(value != 0) }
}

fn namespace(socket: &OwnedFd) -> io::Result<u64> {
    // SAFETY: takes no argument; the descriptor that it gives is new.
    let place = unsafe { owned(libc::ioctl(socket.as_raw_fd(), SIOCGSKNS).into()) }?;
    Ok(fs::File::from(place).metadata()?.ino())
}

/// The process itself, and those of its threads that have descriptors of their own: there one can hide a socket.
fn threads(pid: u32) -> Vec<u32> {
    let mut all = numbers(&PathBuf::from(format!("/proc/{pid}/task")));
    // SAFETY: numbers only. Where the kernel has no such call, nothing tells threads apart, and only the process is read.
    let own = |thread: u32| unsafe { libc::syscall(libc::SYS_kcmp, pid, thread, KCMP_FILES, 0, 0) } > 0;
    all.retain(|thread| *thread == pid || own(*thread));
    all
}

fn numbers(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// What the kernel calls the protocol of the socket behind a descriptor: an attribute of its file.
#[must_use]
pub fn protocol_name(descriptor: &Path) -> Option<String> {
    let path = CString::new(descriptor.as_os_str().as_bytes()).ok()?;
    let mut name = [0_u8; 64];
    // SAFETY: both strings end in 0 and the kernel writes at most as many bytes as said.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), c"system.sockprotoname".as_ptr(), name.as_mut_ptr().cast(), name.len())
    };
    let name = name.get(..usize::try_from(length).ok()?)?;
    Some(String::from_utf8_lossy(name.split(|byte| *byte == 0).next()?).into_owned())
}

/// Looks again and again, and lets no more than a part of the time go into it.
#[derive(Debug, Default)]
pub struct Looks {
    next: Option<Instant>,
    last: Vec<Direct>,
}

/// A fiftieth.
const SHARE: u32 = 50;

impl Looks {
    /// What there is, if it is time to look; the last answer is kept.
    pub fn look(&mut self) -> Option<&[Direct]> {
        let began = Instant::now();
        if self.next.is_some_and(|next| began < next) {
            return None;
        }
        self.last = find();
        self.next = Some(Instant::now() + began.elapsed() * SHARE);
        Some(&self.last)
    }

    /// AF_XDP sockets of a network namespace, as they were at the last look.
    #[must_use]
    pub fn xdp(&self, namespace: u64) -> BTreeSet<u32> {
        let here = self.last.iter().filter(|socket| socket.xdp && socket.namespace == namespace);
        here.map(|socket| socket.inode).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_a_sockets_protocol() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let name = protocol_name(Path::new(&format!("/proc/self/fd/{}", socket.as_raw_fd())));
        assert_eq!(name.as_deref(), Some("UDP"));
    }

    #[test]
    fn a_thread_with_descriptors_of_its_own_is_looked_at_by_itself() {
        let (ready, waits) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let apart = std::thread::spawn(move || {
            // SAFETY: no arguments but a number; only this thread's descriptors become its own.
            let done = unsafe { libc::unshare(libc::CLONE_FILES) };
            ready.send((nix::unistd::gettid().as_raw() as u32, done)).unwrap();
            let _ = ends.recv();
        });
        let (thread, done) = waits.recv().unwrap();
        assert_eq!(done, 0);
        let found = threads(std::process::id());
        drop(end);
        apart.join().unwrap();
        assert!(found.contains(&std::process::id()) && found.contains(&thread), "{found:?}, {thread}");
        assert!(found.len() < 3, "other threads share: {found:?}");
    }
}
