//! The way of a policy: YAML as written ([`yaml`], [`syntax`]) → typed and checked ([`read`], [`validate`], [`model`]) →
//! tables ([`compile`]).
//!
//! Pure: reads the policy's files and nothing else; the kernel is not asked.

use std::path::Path;

use jiff::Timestamp;

pub mod address_set;
pub mod addresses;
pub mod answer;
pub mod compile;
pub mod diagnostics;
pub mod effective;
pub mod essentials;
pub mod exceptions;
pub mod files;
pub mod flow_query;
pub mod groups;
pub mod include;
pub mod lists;
pub mod model;
pub mod nearest;
pub mod nft;
pub mod reachable;
pub mod read;
pub mod ready;
pub mod services;
pub mod source;
pub mod syntax;
pub mod validate;
pub mod warnings;
pub mod yaml;

use diagnostics::{Diagnostic, Diagnostics, Level};
use include::Files;
use model::Policy;
use source::{Sources, Span};

/// A policy without errors.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub policy: Policy,
    /// Only warnings.
    pub warnings: Diagnostics,
    sources: Sources,
    /// Where each rule stands, for warnings that are found later.
    rule_spans: Vec<Span>,
}

impl Loaded {
    /// Adds a warning about a rule, unless that rule was warned of under the same code.
    pub fn warn_of_rule(&mut self, rule: usize, code: &'static str, message: String, help: &str) {
        let Some(span) = self.rule_spans.get(rule) else { return };
        let excerpt = self.sources.excerpt(*span);
        let known = |d: &Diagnostic| d.code == code && d.excerpt.as_ref().is_some_and(|e| e.place == excerpt.place);
        if self.warnings.list.iter().any(known) {
            return;
        }
        self.warnings.push(Diagnostic {
            level: Level::Warning,
            code,
            message,
            excerpt: Some(excerpt),
            label: String::new(),
            also: Vec::new(),
            help: Some(help.to_owned()),
        });
        self.warnings.sort();
    }
}

/// Reads a policy with all its files. On errors: all of them, and the warnings that could be made out beside them.
pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
    let mut files = Files::default();
    files.read(path);
    finish(files)
}

/// The same for a text; `name` stands for its path, which what it includes is relative to.
pub fn load_str(name: &str, text: &str) -> Result<Loaded, Diagnostics> {
    let mut files = Files::default();
    files.read_str(Path::new(name), text);
    finish(files)
}

fn finish(mut files: Files) -> Result<Loaded, Diagnostics> {
    let policy = validate::validate(&mut files, Timestamp::now());
    let mut found = files.reporter.found;
    found.sort();
    match policy {
        Some((policy, rule_spans)) if !found.has_errors() => {
            Ok(Loaded { policy, warnings: found, sources: files.reporter.sources, rule_spans })
        }
        _ => Err(found),
    }
}
