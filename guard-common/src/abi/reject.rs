//! What the kernel answers to those whose packets it does not pass on.

/// Per CPU, the one element of the `REJECTS` array. Counts of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rejects {
    /// Jiffies when the second began in which `left` counts down.
    pub since: u64,
    /// How many answers this CPU may still give in it.
    pub left: u64,
    /// TCP resets.
    pub resets: u64,
    /// ICMP and ICMPv6 "administratively prohibited".
    pub prohibited: u64,
    /// Answers that were not given: past [`Rejects::PER_SECOND`], or to a train of segments.
    pub withheld: u64,
}

impl Rejects {
    /// Answers a second and CPU: enough for any program that asks, too few to be of use to one that floods.
    pub const PER_SECOND: u64 = 250;
}

const _: () = assert!(size_of::<Rejects>() == 40);
