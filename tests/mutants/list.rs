//! Mutants of `decide` and the compiler. One long table, on purpose.

pub struct Mutant {
    /// What is broken.
    pub name: &'static str,
    /// Relative to the copied workspace.
    pub file: &'static str,
    /// Occurs exactly once.
    pub from: &'static str,
    pub to: &'static str,
}

pub const fn mutant(name: &'static str, file: &'static str, from: &'static str, to: &'static str) -> Mutant {
    Mutant { name, file, from, to }
}

const LOOKUP: &str = "guard-common/src/decide/lookup.rs";
const LAYOUT: &str = "guard-common/src/decide/layout.rs";
const OUTCOME: &str = "guard-common/src/decide/outcome.rs";
const COMPILE: &str = "guard/src/policy/compile/mod.rs";
const INTERFACES: &str = "guard/src/policy/compile/interfaces.rs";
const REMOTES: &str = "guard/src/policy/compile/remotes.rs";
const ROWS: &str = "guard/src/policy/compile/rows.rs";
const SWEEP: &str = "guard/src/policy/compile/sweep.rs";
const TABLES: &str = "guard/src/policy/compile/tables.rs";

pub const MUTANTS: &[Mutant] = &[
    // decide
    mutant("index: first value counts as below", LOOKUP, "if word < first {", "if word <= first {"),
    mutant(
        "index: last value counts as above",
        LOOKUP,
        "if word > descriptor[Descriptor::LAST]",
        "if word >= descriptor[Descriptor::LAST]",
    ),
    mutant(
        "index: above leads where below does",
        LOOKUP,
        "descriptor[Descriptor::ABOVE]",
        "descriptor[Descriptor::BELOW]",
    ),
    mutant("index: wrong node of buckets", LOOKUP, "(bucket >> 4)", "(bucket >> 5)"),
    mutant("index: wrong bucket of its node", LOOKUP, "(bucket & 15)", "(bucket & 14)"),
    mutant("index: one line fewer than the bucket has", LAYOUT, "(self.0 & 0x1ff) + 1", "(self.0 & 0x1ff)"),
    mutant(
        "lines: an interval starts after its start",
        LOOKUP,
        "wrapping_sub(word as u64 + 1)",
        "wrapping_sub(word as u64)",
    ),
    mutant(
        "lines: the search keeps the wrong half",
        LOOKUP,
        "half & starts_at_or_before",
        "half & !starts_at_or_before",
    ),
    mutant("lines: the search stops early", LOOKUP, "count -= half;", "count = half >> 1;"),
    mutant("lines: too few halvings", LOOKUP, "const MAX_HALVINGS: u32 = 9;", "const MAX_HALVINGS: u32 = 2;"),
    mutant(
        "lines: the last interval is not looked at",
        LOOKUP,
        "line[1..Line::INTERVALS]",
        "line[1..Line::INTERVALS - 1]",
    ),
    mutant("stages: fewer than the longest chain", LOOKUP, "const MAX_STAGES: u32 = 8;", "const MAX_STAGES: u32 = 6;"),
    mutant(
        "stages: third word of the remote for the fourth",
        LOOKUP,
        "3 => question.remote[3]",
        "3 => question.remote[2]",
    ),
    mutant(
        "context: an interface not known is one that no rule names",
        LOOKUP,
        "question.subject.interface.ok_or(Stop::NeedsContext)?",
        "question.subject.interface.unwrap_or(0)",
    ),
    mutant(
        "context: an own address not known is one that no rule names",
        LOOKUP,
        "question.subject.local.ok_or(Stop::NeedsContext)?",
        "question.subject.local.unwrap_or(0)",
    ),
    mutant("expiry: holds a nanosecond too long", LOOKUP, "if now < until {", "if now <= until {"),
    mutant("expiry: the high half of until is off", LOOKUP, "<< 32;", "<< 31;"),
    mutant("expiry: wrong step after the first", LOOKUP, "entry = node.0[at + 3];", "entry = entry.wrapping_add(1);"),
    mutant("expiry: until is not told", LOOKUP, "Target(node.0[at + 2]), until)", "Target(node.0[at + 2]), u64::MAX)"),
    mutant("named: never", LOOKUP, "named: end.0 & Target::NAMED != 0", "named: false"),
    mutant(
        "own address: families swapped",
        LOOKUP,
        "if ipv6 { Header::LOCAL_V6 } else { Header::LOCAL_V4 }",
        "if ipv6 { Header::LOCAL_V4 } else { Header::LOCAL_V6 }",
    ),
    mutant(
        "direction: swapped in the look-up",
        LOOKUP,
        "root_node(question.direction, ",
        "root_node(question.direction.opposite(), ",
    ),
    mutant(
        "family: always IPv4's root",
        LOOKUP,
        "root_node(question.direction, question.ipv6)",
        "root_node(question.direction, false)",
    ),
    mutant(
        "outcome: allow reads as deny",
        LAYOUT,
        "Outcome::new(Reason::RuleAllow, rule - 1)",
        "Outcome::new(Reason::RuleDeny, rule - 1)",
    ),
    mutant(
        "outcome: deny names the next rule",
        LAYOUT,
        "Outcome::new(Reason::RuleDeny, rule - 1)",
        "Outcome::new(Reason::RuleDeny, rule)",
    ),
    mutant("outcome: reason in the wrong bits", OUTCOME, "(self.0 >> 24) as u8", "(self.0 >> 25) as u8"),
    // rules to rows
    mutant(
        "deny wins: only where nothing allows",
        ROWS,
        "(Some(rule), _) => Target::deny(rule),",
        "(Some(rule), None) => Target::deny(rule),\n            (Some(_), Some(rule)) => Target::allow(rule),",
    ),
    mutant(
        "deny wins: but what time or context asks for is lost",
        ROWS,
        "let first = if rule.deny {",
        "let first = if rule.deny && rule.until.is_none() {",
    ),
    mutant("order: the last rule is named", ROWS, "first.min(number)", "first.max(number)"),
    mutant("named: the last rule alone says", ROWS, "self.named |= rule.names;", "self.named = rule.names;"),
    mutant("named: forgotten where a rule ends", ROWS, "self.named > 0 }", "self.named > 1 }"),
    mutant("named: one key for both", ROWS, "u32::from(base.named)]", "0]"),
    mutant("bounds: a service ends one early", ROWS, "range.last.checked_add(1)", "Some(range.last)"),
    mutant(
        "bounds: a service begins one late",
        ROWS,
        "edges.push((range.first, number));",
        "edges.push((range.first.saturating_add(1), number));",
    ),
    mutant("expiry: a rule dies a step early", ROWS, "until(**number) >= end", "until(**number) > end"),
    mutant(
        "expiry: equal neighbours stop the chain",
        ROWS,
        "last.1 == target => last.0 = end,",
        "last.1 == target => {}",
    ),
    mutant("expiry: ignored", ROWS, "|| self.local.is_some() || self.until.is_some()", "|| self.local.is_some()"),
    mutant("interface: ignored", ROWS, "self.interface.is_some() || self.local.is_some()", "self.local.is_some()"),
    mutant(
        "own address: ignored",
        ROWS,
        "self.interface.is_some() || self.local.is_some()",
        "self.interface.is_some()",
    ),
    mutant("context: holds for the next classes too", ROWS, "push(&mut intervals, class + 1, elsewhere);", ""),
    mutant(
        "context: one key for all outcomes without it",
        ROWS,
        "[number(base.deny), number(base.allow),",
        "[number(base.deny), 0,",
    ),
    mutant(
        "context: rules without it match nowhere else",
        ROWS,
        "filter(|number| asked_by(number).is_none())",
        "filter(|_| false)",
    ),
    mutant("context: a rule without it fails in a class", ROWS, "None => true,", "None => false,"),
    // sets to intervals
    mutant(
        "bounds: a range of one set ends one early",
        SWEEP,
        "if let Some(after) = last.next() {\n            push(",
        "if let Some(after) = Some(*last) {\n            push(",
    ),
    mutant(
        "bounds: a range of many ends one early",
        SWEEP,
        "if let Some(after) = last.next() {\n                edges",
        "if let Some(after) = Some(*last) {\n                edges",
    ),
    mutant("classes: a set that ends stays", SWEEP, "active.remove(at);", ""),
    mutant(
        "classes: one step for all members",
        SWEEP,
        "steps.insert((class, *member), to);",
        "steps.insert((class, *member & 8), to);",
    ),
    mutant(
        "classes: joined by their number",
        SWEEP,
        "is_none_or(|last| last.1 != class)",
        "is_none_or(|last| last.0 != start)\n        && !intervals.iter().any(|i| i.1 == class)",
    ),
    // intervals to nodes
    mutant("direction: rules of the other", REMOTES, "rule.direction == direction", "rule.direction != direction"),
    mutant(
        "IPv6: what a word leads to after a value",
        REMOTES,
        "from = inside[inside.len() - 1].1;",
        "from = inside[0].1;",
    ),
    mutant(
        "IPv6: a value holds to the end of its word",
        REMOTES,
        "if let Some(after) = value.checked_add(1) {",
        "if let (Some(after), 0) = (value.checked_add(1), depth) {",
    ),
    mutant(
        "IPv6: a start inside a word counts as its beginning",
        REMOTES,
        "& ((1 << shift) - 1) == 0",
        "& ((1 << shift) - 1) < 2",
    ),
    mutant(
        "family: IPv4's classes written as IPv6's",
        COMPILE,
        "sweep(&remotes.v6(), &mut classes)",
        "sweep(&remotes.v6()[..remotes.v4().len().min(remotes.v6().len())], &mut classes)",
    ),
    mutant(
        "index: nothing is carried into a bucket",
        TABLES,
        "usize::from(mine.first().is_none_or(|interval| interval.0 != start))",
        "0",
    ),
    mutant(
        "index: covers one value too many",
        TABLES,
        "intervals[intervals.len() - 1].0 - 1;",
        "intervals[intervals.len() - 1].0;",
    ),
    mutant(
        "index: a bucket's first line is off",
        TABLES,
        "Entry::new(self.nodes.len() as u32 - lines,",
        "Entry::new((self.nodes.len() as u32 - lines) & !1,",
    ),
    mutant(
        "lines: targets shifted",
        TABLES,
        "words[Line::TARGETS + place] = target.0;",
        "words[Line::TARGETS + (place ^ 1)] = target.0;",
    ),
    mutant(
        "lines: unused places lead to the first target",
        TABLES,
        "fill(intervals[intervals.len() - 1].1.0)",
        "fill(intervals[0].1.0)",
    ),
    mutant(
        "sharing: time steps without what follows",
        TABLES,
        "self.timed.get(&(until, target, next))",
        "self.timed.iter().find(|(k, _)| k.0 == until && k.1 == target).map(|(_, v)| v)",
    ),
    mutant(
        "sharing: stages by their first interval",
        TABLES,
        "self.stages.get(intervals)",
        "self.stages.iter().find(|(k, _)| k[..2] == intervals[..2] && k.len() > 8).map(|(_, v)| v)",
    ),
    mutant(
        "sharing: lines by their starts",
        TABLES,
        "self.nodes[*node as usize] == line)",
        "self.nodes[*node as usize].0[..9] == line.0[..9])",
    ),
    // the policy as a whole
    mutant(
        "generation: not in the header",
        COMPILE,
        "        generation,\n        flags.0,",
        "        0,\n        flags.0,",
    ),
    mutant(
        "clocks: wall time taken for boot time",
        COMPILE,
        "unix_ns.saturating_sub(self.unix_ns).saturating_add",
        "unix_ns.saturating_add",
    ),
    mutant(
        "mode: outbound enforces when inbound does",
        COMPILE,
        "(policy.outbound == Mode::Enforce, SlotFlags::ENFORCE_OUTBOUND)",
        "(policy.inbound == Mode::Enforce, SlotFlags::ENFORCE_OUTBOUND)",
    ),
    mutant(
        "own address: classes of the first set lost",
        COMPILE,
        "for class in 1..classes.len() as ClassId {",
        "for class in 2..classes.len() as ClassId {",
    ),
    mutant(
        "named: any names too",
        COMPILE,
        "rule.action == Verdict::Allow && rule.remote.named",
        "rule.action == Verdict::Allow",
    ),
    mutant(
        "interface: only the first of several patterns",
        COMPILE,
        "condition.split(',').map(id).collect()",
        "condition.split(',').take(1).map(id).collect()",
    ),
    mutant("interface: names are short", INTERFACES, "const MAX_NAME: usize = 15;", "const MAX_NAME: usize = 4;"),
    mutant("interface: a star matches something", INTERFACES, "Some(b'*') => next.push(*at),", "Some(b'*') => {}"),
    mutant(
        "interface: a question mark matches its own sign",
        INTERFACES,
        "Some(b'?') => next.push(at + 1),",
        "Some(b'?') if byte == Some(b'?') => next.push(at + 1),",
    ),
];
