//! One process, from /proc, as records name it. Whatever vanishes while it is read is left out.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs, io,
    io::Read,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use super::{cgroup, containers::Containers};
use crate::record::who::{ARGUMENT_BYTES, Container, ExeKind, PARENTS, Parent, Unusual, Who};

/// `OVERLAYFS_SUPER_MAGIC` (linux/magic.h).
const OVERLAYFS: i64 = 0x794c_7630;
/// Clock ticks a second of /proc: USER_HZ, 100 on every architecture that guard runs on.
const NS_PER_TICK: u64 = 10_000_000;
const DELETED: &[u8] = b" (deleted)";

/// Reads processes, and keeps what is the same for many.
#[derive(Debug)]
pub struct Identities {
    proc: PathBuf,
    users: Users,
    containers: Containers,
    own_netns: u64,
    own_mount_ns: u64,
}

impl Default for Identities {
    fn default() -> Self {
        let proc = PathBuf::from("/proc");
        // This thread's: guard may run in another namespace than its main thread began in.
        let own_netns = inode(&proc.join("thread-self/ns/net")).unwrap_or(0);
        let own_mount_ns = inode(&proc.join("self/ns/mnt")).unwrap_or(0);
        Self { proc, users: Users::default(), containers: Containers::default(), own_netns, own_mount_ns }
    }
}

/// What `stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub comm: String,
    pub parent: u32,
    /// As [`Who::started`].
    pub started: u64,
}

impl Identities {
    /// The process with this id, as it is now; `found_by` is left to the caller. `None`: there is none.
    pub fn read(&mut self, pid: u32) -> Option<Who> {
        let directory = self.proc.join(pid.to_string());
        let stat = self.stat(pid)?;
        let (exe, exe_kind) = self.exe(&directory);
        let (args, args_cut) = arguments(&directory);
        let uid = uid(&directory);
        let cgroup = fs::read(directory.join("cgroup")).unwrap_or_default();
        let place = cgroup::parse(&String::from_utf8_lossy(&cgroup));
        let netns = inode(&directory.join("ns/net")).filter(|netns| *netns != self.own_netns);
        let mut who = Who {
            pid,
            started: stat.started,
            comm: stat.comm,
            exe,
            exe_kind,
            args,
            args_cut,
            uid,
            user: uid.and_then(|uid| self.users.name(uid)),
            parents: self.parents(stat.parent),
            unit: place.unit,
            container: place.container.map(|id| self.containers.describe(id)),
            netns,
            ..Who::default()
        };
        who.unusual = self.unusual(&who, Some(&directory));
        Some(who)
    }

    #[must_use]
    pub fn stat(&self, pid: u32) -> Option<Stat> {
        stat_in(&self.proc.join(pid.to_string()))
    }

    /// Path of its executable, and what it is.
    #[must_use]
    pub fn exe_of(&self, pid: u32) -> (Option<String>, ExeKind) {
        self.exe(&self.proc.join(pid.to_string()))
    }

    pub fn describe_container(&mut self, id: String) -> Container {
        self.containers.describe(id)
    }

    pub fn user(&mut self, uid: u32) -> Option<String> {
        self.users.name(uid)
    }

    /// The parent, its parent, and so on.
    #[must_use]
    pub fn parents(&self, first: u32) -> Vec<Parent> {
        let mut parents = Vec::new();
        let mut pid = first;
        while pid != 0 && parents.len() < PARENTS {
            let Some(stat) = self.stat(pid) else { break };
            let exe = self.exe(&self.proc.join(pid.to_string())).0.unwrap_or(stat.comm);
            parents.push(Parent { pid, exe });
            if stat.parent == pid {
                break;
            }
            pid = stat.parent;
        }
        parents
    }

    /// Inodes of the sockets on its standard streams.
    #[must_use]
    pub fn standard_sockets(&self, pid: u32) -> Vec<u32> {
        let directory = self.proc.join(pid.to_string()).join("fd");
        let socket = |number: u32| {
            let target = fs::read_link(directory.join(number.to_string())).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        };
        (0..3).filter_map(socket).collect()
    }

    /// Processes by the inodes of the sockets that they hold; of several, the oldest: most often the one that made it
    /// (numbers begin anew at `pid_max`). Reads every descriptor of every process.
    #[must_use]
    pub fn socket_holders(&self) -> HashMap<u32, u32> {
        let mut holders = HashMap::new();
        let mut starts: HashMap<u32, u64> = HashMap::new();
        let mut age = |pid| {
            let start = *starts.entry(pid).or_insert_with(|| self.stat(pid).map_or(u64::MAX, |stat| stat.started));
            (start, pid)
        };
        for entry in fs::read_dir(&self.proc).into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            for descriptor in fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
                let Ok(target) = fs::read_link(descriptor.path()) else { continue };
                let inode = target
                    .to_str()
                    .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u32>().ok());
                if let Some(inode) = inode {
                    let holder = holders.entry(inode).or_insert(pid);
                    if *holder != pid && age(pid) < age(*holder) {
                        *holder = pid;
                    }
                }
            }
        }
        holders
    }

    /// `directory`: of the process, where it still lives.
    #[must_use]
    pub fn unusual(&self, who: &Who, directory: Option<&Path>) -> Vec<Unusual> {
        let mut unusual = Vec::new();
        match who.exe_kind {
            ExeKind::Deleted => unusual.push(Unusual::DeletedExe),
            ExeKind::Memfd => unusual.push(Unusual::Memfd),
            ExeKind::File | ExeKind::Overlay => {}
        }
        if who.exe_kind != ExeKind::Memfd
            && let Some(exe) = &who.exe
            && in_writable_place(Path::new(exe), directory)
        {
            unusual.push(Unusual::WorldWritablePlace);
        }
        unusual
    }

    /// Path without ` (deleted)`, and what it is.
    fn exe(&self, directory: &Path) -> (Option<String>, ExeKind) {
        let link = directory.join("exe");
        let Ok(path) = fs::read_link(&link) else { return (None, ExeKind::File) };
        let bytes = path.as_os_str().as_bytes();
        // The file itself, through the link: a name may end in anything.
        let file = fs::metadata(&link).ok();
        let gone = file.as_ref().is_none_or(|file| file.nlink() == 0);
        let (bytes, kind) = match bytes.strip_suffix(DELETED) {
            Some(name) if gone && name.starts_with(b"/memfd:") => (name, ExeKind::Memfd),
            Some(name) if gone => (name, ExeKind::Deleted),
            _ if self.is_overlay(directory, &link, file.as_ref()) => (bytes, ExeKind::Overlay),
            _ => (bytes, ExeKind::File),
        };
        (Some(String::from_utf8_lossy(bytes).into_owned()), kind)
    }

    /// In another mount namespace, and on an overlay that is not our own root.
    fn is_overlay(&self, directory: &Path, link: &Path, file: Option<&fs::Metadata>) -> bool {
        inode(&directory.join("ns/mnt")).is_some_and(|namespace| namespace != self.own_mount_ns)
            && nix::sys::statfs::statfs(link).is_ok_and(|found| found.filesystem_type().0 == OVERLAYFS)
            && file.map(MetadataExt::dev) != fs::metadata("/").ok().map(|root| root.dev())
    }

    #[must_use]
    pub const fn own_mount_ns(&self) -> u64 {
        self.own_mount_ns
    }

    #[must_use]
    pub const fn own_netns(&self) -> u64 {
        self.own_netns
    }
}

/// Shells and interpreters, by file name: for those a socket on the standard streams is what a remote shell looks like.
#[must_use]
pub fn is_interpreter(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or(program);
    // `python3.11`, `lua5.4`, `perl5.36.0`
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    matches!(
        stem,
        "sh" | "bash"
            | "dash"
            | "ash"
            | "zsh"
            | "ksh"
            | "mksh"
            | "csh"
            | "tcsh"
            | "fish"
            | "busybox"
            | "rbash"
            | "pwsh"
            | "python"
            | "pypy"
            | "perl"
            | "ruby"
            | "php"
            | "node"
            | "nodejs"
            | "deno"
            | "bun"
            | "lua"
            | "luajit"
            | "tclsh"
            | "expect"
            | "awk"
            | "gawk"
            | "mawk"
            | "java"
            | "guile"
    )
}

/// /tmp, /var/tmp, /dev/shm, or below any folder that everybody can write.
fn in_writable_place(exe: &Path, directory: Option<&Path>) -> bool {
    if ["/tmp", "/var/tmp", "/dev/shm"].iter().any(|place| exe.starts_with(place)) {
        return true;
    }
    // As the process sees it: a container's /opt is not ours.
    let root = directory.map(|directory| directory.join("root")).filter(|root| root.exists());
    exe.ancestors().skip(1).filter(|folder| folder.parent().is_some()).any(|folder| {
        let seen = match (&root, folder.strip_prefix("/")) {
            (Some(root), Ok(relative)) => root.join(relative),
            _ => folder.to_owned(),
        };
        fs::metadata(seen).is_ok_and(|found| found.is_dir() && found.mode() & 0o002 != 0)
    })
}

/// Cut to [`ARGUMENT_BYTES`]; whether it was.
fn arguments(directory: &Path) -> (Vec<String>, bool) {
    let mut bytes = Vec::new();
    let Ok(file) = fs::File::open(directory.join("cmdline")) else { return (Vec::new(), false) };
    if file.take(ARGUMENT_BYTES as u64 + 1).read_to_end(&mut bytes).is_err() {
        return (Vec::new(), false);
    }
    split_arguments(&bytes)
}

/// Of NUL-terminated arguments, cut to [`ARGUMENT_BYTES`]; whether there were more.
#[must_use]
pub fn split_arguments(bytes: &[u8]) -> (Vec<String>, bool) {
    let cut = bytes.len() > ARGUMENT_BYTES;
    let bytes = &bytes[..bytes.len().min(ARGUMENT_BYTES)];
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if bytes.is_empty() {
        return (Vec::new(), cut);
    }
    (bytes.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect(), cut)
}

/// Of the process whose directory below /proc this is.
#[must_use]
pub fn stat_in(directory: &Path) -> Option<Stat> {
    parse_stat(&fs::read(directory.join("stat")).ok()?)
}

/// `pid (comm) state ppid …`; comm may hold anything, blanks and brackets too.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let comm = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let ticks: u64 = fields.nth(17)?.parse().ok()?;
    Some(Stat { comm, parent, started: ticks.saturating_mul(NS_PER_TICK) })
}

/// Boot-time nanoseconds cut to ticks, as [`Stat::started`].
#[must_use]
pub const fn to_ticks(ns: u64) -> u64 {
    ns / NS_PER_TICK * NS_PER_TICK
}

fn uid(directory: &Path) -> Option<u32> {
    let status = fs::read(directory.join("status")).ok()?;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    // Real, as the socket layer has it: whoever started it.
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

fn inode(path: &Path) -> Option<u64> {
    // The link's text, `net:[4026531840]`, without entering the file system of namespaces.
    let link: OsString = fs::read_link(path).ok()?.into();
    let text = String::from_utf8(link.into_vec()).ok()?;
    text.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

/// /etc/passwd, read again when it changes. Other sources of users are not asked: they may wait for the network.
#[derive(Debug, Default)]
struct Users {
    names: HashMap<u32, String>,
    modified: Option<SystemTime>,
    looked: Option<Instant>,
}

impl Users {
    const LOOK: Duration = Duration::from_secs(5);

    fn name(&mut self, uid: u32) -> Option<String> {
        if self.looked.is_none_or(|looked| looked.elapsed() > Self::LOOK) {
            self.looked = Some(Instant::now());
            // Without the file users have numbers only.
            let _ = self.look();
        }
        self.names.get(&uid).cloned()
    }

    fn look(&mut self) -> io::Result<()> {
        let modified = fs::metadata("/etc/passwd")?.modified()?;
        if self.modified != Some(modified) {
            self.names = parse_passwd(&fs::read("/etc/passwd")?);
            self.modified = Some(modified);
        }
        Ok(())
    }
}

fn parse_passwd(text: &[u8]) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in String::from_utf8_lossy(text).lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(uid)) = (fields.next(), fields.nth(1).and_then(|uid| uid.parse().ok())) {
            // The first of several names for one number, as getpwuid does.
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests;
