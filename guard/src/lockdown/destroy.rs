//! Ends the sockets of what the policy does not allow: their programs learn of it at once, and nothing of them is left to
//! go on when the host opens again. Only in network namespaces that a guarded process is in; each is told with its
//! process before it goes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
};

use guard_common::{Direction, Reason, Verdict, abi::Flow};
use nix::sched::{CloneFlags, setns};
use serde::Serialize;

use crate::{
    daemon::change::Examined,
    host::{
        conntrack::Tracked,
        held::{self, HeldFlow},
        identity::Identities,
        picture::{Judged, Picture},
        sock_diag::{self, Socket, SocketState},
    },
    lockdown::mark::Open,
    policy::model::Policy,
    record::{
        flow::{Key, UDP},
        who::{FoundBy, Who},
    },
};

/// One socket.
#[derive(Clone, Debug, Serialize)]
pub struct Destroyed {
    /// As `explain` reads it.
    pub flow: String,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub protocol: u8,
    /// Inode of its network namespace.
    pub namespace: u64,
    /// Left out: no process is seen to hold it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<Who>,
    /// Left out: it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Sockets that are to go, in one network namespace.
pub struct Doomed {
    place: Option<File>,
    pub namespace: u64,
    pub sockets: Vec<(Destroyed, Socket)>,
}

/// What decides.
pub struct Judge<'a> {
    pub policy: &'a Policy,
    pub examined: &'a Examined,
    /// guard's own tables, read after the flip.
    pub flows: &'a [(Key, Flow)],
    /// Whether the wire judges what crosses the interface with this index, in guard's own namespace.
    pub guarded: &'a dyn Fn(u32) -> bool,
    /// Sessions that are cut by choice though the policy would allow them, by the cookie of their socket.
    pub chosen: &'a [u64],
    /// Sessions that go on though no rule lists them.
    pub spared: &'a [Open],
}

/// Finds them everywhere. Errors of one namespace do not hold up the others: they are the second part.
pub fn find(judge: &Judge<'_>, cgroup: &Path) -> (Vec<Doomed>, Vec<String>) {
    let mut problems = Vec::new();
    let places = namespaces(cgroup);
    let own = fs::metadata("/proc/thread-self/ns/net").map_or(0, |file| file.ino());
    let mut pictures: Vec<(u64, Option<File>, Picture)> = Vec::new();
    match Picture::read() {
        Ok(picture) => pictures.push((own, None, picture)),
        Err(error) => problems.push(error.to_string()),
    }
    for (inode, file) in places {
        if inode == own {
            continue;
        }
        match inside(&file, Picture::read) {
            Ok(Ok(picture)) => pictures.push((inode, Some(file), picture)),
            Ok(Err(error)) => problems.push(format!("network namespace {inode}: {error}")),
            Err(error) => problems.push(format!("network namespace {inode}: {error}")),
        }
    }
    // What stays on this machine, whichever namespace it is in, is not the policy's.
    let here: HashSet<IpAddr> = pictures.iter().flat_map(|(_, _, picture)| picture.own.iter().copied()).collect();
    let tracked: Vec<Tracked> = pictures.first().map(|(_, _, own)| own.tracked.clone()).unwrap_or_default();
    let mut identities = Identities::default();
    let doomed = pictures
        .into_iter()
        .map(|(namespace, place, picture)| {
            let others = place.is_some();
            let mut found = judge.doomed(&picture, others, &here, &tracked);
            found.sort_by_key(|(flow, _)| (flow.direction, flow.key));
            let sockets = found
                .into_iter()
                .map(|(flow, socket)| {
                    let mut holders = picture.processes.holders(picture.sockets.holder(&socket));
                    let destroyed = Destroyed {
                        flow: flow.key.spoken(flow.direction),
                        local: socket.local,
                        remote: SocketAddr::new(flow.key.remote(), flow.key.remote_port()),
                        protocol: socket.protocol,
                        namespace,
                        // The first may have ended since.
                        who: holders.find_map(|holder| {
                            let who = identities.read(holder.pid)?;
                            Some(Who { found_by: FoundBy::SockDiag, ..who })
                        }),
                        error: None,
                    };
                    (destroyed, socket)
                })
                .collect();
            Doomed { place, namespace, sockets }
        })
        .filter(|doomed| !doomed.sockets.is_empty())
        .collect();
    (doomed, problems)
}

impl Doomed {
    /// Ends them; what could not be is said with each.
    #[must_use]
    pub fn destroy(self) -> Vec<Destroyed> {
        let mut sockets = self.sockets;
        let end = |sockets: &mut Vec<(Destroyed, Socket)>| {
            for (destroyed, socket) in sockets {
                if let Err(error) = sock_diag::destroy(socket) {
                    // It ended by itself meanwhile.
                    if !error.is_gone() {
                        destroyed.error = Some(error.to_string());
                    }
                }
            }
        };
        let failed = match &self.place {
            None => {
                end(&mut sockets);
                None
            }
            Some(file) => inside(file, || end(&mut sockets)).err(),
        };
        let mut done: Vec<Destroyed> = sockets.into_iter().map(|(destroyed, _)| destroyed).collect();
        if let Some(error) = failed {
            done.iter_mut().for_each(|destroyed| destroyed.error = Some(error.clone()));
        }
        done
    }
}

impl Judge<'_> {
    fn doomed(
        &self,
        picture: &Picture,
        others: bool,
        here: &HashSet<IpAddr>,
        tracked: &[Tracked],
    ) -> Vec<(HeldFlow, Socket)> {
        let by_cookie: HashMap<u64, &Socket> = picture
            .sockets
            .all
            .iter()
            .filter(|socket| socket.cookie != 0)
            .map(|socket| (socket.cookie, socket))
            .collect();
        let held = if others {
            picture.held(Judged::guarded(&|_| true), Vec::new())
        } else {
            picture.held(Judged::guarded(self.guarded), self.flows.to_vec())
        };
        let mut found: Vec<(HeldFlow, Socket)> = Vec::new();
        let mut busy: HashSet<u64> = HashSet::new();
        for flow in held {
            let Some(socket) = by_cookie.get(&flow.cookie) else { continue };
            if here.contains(&flow.key.remote()) {
                continue;
            }
            let asked = if others { as_on_the_wire(&flow, tracked) } else { flow.clone() };
            let spared = !others && self.spared.iter().any(|open| (open.local, open.remote) == flow.ends());
            let denied = !spared && self.denies(&asked);
            if denied || self.chosen.contains(&socket.cookie) {
                found.push((flow, **socket));
            } else {
                busy.insert(socket.cookie);
            }
        }
        if !others {
            found.extend(self.datagrams(picture));
        }
        // An unconnected socket that also serves what is allowed stays; the wire drops the rest.
        found.retain(|(_, socket)| socket.state != SocketState::Close || !busy.contains(&socket.cookie));
        let mut seen = HashSet::new();
        found.retain(|(_, socket)| seen.insert(socket.cookie));
        found
    }

    fn denies(&self, flow: &HeldFlow) -> bool {
        let class = |index| {
            let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
            name.map_or(0, |name| self.examined.compiled.interface_class(&name))
        };
        let now = crate::record::clock::boot_now();
        let decision = held::decide(&self.examined.compiled.nodes, flow, &class, now);
        let unnamed = self.policy.lockdown && flow.adopted && flow.direction == Direction::Inbound && !decision.named;
        decision.outcome.verdict() == Verdict::Deny || unnamed
    }

    /// UDP that names its peer with each packet: known only by what the programs denied of it.
    fn datagrams(&self, picture: &Picture) -> Vec<(HeldFlow, Socket)> {
        let unconnected: Vec<&Socket> = picture
            .sockets
            .all
            .iter()
            .filter(|socket| socket.protocol == UDP && socket.state == SocketState::Close && socket.cookie != 0)
            .collect();
        let mut found = Vec::new();
        for (key, flow) in self.flows {
            let denied = flow.outcome.verdict() == Verdict::Deny && flow.outcome.reason() != Reason::Tracking;
            // What came in from outside and was denied is not the socket's doing.
            let outbound = Direction::from_u8(flow.direction) == Direction::Outbound;
            if key.protocol() != UDP || !denied || !outbound {
                continue;
            }
            let socket = unconnected.iter().find(|socket| {
                socket.cookie == flow.socket_cookie
                    || (flow.socket_cookie == 0 && socket.local.port() == key.local_port() && key.local_port() != 0)
            });
            let Some(socket) = socket else { continue };
            found.push((
                HeldFlow {
                    key: *key,
                    direction: Direction::Outbound,
                    interface: None,
                    tcp: guard_common::abi::TcpState::None,
                    answered: false,
                    cookie: socket.cookie,
                    adopted: false,
                    source: held::Source::Table,
                    program: None,
                },
                **socket,
            ));
        }
        found
    }
}

/// A container's inbound flow, by the port at which the host is asked for it: that is what the policy lists.
fn as_on_the_wire(flow: &HeldFlow, tracked: &[Tracked]) -> HeldFlow {
    let (local, remote) = flow.ends();
    let translated = tracked
        .iter()
        .filter(|tracked| tracked.protocol == flow.key.protocol() && flow.direction == Direction::Inbound)
        .find(|tracked| tracked.reply.source == local && tracked.original.source == remote)
        .and_then(|tracked| {
            let asked = tracked.original.destination;
            held::key(flow.key.protocol(), remote, asked, 0)
        });
    HeldFlow { key: translated.unwrap_or(flow.key), ..flow.clone() }
}

/// Network namespaces of the processes in a control group and below it, by inode.
pub fn namespaces(cgroup: &Path) -> BTreeMap<u64, File> {
    let mut found = BTreeMap::new();
    let mut todo = vec![cgroup.to_owned()];
    while let Some(directory) = todo.pop() {
        for pid in fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
            // It may have ended.
            let Ok(file) = File::open(format!("/proc/{pid}/ns/net")) else { continue };
            let Ok(inode) = file.metadata().map(|file| file.ino()) else { continue };
            found.entry(inode).or_insert(file);
        }
        let below = fs::read_dir(&directory).into_iter().flatten().flatten();
        todo.extend(below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
    }
    found
}

/// In a thread of its own: where this process is does not change.
fn inside<T: Send>(place: &File, run: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(place, CloneFlags::CLONE_NEWNET).map_err(|error| format!("cannot be entered: {error}"))?;
            Ok(run())
        });
        thread.join().unwrap_or_else(|_| Err("guard made a mistake here; please report it".to_owned()))
    })
}

/// For the timeline: one line a socket, with its process.
#[must_use]
pub fn spoken(destroyed: &Destroyed) -> String {
    let who = match &destroyed.who {
        Some(who) => {
            let user = who.user.clone().or_else(|| who.uid.map(|uid| uid.to_string())).unwrap_or_default();
            format!("{} pid {} {user}", who.program().unwrap_or("?"), who.pid)
        }
        None => "no process that is seen".to_owned(),
    };
    format!("{} of {who}", destroyed.flow)
}
