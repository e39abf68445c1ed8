//! Interfaces, addresses, routes, rules, neighbours and traffic control, in every network namespace that a process is in.

use std::{fs::File, io, os::unix::fs::MetadataExt, thread};

use nix::sched::{CloneFlags, setns};
use serde_json::{Map, Value, json};

use super::{
    Context,
    decode::{As, Table, decode},
    lines::Lines,
};
use crate::{
    host::netlink::{self, NetlinkError, number},
    kernel,
};

const ROUTE: isize = 0;
/// More are named, not looked into.
const MOST_NAMESPACES: usize = 256;

/// Runs `each` in this network namespace and in every other one that a process is in. Entering them changes nothing but
/// where a thread of ours is; it needs CAP_SYS_ADMIN. An error here is what `each` said of our own; of others it is a note.
pub fn each_namespace(
    context: &Context,
    lines: &Lines,
    mut each: impl FnMut(u64) -> Result<(), String> + Send,
) -> Result<(), String> {
    let own = std::fs::metadata("/proc/thread-self/ns/net")
        .or_else(|_| std::fs::metadata(context.proc.join("thread-self/ns/net")))
        .map_or(0, |file| file.ino());
    each(own)?;
    let Some(table) = context.processes.wait(context.until) else { return Ok(()) };
    let mut others: Vec<_> = table.network_namespaces().into_iter().filter(|(inode, _)| *inode != own).collect();
    others.sort_unstable();
    if others.len() > MOST_NAMESPACES {
        lines.note(format!("{} network namespaces; the first {MOST_NAMESPACES} are read", others.len()));
        others.truncate(MOST_NAMESPACES);
    }
    for (inode, pids) in others {
        // A process may have ended, and its pid may be another's.
        let place = pids.iter().take(8).find_map(|pid| {
            let file = File::open(context.proc.join(format!("{pid}/ns/net"))).ok()?;
            (file.metadata().ok()?.ino() == inode).then_some(file)
        });
        let Some(place) = place else { continue };
        let done = thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&place, CloneFlags::CLONE_NEWNET).map_err(|error| error.to_string())?;
                each(inode)
            });
            inside.join().unwrap_or_else(|_| Err("guard made a mistake here; please report it".to_owned()))
        });
        if let Err(error) = done {
            lines.note(format!("network namespace {inode}: {error}"));
        }
    }
    Ok(())
}

/// Of a fixed header and the attributes after it.
type MakeLine = fn(&[u8], Map<String, Value>) -> Map<String, Value>;

/// One netlink dump a namespace. `line` makes a line of the fixed header and the attributes.
fn dumped(
    context: &Context,
    lines: &Lines,
    message: u16,
    header: usize,
    table: Table,
    line: MakeLine,
) -> Result<(), String> {
    each_namespace(context, lines, |namespace| {
        let request = vec![0; header];
        let consistent = netlink::dump(ROUTE, message, &request, |_, payload| {
            let Some((fixed, rest)) = payload.split_at_checked(header) else { return };
            let mut object = line(fixed, decode(rest, table));
            object.insert("namespace".into(), namespace.into());
            lines.put(&object.into());
        })
        .map_err(|error| error.to_string())?;
        if !consistent {
            lines.note("it changed while it was read: an entry may be missing or twice");
        }
        Ok(())
    })
}

pub fn interfaces(context: &Context, lines: &Lines) -> Result<(), String> {
    dumped(context, lines, 18, 16, LINK, |fixed, mut object| {
        const PROMISCUOUS: u32 = 0x100;
        let flags = number(fixed, 8).unwrap_or(0);
        let mut marks = Vec::new();
        // Members of bridges and bonds always are.
        let member = object.contains_key("master");
        let counted = object.get("promiscuity").and_then(Value::as_u64).unwrap_or(0) > 0;
        if !member && (counted || flags & PROMISCUOUS != 0) {
            marks.push("promiscuous");
        }
        if object.get("xdp").and_then(|xdp| xdp["attached"].as_u64()).is_some_and(|mode| mode != 0) {
            marks.push("xdp_program");
        }
        object.insert("index".into(), number(fixed, 4).into());
        object.insert("flags".into(), flags.into());
        object.insert("up".into(), (flags & 1 == 1).into());
        object.insert("suspicious".into(), json!(marks));
        object
    })
}

pub fn addresses(context: &Context, lines: &Lines) -> Result<(), String> {
    dumped(context, lines, 22, 8, ADDRESS, |fixed, mut object| {
        object.insert("prefix_length".into(), fixed[1].into());
        object.insert("scope".into(), fixed[3].into());
        object.insert("interface".into(), number(fixed, 4).into());
        object
    })
}

pub fn routes(context: &Context, lines: &Lines) -> Result<(), String> {
    dumped(context, lines, 26, 12, ROUTES, |fixed, mut object| {
        object.insert("family".into(), family(fixed[0]));
        object.insert("destination_length".into(), fixed[1].into());
        object.insert("source_length".into(), fixed[2].into());
        object.insert("protocol".into(), fixed[5].into());
        object.insert("scope".into(), fixed[6].into());
        object.insert("type".into(), fixed[7].into());
        object
    })
}

pub fn rules(context: &Context, lines: &Lines) -> Result<(), String> {
    dumped(context, lines, 34, 12, RULES, |fixed, mut object| {
        object.insert("family".into(), family(fixed[0]));
        object.insert("destination_length".into(), fixed[1].into());
        object.insert("source_length".into(), fixed[2].into());
        object.insert("action".into(), fixed[7].into());
        object
    })
}

pub fn neighbours(context: &Context, lines: &Lines) -> Result<(), String> {
    dumped(context, lines, 30, 12, NEIGHBOURS, |fixed, mut object| {
        object.insert("family".into(), family(fixed[0]));
        object.insert("interface".into(), number(fixed, 4).into());
        object.insert("state".into(), u16::from_ne_bytes([fixed[8], fixed[9]]).into());
        object
    })
}

/// Queueing disciplines, clsact filters and tcx programs.
pub fn traffic_control(context: &Context, lines: &Lines) -> Result<(), String> {
    each_namespace(context, lines, |namespace| {
        let mut indices = Vec::new();
        dump(18, 16, |payload| indices.extend(number(payload, 4))).map_err(|error| error.to_string())?;
        dump(38, 20, |payload| {
            let mut object = decode(payload.get(20..).unwrap_or_default(), &[(1, "kind", As::Text)]);
            object.retain(|name, _| name == "kind");
            object.insert("what".into(), "qdisc".into());
            object.insert("interface".into(), number(payload, 4).into());
            object.insert("parent".into(), number(payload, 12).map(|parent| format!("{parent:08x}")).into());
            object.insert("namespace".into(), namespace.into());
            lines.put(&object.into());
        })
        .map_err(|error| error.to_string())?;
        for index in indices {
            for (direction, name) in
                [(guard_common::Direction::Inbound, "ingress"), (guard_common::Direction::Outbound, "egress")]
            {
                for filter in kernel::filters(index, direction).map_err(|error| error.to_string())? {
                    lines.put(&json!({
                        "what": "filter", "interface": index, "hook": name, "kind": filter.kind, "handle": filter.handle,
                        "priority": filter.priority, "program": filter.program, "tag": filter.tag, "namespace": namespace,
                        "suspicious": if filter.program == 0 { vec![] } else { vec!["bpf_program_at_tc"] },
                    }));
                }
                // Older kernels have no tcx, and without privileges nobody is told.
                let programs = kernel::objects::at_tcx(index, name == "ingress").unwrap_or_default();
                if !programs.is_empty() {
                    lines.put(&json!({
                        "what": "tcx", "interface": index, "hook": name, "programs": programs, "namespace": namespace,
                        "suspicious": ["bpf_program_at_tc"],
                    }));
                }
            }
        }
        Ok(())
    })
}

fn dump(message: u16, header: usize, mut each: impl FnMut(&[u8])) -> Result<(), NetlinkError> {
    netlink::dump(ROUTE, message, &vec![0; header], |_, payload| each(payload)).map(drop)
}

fn family(number: u8) -> Value {
    match i32::from(number) {
        libc::AF_INET => "ipv4".into(),
        libc::AF_INET6 => "ipv6".into(),
        libc::AF_BRIDGE => "bridge".into(),
        other => other.into(),
    }
}

/// The machine's name, by the kernel.
pub fn host_name() -> io::Result<String> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().into_owned())
}

// Numbers of linux/if_link.h, if_addr.h, rtnetlink.h, fib_rules.h and neighbour.h.
const LINK: Table = &[
    (1, "address", As::Hex),
    (2, "broadcast", As::Hex),
    (3, "name", As::Text),
    (4, "mtu", As::Number),
    (5, "link", As::Number),
    (6, "qdisc", As::Text),
    (7, "counters_32", As::Hex),
    (10, "master", As::Number),
    (16, "state", As::Number),
    (18, "kind", As::Nested(&[(1, "name", As::Text), (2, "data", As::Hex)])),
    (20, "alias", As::Text),
    (23, "counters", As::Hex),
    (30, "promiscuity", As::Number),
    (37, "link_namespace", As::Number),
    (
        43,
        "xdp",
        As::Nested(&[
            (2, "attached", As::Number),
            (4, "program", As::Number),
            (5, "native_program", As::Number),
            (6, "generic_program", As::Number),
            (7, "offloaded_program", As::Number),
        ]),
    ),
    (53, "alternative_names", As::List(&As::Text)),
    (54, "permanent_address", As::Hex),
];
const ADDRESS: Table = &[
    (1, "address", As::Address),
    (2, "local", As::Address),
    (3, "label", As::Text),
    (4, "broadcast", As::Address),
    (6, "cache", As::Hex),
    (8, "flags", As::Number),
];
const ROUTES: Table = &[
    (1, "destination", As::Address),
    (2, "source", As::Address),
    (3, "from_interface", As::Number),
    (4, "interface", As::Number),
    (5, "gateway", As::Address),
    (6, "priority", As::Number),
    (7, "preferred_source", As::Address),
    (9, "multipath", As::Hex),
    (15, "table", As::Number),
    (16, "mark", As::Number),
    (18, "via", As::Hex),
    (21, "encapsulation_type", As::Number),
    (22, "encapsulation", As::Hex),
];
const RULES: Table = &[
    (1, "destination", As::Address),
    (2, "source", As::Address),
    (3, "from_interface", As::Text),
    (4, "goto", As::Number),
    (6, "priority", As::Number),
    (10, "mark", As::Number),
    (15, "table", As::Number),
    (16, "mask", As::Number),
    (17, "to_interface", As::Text),
    (21, "protocol", As::Number),
];
const NEIGHBOURS: Table = &[(1, "address", As::Address), (2, "link_address", As::Hex), (8, "master", As::Number)];
