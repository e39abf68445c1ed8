//! What a run must not leave behind: network namespaces, cgroups, pins, programs and processes; and where
//! some of its servers would write, were they not kept from it.

use super::Outcome;
use crate::shell;
use anyhow::{Context as _, Result};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What there was at one moment: what it is, by a name for people.
pub struct Scene(BTreeSet<String>);

impl Scene {
    /// Also makes this process the one to which orphans of the run come home, so that none can hide.
    pub fn now() -> Result<Self> {
        nix::sys::prctl::set_child_subreaper(true).context("cannot adopt orphans")?;
        Ok(Self(look()))
    }
}

pub fn check(before: &Scene) -> Result<Outcome> {
    // The kernel frees programs, and systemd-less cgroups, a moment after their last user.
    let start = Instant::now();
    let left = loop {
        reap();
        let left: Vec<String> = look().into_iter().filter(|thing| !before.0.contains(thing)).collect();
        let (others, ours): (Vec<_>, Vec<_>) = left.into_iter().partition(|thing| of_another_run(thing));
        if ours.is_empty() || start.elapsed() > Duration::from_secs(5) {
            for thing in others {
                println!("of another run, that goes on: {thing}");
            }
            break ours;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    for thing in &left {
        println!("left behind: {thing}");
    }
    Ok(match left.len() {
        0 => Outcome::Passed { tests: 1 },
        n => Outcome::Failed { passed: 0, failed: 1, why: format!("{n} things left behind") },
    })
}

/// Orphans that came home and have ended. One that entered a PID namespace keeps that namespace's first process until then.
fn reap() {
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
}

/// On a developer's machine other runs may go on beside: their things carry the pid of their maker, and their programs
/// cannot be told from ours. CI is alone.
fn of_another_run(thing: &str) -> bool {
    if std::env::var_os("CI").is_some() {
        return false;
    }
    thing.starts_with("program ")
        || thing
            .split(|c: char| !c.is_ascii_digit())
            .any(|digits| digits.len() > 2 && Path::new("/proc").join(digits).is_dir())
}

fn look() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for dir in ["/run/netns", "/sys/fs/bpf", "/sys/fs/bpf/guard"] {
        for name in names(Path::new(dir)) {
            all.insert(format!("{dir}/{name}"));
        }
    }
    all.extend(SERVERS.iter().filter(|path| Path::new(path).exists()).map(|path| format!("file {path}")));
    cgroups(&mut all);
    programs(&mut all);
    children(&mut all);
    all
}

/// No package that a run installs has these: cron's and chrony's own do, and those are only unpacked.
const SERVERS: &[&str] = &["/etc/crontab", "/etc/chrony", "/var/spool/cron", "/var/lib/chrony"];

fn names(dir: &Path) -> Vec<String> {
    // A directory that is not there holds nothing.
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn cgroups(all: &mut BTreeSet<String>) {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let Some(root) = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let dir = fields.next()?;
        (fields.next()? == "cgroup2").then_some(dir)
    }) else {
        return;
    };
    let mut todo = vec![std::path::PathBuf::from(root)];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                all.insert(format!("cgroup {}", entry.path().display()));
                todo.push(entry.path());
            }
        }
    }
}

fn programs(all: &mut BTreeSet<String>) {
    let Some(bpftool) = shell::find("bpftool").filter(|_| shell::is_root()) else { return };
    let Ok(json) = shell::output(Command::new(bpftool).args(["--json", "prog", "show"])) else { return };
    let list: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap_or_default();
    for program in list {
        let name = program["name"].as_str().unwrap_or("without a name");
        all.insert(format!("program {} ({name}, {})", program["id"], program["type"].as_str().unwrap_or("?")));
    }
}

/// Processes below this one, the program that looks excepted.
fn children(all: &mut BTreeSet<String>) {
    let mut parents = BTreeMap::new();
    for name in names(Path::new("/proc")) {
        let Ok(pid) = name.parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name, in parentheses, may itself hold spaces and parentheses.
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let mut fields = tail.split_whitespace();
        let (Some(state), Some(Ok(parent))) = (fields.next(), fields.next().map(str::parse::<u32>)) else { continue };
        if state != "Z" {
            let name = head.split_once('(').map_or("?", |(_, name)| name).to_owned();
            parents.insert(pid, (parent, name));
        }
    }
    let us = std::process::id();
    for (pid, (_, name)) in &parents {
        let mut at = *pid;
        while let Some((parent, _)) = parents.get(&at) {
            if *parent == us {
                all.insert(format!("process {pid} ({name})"));
                break;
            }
            at = *parent;
        }
    }
}
