//! A shipped policy, filled in: its groups and services get what was found, each with its source; what has nobody is left
//! standing as a comment, to be switched on by hand. Comments and layout of the shipped file stay.
//!
//! It relies on how the shipped files are written, which the tests hold them to: groups and services one a line, rules
//! that name one group and their services by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use guard_common::{Direction, Verdict};

use super::{Listening, Profile, facts::Found, write_closed};
use crate::{
    policy::{self, answer::answer, compile::compile, effective::quoted, model::Rule},
    review::suggest::flow_text,
    text::escape_line,
};

/// What a group or a service of the shipped policy gets.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Filled {
    Addresses(Vec<Found>),
    /// Everyone, and why.
    Everyone(String),
    /// Services as policies write them, and where they are from.
    Services(Vec<String>, String),
    /// Nobody; why.
    Nothing(String),
}

impl Profile {
    /// File name and text of the policy that it begins with.
    #[must_use]
    pub const fn shipped(self) -> (&'static str, &'static str) {
        macro_rules! policy {
            ($name:literal) => {
                ($name, include_str!(concat!("../../../../policies/", $name)))
            };
        }
        match self {
            Self::Gitlab => policy!("gitlab-self-managed.yaml"),
            Self::Web => policy!("web-server.yaml"),
            Self::Ci => policy!("ci-runner.yaml"),
            Self::Workstation => policy!("workstation.yaml"),
        }
    }
}

/// One group, service or rule with the comments before it.
#[derive(Debug, Default)]
struct Item<'a> {
    comments: Vec<&'a str>,
    lines: Vec<&'a str>,
}

/// Lists and mappings of the top level: key, and what is below it. Comments after the last item are an item without lines.
fn section<'a>(text: &'a str, key: &str) -> Vec<Item<'a>> {
    let head = format!("{key}:");
    let mut items = Vec::new();
    let mut item = Item::default();
    let below = text.lines().skip_while(|line| *line != head).skip(1);
    for line in below.take_while(|line| line.is_empty() || line.starts_with(' ')) {
        let begins = line.starts_with("  ") && !line.starts_with("   ");
        if line.starts_with("  #") || line.is_empty() {
            if !item.lines.is_empty() {
                items.push(std::mem::take(&mut item));
            }
            item.comments.extend((!line.is_empty()).then_some(line));
        } else {
            if begins && !item.lines.is_empty() {
                items.push(std::mem::take(&mut item));
            }
            item.lines.push(line);
        }
    }
    if !item.lines.is_empty() || !item.comments.is_empty() {
        items.push(item);
    }
    items
}

impl<'a> Item<'a> {
    /// `admins` of `  admins: [198.51.100.7]   # who may log in`, and its comment.
    fn entry(&self) -> Option<(&'a str, &'a str)> {
        let (name, value) = self.lines.first()?.trim().split_once(':')?;
        Some((name, value.split_once(" # ").map_or("", |(_, comment)| comment.trim())))
    }

    /// What stands after a key of a rule, without brackets.
    fn words(&self, key: &str) -> Vec<&'a str> {
        let line = self.lines.iter().find_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
        let value = line.map_or("", |value| value.split(" # ").next().unwrap_or_default());
        value.trim_start_matches(':').split(['[', ']', ',', ' ']).filter(|word| !word.is_empty()).collect()
    }
}

/// Groups that a shipped policy names, with what it says of them, in its order.
#[must_use]
pub fn groups(shipped: &str) -> Vec<(String, String)> {
    section(shipped, "groups").iter().filter_map(Item::entry).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

/// Whether a rule of the filled policy lets anybody in to a service.
pub fn opened(profile: Profile, filled: &BTreeMap<String, Filled>) -> impl Fn(u32) -> bool {
    let loaded = policy::load_str("policy.yaml", &body(profile.shipped().1, "policy", filled, &[])).ok();
    move |word| {
        let rules = loaded.iter().flat_map(|loaded| &loaded.policy.rules);
        rules
            .filter(|rule| rule.direction == Direction::Inbound && rule.action == Verdict::Allow)
            .any(|rule| rule.services.iter().any(|range| (range.first..=range.last).contains(&word)))
    }
}

/// The filled policy. `not_found`: for its head.
#[must_use]
pub fn fill(
    profile: Profile,
    name: &str,
    filled: &BTreeMap<String, Filled>,
    closed: &[Listening],
    not_found: &[String],
) -> String {
    let (file, shipped) = profile.shipped();
    let text = body(shipped, name, filled, closed);
    let mut whole = format!(
        "# A first policy: guard's own {file}, filled in by guard init from what this host says.\n# It only records. Watch \
         (guard run policy.yaml), correct it, and then set mode to enforce.\n"
    );
    if !not_found.is_empty() {
        whole.push_str("#\n# Not found, so that what needs it stands below as a comment; a person has to know:\n");
        for line in not_found {
            let _ = writeln!(whole, "#   {}", escape_line(line));
        }
    }
    whole.push_str(&text);
    let _ = write!(whole, "\ntests:\n{}", tests(shipped, &text));
    whole
}

fn body(shipped: &str, name: &str, filled: &BTreeMap<String, Filled>, closed: &[Listening]) -> String {
    let missing: BTreeSet<&str> = filled
        .iter()
        .filter(|(_, filled)| matches!(filled, Filled::Nothing(_)))
        .map(|(name, _)| name.as_str())
        .collect();
    let is_live = |rule: &Item<'_>| {
        let remote = rule.words("from").into_iter().chain(rule.words("to")).any(|word| missing.contains(word));
        !remote && !rule.words("services").into_iter().any(|word| missing.contains(word))
    };
    let rules: Vec<Item<'_>> = section(shipped, "inbound").into_iter().chain(section(shipped, "outbound")).collect();
    let used: BTreeSet<&str> = rules
        .iter()
        .filter(|rule| is_live(rule))
        .flat_map(|rule| ["from", "to", "services"].map(|key| rule.words(key)))
        .flatten()
        .collect();
    let mut text = format!("version: 1\nname: {}\nmode: audit\n", quoted(name));
    for key in ["groups", "services"] {
        let items = section(shipped, key);
        let live = items.iter().filter_map(Item::entry).any(|(name, _)| used.contains(name));
        let _ = write!(text, "\n{key}:{}\n", if live { "" } else { " {}" });
        for item in &items {
            lines(&mut text, &item.comments, "");
            let Some((name, comment)) = item.entry() else { continue };
            let comment = if comment.is_empty() { String::new() } else { format!("   # {comment}") };
            match filled.get(name).filter(|filled| matches!(filled, Filled::Services(..)) == (key == "services")) {
                Some(Filled::Addresses(found)) if used.contains(name) => {
                    if found.iter().any(|found| found.will_rot) {
                        text.push_str(
                            "  # will rot: a name's addresses change; a list file that you keep up to date does not\n",
                        );
                    }
                    let _ = writeln!(text, "  {name}:{comment}");
                    for found in found {
                        let _ = writeln!(text, "    - {}   # {}", address(found.address), escape_line(&found.source));
                    }
                }
                Some(Filled::Everyone(why)) if used.contains(name) => {
                    let _ = writeln!(text, "  {name}: [0.0.0.0/0, \"::/0\"]   # {}", escape_line(why));
                }
                Some(Filled::Services(services, source)) if used.contains(name) => {
                    let _ = writeln!(text, "  {name}: [{}]   # {}", services.join(", "), escape_line(source));
                }
                _ if key == "groups" || filled.get(name).is_some() && !used.contains(name) => {
                    let _ = writeln!(text, "  # {name}: [WHO]{comment}");
                }
                _ if used.contains(name) => lines(&mut text, &item.lines, ""),
                _ => lines(&mut text, &item.lines, "# "),
            }
        }
    }
    for key in ["inbound", "outbound"] {
        let items = section(shipped, key);
        let live = items.iter().any(|item| !item.lines.is_empty() && is_live(item));
        let _ = write!(text, "\n{key}:{}\n", if live { "" } else { " []" });
        for item in &items {
            lines(&mut text, &item.comments, "");
            lines(&mut text, &item.lines, if is_live(item) { "" } else { "# " });
        }
        if key == "inbound" {
            write_closed(closed, &mut text);
        }
    }
    text
}

/// `mark`: makes comments of them, below their indentation.
fn lines(text: &mut String, lines: &[&str], mark: &str) {
    for line in lines {
        let _ = writeln!(text, "  {mark}{}", line.strip_prefix("  ").unwrap_or(line));
    }
}

fn address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"{address}\""),
    }
}

/// One flow of each rule, and those of the shipped tests that hold here too: what an intruder tries first is denied.
fn tests(shipped: &str, text: &str) -> String {
    let mut tests = String::new();
    let now = policy::ready::now();
    let Ok(loaded) = policy::load_str("policy.yaml", text) else { return tests };
    let Ok(compiled) = compile(&loaded.policy, now, 0) else { return tests };
    let asked = |flow: &str| Some(answer(&loaded.policy, &compiled, &flow.parse().ok()?, now).explanation);
    for rule in loaded.policy.rules.iter().filter(|rule| rule.action == Verdict::Allow) {
        let Some(flow) = sample(rule) else { continue };
        // Not always the rule itself: an earlier one may hold all that it lists.
        let decides = asked(&flow).filter(|said| said.verdict == Verdict::Allow).and_then(|said| said.rule);
        if let Some(name) = decides.and_then(|number| loaded.policy.rules[number].name.as_deref()) {
            let _ = writeln!(tests, "  - {{ flow: {}, expect: allow, rule: {} }}", quoted(&flow), quoted(name));
        }
    }
    for line in shipped.lines().filter(|line| line.contains("expect: deny")) {
        let flow = line.split('"').nth(1).unwrap_or_default();
        if asked(flow).is_some_and(|said| said.verdict == Verdict::Deny) {
            let _ = writeln!(tests, "{line}");
        }
    }
    tests
}

/// The first of its remotes and services.
fn sample(rule: &Rule) -> Option<String> {
    let v4 = rule.remote.set.v4.first().map(|(first, _)| IpAddr::from(Ipv4Addr::from_bits(*first)));
    let v6 = || rule.remote.set.v6.first().map(|(first, _)| IpAddr::from(Ipv6Addr::from_bits(*first)));
    let remote = match v4.or_else(v6)? {
        // Nobody has the first address of all.
        address if address.is_unspecified() => IpAddr::from([203, 0, 113, 77]),
        address => address,
    };
    Some(flow_text(rule.direction, remote, rule.services.first()?.first))
}
