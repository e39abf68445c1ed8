//! Real captures of hundreds of protocols through `review` and `suggest`: no panic, nothing that a report cannot show, a policy
//! that passes its own check, and no memory without bound.

use std::fs;

use guard::{
    cli::output::Style,
    review::{
        inputs::{self, Options},
        recorded::Recorded,
        render,
        suggest::{Learner, Widest, suggest, timers::NotFired},
    },
};
use guard_tests::{corpus, skip::skip};

const NEEDED: usize = 300;

#[test]
fn real_captures_are_reviewed_and_learned_from() {
    let captures = match corpus::captures_of(&["tcpdump", "wireshark", "ndpi"]) {
        Ok(captures) => captures,
        Err(error) => return skip("corpus_review", &format!("{error:#}")),
    };
    let (mut files, mut flows, mut findings, mut rules) = (0, 0, 0, 0);
    for path in &captures {
        let mut recorded = Recorded::new(None, None);
        let mut learner = Learner::new(None);
        let read = inputs::read(path, Options::default(), &mut |flow| {
            learner.see(&flow);
            recorded.see(flow);
        });
        // Link types that guard does not read, and files that are damaged on purpose.
        let Ok(read) = read else { continue };
        files += 1;
        flows += read.flows;
        let report = recorded.finish(vec![read]);
        let seen: u64 = report.findings.iter().map(|finding| finding.facts.flows).sum::<u64>()
            + report.background.iter().map(|line| line.flows).sum::<u64>();
        // An inbound service is found once, and a new remote of it again; nothing is found that was not there.
        assert!(
            report.read[0].flows == 0 || seen > 0,
            "{}: {} flows, none reported",
            path.display(),
            report.read[0].flows
        );
        findings += report.findings.len();
        for text in [render::text::render(&report, "", true, Style::plain()), render::markdown::render(&report)] {
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{}: {text:?}", path.display());
        }
        serde_json::to_string(&render::json::render(&report)).unwrap();
        let suggestion = suggest(
            learner,
            30,
            Widest::default(),
            "corpus",
            &std::collections::BTreeSet::new(),
            NotFired::elsewhere(),
        );
        rules += suggestion.rules.len();
        if !suggestion.rules.is_empty() {
            let text = suggestion.policy("corpus");
            suggestion.check(&text).unwrap_or_else(|error| panic!("{}: {error}\n{text}", path.display()));
        }
    }
    println!("{files} captures, {flows} flows, {findings} findings, {rules} rules, {} MB at most", peak() >> 20);
    assert!(files >= NEEDED, "{files} captures of link types that guard reads, of {}", captures.len());
    assert!(flows > 3_000 && findings > 500 && rules > 200, "{flows} flows, {findings} findings, {rules} rules");
    assert!(peak() < 200 << 20, "{} MB", peak() >> 20);
}

/// Bytes of memory that this process had at most.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) << 10
}
