//! The texts of a policy's YAML files, and places in them.

use std::{path::PathBuf, sync::Arc};

use super::{diagnostics::Excerpt, model::Place};

/// A part of one of the [`Sources`], in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Index into the sources.
    pub file: u32,
    pub start: u32,
    pub end: u32,
}

impl Span {
    /// From the start of `self` to the end of `other`.
    #[must_use]
    pub const fn to(self, other: Self) -> Self {
        Self { end: other.end, ..self }
    }
}

/// A value with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    pub value: T,
    pub span: Span,
}

/// The most common: a scalar, as written.
pub type Text = At<String>;

#[derive(Clone, Debug)]
struct Source {
    path: Arc<PathBuf>,
    text: Arc<str>,
    /// Byte where each line begins.
    lines: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
pub struct Sources {
    list: Vec<Source>,
}

impl Sources {
    /// `text` must be shorter than 4 GiB ([`super::include`] bounds it far below).
    pub fn add(&mut self, path: Arc<PathBuf>, text: Arc<str>) -> u32 {
        let breaks = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at as u32 + 1);
        let lines = std::iter::once(0).chain(breaks).collect();
        self.list.push(Source { path, text, lines });
        self.list.len() as u32 - 1
    }

    #[must_use]
    pub fn path(&self, file: u32) -> Arc<PathBuf> {
        Arc::clone(&self.list[file as usize].path)
    }

    #[must_use]
    pub fn text(&self, file: u32) -> Arc<str> {
        Arc::clone(&self.list[file as usize].text)
    }

    /// What the span covers, as written.
    #[must_use]
    pub fn slice(&self, span: Span) -> &str {
        self.list[span.file as usize].text.get(span.start as usize..span.end as usize).unwrap_or("")
    }

    #[must_use]
    pub fn place(&self, span: Span) -> Place {
        self.excerpt(span).place
    }

    /// The first line of what the span covers.
    #[must_use]
    pub fn excerpt(&self, span: Span) -> Excerpt {
        let source = &self.list[span.file as usize];
        let number = source.lines.partition_point(|start| *start <= span.start).max(1);
        let begin = source.lines[number - 1] as usize;
        let end = source.lines.get(number).map_or(source.text.len(), |next| *next as usize);
        let line = source.text[begin..end].trim_end_matches(['\n', '\r']);
        let start = (span.start as usize - begin).min(line.len());
        let marked = start..(span.end as usize).saturating_sub(begin).clamp(start, line.len());
        Excerpt::new(Arc::clone(&source.path), number as u32, line, marked)
    }
}
