//! What the rules for one class of remotes decide: a stage on the service, and under it, only where the outcome
//! depends on them, stages on the interface and on our own address, and chains of outcomes that change with time.

use std::collections::HashMap;

use guard_common::decide::{Target, Word};
use hashbrown::DefaultHashBuilder;

use super::{
    error::{Limit, MAX_ROW_STEPS},
    interfaces::PatternId,
    sets::SetId,
    sweep::{ClassId, push},
    tables::{Builder, Interval},
};
use crate::policy::model::ServiceRange;

/// A rule that has not expired, as the rows need it.
pub struct Live<'a> {
    pub deny: bool,
    /// An allow whose remote is not `any`.
    pub names: bool,
    pub services: &'a [ServiceRange],
    pub interface: Option<PatternId>,
    pub local: Option<SetId>,
    /// Boot-time nanoseconds; `None`: for ever.
    pub until: Option<u64>,
}

impl Live<'_> {
    const fn is_conditional(&self) -> bool {
        self.interface.is_some() || self.local.is_some() || self.until.is_some()
    }
}

/// The classes of a context, for the stages on it.
pub struct Context<'a> {
    /// By pattern or set: the classes that it holds in, sorted.
    pub classes_of: &'a [Vec<ClassId>],
    /// How many classes there are, with class 0.
    pub count: u32,
}

pub struct Rows<'a> {
    /// By rule number.
    rules: &'a [Option<Live<'a>>],
    interfaces: Context<'a>,
    locals: Context<'a>,
    /// Outcomes of sets of rules of which some are conditional, by [`key`].
    resolved: HashMap<Box<[u32]>, Target, DefaultHashBuilder>,
    steps: usize,
}

/// What the rules that hold in every context decide.
#[derive(Clone, Copy, Default)]
struct Base {
    deny: Option<u32>,
    allow: Option<u32>,
    named: bool,
}

impl Base {
    fn with(mut self, number: u32, rule: &Live) -> Self {
        let first = if rule.deny { &mut self.deny } else { &mut self.allow };
        *first = Some(first.map_or(number, |first| first.min(number)));
        self.named |= rule.names;
        self
    }

    /// Deny wins; else the first allow in file order is named.
    fn target(self) -> Target {
        match (self.deny, self.allow) {
            (Some(rule), _) => Target::deny(rule),
            (None, Some(rule)) if self.named => Target(Target::allow(rule).0 | Target::NAMED),
            (None, Some(rule)) => Target::allow(rule),
            (None, None) => Target::NOT_LISTED,
        }
    }
}

/// The rules that match at one service, each list sorted.
#[derive(Default)]
struct Active {
    deny: Vec<u32>,
    allow: Vec<u32>,
    named: usize,
    conditional: Vec<u32>,
}

impl Active {
    fn toggle(&mut self, number: u32, rule: &Live) {
        let list = match (rule.is_conditional(), rule.deny) {
            (true, _) => &mut self.conditional,
            (false, true) => &mut self.deny,
            (false, false) => &mut self.allow,
        };
        let entered = match list.binary_search(&number) {
            Ok(at) => {
                list.remove(at);
                false
            }
            Err(at) => {
                list.insert(at, number);
                true
            }
        };
        if rule.names && !rule.is_conditional() {
            self.named = if entered { self.named + 1 } else { self.named - 1 };
        }
    }

    fn base(&self) -> Base {
        Base { deny: self.deny.first().copied(), allow: self.allow.first().copied(), named: self.named > 0 }
    }
}

impl<'a> Rows<'a> {
    pub fn new(rules: &'a [Option<Live<'a>>], interfaces: Context<'a>, locals: Context<'a>) -> Self {
        Self { rules, interfaces, locals, resolved: HashMap::default(), steps: 0 }
    }

    /// `numbers`: the rules whose remote holds the class, sorted.
    pub fn row(&mut self, tables: &mut Builder, numbers: &[u32]) -> Result<Target, Limit> {
        let rules = self.rules;
        let live = numbers.iter().filter_map(|number| Some((*number, rules[*number as usize].as_ref()?)));
        let mut edges: Vec<(u32, u32)> = Vec::with_capacity(numbers.len() * 2);
        for (number, rule) in live {
            for range in rule.services {
                edges.push((range.first, number));
                if let Some(after) = range.last.checked_add(1) {
                    edges.push((after, number));
                }
            }
        }
        edges.sort_unstable();
        self.count(edges.len())?;

        let mut intervals: Vec<Interval> = Vec::with_capacity(edges.len() + 1);
        push(&mut intervals, 0, Target::NOT_LISTED);
        let mut active = Active::default();
        for here in edges.chunk_by(|a, b| a.0 == b.0) {
            for (_, number) in here {
                if let Some(rule) = &rules[*number as usize] {
                    active.toggle(*number, rule);
                }
            }
            let target = if active.conditional.is_empty() {
                active.base().target()
            } else {
                self.conditional(tables, active.base(), &active.conditional)?
            };
            push(&mut intervals, here[0].0, target);
        }
        tables.stage(Word::Service, &intervals)
    }

    fn conditional(&mut self, tables: &mut Builder, base: Base, numbers: &[u32]) -> Result<Target, Limit> {
        self.count(numbers.len())?;
        let key = key(base, numbers);
        if let Some(target) = self.resolved.get(&*key) {
            return Ok(*target);
        }
        let target = self.by_interface(tables, base, numbers)?;
        self.resolved.insert(key, target);
        Ok(target)
    }

    fn by_interface(&mut self, tables: &mut Builder, base: Base, numbers: &[u32]) -> Result<Target, Limit> {
        let asked = |rule: &Live| rule.interface;
        let (classes_of, count) = (self.interfaces.classes_of, self.interfaces.count);
        self.by_context(tables, Word::Interface, base, numbers, &asked, classes_of, count)
    }

    fn by_local(&mut self, tables: &mut Builder, base: Base, numbers: &[u32]) -> Result<Target, Limit> {
        let asked = |rule: &Live| rule.local;
        let (classes_of, count) = (self.locals.classes_of, self.locals.count);
        self.by_context(tables, Word::Local, base, numbers, &asked, classes_of, count)
    }

    /// A stage on the class of a context; no stage where all classes lead to one target.
    #[expect(clippy::too_many_arguments, reason = "the two contexts differ in exactly these")]
    fn by_context(
        &mut self,
        tables: &mut Builder,
        word: Word,
        base: Base,
        numbers: &[u32],
        asked: &dyn Fn(&Live) -> Option<u32>,
        classes_of: &[Vec<ClassId>],
        count: u32,
    ) -> Result<Target, Limit> {
        let rules = self.rules;
        let asked_by = |number: &u32| rules[*number as usize].as_ref().and_then(asked);
        let mut classes: Vec<ClassId> =
            numbers.iter().filter_map(asked_by).flat_map(|id| &classes_of[id as usize]).copied().collect();
        classes.sort_unstable();
        classes.dedup();
        self.count(numbers.len() * (classes.len() + 1))?;

        // In a class that none of these rules asks for, those without the condition match.
        let plain: Vec<u32> = numbers.iter().filter(|number| asked_by(number).is_none()).copied().collect();
        let elsewhere = self.after(tables, word, base, &plain)?;
        let mut intervals = Vec::with_capacity(classes.len() * 2 + 2);
        push(&mut intervals, 0, elsewhere);
        for class in classes {
            let matches = |number: &&u32| match asked_by(number) {
                Some(id) => classes_of[id as usize].binary_search(&class).is_ok(),
                None => true,
            };
            let matching: Vec<u32> = numbers.iter().filter(matches).copied().collect();
            let target = self.after(tables, word, base, &matching)?;
            push(&mut intervals, class, target);
            push(&mut intervals, class + 1, elsewhere);
        }
        if let [(_, target)] = *intervals {
            return Ok(target);
        }
        // A class that this generation does not know: fail closed.
        push(&mut intervals, count, Target::NOT_LISTED);
        tables.stage(word, &intervals)
    }

    /// The stage that follows a context's.
    fn after(&mut self, tables: &mut Builder, word: Word, base: Base, numbers: &[u32]) -> Result<Target, Limit> {
        if word == Word::Interface { self.by_local(tables, base, numbers) } else { self.by_time(tables, base, numbers) }
    }

    fn by_time(&mut self, tables: &mut Builder, base: Base, numbers: &[u32]) -> Result<Target, Limit> {
        let rules = self.rules;
        let until = |number: u32| rules[number as usize].as_ref().and_then(|rule| rule.until).unwrap_or(u64::MAX);
        let mut ends: Vec<u64> = numbers.iter().map(|number| until(*number)).chain([u64::MAX]).collect();
        ends.sort_unstable();
        ends.dedup();
        self.count(numbers.len() * ends.len())?;

        let mut steps: Vec<(u64, Target)> = Vec::with_capacity(ends.len());
        for end in ends {
            let alive = numbers.iter().filter(|number| until(**number) >= end);
            let target = alive
                .filter_map(|number| Some((*number, rules[*number as usize].as_ref()?)))
                .fold(base, |base, (number, rule)| base.with(number, rule))
                .target();
            match steps.last_mut() {
                Some(last) if last.1 == target => last.0 = end,
                _ => steps.push((end, target)),
            }
        }
        tables.timed(&steps)
    }

    fn count(&mut self, steps: usize) -> Result<(), Limit> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > MAX_ROW_STEPS { Err(Limit::Rows) } else { Ok(()) }
    }
}

fn key(base: Base, numbers: &[u32]) -> Box<[u32]> {
    let number = |rule: Option<u32>| rule.map_or(0, |rule| rule + 1);
    [number(base.deny), number(base.allow), u32::from(base.named)].into_iter().chain(numbers.iter().copied()).collect()
}
