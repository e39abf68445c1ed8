//! YAML text to a tree in which every value and every key has its place.
//!
//! Built from the events of `serde_yaml`'s own parser, and read by hand (`read`) instead of by `serde::Deserialize`: a
//! derived reader stops at its first error, forgets where keys stand and whether a scalar was quoted, and this one must
//! report everything at once. One parse, so that no two readings of a file can disagree. Scalars stay text: nothing is
//! a number, a date or a boolean until the key that it belongs to says so.
//!
//! A policy is hostile input: depth, number of nodes and what aliases expand to are bounded here, size where it is read.

use std::collections::HashMap;

use serde_yaml::granit_parser::{Event, Marker, Parser, ScalarStyle, Span as ParserSpan, options};

use super::{diagnostics::Reporter, source::Span};

/// Deepest nesting; the format itself needs five levels.
const MAX_DEPTH: usize = 32;
/// Most values, keys included: a million rules' worth of lines is a list file's job.
const MAX_NODES: usize = 4_000_000;
/// Most values that aliases may add by repeating.
const MAX_ALIASED: usize = 100_000;

#[derive(Clone, Debug)]
pub struct Node {
    pub value: Value,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum Value {
    Scalar {
        text: String,
        /// Not quoted and not a block: what YAML might have read otherwise than meant.
        plain: bool,
    },
    List(Vec<Node>),
    /// In file order; keys may be anything yet.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// Left empty, `~` or `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null"))
    }

    fn count(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Self::count).sum(),
            Value::Map(entries) => entries.iter().map(|(key, value)| key.count() + value.count()).sum(),
        }
    }
}

/// Parses one file of the reporter's sources. `None`: it is not YAML, and that has been reported.
pub fn parse(reporter: &mut Reporter, file: u32) -> Option<Node> {
    let text = reporter.sources.text(file);
    match (Builder { file, text: &text, ..Builder::default() }).build() {
        Ok(node) => Some(node),
        Err(refusal) => {
            let mut diagnostic = reporter.error(refusal.code, refusal.span, refusal.message);
            if let Some(help) = refusal.help {
                diagnostic = diagnostic.help(help);
            }
            reporter.found.push(diagnostic);
            None
        }
    }
}

struct Refusal {
    code: &'static str,
    span: Span,
    message: String,
    help: Option<String>,
}

/// A collection that has begun.
struct Open {
    node: Node,
    anchor: usize,
    /// A mapping's key that waits for its value.
    key: Option<Node>,
}

#[derive(Default)]
struct Builder<'a> {
    file: u32,
    text: &'a str,
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    aliased: usize,
}

impl Builder<'_> {
    fn build(mut self) -> Result<Node, Refusal> {
        let options = options! {
            disallow_directives: true,
            emit_comments: false,
            flow_nesting_limit: MAX_DEPTH,
            block_nesting_limit: MAX_DEPTH,
        };
        let text = self.text;
        let mut documents = 0;
        for next in Parser::new_from_str_with_options(text, options) {
            let (event, place) = next.map_err(|error| self.syntax(*error.marker(), error.info()))?;
            let span = self.span(&place);
            if event.tag().is_some_and(|tag| !tag.is_yaml_core_schema_tag("str")) {
                return Err(refuse("yaml_tag", span, "a policy has no YAML tags").with("leave the `!…` out"));
            }
            match event {
                Event::DocumentStart(..) => {
                    documents += 1;
                    if documents > 1 {
                        return Err(refuse("several_documents", span, "a policy is one YAML document")
                            .with("put the rest into a file of its own and `include` it"));
                    }
                }
                Event::Scalar(text, style, anchor, _) => {
                    let plain = style == ScalarStyle::Plain;
                    let node = Node { value: Value::Scalar { text: text.into_owned(), plain }, span };
                    self.finish(node, anchor)?;
                }
                Event::SequenceStart(_, anchor, _) => self.begin(Value::List(Vec::new()), span, anchor)?,
                Event::MappingStart(_, anchor, _) => self.begin(Value::Map(Vec::new()), span, anchor)?,
                Event::SequenceEnd | Event::MappingEnd => {
                    if let Some(mut open) = self.open.pop() {
                        open.node.span.end = span.end.max(open.node.span.start);
                        self.finish(open.node, open.anchor)?;
                    }
                }
                Event::Alias(id) => {
                    let Some(target) = self.anchors.get(&id).cloned() else {
                        return Err(refuse("alias_cycle", span, "an alias inside the value that it stands for"));
                    };
                    let copied = target.count();
                    self.charge(copied, span)?;
                    self.nodes += copied - 1;
                    self.finish(Node { span, ..target }, 0)?;
                }
                _ => {}
            }
        }
        let end = Span { file: self.file, start: 0, end: 0 };
        Ok(self.root.unwrap_or(Node { value: Value::Scalar { text: String::new(), plain: true }, span: end }))
    }

    fn begin(&mut self, value: Value, span: Span, anchor: usize) -> Result<(), Refusal> {
        if self.open.len() >= MAX_DEPTH {
            return Err(refuse("too_deep", span, format!("nested more than {MAX_DEPTH} deep")));
        }
        self.open.push(Open { node: Node { value, span }, anchor, key: None });
        Ok(())
    }

    /// Puts a complete node where it belongs.
    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), Refusal> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(refuse("too_large", node.span, format!("more than {MAX_NODES} values"))
                .with("put long lists of addresses into a list file: `{ file: … }`"));
        }
        if anchor != 0 {
            self.charge(node.count(), node.span)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.node.value {
            Value::List(items) => items.push(node),
            Value::Map(entries) => match open.key.take() {
                None => open.key = Some(node),
                Some(key) => entries.push((key, node)),
            },
            Value::Scalar { .. } => {}
        }
        Ok(())
    }

    fn charge(&mut self, nodes: usize, span: Span) -> Result<(), Refusal> {
        self.aliased += nodes;
        if self.aliased > MAX_ALIASED {
            return Err(refuse(
                "too_many_aliases",
                span,
                format!("aliases that repeat more than {MAX_ALIASED} values"),
            )
            .with("name a group once and use its name"));
        }
        Ok(())
    }

    fn span(&self, place: &ParserSpan) -> Span {
        let range = place.byte_range().unwrap_or(0..0);
        let end = self.text.len();
        Span {
            file: self.file,
            start: range.start.min(end) as u32,
            end: range.end.clamp(range.start, end.max(range.start)) as u32,
        }
    }

    fn syntax(&self, at: Marker, message: String) -> Refusal {
        let start = at.byte_offset().unwrap_or(0).min(self.text.len());
        let line_begin = self.text.as_bytes()[..start].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let line = self.text[floor(self.text, line_begin)..].lines().next().unwrap_or("");
        let before = self.text[..floor(self.text, line_begin)].lines().next_back().unwrap_or("");
        let span = Span { file: self.file, start: start as u32, end: (start + 1).min(self.text.len()) as u32 };
        // The scanner stands on the line before one that a tab indents.
        if message.contains("tab")
            && let Some(tab) = self.indenting_tab(line_begin)
        {
            let span = Span { file: self.file, start: tab as u32, end: tab as u32 + 1 };
            return refuse("yaml_syntax", span, "not YAML: a tab as indentation")
                .with("indent with spaces, not with tabs");
        }
        let refusal = refuse("yaml_syntax", span, format!("not YAML: {message}"));
        if let Some(address) = [line, before].into_iter().find_map(unquoted_ipv6) {
            refusal.with(format!("quote it: \"{address}\" (YAML takes the colons of an IPv6 address for its own)"))
        } else {
            refusal
        }
    }
}

impl Builder<'_> {
    /// The first tab before a line's text, in the line that begins at `from` or one after it.
    fn indenting_tab(&self, from: usize) -> Option<usize> {
        let mut begin = floor(self.text, from);
        for line in self.text[begin..].split_inclusive('\n') {
            let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
            if let Some(tab) = line[..indent].find('\t') {
                return Some(begin + tab);
            }
            begin += line.len();
        }
        None
    }
}

fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn refuse(code: &'static str, span: Span, message: impl Into<String>) -> Refusal {
    Refusal { code, span, message: message.into(), help: None }
}

impl Refusal {
    fn with(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// An IPv6 address or network that stands in a line without quotes.
fn unquoted_ipv6(line: &str) -> Option<&str> {
    line.split([' ', '[', ']', ',', '{', '}', '\t']).find(|word| {
        let address = word.split('/').next().unwrap_or(word);
        word.matches(':').count() >= 2 && address.parse::<std::net::Ipv6Addr>().is_ok()
    })
}
