//! Remotes of one direction: their sets for the sweep, and the stages that find a remote's class.

use guard_common::{
    Direction,
    decide::{Target, Word},
};

use super::{
    Resolved,
    error::Limit,
    sets::{SetId, Sets},
    sweep::{ClassId, push},
    tables::{Builder, Interval},
};
use crate::policy::model::Rule;

pub struct Remotes<'a> {
    sets: &'a Sets<'a>,
    /// The sets that rules of this direction name, sorted: a class's member is the position here.
    used: Vec<SetId>,
    /// The rules of each used set, one after the other, each set's sorted.
    rules: Vec<u32>,
    /// By position in `used`: where its rules end.
    ends: Vec<usize>,
}

impl<'a> Remotes<'a> {
    pub fn new(rules: &[Rule], resolved: &'a Resolved<'a>, direction: Direction) -> Self {
        let mut pairs: Vec<(SetId, u32)> = (0..)
            .zip(rules)
            .filter(|(number, rule)| rule.direction == direction && resolved.live[*number as usize].is_some())
            .map(|(number, _)| (resolved.remotes[number as usize], number))
            .collect();
        pairs.sort_unstable();
        let mut remotes = Self { sets: &resolved.sets, used: vec![], rules: vec![], ends: vec![] };
        for of_set in pairs.chunk_by(|a, b| a.0 == b.0) {
            remotes.used.push(of_set[0].0);
            remotes.rules.extend(of_set.iter().map(|(_, number)| number));
            remotes.ends.push(remotes.rules.len());
        }
        remotes
    }

    /// Members and ranges, for the sweep; sets without a range of the family are left out.
    pub fn v4(&self) -> Vec<(u32, &'a [(u32, u32)])> {
        let ranges = self.used.iter().map(|id| self.sets.list[*id as usize].v4.as_slice());
        (0..).zip(ranges).filter(|(_, ranges)| !ranges.is_empty()).collect()
    }

    pub fn v6(&self) -> Vec<(u32, &'a [(u128, u128)])> {
        let ranges = self.used.iter().map(|id| self.sets.list[*id as usize].v6.as_slice());
        (0..).zip(ranges).filter(|(_, ranges)| !ranges.is_empty()).collect()
    }

    /// The rules whose remote is one of the sets, sorted.
    pub fn rules(&self, members: &[u32]) -> Vec<u32> {
        let mut rules = Vec::new();
        for member in members {
            let start = if *member == 0 { 0 } else { self.ends[*member as usize - 1] };
            rules.extend_from_slice(&self.rules[start..self.ends[*member as usize]]);
        }
        rules.sort_unstable();
        rules
    }
}

pub fn write_v4(
    tables: &mut Builder,
    root: u32,
    intervals: &[(u32, ClassId)],
    targets: &[Target],
) -> Result<(), Limit> {
    // Two classes may have one target: where rules of both decide alike.
    let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
    for (start, class) in intervals {
        push(&mut merged, *start, targets[*class as usize]);
    }
    tables.root(root, &merged)
}

pub fn write_v6(
    tables: &mut Builder,
    root: u32,
    intervals: &[(u128, ClassId)],
    targets: &[Target],
) -> Result<(), Limit> {
    let mut merged: Vec<(u128, Target)> = Vec::with_capacity(intervals.len());
    for (start, class) in intervals {
        push(&mut merged, *start, targets[*class as usize]);
    }
    let mut words: [Vec<Interval>; 4] = Default::default();
    fill_word(tables, &mut words, 0, merged[0].1, &merged[1..])?;
    tables.root(root, &words[0])
}

const WORDS: [Word; 4] = [Word::Remote0, Word::Remote1, Word::Remote2, Word::Remote3];

/// Fills `words[depth]` with the intervals of that word, under one value of all words before it, and writes the stages
/// that they lead to. `from`: what holds at the start; `starts`: where it changes, each after the start.
fn fill_word(
    tables: &mut Builder,
    words: &mut [Vec<Interval>; 4],
    depth: usize,
    mut from: Target,
    starts: &[(u128, Target)],
) -> Result<(), Limit> {
    let shift = 96 - 32 * depth as u32;
    let word = |start: u128| (start >> shift) as u32;
    words[depth].clear();
    push(&mut words[depth], 0, from);
    for inside in starts.chunk_by(|a, b| word(a.0) == word(b.0)) {
        let value = word(inside[0].0);
        let (mut first, mut rest) = (from, inside);
        if inside[0].0 & ((1 << shift) - 1) == 0 {
            (first, rest) = (inside[0].1, &inside[1..]);
        }
        let target = if rest.is_empty() {
            first
        } else {
            fill_word(tables, words, depth + 1, first, rest)?;
            let below = std::mem::take(&mut words[depth + 1]);
            let target = tables.stage(WORDS[depth + 1], &below)?;
            words[depth + 1] = below;
            target
        };
        push(&mut words[depth], value, target);
        from = inside[inside.len() - 1].1;
        if let Some(after) = value.checked_add(1) {
            push(&mut words[depth], after, from);
        }
    }
    Ok(())
}
