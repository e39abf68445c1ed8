//! Writes stages into nodes, equal ones once.

use std::{collections::HashMap, hash::BuildHasher};

use guard_common::decide::{Descriptor, Entry, Header, Line, NODE_WORDS, Node, Target, Timed, Word};
use hashbrown::{DefaultHashBuilder, HashTable};

use super::error::{Limit, MAX_NODES};

/// Where an interval starts, and where it leads.
pub type Interval = (u32, Target);

pub struct Builder {
    pub nodes: Vec<Node>,
    /// Single-line stages by their node's content.
    lines: HashTable<u32>,
    /// Descriptors by all intervals of their stage.
    stages: HashMap<Box<[Interval]>, u32, DefaultHashBuilder>,
    timed: HashMap<(u64, Target, u32), u32, DefaultHashBuilder>,
    /// Number of the next timed entry, if its node has room.
    next_timed: Option<u32>,
    hasher: DefaultHashBuilder,
}

impl Builder {
    pub fn new() -> Self {
        Self {
            nodes: vec![Node::default(); Header::FIRST_FREE as usize],
            lines: HashTable::new(),
            stages: HashMap::default(),
            timed: HashMap::default(),
            next_timed: None,
            hasher: DefaultHashBuilder::default(),
        }
    }

    pub fn shared_lines(&self) -> usize {
        self.lines.len()
    }

    pub fn timed_entries(&self) -> usize {
        self.timed.len()
    }

    /// `intervals`: the first starts at 0, neighbours differ.
    pub fn stage(&mut self, word: Word, intervals: &[Interval]) -> Result<Target, Limit> {
        if let [(_, target)] = intervals {
            return Ok(*target);
        }
        if intervals.len() <= Line::INTERVALS {
            return Ok(Target::line(word, self.line(intervals)?));
        }
        if let Some(node) = self.stages.get(intervals) {
            return Ok(Target::stage(word, *node));
        }
        let node = self.allocate(1)?;
        let descriptor = self.index(intervals)?;
        self.nodes[node as usize] = descriptor;
        self.stages.insert(intervals.into(), node);
        Ok(Target::stage(word, node))
    }

    /// The stage on [`Word::Remote0`] whose descriptor stands in a fixed node.
    pub fn root(&mut self, node: u32, intervals: &[Interval]) -> Result<(), Limit> {
        let descriptor = if intervals.len() <= Line::INTERVALS {
            let target = self.stage(Word::Remote0, intervals)?;
            let mut words = [0; NODE_WORDS];
            words[Descriptor::FIRST] = 1;
            words[Descriptor::BELOW] = target.0;
            words[Descriptor::ABOVE] = target.0;
            Node(words)
        } else {
            self.index(intervals)?
        };
        self.nodes[node as usize] = descriptor;
        Ok(())
    }

    /// An outcome that changes: `(until, target)`, ascending, the last for ever (`u64::MAX`).
    pub fn timed(&mut self, steps: &[(u64, Target)]) -> Result<Target, Limit> {
        if steps.len() > Timed::MAX_STEPS as usize {
            return Err(Limit::TimeSteps);
        }
        if let [(_, target)] = steps {
            return Ok(*target);
        }
        let mut next = 0;
        for (until, target) in steps.iter().rev() {
            next = self.timed_entry(*until, *target, next)?;
        }
        Ok(Target::timed(next))
    }

    fn timed_entry(&mut self, until: u64, target: Target, next: u32) -> Result<u32, Limit> {
        if let Some(entry) = self.timed.get(&(until, target, next)) {
            return Ok(*entry);
        }
        let entry = match self.next_timed {
            Some(entry) => entry,
            None => self.allocate(1)? * 4,
        };
        self.next_timed = if entry % 4 == 3 { None } else { Some(entry + 1) };
        let at = (entry % 4) as usize * Timed::WORDS;
        let words = &mut self.nodes[entry as usize / 4].0;
        words[at] = until as u32;
        words[at + 1] = (until >> 32) as u32;
        words[at + 2] = target.0;
        words[at + 3] = next;
        self.timed.insert((until, target, next), entry);
        Ok(entry)
    }

    fn line(&mut self, intervals: &[Interval]) -> Result<u32, Limit> {
        let line = line(intervals);
        let hash = self.hasher.hash_one(line);
        if let Some(node) = self.lines.find(hash, |node| self.nodes[*node as usize] == line) {
            return Ok(*node);
        }
        let node = self.allocate(1)?;
        self.nodes[node as usize] = line;
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        self.lines.insert_unique(hash, node, |node| hasher.hash_one(nodes[*node as usize]));
        Ok(node)
    }

    /// The first of `count` new nodes.
    fn allocate(&mut self, count: usize) -> Result<u32, Limit> {
        let first = self.nodes.len();
        if first + count > MAX_NODES {
            return Err(Limit::Nodes);
        }
        self.nodes.resize(first + count, Node::default());
        Ok(first as u32)
    }

    /// Lines and index of a stage, and the descriptor that leads to them.
    fn index(&mut self, intervals: &[Interval]) -> Result<Node, Limit> {
        let (below, above) = (intervals[0].1, intervals[intervals.len() - 1].1);
        // What lies between the first and the last interval; each of the two is one target, for all values outside.
        let inner = &intervals[1..intervals.len() - 1];
        let first = inner[0].0;
        let last = intervals[intervals.len() - 1].0 - 1;
        let shift = choose_shift(inner, last);
        let buckets = ((last - first) >> shift) as usize + 1;

        let index = self.allocate(buckets.div_ceil(NODE_WORDS))?;
        let lines = self.nodes.len() as u32;
        let mut open: &[Interval] = &[];
        let mut rest = inner;
        for bucket in 0..buckets {
            let start = first + ((bucket as u32) << shift);
            let here = starts_in(rest, start, shift);
            let (mine, after) = rest.split_at(here);
            // The interval that holds the bucket's first value, where it starts before it.
            let carried = usize::from(mine.first().is_none_or(|interval| interval.0 != start));
            let done = inner.len() - rest.len();
            if !open.is_empty() && open.len() + here <= Line::INTERVALS {
                open = &inner[done - open.len()..done + here];
            } else {
                if !open.is_empty() {
                    self.write_lines(open)?;
                }
                open = &inner[done - carried..done + here];
            }
            let count = open.len().div_ceil(Line::INTERVALS);
            let entry = Entry::new(self.nodes.len() as u32 - lines, count as u32);
            if entry.first() != self.nodes.len() as u32 - lines || entry.lines() as usize != count {
                return Err(Limit::Nodes);
            }
            self.nodes[index as usize + bucket / NODE_WORDS].0[bucket % NODE_WORDS] = entry.0;
            // Of several lines only the last can take more.
            let full = (count - 1) * Line::INTERVALS;
            if full > 0 {
                self.write_lines(&open[..full])?;
                open = &open[full..];
            }
            rest = after;
        }
        self.write_lines(open)?;

        let mut words = [0; NODE_WORDS];
        words[Descriptor::FIRST] = first;
        words[Descriptor::LAST] = last;
        words[Descriptor::SHIFT] = shift;
        words[Descriptor::INDEX] = index;
        words[Descriptor::LINES] = lines;
        words[Descriptor::BELOW] = below.0;
        words[Descriptor::ABOVE] = above.0;
        Ok(Node(words))
    }

    fn write_lines(&mut self, intervals: &[Interval]) -> Result<(), Limit> {
        for eight in intervals.chunks(Line::INTERVALS) {
            let node = self.allocate(1)?;
            self.nodes[node as usize] = line(eight);
        }
        Ok(())
    }
}

fn line(intervals: &[Interval]) -> Node {
    let mut words = [u32::MAX; NODE_WORDS];
    words[Line::TARGETS..].fill(intervals[intervals.len() - 1].1.0);
    for (place, (start, target)) in intervals.iter().enumerate() {
        words[place] = *start;
        words[Line::TARGETS + place] = target.0;
    }
    Node(words)
}

/// How many of `intervals` start in the bucket that begins at `start`.
fn starts_in(intervals: &[Interval], start: u32, shift: u32) -> usize {
    intervals.iter().take_while(|interval| (interval.0 - start) >> shift == 0).count()
}

/// Buckets of two intervals on average, so that nearly all have one line; where the intervals cluster, up to 16 times as
/// many, until few need a search among lines. At most 2^20 buckets: a bucket of 4,096 values then has at most 4,096
/// starts, or 4,095 and the interval carried over, which is [`Entry::MAX_LINES`] lines.
fn choose_shift(inner: &[Interval], last: u32) -> u32 {
    let first = inner[0].0;
    let span = last - first;
    let wanted = (inner.len() / 2).next_power_of_two().min(Descriptor::MAX_BUCKETS as usize) as u32;
    let shift_for = |buckets: u32| (0..32).find(|shift| span >> shift < buckets).unwrap_or(31);
    let smallest = shift_for(Descriptor::MAX_BUCKETS);
    let mut shift = shift_for(wanted);
    for _ in 0..4 {
        if shift == smallest || searched(inner, first, shift) * 8 <= inner.len() {
            break;
        }
        shift -= 1;
    }
    while shift > smallest && most_starts(inner, first, shift) >= Entry::MAX_LINES as usize * Line::INTERVALS {
        shift -= 1;
    }
    shift
}

/// How many intervals are in buckets that need more than a line.
fn searched(inner: &[Interval], first: u32, shift: u32) -> usize {
    buckets(inner, first, shift).filter(|starts| *starts >= Line::INTERVALS).sum()
}

fn most_starts(inner: &[Interval], first: u32, shift: u32) -> usize {
    buckets(inner, first, shift).max().unwrap_or(0)
}

/// How many intervals start in each bucket that has any.
fn buckets(inner: &[Interval], first: u32, shift: u32) -> impl Iterator<Item = usize> {
    inner.chunk_by(move |a, b| (a.0 - first) >> shift == (b.0 - first) >> shift).map(<[Interval]>::len)
}
