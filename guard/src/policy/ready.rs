//! A policy read and compiled: what `check`, `test` and `explain` start from.

use std::path::Path;

use super::{
    Loaded,
    compile::{Clocks, Compiled, compile},
    diagnostics::{Diagnostic, Diagnostics, Level},
    load, reachable,
};
use crate::record::clock;

/// A policy with its tables.
#[derive(Debug)]
pub struct Ready {
    pub loaded: Loaded,
    pub compiled: Compiled,
    /// The moment that the tables were made for.
    pub now: Clocks,
}

/// Now, on both clocks.
#[must_use]
pub fn now() -> Clocks {
    Clocks { unix_ns: clock::unix_now(), boot_ns: clock::boot_now() }
}

/// [`load`], and compiles: a policy past the tables' bounds is an error like any other, with its place.
pub fn ready(path: &Path) -> Result<Ready, Diagnostics> {
    let mut loaded = load(path)?;
    let now = now();
    match compile(&loaded.policy, now, 0) {
        Ok(compiled) => {
            warn_of_idle_rules(&mut loaded, &compiled, now);
            Ok(Ready { loaded, compiled, now })
        }
        Err(error) => {
            let mut found = loaded.warnings;
            let span = loaded.rule_spans.get(error.rule).copied().unwrap_or_default();
            found.push(Diagnostic {
                level: Level::Error,
                code: "too_large",
                message: format!("with rule `{}` the policy needs {}", error.label, error.limit),
                excerpt: Some(loaded.sources.excerpt(span)),
                label: "all rules before it fit".to_owned(),
                also: Vec::new(),
                help: Some(error.limit.help().to_owned()),
            });
            found.sort();
            Err(found)
        }
    }
}

/// Rules that several others settle between them; where one alone does, that has been said already.
fn warn_of_idle_rules(loaded: &mut Loaded, compiled: &Compiled, now: Clocks) {
    let decides = reachable::deciding(&compiled.nodes, loaded.policy.rules.len());
    let idle: Vec<(usize, String)> = loaded
        .policy
        .rules
        .iter()
        .enumerate()
        .filter(|(number, rule)| {
            !decides[*number] && !rule.remote.set.is_empty() && rule.expires.is_none_or(|expires| expires > now.unix_ns)
        })
        .map(|(number, rule)| (number, format!("rule `{}` can never decide anything", rule.label())))
        .collect();
    for (number, message) in idle {
        loaded.warn_of_rule(
            number,
            "never_decides",
            message,
            "other rules settle all of it: take it out, or make those narrower",
        );
    }
}
