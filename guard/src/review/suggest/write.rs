//! Proposed rules as YAML that `guard check` takes, each with its evidence.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use guard_common::Direction;
use ipnet::IpNet;

use super::{
    Evidence, Learner, Why,
    rules::{self, LeftOut, Rule, Widest, service_text, services_text},
    timers::NotFired,
};
use crate::{
    policy::{self, effective::quoted, services},
    record::{clock::for_people, flow::has_ports},
    text::escape_line,
};

/// Addresses that one rule lists; more go into a list file.
pub const MOST_IN_A_RULE: usize = 64;
const ON_ONE_LINE: usize = 4;
/// Lines of what was left out, for each reason.
const MOST_LEFT_OUT: usize = 12;

#[derive(Debug, thiserror::Error)]
pub enum SuggestError {
    #[error("the policy that was made of it does not pass guard check; this is a fault of guard's:\n{0}")]
    Invalid(String),
}

/// A policy, or rules for one, with all that must be said of it.
#[derive(Debug)]
pub struct Suggestion {
    pub rules: Vec<Rule>,
    /// In the order of `rules`; unique.
    pub names: Vec<String>,
    /// Group's name, file's name, addresses: for rules with too many.
    pub lists: BTreeMap<String, (String, Vec<IpNet>)>,
    pub left_out: LeftOut,
    pub flows: u64,
    /// Allowed already by the policy that is added to.
    pub allowed: u64,
    /// Unix time in microseconds.
    pub first: i64,
    pub last: i64,
    pub hosts: BTreeSet<Arc<str>>,
    pub not_fired: NotFired,
}

/// `stem`: what list files' names begin with. `taken`: names of rules and groups that are in use.
#[must_use]
pub fn suggest(
    learner: Learner<'_>,
    most: usize,
    widest: Widest,
    stem: &str,
    taken: &BTreeSet<String>,
    not_fired: NotFired,
) -> Suggestion {
    let (flows, allowed, first, last) = (learner.flows, learner.allowed, learner.first, learner.last);
    let hosts = learner.hosts.clone();
    let (rules, left_out) = rules::rules(learner, most, widest);
    let mut used = taken.clone();
    let mut unique = |wanted: String, join: &str| {
        let mut name = wanted.clone();
        let mut number = 2;
        while !used.insert(name.clone()) {
            name = format!("{wanted}{join}{number}");
            number += 1;
        }
        name
    };
    let names: Vec<String> = rules.iter().map(|rule| unique(name(rule), " ")).collect();
    let mut lists: BTreeMap<String, (String, Vec<IpNet>)> = BTreeMap::new();
    for (rule, name) in rules.iter().zip(&names) {
        // Rules of the same addresses have one list.
        let listed = lists.values().any(|(_, nets)| *nets == rule.remotes);
        if rule.remotes.len() > MOST_IN_A_RULE && !listed {
            let group = unique(slug(name), "-");
            let file = format!("{stem}-{group}.txt");
            lists.insert(group, (file, rule.remotes.clone()));
        }
    }
    Suggestion { rules, names, lists, left_out, flows, allowed, first, last, hosts, not_fired }
}

impl Suggestion {
    /// The whole policy. An error is a fault of this program's.
    pub fn policy(&self, name: &str) -> String {
        let mut text = String::new();
        for line in self.said() {
            let _ = writeln!(text, "# {line}");
        }
        let _ = writeln!(
            text,
            "version: 1\nname: {}\nmode: audit   # records what it would deny, and drops nothing",
            quoted(name)
        );
        if !self.lists.is_empty() {
            text.push_str("\ngroups:\n");
            text.push_str(&self.groups("  "));
        }
        for direction in [Direction::Inbound, Direction::Outbound] {
            let rules = self.rules_text(direction, "  ");
            if rules.is_empty() {
                let _ = writeln!(text, "\n{}: []", direction.as_str());
            } else {
                let _ = write!(text, "\n{}:\n{rules}", direction.as_str());
            }
        }
        let tests = self.tests("  ");
        if !tests.is_empty() {
            let _ = write!(text, "\ntests:\n{tests}");
        }
        let left_out = self.left_out_lines();
        if !left_out.is_empty() {
            text.push_str("\n# Left out:\n");
            for line in left_out {
                let _ = writeln!(text, "#   {line}");
            }
        }
        text
    }

    /// Reads it back as `guard check` does; lists are read from memory, as if they were there.
    pub fn check(&self, text: &str) -> Result<(), SuggestError> {
        let dir = tempfile_dir().map_err(|error| SuggestError::Invalid(error.to_string()))?;
        let result = self.check_in(dir.path(), text);
        drop(dir);
        result
    }

    /// The same of a policy that rules were added to, beside which the files that it includes are.
    pub fn check_beside(&self, path: &Path, text: &str) -> Result<(), SuggestError> {
        let invalid = |error: std::io::Error| SuggestError::Invalid(error.to_string());
        let dir = tempfile_dir().map_err(invalid)?;
        let mut text = text.to_owned();
        for (file, nets) in self.lists.values() {
            let there = dir.path().join(file);
            std::fs::write(&there, list_text(nets)).map_err(invalid)?;
            let named = |file: &str| format!("{{ file: {} }}", quoted(file));
            text = text.replace(&named(file), &named(&there.display().to_string()));
        }
        policy::load_str(&path.display().to_string(), &text)
            .map(drop)
            .map_err(|found| SuggestError::Invalid(found.render(false)))
    }

    fn check_in(&self, dir: &Path, text: &str) -> Result<(), SuggestError> {
        for (file, nets) in self.lists.values() {
            std::fs::write(dir.join(file), list_text(nets))
                .map_err(|error| SuggestError::Invalid(error.to_string()))?;
        }
        let path = dir.join("suggested.yaml");
        match policy::load_str(&path.display().to_string(), text) {
            Ok(_) => Ok(()),
            Err(found) => Err(SuggestError::Invalid(found.render(false))),
        }
    }

    /// What a reader must know first. Harmless, one line each.
    pub fn said(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let hosts: Vec<String> = self.hosts.iter().take(4).map(|host| escape_line(host)).collect();
        let on = if hosts.is_empty() { String::new() } else { format!(" on {}", hosts.join(", ")) };
        lines.push(format!(
            "Suggested by guard from {} flows seen {} to {}{on}.",
            self.flows,
            time(self.first),
            time(self.last)
        ));
        if self.allowed > 0 {
            lines.push(format!("{} of them are allowed by the policy already.", self.allowed));
        }
        lines.push(
            "Learned, never reviewed: whoever was here already is in it. Read every rule before you enforce it."
                .to_owned(),
        );
        lines.extend(self.not_fired.lines());
        lines
    }

    pub fn groups(&self, indent: &str) -> String {
        self.lists.iter().fold(String::new(), |mut text, (group, (file, nets))| {
            let _ = writeln!(text, "{indent}{group}: {{ file: {} }}   # {} networks", quoted(file), nets.len());
            text
        })
    }

    /// The rules of one direction, their dashes at `indent`.
    pub fn rules_text(&self, direction: Direction, indent: &str) -> String {
        let mut text = String::new();
        for (rule, name) in self.rules.iter().zip(&self.names).filter(|(rule, _)| rule.direction == direction) {
            self.write_rule(&mut text, rule, name, indent);
        }
        text
    }

    fn write_rule(&self, text: &mut String, rule: &Rule, name: &str, indent: &str) {
        for line in evidence_lines(rule) {
            let _ = writeln!(text, "{indent}# {line}");
        }
        let _ = writeln!(text, "{indent}- name: {}", quoted(name));
        let key = if rule.direction == Direction::Inbound { "from" } else { "to" };
        let list =
            self.lists.iter().find(|(_, (_, nets))| rule.remotes.len() > MOST_IN_A_RULE && *nets == rule.remotes);
        match (list, rule.remotes.as_slice()) {
            (Some((group, _)), _) => {
                let _ = writeln!(text, "{indent}  {key}: {group}");
            }
            (None, []) => {
                let _ = writeln!(text, "{indent}  {key}: any   # public: decide");
            }
            (None, nets) if nets.len() <= ON_ONE_LINE => {
                let nets: Vec<String> = nets.iter().map(net_text).collect();
                let _ = writeln!(text, "{indent}  {key}: [{}]", nets.join(", "));
            }
            (None, nets) => {
                let _ = writeln!(text, "{indent}  {key}:");
                for net in nets {
                    let _ = writeln!(text, "{indent}    - {}", net_text(net));
                }
            }
        }
        let services = services_text(&rule.services);
        match services.as_slice() {
            [one] => {
                let _ = writeln!(text, "{indent}  services: {one}");
            }
            many => {
                let _ = writeln!(text, "{indent}  services: [{}]", many.join(", "));
            }
        }
    }

    /// One flow of each rule, so that a later edit that loses it is noticed.
    pub fn tests(&self, indent: &str) -> String {
        let mut text = String::new();
        for rule in &self.rules {
            let flow = flow_text(rule.direction, rule.sample.0, rule.sample.1);
            let _ = writeln!(text, "{indent}- {{ flow: {}, expect: allow }}", quoted(&flow));
        }
        text
    }

    /// Harmless, one line each.
    pub fn left_out_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for why in Why::ALL {
            let mut of_why: Vec<_> = self.left_out.iter().filter(|line| line.0 == why).collect();
            if of_why.is_empty() {
                continue;
            }
            let flows: u64 = of_why.iter().map(|line| line.4.flows).sum();
            lines.push(format!("{}: {}", counted(flows), why.sentence()));
            // Knocking on closed doors is one line a protocol.
            let knocks = |line: &&&(Why, Direction, u32, IpAddr, Evidence)| {
                line.1 == Direction::Inbound && matches!(why, Why::Unanswered | Why::Refused | Why::Denied)
            };
            let mut doors: BTreeMap<u8, (u64, BTreeSet<u32>)> = BTreeMap::new();
            for line in of_why.iter().filter(knocks) {
                let of_protocol = doors.entry((line.2 >> 16) as u8).or_default();
                of_protocol.0 += line.4.flows;
                of_protocol.1.insert(line.2);
            }
            of_why.retain(|line| !knocks(&line));
            of_why.sort_by_key(|line| std::cmp::Reverse(line.4.flows));
            for (_, direction, service, remote, evidence) in of_why.iter().take(MOST_LEFT_OUT) {
                let many = remote.is_unspecified();
                let way = if *direction == Direction::Inbound { "in" } else { "out" };
                let remote = if many { String::new() } else { format!(" {remote}") };
                lines.push(format!("  {way} {}{remote}: {}", service_text(*service), seen(evidence)));
            }
            for (protocol, (flows, services)) in doors {
                let name = crate::record::flow::protocol_name(protocol);
                lines.push(match services.first() {
                    Some(one) if services.len() == 1 => format!("  in {}: {}", service_text(*one), counted(flows)),
                    _ => format!("  in {name}, {} services: {}", services.len(), counted(flows)),
                });
            }
            if of_why.len() > MOST_LEFT_OUT {
                lines.push(format!("  and {} more", of_why.len() - MOST_LEFT_OUT));
            }
        }
        lines
    }
}

fn tempfile_dir() -> std::io::Result<TempDir> {
    TempDir::new()
}

/// A directory of our own, gone when dropped.
struct TempDir(std::path::PathBuf);

impl TempDir {
    fn new() -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let base = std::env::temp_dir();
        for attempt in 0..64u32 {
            let path = base.join(format!("guard-suggest-{}-{attempt}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(std::io::Error::from(std::io::ErrorKind::AlreadyExists))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn evidence_lines(rule: &Rule) -> Vec<String> {
    let mut lines = vec![seen(&rule.evidence)];
    if rule.is_public() || rule.remotes.len() < rule.addresses.len() {
        lines.push(format!("{} addresses were seen", rule.addresses.len()));
    }
    if !rule.names.is_empty() {
        let names: Vec<String> = rule.names.keys().take(6).map(|name| escape_line(name)).collect();
        let more = rule.names.len().saturating_sub(6);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        lines.push(format!("asked as {}{more}", names.join(", ")));
    }
    let rotting = rule.rotting();
    if !rotting.is_empty() {
        let names: Vec<String> = rotting.iter().take(4).map(|name| escape_line(name)).collect();
        lines.push(format!("will rot: {} had more than one address", names.join(", ")));
    }
    lines
}

/// `120 flows, 1.2 MB, 2026-01-02 03:04:05Z to …, by /usr/bin/curl`.
fn seen(evidence: &Evidence) -> String {
    let programs: Vec<String> = evidence.programs.iter().take(3).map(|program| escape_line(program)).collect();
    let more = evidence.programs.len().saturating_sub(3);
    let by = match programs.as_slice() {
        [] => "program unknown".to_owned(),
        programs if more > 0 => format!("by {} and {more} more", programs.join(", ")),
        programs => format!("by {}", programs.join(", ")),
    };
    format!(
        "{}, {}, {} to {}, {by}",
        counted(evidence.flows),
        bytes(evidence.bytes),
        time(evidence.first),
        time(evidence.last)
    )
}

fn time(unix_us: i64) -> String {
    for_people(i128::from(unix_us) * 1000)
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// As `explain` and `tests` take it.
pub fn flow_text(direction: Direction, remote: IpAddr, service: u32) -> String {
    let protocol = (service >> 16) as u8;
    let port = service & 0xffff;
    let bracketed = match remote {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let text = services::describe(service);
    let (name, kind) = text.split_once('/').unwrap_or((&text, ""));
    let way = if direction == Direction::Inbound { "in" } else { "out" };
    match protocol {
        services::ICMP | services::ICMPV6 => format!("{way} {name} {remote} {kind}"),
        _ if !has_ports(protocol) => format!("{way} proto/{protocol} {remote}"),
        _ if direction == Direction::Inbound => format!("{way} {name} {bracketed} -> {port}"),
        _ => format!("{way} {name} {bracketed}:{port}"),
    }
}

/// IPv6 in quotation marks: YAML reads some of it as a mapping.
fn net_text(net: &IpNet) -> String {
    match net {
        IpNet::V4(net) if net.prefix_len() == 32 => net.addr().to_string(),
        IpNet::V4(net) => net.to_string(),
        IpNet::V6(net) if net.prefix_len() == 128 => format!("\"{}\"", net.addr()),
        IpNet::V6(net) => format!("\"{net}\""),
    }
}

/// A list file's text.
pub fn list_text(nets: &[IpNet]) -> String {
    nets.iter().fold(String::new(), |mut text, net| {
        let _ = writeln!(text, "{}", net_text(net).trim_matches('"'));
        text
    })
}

/// `https by curl`.
fn name(rule: &Rule) -> String {
    let services = services_text(&rule.services);
    let first = services.first().cloned().unwrap_or_default();
    let services = if services.len() > 2 { format!("{first} and others") } else { services.join(" and ") };
    let way = if rule.direction == Direction::Inbound { "to" } else { "by" };
    match rule.evidence.programs.first() {
        Some(program) => {
            let file = program.rsplit('/').next().unwrap_or(program);
            let file: String =
                file.chars().filter(|c| c.is_ascii_alphanumeric() || "._+-".contains(*c)).take(40).collect();
            format!("{services} {way} {}", if file.is_empty() { "an unprintable name" } else { &file })
        }
        None => format!("{services} {}", if rule.direction == Direction::Inbound { "in" } else { "out" }),
    }
}

/// A group's name of a rule's.
fn slug(name: &str) -> String {
    let mut slug: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect::<String>()
        .split('-')
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("-");
    if !slug.starts_with(|c: char| c.is_ascii_lowercase()) {
        slug.insert_str(0, "seen-");
    }
    slug
}

fn counted(flows: u64) -> String {
    if flows == 1 { "1 flow".to_owned() } else { format!("{flows} flows") }
}
