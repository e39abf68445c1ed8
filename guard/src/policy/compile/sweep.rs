//! Flattens address sets that overlap to disjoint intervals, each with its *class*: which of the sets hold it.

use std::{collections::HashMap, hash::BuildHasher};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::error::{Limit, MAX_CLASS_CELLS};

/// Number of a class; 0: in no set.
pub type ClassId = u32;

/// Every combination of sets that occurs, once.
pub struct Classes {
    /// The members of all classes, one after the other, each class sorted.
    cells: Vec<u32>,
    /// Where each class ends in `cells`.
    ends: Vec<usize>,
    by_content: HashTable<ClassId>,
    hasher: DefaultHashBuilder,
    /// Classes of one member, which are most: by member, plus one.
    single: Vec<ClassId>,
}

impl Classes {
    /// Holds class 0, which is in no set.
    pub fn new() -> Self {
        Self {
            cells: Vec::new(),
            ends: vec![0],
            by_content: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            single: Vec::new(),
        }
    }

    pub const fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn members(&self, class: ClassId) -> &[u32] {
        members(&self.cells, &self.ends, class)
    }

    /// `members` sorted, each once.
    pub fn intern(&mut self, members: &[u32]) -> Result<ClassId, Limit> {
        match members {
            [] => Ok(0),
            [one] => {
                let one = *one as usize;
                if self.single.len() <= one {
                    self.single.resize(one + 1, 0);
                }
                if self.single[one] == 0 {
                    self.single[one] = self.push(members)?;
                }
                Ok(self.single[one])
            }
            _ => {
                let hash = self.hasher.hash_one(members);
                let (cells, ends) = (&self.cells, &self.ends);
                if let Some(class) = self.by_content.find(hash, |c| self::members(cells, ends, *c) == members) {
                    return Ok(*class);
                }
                let class = self.push(members)?;
                let (cells, ends, hasher) = (&self.cells, &self.ends, &self.hasher);
                self.by_content.insert_unique(hash, class, |c| hasher.hash_one(self::members(cells, ends, *c)));
                Ok(class)
            }
        }
    }

    fn push(&mut self, members: &[u32]) -> Result<ClassId, Limit> {
        if self.cells.len() + members.len() > MAX_CLASS_CELLS {
            return Err(Limit::Classes);
        }
        self.cells.extend_from_slice(members);
        self.ends.push(self.cells.len());
        Ok((self.ends.len() - 1) as ClassId)
    }
}

fn members<'a>(cells: &'a [u32], ends: &[usize], class: ClassId) -> &'a [u32] {
    match class as usize {
        0 => &[],
        class => &cells[ends[class - 1]..ends[class]],
    }
}

/// An address as a number.
pub trait Position: Copy + Ord {
    const ZERO: Self;
    /// `None` after the last.
    fn next(self) -> Option<Self>;
}

impl Position for u32 {
    const ZERO: Self = 0;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Position for u128 {
    const ZERO: Self = 0;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// `sets`: a member's number and its ranges (inclusive, sorted, disjoint). Returns where each interval starts and its
/// class; the first starts at 0, neighbours differ.
pub fn sweep<P: Position>(sets: &[(u32, &[(P, P)])], classes: &mut Classes) -> Result<Vec<(P, ClassId)>, Limit> {
    match sets {
        [] => Ok(vec![(P::ZERO, 0)]),
        [(member, ranges)] => {
            let class = classes.intern(&[*member])?;
            Ok(one_set(ranges, class))
        }
        _ => many_sets(sets, classes),
    }
}

fn one_set<P: Position>(ranges: &[(P, P)], class: ClassId) -> Vec<(P, ClassId)> {
    let mut intervals = Vec::with_capacity(ranges.len() * 2 + 1);
    push(&mut intervals, P::ZERO, 0);
    for (first, last) in ranges {
        push(&mut intervals, *first, class);
        if let Some(after) = last.next() {
            push(&mut intervals, after, 0);
        }
    }
    intervals
}

fn many_sets<P: Position>(sets: &[(u32, &[(P, P)])], classes: &mut Classes) -> Result<Vec<(P, ClassId)>, Limit> {
    let mut edges: Vec<(P, u32)> = Vec::with_capacity(sets.iter().map(|(_, ranges)| ranges.len() * 2).sum());
    for (member, ranges) in sets {
        for (first, last) in *ranges {
            edges.push((*first, *member));
            if let Some(after) = last.next() {
                edges.push((after, *member));
            }
        }
    }
    // Each set's edges are sorted already: a stable sort finds those runs and merges them.
    edges.sort();

    let mut intervals = Vec::with_capacity(edges.len() + 1);
    push(&mut intervals, P::ZERO, 0);
    let mut active: Vec<u32> = Vec::new();
    let mut class = 0;
    // From a class, over one member's edge, to a class: saves hashing all members where many sets overlap.
    let mut steps: HashMap<(ClassId, u32), ClassId, DefaultHashBuilder> = HashMap::default();
    for here in edges.chunk_by(|a, b| a.0 == b.0) {
        for (_, member) in here {
            // An edge enters a set that is not active and leaves one that is.
            match active.binary_search(member) {
                Ok(at) => {
                    active.remove(at);
                }
                Err(at) => active.insert(at, *member),
            }
        }
        class = match here {
            [(_, member)] if active.len() > 4 => match steps.get(&(class, *member)) {
                Some(class) => *class,
                None => {
                    let to = classes.intern(&active)?;
                    steps.insert((class, *member), to);
                    to
                }
            },
            _ => classes.intern(&active)?,
        };
        push(&mut intervals, here[0].0, class);
    }
    Ok(intervals)
}

/// Replaces an interval that would be empty, and joins neighbours of one class.
pub fn push<P: Position, C: Copy + PartialEq>(intervals: &mut Vec<(P, C)>, start: P, class: C) {
    if intervals.last().is_some_and(|last| last.0 == start) {
        intervals.pop();
    }
    if intervals.last().is_none_or(|last| last.1 != class) {
        intervals.push((start, class));
    }
}
