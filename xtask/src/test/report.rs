//! What was found, step by step, and the closing line.

use crate::shell;
use anyhow::Context as _;
use std::collections::BTreeSet;
use std::time::Duration;

/// How one step ended. A step that runs tests counts each of them, any other counts as one.
pub enum Result {
    Passed { tests: u32 },
    Failed { passed: u32, failed: u32, why: String },
    Skipped(String),
}

pub struct Report {
    ci: bool,
    quick: bool,
    allowed: BTreeSet<String>,
    lines: Vec<String>,
    took: Duration,
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Report {
    pub fn new(ci: bool, quick: bool) -> anyhow::Result<Self> {
        Ok(Self {
            ci,
            quick,
            allowed: allowed_skips()?,
            lines: Vec::new(),
            took: Duration::ZERO,
            passed: 0,
            failed: 0,
            skipped: 0,
        })
    }

    /// `skips`: name and reason of single tests that found that they cannot run here.
    pub fn add(&mut self, name: &str, took: Duration, result: Result, skips: Vec<(String, String)>) {
        self.took += took;
        let seconds = took.as_secs_f64();
        match result {
            Result::Passed { tests } => {
                // A skipped test has returned early, so that its runner counted it as passed.
                let passed = tests.saturating_sub(u32::try_from(skips.len()).unwrap_or(u32::MAX));
                self.passed += passed;
                self.line(format!("passed   {name:<14} {seconds:7.1} s   {passed}"));
            }
            Result::Failed { passed, failed, why } => {
                self.passed += passed;
                self.failed += failed.max(1);
                self.line(format!("FAILED   {name:<14} {seconds:7.1} s   {passed} passed, {failed} failed: {why}"));
            }
            Result::Skipped(reason) => self.skip(name, &reason),
        }
        for (test, reason) in skips {
            self.skip(&test, &reason);
        }
    }

    fn skip(&mut self, name: &str, reason: &str) {
        self.skipped += 1;
        self.line(format!("SKIPPED  {name:<14} {reason}"));
        if self.ci && !self.allowed.contains(name) {
            self.failed += 1;
            self.line(format!("FAILED   {name:<14} may not be skipped in CI (xtask/allowed-skips.txt)"));
        }
    }

    fn line(&mut self, line: String) {
        println!("-- {line}");
        self.lines.push(line);
    }

    /// Prints all of it again, then the closing line alone on a line, since CI reads that; true if nothing failed.
    /// `unsteady`: tests that passed only when they were run again.
    pub fn close(self, unsteady: &[String]) -> bool {
        println!("\n== {}result, {:.0} s", if self.quick { "quick " } else { "" }, self.took.as_secs_f64());
        for line in &self.lines {
            println!("{line}");
        }
        for test in unsteady {
            println!("UNSTEADY {test}: failed beside others, passed alone; look into it");
        }
        println!("\n{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        self.failed == 0
    }
}

/// Names of steps and tests that CI may skip.
pub fn allowed_skips() -> anyhow::Result<BTreeSet<String>> {
    let path = shell::root().join("xtask/allowed-skips.txt");
    Ok(allowed(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?))
}

/// One name a line; what follows a `#` is the reason.
fn allowed(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.split('#').next())
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ci: bool) -> Report {
        Report {
            ci,
            quick: false,
            allowed: allowed("one # no such thing here\n\n# two\n"),
            lines: Vec::new(),
            took: Duration::ZERO,
            passed: 0,
            failed: 0,
            skipped: 0,
        }
    }

    #[test]
    fn ci_fails_on_a_skip_that_is_not_listed() {
        for (ci, name, failed) in [(true, "one", 0), (true, "two", 1), (false, "two", 0)] {
            let mut report = report(ci);
            report.add(name, Duration::ZERO, Result::Skipped("no reason".into()), Vec::new());
            assert_eq!((report.skipped, report.failed), (1, failed), "{name} in CI {ci}");
        }
    }

    #[test]
    fn a_skipped_test_does_not_count_as_passed() {
        let mut report = report(true);
        let skips = vec![("one".to_owned(), "not here".to_owned())];
        report.add("step", Duration::ZERO, Result::Passed { tests: 3 }, skips);
        assert_eq!((report.passed, report.failed, report.skipped), (2, 0, 1));
    }
}
