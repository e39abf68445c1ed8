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
    /// Containers or VMs are behind it. What passes there between them and this host is judged by generations that ask for
    /// it ([`super::SlotFlags::CONTAINER_HOST`]).
    pub const HOST_SIDE: u32 = 1 << 6;
    /// Port of such a bridge: nothing of this host's own passes there but on the bridge itself.
    pub const MEMBER: u32 = 1 << 7;
}

/// Values of the `NEAR_V4` and `NEAR_V6` tries: destinations to which the way crosses no guarded interface.
pub struct Near;

impl Near {
    /// Whatever the policy.
    pub const ALWAYS: u8 = 1;
    /// Containers and VMs: only where the policy does not ask for [`super::SlotFlags::CONTAINER_HOST`].
    pub const MEMBERS: u8 = 2;
}

const _: () = assert!(size_of::<Interface>() == 16);
