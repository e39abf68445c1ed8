//! Flows to processes: whoever asked at the socket layer, whoever listens or holds the socket, or, for what is
//! forwarded, the container.

mod forwarded;
mod programs;
mod sockets;

use std::net::SocketAddr;

use guard_common::{
    Direction, Verdict,
    abi::{Flow, Owner},
};

use self::{
    forwarded::{Behind, Forwarded},
    programs::Programs,
    sockets::SocketMap,
};
use super::{
    clock::boot_now,
    flow::{Key, has_ports},
    recent::Recent,
    who::{FoundBy, Shared, Unusual, Who},
};
use crate::host::identity::{Identities, is_interpreter};

/// What was found of one flow.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// `None`: no process is to be expected, since nothing listens there, or the kernel itself answers.
    pub who: Option<Shared>,
    /// Inbound: whether something listened on the port. `None`: not known.
    pub listening: Option<bool>,
}

/// Processes that are remembered.
const PROCESSES: usize = 8_192;

#[derive(Debug)]
pub struct Attributor {
    identities: Identities,
    sockets: SocketMap,
    forwarded: Forwarded,
    programs: Programs,
    /// By pid, as last read.
    processes: Recent<u32, Shared>,
    unknown: Shared,
}

impl Default for Attributor {
    fn default() -> Self {
        let identities = Identities::default();
        Self {
            programs: Programs::new(&identities),
            identities,
            sockets: SocketMap::default(),
            forwarded: Forwarded::default(),
            processes: Recent::new(PROCESSES),
            unknown: Shared::default(),
        }
    }
}

impl Attributor {
    /// One event of the `PROCESSES` ring.
    pub fn told(&mut self, event: &[u8]) {
        if let Some(pid) = self.programs.told(event, &mut self.identities) {
            self.processes.remove(&pid);
        }
    }

    /// Whoever the socket layer saw.
    pub fn of_owner(&mut self, owner: &Owner) -> Shared {
        if let Some(who) = self.process(owner.pid, owner.time, FoundBy::Socket) {
            return who;
        }
        // Gone already, or its number is another's by now.
        if let Some(mut who) = self.programs.at(owner.pid, owner.time, &self.identities) {
            who.found_by = FoundBy::Socket;
            who.container = who.container.map(|container| self.identities.describe_container(container.id));
            return who.into();
        }
        let end = owner.comm.iter().position(|&byte| byte == 0).unwrap_or(owner.comm.len());
        Who {
            found_by: FoundBy::Socket,
            pid: owner.pid,
            comm: String::from_utf8_lossy(&owner.comm[..end]).into_owned(),
            uid: Some(owner.uid),
            user: self.identities.user(owner.uid),
            ..Who::default()
        }
        .into()
    }

    /// The same process as it is now, if it is unusual in a way that it was not then.
    pub fn look_again(&mut self, who: &Who) -> Option<Shared> {
        self.identities.stat(who.pid).filter(|stat| stat.started == who.started)?;
        self.processes.remove(&who.pid);
        let now = self.process(who.pid, boot_now(), who.found_by)?;
        now.unusual.iter().any(|unusual| !who.unusual.contains(unusual)).then_some(now)
    }

    /// `owner`: where the socket layer saw one.
    pub fn of_flow(&mut self, key: &Key, flow: &Flow, owner: Option<&Owner>) -> Found {
        if let Some(owner) = owner {
            return Found { who: Some(self.of_owner(owner)), listening: None };
        }
        if !has_ports(key.protocol()) {
            // The kernel answers; what asks is not known.
            let asks = Direction::from_u8(flow.direction) == Direction::Outbound;
            let who = self.behind(key, flow).or_else(|| asks.then(|| self.unknown.clone()));
            return Found { who, listening: None };
        }
        match Direction::from_u8(flow.direction) {
            Direction::Inbound => self.inbound(key, flow),
            Direction::Outbound => Found { who: Some(self.outbound(key, flow)), listening: None },
        }
    }

    fn inbound(&mut self, key: &Key, flow: &Flow) -> Found {
        let (protocol, local) = (key.protocol(), SocketAddr::new(key.local(), key.local_port()));
        let remote = SocketAddr::new(key.remote(), key.remote_port());
        // What was there before guard is known by its own socket; what came later by whoever listens.
        let adopted = flow.flags & Flow::ADOPTED != 0;
        let mut found = self.sockets.waiting(protocol, local);
        if found.is_none() && self.sockets.look(flow.first_seen) {
            found = self.sockets.waiting(protocol, local);
        }
        let own = if adopted || found.is_none() { self.sockets.connected(protocol, local, remote) } else { None };
        let listening = match found {
            Some(_) => Some(true),
            // Of a picture that is older than the flow nothing can be said.
            None => self.sockets.is_of(flow.first_seen).then_some(false),
        };
        // A published port of a container may have a proxy of its engine's listening here, that no packet ever reaches.
        if own.is_none()
            && let Some(who) = self.behind(key, flow)
        {
            return Found { who: Some(who), listening: None };
        }
        let inode = own.filter(|inode| *inode != 0).or(found);
        let how = if adopted { FoundBy::SockDiag } else { FoundBy::Accept };
        let who = inode.and_then(|inode| self.holder(inode, how));
        let expected = listening != Some(false) && flow.outcome.verdict() == Verdict::Allow;
        Found { who: who.or_else(|| expected.then(|| self.unknown.clone())), listening }
    }

    fn outbound(&mut self, key: &Key, flow: &Flow) -> Shared {
        let (protocol, local) = (key.protocol(), SocketAddr::new(key.local(), key.local_port()));
        let remote = SocketAddr::new(key.remote(), key.remote_port());
        let find = |sockets: &SocketMap| {
            sockets.connected(protocol, local, remote).or_else(|| sockets.waiting(protocol, local))
        };
        let mut inode = find(&self.sockets);
        if inode.is_none() && self.sockets.look(flow.first_seen) {
            inode = find(&self.sockets);
        }
        inode
            .filter(|inode| *inode != 0)
            .and_then(|inode| self.holder(inode, FoundBy::SockDiag))
            .or_else(|| self.behind(key, flow))
            .unwrap_or_else(|| self.unknown.clone())
    }

    /// Whoever is behind this host: the process where it still holds its socket, else the container alone.
    fn behind(&mut self, key: &Key, flow: &Flow) -> Option<Shared> {
        let (protocol, local) = (key.protocol(), SocketAddr::new(key.local(), key.local_port()));
        let remote = SocketAddr::new(key.remote(), key.remote_port());
        let (behind, end) = self.forwarded.behind(protocol, local, remote, flow.first_seen)?;
        let Behind { netns, pid } = behind;
        let holder =
            self.forwarded.socket(behind, protocol, end).and_then(|inode| self.holder(inode, FoundBy::Forwarded));
        if let Some(who) = holder {
            return Some(who);
        }
        let first = self.process(pid, boot_now(), FoundBy::Forwarded)?;
        let (container, unit) = (first.container.clone(), first.unit.clone());
        Some(Who { found_by: FoundBy::Forwarded, netns: Some(netns), container, unit, ..Who::default() }.into())
    }

    fn holder(&mut self, inode: u32, how: FoundBy) -> Option<Shared> {
        let pid = self.sockets.holder(inode, &self.identities)?;
        self.process(pid, boot_now(), how)
    }

    /// The process with this id at a time (boot-time nanoseconds), if it still lives.
    fn process(&mut self, pid: u32, at: u64, how: FoundBy) -> Option<Shared> {
        // Whoever started later only has its number.
        let stat = self.identities.stat(pid).filter(|stat| stat.started <= at)?;
        if let Some(known) = self.processes.get(&pid)
            && known.started == stat.started
            && known.comm == stat.comm
            && known.found_by == how
            // Its engine may not have written it down yet when it was first seen.
            && known.container.as_ref().is_none_or(|container| {
                container.name.is_some() || self.identities.describe_container(container.id.clone()).name.is_none()
            })
        {
            return Some(known.clone());
        }
        let mut who = self.identities.read(pid).filter(|who| who.started == stat.started)?;
        // One that is just ending has given up some of it already.
        if (who.exe.is_none() || who.uid.is_none() || who.args.is_empty())
            && let Some(told) = self.programs.at(pid, at, &self.identities)
        {
            who = told;
            who.container = who.container.map(|container| self.identities.describe_container(container.id));
        }
        who.found_by = how;
        self.look_at_streams(&mut who);
        let who = Shared::new(who);
        self.processes.insert(pid, who.clone());
        Some(who)
    }

    /// A shell or interpreter whose standard streams are a socket of the network: that of a pipe to the journal is of
    /// the UNIX family, and everyday.
    fn look_at_streams(&mut self, who: &mut Who) {
        let interprets = who.program().is_some_and(is_interpreter);
        if interprets && !who.unusual.contains(&Unusual::SocketOnStandardStreams) {
            let sockets = self.identities.standard_sockets(who.pid);
            if !sockets.is_empty() && self.sockets.any_of_network(&sockets) {
                who.unusual.push(Unusual::SocketOnStandardStreams);
            }
        }
    }
}
