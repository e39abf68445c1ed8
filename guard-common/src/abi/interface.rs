//! Interfaces, as userspace has told the programs about them.

/// Value of the `INTERFACES` hash, by interface index. An index that is missing is an interface not known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    pub flags: u32,
    /// By slot: the class that rules with `interface` ask for; 0 for an interface that no rule names.
    pub class: [u32; 3],
}

impl Interface {
    /// The wire layer judges what crosses it.
    pub const GUARDED: u32 = 1;
    /// Loopback.
    pub const LOOPBACK: u32 = 1 << 1;
    /// Frames have no Ethernet header (tun, WireGuard, GRE).
    pub const NO_ETHERNET: u32 = 1 << 2;
    /// Port of a bridge of this host that runs spanning tree.
    pub const SPANNING_TREE: u32 = 1 << 3;
    /// A MACsec device of this host stands on it, and is guarded.
    pub const MACSEC_ABOVE: u32 = 1 << 4;
    /// A PPPoE session of this host runs over it, and its device is guarded.
    pub const PPPOE_ABOVE: u32 = 1 << 5;
}

const _: () = assert!(size_of::<Interface>() == 16);
