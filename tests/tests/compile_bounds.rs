//! What the compiler must hold, and where it refuses.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use guard::policy::{
    compile::{Limit, MAX_TIME_STEPS, compile},
    model::{AddressSet, Policy, Rule, ServiceRange},
};
use guard_common::{
    Direction, Reason,
    decide::{Decision, Descriptor, Entry, NODE_WORDS, Node, Question, Subject, decide, root_node},
};
use guard_tests::{
    differential::CLOCKS,
    random::{Random, address_set, policy, rule},
    sizes::Shape,
};

const HTTPS: u32 = 6 << 16 | 443;

fn https(set: AddressSet) -> Rule {
    rule(Direction::Outbound, Arc::new(set), vec![ServiceRange { first: HTTPS, last: HTTPS }])
}

fn ask(nodes: &[Node], remote: u32, service: u32, subject: Subject) -> Decision {
    let remote = [remote, 0, 0, 0];
    decide(nodes, &Question { direction: Direction::Outbound, ipv6: false, remote, service, subject }, || {
        CLOCKS.boot_ns
    })
}

/// Every question at the borders of a policy's first lists, by the tables and by its ranges.
fn borders(policy: &Policy, nodes: &[Node]) -> Result<()> {
    let random = &mut Random(1);
    for _ in 0..20_000 {
        let number = random.below(policy.rules.len() as u64) as usize;
        let of = &policy.rules[number];
        let (first, last) = of.remote.set.v4[random.below(of.remote.set.v4.len() as u64) as usize];
        let at = [first, last, first.wrapping_sub(1), last.wrapping_add(1)][random.below(4) as usize];
        let holds = |rule: &Rule| {
            let ranges = &rule.remote.set.v4;
            ranges[..ranges.partition_point(|range| range.0 <= at)].last().is_some_and(|range| at <= range.1)
        };
        let decision = ask(nodes, at, of.services[0].first, Subject::default());
        // The first rule that holds it is named; with many rules, only whether this one holds it is looked at.
        let named = decision.outcome.rule().map(|rule| rule as usize);
        if policy.rules.len() <= 10 {
            ensure!(named == policy.rules.iter().position(holds), "{at:#x}: {decision:?}");
        } else if holds(of) {
            ensure!(named.is_some_and(|named| named <= number && holds(&policy.rules[named])), "{at:#x}: {decision:?}");
        }
    }
    Ok(())
}

#[test]
fn a_million_cidrs_compile() -> Result<()> {
    for shape in [Shape::List, Shape::TenLists, Shape::Dense] {
        let policy = shape.policy(1_000_000);
        let compiled = compile(&policy, CLOCKS, 1)?;
        ensure!(compiled.size_report().bytes < 40_000_000, "{}: {:?}", shape.as_str(), compiled.size_report());
        borders(&policy, &compiled.nodes).context(shape.as_str())?;
    }
    Ok(())
}

#[test]
fn a_hundred_thousand_host_and_port_rules_compile_and_share_rows() -> Result<()> {
    let mut policy = Shape::HostAndPort.policy(100_000);
    let compiled = compile(&policy, CLOCKS, 1)?;
    borders(&policy, &compiled.nodes)?;
    ensure!(compiled.size_report().rows <= 110_000, "{:?}", compiled.size_report());

    // The same rules inbound too, for the same remotes, change nothing but the roots; two rules never share a row, since
    // a row names its rule.
    let both: Vec<Rule> =
        policy.rules.iter().map(|rule| Rule { direction: Direction::Inbound, ..rule.clone() }).collect();
    policy.rules.extend(both);
    let doubled = compile(&policy, CLOCKS, 1)?;
    ensure!(doubled.size_report().bytes < 2 * compiled.size_report().bytes + 1000);
    Ok(())
}

/// The worst that a bucket can hold: every value starts an interval, with others so far away that there are 2^20 buckets.
#[test]
fn a_bucket_of_4096_starts_is_found() -> Result<()> {
    let cluster = 0x8000_0000_u32 - 3;
    let even: Vec<_> = (0..8192).map(|i| cluster + 2 * i).chain([0]).map(|at| (at, at)).collect();
    let odd: Vec<_> = (0..8192).map(|i| cluster + 2 * i + 1).chain([u32::MAX]).map(|at| (at, at)).collect();
    let policy = policy(vec![https(address_set(even, vec![])), https(address_set(odd, vec![]))]);
    let compiled = compile(&policy, CLOCKS, 1)?;

    let root = compiled.nodes[root_node(Direction::Outbound, false) as usize].0;
    let buckets = ((root[Descriptor::LAST] - root[Descriptor::FIRST]) >> root[Descriptor::SHIFT]) + 1;
    ensure!(buckets <= Descriptor::MAX_BUCKETS, "{buckets}");
    let index = root[Descriptor::INDEX] as usize;
    let lines = compiled.nodes[index..index + (buckets as usize).div_ceil(NODE_WORDS)].iter().flat_map(|node| node.0);
    let most = lines.take(buckets as usize).map(|entry| Entry(entry).lines()).max();
    ensure!(most == Some(Entry::MAX_LINES), "{most:?}");

    for at in cluster - 2..cluster + 16_384 + 2 {
        let expected = match at.checked_sub(cluster) {
            Some(at) if at < 16_384 => Some(at % 2),
            _ => None,
        };
        ensure!(ask(&compiled.nodes, at, HTTPS, Subject::default()).outcome.rule() == expected, "{at:#x}");
    }
    Ok(())
}

#[test]
fn an_interface_class_of_another_generation_denies() -> Result<()> {
    let everywhere = AddressSet { v4: vec![(0, u32::MAX)], v6: vec![] };
    let mut rule = https(everywhere);
    rule.interface = Some("eth*".to_owned());
    let compiled = compile(&policy(vec![rule]), CLOCKS, 1)?;
    let on = |interface| ask(&compiled.nodes, 1, HTTPS, Subject { interface: Some(interface), local: Some(0) });
    ensure!(on(compiled.interface_class("eth0")).outcome.reason() == Reason::RuleAllow);
    for unknown in [0, 2, 1000, u32::MAX] {
        ensure!(on(unknown).outcome.reason() == Reason::NotListed, "{unknown}");
    }
    Ok(())
}

#[test]
fn the_rule_that_passes_a_bound_is_named() -> Result<()> {
    // Rules that expire one after the other, each for the same flows: one more step than a chain has.
    let everywhere = Arc::new(AddressSet { v4: vec![(0, u32::MAX)], v6: vec![] });
    let rules = (0..40).map(|number| {
        let mut rule = https((*everywhere).clone());
        rule.place.line = 100 + number;
        rule.expires = Some(CLOCKS.unix_ns + 1 + i128::from(number));
        rule
    });
    let error = compile(&policy(rules.collect()), CLOCKS, 1).err().context("too many steps")?;
    // The last step is what holds after all of them.
    ensure!((error.limit, error.rule) == (Limit::TimeSteps, MAX_TIME_STEPS - 1), "{error}");
    ensure!(error.to_string().contains(":115:1: with rule \"outbound[0]\""), "{error}");

    let patterns =
        ('a'..='z').map(|letter| Rule { interface: Some(format!("*{letter}*")), ..https((*everywhere).clone()) });
    let error = compile(&policy(patterns.collect()), CLOCKS, 1).err().context("too many patterns")?;
    ensure!(error.limit == Limit::Interfaces && (10..14).contains(&error.rule), "{error}");
    Ok(())
}

#[test]
fn tables_that_were_tampered_with_never_panic() -> Result<()> {
    let random = &mut Random(7);
    for seed in 0..40 {
        let policy = guard_tests::generate::policy(seed, CLOCKS, guard_tests::generate::Times::Exact);
        let mut nodes = compile(&policy, CLOCKS, 1)?.nodes;
        for _ in 0..200 {
            let node = random.below(nodes.len().min(64) as u64) as usize;
            nodes[node].0[random.below(16) as usize] = random.next() as u32;
            for _ in 0..20 {
                let remote = [random.next() as u32, random.next() as u32, random.next() as u32, random.next() as u32];
                let direction = Direction::from_u8(random.below(2) as u8);
                let subject = Subject { interface: Some(random.below(3) as u32), local: Some(random.below(3) as u32) };
                let question =
                    Question { direction, ipv6: random.one_in(2), remote, service: random.next() as u32, subject };
                let decision = decide(nodes.as_slice(), &question, || random_time(remote[0]));
                ensure!(!decision.needs_context || decision.outcome.reason() == Reason::TableFault);
            }
        }
    }
    Ok(())
}

const fn random_time(bits: u32) -> u64 {
    (bits as u64) << 21
}
