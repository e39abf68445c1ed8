//! The as-written documents to the model: names resolved, sets flattened, every mistake reported.

use std::collections::HashMap;

use guard_common::{Direction, Verdict};
use jiff::{Timestamp, civil};

use super::{
    diagnostics::nearest,
    essentials,
    groups::{Groups, Resolved},
    include::Files,
    model::{Essentials, FlowQuery, Mode, Policy, Remote, Rule, ServiceRange, Test},
    services::{self, Word},
    source::{At, Span, Text},
    syntax::{self, Document},
    warnings::{self, Written},
};

/// Most rules: their numbers must fit an outcome (guard-common, `NO_RULE`).
const MAX_RULES: usize = 1_000_000;
/// Longest name or comment, in bytes.
const MAX_TEXT: usize = 512;

/// Makes the model of what was read. `None`: there are errors, all of them reported. Warnings are reported either way.
///
/// Beside the policy: where each of its rules stands.
pub fn validate(files: &mut Files, now: Timestamp) -> Option<(Policy, Vec<Span>)> {
    let mut documents = std::mem::take(&mut files.documents);
    // Without the policy itself nothing can be said of the whole.
    let main = documents.len().checked_sub(1)?;
    check_top(files, &documents, main);
    let groups = documents.iter_mut().flat_map(|d| std::mem::take(&mut d.groups)).collect();
    let services = documents.iter_mut().flat_map(|d| std::mem::take(&mut d.services)).collect();
    let mut validator = Validator {
        groups: Groups::new(files, groups),
        services: Services::new(files, services),
        names: HashMap::new(),
        written: Written::default(),
        files,
    };
    let mut rules = Vec::new();
    for rule in documents.iter().flat_map(|d| &d.rules) {
        if rules.len() >= MAX_RULES {
            validator.error(
                "too_many_rules",
                rule.span,
                format!("more than {MAX_RULES} rules"),
                "sum addresses up to groups",
            );
            break;
        }
        rules.extend(validator.rule(rule));
    }
    let essentials = validator.essentials(&documents);
    let tests: Vec<Test> = documents.iter().flat_map(|d| &d.tests).filter_map(|t| validator.test(t)).collect();
    let unused_groups = validator.groups.finish(validator.files);
    let unused_services = validator.services.unused(validator.files);
    let Validator { groups, mut written, files, .. } = validator;
    written.unused = unused_groups.into_iter().chain(unused_services).collect();
    written.documentation = groups.documentation;

    let document = &documents[main];
    let modes = document.mode.as_ref().map(|mode| mode.value);
    let path = files.paths.first()?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let policy = Policy {
        name: document.name.as_ref().map_or(stem, |name| name.value.clone()),
        sha256: files.sha256(),
        files: files.paths.clone(),
        inbound: modes.and_then(|modes| modes.inbound).unwrap_or(Mode::Audit),
        outbound: modes.and_then(|modes| modes.outbound).unwrap_or(Mode::Audit),
        rules,
        essentials,
        // It only takes away, so any of the files may ask for it.
        lockdown: documents.iter().any(|document| document.lockdown),
        on_deny: document.on_deny.as_ref().and_then(|on_deny| on_deny.value.outbound).unwrap_or_default(),
        container_host: document.container_host.as_ref().map(|given| given.value).unwrap_or_default(),
        tests,
    };
    // Of half a policy, what its errors took away would be missed.
    let complete = !files.reporter.found.has_errors();
    warnings::find(&mut files.reporter, &policy, document, &written, complete, now);
    if !complete {
        return None;
    }
    Some((policy, written.rules.into_iter().map(|rule| rule.span).collect()))
}

fn check_top(files: &mut Files, documents: &[Document], main: usize) {
    let reporter = &mut files.reporter;
    for (direction, place) in [("inbound", documents[main].inbound), ("outbound", documents[main].outbound)] {
        if place.is_none() {
            let diagnostic =
                reporter.error("no_direction", documents[main].span, format!("the policy has no `{direction}`"));
            let help = format!("add `{direction}:` with its rules; `{direction}: []` denies all");
            reporter.found.push(diagnostic.label(format!("no `{direction}` in this file")).help(help));
        }
    }
    for mode in documents[..main].iter().filter_map(|d| d.mode.as_ref()) {
        let diagnostic = reporter.error("mode_in_include", mode.span, "an included file sets the mode");
        let help = "leave it out here; the policy that includes this file says its mode";
        reporter.found.push(diagnostic.help(help));
    }
    for on_deny in documents[..main].iter().filter_map(|d| d.on_deny.as_ref()) {
        let diagnostic = reporter.error("on_deny_in_include", on_deny.span, "an included file says what a denial does");
        let help = "leave it out here; the policy that includes this file says it";
        reporter.found.push(diagnostic.help(help));
    }
    for given in documents[..main].iter().filter_map(|d| d.container_host.as_ref()) {
        let message = "an included file says whether containers and this host are judged";
        let diagnostic = reporter.error("container_host_in_include", given.span, message);
        let help = "leave it out here; the policy that includes this file says it";
        reporter.found.push(diagnostic.help(help));
    }
    for text in documents.iter().filter_map(|d| d.name.as_ref()) {
        if text.value.is_empty() || text.value.len() > 64 || text.value.chars().any(char::is_control) {
            let diagnostic = reporter.error("bad_name", text.span, "not a name for a policy");
            reporter.found.push(diagnostic.help("use up to 64 printable characters"));
        }
    }
}

struct Validator<'a> {
    files: &'a mut Files,
    groups: Groups,
    services: Services,
    /// Names of rules, and where each stands.
    names: HashMap<String, Span>,
    written: Written,
}

impl Validator<'_> {
    fn error(&mut self, code: &'static str, span: Span, message: impl Into<String>, help: impl Into<String>) {
        let diagnostic = self.files.reporter.error(code, span, message).help(help);
        self.files.reporter.found.push(diagnostic);
    }

    fn rule(&mut self, written: &syntax::Rule) -> Option<Rule> {
        let what = if written.direction == Direction::Inbound { "from" } else { "to" };
        if let Some(name) = &written.name {
            self.rule_name(name);
        }
        for text in written.comment.iter().filter(|text| text.value.len() > MAX_TEXT) {
            self.error("long_text", text.span, "a comment of more than 512 bytes", "shorten it");
        }
        let remote = written.remote.as_ref().and_then(|words| self.groups.resolve(self.files, words, what));
        let local = written.local.as_ref().map(|words| self.local(words));
        let services = written.services.as_ref().and_then(|words| self.services.resolve(self.files, words));
        let interface = written.interface.as_ref().map(|words| self.interfaces(words));
        let expires = written.expires.as_ref().map(|text| self.expires(text));

        let remote = remote?;
        let rule = Rule {
            direction: written.direction,
            action: written.action.value,
            name: written.name.as_ref().map(|name| name.value.clone()),
            position: written.position,
            place: self.files.reporter.sources.place(written.span),
            remote: Remote {
                text: written.remote.iter().flat_map(|words| &words.value).map(|word| word.value.clone()).collect(),
                set: remote.set,
                named: !remote.any,
            },
            services: services?,
            services_text: written
                .services
                .iter()
                .flat_map(|words| &words.value)
                .map(|word| word.value.clone())
                .collect(),
            interface: optional(interface)?,
            local: optional(local)?.and_then(|local| (!local.any).then_some(local.set)),
            expires: optional(expires)?,
            comment: written.comment.as_ref().map(|text| text.value.clone()),
        };
        // Warnings about a rule point at its name, which a person looks for, or else at its remote.
        let span = written.name.as_ref().map(|name| name.span).or_else(|| written.remote.as_ref().map(|r| r.span));
        self.written.rules.push(warnings::WrittenRule { span: span.unwrap_or(written.span), items: remote.items });
        Some(rule)
    }

    fn rule_name(&mut self, name: &Text) {
        let text = &name.value;
        let looks_like_position = ["inbound[", "outbound["].iter().any(|start| text.starts_with(start));
        if text.trim() != text || text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
            self.error(
                "bad_name",
                name.span,
                "not a name for a rule",
                "use printable characters, no spaces around them",
            );
        } else if looks_like_position {
            self.error("bad_name", name.span, "a name that looks like a rule's position", "say what the rule is for");
        }
        if let Some(first) = self.names.get(text) {
            let reporter = &mut self.files.reporter;
            let diagnostic = reporter
                .error("duplicate_name", name.span, format!("two rules are named `{text}`"))
                .label("again here")
                .also(reporter.sources.excerpt(*first), "first here")
                .help("give one of them another name: records and tests speak of rules by name");
            reporter.found.push(diagnostic);
            return;
        }
        self.names.insert(text.clone(), name.span);
    }

    fn local(&mut self, words: &At<Vec<Text>>) -> Option<Resolved> {
        self.groups.resolve(self.files, words, "local")
    }

    /// All of them, with commas between.
    fn interfaces(&mut self, words: &At<Vec<Text>>) -> Option<String> {
        let patterns: Vec<String> = words.value.iter().filter_map(|text| self.interface(text)).collect();
        (patterns.len() == words.value.len()).then(|| patterns.join(","))
    }

    fn interface(&mut self, text: &Text) -> Option<String> {
        // IFNAMSIZ is 16 with the final zero.
        let pattern = text.value.contains(['*', '?']);
        let fits = if pattern { text.value.len() <= 64 } else { text.value.len() <= 15 };
        let clean = text.value.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | ','));
        if !fits || !clean || text.value.is_empty() {
            let help = "write a name such as eth1, or a pattern such as `veth*`";
            self.error("bad_interface", text.span, format!("`{}` cannot name an interface", text.value), help);
            return None;
        }
        Some(text.value.clone())
    }

    fn expires(&mut self, text: &Text) -> Option<i128> {
        match text.value.parse::<Timestamp>() {
            Ok(time) => Some(time.as_nanosecond()),
            Err(_) => {
                let help = match (text.value.parse::<civil::Date>(), text.value.parse::<civil::DateTime>()) {
                    (_, Ok(time)) if text.value.len() > 10 => {
                        format!("write {time}Z for UTC, or an offset such as {time}+01:00")
                    }
                    (Ok(date), _) => format!("write {date}T00:00:00Z"),
                    _ => "write a time as RFC 3339 has it, such as 2027-01-01T00:00:00Z".to_owned(),
                };
                let message = format!("`{}` is not a time with date, time and zone", text.value);
                self.error("bad_expiry", text.span, message, help);
                None
            }
        }
    }

    fn essentials(&mut self, documents: &[Document]) -> Essentials {
        let mut result = Essentials::default();
        let mut set: HashMap<&str, &At<bool>> = HashMap::new();
        for (name, on) in documents.iter().flat_map(|d| &d.essentials) {
            if let Some(first) = set.get(name.value.as_str())
                && first.value != on.value
            {
                let reporter = &mut self.files.reporter;
                let diagnostic = reporter
                    .error("essential_conflict", on.span, format!("`{}` is switched both ways", name.value))
                    .label("here the other way")
                    .also(reporter.sources.excerpt(first.span), "first here")
                    .help("leave one of them out");
                reporter.found.push(diagnostic);
            }
            set.insert(&name.value, on);
            if let Some(switch) = essentials::switch(&name.value) {
                *switch(&mut result) = on.value;
            }
        }
        result
    }

    fn test(&mut self, test: &syntax::Test) -> Option<Test> {
        if let Some(rule) = &test.rule
            && !self.names.contains_key(&rule.value)
            && !self.is_label(&rule.value)
        {
            let help = match nearest(&rule.value, self.names.keys().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "name a rule of this policy, or leave it out".to_owned(),
            };
            self.error("unknown_rule", rule.span, format!("no rule is named `{}`", rule.value), help);
        }
        match test.flow.value.parse::<FlowQuery>() {
            Ok(flow) => Some(Test {
                flow,
                text: test.flow.value.clone(),
                expect: test.expect.value,
                rule: test.rule.as_ref().map(|rule| rule.value.clone()),
                place: self.files.reporter.sources.place(test.span),
            }),
            Err(bad) => {
                self.error("bad_flow", test.flow.span, bad.message, bad.help);
                None
            }
        }
    }

    /// `outbound[2]`: how a rule without a name is called.
    fn is_label(&self, text: &str) -> bool {
        ["inbound[", "outbound["].iter().any(|start| {
            text.strip_prefix(start).and_then(|rest| rest.strip_suffix(']')).is_some_and(|n| n.parse::<usize>().is_ok())
        })
    }
}

/// Outer `None`: it was written, and wrong.
#[expect(clippy::option_option, reason = "written and wrong, written and right, not written")]
fn optional<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    match value {
        None => Some(None),
        Some(Some(value)) => Some(Some(value)),
        Some(None) => None,
    }
}

/// The `services:` of all files.
struct Services {
    by_name: HashMap<String, (Text, Vec<Text>, bool)>,
    depth: usize,
}

impl Services {
    const MAX_DEPTH: usize = 16;
    /// Most words that one list may come to, names resolved.
    const MAX_RANGES: usize = 65_536;

    fn new(files: &mut Files, services: Vec<syntax::Service>) -> Self {
        let mut by_name: HashMap<String, (Text, Vec<Text>, bool)> = HashMap::new();
        let reporter = &mut files.reporter;
        for service in services {
            let (name, span) = (service.name.value.clone(), service.name.span);
            if name == "any" || services::BUILT_IN.iter().any(|(known, _)| *known == name) {
                let diagnostic = reporter.error("built_in_service", span, format!("`{name}` is built in"));
                reporter.found.push(diagnostic.help("give yours another name, or leave it out"));
            } else if !super::groups::is_group_name(&name) {
                let diagnostic = reporter.error("bad_service_name", span, format!("`{name}` cannot name a service"));
                let help = "use small letters, digits, `_` and `-`, beginning with a letter";
                reporter.found.push(diagnostic.help(help));
            } else if let Some((first, ..)) = by_name.get(&name) {
                let diagnostic = reporter.error("duplicate_name", span, format!("service `{name}` is defined twice"));
                let first = reporter.sources.excerpt(first.span);
                let diagnostic = diagnostic.label("again here").also(first, "first here");
                reporter.found.push(diagnostic.help("give one of them another name"));
            } else {
                by_name.insert(name, (service.name, service.items, false));
            }
        }
        Self { by_name, depth: 0 }
    }

    fn resolve(&mut self, files: &mut Files, words: &At<Vec<Text>>) -> Option<Vec<ServiceRange>> {
        let mut ranges = Vec::new();
        let mut good = true;
        for word in &words.value {
            good &= self.word(files, word, &mut ranges);
        }
        good.then(|| services::normalise(ranges))
    }

    fn word(&mut self, files: &mut Files, word: &Text, ranges: &mut Vec<ServiceRange>) -> bool {
        let reporter = &mut files.reporter;
        if ranges.len() > Self::MAX_RANGES || self.depth > Self::MAX_DEPTH {
            let diagnostic =
                reporter.error("services_too_deep", word.span, "services that name services, too many or in a circle");
            reporter.found.push(diagnostic.help("name the ports themselves"));
            return false;
        }
        match services::parse(&word.value) {
            Ok(Word::Ranges(more)) => {
                ranges.extend(more);
                true
            }
            Ok(Word::Name) => {
                let Some((_, items, used)) = self.by_name.get_mut(&word.value) else {
                    let known = services::BUILT_IN.iter().map(|(name, _)| *name);
                    let known = known.chain(self.by_name.keys().map(String::as_str)).chain(["any"]);
                    let help = match nearest(&word.value, known) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => "define it under `services:`, or write tcp/PORT".to_owned(),
                    };
                    let diagnostic =
                        reporter.error("unknown_service", word.span, format!("there is no service `{}`", word.value));
                    reporter.found.push(diagnostic.label("not defined").help(help));
                    return false;
                };
                *used = true;
                let items = items.clone();
                self.depth += 1;
                let mut good = true;
                for item in &items {
                    // After the first mistake in a circle every further turn would only repeat it.
                    good = good && self.word(files, item, ranges);
                }
                self.depth -= 1;
                good
            }
            Err(bad) => {
                let span = match bad.part {
                    // Only where the text stands as it was written, without quotes or escapes.
                    Some(part) if reporter.sources.slice(word.span) == word.value => Span {
                        start: word.span.start + part.start as u32,
                        end: word.span.start + part.end as u32,
                        ..word.span
                    },
                    _ => word.span,
                };
                let diagnostic = reporter.error(bad.code, span, bad.message);
                let label = if bad.code == "inverted_port_range" { "first port is greater than the last" } else { "" };
                reporter.found.push(diagnostic.label(label).help(bad.help));
                false
            }
        }
    }

    /// Those that no rule names, after their own mistakes were looked for.
    fn unused(&mut self, files: &mut Files) -> Vec<Text> {
        let mut unused: Vec<Text> =
            self.by_name.values().filter(|(_, _, used)| !used).map(|(name, ..)| name.clone()).collect();
        unused.sort_by_key(|name| (name.span.file, name.span.start));
        for name in &unused {
            // One that another unused one names has been looked at with it.
            if self.by_name.get(&name.value).is_some_and(|(_, _, used)| *used) {
                continue;
            }
            let items = self.by_name.get(&name.value).map(|(_, items, _)| items.clone()).unwrap_or_default();
            self.resolve(files, &At { value: items, span: name.span });
        }
        unused
    }
}

/// Whether a rule lets everyone do everything.
#[must_use]
pub fn is_wide_open(rule: &Rule) -> bool {
    rule.action == Verdict::Allow && !rule.remote.named && rule.services == [services::ANY]
}
