//! Which rules can decide anything at all: read off the compiled tables, so exact, whatever rules hide each other.

use std::collections::HashSet;

use guard_common::{
    Direction,
    decide::{Descriptor, Entry, Line, Node, Target, Timed, root_node},
};

/// For each of `rules` rules, whether some flow at some time is decided by it.
#[must_use]
pub fn deciding(nodes: &[Node], rules: usize) -> Vec<bool> {
    let mut walk = Walk { nodes, decides: vec![false; rules], seen: HashSet::new(), open: Vec::new() };
    for direction in [Direction::Inbound, Direction::Outbound] {
        for ipv6 in [false, true] {
            walk.descriptor(root_node(direction, ipv6));
        }
    }
    while let Some(target) = walk.open.pop() {
        walk.follow(target);
    }
    walk.decides
}

struct Walk<'a> {
    nodes: &'a [Node],
    decides: Vec<bool>,
    /// Stages and timed entries that were walked: they are shared.
    seen: HashSet<u32>,
    open: Vec<Target>,
}

impl Walk<'_> {
    fn follow(&mut self, target: Target) {
        if target.is_end() {
            if target.is_timed() {
                self.timed(target.0 & Target::PAYLOAD);
            } else if let Some(rule) = target.outcome().rule()
                && let Some(decides) = self.decides.get_mut(rule as usize)
            {
                *decides = true;
            }
        } else if self.seen.insert(target.0) {
            let node = target.0 & Target::NODE;
            if target.0 & Target::SINGLE_LINE != 0 { self.line(node) } else { self.descriptor(node) }
        }
    }

    fn line(&mut self, node: u32) {
        let Some(line) = self.nodes.get(node as usize) else { return };
        self.open.extend(line.0[Line::TARGETS..].iter().map(|word| Target(*word)));
    }

    fn descriptor(&mut self, node: u32) {
        let Some(Node(words)) = self.nodes.get(node as usize) else { return };
        self.open.extend([Target(words[Descriptor::BELOW]), Target(words[Descriptor::ABOVE])]);
        let (first, last) = (words[Descriptor::FIRST], words[Descriptor::LAST]);
        if first > last {
            return;
        }
        let buckets = ((last - first) >> (words[Descriptor::SHIFT] & 31)) + 1;
        let mut lines = 0;
        for bucket in 0..buckets.min(Descriptor::MAX_BUCKETS) {
            let Some(index) = self.nodes.get((words[Descriptor::INDEX] + (bucket >> 4)) as usize) else { return };
            let entry = Entry(index.0[(bucket & 15) as usize]);
            lines = lines.max(entry.first() + entry.lines());
        }
        for line in 0..lines {
            self.line(words[Descriptor::LINES] + line);
        }
    }

    fn timed(&mut self, mut entry: u32) {
        for _ in 0..Timed::MAX_STEPS {
            // High bit: timed entries and stages are numbered apart.
            if !self.seen.insert(entry | 1 << 31) {
                return;
            }
            let Some(node) = self.nodes.get((entry >> 2) as usize) else { return };
            let at = (entry & 3) as usize * Timed::WORDS;
            self.open.push(Target(node.0[at + 2]));
            if node.0[at] == u32::MAX && node.0[at + 1] == u32::MAX {
                return;
            }
            entry = node.0[at + 3];
        }
    }
}
