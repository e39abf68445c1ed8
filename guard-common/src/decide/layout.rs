//! How a generation's tables lie in its nodes.
//!
//! Node 0 is the [`Header`]. Nodes 1 to 4 are the [`Descriptor`]s of the four roots (see [`root_node`]), nodes 5 and 6
//! those of the classes of our own addresses (IPv4, IPv6). The rest are lines, index nodes and timed outcomes,
//! wherever the header's roots lead.

use super::Outcome;
use crate::{Direction, Reason};

/// 32-bit words in a node.
pub const NODE_WORDS: usize = 16;

/// One cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(64))]
pub struct Node(pub [u32; NODE_WORDS]);

/// The word of a question that a stage looks at. A chain of stages never goes back to an earlier word; only a root may
/// look at the same word twice (its descriptor sends everything to a single line).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Word {
    /// IPv4: the whole remote. IPv6: its first 32 bits.
    Remote0 = 0,
    Remote1 = 1,
    Remote2 = 2,
    Remote3 = 3,
    /// Protocol << 16 | port (or ICMP type << 8 | code; 0 for protocols without either).
    Service = 4,
    /// The interface's class in this generation; 0: no rule names it. After the service, so that a context is asked
    /// for only where the verdict on this very service depends on it.
    Interface = 5,
    /// The class of our own address; 0: no rule names it.
    Local = 6,
    /// Kept for the local process, user, unit or container.
    Subject = 7,
}

/// Where an interval leads.
///
/// | bits | |
/// |---|---|
/// | 31 | 1: the end |
/// | 30 | at the end: 1 allow, 0 deny |
/// | 29 | at the end: 1: payload is the number of a [`Timed`] entry (and bit 30 means nothing) |
/// | 28 | at the end, with allow: an allowing rule names the remote (it is not `any` for all that match) |
/// | 0-27 | at the end: rule number + 1; 0: no rule (only with deny: not listed) |
/// | 28-30 | else: the [`Word`] that the next stage looks at |
/// | 27 | else: 1: the stage is a single [`Line`]; 0: it begins with a [`Descriptor`] |
/// | 0-26 | else: the number of that node |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Target(pub u32);

impl Target {
    pub const END: u32 = 1 << 31;
    pub const ALLOW: u32 = 1 << 30;
    pub const TIMED: u32 = 1 << 29;
    pub const SINGLE_LINE: u32 = 1 << 27;
    pub const NAMED: u32 = 1 << 28;
    pub const PAYLOAD: u32 = (1 << 28) - 1;
    pub const NODE: u32 = (1 << 27) - 1;
    pub const NOT_LISTED: Self = Self(Self::END);

    #[must_use]
    pub const fn allow(rule: u32) -> Self {
        Self(Self::END | Self::ALLOW | (rule + 1))
    }

    #[must_use]
    pub const fn deny(rule: u32) -> Self {
        Self(Self::END | (rule + 1))
    }

    #[must_use]
    pub const fn timed(entry: u32) -> Self {
        Self(Self::END | Self::TIMED | (entry & Self::PAYLOAD))
    }

    #[must_use]
    pub const fn line(word: Word, node: u32) -> Self {
        Self((word as u32) << 28 | Self::SINGLE_LINE | (node & Self::NODE))
    }

    #[must_use]
    pub const fn stage(word: Word, descriptor: u32) -> Self {
        Self((word as u32) << 28 | (descriptor & Self::NODE))
    }

    #[must_use]
    pub const fn is_end(self) -> bool {
        self.0 & Self::END != 0
    }

    #[must_use]
    pub const fn is_timed(self) -> bool {
        self.0 & Self::TIMED != 0
    }

    /// Of an end that is not timed.
    #[must_use]
    pub const fn outcome(self) -> Outcome {
        let rule = self.0 & Self::PAYLOAD;
        if rule == 0 {
            Outcome::without_rule(Reason::NotListed)
        } else if self.0 & Self::ALLOW != 0 {
            Outcome::new(Reason::RuleAllow, rule - 1)
        } else {
            Outcome::new(Reason::RuleDeny, rule - 1)
        }
    }
}

/// Header, node 0.
///
/// Words: 0 [`Header::MAGIC`], 1 [`crate::abi::VERSION`], 2 number of nodes, 3 number of rules, 4 generation,
/// 5 [`crate::abi::SlotFlags`], 8-15 SHA-256 of the policy (as big-endian words).
pub struct Header;

impl Header {
    pub const NODE: u32 = 0;
    pub const MAGIC: u32 = u32::from_be_bytes(*b"grd1");
    pub const LOCAL_V4: u32 = 5;
    pub const LOCAL_V6: u32 = 6;
    /// First node that nothing fixed stands in.
    pub const FIRST_FREE: u32 = 7;
}

/// Node of the descriptor where a decision begins (its stage looks at [`Word::Remote0`]).
#[must_use]
pub const fn root_node(direction: Direction, ipv6: bool) -> u32 {
    1 + (direction as u32) * 2 + ipv6 as u32
}

/// A stage with an index.
///
/// | word | |
/// |---|---|
/// | 0, 1 | first and last value of the looked-at word that the index covers |
/// | 2 | shift: bucket of `x` = (x - first) >> shift; at most 2^20 buckets |
/// | 3 | node of the index; 16 buckets a node, each an [`Entry`] |
/// | 4 | node of the first line |
/// | 5 | [`Target`] of values before the first |
/// | 6 | [`Target`] of values after the last |
///
/// Where first > last, the index is never read. The classes of our own addresses (nodes 5 and 6) are payloads of ends:
/// 0 for an address that no rule names.
pub struct Descriptor;

impl Descriptor {
    pub const FIRST: usize = 0;
    pub const LAST: usize = 1;
    pub const SHIFT: usize = 2;
    pub const INDEX: usize = 3;
    pub const LINES: usize = 4;
    pub const BELOW: usize = 5;
    pub const ABOVE: usize = 6;
    pub const MAX_BUCKETS: u32 = 1 << 20;
}

/// A bucket of an index. Bits 9-31: its first line, counted from the stage's first; 0-8: how many lines, less one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Entry(pub u32);

impl Entry {
    pub const MAX_LINES: u32 = 512;
    pub const MAX_FIRST: u32 = (1 << 23) - 1;

    #[must_use]
    pub const fn new(first: u32, lines: u32) -> Self {
        Self(first << 9 | (lines - 1))
    }

    #[must_use]
    pub const fn first(self) -> u32 {
        self.0 >> 9
    }

    /// 1 to [`Entry::MAX_LINES`].
    #[must_use]
    pub const fn lines(self) -> u32 {
        (self.0 & 0x1ff) + 1
    }
}

/// Eight intervals: words 0-7 where each starts (inclusive, ascending), words 8-15 where each leads. An interval ends
/// before the next one's start. The first line of a bucket starts at or before the bucket's first value (neighbouring
/// buckets share a line where both fit); the first interval of a single-line stage starts at 0. Unused places repeat
/// the last interval's target with start `u32::MAX`.
///
/// A bucket never needs more than [`Entry::MAX_LINES`]: 2^20 buckets over 2^32 values leave 4,096 values to each, so at
/// most 4,096 starts, and a bucket that does not fit into the line before it begins a line of its own.
pub struct Line;

impl Line {
    pub const INTERVALS: usize = 8;
    pub const TARGETS: usize = 8;
}

/// One step of an outcome that changes with time: four a node, entry `i` in node `i / 4`.
///
/// Words: 0 and 1 low and high half of `until` (boot-time nanoseconds, exclusive; `u64::MAX` never), 2 the [`Target`]
/// until then (an end, not timed), 3 the number of the entry that holds after (never read where `until` is MAX).
pub struct Timed;

impl Timed {
    pub const WORDS: usize = 4;
    /// Longest chain; a policy that needs a longer one is refused when it is compiled.
    pub const MAX_STEPS: u32 = 16;
}

const _: () = assert!(size_of::<Node>() == 64);
