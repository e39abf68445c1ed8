//! BPF programs, maps and links of the whole machine, and what stands at its cgroups.

use std::{collections::HashSet, fmt::Display, fs, os::unix::fs::DirEntryExt, path::PathBuf};

use serde::Serialize;
use serde_json::json;

use super::{Context, lines::Lines};
use crate::kernel::objects::{self, Kind};

/// More cgroups are not asked.
const MOST_CGROUPS: usize = 2_000;

pub fn programs(context: &Context, lines: &Lines) -> Result<(), String> {
    let own = own(context);
    every(lines, Kind::Program, objects::program, |program| {
        let mut marks = Vec::new();
        if own.contains(&program.id) {
            return marks;
        }
        match program.kind.as_str() {
            "sched_cls" | "sched_act" | "xdp" | "cgroup_skb" | "cgroup_sock" | "cgroup_sock_addr"
            | "cgroup_sockopt" | "sk_skb" | "sk_msg" | "sock_ops" | "netfilter" | "lwt_in" | "lwt_out" | "lwt_xmit"
            | "sk_lookup" => {
                marks.push("network_program_not_guards");
            }
            "kprobe"
            | "tracepoint"
            | "raw_tracepoint"
            | "raw_tracepoint_writable"
            | "tracing"
            | "lsm"
            | "perf_event"
            | "struct_ops"
            | "ext" => marks.push("watches_or_changes_the_kernel"),
            _ => {}
        }
        marks
    })
}

pub fn maps(_: &Context, lines: &Lines) -> Result<(), String> {
    every(lines, Kind::Map, objects::map, |map| if map.kind == "xskmap" { vec!["for_xdp_sockets"] } else { vec![] })
}

pub fn links(context: &Context, lines: &Lines) -> Result<(), String> {
    let own = own(context);
    every(lines, Kind::Link, objects::link, |link| {
        let network = matches!(link.kind.as_str(), "xdp" | "tcx" | "netkit" | "netfilter" | "cgroup" | "netns");
        if network && !own.contains(&link.program) { vec!["not_guards"] } else { vec![] }
    })
}

fn every<T: Serialize>(
    lines: &Lines,
    kind: Kind,
    read: fn(u32) -> std::io::Result<Option<T>>,
    marks: impl Fn(&T) -> Vec<&'static str>,
) -> Result<(), String> {
    let (ids, more) = objects::ids(kind).map_err(privileged)?;
    for id in ids {
        match read(id) {
            Ok(None) => {}
            Ok(Some(object)) => {
                let mut value = serde_json::to_value(&object).unwrap_or_default();
                value["suspicious"] = json!(marks(&object));
                lines.put(&value);
            }
            Err(error) => lines.note(format!("id {id}: {error}")),
        }
    }
    if more {
        lines.note("there are more than are listed");
    }
    Ok(())
}

/// Programs that were attached to a cgroup itself, by link or without.
pub fn cgroups(context: &Context, lines: &Lines) -> Result<(), String> {
    let mounts = mounts(context);
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(place))
    });
    let Some(root) = root else {
        lines.note("no cgroup2 is mounted here");
        return Ok(());
    };
    let (mut places, mut asked) = (vec![root.clone()], 0);
    while let Some(place) = places.pop() {
        asked += 1;
        if asked > MOST_CGROUPS {
            lines.note(format!("more than {MOST_CGROUPS} cgroups: the rest was not asked"));
            break;
        }
        match objects::at_cgroup(&place) {
            Ok(found) => {
                for (hook, programs) in found {
                    let path = place.strip_prefix(&root).unwrap_or(&place).to_string_lossy();
                    lines.put(&json!({ "cgroup": format!("/{path}"), "hook": hook, "programs": programs }));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(privileged(error)),
        }
        let entries = fs::read_dir(&place).into_iter().flatten().flatten();
        places.extend(
            entries
                .filter(|entry| entry.ino() != 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    Ok(())
}

fn own(context: &Context) -> HashSet<u32> {
    objects::bpffs(&mounts(context)).iter().flat_map(|place| objects::guards_own(place)).collect()
}

fn mounts(context: &Context) -> String {
    fs::read(context.proc.join("self/mounts"))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn privileged(error: impl Display) -> String {
    format!("{error}: only root may list BPF objects")
}
