use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{
    Exit, Global,
    check::refuse,
    output::{Style, escape_line, json_line, print},
};
use crate::policy::{
    answer::answer,
    model::{Policy, Test},
    ready::{Ready, ready},
};

/// Run the tests that a policy carries
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard test policy.yaml")]
pub struct TestArgs {
    #[arg(value_name = "POLICY")]
    pub policy: PathBuf,
}

#[derive(Serialize)]
struct Outcome<'a> {
    passed: bool,
    flow: &'a str,
    expect: &'static str,
    expect_rule: Option<&'a str>,
    verdict: &'static str,
    /// The rule that decided; null: none did.
    rule: Option<String>,
    reason: &'static str,
    file: String,
    line: u32,
}

pub fn run(args: &TestArgs, global: &Global) -> anyhow::Result<Exit> {
    let ready = match ready(&args.policy) {
        Ok(ready) => ready,
        Err(found) => return Ok(refuse(&found, global)?),
    };
    let policy = &ready.loaded.policy;
    let outcomes: Vec<Outcome<'_>> = policy.tests.iter().map(|test| outcome(policy, &ready, test)).collect();
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    if global.json {
        json_line(&serde_json::json!({
            "valid": true,
            "passed": outcomes.len() - failed,
            "failed": failed,
            "tests": outcomes,
        }))?;
    } else {
        print(&text(policy, &outcomes, failed))?;
    }
    Ok(if failed == 0 { Exit::Good } else { Exit::No })
}

fn outcome<'a>(policy: &'a Policy, ready: &Ready, test: &'a Test) -> Outcome<'a> {
    let explanation = answer(policy, &ready.compiled, &test.flow, ready.now).explanation;
    let rule = explanation.rule.and_then(|number| policy.rules.get(number)).map(|rule| rule.label());
    let named = test.rule.is_none() || test.rule == rule;
    Outcome {
        passed: explanation.verdict == test.expect && named,
        flow: &test.text,
        expect: test.expect.as_str(),
        expect_rule: test.rule.as_deref(),
        verdict: explanation.verdict.as_str(),
        rule,
        reason: explanation.reason.as_str(),
        file: test.place.file.display().to_string(),
        line: test.place.line,
    }
}

fn text(policy: &Policy, outcomes: &[Outcome<'_>], failed: usize) -> String {
    let style = Style::stdout();
    let mut text = String::new();
    let by = |rule: Option<&str>| rule.map(|rule| format!(" by rule \"{rule}\"")).unwrap_or_default();
    for outcome in outcomes.iter().filter(|outcome| !outcome.passed) {
        let (flow, file) = (escape_line(outcome.flow), escape_line(&outcome.file));
        let expected = format!("{}{}", outcome.expect, by(outcome.expect_rule));
        let got = match &outcome.rule {
            Some(rule) => format!("{}{}", outcome.verdict, by(Some(rule))),
            None => format!("{} ({})", outcome.verdict, outcome.reason),
        };
        text.push_str(&format!("{} {flow}\n", style.error("FAILED")));
        text.push_str(&format!(
            "  {file}:{}: expected {}, got {}\n",
            outcome.line,
            escape_line(&expected),
            escape_line(&got)
        ));
        text.push_str(&format!("  guard explain {file} '{flow}'\n\n"));
    }
    let name = escape_line(&policy.name);
    match (outcomes.len(), failed) {
        (0, _) => text.push_str(&format!("{name}: no tests; add some under `tests:`\n")),
        (count, 0) => text.push_str(&format!("{} {name}: {count} tests passed\n", style.good("good"))),
        (count, failed) => text.push_str(&format!("{} {name}: {failed} of {count} tests failed\n", style.error("bad"))),
    }
    text
}
