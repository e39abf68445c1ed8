//! The look-ups themselves. Bounded loops only, and no more than one node held at a time: the verifier walks this.

use super::{
    Outcome, Tables, Target,
    layout::{Descriptor, Entry, Header, Line, Timed, Word, root_node},
};
use crate::{Direction, Reason};

/// What is asked of a policy. Numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub direction: Direction,
    pub ipv6: bool,
    /// IPv4: the first word.
    pub remote: [u32; 4],
    /// Protocol << 16 | the flow's service: outbound the remote's port, inbound ours, ICMP type << 8 | code.
    pub service: u32,
    pub subject: Subject,
}

/// What of the host a rule may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Class of the interface; `None`: not known yet (the socket layer asks before routing).
    pub interface: Option<u32>,
    /// Class of our own address ([`local_class`]); `None`: not known yet.
    pub local: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub outcome: Outcome,
    /// Boot-time nanoseconds until which it holds; `u64::MAX`: as long as the generation.
    pub until: u64,
    /// The verdict depends on a context that was not given: `outcome` is then a fault, and only the wire can say.
    pub needs_context: bool,
    /// An allowing rule that matches names the remote: asked of flows that began before a lockdown.
    pub named: bool,
}

impl Decision {
    #[inline(always)]
    const fn at_end(end: Target, until: u64) -> Self {
        Self { until, named: end.0 & Target::NAMED != 0, ..Self::fixed(end.outcome()) }
    }

    const FAULT: Self = Self::fixed(Outcome::without_rule(Reason::TableFault));

    const fn fixed(outcome: Outcome) -> Self {
        Self { outcome, until: u64::MAX, needs_context: false, named: false }
    }
}

/// Longest chain of stages: each of the seven words in use once, and a root that sends everything to a line.
const MAX_STAGES: u32 = 8;
/// log2 of [`Entry::MAX_LINES`].
const MAX_HALVINGS: u32 = 9;

/// Decides. `now` (boot-time nanoseconds) is asked only where the outcome depends on it.
///
/// A table that cannot be followed denies with [`Reason::TableFault`].
#[inline(always)]
pub fn decide<T: Tables + ?Sized>(tables: &T, question: &Question, now: impl Fn() -> u64) -> Decision {
    let root = Target::stage(Word::Remote0, root_node(question.direction, question.ipv6));
    match follow(tables, root, question) {
        Ok(end) if end.is_timed() => at_time(tables, end.0 & Target::PAYLOAD, now()),
        Ok(end) => Decision::at_end(end, u64::MAX),
        Err(Stop::NeedsContext) => Decision { needs_context: true, ..Decision::FAULT },
        Err(Stop::Fault) => Decision::FAULT,
    }
}

/// The class of one of our own addresses for [`Subject::local`]; `None` is a fault.
#[inline(always)]
pub fn local_class<T: Tables + ?Sized>(tables: &T, ipv6: bool, local: [u32; 4]) -> Option<u32> {
    let node = if ipv6 { Header::LOCAL_V6 } else { Header::LOCAL_V4 };
    let question =
        Question { direction: Direction::Inbound, ipv6, remote: local, service: 0, subject: Subject::default() };
    match follow(tables, Target::stage(Word::Remote0, node), &question) {
        Ok(end) => Some(end.0 & Target::PAYLOAD),
        Err(_) => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    NeedsContext,
    Fault,
}

#[inline(always)]
fn follow<T: Tables + ?Sized>(tables: &T, mut at: Target, question: &Question) -> Result<Target, Stop> {
    for _ in 0..MAX_STAGES {
        if at.is_end() {
            return Ok(at);
        }
        let word = match at.0 >> 28 & 7 {
            0 => question.remote[0],
            1 => question.remote[1],
            2 => question.remote[2],
            3 => question.remote[3],
            4 => question.service,
            5 => question.subject.interface.ok_or(Stop::NeedsContext)?,
            6 => question.subject.local.ok_or(Stop::NeedsContext)?,
            _ => return Err(Stop::Fault),
        };
        at = stage(tables, at, word).ok_or(Stop::Fault)?;
    }
    if at.is_end() { Ok(at) } else { Err(Stop::Fault) }
}

/// The target of the interval that holds `word`.
#[inline(always)]
fn stage<T: Tables + ?Sized>(tables: &T, at: Target, word: u32) -> Option<Target> {
    let node = at.0 & Target::NODE;
    if at.0 & Target::SINGLE_LINE != 0 {
        return Some(in_line(&tables.node(node)?.0, word));
    }
    let descriptor = &tables.node(node)?.0;
    let first = descriptor[Descriptor::FIRST];
    if word < first {
        return Some(Target(descriptor[Descriptor::BELOW]));
    }
    if word > descriptor[Descriptor::LAST] {
        return Some(Target(descriptor[Descriptor::ABOVE]));
    }
    let bucket = (word - first) >> (descriptor[Descriptor::SHIFT] & 31);
    let lines = descriptor[Descriptor::LINES];
    // Sums wrap: a table that was tampered with then leads to some node or to none, and never to a panic.
    let index = descriptor[Descriptor::INDEX].wrapping_add(bucket >> 4);
    let entry = Entry(tables.node(index)?.0[(bucket & 15) as usize]);

    // Of the bucket's lines, the last that starts at or before the word.
    let mut low = lines.wrapping_add(entry.first());
    let mut count = entry.lines();
    for _ in 0..MAX_HALVINGS {
        if count <= 1 {
            break;
        }
        let half = count >> 1;
        let start = tables.node(low.wrapping_add(half))?.0[0];
        low = low.wrapping_add(half & starts_at_or_before(start, word));
        // Also where the upper half is left: what is then too much lies above the word, and is not taken.
        count -= half;
    }
    Some(in_line(&tables.node(low)?.0, word))
}

/// Counts the intervals that start at or before the word, all but the first. Seven independent comparisons: a search in
/// three steps would wait for each load, and join bits in a way whose bounds the verifiers of 5.10 and 6.1 lose.
#[inline(always)]
fn in_line(line: &[u32; super::NODE_WORDS], word: u32) -> Target {
    let mut place = 0;
    for start in &line[1..Line::INTERVALS] {
        place += (starts_at_or_before(*start, word) & 1) as usize;
    }
    Target(line[Line::TARGETS + (place & 7)])
}

/// All ones where `start <= word`, else 0: the borrow of a subtraction. Without a branch, which would double what the
/// verifier walks, and cost a misprediction on every other random remote.
#[inline(always)]
const fn starts_at_or_before(start: u32, word: u32) -> u32 {
    ((start as u64).wrapping_sub(word as u64 + 1) >> 32) as u32
}

#[inline(always)]
fn at_time<T: Tables + ?Sized>(tables: &T, mut entry: u32, now: u64) -> Decision {
    for _ in 0..Timed::MAX_STEPS {
        let Some(node) = tables.node(entry >> 2) else { return Decision::FAULT };
        let at = (entry & 3) as usize * Timed::WORDS;
        let until = u64::from(node.0[at]) | u64::from(node.0[at + 1]) << 32;
        if now < until {
            return Decision::at_end(Target(node.0[at + 2]), until);
        }
        entry = node.0[at + 3];
    }
    Decision::FAULT
}
