//! What rules are called, by generation: a record may be of a generation that is no longer in force.

use std::{collections::BTreeMap, sync::Arc};

use guard_common::{Direction, decide::Outcome};

use crate::policy::model::{Mode, Policy, Rule};

/// How many generations' names are kept.
const GENERATIONS: usize = 8;

#[derive(Clone, Debug, Default)]
pub struct RuleNames {
    by_generation: BTreeMap<u32, Names>,
}

#[derive(Clone, Debug)]
struct Names {
    rules: Vec<Named>,
    /// Directions in which this generation drops: `[inbound, outbound]`.
    enforces: [bool; 2],
}

#[derive(Clone, Debug)]
struct Named {
    label: Arc<str>,
    remote: Option<Arc<str>>,
}

impl RuleNames {
    pub fn insert_policy(&mut self, generation: u32, policy: &Policy) {
        let rules = policy.rules.iter().map(|rule| Named { label: rule.label().into(), remote: remote(rule) });
        let enforces = [policy.inbound == Mode::Enforce, policy.outbound == Mode::Enforce];
        self.put(generation, rules.collect(), enforces);
    }

    /// Labels alone, without remotes.
    pub fn insert(&mut self, generation: u32, labels: Vec<String>, enforces: [bool; 2]) {
        let rules = labels.into_iter().map(|label| Named { label: label.into(), remote: None });
        self.put(generation, rules.collect(), enforces);
    }

    fn put(&mut self, generation: u32, rules: Vec<Named>, enforces: [bool; 2]) {
        self.by_generation.insert(generation, Names { rules, enforces });
        while self.by_generation.len() > GENERATIONS {
            self.by_generation.pop_first();
        }
    }

    /// The rule's name; its number where the generation's policy is not at hand; `None` where no rule decided.
    #[must_use]
    pub fn of(&self, generation: u32, outcome: Outcome) -> Option<Arc<str>> {
        let rule = outcome.rule()?;
        let known = self.named(generation, rule).map(|named| Arc::clone(&named.label));
        Some(known.unwrap_or_else(|| format!("#{rule}").into()))
    }

    /// The remote that the rule names, as written there; `None` for `any`, and where no rule decided.
    #[must_use]
    pub fn remote(&self, generation: u32, outcome: Outcome) -> Option<&Arc<str>> {
        self.named(generation, outcome.rule()?)?.remote.as_ref()
    }

    /// Whether that generation drops what it denies.
    #[must_use]
    pub fn enforces(&self, generation: u32, direction: Direction) -> bool {
        self.by_generation.get(&generation).is_some_and(|names| names.enforces[direction as usize])
    }

    fn named(&self, generation: u32, rule: u32) -> Option<&Named> {
        self.by_generation.get(&generation)?.rules.get(rule as usize)
    }
}

/// As written in the rule. What stands for everybody names nobody.
fn remote(rule: &Rule) -> Option<Arc<str>> {
    let everybody = ["any", "0.0.0.0/0", "::/0"];
    let names_somebody = rule.remote.named && !rule.remote.text.iter().any(|text| everybody.contains(&text.as_str()));
    (names_somebody && !rule.remote.text.is_empty()).then(|| rule.remote.text.join(", ").into())
}

#[cfg(test)]
mod tests {
    use guard_common::Reason;

    use super::*;

    #[test]
    fn names_of_old_generations_are_kept_for_a_while() {
        let mut names = RuleNames::default();
        for generation in 1..=20 {
            names.insert(generation, vec![format!("rule of {generation}")], [true, false]);
        }
        let outcome = Outcome::new(Reason::RuleAllow, 0);
        assert_eq!(names.of(20, outcome).as_deref(), Some("rule of 20"));
        assert_eq!(names.of(1, outcome).as_deref(), Some("#0"));
        assert_eq!(names.of(20, Outcome::default()), None);
        assert!(names.enforces(20, Direction::Inbound) && !names.enforces(20, Direction::Outbound));
    }

    #[test]
    fn a_rules_remote_is_as_written_and_never_everybody() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "version: 1\nname: t\nmode: audit\ngroups: { mirrors: [203.0.113.9, 203.0.113.10] }\n\
                    inbound:\n  - { from: any, services: ssh }\noutbound:\n  - { to: mirrors, services: https }\n  \
                    - { to: [198.51.100.7, mirrors], services: ssh }\n  - { to: 0.0.0.0/0, services: ntp }\n";
        std::fs::write(file.path(), text).unwrap();
        let policy = crate::daemon::kept::read(file.path()).unwrap();
        let mut names = RuleNames::default();
        names.insert_policy(3, &policy);
        let remote = |rule| names.remote(3, Outcome::new(Reason::RuleAllow, rule)).map(|text| text.to_string());
        assert_eq!(
            (0..5).map(remote).collect::<Vec<_>>(),
            [None, Some("mirrors".to_owned()), Some("198.51.100.7, mirrors".to_owned()), None, None,]
        );
        assert_eq!(names.remote(2, Outcome::new(Reason::RuleAllow, 1)), None);
    }
}
