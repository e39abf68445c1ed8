//! What is wrong with a policy, and where: one type for errors and warnings, shown to people through
//! `annotate-snippets` and to programs as JSON.
//!
//! A diagnostic carries the lines it speaks of, so that it outlives the files: list files are streams.

use std::{fmt, ops::Range, path::PathBuf, sync::Arc};

use annotate_snippets::{AnnotationKind, Level as RenderLevel, Renderer, Snippet, renderer::DecorStyle};
use serde::Serialize;

use super::{model::Place, source::Span};
use crate::text::{escape, escape_line};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The policy cannot be used.
    Error,
    /// It can, but is probably not what was meant.
    Warning,
}

/// A place with the line that stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    pub place: Place,
    /// The line, or a window of a very long one.
    pub line: String,
    /// What is underlined, in bytes of `line`.
    pub marked: Range<usize>,
    /// Column after the last marked character; 1-based, in characters.
    pub end_column: u32,
}

impl Excerpt {
    /// Longest part of a line that is kept.
    const WINDOW: usize = 240;

    /// `text` is the whole line, `marked` the bytes of it that are meant.
    #[must_use]
    pub fn new(file: Arc<PathBuf>, line: u32, text: &str, marked: Range<usize>) -> Self {
        let start = floor(text, marked.start.min(text.len()));
        let end = floor(text, marked.end.clamp(start, text.len()));
        let column = count(&text[..start]) + 1;
        let end_column = column + count(&text[start..end]);
        // Of a long line, what surrounds the mark.
        let from = if text.len() <= Self::WINDOW { 0 } else { floor(text, start.saturating_sub(Self::WINDOW / 3)) };
        let to = floor(text, (from + Self::WINDOW).min(text.len()));
        Self {
            place: Place { file, line, column },
            line: text[from..to].to_owned(),
            marked: start - from..end.clamp(start, to.max(start)) - from,
            end_column,
        }
    }

    #[must_use]
    pub fn marked_text(&self) -> &str {
        &self.line[self.marked.clone()]
    }
}

fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn count(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX)
}

/// One error or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub level: Level,
    /// Stable, for programs: `unknown_key`.
    pub code: &'static str,
    pub message: String,
    /// `None` only where there is no file to show (it cannot be read at all).
    pub excerpt: Option<Excerpt>,
    /// Beside the underline.
    pub label: String,
    /// Other places that belong to it, each with what it is.
    pub also: Vec<(Excerpt, String)>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    #[must_use]
    pub fn also(mut self, excerpt: Excerpt, what: impl Into<String>) -> Self {
        self.also.push((excerpt, what.into()));
        self
    }

    fn render(&self, renderer: &Renderer) -> String {
        let level = match self.level {
            Level::Error => RenderLevel::ERROR,
            Level::Warning => RenderLevel::WARNING,
        };
        let mut group =
            level.primary_title(escape_line(&self.message)).elements(Vec::<annotate_snippets::Element<'_>>::new());
        if let Some(excerpt) = &self.excerpt {
            group = group.element(snippet(excerpt, &self.label, AnnotationKind::Primary));
        }
        for (excerpt, what) in &self.also {
            group = group.element(snippet(excerpt, what, AnnotationKind::Context));
        }
        if let Some(help) = &self.help {
            group = group.element(RenderLevel::HELP.message(escape(help)));
        }
        renderer.render(&[group])
    }

    fn json(&self) -> DiagnosticJson<'_> {
        DiagnosticJson {
            level: self.level,
            code: self.code,
            message: &self.message,
            at: self.excerpt.as_ref().map(PlaceJson::new),
            label: &self.label,
            help: self.help.as_deref(),
            also: self
                .also
                .iter()
                .map(|(excerpt, what)| AlsoJson { at: PlaceJson::new(excerpt), message: what })
                .collect(),
        }
    }
}

/// The line with what could steer a terminal made visible, and the mark moved with it.
fn snippet<'a>(
    excerpt: &'a Excerpt,
    label: &str,
    kind: AnnotationKind,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let (start, end) = (excerpt.marked.start, excerpt.marked.end);
    let before = escape(&excerpt.line[..start]);
    let marked = escape(&excerpt.line[start..end]);
    let after = escape(&excerpt.line[end..]);
    let span = before.len()..before.len() + marked.len();
    let annotation = kind.span(span);
    let annotation = if label.is_empty() { annotation } else { annotation.label(escape_line(label)) };
    Snippet::source(format!("{before}{marked}{after}"))
        .line_start(excerpt.place.line as usize)
        .path(escape_line(&excerpt.place.file.display().to_string()))
        .annotation(annotation)
}

/// Everything that is wrong with a policy, errors and warnings.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.summary())]
pub struct Diagnostics {
    pub list: Vec<Diagnostic>,
    /// Found, but too many to keep.
    pub left_out: usize,
}

impl Diagnostics {
    /// More than anyone reads; a hostile file must not fill the memory with them.
    const MAX: usize = 500;

    /// Adds one; the same mistake reached by two ways (a service that two rules name) counts once.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        if self.list.len() >= Self::MAX {
            self.left_out += 1;
        } else if !self.list.contains(&diagnostic) {
            self.list.push(diagnostic);
        }
    }

    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.level == Level::Error)
    }

    pub fn of(&self, level: Level) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter().filter(move |d| d.level == level)
    }

    /// `2 errors, 1 warning`.
    #[must_use]
    pub fn summary(&self) -> String {
        let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let (errors, warnings) = (self.of(Level::Error).count(), self.of(Level::Warning).count());
        let mut parts = Vec::new();
        if errors > 0 {
            parts.push(plural(errors, "error"));
        }
        if warnings > 0 {
            parts.push(plural(warnings, "warning"));
        }
        if self.left_out > 0 {
            parts.push(format!("{} more not shown", self.left_out));
        }
        if parts.is_empty() { "no errors, no warnings".to_owned() } else { parts.join(", ") }
    }

    /// For people: every diagnostic with its line, underlined. Errors first, each kind in order of place.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let mut text = String::new();
        for diagnostic in &self.list {
            text.push_str(&diagnostic.render(&renderer));
            text.push_str("\n\n");
        }
        text
    }

    /// For programs: objects with `level`, `code`, `message`, `file`, `line`, `column`, `end_column`, `text`, `label`,
    /// `help`, `also`.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!(self.list.iter().map(Diagnostic::json).collect::<Vec<_>>())
    }

    /// Errors before warnings, each by file (in the order in which they were first named) and place.
    pub(super) fn sort(&mut self) {
        let mut files: Vec<Arc<PathBuf>> = Vec::new();
        for excerpt in self.list.iter().filter_map(|d| d.excerpt.as_ref()) {
            if !files.contains(&excerpt.place.file) {
                files.push(Arc::clone(&excerpt.place.file));
            }
        }
        self.list.sort_by_key(|d| {
            let place = d
                .excerpt
                .as_ref()
                .map(|e| (files.iter().position(|file| *file == e.place.file), e.place.line, e.place.column));
            (d.level, place)
        });
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

#[derive(Serialize)]
struct DiagnosticJson<'a> {
    level: Level,
    code: &'static str,
    message: &'a str,
    #[serde(flatten)]
    at: Option<PlaceJson<'a>>,
    label: &'a str,
    help: Option<&'a str>,
    also: Vec<AlsoJson<'a>>,
}

#[derive(Serialize)]
struct AlsoJson<'a> {
    #[serde(flatten)]
    at: PlaceJson<'a>,
    message: &'a str,
}

#[derive(Serialize)]
struct PlaceJson<'a> {
    file: String,
    line: u32,
    column: u32,
    end_column: u32,
    text: &'a str,
}

impl<'a> PlaceJson<'a> {
    fn new(excerpt: &'a Excerpt) -> Self {
        Self {
            file: excerpt.place.file.display().to_string(),
            line: excerpt.place.line,
            column: excerpt.place.column,
            end_column: excerpt.end_column,
            text: excerpt.marked_text(),
        }
    }
}

/// Collects diagnostics about files whose text is at hand.
#[derive(Debug, Default)]
pub struct Reporter {
    pub sources: super::source::Sources,
    pub found: Diagnostics,
}

impl Reporter {
    #[must_use]
    pub fn make(&self, level: Level, code: &'static str, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            level,
            code,
            message: message.into(),
            excerpt: Some(self.sources.excerpt(span)),
            label: String::new(),
            also: Vec::new(),
            help: None,
        }
    }

    #[must_use]
    pub fn error(&self, code: &'static str, span: Span, message: impl Into<String>) -> Diagnostic {
        self.make(Level::Error, code, span, message)
    }

    #[must_use]
    pub fn warning(&self, code: &'static str, span: Span, message: impl Into<String>) -> Diagnostic {
        self.make(Level::Warning, code, span, message)
    }
}

/// The known word nearest to what was written, if one is near enough to be what was meant.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(&written, word), word))
        .filter(|(distance, word)| *distance <= (word.len().max(written.len()) / 3).max(1))
        .min()
        .map(|(_, word)| word)
}
