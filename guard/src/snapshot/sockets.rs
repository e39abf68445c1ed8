//! Sockets of every family, in every network namespace that a process is in, with who holds them.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::ffi::OsStrExt,
};

use serde_json::{Map, Value, json};

use super::{
    Context,
    lines::{Lines, put_text},
    network::each_namespace,
    processes::Table,
};
use crate::host::{
    direct::protocol_name,
    sock_diag::{self, SocketState},
};

/// Inodes of the sockets that marks go by.
#[derive(Default)]
pub struct Index {
    pub inet: HashSet<u64>,
    pub packet: HashSet<u64>,
    pub raw: HashSet<u64>,
    pub xdp: HashSet<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct Socket {
    namespace: u64,
    family: &'static str,
    inode: u64,
    uid: Option<u32>,
    /// What else is known of it.
    more: Map<String, Value>,
    /// `(protocol, address and port)` where it waits for others.
    listening: Option<(&'static str, String)>,
}

pub fn section(context: &Context, lines: &Lines) -> Result<(), String> {
    let table = context.processes.wait(context.until);
    if table.is_none() {
        lines.note("the processes were not read in time: owners are not known, nor other network namespaces");
    }
    let mut all: Vec<Socket> = Vec::new();
    let asked = each_namespace(context, lines, |namespace| {
        let inet = inet(namespace, &mut all, lines);
        for file in ["packet", "raw", "raw6", "icmp", "icmp6", "unix", "netlink"] {
            from_proc(context, namespace, file, &mut all);
        }
        inet
    });
    if let Some(table) = table.as_deref() {
        unlisted(context, table, &mut all);
    }
    let set = |family: fn(&str) -> bool| {
        all.iter().filter(|socket| socket.inode != 0 && family(socket.family)).map(|socket| socket.inode).collect()
    };
    context.sockets.put(Index {
        inet: set(|family| matches!(family, "tcp" | "udp" | "udplite" | "sctp")),
        packet: set(|family| family == "packet"),
        raw: set(|family| family == "raw"),
        xdp: set(|family| family == "xdp"),
    });
    let all = context.socket_list.put(all);
    for socket in all.iter() {
        lines.put(&line(context, table.as_deref(), socket));
    }
    asked
}

/// The ports on which somebody waits, once more and by themselves: the first thing that a responder asks for.
pub fn listening(context: &Context, lines: &Lines) -> Result<(), String> {
    let all = context.socket_list.wait(context.until).ok_or("the sockets were not read in time")?;
    let table = context.processes.wait(context.until);
    for socket in all.iter() {
        let Some((protocol, local)) = &socket.listening else { continue };
        let mut value = line(context, table.as_deref(), socket);
        value["protocol"] = (*protocol).into();
        value["local"] = local.as_str().into();
        lines.put(&value);
    }
    Ok(())
}

fn line(context: &Context, table: Option<&Table>, socket: &Socket) -> Value {
    let mut object = socket.more.clone();
    let owners = table.map(|table| table.owners(context, socket.inode)).unwrap_or_default();
    let mut marks: Vec<&str> = Vec::new();
    match socket.family {
        "packet" => marks.push("packet_socket"),
        "xdp" => marks.push("xdp_socket"),
        "raw" => marks.push("raw_socket"),
        _ => {}
    }
    // Of a process that hides, or of the kernel's own (NFS, WireGuard).
    let all_seen =
        table.is_some_and(|table| !table.all.values().any(|process| process.descriptors_hidden || process.exe_hidden));
    if all_seen && socket.listening.is_some() && owners.is_empty() {
        marks.push("listener_without_process");
    }
    let strange = |exe: &str| exe.starts_with("/memfd:") || exe.ends_with(" (deleted)");
    let unusual = owners.iter().any(|owner| owner["exe"].as_str().is_some_and(strange));
    let network = !matches!(socket.family, "unix" | "netlink");
    if network && unusual {
        marks.push("owner_exe_deleted_or_in_memory");
    }
    for (name, value) in [
        ("family", socket.family.into()),
        ("inode", socket.inode.into()),
        ("namespace", socket.namespace.into()),
        ("uid", socket.uid.into()),
        ("user", socket.uid.and_then(|uid| context.user(uid)).into()),
        ("owners", owners.into()),
        ("suspicious", json!(marks)),
    ] {
        object.insert(name.to_owned(), value);
    }
    object.into()
}

fn inet(namespace: u64, all: &mut Vec<Socket>, lines: &Lines) -> Result<(), String> {
    let found = sock_diag::sockets().map_err(|error| error.to_string())?;
    if !found.not_asked.is_empty() {
        // Nothing of the kind can be there where the kernel has no handler; a module that is not loaded holds no sockets.
        tracing::debug!("no diagnosis of {}", found.not_asked.join(", "));
    }
    for socket in &found.all {
        let family = match socket.protocol {
            6 => "tcp",
            17 => "udp",
            136 => "udplite",
            _ => "sctp",
        };
        let waits = match socket.protocol {
            6 | 132 => socket.state == SocketState::Listen,
            _ => socket.state == SocketState::Close && socket.local.port() != 0,
        };
        let mut more = Map::new();
        more.insert("state".into(), format!("{:?}", socket.state).into());
        more.insert("local".into(), socket.local.to_string().into());
        more.insert("remote".into(), socket.remote.to_string().into());
        more.insert("interface".into(), socket.interface.into());
        more.insert("cookie".into(), socket.cookie.into());
        all.push(Socket {
            namespace,
            family,
            inode: found.holder(socket).into(),
            uid: Some(socket.uid),
            more,
            listening: waits.then(|| (family, socket.local.to_string())),
        });
    }
    if found.all.len() > 1_000_000 {
        lines.note("more than a million sockets in one namespace");
    }
    Ok(())
}

/// The kernel's own tables of the families that have one.
fn from_proc(context: &Context, namespace: u64, file: &str, all: &mut Vec<Socket>) {
    // `thread-self`: this thread may be in another network namespace than its process. A kernel without the family has
    // no such file.
    let Ok(bytes) = fs::read(context.proc.join("thread-self/net").join(file)) else { return };
    for text in bytes.split(|byte| *byte == b'\n').skip(1).filter(|line| !line.is_empty()) {
        let line = String::from_utf8_lossy(text);
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or_default();
        let mut more = Map::new();
        let (family, inode, uid) = match file {
            "packet" => {
                more.insert("socket_type".into(), field(2).into());
                more.insert("ethertype".into(), format!("0x{}", field(3)).into());
                more.insert("interface".into(), field(4).parse::<u32>().ok().into());
                ("packet", field(8), field(7).parse().ok())
            }
            "unix" => {
                more.insert("socket_type".into(), field(4).into());
                more.insert("state".into(), field(5).into());
                more.insert("listens".into(), (field(3) == "00010000").into());
                if let Some(at) = path_at(text, 7) {
                    put_text(&mut more, "path", &text[at..]);
                }
                ("unix", field(6), None)
            }
            "netlink" => {
                more.insert("protocol".into(), field(1).parse::<u32>().ok().into());
                more.insert("port_id".into(), field(2).parse::<u32>().ok().into());
                more.insert("groups".into(), field(3).into());
                ("netlink", field(9), None)
            }
            _ => {
                let version = if file.ends_with('6') { 6 } else { 4 };
                // For these sockets the place of the port has the protocol's number.
                let protocol = field(1).rsplit_once(':').and_then(|(_, hex)| u16::from_str_radix(hex, 16).ok());
                more.insert("ip".into(), version.into());
                more.insert("protocol".into(), protocol.into());
                (if file.starts_with("raw") { "raw" } else { "icmp" }, field(9), field(7).parse().ok())
            }
        };
        all.push(Socket { namespace, family, inode: inode.parse().unwrap_or(0), uid, more, listening: None });
    }
}

/// Where the field with this number begins; it goes on to the end of the line.
fn path_at(text: &[u8], number: usize) -> Option<usize> {
    let (mut count, mut inside) = (0, false);
    for (at, byte) in text.iter().enumerate() {
        let blank = *byte == b' ';
        if !blank && !inside {
            if count == number {
                return Some(at);
            }
            count += 1;
        }
        inside = !blank;
    }
    None
}

/// What a process holds and no list has: AF_XDP, AF_VSOCK, AF_ALG and others. The kernel tells a socket's protocol as an
/// attribute of its file.
fn unlisted(context: &Context, table: &Table, all: &mut Vec<Socket>) {
    let listed: HashSet<u64> = all.iter().map(|socket| socket.inode).collect();
    let mut found: HashMap<u64, u32> = HashMap::new();
    for (inode, pids) in &table.holders {
        if !listed.contains(inode)
            && let Some(pid) = pids.first()
        {
            found.insert(*inode, *pid);
        }
    }
    let mut by_process: HashMap<u32, HashSet<u64>> = HashMap::new();
    for (inode, pid) in found {
        by_process.entry(pid).or_default().insert(inode);
    }
    for (pid, mut inodes) in by_process {
        let namespace =
            table.all.get(&pid).and_then(|process| process.namespaces.first()).map_or(0, |(_, inode)| *inode);
        let place = context.proc.join(pid.to_string()).join("fd");
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            let Some(inode) = fs::read_link(entry.path())
                .ok()
                .and_then(|target| super::processes::inode_of(target.as_os_str().as_bytes()))
                .filter(|inode| inodes.remove(inode))
            else {
                continue;
            };
            let name = protocol_name(&entry.path()).unwrap_or_default();
            let family = if name.eq_ignore_ascii_case("xdp") { "xdp" } else { "other" };
            let more = Map::from_iter([("protocol".to_owned(), name.into())]);
            all.push(Socket { namespace, family, inode, uid: None, more, listening: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_hold_blanks() {
        let line = b"0000: 00000002 00000000 00010000 0001 01   123 /run/a b";
        assert_eq!(path_at(line, 7).map(|at| &line[at..]), Some(&b"/run/a b"[..]));
        assert_eq!(path_at(&line[..50], 9), None);
    }
}
