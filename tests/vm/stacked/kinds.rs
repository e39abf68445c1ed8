//! The kinds: what is made at both ends of a link, and what a policy has to list for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One device over another, the same at both ends.
pub struct Kind {
    pub name: &'static str,
    /// The link below it (or both of a bond).
    pub over: &'static [&'static str],
    /// Lines for `ip -batch`, with `{me}`, `{peer}` (addresses of the link below), `{peer-mac}`, `{my-key}`, `{peer-key}`.
    make: &'static str,
    /// The topmost device: what is addressed.
    pub top: &'static str,
    /// Lines that take away at the server what was made.
    pub unmake: &'static str,
    /// Made in a namespace of its own, by the first lines for the server's; the client has only the link, and the second.
    pub pod: Option<[&'static str; 2]>,
    pub level: Level,
    /// Inner networks: what is to be addressed on it.
    network: Network,
    /// Frames carry what is inside as it is.
    pub legible: bool,
    pub protocols: &'static [Protocol],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Judged and counted once, where the frame leaves.
    Lowest,
    /// Judged inside and outside; what the outer level has to list. Empty: it passes as essential traffic.
    Both(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Network {
    /// The link's own.
    Outer,
    V4(u8),
    V6(u16),
}

impl Kind {
    /// The server's inner address, and the client's.
    pub fn addresses(&self) -> [IpAddr; 2] {
        match self.network {
            Network::Outer => Self::OUTER.map(IpAddr::V4),
            Network::V4(n) => [1, 2].map(|host| Ipv4Addr::new(10, n, 0, host).into()),
            Network::V6(n) => [1, 2].map(|host| Ipv6Addr::new(0x2001, 0xdb8, 0xf, n, 0, 0, 0, host).into()),
        }
    }

    /// The link's own addresses below a tunnel.
    pub const OUTER: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 129), Ipv4Addr::new(198, 51, 100, 130)];

    /// What to tell `ip` at one end; 0: the server.
    pub fn lines(&self, end: usize) -> String {
        let (made, top) = match self.pod {
            Some([_, far]) if end == 1 => (far, self.over[0]),
            _ => (self.make, self.top),
        };
        let made = made
            .replace("{me}", &Self::OUTER[end].to_string())
            .replace("{peer}", &Self::OUTER[1 - end].to_string())
            .replace("{peer-mac}", &mac(self.over[0], 1 - end))
            .replace("{my-key}", KEYS[end])
            .replace("{peer-key}", KEYS[1 - end]);
        let address = match self.addresses()[end] {
            IpAddr::V4(address) if self.network == Network::Outer => format!("{address}/25 dev {top}"),
            IpAddr::V4(address) => format!("{address}/24 dev {top}"),
            IpAddr::V6(address) => format!("{address}/64 dev {top} nodad"),
        };
        format!("{made}\naddress replace {address}\nlink set {top} up\n")
    }
}

/// Of MACsec.
const KEYS: [&str; 2] = ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"];

/// The links, and the address of each at either end: 02:00:00:00:01:NN at the server, 02:00:00:00:02:NN at the client.
pub fn mac(link: &str, end: usize) -> String {
    format!("02:00:00:00:{:02x}:{:02x}", end + 1, link.as_bytes().last().copied().unwrap_or(0))
}

const ETH1: &[&str] = &["eth1"];
const BOND: &[&str] = &["eth2", "eth3"];

pub fn all() -> Vec<Kind> {
    use Level::{Both, Lowest};
    use Network::{Outer, V4, V6};
    let kind = |name, over, level, network, top, make, unmake| Kind {
        name,
        over,
        make,
        top,
        unmake,
        pod: None,
        level,
        network,
        legible: true,
        protocols: &[Protocol::Tcp, Protocol::Udp],
    };
    vec![
        kind("VLAN", ETH1, Lowest, V4(1), "vlan5", "link add link eth1 name vlan5 type vlan id 5", "link del vlan5"),
        kind(
            "VLAN, IPv6",
            ETH1,
            Lowest,
            V6(1),
            "vlan6",
            "link add link eth1 name vlan6 type vlan id 6",
            "link del vlan6",
        ),
        kind("QinQ", ETH1, Lowest, V4(2), "cvlan8", QINQ, "link del svlan7"),
        kind("bond", BOND, Lowest, V4(3), "bond0", BONDED, "link del bond0"),
        kind("VLAN over the bond", BOND, Lowest, V4(4), "bvlan9", "link add link bond0 name bvlan9 type vlan id 9", ""),
        kind("VRF", &["eth6"], Lowest, V4(5), "eth6", VRF, UNVRF),
        Kind {
            pod: Some(["link add link eth5 name ipvl2 netns {pod} type ipvlan mode l2", ""]),
            ..kind("ipvlan", &["eth5"], Lowest, V4(13), "ipvl2", "", "")
        },
        Kind { pod: Some([IPVLAN_L3, IPVLAN_FAR]), ..kind("ipvlan, L3", &["eth7"], Lowest, V4(14), "ipvl3", "", "") },
        Kind { legible: false, ..kind("MACsec", &["eth4"], Both(""), V4(6), "msec0", MACSEC, "link del msec0") },
        // It goes with the bond.
        Kind { legible: false, ..kind("MACsec over the bond", BOND, Both(""), V4(7), "msec1", MACSEC_BOND, "") },
        // Its keys are set by `wg`.
        Kind {
            legible: false,
            ..kind("WireGuard", ETH1, Both("udp/51820"), V4(8), "wg0", "link add wg0 type wireguard", "link del wg0")
        },
        kind("GRE", ETH1, Both("proto/gre"), V4(9), "gre1", GRE, "link del gre1"),
        kind("GRE with Ethernet", ETH1, Both("proto/gre"), V4(10), "gre2", GRETAP, "link del gre2"),
        kind("IPIP", ETH1, Both("proto/ipip"), V4(11), "ipip1", IPIP, "link del ipip1"),
        kind("SIT", ETH1, Both("proto/sit"), V6(2), "sit1", SIT, "link del sit1"),
        kind("VXLAN", ETH1, Both("udp/4789"), V4(12), "vx1", VXLAN, "link del vx1"),
        // No device of its own.
        Kind { protocols: &[Protocol::Sctp], ..kind("SCTP", ETH1, Lowest, Outer, "eth1", "", "") },
    ]
}

// It answers no question for its address.
const IPVLAN_L3: &str =
    "address replace 10.14.0.9/24 dev eth7\nlink add link eth7 name ipvl3 netns {pod} type ipvlan mode l3";
const IPVLAN_FAR: &str = "neigh replace 10.14.0.1 lladdr {peer-mac} dev eth7";
const QINQ: &str = "link add link eth1 name svlan7 type vlan proto 802.1ad id 7\nlink set svlan7 up\n\
    link add link svlan7 name cvlan8 type vlan id 8";
const BONDED: &str = "link add bond0 type bond mode active-backup miimon 100\nlink set eth2 down\n\
    link set eth2 master bond0\nlink set eth3 down\nlink set eth3 master bond0\nlink set bond0 up";
const VRF: &str = "link add red type vrf table 10\nlink set red up\nlink set eth6 master red\n\
    rule add to 10.5.0.0/24 lookup 10";
const UNVRF: &str = "rule del to 10.5.0.0/24 lookup 10\nlink del red";
const MACSEC: &str = "link add link eth4 msec0 type macsec encrypt on\n\
    macsec add msec0 tx sa 0 pn 1 on key 01 {my-key}\nmacsec add msec0 rx port 1 address {peer-mac}\n\
    macsec add msec0 rx port 1 address {peer-mac} sa 0 pn 1 on key 02 {peer-key}";
const MACSEC_BOND: &str = "link add link bond0 msec1 type macsec encrypt on\n\
    macsec add msec1 tx sa 0 pn 1 on key 01 {my-key}\nmacsec add msec1 rx port 1 address {peer-mac}\n\
    macsec add msec1 rx port 1 address {peer-mac} sa 0 pn 1 on key 02 {peer-key}";
const GRE: &str = "link add gre1 type gre local {me} remote {peer} ttl 64";
const GRETAP: &str = "link add gre2 type gretap local {me} remote {peer} key 7";
const IPIP: &str = "link add ipip1 type ipip local {me} remote {peer} ttl 64";
const SIT: &str = "link add sit1 type sit local {me} remote {peer} ttl 64";
const VXLAN: &str = "link add vx1 type vxlan id 7 local {me} remote {peer} dev eth1 dstport 4789";
