//! What the loader sets in the object before it loads it, and what the `clock` probe answers.

/// Bits of the object's `FEATURES` global: what the running kernel offers. A bit that is off cuts the code that needs it
/// before the verifier sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Features(pub u32);

impl Features {
    /// `bpf_ktime_get_coarse_ns` (5.11; never in setsockopt programs).
    pub const COARSE_CLOCK: u32 = 1;
    /// `bpf_get_netns_cookie` in cgroup_skb and sched_cls programs (6.18).
    pub const NETNS_COOKIE_SKB: u32 = 1 << 1;
    /// `bpf_get_netns_cookie` in setsockopt programs (6.1).
    pub const NETNS_COOKIE_SOCKOPT: u32 = 1 << 2;
    /// The kernel refuses large options where a setsockopt program leaves `optlen` alone (before 5.11 or so): set to 0.
    pub const OPTLEN_ZERO: u32 = 1 << 3;
    /// There is local DNAT: the socket layer reports, and leaves denying to the wire.
    pub const LOCAL_DNAT: u32 = 1 << 4;

    /// `bpf_get_current_pid_tgid` and `_comm` in setsockopt programs (6.1).
    pub const CURRENT_SOCKOPT: u32 = 1 << 5;

    #[must_use]
    pub const fn has(self, feature: u32) -> bool {
        self.0 & feature != 0
    }
}

/// The one element of the `CLOCK` map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClockReading {
    pub boot_ns: u64,
    pub jiffies: u64,
}

const _: () = assert!(size_of::<ClockReading>() == 16);
