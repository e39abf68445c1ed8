//! Which interfaces are guarded, and what the programs are told of each (DESIGN: guarded by default is every device
//! where frames leave this namespace).

use std::collections::HashMap;

use guard_common::abi::Interface;
use serde::{Deserialize, Serialize};

use super::KernelError;
use crate::host::{
    NetlinkError,
    netlink::{attributes, dump, number},
};

/// Patterns of names, as the shell has them. What is named by neither is decided by what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Selection {
    /// Where there are any: only what they name is guarded.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// Ports of VMs and containers too, from now on (lockdown).
    pub ports: bool,
}

/// One interface of this network namespace, as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub index: u32,
    pub name: String,
    /// `veth`, `bridge`…; empty for hardware.
    pub kind: String,
    /// Index of the device below (or of a veth's peer); 0: none.
    pub lower: u32,
    /// The device below is in another network namespace.
    pub lower_elsewhere: bool,
    /// Index of the bridge, bond or switch that it is a port of; 0: none.
    pub master: u32,
    /// That is a bridge or a switch. Only there a veth or tap is a container's or VM's end of a cable: as a member of a bond
    /// or a VRF it is where frames leave, as anywhere else.
    pub port: bool,
    pub loopback: bool,
    pub up: bool,
    pub ethernet: bool,
    /// Of a bridge: spanning tree runs.
    pub spanning_tree: bool,
    /// Id of the XDP program on it; 0: none.
    pub xdp: u32,
    /// By the driver itself, before the kernel makes a buffer of its own of a packet.
    pub xdp_native: bool,
    /// Packets since it was made, as the device counts them.
    pub sent: u64,
    pub received: u64,
}

/// Why an interface is guarded, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Frames leave this namespace there.
    Uplink,
    /// Named by `--interface`.
    Named,
    /// Was guarded before; it stays so.
    Before,
    /// A port of a VM or container, guarded in lockdown.
    LockedPort,
    Loopback,
    /// Named by `--not-interface`.
    Excluded,
    /// `--interface` names others.
    NotNamed,
    /// Traffic is judged on the device below.
    Stacked,
    /// A port of a VM or container on a bridge of this host.
    Port,
    /// A veth or tap that is down: decided when it comes up or becomes a port.
    Undecided,
}

impl Why {
    #[must_use]
    pub const fn guarded(self) -> bool {
        matches!(self, Self::Uplink | Self::Named | Self::Before | Self::LockedPort)
    }

    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uplink => "frames leave this host there",
            Self::Named => "named by --interface",
            Self::Before => "was guarded before, and stays so",
            Self::LockedPort => "a container's or VM's port, guarded in lockdown",
            Self::Loopback => "loopback: what stays on this host",
            Self::Excluded => "named by --not-interface",
            Self::NotNamed => "--interface names others",
            Self::Stacked => "judged on the device below it",
            Self::Port => "containers or VMs with this host and with each other",
            Self::Undecided => "down; decided when it comes up",
        }
    }
}

/// [`Selection`], ready to match.
#[derive(Clone, Debug)]
pub struct Selector {
    include: globset::GlobSet,
    exclude: globset::GlobSet,
    ports: bool,
}

impl Selector {
    pub fn new(selection: &Selection) -> Result<Self, KernelError> {
        let set = |patterns: &[String]| {
            let mut set = globset::GlobSetBuilder::new();
            for pattern in patterns {
                let failed = |source| KernelError::Pattern { pattern: pattern.clone(), source };
                set.add(globset::Glob::new(pattern).map_err(failed)?);
            }
            set.build().map_err(|source| KernelError::Pattern { pattern: patterns.join(" "), source })
        };
        Ok(Self { include: set(&selection.include)?, exclude: set(&selection.exclude)?, ports: selection.ports })
    }

    /// `before`: what the programs have been told of it.
    #[must_use]
    pub fn decide(&self, device: &Device, before: Option<&Interface>) -> Why {
        if device.loopback {
            return Why::Loopback;
        }
        if self.exclude.is_match(&device.name) {
            return Why::Excluded;
        }
        let guarded = before.is_some_and(|before| before.flags & Interface::GUARDED != 0);
        // Why it would be guarded if it were new comes first: that it was so before is the reason only where nothing else is.
        match self.by_selection(device, before.is_some() && !guarded) {
            why if !why.guarded() && guarded => Why::Before,
            why => why,
        }
    }

    fn by_selection(&self, device: &Device, left_out_before: bool) -> Why {
        if self.include.is_match(&device.name) {
            return Why::Named;
        }
        if !self.include.is_empty() {
            return Why::NotNamed;
        }
        match by_nature(device, left_out_before) {
            Why::Port if self.ports => Why::LockedPort,
            by_nature => by_nature,
        }
    }
}

/// `left_out_before`: it was known before, and not guarded.
fn by_nature(device: &Device, left_out_before: bool) -> Why {
    match device.kind.as_str() {
        // What frames only pass through on their way to a port.
        "bridge" | "bond" | "team" | "vrf" | "openvswitch" | "batadv" | "hsr" => Why::Stacked,
        // Ends of a cable to a container or VM where they are ports; else uplinks.
        "veth" | "tun" if device.ethernet => {
            if device.port {
                Why::Port
            } else if left_out_before {
                // First seen as a port, and taken out since.
                Why::Port
            } else if device.up {
                Why::Uplink
            } else {
                Why::Undecided
            }
        }
        // A VM's port on a device that is judged.
        "vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap" | "dsa" | "rmnet" | "lowpan"
            if device.lower != 0 && !device.lower_elsewhere =>
        {
            Why::Stacked
        }
        // Hardware, and tunnels: those are judged at both levels, since the tuples differ.
        _ => Why::Uplink,
    }
}

/// Whether containers or VMs are behind it, so that what passes there between them and this host can be judged
/// (`container_host`): a bridge, or a veth or tap that is no bridge's port. Not where it is guarded itself; nor a bridge with a
/// port that is, such as one that holds this host's own link: what passes that port is judged there.
#[must_use]
pub fn is_host_side(
    device: &Device,
    why: Why,
    before: Option<&Interface>,
    devices: &HashMap<u32, Device>,
    guarded: &dyn Fn(&Device) -> bool,
) -> bool {
    if why.guarded() || !device.ethernet || !matches!(why, Why::Stacked | Why::Port | Why::NotNamed) {
        return false;
    }
    match device.kind.as_str() {
        // What it was stays so: whoever puts a link into it must not open it.
        "bridge" => {
            before.is_some_and(|before| before.flags & Interface::HOST_SIDE != 0)
                || !devices.values().any(|port| port.master == device.index && guarded(port))
        }
        "veth" | "tun" => device.master == 0,
        _ => false,
    }
}

/// What the programs need to know of a device; classes are the caller's. `guarded`: whether another one is to be.
#[must_use]
pub fn flags(device: &Device, why: Why, devices: &HashMap<u32, Device>, guarded: &dyn Fn(&Device) -> bool) -> u32 {
    let mut flags = 0;
    if why.guarded() {
        flags |= Interface::GUARDED;
    }
    if device.loopback {
        flags |= Interface::LOOPBACK;
    }
    if !device.ethernet {
        flags |= Interface::NO_ETHERNET;
    }
    if devices.get(&device.master).is_some_and(|master| master.spanning_tree) {
        flags |= Interface::SPANNING_TREE;
    }
    let carries = |over: u32| leaves_by(over, device.index, devices, MOST_LEVELS);
    if devices.values().any(|above| above.kind == "macsec" && carries(above.lower) && guarded(above)) {
        flags |= Interface::MACSEC_ABOVE;
    }
    if devices.values().any(|above| above.kind == "ppp" && guarded(above)) {
        let sessions = pppoe_sessions();
        if devices.values().any(|over| sessions.contains(&over.name) && carries(over.index)) {
            flags |= Interface::PPPOE_ABOVE;
        }
    }
    flags
}

/// As `MAX_NEST_DEV` (linux/netdevice.h).
const MOST_LEVELS: u32 = 8;

/// Whether frames that are sent on the device `over` leave by `lowest`: it is that, or frames only pass through it on their
/// way there (a VLAN, a bond and its members).
fn leaves_by(over: u32, lowest: u32, devices: &HashMap<u32, Device>, levels: u32) -> bool {
    if over == lowest {
        return true;
    }
    let Some(device) = devices.get(&over).filter(|device| levels > 0 && by_nature(device, false) == Why::Stacked)
    else {
        return false;
    };
    let below = devices.values().filter(|below| below.master == over).map(|below| below.index);
    below.chain([device.lower]).any(|below| below != 0 && leaves_by(below, lowest, devices, levels - 1))
}

/// Names of the devices that a PPPoE session runs over (drivers/net/ppp/pppoe.c: id, address, device).
fn pppoe_sessions() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/pppoe").unwrap_or_default();
    text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(2)).map(str::to_owned).collect()
}

const ROUTE: isize = 0;
const GET_LINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const BR_STP_STATE: u16 = 5;
const XDP_ATTACHED: u16 = 2;
const XDP_ATTACHED_DRV: u8 = 1;
const XDP_PROG_ID: u16 = 4;
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;

/// Every interface of this thread's network namespace, by index.
pub fn devices() -> Result<HashMap<u32, Device>, KernelError> {
    for _ in 0..3 {
        let mut devices = HashMap::new();
        // struct ifinfomsg: family, pad, type, index, flags, change.
        let consistent = dump(ROUTE, GET_LINK, &[0; 16], |_, payload| {
            if let Some(device) = device(payload) {
                devices.insert(device.index, device);
            }
        })?;
        if consistent {
            find_ports(&mut devices);
            return Ok(devices);
        }
    }
    Err(NetlinkError::Overrun.into())
}

fn find_ports(devices: &mut HashMap<u32, Device>) {
    let holds_ports = |device: &Device| matches!(device.kind.as_str(), "bridge" | "openvswitch");
    let switches: Vec<u32> = devices.values().filter(|device| holds_ports(device)).map(|device| device.index).collect();
    for device in devices.values_mut() {
        device.port = switches.contains(&device.master);
    }
}

fn device(payload: &[u8]) -> Option<Device> {
    let hardware = u16::from_ne_bytes(payload.get(2..4)?.try_into().ok()?);
    let flags = number(payload, 8)?;
    let mut device = Device {
        index: number(payload, 4)?,
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        up: flags & libc::IFF_UP as u32 != 0,
        ethernet: matches!(hardware, ARPHRD_ETHER | ARPHRD_LOOPBACK),
        ..Device::default()
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => device.name = text(value),
            IFLA_LINK => device.lower = number(value, 0)?,
            // struct rtnl_link_stats64 begins with the packets received and sent.
            IFLA_STATS64 => {
                let count = |at: usize| value.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
                (device.received, device.sent) = (count(0)?, count(8)?);
            }
            IFLA_MASTER => device.master = number(value, 0)?,
            IFLA_LINK_NETNSID => device.lower_elsewhere = true,
            IFLA_LINKINFO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        INFO_KIND => device.kind = text(value),
                        INFO_DATA if device.kind == "bridge" => {
                            device.spanning_tree = attributes(value).any(|(kind, value)| {
                                kind == BR_STP_STATE && number(value, 0).is_some_and(|on| on != 0)
                            });
                        }
                        _ => {}
                    }
                }
            }
            IFLA_XDP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        XDP_ATTACHED => device.xdp_native = value.first() == Some(&XDP_ATTACHED_DRV),
                        XDP_PROG_ID => device.xdp = number(value, 0).unwrap_or(0),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(device)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kind: &str) -> Device {
        Device { index: 7, name: "x0".to_owned(), kind: kind.to_owned(), ethernet: true, up: true, ..Device::default() }
    }

    fn plain() -> Selector {
        Selector::new(&Selection::default()).unwrap()
    }

    #[test]
    fn guarded_is_where_frames_leave() {
        for (device, why) in [
            (device(""), Why::Uplink),
            (Device { master: 3, ..device("") }, Why::Uplink),
            (device("veth"), Why::Uplink),
            (Device { master: 3, port: true, ..device("veth") }, Why::Port),
            // A member of a bond, a VRF.
            (Device { master: 3, ..device("veth") }, Why::Uplink),
            (Device { master: 3, ethernet: true, ..device("tun") }, Why::Uplink),
            (Device { up: false, ..device("veth") }, Why::Undecided),
            (Device { master: 3, port: true, ..device("tun") }, Why::Port),
            (Device { ethernet: false, ..device("tun") }, Why::Uplink),
            (device("bridge"), Why::Stacked),
            (device("bond"), Why::Stacked),
            (Device { lower: 2, ..device("vlan") }, Why::Stacked),
            (Device { lower: 2, lower_elsewhere: true, ..device("macvlan") }, Why::Uplink),
            (device("wireguard"), Why::Uplink),
            (Device { lower: 2, ..device("vxlan") }, Why::Uplink),
            (Device { lower: 2, ..device("macsec") }, Why::Uplink),
            (Device { loopback: true, ..device("") }, Why::Loopback),
        ] {
            assert_eq!(plain().decide(&device, None), why, "{device:?}");
        }
    }

    #[test]
    fn what_was_guarded_stays_guarded() {
        let guarded = Interface { flags: Interface::GUARDED, ..Interface::default() };
        let known = Interface::default();
        let port = Device { master: 3, port: true, ..device("veth") };
        assert_eq!(plain().decide(&port, Some(&guarded)), Why::Before);
        assert_eq!(plain().decide(&device("veth"), Some(&known)), Why::Port);
        // Down, or left out by a selection that came later: guarded all the same.
        assert_eq!(plain().decide(&Device { up: false, ..device("veth") }, Some(&guarded)), Why::Before);
        let others = Selector::new(&Selection { include: vec!["eth*".into()], ..Selection::default() }).unwrap();
        assert_eq!(others.decide(&device(""), Some(&guarded)), Why::Before);
        assert_eq!(others.decide(&Device { name: "eth0".into(), ..device("") }, Some(&guarded)), Why::Named);
    }

    #[test]
    fn what_is_guarded_by_its_nature_says_so_at_every_look() {
        let guarded = Interface { flags: Interface::GUARDED, ..Interface::default() };
        for uplink in [device(""), device("veth"), Device { ethernet: false, ..device("tun") }] {
            assert_eq!(plain().decide(&uplink, None), Why::Uplink, "{uplink:?}");
            assert_eq!(plain().decide(&uplink, Some(&guarded)), Why::Uplink, "{uplink:?}");
        }
    }

    #[test]
    fn members_of_bridges_and_switches_are_ports_and_others_are_not() {
        let master = |index, kind: &str| Device { index, ..device(kind) };
        let member = |index, master| Device { index, master, ..device("veth") };
        let all =
            [master(1, "bridge"), master(2, "openvswitch"), master(3, "bond"), master(4, "vrf"), master(5, "team")];
        let members = (1..=5).map(|of| member(10 + of, of));
        let mut devices = all.into_iter().chain(members).map(|device| (device.index, device)).collect();
        find_ports(&mut devices);
        let ports: Vec<bool> = (11..=15).map(|index| devices[&index].port).collect();
        assert_eq!(ports, [true, true, false, false, false]);
    }

    #[test]
    fn macsec_frames_leave_by_what_lies_below_it() {
        let of = |index, kind: &str, lower, master| Device { index, lower, master, ..device(kind) };
        // macsec (9) over a VLAN (8) over a bond (7) of 1 and 2; 3 is none of it, and a VXLAN (6) over 3 ends the way.
        let all = [
            of(1, "", 0, 7),
            of(2, "", 0, 7),
            of(3, "", 0, 0),
            of(6, "vxlan", 3, 0),
            of(7, "bond", 0, 0),
            of(8, "vlan", 7, 0),
            of(9, "macsec", 8, 0),
            of(10, "macsec", 6, 0),
        ];
        let devices: HashMap<u32, Device> = all.into_iter().map(|device| (device.index, device)).collect();
        let carries = |index: u32, guarded: bool| {
            flags(&devices[&index], Why::Uplink, &devices, &|_| guarded) & Interface::MACSEC_ABOVE != 0
        };
        assert_eq!([1, 2, 3, 6].map(|index| carries(index, true)), [true, true, false, true]);
        assert!(!carries(1, false), "what is inside is judged by nobody");
    }

    #[test]
    fn the_hosts_side_of_a_bridge() {
        let bridge = Device { index: 3, ..device("bridge") };
        let port = |index, kind: &str| Device { index, master: 3, port: true, ..device(kind) };
        let sides = |ports: Vec<Device>, before: Option<Interface>| {
            let devices: HashMap<u32, Device> =
                ports.into_iter().chain([bridge.clone()]).map(|device| (device.index, device)).collect();
            let guarded = |other: &Device| plain().decide(other, None).guarded();
            let is = |device: &Device| {
                is_host_side(device, plain().decide(device, None), before.as_ref(), &devices, &guarded)
            };
            let mut sides: Vec<u32> = devices.values().filter(|device| is(device)).map(|device| device.index).collect();
            sides.sort_unstable();
            sides
        };
        assert_eq!(sides(vec![], None), [3], "members come later");
        assert_eq!(sides(vec![port(8, "veth"), port(9, "tun")], None), [3], "not its ports");
        assert_eq!(sides(vec![port(8, "veth"), port(2, "")], None), [0; 0], "this host's own link is in it");
        let before = Interface { flags: Interface::HOST_SIDE, ..Interface::default() };
        assert_eq!(sides(vec![port(2, "")], Some(before)), [3], "put into it since");
        assert_eq!(sides(vec![Device { index: 8, ..device("veth") }], None), [3], "that one is an uplink");
        let others = Selector::new(&Selection { include: vec!["eth0".into()], ..Selection::default() }).unwrap();
        let excluded = Selector::new(&Selection { exclude: vec!["*".into()], ..Selection::default() }).unwrap();
        let is = |selector: &Selector, device: &Device| {
            is_host_side(device, selector.decide(device, None), None, &HashMap::new(), &|_| false)
        };
        for end in [bridge.clone(), device("veth")] {
            assert!(is(&others, &end), "{end:?}");
            assert!(!is(&excluded, &end), "{end:?}");
        }
        assert!(!is(&others, &device("")) && !is(&others, &port(8, "veth")));
    }

    #[test]
    fn patterns_win() {
        let selection =
            Selection { include: vec!["veth*".into()], exclude: vec!["eth[12]".into()], ..Selection::default() };
        let selector = Selector::new(&selection).unwrap();
        let named = |name: &str, device: Device| Device { name: name.to_owned(), ..device };
        assert_eq!(
            selector.decide(&named("veth9", Device { master: 3, port: true, ..device("veth") }), None),
            Why::Named
        );
        assert_eq!(selector.decide(&named("eth1", device("")), None), Why::Excluded);
        assert_eq!(selector.decide(&named("eth3", device("")), None), Why::NotNamed);
        let locked = Selector::new(&Selection { ports: true, ..Selection::default() }).unwrap();
        assert_eq!(locked.decide(&Device { master: 3, port: true, ..device("veth") }, None), Why::LockedPort);
        assert!(Selector::new(&Selection { include: vec!["[".into()], ..Selection::default() }).is_err());
    }
}
