//! All that is read of the host before a policy is enforced, in one go.

use std::{
    collections::{HashMap, HashSet},
    io::{self, IsTerminal},
    net::IpAddr,
};

use guard_common::abi::{Flow, TcpState};

use super::{
    NetlinkError,
    conntrack::{self, Tracked},
    datagrams::of_datagrams,
    held::{self, HeldFlow, Network},
    processes::Processes,
    route::{self, Routes},
    session::{self, Found, Session},
    sock_diag::{self, Sockets, SocketsError},
};
use crate::record::flow::Key;

#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    #[error("cannot list this host's own addresses: {0}")]
    Addresses(NetlinkError),
    #[error("cannot read connection tracking: {0}")]
    Conntrack(NetlinkError),
    #[error("cannot read /proc: {0}")]
    Processes(#[from] io::Error),
}

/// Sockets, processes, forwarded flows and addresses, as they were at one moment.
#[derive(Debug)]
pub struct Picture {
    pub sockets: Sockets,
    pub processes: Processes,
    pub tracked: Vec<Tracked>,
    pub conntrack: conntrack::Source,
    pub own: HashSet<IpAddr>,
    pub unix_peers: HashMap<u32, u32>,
}

impl Picture {
    pub fn read() -> Result<Self, PictureError> {
        let sockets = sock_diag::sockets()?;
        let (tracked, conntrack) = conntrack::tracked().map_err(PictureError::Conntrack)?;
        Ok(Self {
            sockets,
            tracked,
            conntrack,
            own: route::own_addresses().map_err(PictureError::Addresses)?,
            processes: Processes::read()?,
            // Only multiplexers are found by these; a kernel without them has the terminals still.
            unix_peers: sock_diag::unix_peers().unwrap_or_default(),
        })
    }

    /// The flows that cross a guarded interface. `tables`: what guard's own tables hold.
    pub fn held(&self, judged: Judged<'_>, tables: Vec<(Key, Flow)>) -> Vec<HeldFlow> {
        let network = judged.network(&self.own);
        let mut routes = Routes::default();
        let of_sockets = held::of_sockets(&self.sockets, &self.processes, &network, &mut routes);
        // What was only tracked so far has the direction of whichever packet came first; a socket knows better.
        let with_socket: HashSet<Key> = of_sockets.iter().map(|flow| flow.key).collect();
        let tables = tables.into_iter().filter(|(key, flow)| flow.generation != 0 || !with_socket.contains(key));
        let of_tables = held::of_tables(tables);
        let of_datagrams = of_datagrams(&self.tracked, &self.sockets, &self.processes, &network, &mut routes);
        let forwarded = held::of_conntrack(&self.tracked, &network, &mut routes);
        held::merge([of_sockets, of_datagrams, forwarded, of_tables])
    }

    /// Flows of the session's carriers that no list has, as they must be: they are only asked about, never adopted.
    #[must_use]
    pub fn supposed(&self, session: &Session, judged: Judged<'_>) -> Vec<HeldFlow> {
        let network = judged.network(&self.own);
        let mut routes = Routes::default();
        let unknown = session.carriers.iter().filter(|carrier| carrier.found == Found::MoshLogin);
        unknown
            .filter_map(|carrier| {
                let interface = held::leaves_by(carrier.remote.ip(), 0, &network, &mut routes)?;
                Some(HeldFlow {
                    key: held::key(carrier.protocol, carrier.remote, carrier.local, interface.unwrap_or(0))?,
                    direction: carrier.direction,
                    interface,
                    tcp: TcpState::None,
                    answered: true,
                    cookie: carrier.cookie,
                    adopted: true,
                    source: held::Source::Socket,
                    program: Some((carrier.pid, carrier.program.clone())),
                })
            })
            .collect()
    }

    /// What carries the terminal of this process. `held`: what is known of flows.
    #[must_use]
    pub fn session(&self, held: &[HeldFlow]) -> Session {
        let host = session::Host {
            processes: &self.processes,
            sockets: &self.sockets,
            unix_peers: &self.unix_peers,
            own: &self.own,
            held,
            ssh_connection: &started_with,
        };
        session::find(&host, std::process::id(), std::env::var("SSH_CONNECTION").ok().as_deref())
    }
}

/// Which interfaces are judged, by index.
#[derive(Clone, Copy)]
pub struct Judged<'a> {
    pub guarded: &'a dyn Fn(u32) -> bool,
    /// As [`Network::host_side`].
    pub host_side: &'a dyn Fn(u32) -> bool,
}

impl<'a> Judged<'a> {
    /// No host's side of a bridge.
    pub const fn guarded(guarded: &'a dyn Fn(u32) -> bool) -> Self {
        Self { guarded, host_side: &|_| false }
    }

    const fn network(self, own: &'a HashSet<IpAddr>) -> Network<'a> {
        Network { own, guarded: self.guarded, host_side: self.host_side }
    }
}

/// `SSH_CONNECTION` of the environment that a process was started with.
fn started_with(pid: u32) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"SSH_CONNECTION="))?;
    String::from_utf8(value.to_vec()).ok()
}

/// Whether a person sits at this command: any of its standard streams is a terminal.
#[must_use]
pub fn on_terminal() -> bool {
    io::stdin().is_terminal() || io::stdout().is_terminal() || io::stderr().is_terminal()
}
