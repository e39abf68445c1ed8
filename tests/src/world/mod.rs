//! A small world of network namespaces: a server to guard, a router, and three hosts outside.
//!
//! ```text
//!   server ─ eth0 ─────┬─ router ─┬─ eth0 ─ responder  198.51.100.7    2001:db8:17::7
//!   192.0.2.10, .11    │ (bridge) │
//!   2001:db8:2::10     │          └─ eth0 ─ intruder   203.0.113.9     2001:db8:bad::9
//!          client ─ eth0                    client     192.0.2.20      2001:db8:2::20
//!   server ─ eth1 ── eth1 ─ client     198.51.100.129 and .130    2001:db8:b::129 and ::130
//! ```
//!
//! The router (192.0.2.1, 2001:db8:2::1) is the server's link to everything: what it sees on [`World::WIRE`] is what
//! really left the server. Nothing here is reachable from the machine's own network, or reaches it.
//!
//! Everything goes when the world is dropped, a panic included; what a killed run leaves, the next one removes.

pub mod cgroup;
pub mod mounts;
mod names;
pub mod namespace;
mod reaper;

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
    path::Path,
    sync::{Arc, Once},
};

pub use namespace::{Inside, Namespace, has_ipv6};
pub use reaper::reap;

use self::cgroup::Cgroup;

/// A namespace with one address of each family.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// Ethernet address of `eth0`.
    pub mac: [u8; 6],
}

impl Host {
    /// Its address of the family that `ipv6` names.
    #[must_use]
    pub fn address(&self, ipv6: bool) -> IpAddr {
        if ipv6 { self.v6.into() } else { self.v4.into() }
    }
}

impl Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// See the [module](self). Fields are dropped in this order: processes, then namespaces, then files.
#[derive(Debug)]
pub struct World {
    name: String,
    /// Of the processes that are guarded.
    guarded: Cgroup,
    outside: Cgroup,
    _operators: Cgroup,
    _cgroup: Cgroup,
    pub server: Host,
    /// The server's namespace, with commands in a cgroup that is not guarded.
    pub operator: Inside,
    pub responder: Host,
    pub client: Host,
    pub intruder: Host,
    pub router: Namespace,
    mounts: Arc<File>,
    dir: tempfile::TempDir,
}

impl World {
    /// The router's interface towards the server.
    pub const WIRE: &'static str = "server0";
    /// Addresses of the second link, server's and client's.
    pub const BACK_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 129), Ipv4Addr::new(198, 51, 100, 130)];
    pub const BACK_V6: [Ipv6Addr; 2] =
        [Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0x129), Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0x130)];
    /// Further addresses of the server on `eth0`.
    pub const SECOND_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
    pub const SECOND_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x11);
    pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
    pub const ROUTER_MAC: [u8; 6] = mac(0x01);

    pub fn create() -> io::Result<Self> {
        static REAPED: Once = Once::new();
        REAPED.call_once(reaper::reap);

        let name = names::unique();
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir()?;
        let mounts = Arc::new(mounts::create()?);
        let cgroup = Cgroup::create(&name)?;
        let guarded = cgroup.child("guarded")?;
        let outside = cgroup.child("outside")?;
        let operators = cgroup.child("operators")?;
        let namespace = |role: &str, cgroup: &Cgroup| {
            Namespace::create(&format!("{name}-{role}"), cgroup.path(), Arc::clone(&mounts))
        };
        let host = |role: &str, cgroup: &Cgroup, number: u8, v4: [u8; 4], v6: [u16; 8]| -> io::Result<Host> {
            let namespace = namespace(role, cgroup)?;
            Ok(Host { namespace, v4: v4.into(), v6: v6.into(), mac: mac(number) })
        };
        let router = namespace("router", &outside)?;
        let server = host("server", &guarded, 0x10, [192, 0, 2, 10], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10])?;
        let world = Self {
            responder: host("responder", &outside, 0x17, [198, 51, 100, 7], [0x2001, 0xdb8, 0x17, 0, 0, 0, 0, 7])?,
            client: host("client", &outside, 0x20, [192, 0, 2, 20], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x20])?,
            intruder: host("intruder", &outside, 0x99, [203, 0, 113, 9], [0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 9])?,
            operator: server.in_cgroup(operators.path())?,
            server,
            router,
            name,
            guarded,
            outside,
            _operators: operators,
            _cgroup: cgroup,
            mounts,
            dir,
        };
        world.connect()?;
        Ok(world)
    }

    /// Name of the world: unique on this machine.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory for its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The cgroup of the server's processes, for `guard run --cgroup`.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        self.guarded.path()
    }

    /// One more namespace, of processes that are not guarded: a container, say.
    pub fn namespace(&self, role: &str) -> io::Result<Namespace> {
        let name = format!("{}-{role}", self.name);
        let namespace = Namespace::create(&name, self.outside.path(), Arc::clone(&self.mounts))?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    fn connect(&self) -> io::Result<()> {
        for namespace in [&self.router, &*self.server, &self.responder, &self.client, &self.intruder] {
            // Addresses are usable at once, and nothing is configured by what others send.
            for (key, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")] {
                namespace.sysctl(&format!("ipv6/conf/all/{key}"), value)?;
                namespace.sysctl(&format!("ipv6/conf/default/{key}"), value)?;
            }
            namespace.ip("link set lo up")?;
        }
        self.router.sysctl("ipv4/ip_forward", "1")?;
        self.router.sysctl("ipv6/conf/all/forwarding", "1")?;

        let router = &self.router;
        let mut links = format!(
            "link add br0 address {} type bridge mcast_snooping 0\n\
             address add {}/24 dev br0\naddress add {}/64 dev br0 nodad\nlink set br0 up\n",
            text(Self::ROUTER_MAC),
            Self::ROUTER_V4,
            Self::ROUTER_V6
        );
        for (host, port) in [(&self.server, Self::WIRE), (&self.client, "client0")] {
            links += &veth(port, host, "eth0", host.mac);
            links += &format!("link set {port} master br0\nlink set {port} up\n");
        }
        for (host, port, v4, v6) in [
            (&self.responder, "responder0", "198.51.100.1/25", "2001:db8:17::1/64"),
            (&self.intruder, "intruder0", "203.0.113.1/24", "2001:db8:bad::1/64"),
        ] {
            links += &veth(port, host, "eth0", host.mac);
            links += &format!("address add {v4} dev {port}\naddress add {v6} dev {port} nodad\nlink set {port} up\n");
        }
        router.ip(&links)?;
        self.server.ip(&veth("eth1", &self.client, "eth1", mac(0x21)))?;

        for (host, prefix, v4_router, v6_router) in [
            (&self.server, 24, "192.0.2.1", "2001:db8:2::1"),
            (&self.client, 24, "192.0.2.1", "2001:db8:2::1"),
            (&self.responder, 25, "198.51.100.1", "2001:db8:17::1"),
            (&self.intruder, 24, "203.0.113.1", "2001:db8:bad::1"),
        ] {
            host.ip(&format!(
                "address add {}/{prefix} dev eth0\naddress add {}/64 dev eth0 nodad\nlink set eth0 up\n\
                 route add default via {v4_router}\nroute add default via {v6_router}\n",
                host.v4, host.v6
            ))?;
        }
        self.server.ip(&format!(
            "address add {}/24 dev eth0\naddress add {}/64 dev eth0 nodad preferred_lft 0\n",
            Self::SECOND_V4,
            Self::SECOND_V6
        ))?;
        for (end, host) in [&self.server, &self.client].into_iter().enumerate() {
            host.ip(&format!(
                "address add {}/25 dev eth1\naddress add {}/64 dev eth1 nodad\nlink set eth1 up\n",
                Self::BACK_V4[end],
                Self::BACK_V6[end]
            ))?;
        }
        Ok(())
    }
}

/// One of a veth pair here, the other inside `host`.
fn veth(here: &str, host: &Host, there: &str, mac: [u8; 6]) -> String {
    format!("link add {here} type veth peer name {there} address {} netns {}\n", text(mac), host.name())
}

/// Locally administered.
const fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
