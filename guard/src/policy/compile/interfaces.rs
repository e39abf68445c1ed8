//! Interface patterns to classes: a class is a combination of patterns that some name can match.
//!
//! Interfaces come and go while a generation holds, so every combination that any name could match is found when the
//! policy is compiled, by running all patterns over all names at once (the subset construction of automata theory).

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::error::{Limit, MAX_INTERFACE_CLASSES};

/// The kernel's IFNAMSIZ, without the NUL.
const MAX_NAME: usize = 15;
/// Sets of live positions looked at; far above what sane patterns need.
const MAX_STATES: usize = 1 << 15;

/// Number of a pattern in [`Interfaces`].
pub type PatternId = u32;

/// The classes of interfaces, from patterns alone.
#[derive(Clone, Debug, Default)]
pub struct InterfaceClasses(Arc<Interfaces>);

impl InterfaceClasses {
    /// `patterns`: what [`super::Compiled::interface_patterns`] gave. `None`: more than a policy may have.
    #[must_use]
    pub fn new(patterns: &[String]) -> Option<Self> {
        let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        Interfaces::new(&patterns).ok().map(|interfaces| Self(Arc::new(interfaces)))
    }

    /// As [`super::Compiled::interface_class`].
    #[must_use]
    pub fn class(&self, name: &str) -> u32 {
        self.0.class(name)
    }
}

#[derive(Debug, Default)]
pub struct Interfaces {
    patterns: Vec<Vec<u8>>,
    /// Class of each combination (sorted). Class 0 is that of none.
    classes: HashMap<Box<[PatternId]>, u32>,
    /// By pattern: the classes in which it matches, sorted.
    pub classes_of: Vec<Vec<u32>>,
}

impl Interfaces {
    /// `patterns`: names with `*` (any bytes) and `?` (one byte), each once.
    pub fn new(patterns: &[&str]) -> Result<Self, Limit> {
        let patterns: Vec<Vec<u8>> = patterns.iter().map(|pattern| plain(pattern.as_bytes())).collect();
        let combinations = combinations(&patterns)?;
        if combinations.len() > MAX_INTERFACE_CLASSES {
            return Err(Limit::Interfaces);
        }
        let mut classes_of = vec![Vec::new(); patterns.len()];
        let mut classes = HashMap::new();
        for (combination, class) in combinations.into_iter().zip(1..) {
            for pattern in &combination {
                classes_of[*pattern as usize].push(class);
            }
            classes.insert(combination.into_boxed_slice(), class);
        }
        Ok(Self { patterns, classes, classes_of })
    }

    /// As given, but for stars that change nothing: the same list gives the same classes again.
    pub fn patterns(&self) -> Vec<String> {
        self.patterns.iter().map(|pattern| String::from_utf8_lossy(pattern).into_owned()).collect()
    }

    /// How many classes there are, with class 0.
    pub fn len(&self) -> u32 {
        self.classes.len() as u32 + 1
    }

    /// A combination that is not known cannot be; it would get a number that no stage lists, which denies.
    pub fn class(&self, name: &str) -> u32 {
        let matching: Vec<PatternId> = (0..)
            .zip(&self.patterns)
            .filter(|(_, pattern)| matches(pattern, name.as_bytes()))
            .map(|(id, _)| id)
            .collect();
        if matching.is_empty() {
            return 0;
        }
        self.classes.get(matching.as_slice()).copied().unwrap_or(u32::MAX)
    }
}

/// Without stars that follow a star: they change nothing.
fn plain(pattern: &[u8]) -> Vec<u8> {
    let mut plain = pattern.to_vec();
    plain.dedup_by(|a, b| *a == b'*' && *b == b'*');
    plain
}

/// Whether a name matches a pattern with `*` and `?`.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut live = vec![0];
    close(pattern, &mut live);
    for byte in name {
        live = step(pattern, &live, Some(*byte));
    }
    live.contains(&pattern.len())
}

/// Positions in a pattern after one more byte (`None`: a byte that no pattern names).
fn step(pattern: &[u8], live: &[usize], byte: Option<u8>) -> Vec<usize> {
    let mut next = Vec::new();
    for at in live {
        match pattern.get(*at) {
            Some(b'*') => next.push(*at),
            Some(b'?') => next.push(at + 1),
            Some(literal) if Some(*literal) == byte => next.push(at + 1),
            _ => {}
        }
    }
    close(pattern, &mut next);
    next
}

/// Adds the positions after stars, which may match nothing.
fn close(pattern: &[u8], live: &mut Vec<usize>) {
    let mut i = 0;
    while i < live.len() {
        if pattern.get(live[i]) == Some(&b'*') && !live.contains(&(live[i] + 1)) {
            live.push(live[i] + 1);
        }
        i += 1;
    }
    live.sort_unstable();
    live.dedup();
}

/// Every combination of patterns that a name of 1 to 15 bytes can match, but the empty one.
fn combinations(patterns: &[Vec<u8>]) -> Result<BTreeSet<Vec<PatternId>>, Limit> {
    type State = Vec<(PatternId, Vec<usize>)>;
    let bytes: BTreeSet<Option<u8>> = patterns
        .iter()
        .flatten()
        .filter(|byte| !matches!(byte, b'*' | b'?'))
        .map(|byte| Some(*byte))
        .chain([None])
        .collect();
    let start: State = (0..)
        .zip(patterns)
        .map(|(id, pattern)| {
            let mut live = vec![0];
            close(pattern, &mut live);
            (id, live)
        })
        .collect();

    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut layer = vec![start];
    for _ in 0..MAX_NAME {
        let mut next_layer = Vec::new();
        for state in &layer {
            for byte in &bytes {
                let next: State = state
                    .iter()
                    .map(|(id, live)| (*id, step(&patterns[*id as usize], live, *byte)))
                    .filter(|(_, live)| !live.is_empty())
                    .collect();
                if next.is_empty() || !seen.insert(next.clone()) {
                    continue;
                }
                let whole: Vec<PatternId> = next
                    .iter()
                    .filter(|(id, live)| live.contains(&patterns[*id as usize].len()))
                    .map(|(id, _)| *id)
                    .collect();
                if !whole.is_empty() {
                    found.insert(whole);
                }
                if seen.len() > MAX_STATES || found.len() > MAX_INTERFACE_CLASSES {
                    return Err(Limit::Interfaces);
                }
                next_layer.push(next);
            }
        }
        layer = next_layer;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_the_class_of_what_it_matches() {
        let patterns = ["eth*", "*0", "eth1", "e??1", "*", "wg?", "br-*-x"];
        let interfaces = Interfaces::new(&patterns).expect("few patterns");
        for name in ["eth0", "eth1", "eth10", "lo", "wg0", "wg", "br--x", "br-a-x", "x0", "emm1", "0", "\u{e4}0"] {
            let class = interfaces.class(name);
            assert!((1..interfaces.len()).contains(&class), "{name}: {class}");
            for (id, pattern) in patterns.iter().enumerate() {
                let glob = globset::Glob::new(pattern).expect("pattern").compile_matcher();
                // globset's `?` is a character; interface names are bytes, and none here has two bytes under a `?`.
                assert_eq!(interfaces.classes_of[id].contains(&class), glob.is_match(name), "{pattern} on {name}");
            }
        }
    }

    #[test]
    fn a_name_that_nothing_names_is_class_0() {
        let interfaces = Interfaces::new(&["eth0", "wg*"]).expect("few patterns");
        assert_eq!(interfaces.class("eth"), 0);
        assert_eq!(interfaces.class("eth00"), 0);
        assert_eq!(interfaces.len(), 3);
    }

    #[test]
    fn patterns_that_overlap_without_end_are_refused() {
        let many: Vec<String> = (b'a'..=b'z').map(|c| format!("*{}*", c as char)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(Interfaces::new(&many).err(), Some(Limit::Interfaces));
    }
}
