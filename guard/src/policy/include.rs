//! The files of a policy: the one that is named and what it includes, each read once, includes first.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{
    diagnostics::{Diagnostic, Level, Reporter},
    files::{self, FileError},
    lists::{self, List},
    read,
    source::{Span, Text},
    syntax::Document,
    yaml,
};

/// Longest chain of includes.
const MAX_DEPTH: usize = 8;
/// Most files, lists too.
const MAX_FILES: usize = 256;

/// A policy's files, read.
#[derive(Debug, Default)]
pub struct Files {
    pub reporter: Reporter,
    /// Includes before those that include them; the last is the policy itself.
    pub documents: Vec<Document>,
    /// In the order in which they were named: the policy first.
    pub paths: Vec<Arc<PathBuf>>,
    digests: Vec<[u8; 32]>,
    seen: HashSet<PathBuf>,
    /// What is being read now: the file, and where it was included.
    chain: Vec<(PathBuf, Option<Span>)>,
}

impl Files {
    /// Reads the policy and all that it includes.
    pub fn read(&mut self, path: &Path) {
        match files::read_text(path) {
            Ok(text) => self.document(path, text, None),
            Err(error) => self.report_unreadable(&error, None),
        }
    }

    /// The same with the policy's own text at hand; what it names is relative to `path`.
    pub fn read_str(&mut self, path: &Path, text: &str) {
        self.document(path, text.to_owned(), None);
    }

    fn document(&mut self, path: &Path, text: String, included_at: Option<Span>) {
        self.digests.push(Sha256::digest(text.as_bytes()).into());
        let shared = Arc::new(path.to_owned());
        self.paths.push(Arc::clone(&shared));
        let file = self.reporter.sources.add(shared, text.into());
        let Some(root) = yaml::parse(&mut self.reporter, file) else { return };
        let Some(document) = read::read(&mut self.reporter, &root) else { return };
        drop(root);
        self.chain.push((identity(path), included_at));
        for include in &document.include {
            self.include(path, include);
        }
        self.chain.pop();
        self.documents.push(document);
    }

    fn include(&mut self, from: &Path, include: &Text) {
        let path = relative_to(from, &include.value);
        let identity = identity(&path);
        if let Some(at) = self.chain.iter().position(|(file, _)| *file == identity) {
            let mut diagnostic = self.reporter.error("include_cycle", include.span, "a file that includes itself");
            for (_, place) in &self.chain[at + 1..] {
                if let Some(span) = place {
                    diagnostic = diagnostic.also(self.reporter.sources.excerpt(*span), "by way of this");
                }
            }
            let diagnostic =
                diagnostic.label("is being read already").help("take one of the includes out of the circle");
            self.reporter.found.push(diagnostic);
            return;
        }
        // Two ways to one file are no mistake: a union holds it once.
        if self.seen.contains(&identity) {
            return;
        }
        if self.chain.len() >= MAX_DEPTH || !self.room() {
            let diagnostic = self
                .reporter
                .error("too_many_includes", include.span, "too many included files")
                .help(format!("at most {MAX_DEPTH} deep and {MAX_FILES} files in all"));
            self.reporter.found.push(diagnostic);
            return;
        }
        self.seen.insert(identity);
        match files::read_text(&path) {
            Ok(text) => self.document(&path, text, Some(include.span)),
            Err(error) => self.report_unreadable(&error, Some(include.span)),
        }
    }

    /// Reads a list file that is named at `path`. `None`: it cannot be read, which has been reported.
    pub fn list(&mut self, path: &Text) -> Option<List> {
        if !self.room() {
            let diagnostic = self.reporter.error("too_many_files", path.span, "too many files");
            self.reporter.found.push(diagnostic.help(format!("at most {MAX_FILES} in all")));
            return None;
        }
        let from = self.reporter.sources.path(path.span.file);
        let full = Arc::new(relative_to(&from, &path.value));
        let list = files::open(&full).and_then(|file| {
            lists::read(file, &full).map_err(|source| FileError::Io { path: full.as_ref().clone(), source })
        });
        let mut list = match list {
            Ok(list) => list,
            Err(error) => {
                self.report_unreadable(&error, Some(path.span));
                return None;
            }
        };
        self.digests.push(list.sha256);
        self.paths.push(Arc::clone(&full));
        for error in list.errors.drain(..) {
            self.reporter.found.push(error.also(self.reporter.sources.excerpt(path.span), "the list is named here"));
        }
        self.reporter.found.left_out += list.more_errors;
        Some(list)
    }

    /// Of one file its own SHA-256, as `sha256sum` prints it; of several that of their digests, in reading order.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        match self.digests.as_slice() {
            [only] => *only,
            many => many.iter().fold(Sha256::new(), |hash, digest| hash.chain_update(digest)).finalize().into(),
        }
    }

    fn room(&self) -> bool {
        self.paths.len() < MAX_FILES
    }

    fn report_unreadable(&mut self, error: &FileError, named_at: Option<Span>) {
        let code = match error {
            FileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => "file_missing",
            FileError::Writable { .. } => "file_writable",
            _ => "file_unreadable",
        };
        let message = match error {
            FileError::Io { path, source } if source.kind() == io::ErrorKind::NotFound => {
                format!("there is no file {}", path.display())
            }
            error => error.to_string(),
        };
        let excerpt = named_at.map(|span| self.reporter.sources.excerpt(span));
        let label = if excerpt.is_some() { "named here" } else { "" };
        self.reporter.found.push(Diagnostic {
            level: Level::Error,
            code,
            message,
            excerpt,
            label: label.to_owned(),
            also: Vec::new(),
            help: Some(error.help()),
        });
    }
}

/// What two names of one file have in common.
fn identity(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn relative_to(from: &Path, path: &str) -> PathBuf {
    from.parent().unwrap_or(Path::new("")).join(path)
}
