//! A policy is hostile input: nothing that is read may panic, hang or fill the memory.

use std::{sync::LazyLock, time::Duration};

use guard::policy::{
    answer::answer,
    compile::{Compiled, compile},
    diagnostics::Diagnostics,
    effective, load_str,
    model::{FlowQuery, Policy},
    ready,
};
use proptest::prelude::*;

/// Mutated in the tests below: one of everything.
const SEED: &str = include_str!("golden/everything.yaml");

static READY: LazyLock<(Policy, Compiled)> = LazyLock::new(|| {
    let policy = load_str("p", SEED).unwrap().policy;
    let compiled = compile(&policy, ready::now(), 1).unwrap();
    (policy, compiled)
});

/// Reads, and shows whatever comes of it.
fn survive(text: &str) {
    let show = |found: &Diagnostics| (found.render(true).len(), found.json().to_string().len());
    match load_str("policy.yaml", text) {
        Err(found) => {
            assert!(found.has_errors());
            show(&found);
        }
        Ok(loaded) => {
            show(&loaded.warnings);
            // What holds can be written out and read back as the same.
            let text = effective::yaml(&loaded.policy);
            let again =
                load_str("policy.yaml", &text).unwrap_or_else(|found| panic!("{text}\n{}", found.render(false)));
            assert_eq!(again.policy.rules.len(), loaded.policy.rules.len());
            let (mut ours, mut theirs): (Vec<_>, Vec<_>) = loaded
                .policy
                .rules
                .iter()
                .zip(&again.policy.rules)
                .map(|(a, b)| {
                    let of = |r: &guard::policy::model::Rule| {
                        (
                            r.direction as u8,
                            r.action,
                            r.remote.set.clone(),
                            r.services.clone(),
                            r.interface.clone(),
                            r.local.clone(),
                            r.expires,
                        )
                    };
                    (of(a), of(b))
                })
                .unzip();
            // The effective policy has inbound first.
            ours.sort_by_key(|rule| rule.0);
            theirs.sort_by_key(|rule| rule.0);
            assert_eq!(ours, theirs);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn mutated_policies_do_no_harm(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..6, "[ -~\\n\\t\u{e9}\u{202e}]{0,4}"), 1..6)
    ) {
        let mut text: Vec<char> = SEED.chars().collect();
        for (at, kind, insert) in edits {
            let at = at.index(text.len().max(1)).min(text.len());
            match kind {
                0 => { text.splice(at..at, insert.chars()); }
                1 => { text.truncate(at); }
                2 => { let end = (at + insert.len() * 3).min(text.len()); text.drain(at..end); }
                3 => { let end = (at + 40).min(text.len()); let copy: Vec<char> = text[at..end].to_vec(); text.splice(at..at, copy); }
                _ => { let end = (at + insert.chars().count()).min(text.len()); text.splice(at..end, insert.chars()); }
            }
        }
        survive(&text.into_iter().collect::<String>());
    }

    #[test]
    fn random_text_does_no_harm(text in "\\PC{0,200}") {
        survive(&text);
    }

    #[test]
    fn random_structure_does_no_harm(text in "[a-c:,\\[\\]{}&*!|>\"'#%@` \\n?-]{0,120}") {
        survive(&format!("version: 1\ninbound: []\noutbound: []\n{text}"));
        survive(&text);
    }

    #[test]
    fn random_flows_do_no_harm(text in "(in|out) (tcp|udp|icmp|proto/[0-9]{1,3}|[a-z]{1,5}) [0-9a-f.:\\[\\]* >-]{0,40}") {
        if let Ok(flow) = text.parse::<FlowQuery>() {

            let (policy, compiled) = &*READY;
            let _ = answer(policy, compiled, &flow, ready::now());
        }
    }
}

#[test]
fn the_seed_is_valid() {
    let loaded = load_str("policy.yaml", SEED).unwrap_or_else(|found| panic!("{}", found.render(false)));
    assert!(loaded.policy.rules.len() >= 5);
    survive(SEED);
}

/// The tree that positions come from says the same as the dependency's own reader of values.
#[test]
fn the_tree_agrees_with_serde() {
    let value: serde_json::Value = serde_yaml::from_str(SEED).unwrap();
    let policy = load_str("policy.yaml", SEED).unwrap().policy;
    let (inbound, outbound) = (value["inbound"].as_array().unwrap(), value["outbound"].as_array().unwrap());
    assert_eq!(policy.rules.len(), inbound.len() + outbound.len());
    for (rule, written) in policy.rules.iter().zip(inbound.iter().chain(outbound)) {
        assert_eq!(rule.name.as_deref(), written["name"].as_str());
        assert_eq!(rule.comment.as_deref(), written["comment"].as_str());
        let services = &written["services"];
        let services: Vec<_> = services.as_array().map_or(vec![services], |list| list.iter().collect());
        assert_eq!(rule.services_text, services.iter().map(|s| s.as_str().unwrap()).collect::<Vec<_>>());
    }
}

/// Processor time, which a busy machine does not stretch.
fn processor_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

#[track_caller]
fn refused_quickly(text: &str) {
    let begun = processor_time();
    assert!(load_str("policy.yaml", text).is_err());
    let took = processor_time() - begun;
    assert!(took < Duration::from_secs(10), "took {took:?}");
}

#[test]
fn bombs_are_refused_quickly() {
    // A billion laughs.
    let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for n in 1..12 {
        let before = format!("*a{}", n - 1);
        laughs.push_str(&format!("a{n}: &a{n} [{}]\n", [before.as_str(); 10].join(",")));
    }
    refused_quickly(&laughs);
    refused_quickly(&"[".repeat(1_000_000));
    refused_quickly(&"- ".repeat(500_000));
    refused_quickly(&"a: {".repeat(500_000));
    refused_quickly(&format!("version: 1\n{}", "x: 1\n".repeat(200_000)));
    refused_quickly(&format!("version: 1\ninbound: []\noutbound: [{}]", "{},".repeat(100_000)));
    refused_quickly("a: &a [*a]");
    let many = (0..3000).map(|n| format!("  g{n}: [g{}, g{}]\n", n + 1, n + 2)).collect::<String>();
    refused_quickly(&format!("version: 1\ninbound: []\noutbound: []\ngroups:\n{many}"));
}
