//! The YAML tree to the as-written types: which keys there are, and what each may hold. Everything wrong is reported
//! and left out; reading goes on.

use guard_common::{Direction, Verdict};

use super::{
    diagnostics::{Diagnostic, Reporter, nearest},
    model::{ContainerHost, Mode, Refusal},
    source::{At, Span, Text},
    syntax::{Document, Group, GroupBody, Modes, OnDeny, Rule, Service, Test},
    yaml::{Node, Value},
};

const TOP: &[&str] = &[
    "version",
    "name",
    "include",
    "mode",
    "groups",
    "services",
    "inbound",
    "outbound",
    "essentials",
    "lockdown",
    "on_deny",
    "container_host",
    "tests",
];
const RULE: &[&str] = &["name", "action", "from", "to", "services", "interface", "local", "expires", "comment"];

/// Reads one file. Problems are in the reporter; `None`: it is not a policy at all.
pub fn read(reporter: &mut Reporter, root: &Node) -> Option<Document> {
    let mut document = Document { span: Span { end: root.span.start, ..root.span }, ..Document::default() };
    let mut reader = Reader(reporter);
    let map = reader.map(root, "a policy", TOP)?;
    reader.version(map.get("version"), document.span);
    document.name = map.get("name").and_then(|node| reader.text(node, "name"));
    document.include = map.get("include").map(|node| reader.texts(node, "include").value).unwrap_or_default();
    document.mode = map.get("mode").and_then(|node| reader.modes(node));
    if let Some(node) = map.get("groups") {
        document.groups = reader.groups(node);
    }
    if let Some(node) = map.get("services") {
        document.services = reader.services(node);
    }
    // In file order, whichever direction stands first.
    for (key, node) in &map.entries {
        let (direction, place) = match key.value.as_str() {
            "inbound" => (Direction::Inbound, &mut document.inbound),
            "outbound" => (Direction::Outbound, &mut document.outbound),
            _ => continue,
        };
        *place = Some(key.span);
        reader.rules(node, direction, &mut document.rules);
    }
    if let Some(node) = map.get("essentials") {
        document.essentials = reader.essentials(node);
    }
    document.lockdown =
        map.get("lockdown").is_some_and(|node| reader.boolean(node, "lockdown").is_some_and(|on| on.value));
    document.on_deny = map.get("on_deny").and_then(|node| reader.on_deny(node));
    document.container_host = map.get("container_host").and_then(|node| reader.container_host(node));
    if let Some(node) = map.get("tests") {
        document.tests = reader.tests(node);
    }
    Some(document)
}

/// A mapping whose keys are all known and stand once.
struct Map<'a> {
    entries: Vec<(Text, &'a Node)>,
}

impl<'a> Map<'a> {
    fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|(name, _)| name.value == key).map(|(_, node)| *node)
    }
}

struct Reader<'a>(&'a mut Reporter);

impl Reader<'_> {
    fn report(&mut self, diagnostic: Diagnostic) {
        self.0.found.push(diagnostic);
    }

    /// `None` when it is no mapping.
    fn map<'n>(&mut self, node: &'n Node, what: &str, known: &[&str]) -> Option<Map<'n>> {
        let entries = self.entries(node, what, &format!("with the keys {}", known.join(", ")))?;
        let mut map = Map { entries: Vec::new() };
        for (key, value) in entries {
            if known.contains(&key.value.as_str()) {
                map.entries.push((key, value));
                continue;
            }
            let diagnostic = self.0.error("unknown_key", key.span, format!("unknown key `{}` in {what}", key.value));
            let help = match nearest(&key.value, known.iter().copied()) {
                Some(word) => format!("did you mean `{word}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.report(diagnostic.label("not known here").help(help));
        }
        Some(map)
    }

    /// The entries of a mapping: keys are scalars, each once.
    fn entries<'n>(&mut self, node: &'n Node, what: &str, shape: &str) -> Option<Vec<(Text, &'n Node)>> {
        let Value::Map(pairs) = &node.value else {
            let found = describe(node);
            let diagnostic = self.0.error("wrong_type", node.span, format!("{what} is a mapping, not {found}"));
            self.report(diagnostic.label("not a mapping").help(format!("write `key: value` lines {shape}")));
            return None;
        };
        let mut entries: Vec<(Text, &Node)> = Vec::new();
        // A mapping of a few keys is searched; one of many (groups) is looked up.
        let mut seen = std::collections::HashMap::new();
        for (key, value) in pairs {
            let Value::Scalar { text, .. } = &key.value else {
                let diagnostic = self.0.error("wrong_type", key.span, format!("a key of {what} is a word"));
                self.report(diagnostic.label("not a word"));
                continue;
            };
            if let Some(first) = seen.insert(text.as_str(), key.span) {
                let diagnostic =
                    self.0.error("duplicate_key", key.span, format!("key `{text}` stands twice in {what}"));
                let first = self.0.sources.excerpt(first);
                self.report(diagnostic.label("again here").also(first, "first here").help("keep one of them"));
                continue;
            }
            entries.push((At { value: text.clone(), span: key.span }, value));
        }
        Some(entries)
    }

    fn text(&mut self, node: &Node, key: &str) -> Option<Text> {
        if let Value::Scalar { text, .. } = &node.value {
            if !node.is_null() {
                return Some(At { value: text.clone(), span: node.span });
            }
            let diagnostic = self.0.error("empty_value", node.span, format!("`{key}` has no value"));
            self.report(diagnostic.label("nothing here"));
            return None;
        }
        let diagnostic = match misread_ipv6(node) {
            Some(address) => self
                .0
                .error("unquoted_ipv6", node.span, "an IPv6 address that YAML reads as a mapping")
                .label("YAML takes a colon at the end for its own")
                .help(format!("quote it: \"{address}\"")),
            None => self
                .0
                .error("wrong_type", node.span, format!("`{key}` is text, not {}", describe(node)))
                .label("not text"),
        };
        self.report(diagnostic);
        None
    }

    /// A scalar or a list of scalars. What is wrong in it is reported and left out.
    fn texts(&mut self, node: &Node, key: &str) -> At<Vec<Text>> {
        let value = match &node.value {
            Value::List(items) => items.iter().filter_map(|item| self.text(item, key)).collect(),
            _ => self.text(node, key).into_iter().collect(),
        };
        At { value, span: node.span }
    }

    /// [`Self::texts`], not empty; `None` where nothing is left or something was wrong.
    fn some_texts(&mut self, node: &Node, key: &str, to_mean_all: &str) -> Option<At<Vec<Text>>> {
        if matches!(&node.value, Value::List(items) if items.is_empty()) || node.is_null() {
            let diagnostic = self.0.error("empty_value", node.span, format!("`{key}` is empty"));
            self.report(diagnostic.label("nothing here").help(to_mean_all));
            return None;
        }
        let texts = self.texts(node, key);
        let complete = match &node.value {
            Value::List(items) => items.len(),
            _ => 1,
        };
        (texts.value.len() == complete).then_some(texts)
    }

    fn boolean(&mut self, node: &Node, key: &str) -> Option<At<bool>> {
        let value = match &node.value {
            Value::Scalar { text, plain: true } if text == "true" => true,
            Value::Scalar { text, plain: true } if text == "false" => false,
            _ => {
                let diagnostic = self.0.error("wrong_type", node.span, format!("`{key}` is true or false"));
                self.report(diagnostic.label("neither").help("write true or false"));
                return None;
            }
        };
        Some(At { value, span: node.span })
    }

    fn list<'n>(&mut self, node: &'n Node, key: &str, to_mean_none: &str) -> &'n [Node] {
        if let Value::List(items) = &node.value {
            return items;
        }
        let diagnostic = self.0.error("wrong_type", node.span, format!("`{key}` is a list, not {}", describe(node)));
        self.report(
            diagnostic.label("not a list").help(format!("write one `- …` for each, or `{key}: []` {to_mean_none}")),
        );
        &[]
    }

    fn version(&mut self, node: Option<&Node>, place: Span) {
        let Some(node) = node else {
            let diagnostic = self.0.error("no_version", place, "the policy does not say its format's version");
            self.report(diagnostic.label("no `version` in this file").help("begin it with `version: 1`"));
            return;
        };
        if let Some(text) = self.text(node, "version").filter(|text| text.value != "1") {
            let diagnostic = self.0.error("bad_version", text.span, format!("version {} is not known", text.value));
            self.report(diagnostic.label("not known to this guard").help("this guard reads `version: 1`"));
        }
    }

    fn mode(&mut self, node: &Node) -> Option<Mode> {
        let text = self.text(node, "mode")?;
        match text.value.as_str() {
            "enforce" => Some(Mode::Enforce),
            "audit" => Some(Mode::Audit),
            other => {
                let diagnostic = self.0.error("bad_mode", text.span, format!("`{other}` is not a mode"));
                let help = "write enforce, audit, or { inbound: …, outbound: … }";
                self.report(diagnostic.label("neither enforce nor audit").help(help));
                None
            }
        }
    }

    fn modes(&mut self, node: &Node) -> Option<At<Modes>> {
        let modes = match &node.value {
            Value::Map(_) => {
                let map = self.map(node, "`mode`", &["inbound", "outbound"])?;
                // Where one is wrong the policy is refused: it needs no warning for being left out as well.
                let mut of = |key| map.get(key).map(|node| self.mode(node).unwrap_or(Mode::Audit));
                Modes { inbound: of("inbound"), outbound: of("outbound") }
            }
            _ => {
                let mode = Some(self.mode(node).unwrap_or(Mode::Audit));
                Modes { inbound: mode, outbound: mode }
            }
        };
        Some(At { value: modes, span: node.span })
    }

    fn on_deny(&mut self, node: &Node) -> Option<At<OnDeny>> {
        let map = self.map(node, "`on_deny`", &["inbound", "outbound"])?;
        if let Some((Refusal::Reject, span)) = map.get("inbound").and_then(|node| self.refusal(node, "inbound")) {
            let message = "`inbound: reject` would answer everybody who knocks";
            let diagnostic = self.0.error("reject_inbound", span, message).label("only `drop` here");
            self.report(diagnostic.help("leave it out: nothing is ever said toward the outside"));
        }
        let outbound = map.get("outbound").and_then(|node| self.refusal(node, "outbound")).map(|(refusal, _)| refusal);
        Some(At { value: OnDeny { outbound }, span: node.span })
    }

    fn refusal(&mut self, node: &Node, key: &str) -> Option<(Refusal, Span)> {
        let text = self.text(node, key)?;
        match text.value.as_str() {
            "drop" => Some((Refusal::Drop, text.span)),
            "reject" => Some((Refusal::Reject, text.span)),
            other => {
                let message = format!("`{key}` is drop or reject, not `{other}`");
                let diagnostic = self.0.error("bad_refusal", text.span, message).label("neither drop nor reject");
                self.report(diagnostic.help("write drop or reject"));
                None
            }
        }
    }

    fn container_host(&mut self, node: &Node) -> Option<At<ContainerHost>> {
        let text = self.text(node, "container_host")?;
        let value = match text.value.as_str() {
            "guard" => ContainerHost::Guard,
            "ignore" => ContainerHost::Ignore,
            other => {
                let message = format!("`container_host` is guard or ignore, not `{other}`");
                let diagnostic = self.0.error("bad_container_host", text.span, message);
                self.report(diagnostic.label("neither guard nor ignore").help("write guard or ignore"));
                return None;
            }
        };
        Some(At { value, span: text.span })
    }

    fn verdict(&mut self, node: &Node, key: &str) -> Option<At<Verdict>> {
        let text = self.text(node, key)?;
        let value = match text.value.as_str() {
            "allow" => Verdict::Allow,
            "deny" => Verdict::Deny,
            other => {
                let diagnostic =
                    self.0.error("bad_verdict", text.span, format!("`{key}` is allow or deny, not `{other}`"));
                self.report(diagnostic.label("neither allow nor deny").help("write allow or deny"));
                return None;
            }
        };
        Some(At { value, span: text.span })
    }

    fn groups(&mut self, node: &Node) -> Vec<Group> {
        let shape = "with a group's name and its addresses, such as `office: [192.0.2.0/24]`";
        let entries = if node.is_null() { None } else { self.entries(node, "`groups`", shape) };
        let mut groups = Vec::new();
        for (name, node) in entries.unwrap_or_default() {
            let body = self.group_body(&name.value, node).unwrap_or(GroupBody::Bad);
            groups.push(Group { span: name.span, name, body });
        }
        groups
    }

    fn group_body(&mut self, name: &str, node: &Node) -> Option<GroupBody> {
        if !matches!(node.value, Value::Map(_)) || misread_ipv6(node).is_some() {
            let help = "write at least one address, CIDR or group";
            return self.some_texts(node, name, help).map(|texts| GroupBody::Items(texts.value));
        }
        let map = self.map(node, &format!("group `{name}`"), &["file", "allow_empty", "any_of", "except"])?;
        let allow_empty = map.get("allow_empty").and_then(|node| self.boolean(node, "allow_empty"));
        if let Some(file) = map.get("file") {
            for key in ["any_of", "except"] {
                if let Some(other) = map.get(key) {
                    let diagnostic =
                        self.0.error("file_and_items", other.span, format!("`file` and `{key}` in one group"));
                    self.report(
                        diagnostic
                            .label("beside `file`")
                            .help(format!("name the file in a group of its own and use that group's name in `{key}`")),
                    );
                }
            }
            let path = self.text(file, "file")?;
            return Some(GroupBody::File { path, allow_empty: allow_empty.is_some_and(|b| b.value) });
        }
        if let Some(allow_empty) = &allow_empty {
            let diagnostic = self.0.error("allow_empty", allow_empty.span, "`allow_empty` is for list files");
            self.report(diagnostic.label("no `file` here").help("leave it out"));
        }
        let Some(any_of) = map.get("any_of") else {
            let diagnostic = self.0.error("no_items", node.span, format!("group `{name}` names no addresses"));
            self.report(diagnostic.label("neither `any_of` nor `file`").help("add `any_of: […]`"));
            return None;
        };
        let any_of = self.some_texts(any_of, "any_of", "write at least one address, CIDR or group")?.value;
        let except = match map.get("except") {
            Some(node) => self.texts(node, "except").value,
            None => Vec::new(),
        };
        Some(GroupBody::Compose { any_of, except })
    }

    fn services(&mut self, node: &Node) -> Vec<Service> {
        let shape = "with a service's name and its ports, such as `git: [tcp/22, tcp/443]`";
        let entries = if node.is_null() { None } else { self.entries(node, "`services`", shape) };
        let mut services = Vec::new();
        for (name, node) in entries.unwrap_or_default() {
            let items = self.some_texts(node, &name.value, "write at least one, such as `tcp/443`");
            services.push(Service { span: name.span, items: items.map(|i| i.value).unwrap_or_default(), name });
        }
        services
    }

    fn rules(&mut self, node: &Node, direction: Direction, rules: &mut Vec<Rule>) {
        let items = self.list(node, direction.as_str(), "to deny all");
        for (position, item) in items.iter().enumerate() {
            rules.extend(self.rule(item, direction, position));
        }
    }

    fn rule(&mut self, node: &Node, direction: Direction, position: usize) -> Option<Rule> {
        let what = format!("rule {}[{position}]", direction.as_str());
        let map = self.map(node, &what, RULE)?;
        let (remote_key, wrong_key) = match direction {
            Direction::Inbound => ("from", "to"),
            Direction::Outbound => ("to", "from"),
        };
        let whole = node.span;
        let remote = match (map.get(remote_key), map.get(wrong_key)) {
            (Some(_), Some(wrong)) | (None, Some(wrong)) => {
                let message = format!("an {} rule has `{remote_key}`, not `{wrong_key}`", direction.as_str());
                let help = match direction {
                    Direction::Inbound => "the remote is who calls: write `from:`; for one address of ours, `local:`",
                    Direction::Outbound => {
                        "the remote is who is called: write `to:`; for one address of ours, `local:`"
                    }
                };
                let diagnostic = self.0.error("wrong_remote_key", wrong.span, message);
                self.report(diagnostic.label("the other direction's key").help(help));
                None
            }
            (None, None) => {
                let diagnostic = self.0.error("no_remote", whole, format!("{what} names no remote"));
                self.report(diagnostic.label(format!("no `{remote_key}`")).help(format!(
                    "add `{remote_key}:` with addresses or a group; `{remote_key}: any` if everyone is meant"
                )));
                None
            }
            (Some(node), None) => {
                self.some_texts(node, remote_key, &format!("to mean everyone, write `{remote_key}: any`"))
            }
        };
        let services = match map.get("services") {
            Some(node) => self.some_texts(node, "services", "to mean every service, write `services: any`"),
            None => {
                let diagnostic = self.0.error("no_services", whole, format!("{what} names no services"));
                self.report(
                    diagnostic
                        .label("no `services`")
                        .help("add `services:`, such as tcp/443 or ssh; `services: any` if all are meant"),
                );
                None
            }
        };
        let action = map.get("action").and_then(|node| self.verdict(node, "action"));
        let action = action.unwrap_or(At { value: Verdict::Allow, span: whole });
        Some(Rule {
            direction,
            position,
            span: whole,
            name: map.get("name").and_then(|node| self.text(node, "name")),
            action,
            remote,
            services,
            interface: map
                .get("interface")
                .and_then(|node| self.some_texts(node, "interface", "leave it out to mean every interface")),
            local: map
                .get("local")
                .and_then(|node| self.some_texts(node, "local", "leave it out to mean every address of ours")),
            expires: map.get("expires").and_then(|node| self.text(node, "expires")),
            comment: map.get("comment").and_then(|node| self.text(node, "comment")),
        })
    }

    fn essentials(&mut self, node: &Node) -> Vec<(Text, At<bool>)> {
        let known: Vec<&str> = super::essentials::NAMES.iter().map(|(name, ..)| *name).collect();
        let Some(map) = self.map(node, "`essentials`", &known) else { return Vec::new() };
        let mut essentials = Vec::new();
        for (name, node) in map.entries {
            if let Some(on) = self.boolean(node, &name.value) {
                essentials.push((name, on));
            }
        }
        essentials
    }

    fn tests(&mut self, node: &Node) -> Vec<Test> {
        let items = self.list(node, "tests", "for none");
        let mut tests = Vec::new();
        for item in items {
            let Some(map) = self.map(item, "a test", &["flow", "expect", "rule"]) else { continue };
            let mut required = |key: &str, example: &str| {
                let node = map.get(key);
                if node.is_none() {
                    let diagnostic = self.0.error("incomplete_test", item.span, format!("a test without `{key}`"));
                    self.report(diagnostic.label(format!("no `{key}`")).help(format!("add `{key}: {example}`")));
                }
                node
            };
            let flow = required("flow", "\"out tcp 203.0.113.9:443\"");
            let expect = required("expect", "deny");
            let flow = flow.and_then(|node| self.text(node, "flow"));
            let expect = expect.and_then(|node| self.verdict(node, "expect"));
            let rule = map.get("rule").and_then(|node| self.text(node, "rule"));
            if let (Some(flow), Some(expect)) = (flow, expect) {
                tests.push(Test { flow, expect, rule, span: item.span });
            }
        }
        tests
    }
}

fn describe(node: &Node) -> &'static str {
    match &node.value {
        _ if node.is_null() => "nothing",
        Value::Scalar { .. } => "a word",
        Value::List(_) => "a list",
        Value::Map(_) => "a mapping",
    }
}

/// The address, where `2001:db8::` without quotes became a mapping of `2001:db8:` to nothing.
fn misread_ipv6(node: &Node) -> Option<String> {
    let Value::Map(entries) = &node.value else { return None };
    let [(key, value)] = entries.as_slice() else { return None };
    let (Value::Scalar { text: key, plain: true }, Value::Scalar { text: value, plain: true }) =
        (&key.value, &value.value)
    else {
        return None;
    };
    let value = if matches!(value.as_str(), "~" | "null") { "" } else { value };
    let address = format!("{key}:{value}");
    let number = address.split('/').next().unwrap_or(&address);
    number.parse::<std::net::Ipv6Addr>().is_ok().then_some(address)
}
