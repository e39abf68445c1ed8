//! Words that stand for addresses: `any`, addresses, CIDRs and groups, resolved to sets.

use std::{collections::HashMap, sync::Arc};

use super::{
    addresses::{self, Range},
    diagnostics::nearest,
    include::Files,
    model::AddressSet,
    source::{At, Span, Text},
    syntax::{Group, GroupBody},
};

/// Longest chain of groups that name groups.
const MAX_DEPTH: usize = 32;
/// Most ranges in all the sets of a policy: what its memory is bounded by.
const MAX_RANGES: usize = 24_000_000;

/// One word of a remote, resolved.
#[derive(Clone, Debug)]
pub struct Item {
    pub text: String,
    pub span: Span,
    pub set: Arc<AddressSet>,
}

/// A whole remote (or `local`), resolved.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub set: Arc<AddressSet>,
    pub any: bool,
    pub items: Vec<Item>,
}

enum State {
    Pending,
    Open,
    /// `None`: wrong, which has been reported.
    Done(Option<Arc<AddressSet>>),
}

/// The groups of all files, resolved as they are asked for.
pub struct Groups {
    groups: Vec<Group>,
    states: Vec<State>,
    by_name: HashMap<String, usize>,
    used: Vec<bool>,
    /// Equal lists of words share one set.
    lists: HashMap<Vec<String>, Arc<AddressSet>>,
    ranges: usize,
    depth: usize,
    /// Documentation addresses: where the first stand, and how many there are.
    pub documentation: (Vec<Span>, usize),
    any: Arc<AddressSet>,
}

impl Groups {
    pub fn new(files: &mut Files, groups: Vec<Group>) -> Self {
        let mut by_name: HashMap<String, usize> = HashMap::new();
        for (number, group) in groups.iter().enumerate() {
            let (name, span) = (&group.name.value, group.name.span);
            let reporter = &mut files.reporter;
            if !is_group_name(name) || name == "any" {
                let help = "use small letters, digits, `_` and `-`, beginning with a letter; `any` is taken";
                let diagnostic = reporter.error("bad_group_name", span, format!("`{name}` cannot name a group"));
                reporter.found.push(diagnostic.help(help));
            } else if let Some(first) = by_name.get(name) {
                let first = reporter.sources.excerpt(groups[*first].name.span);
                let diagnostic = reporter.error("duplicate_name", span, format!("group `{name}` is defined twice"));
                let diagnostic = diagnostic.label("again here").also(first, "first here");
                reporter.found.push(diagnostic.help("give one of them another name"));
                continue;
            }
            by_name.insert(name.clone(), number);
        }
        let states = groups.iter().map(|_| State::Pending).collect();
        let used = vec![false; groups.len()];
        Self {
            groups,
            states,
            by_name,
            used,
            lists: HashMap::new(),
            ranges: 0,
            depth: 0,
            documentation: (Vec::new(), 0),
            any: Arc::new(AddressSet::any()),
        }
    }

    /// Resolves a remote or `local`. `None`: something in it is wrong, which has been reported.
    pub fn resolve(&mut self, files: &mut Files, words: &At<Vec<Text>>, what: &str) -> Option<Resolved> {
        if let Some(any) = words.value.iter().find(|word| word.value == "any") {
            if words.value.len() > 1 {
                let diagnostic = files.reporter.error("any_and_more", any.span, "`any` beside other remotes");
                let help = format!("write `{what}: any` if everyone is meant, else leave `any` out");
                files.reporter.found.push(diagnostic.label("already means everyone").help(help));
                return None;
            }
            return Some(Resolved { set: Arc::clone(&self.any), any: true, items: Vec::new() });
        }
        let items = self.items(files, &words.value)?;
        let set = match items.as_slice() {
            [only] => Arc::clone(&only.set),
            many => {
                let key: Vec<String> = many.iter().map(|item| item.text.clone()).collect();
                match self.lists.get(&key) {
                    Some(set) => Arc::clone(set),
                    None => {
                        let set =
                            self.keep(files, words.span, AddressSet::union(many.iter().map(|i| i.set.as_ref())))?;
                        self.lists.insert(key, Arc::clone(&set));
                        set
                    }
                }
            }
        };
        Some(Resolved { set, any: false, items })
    }

    /// Resolves what no rule has asked for, so that its mistakes are found too; names the groups that nobody uses.
    pub fn finish(&mut self, files: &mut Files) -> Vec<Text> {
        for number in 0..self.groups.len() {
            let used = self.used[number];
            let span = self.groups[number].name.span;
            self.group(files, number, span);
            self.used[number] = used;
        }
        let unused = self.groups.iter().zip(&self.used).filter(|(_, used)| !**used);
        unused.map(|(group, _)| group.name.clone()).collect()
    }

    fn items(&mut self, files: &mut Files, words: &[Text]) -> Option<Vec<Item>> {
        let mut items = Vec::with_capacity(words.len());
        for word in words {
            if let Some(set) = self.word(files, word) {
                items.push(Item { text: word.value.clone(), span: word.span, set });
            }
        }
        (items.len() == words.len()).then_some(items)
    }

    fn word(&mut self, files: &mut Files, word: &Text) -> Option<Arc<AddressSet>> {
        if let Some(number) = self.by_name.get(&word.value).copied() {
            self.used[number] = true;
            return self.group(files, number, word.span);
        }
        let reporter = &mut files.reporter;
        if word.value == "any" {
            let diagnostic = reporter.error("any_in_group", word.span, "`any` inside a group");
            reporter.found.push(diagnostic.help("write `any` in the rule itself, or 0.0.0.0/0 and \"::/0\""));
            return None;
        }
        let net = match addresses::parse(&word.value) {
            Ok(net) => net,
            Err(bad) if bad.code == "bad_address" && is_group_name(&word.value) => {
                let diagnostic =
                    reporter.error("unknown_group", word.span, format!("there is no group `{}`", word.value));
                let help = match nearest(&word.value, self.by_name.keys().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if self.by_name.is_empty() => "define it under `groups:`, or write an address".to_owned(),
                    None => "define it under `groups:`".to_owned(),
                };
                reporter.found.push(diagnostic.label("not defined").help(help));
                return None;
            }
            Err(bad) if bad.code == "bad_address" && is_host_name(&word.value) => {
                let diagnostic = reporter.error(
                    "host_name",
                    word.span,
                    format!("`{}` is a host name; a rule lists addresses", word.value),
                );
                let help = "today's ways: a list file that you keep up to date (`groups: { NAME: { file: … } }`), the \
                            provider's published ranges, or the address of an egress proxy that knows names";
                reporter.found.push(diagnostic.label("its addresses can change behind the policy's back").help(help));
                return None;
            }
            Err(bad) => {
                let diagnostic = reporter.error(bad.code, word.span, bad.message);
                reporter.found.push(diagnostic.help(bad.help));
                return None;
            }
        };
        if addresses::is_documentation(net) {
            self.documentation.1 += 1;
            if self.documentation.0.len() < 4 {
                self.documentation.0.push(word.span);
            }
        }
        let set = match addresses::range(net) {
            Range::V4(first, last) => AddressSet { v4: vec![(first, last)], v6: Vec::new() },
            Range::V6(first, last) => AddressSet { v4: Vec::new(), v6: vec![(first, last)] },
        };
        let key = vec![net.to_string()];
        if let Some(set) = self.lists.get(&key) {
            return Some(Arc::clone(set));
        }
        let set = Arc::new(set);
        self.lists.insert(key, Arc::clone(&set));
        Some(set)
    }

    fn group(&mut self, files: &mut Files, number: usize, asked_at: Span) -> Option<Arc<AddressSet>> {
        match &self.states[number] {
            State::Done(set) => return set.clone(),
            State::Open => {
                let name = &self.groups[number].name;
                let diagnostic = files
                    .reporter
                    .error("group_cycle", asked_at, format!("group `{}` contains itself", name.value))
                    .label("leads back to it")
                    .also(files.reporter.sources.excerpt(name.span), "defined here")
                    .help("take one of the groups out of the circle");
                files.reporter.found.push(diagnostic);
                return None;
            }
            State::Pending => {}
        }
        if self.depth >= MAX_DEPTH {
            let diagnostic = files.reporter.error(
                "groups_too_deep",
                asked_at,
                format!("groups in groups, more than {MAX_DEPTH} deep"),
            );
            files.reporter.found.push(diagnostic.help("name the addresses themselves"));
            return None;
        }
        self.states[number] = State::Open;
        self.depth += 1;
        let set = self.body(files, number);
        self.depth -= 1;
        self.states[number] = State::Done(set.clone());
        set
    }

    fn body(&mut self, files: &mut Files, number: usize) -> Option<Arc<AddressSet>> {
        let (body, name) = (self.groups[number].body.clone(), self.groups[number].name.clone());
        match body {
            GroupBody::Bad => None,
            GroupBody::Items(words) => {
                let items = self.items(files, &words)?;
                match items.as_slice() {
                    [only] => Some(Arc::clone(&only.set)),
                    many => self.keep(files, name.span, AddressSet::union(many.iter().map(|i| i.set.as_ref()))),
                }
            }
            GroupBody::Compose { any_of, except } => {
                let any_of = self.items(files, &any_of);
                let except = self.items(files, &except);
                let (any_of, except) = (any_of?, except?);
                let except = AddressSet::union(except.iter().map(|i| i.set.as_ref()));
                let all = AddressSet::union(any_of.iter().map(|i| i.set.as_ref()));
                let left = all.without(&except);
                if left.is_empty() && !all.is_empty() {
                    let reporter = &mut files.reporter;
                    let diagnostic =
                        reporter.error("empty_group", name.span, format!("group `{}` is empty", name.value));
                    let help = "take out of `except` what should stay";
                    reporter.found.push(diagnostic.label("`except` takes everything away").help(help));
                    return None;
                }
                self.keep(files, name.span, left)
            }
            GroupBody::File { path, allow_empty } => {
                let list = files.list(&path)?;
                self.documentation.1 += list.documentation;
                if list.documentation > 0 && self.documentation.0.len() < 4 {
                    self.documentation.0.push(path.span);
                }
                if list.entries == 0 && !allow_empty && list.errors.is_empty() && list.more_errors == 0 {
                    let reporter = &mut files.reporter;
                    let diagnostic =
                        reporter.error("empty_list", path.span, format!("list file {} is empty", path.value));
                    let help =
                        "a file that was not written yet would deny all; if that is meant, add `allow_empty: true`";
                    reporter.found.push(diagnostic.label("no address in it").help(help));
                    return None;
                }
                self.keep(files, path.span, list.set)
            }
        }
    }

    /// Counts what a set costs.
    fn keep(&mut self, files: &mut Files, span: Span, set: AddressSet) -> Option<Arc<AddressSet>> {
        self.ranges += set.v4.len() + set.v6.len();
        if self.ranges > MAX_RANGES {
            let diagnostic = files
                .reporter
                .error("too_many_addresses", span, format!("more than {MAX_RANGES} address ranges in all sets"))
                .help("name large lists once, as a group of their own, and use that group alone in rules");
            files.reporter.found.push(diagnostic);
            return None;
        }
        Some(Arc::new(set))
    }
}

/// `[a-z][a-z0-9_-]*`: no dots, so that it cannot be a host name.
#[must_use]
pub fn is_group_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
        && text.len() <= 64
}

fn is_host_name(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'*'))
        && text.bytes().any(|b| b.is_ascii_alphabetic())
}
