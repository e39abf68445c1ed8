//! Every process: what it runs, from where, under whom, and what looks wrong about it.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs,
    io::Read as _,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use super::{
    Context,
    lines::{Lines, put_text},
    marks::{self, Seen},
};

/// More are counted, not read.
const MOST: usize = 50_000;
/// How long one process may take: reading some files of a process waits for a lock that it may hold for ever.
const PATIENCE: Duration = Duration::from_millis(300);
/// How many processes may hang before the section gives up on reading more.
const MOST_HANGS: usize = 20;
const MOST_ARGUMENT_BYTES: u64 = 32 * 1024;
const MOST_DESCRIPTORS: usize = 100_000;

#[derive(Clone, Debug, Default)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    pub uid: u32,
    pub euid: u32,
    pub gid: u32,
    pub comm: Vec<u8>,
    pub exe: Option<Vec<u8>>,
    /// Mode, device, inode and size of the file that runs, wherever its name went.
    exe_file: Option<(u32, u64, u64, u64)>,
    directory_mode: Option<u32>,
    cwd: Option<Vec<u8>>,
    root: Option<Vec<u8>>,
    arguments: Vec<u8>,
    start: u64,
    tty: u32,
    traced_by: u32,
    capabilities: Option<String>,
    pub cgroup: Option<String>,
    /// Inode numbers of its namespaces, by name.
    pub namespaces: Vec<(&'static str, u64)>,
    /// Inodes of its sockets.
    pub sockets: Vec<u64>,
    /// Inode of the socket that is its standard input.
    pub stdin_socket: Option<u64>,
    /// `bpf-prog`, `bpf-map`, `io_uring`…: descriptors of the kernel's own kinds, and how many.
    anonymous: HashMap<String, usize>,
    /// Its files could not be read: another user's.
    pub exe_hidden: bool,
    pub descriptors_hidden: bool,
}

/// All of them.
#[derive(Default)]
pub struct Table {
    pub all: HashMap<u32, Process>,
    /// Who holds a socket, the oldest first.
    pub holders: HashMap<u64, Vec<u32>>,
}

impl Table {
    /// pid, program, user and marks of a socket's holders.
    pub fn owners(&self, context: &Context, inode: u64) -> Vec<Value> {
        let pids = self.holders.get(&inode).map(Vec::as_slice).unwrap_or_default();
        pids.iter()
            .take(16)
            .filter_map(|pid| self.all.get(pid))
            .map(|process| {
                let mut owner = Map::new();
                owner.insert("pid".into(), process.pid.into());
                put_text(&mut owner, "comm", &process.comm);
                if let Some(exe) = &process.exe {
                    put_text(&mut owner, "exe", exe);
                }
                owner.insert("uid".into(), process.uid.into());
                owner.insert("user".into(), context.user(process.uid).into());
                Value::Object(owner)
            })
            .collect()
    }

    /// Parents, nearest first.
    fn parents(&self, process: &Process) -> Vec<&Process> {
        let (mut chain, mut next) = (Vec::new(), process.parent);
        // A pid that was given again could make a ring.
        while chain.len() < 32
            && let Some(parent) = self.all.get(&next)
            && parent.pid != process.pid
        {
            chain.push(parent);
            next = parent.parent;
        }
        chain
    }

    /// One process of each network namespace.
    pub fn network_namespaces(&self) -> HashMap<u64, Vec<u32>> {
        let mut found: HashMap<u64, Vec<u32>> = HashMap::new();
        for process in self.all.values() {
            if let Some((_, inode)) = process.namespaces.iter().find(|(name, _)| *name == "net") {
                found.entry(*inode).or_default().push(process.pid);
            }
        }
        found.values_mut().for_each(|pids| pids.sort_unstable());
        found
    }
}

pub fn section(context: &Context, lines: &Lines) -> Result<(), String> {
    let (table, end) = read(context, lines)?;
    let table = context.processes.put(table);
    // Marks by sockets; those without are better than none.
    let sockets = context.sockets.wait(context.until - Duration::from_millis(500).min(context.until - Instant::now()));
    if sockets.is_none() {
        lines.note("the sockets were not read in time: no process is marked by what it holds of them");
    }
    let systemd = context.proc == Path::new("/proc") && Path::new("/run/systemd/system").is_dir();
    let mut pids: Vec<_> = table.all.keys().copied().collect();
    pids.sort_unstable();
    for pid in pids {
        let process = &table.all[&pid];
        let holds = |set: fn(&super::sockets::Index) -> &HashSet<u64>| {
            sockets.as_deref().is_some_and(|index| process.sockets.iter().any(|inode| set(index).contains(inode)))
        };
        let parents = table.parents(process);
        let argv0 = process.arguments.split(|byte| *byte == 0).next().map(String::from_utf8_lossy);
        let exe = process.exe.as_deref().map(String::from_utf8_lossy);
        let marks = marks::of_process(&Seen {
            exe: exe.as_deref(),
            exe_mode: process.exe_file.map(|file| file.0),
            directory_mode: process.directory_mode,
            argv0: argv0.as_deref(),
            pid,
            parent: process.parent,
            tty: process.tty,
            cgroup: process.cgroup.as_deref(),
            traced: process.traced_by != 0,
            systemd,
            adopted: process.parent == 1 || parents.first().is_some_and(|parent| parent.comm == b"systemd"),
            stdin_is_inet_socket: process
                .stdin_socket
                .is_some_and(|inode| sockets.as_deref().is_some_and(|index| index.inet.contains(&inode))),
            packet: holds(|index| &index.packet),
            xdp: holds(|index| &index.xdp),
            raw: holds(|index| &index.raw),
        });
        lines.put(&line(context, process, &parents, &marks));
    }
    let hidden = |what: fn(&Process) -> bool| table.all.values().filter(|process| what(process)).count();
    let (exes, descriptors) = (hidden(|p| p.exe_hidden), hidden(|p| p.descriptors_hidden));
    if exes + descriptors > 0 {
        let why = if nix::unistd::geteuid().is_root() { "root may not, here" } else { "run as root" };
        lines.note(format!(
            "the executables of {exes} and the descriptors of {descriptors} processes could not be read: {why}"
        ));
    }
    end
}

fn line(context: &Context, process: &Process, parents: &[&Process], marks: &[&str]) -> Value {
    let mut object = Map::new();
    let mut arguments: Vec<&[u8]> = process.arguments.split(|byte| *byte == 0).collect();
    if arguments.last().is_some_and(|last| last.is_empty()) {
        arguments.pop();
    }
    let texts: Vec<_> = arguments.iter().map(|argument| String::from_utf8_lossy(argument)).collect();
    object.insert("argv".into(), json!(texts));
    if std::str::from_utf8(&process.arguments).is_err() {
        put_text(&mut object, "argv_bytes", &process.arguments);
    }
    put_text(&mut object, "comm", &process.comm);
    for (name, value) in [("exe", &process.exe), ("cwd", &process.cwd), ("root", &process.root)] {
        if let Some(value) = value {
            put_text(&mut object, name, value);
        }
    }
    if let Some((mode, device, inode, size)) = process.exe_file {
        object.insert(
            "exe_file".into(),
            json!({ "mode": format!("{mode:o}"), "device": device, "inode": inode, "bytes": size }),
        );
    }
    let chain: Vec<_> = parents
        .iter()
        .map(|parent| {
            let mut entry = Map::new();
            entry.insert("pid".into(), parent.pid.into());
            put_text(&mut entry, "comm", &parent.comm);
            Value::Object(entry)
        })
        .collect();
    let namespaces: Map<String, Value> =
        process.namespaces.iter().map(|(name, inode)| ((*name).to_owned(), (*inode).into())).collect();
    for (name, value) in [
        ("pid", process.pid.into()),
        ("parent", process.parent.into()),
        ("parents", chain.into()),
        ("uid", process.uid.into()),
        ("euid", process.euid.into()),
        ("gid", process.gid.into()),
        ("user", context.user(process.uid).into()),
        ("tty", process.tty.into()),
        // Clock ticks since boot, as in /proc/PID/stat: with the pid it names the process for good.
        ("start_ticks", process.start.into()),
        ("traced_by", process.traced_by.into()),
        ("capabilities", process.capabilities.clone().into()),
        ("cgroup", process.cgroup.clone().into()),
        ("namespaces", namespaces.into()),
        ("sockets", json!(process.sockets)),
        ("kernel_descriptors", json!(process.anonymous)),
        ("suspicious", json!(marks)),
    ] {
        object.insert(name.to_owned(), value);
    }
    object.into()
}

type Message = (u32, Part);

enum Part {
    /// What the kernel gives without waiting for the process.
    Base(Box<Process>),
    All(Box<Process>),
    Gone,
}

/// Reads them one by one in a thread that is left behind where it hangs.
fn read(context: &Context, lines: &Lines) -> Result<(Table, Result<(), String>), String> {
    let mut pids: Vec<u32> = fs::read_dir(&context.proc)
        .map_err(|error| format!("{}: {error}", context.proc.display()))?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    if pids.len() > MOST {
        lines.note(format!("{} processes; the first {MOST} are read", pids.len()));
        pids.truncate(MOST);
    }
    let mut table = Table::default();
    let mut end = Ok(());
    let (mut todo, mut hangs) = (pids.as_slice(), 0);
    while let Some(hung) = read_some(context, todo, &mut table)? {
        hangs += 1;
        lines.note(format!("process {hung} could not be read: it does not answer; what it runs is not known"));
        todo = todo.iter().position(|pid| *pid == hung).map_or(&[][..], |at| &todo[at + 1..]);
        if hangs == MOST_HANGS {
            end = Err(format!("{MOST_HANGS} processes do not answer; {} more were not asked", todo.len()));
            break;
        }
    }
    for process in table.all.values() {
        for inode in &process.sockets {
            table.holders.entry(*inode).or_default().push(process.pid);
        }
    }
    let all = &table.all;
    let age = |pid: &u32| (all.get(pid).map(|process| process.start), *pid);
    table.holders.values_mut().for_each(|pids| pids.sort_unstable_by_key(age));
    Ok((table, end))
}

/// The pid at which it hangs.
fn read_some(context: &Context, pids: &[u32], table: &mut Table) -> Result<Option<u32>, String> {
    let (tell, told) = mpsc::channel::<Message>();
    let (proc, list) = (context.proc.clone(), pids.to_vec());
    thread::Builder::new()
        .name("processes".to_owned())
        .spawn(move || {
            for pid in list {
                let sent = match base(&proc, pid) {
                    None => tell.send((pid, Part::Gone)),
                    Some(process) => {
                        let _ = tell.send((pid, Part::Base(Box::new(process.clone()))));
                        tell.send((pid, Part::All(Box::new(rest(&proc, process)))))
                    }
                };
                if sent.is_err() {
                    return;
                }
            }
        })
        .map_err(|error| format!("no thread could be made: {error}"))?;
    let mut next = pids.iter();
    let mut current = next.next().copied();
    while let Some(pid) = current {
        match told.recv_timeout(PATIENCE) {
            Ok((_, Part::Base(process))) => drop(table.all.insert(pid, *process)),
            Ok((_, Part::All(process))) => {
                table.all.insert(pid, *process);
                current = next.next().copied();
            }
            Ok((_, Part::Gone)) => current = next.next().copied(),
            Err(_) => return Ok(Some(pid)),
        }
    }
    Ok(None)
}

fn base(proc: &Path, pid: u32) -> Option<Process> {
    let place = proc.join(pid.to_string());
    let stat = fs::read(place.join("stat")).ok()?;
    // comm may hold anything, blanks and brackets too.
    let (open, close) = (stat.iter().position(|byte| *byte == b'(')?, stat.iter().rposition(|byte| *byte == b')')?);
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let mut process = Process {
        pid,
        comm: stat.get(open + 1..close)?.to_vec(),
        parent: fields.get(1)?.parse().ok()?,
        tty: fields.get(4)?.parse::<i32>().ok()? as u32,
        start: fields.get(19)?.parse().ok()?,
        ..Process::default()
    };
    let status = fs::read_to_string(place.join("status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let number =
        |text: Option<&str>, at: usize| text.and_then(|text| text.split_ascii_whitespace().nth(at)?.parse().ok());
    process.uid = number(field("Uid:"), 0).unwrap_or(u32::MAX);
    process.euid = number(field("Uid:"), 1).unwrap_or(u32::MAX);
    process.gid = number(field("Gid:"), 0).unwrap_or(u32::MAX);
    process.traced_by = number(field("TracerPid:"), 0).unwrap_or(0);
    process.capabilities = field("CapEff:").map(str::to_owned);
    Some(process)
}

fn rest(proc: &Path, mut process: Process) -> Process {
    let place = proc.join(process.pid.to_string());
    let link = |name: &str| fs::read_link(place.join(name)).map(|path| path.into_os_string().into_encoded_bytes());
    match link("exe") {
        Ok(exe) => process.exe = Some(exe),
        Err(error) => process.exe_hidden = error.kind() == std::io::ErrorKind::PermissionDenied,
    }
    process.cwd = link("cwd").ok();
    process.root = link("root").ok().filter(|root| root != b"/");
    process.cgroup = fs::read_to_string(place.join("cgroup"))
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned));
    for name in ["net", "pid", "mnt", "user", "cgroup", "uts", "ipc"] {
        if let Some(inode) = link(&format!("ns/{name}")).ok().and_then(|text| inode_of(&text)) {
            process.namespaces.push((name, inode));
        }
    }
    descriptors(&place, &mut process);
    if let Ok(file) = fs::File::open(place.join("cmdline")) {
        // Cut short where the process has overwritten it without end.
        let _ = file.take(MOST_ARGUMENT_BYTES).read_to_end(&mut process.arguments);
    }
    // Last: a file system that does not answer hangs here.
    if let Ok(file) = fs::metadata(place.join("exe")) {
        process.exe_file = Some((file.mode(), file.dev(), file.ino(), file.size()));
    }
    let directory = process.exe.as_deref().filter(|exe| exe.starts_with(b"/") && !exe.starts_with(b"/memfd:"));
    if let Some(directory) = directory.and_then(|exe| Path::new(OsStr::from_bytes(exe)).parent()) {
        let inside: PathBuf = directory.strip_prefix("/").unwrap_or(directory).to_owned();
        process.directory_mode = fs::metadata(place.join("root").join(inside)).ok().map(|directory| directory.mode());
    }
    process
}

fn descriptors(place: &Path, process: &mut Process) {
    let entries = match fs::read_dir(place.join("fd")) {
        Ok(entries) => entries,
        Err(error) => {
            process.descriptors_hidden = error.kind() == std::io::ErrorKind::PermissionDenied;
            return;
        }
    };
    for entry in entries.flatten().take(MOST_DESCRIPTORS) {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.as_os_str().as_bytes();
        if target.starts_with(b"socket:[") {
            let Some(inode) = inode_of(target) else { continue };
            process.sockets.push(inode);
            if entry.file_name() == "0" {
                process.stdin_socket = Some(inode);
            }
        } else if let Some(kind) = target.strip_prefix(b"anon_inode:") {
            let kind = String::from_utf8_lossy(kind).trim_matches(['[', ']']).to_owned();
            if kind.starts_with("bpf") || kind == "io_uring" || kind == "perf_event" {
                *process.anonymous.entry(kind).or_default() += 1;
            }
        }
    }
    process.sockets.sort_unstable();
    process.sockets.dedup();
}

/// The number of `socket:[123]`, `net:[123]`.
pub fn inode_of(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.strip_suffix(']')?.rsplit_once('[')?.1.parse().ok()
}

/// Names of users by /etc/passwd alone: asking the system would run its name services, which may be on the network.
pub fn users() -> HashMap<u32, String> {
    let text = fs::read("/etc/passwd").unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((fields.nth(1)?.parse().ok()?, name))
        })
        .collect()
}
