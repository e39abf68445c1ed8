//! The processes of this host, from /proc. A process may end while it is read: what is then missing is left out.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// One process, as it was when it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    /// Real user id.
    pub uid: u32,
    /// `comm`: at most 15 bytes, and the process may set it to anything.
    pub comm: String,
    /// Where the executable is; ends in ` (deleted)` where it was removed. `None` for kernel threads.
    pub exe: Option<PathBuf>,
    /// Clock ticks since boot; with the pid, names the process for good.
    pub start: u64,
    /// Device number of the controlling terminal; 0: none.
    pub tty: u32,
    /// Path in cgroup2, where known.
    pub cgroup: Option<String>,
    /// Inodes of the sockets that it holds.
    pub sockets: Vec<u32>,
    /// Terminals (`/dev/pts/N`) that it has open, as device numbers.
    pub terminals: Vec<u32>,
}

impl Process {
    /// The file name of its executable, which a process cannot choose as freely as its `comm`.
    #[must_use]
    pub fn program(&self) -> Option<&str> {
        let name = self.exe.as_deref()?.file_name()?.to_str()?;
        Some(name.strip_suffix(" (deleted)").unwrap_or(name))
    }
}

/// A picture of all processes.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    by_pid: HashMap<u32, Process>,
    by_socket: HashMap<u32, Vec<u32>>,
}

impl Processes {
    /// Reads /proc. Other users' processes show their sockets only to root.
    pub fn read() -> io::Result<Self> {
        Self::read_from(Path::new("/proc"))
    }

    fn read_from(proc: &Path) -> io::Result<Self> {
        let mut all = Vec::new();
        for entry in fs::read_dir(proc)? {
            let Ok(entry) = entry else { continue };
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            all.extend(read_process(&entry.path(), pid));
        }
        Ok(Self::from_list(all))
    }

    #[must_use]
    pub fn from_list(list: Vec<Process>) -> Self {
        let mut by_socket: HashMap<u32, Vec<u32>> = HashMap::new();
        for process in &list {
            for &inode in &process.sockets {
                by_socket.entry(inode).or_default().push(process.pid);
            }
        }
        let by_pid: HashMap<u32, Process> = list.into_iter().map(|process| (process.pid, process)).collect();
        // Of several holders the oldest is most often the one that made the socket: numbers begin anew at pid_max.
        let age = |pid: &u32| (by_pid.get(pid).map(|process| process.start), *pid);
        by_socket.values_mut().for_each(|pids| pids.sort_unstable_by_key(age));
        Self { by_pid, by_socket }
    }

    #[must_use]
    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.by_pid.get(&pid)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.by_pid.values()
    }

    /// Those that hold the socket with this inode, the oldest first.
    pub fn holders(&self, inode: u32) -> impl Iterator<Item = &Process> {
        let pids = if inode == 0 { &[][..] } else { self.by_socket.get(&inode).map_or(&[][..], Vec::as_slice) };
        pids.iter().filter_map(|pid| self.get(*pid))
    }

    /// The process, its parent, and so on. Ends where a parent is unknown (another pid namespace) or repeats.
    pub fn ancestors(&self, pid: u32) -> impl Iterator<Item = &Process> {
        let mut next = self.get(pid);
        let mut left = self.by_pid.len();
        std::iter::from_fn(move || {
            let process = next?;
            left = left.checked_sub(1)?;
            next = if process.parent == process.pid { None } else { self.get(process.parent) };
            Some(process)
        })
    }
}

fn read_process(directory: &Path, pid: u32) -> Option<Process> {
    let stat = fs::read(directory.join("stat")).ok()?;
    let mut process = parse_stat(&stat)?;
    process.pid = pid;
    process.exe = fs::read_link(directory.join("exe")).ok();
    process.uid = fs::read_to_string(directory.join("status")).ok().and_then(|status| parse_uid(&status))?;
    process.cgroup = fs::read_to_string(directory.join("cgroup")).ok().and_then(|text| parse_cgroup(&text));
    for descriptor in fs::read_dir(directory.join("fd")).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(descriptor.path()) else { continue };
        match read_descriptor(target.as_os_str()) {
            Some(Descriptor::Socket(inode)) => process.sockets.push(inode),
            Some(Descriptor::Terminal(number)) => process.terminals.push(number),
            None => {}
        }
    }
    process.sockets.sort_unstable();
    process.sockets.dedup();
    process.terminals.sort_unstable();
    process.terminals.dedup();
    Some(process)
}

/// Inode of the socket behind a descriptor, by where its link in /proc leads.
#[must_use]
pub fn socket(target: &OsStr) -> Option<u32> {
    match read_descriptor(target)? {
        Descriptor::Socket(inode) => Some(inode),
        Descriptor::Terminal(_) => None,
    }
}

/// When a process began, in clock ticks since boot, and its executable's name, else its `comm`.
#[must_use]
pub fn start_and_program(pid: u32) -> Option<(u64, String)> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let mut process = parse_stat(&fs::read(directory.join("stat")).ok()?)?;
    process.exe = fs::read_link(directory.join("exe")).ok();
    Some((process.start, process.program().unwrap_or(&process.comm).to_owned()))
}

enum Descriptor {
    Socket(u32),
    Terminal(u32),
}

fn read_descriptor(target: &OsStr) -> Option<Descriptor> {
    let text = std::str::from_utf8(target.as_bytes()).ok()?;
    if let Some(inode) = text.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
        return inode.parse().ok().map(Descriptor::Socket);
    }
    text.strip_prefix("/dev/pts/")?.parse().ok().map(|number| Descriptor::Terminal(pts_device(number)))
}

/// The device number, as `stat` has it, of `/dev/pts/N`: majors 136 to 143, 2^20 minors.
#[must_use]
pub fn pts_device(number: u32) -> u32 {
    // new_encode_dev of linux/kdev_t.h.
    let (major, minor) = (136, number);
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}

/// The number of `/dev/pts/N`, of a device number as `stat` has it; `None`: it is no such terminal.
#[must_use]
pub fn pts_number(device: u32) -> Option<u32> {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    (major == 136).then_some(minor)
}

/// `pid (comm) state ppid pgrp session tty_nr …`; comm may hold anything, blanks and brackets too.
fn parse_stat(stat: &[u8]) -> Option<Process> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let comm = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Process {
        comm,
        parent: fields.get(1)?.parse().ok()?,
        tty: fields.get(4)?.parse::<i32>().ok()? as u32,
        start: fields.get(19)?.parse().ok()?,
        ..Process::default()
    })
}

fn parse_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn parse_cgroup(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// `bpftool 4410 (/usr/sbin/bpftool)`; one that is gone has only its number.
pub fn named(pid: u32) -> Option<String> {
    if pid == 0 {
        return None;
    }
    let place = PathBuf::from(format!("/proc/{pid}"));
    let comm = fs::read_to_string(place.join("comm")).ok();
    let exe = fs::read_link(place.join("exe")).ok();
    Some(match (comm, exe) {
        (Some(comm), Some(exe)) => format!("{} {pid} ({})", comm.trim_end(), exe.display()),
        (Some(comm), None) => format!("{} {pid}", comm.trim_end()),
        _ => format!("process {pid}, which is gone"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn finds_who_holds_a_socket() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let Some(Descriptor::Socket(inode)) = read_descriptor(link.as_os_str()) else { panic!("no socket") };
        let processes = Processes::read().unwrap();
        let holder = processes.holders(inode).next().expect("this process");
        assert_eq!(holder.pid, std::process::id());
        assert_eq!(holder.exe, std::env::current_exe().ok());
        assert!(processes.ancestors(holder.pid).count() > 1);
        assert_eq!(processes.holders(0).count(), 0);
    }

    #[test]
    fn the_oldest_holder_comes_first_though_numbers_began_anew() {
        let process = |pid, start| Process { pid, start, sockets: vec![7], ..Process::default() };
        let processes = Processes::from_list(vec![process(876, 300), process(31_441, 200), process(31_440, 200)]);
        let holders: Vec<u32> = processes.holders(7).map(|process| process.pid).collect();
        assert_eq!(holders, [31_440, 31_441, 876]);
    }

    #[test]
    fn a_comm_may_hold_brackets() {
        let mut stat = b"12 (a) R 1 (b)) S 7 12 12 34816 12 0 0 0 0 0 0 0 0 0 20 0 1 0 9876 0".to_vec();
        let process = parse_stat(&stat).unwrap();
        assert_eq!(process.comm, "a) R 1 (b)");
        assert_eq!((process.parent, process.tty, process.start), (7, 34816, 9876));
        stat.truncate(20);
        assert_eq!(parse_stat(&stat), None);
    }

    #[test]
    fn ancestors_end_even_in_a_ring() {
        let process = |pid, parent| Process { pid, parent, ..Process::default() };
        let processes = Processes::from_list(vec![process(1, 3), process(2, 1), process(3, 2)]);
        assert_eq!(processes.ancestors(2).count(), 3);
    }

    #[test]
    fn numbers_of_terminals_are_as_in_stat() {
        assert_eq!(pts_device(0), 34816);
        assert_eq!(pts_device(3), 34819);
        assert_eq!(pts_device(256), 0x10_8800);
        for number in [0, 3, 255, 256, 70_000] {
            assert_eq!(pts_number(pts_device(number)), Some(number));
        }
        assert_eq!((pts_number(0), pts_number(0x0401)), (None, None), "no terminal, and the console");
    }

    #[test]
    fn a_deleted_program_keeps_its_name() {
        let process = Process { exe: Some("/dev/shm/.x (deleted)".into()), ..Process::default() };
        assert_eq!(process.program(), Some(".x"));
    }
}
