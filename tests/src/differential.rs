//! Deciders against the referee, on generated policies and questions; and what was covered.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use guard::policy::{
    compile::{Clocks, Compiled, compile},
    model::{Mode, Policy, Rule},
};
use guard_common::{
    Direction, Reason, Verdict,
    abi::{self, SlotFlags},
    decide::{Decision, Descriptor, Header, Question, Subject, decide, local_class, root_node},
};

use crate::{
    generate::{self, Random, Times},
    referee::{self, Answer, Asked},
};

/// Something that decides by compiled tables: userspace, or the loaded programs.
pub trait Decider {
    fn name(&self) -> &'static str;

    /// Answers all questions, each with its moment (boot-time nanoseconds), by these tables.
    fn decide(&mut self, compiled: &Compiled, questions: &[(Question, u64)]) -> anyhow::Result<Vec<Decision>>;

    /// Now, on a clock of its own: it is then given policies whose rules expire hours from now only. `None`: it decides
    /// at the moments that it is told.
    fn own_clock(&self) -> Option<Clocks> {
        None
    }
}

/// The moment at which policies are compiled, for deciders without a clock.
pub const CLOCKS: Clocks = Clocks { unix_ns: 1_900_000_000_123_456_789, boot_ns: 1 << 52 };

/// [`decide`] over the nodes in memory.
#[derive(Clone, Copy)]
pub struct Userspace;

impl Decider for Userspace {
    fn name(&self) -> &'static str {
        "userspace"
    }

    fn decide(&mut self, compiled: &Compiled, questions: &[(Question, u64)]) -> anyhow::Result<Vec<Decision>> {
        Ok(questions.iter().map(|(question, now)| decide(compiled.nodes.as_slice(), question, || *now)).collect())
    }
}

/// How often each thing worth asking was asked.
#[derive(Debug, Default)]
pub struct Coverage(BTreeMap<String, usize>);

impl Coverage {
    pub fn count(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    pub fn add(&mut self, other: Self) {
        for (what, times) in other.0 {
            *self.0.entry(what).or_default() += times;
        }
    }

    /// What must be covered and was not, or hardly.
    #[must_use]
    pub fn missing(&self, expected: &[String], least: usize) -> Vec<String> {
        expected.iter().filter(|what| self.0.get(*what).is_none_or(|times| *times < least)).cloned().collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.iter().try_for_each(|(what, times)| writeln!(f, "{times:>9}  {what}"))
    }
}

/// Everything that [`check`] counts.
#[must_use]
pub fn expected_coverage() -> Vec<String> {
    let mut expected: Vec<String> = [
        "policy: compiled",
        "policy: has an index of IPv4 remotes",
        "policy: has an index of IPv6 remotes",
        "deny over a matching allow",
        "deny over an allow that stands before it",
        "several allows match: the first is named",
        "allowed by a rule for any, and named by another",
        "holds until a rule expires",
        "another answer than before a rule expired",
        "a nanosecond before an expiry",
        "at the moment of an expiry",
        "another answer on another interface",
        "another answer for another address of ours",
        "interface not known: not asked for",
        "interface not known: asked for",
        "own address not known: not asked for",
        "own address not known: asked for",
        "remote: the first address",
        "remote: the last address",
    ]
    .map(str::to_owned)
    .into();
    for direction in [Direction::Inbound, Direction::Outbound] {
        for family in ["IPv4", "IPv6"] {
            for reason in [Reason::NotListed, Reason::RuleAllow, Reason::RuleDeny] {
                expected.push(format!("{} {family} {}", direction.as_str(), reason.as_str()));
            }
        }
    }
    expected
}

/// Whether tables and referee agree on a range of seeds, which as many threads share as there are deciders; the first
/// seed where they do not is an error.
pub fn check_all<D: Decider + Send>(deciders: Vec<D>, seeds: Range<u64>, questions: usize) -> anyhow::Result<Coverage> {
    let next = AtomicU64::new(seeds.start);
    let run = |mut decider: D| {
        let mut coverage = Coverage::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return anyhow::Ok(coverage);
            }
            if let Err(error) = check(seed, questions, &mut decider, &mut coverage) {
                next.store(seeds.end, Ordering::Relaxed);
                return Err(error);
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = deciders.into_iter().map(|decider| scope.spawn(|| run(decider))).collect();
        let mut coverage = Coverage::default();
        for thread in threads {
            coverage.add(thread.join().map_err(|_| anyhow::anyhow!("a check panicked"))??);
        }
        Ok(coverage)
    })
}

/// Asks `count` questions of the policy of one seed. An error says what differs and how to see it again.
pub fn check(seed: u64, count: usize, decider: &mut dyn Decider, coverage: &mut Coverage) -> anyhow::Result<()> {
    let (clocks, times) = match decider.own_clock() {
        Some(clocks) => (clocks, Times::Coarse),
        None => (CLOCKS, Times::Exact),
    };
    let policy = generate::policy(seed, clocks, times);
    let compiled = compile(&policy, clocks, seed as u32)?;
    header(&policy, &compiled, seed, clocks)?;
    of_policy(&compiled, coverage);

    let mut random = Random(!seed);
    let asked: Vec<Asked> = (0..count).map(|_| generate::question(&mut random, &policy, clocks, times)).collect();
    let questions: Vec<(Question, u64)> = asked.iter().map(|asked| (question(&compiled, asked), asked.now)).collect();
    // The same without the interface, and without our own address: either not needed, or asked for.
    let blind = |subject: fn(Subject) -> Subject| {
        questions
            .iter()
            .map(move |(question, now)| (Question { subject: subject(question.subject), ..*question }, *now))
    };
    let no_interface = blind(|subject| Subject { interface: None, ..subject });
    let no_local = blind(|subject| Subject { local: None, ..subject });
    let all: Vec<_> = questions.iter().copied().chain(no_interface).chain(no_local).collect();
    let all = decider.decide(&compiled, &all)?;
    anyhow::ensure!(all.len() == 3 * count, "{} answers to {} questions", all.len(), 3 * count);
    let (decided, rest) = all.split_at(count);
    let (without_interface, without_local) = rest.split_at(count);

    for (i, asked) in asked.iter().enumerate() {
        let judged = referee::judge(&policy, asked, clocks);
        let differs = |what: &str, decision: &Decision| {
            anyhow::anyhow!(
                "{}, seed {seed}, question {i}, {what}:\n  {asked:?}\n  referee {judged:?}\n  {} {decision:?}",
                decider.name(),
                decider.name(),
            )
        };
        if answer(&decided[i]) != Some(judged) {
            return Err(differs("all known", &decided[i]));
        }
        for (what, decision) in [("interface", &without_interface[i]), ("own address", &without_local[i])] {
            let needs = decision.needs_context;
            if needs && decision.outcome.reason() != Reason::TableFault || !needs && answer(decision) != Some(judged) {
                return Err(differs(what, decision));
            }
            coverage.count(format!("{what} not known: {}asked for", if needs { "" } else { "not " }));
        }
        of_answer(&policy, asked, clocks, judged, &decided[i], coverage);
    }
    Ok(())
}

fn question(compiled: &Compiled, asked: &Asked) -> Question {
    let (ipv6, remote) = words(asked.remote);
    let (local_ipv6, local) = words(asked.local);
    Question {
        direction: asked.direction,
        ipv6,
        remote,
        service: asked.service,
        subject: Subject {
            interface: Some(compiled.interface_class(&asked.interface)),
            local: local_class(compiled.nodes.as_slice(), local_ipv6, local),
        },
    }
}

/// As on the wire: an IPv6 header with mapped addresses is IPv6.
fn words(address: IpAddr) -> (bool, [u32; 4]) {
    match address {
        IpAddr::V4(address) => (false, [u32::from(address), 0, 0, 0]),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            (true, [96, 64, 32, 0].map(|shift| (bits >> shift) as u32))
        }
    }
}

/// A decision in the referee's terms; `None`: not a policy's.
fn answer(decision: &Decision) -> Option<Answer> {
    match decision.outcome.reason() {
        Reason::RuleAllow | Reason::RuleDeny if decision.outcome.rule().is_none() => None,
        Reason::NotListed if decision.outcome.rule().is_some() => None,
        Reason::NotListed | Reason::RuleAllow | Reason::RuleDeny => Some(Answer {
            verdict: decision.outcome.verdict(),
            rule: decision.outcome.rule(),
            named: decision.named,
            until: decision.until,
        }),
        _ => None,
    }
}

/// What is said of the tables as a whole, in their first node and beside them.
fn header(policy: &Policy, compiled: &Compiled, seed: u64, clocks: Clocks) -> anyhow::Result<()> {
    let header = &compiled.nodes[Header::NODE as usize].0;
    let counts = [compiled.nodes.len() as u32, policy.rules.len() as u32, seed as u32, compiled.flags.0];
    anyhow::ensure!(header[..2] == [Header::MAGIC, abi::VERSION], "seed {seed}: magic and version {header:?}");
    anyhow::ensure!(header[2..6] == counts, "seed {seed}: {header:?} does not say {counts:?}");
    anyhow::ensure!(
        header[8..].iter().all(|word| word.to_le_bytes() == [seed as u8; 4]),
        "seed {seed}: hash {header:?}"
    );
    let flags = compiled.flags;
    let asks = |what: fn(&Rule) -> bool| {
        policy.rules.iter().any(|rule| what(rule) && rule.expires.is_none_or(|expires| expires > clocks.unix_ns))
    };
    let said = [
        (flags.enforces(Direction::Inbound), policy.inbound == Mode::Enforce),
        (flags.enforces(Direction::Outbound), policy.outbound == Mode::Enforce),
        (flags.has(SlotFlags::BY_INTERFACE), asks(|rule| rule.interface.is_some())),
        (flags.has(SlotFlags::BY_LOCAL), asks(|rule| rule.local.is_some())),
        (flags.has(SlotFlags::ARP), policy.essentials.arp),
        (flags.has(SlotFlags::DHCPV4), policy.essentials.dhcp),
        (flags.has(SlotFlags::DHCPV6), policy.essentials.dhcpv6),
        (flags.has(SlotFlags::LLDP), policy.essentials.lldp),
    ];
    anyhow::ensure!(said.iter().all(|(flag, policy)| flag == policy), "seed {seed}: flags {said:?}");
    Ok(())
}

fn of_policy(compiled: &Compiled, coverage: &mut Coverage) {
    coverage.count("policy: compiled");
    for (ipv6, family) in [(false, "IPv4"), (true, "IPv6")] {
        for direction in [Direction::Inbound, Direction::Outbound] {
            let descriptor = &compiled.nodes[root_node(direction, ipv6) as usize].0;
            if descriptor[Descriptor::FIRST] <= descriptor[Descriptor::LAST] {
                coverage.count(format!("policy: has an index of {family} remotes"));
            }
        }
    }
}

fn of_answer(
    policy: &Policy,
    asked: &Asked,
    clocks: Clocks,
    judged: Answer,
    decision: &Decision,
    coverage: &mut Coverage,
) {
    let reason = decision.outcome.reason();
    let family = if asked.remote.is_ipv4() { "IPv4" } else { "IPv6" };
    coverage.count(format!("{} {family} {}", asked.direction.as_str(), reason.as_str()));

    let matching = referee::matching(policy, asked, clocks);
    let allows: Vec<u32> =
        matching.iter().filter(|rule| policy.rules[**rule as usize].action == Verdict::Allow).copied().collect();
    if reason == Reason::RuleDeny && !allows.is_empty() {
        coverage.count("deny over a matching allow");
        if judged.rule > Some(allows[0]) {
            coverage.count("deny over an allow that stands before it");
        }
    }
    if reason == Reason::RuleAllow && allows.len() > 1 {
        coverage.count("several allows match: the first is named");
    }
    if judged.named && judged.rule.is_some_and(|rule| !policy.rules[rule as usize].remote.named) {
        coverage.count("allowed by a rule for any, and named by another");
    }
    if judged.until != u64::MAX {
        coverage.count("holds until a rule expires");
    }
    let ends = |at: u64| policy.rules.iter().filter_map(|rule| rule.expires).any(|end| clocks.boot_time(end) == at);
    if ends(asked.now + 1) {
        coverage.count("a nanosecond before an expiry");
    }
    if ends(asked.now) {
        coverage.count("at the moment of an expiry");
    }
    let same = |other: Answer| (other.verdict, other.rule) == (judged.verdict, judged.rule);
    if !same(referee::judge(policy, &Asked { now: clocks.boot_ns.saturating_sub(1 << 50), ..asked.clone() }, clocks)) {
        coverage.count("another answer than before a rule expired");
    }
    if !same(referee::judge(policy, &Asked { interface: "none".to_owned(), ..asked.clone() }, clocks)) {
        coverage.count("another answer on another interface");
    }
    if !same(referee::judge(
        policy,
        &Asked { local: "192.0.2.77".parse().unwrap_or(asked.local), ..asked.clone() },
        clocks,
    )) {
        coverage.count("another answer for another address of ours");
    }
    let (_, words) = words(asked.remote);
    let all = if asked.remote.is_ipv4() { &words[..1] } else { &words[..] };
    if all.iter().all(|word| *word == 0) {
        coverage.count("remote: the first address");
    }
    if all.iter().all(|word| *word == u32::MAX) {
        coverage.count("remote: the last address");
    }
}
