//! Sockets that go round the wire layer though the seal refuses them: older than it, or made where it does not reach.
//! A packet socket is told to use the qdisc again. An AF_XDP socket cannot be told anything: in a lockdown, and only there,
//! its process is ended, after it was written down.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt, path::Path};

use guard_common::Direction;
use serde::Serialize;

use super::{
    attached::Kernel,
    difference::{Difference, Kind},
    engine::Engine,
    state_dir::StateDir,
};
use crate::{
    host::{
        direct::{self, Direct, Way},
        packet_sockets,
        picture::Picture,
        sock_diag::SocketState,
    },
    journal::{self, Entry, Event},
    kernel::{Settings, own_netns},
    lockdown::{
        destroy,
        mark::{self, Mark},
    },
};

/// What became of one. Field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Round {
    /// `packet socket of bypasses 4410`.
    pub socket: String,
    pub inode: u32,
    /// Inode of its network namespace.
    pub namespace: u64,
    pub pids: Vec<u32>,
    pub done: Done,
    /// Why it goes on; left out: it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// It sends by the qdisc, where the wire layer looks.
    BroughtBack,
    /// Its processes were ended.
    Ended,
    Left,
}

impl Round {
    fn new(socket: &Direct) -> Self {
        Self {
            socket: crate::text::escape_line(&socket.spoken()),
            inode: socket.inode,
            namespace: socket.namespace,
            pids: socket.holders.iter().map(|holder| holder.pid).collect(),
            done: Done::Left,
            error: None,
        }
    }

    /// In a sentence.
    #[must_use]
    pub fn spoken(&self) -> String {
        match (self.done, &self.error) {
            (Done::BroughtBack, _) => format!("the {} went round the wire layer: told to use the qdisc", self.socket),
            (Done::Ended, _) => format!("the {} went round the wire layer: its process was ended", self.socket),
            (Done::Left, error) => {
                let why = error.as_deref().unwrap_or("only a lockdown ends processes");
                format!("the {} goes round the wire layer: {why}", self.socket)
            }
        }
    }

    #[must_use]
    pub fn difference(&self) -> Difference {
        let difference = Difference::new(Kind::GoesRound, format!("socket {}", self.inode), self.spoken());
        if self.done == Done::Left { difference } else { difference.repaired() }
    }
}

/// Processes that are not ended: guard's own, those that this command runs under, and those that carry the way in.
#[derive(Debug, Default)]
pub struct Spared(HashSet<u32>);

impl Spared {
    /// `carriers`: processes that carry the session of whoever asks, as far as that is known.
    #[must_use]
    pub fn of(picture: &Picture, mark: &Mark, carriers: &[u32]) -> Self {
        let exe = |pid: &str| fs::metadata(format!("/proc/{pid}/exe")).map(|file| (file.dev(), file.ino())).ok();
        let own = exe("self");
        let of_guard = picture.processes.iter().map(|process| process.pid);
        let of_guard = of_guard.filter(|pid| own.is_some() && exe(&pid.to_string()) == own);
        let way_in = picture.sockets.all.iter().filter(|socket| socket.state == SocketState::Established);
        let way_in = way_in.filter(|socket| {
            let listed = mark.ports.contains(&socket.local.port())
                && mark.ways.iter().any(|range| range.contains(&socket.remote.ip()));
            listed || mark.sessions.iter().any(|open| (open.local, open.remote) == (socket.local, socket.remote))
        });
        let way_in = way_in.flat_map(|socket| picture.processes.holders(picture.sockets.holder(socket)));
        let first: Vec<u32> = [1, std::process::id()]
            .into_iter()
            .chain(carriers.iter().copied())
            .chain(of_guard)
            .chain(way_in.map(|process| process.pid))
            .collect();
        let mut all: HashSet<u32> = first.iter().copied().collect();
        all.extend(first.iter().flat_map(|pid| picture.processes.ancestors(*pid)).map(|process| process.pid));
        Self(all)
    }
}

/// Whether what goes out is held by the policy that judges now.
#[must_use]
pub fn enforces(engine: &dyn Engine) -> bool {
    let Ok((state, boot_ns)) = engine.state() else { return false };
    let slot = usize::from(state.word.effective_slot(boot_ns).0);
    state.slots.get(slot).is_some_and(|slot| slot.flags.enforces(Direction::Outbound))
}

/// Brings back, and in a lockdown ends, what goes round the wire of this network namespace, or of another that a process of
/// the guarded cgroup is in. `mark`: of the lockdown that holds; then each is in the timeline first. The caller has seen
/// that the policy enforces.
pub fn see_to(state: &StateDir, cgroup: &Path, all: &[Direct], mark: Option<(&Mark, &[u32])>) -> Vec<Round> {
    let found = ours(cgroup, all);
    let found: Vec<&Direct> = found.into_iter().filter(|socket| mark.is_some() || !socket.xdp).collect();
    if found.is_empty() {
        return Vec::new();
    }
    let spared = mark.map(|(mark, carriers)| {
        // Nothing is ended where it is not known who is who.
        Picture::read().map(|picture| Spared::of(&picture, mark, carriers)).map_err(|error| error.to_string())
    });
    if spared.is_some() {
        write_down(state, &found, |socket| if socket.xdp { "ends the process with the" } else { "brings back the" });
    }
    found.into_iter().filter_map(|socket| one(state, socket, spared.as_ref())).collect()
}

fn write_down(state: &StateDir, sockets: &[&Direct], will: impl Fn(&Direct) -> &'static str) {
    let entry = |socket: &&Direct| {
        let round = Round::new(socket);
        Entry::new(Event::Lockdown, format!("{} {}, which goes round the wire layer", will(socket), round.socket))
            .details(serde_json::to_value(&round).unwrap_or_default())
    };
    let entries: Vec<Entry> = sockets.iter().map(entry).collect();
    if let Err(error) = journal::append(state.path(), &entries) {
        eprintln!("notice: these sockets are not in the timeline: {}", crate::text::escape_line(&error.to_string()));
    }
}

/// `None`: it is gone by itself.
fn one(state: &StateDir, socket: &Direct, spared: Option<&Result<Spared, String>>) -> Option<Round> {
    let mut round = Round::new(socket);
    if !socket.xdp {
        match socket.bring_back() {
            Ok(()) => {
                round.done = Done::BroughtBack;
                return Some(round);
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EBADF)) => return None,
            Err(error) => round.error = Some(format!("it takes no option: {error}")),
        }
        if spared.is_some() {
            write_down(state, &[socket], |_| "ends the process with the");
        }
    }
    let Some(spared) = spared else { return Some(round) };
    match end(socket, spared) {
        Ok(()) => (round.done, round.error) = (Done::Ended, None),
        Err(error) => round.error = Some(error),
    }
    Some(round)
}

fn end(socket: &Direct, spared: &Result<Spared, String>) -> Result<(), String> {
    let Spared(spared) = spared.as_ref().map_err(|error| format!("who carries your session is not known: {error}"))?;
    let own = own_netns().unwrap_or(0);
    if socket.namespace != own {
        return Err("it is in another network namespace, and its process is left".to_owned());
    }
    let mut left = Vec::new();
    for holder in &socket.holders {
        if spared.contains(&holder.pid) {
            left.push(format!("{holder} carries your session, or is guard's own, and is left"));
        } else if let Err(error) = holder.end() {
            left.push(format!("{holder}: {error}"));
        }
    }
    if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
}

/// Those that go round, as far as they are guard's to see to.
#[must_use]
pub fn ours<'a>(cgroup: &Path, all: &'a [Direct]) -> Vec<&'a Direct> {
    let own = own_netns().unwrap_or(0);
    let mut round: Vec<&Direct> = all.iter().filter(|socket| socket.way == Way::Round).collect();
    if round.iter().any(|socket| socket.namespace != own) {
        let guarded = destroy::namespaces(cgroup);
        // What an AF_XDP socket in another namespace sends comes in here over a device that is judged.
        round.retain(|socket| socket.namespace == own || (!socket.xdp && guarded.contains_key(&socket.namespace)));
    }
    round
}

/// What of this network namespace's sockets goes round the wire layer, or may, in words.
#[must_use]
pub fn unsure(settings: &Settings) -> Vec<String> {
    let all: Vec<Direct> = direct::find().into_iter().filter(|socket| socket.namespace == settings.netns).collect();
    let list = |sockets: &[&Direct]| {
        let names: Vec<String> = sockets.iter().map(|socket| crate::text::escape_line(&socket.spoken())).collect();
        names.join(", ")
    };
    let mut lines = Vec::new();
    let (xdp, packet): (Vec<&Direct>, Vec<&Direct>) =
        all.iter().filter(|socket| socket.way == Way::Round).partition(|socket| socket.xdp);
    if !packet.is_empty() {
        lines.push(format!(
            "{} packet sockets go round the wire layer (PACKET_QDISC_BYPASS): {}; where guard enforces they are told \
             not to",
            packet.len(),
            list(&packet)
        ));
    }
    if !xdp.is_empty() {
        lines.push(format!(
            "{} AF_XDP sockets are open, and no program of guard's sees what they send: {}; a lockdown ends their processes",
            xdp.len(),
            list(&xdp)
        ));
    }
    let asked = all.iter().filter(|socket| !matches!(socket.way, Way::Unknown(_))).map(|socket| socket.inode).collect();
    let unasked = &packet_sockets::packet() - &asked;
    if !unasked.is_empty() {
        lines.push(format!(
            "{} packet sockets could not be asked whether they go round the wire layer (PACKET_QDISC_BYPASS): {}; restart \
             what you know, look at the rest",
            unasked.len(),
            crate::text::escape_line(&packet_sockets::holders(&unasked))
        ));
    }
    lines
}

/// All of it once, at a start; each is in the timeline.
pub fn see_to_now(kernel: &Kernel, state: &StateDir) -> Vec<Round> {
    if !enforces(kernel) {
        return Vec::new();
    }
    // Damage to what is kept is told by others; nothing is ended on its word.
    let mark = mark::holding(state).ok().flatten().map(|(_, mark)| mark);
    let done = see_to(state, &kernel.settings().cgroup, &direct::find(), mark.as_ref().map(|mark| (mark, &[][..])));
    for round in &done {
        let details = serde_json::to_value(round).unwrap_or_default();
        journal::record(state.path(), &Entry::new(Event::Alert, round.spoken()).details(details));
    }
    done
}
