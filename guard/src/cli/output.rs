//! How everything is printed: colour that only adds, strings from outside made harmless, tables, times.

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

pub use crate::{
    record::clock::for_people as utc,
    text::{escape, escape_json, escape_line},
};

/// Writes a file that was not there, for its owner only, on disk before this returns.
pub fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {} (nothing is written over)", path.display()))
}

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// For standard output: colour on a terminal, unless `NO_COLOR` is set.
    #[must_use]
    pub fn stdout() -> Self {
        Self { colour: io::stdout().is_terminal() && colour_wanted() }
    }

    #[must_use]
    pub fn stderr() -> Self {
        Self { colour: io::stderr().is_terminal() && colour_wanted() }
    }

    #[must_use]
    pub const fn plain() -> Self {
        Self { colour: false }
    }

    #[must_use]
    pub const fn has_colour(self) -> bool {
        self.colour
    }

    #[must_use]
    pub fn error(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    #[must_use]
    pub fn warning(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    #[must_use]
    pub fn good(self, text: &str) -> String {
        self.paint("1;32", text)
    }

    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    #[must_use]
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// A verdict: `allow` green, `deny` red.
    #[must_use]
    pub fn verdict(self, verdict: guard_common::Verdict) -> String {
        match verdict {
            guard_common::Verdict::Allow => self.good("allow"),
            guard_common::Verdict::Deny => self.error("deny"),
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// <https://no-color.org>: set and not empty.
fn colour_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A table without borders, as wide as it needs to be.
#[must_use]
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(header.iter().copied());
    }
    table
}

/// An error and its causes on one line. Many errors here say their cause themselves: it is not said twice.
#[must_use]
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// One JSON object on one line. It may end at a terminal: what steers one, or turns text round, is written as JSON's escape.
pub fn json_line(value: &impl Serialize) -> io::Result<()> {
    let text = escape_json(&serde_json::to_string(value).map_err(io::Error::from)?);
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")
}

/// Writes text to standard output; a closed pipe is an error here, and none for the command.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if text.ends_with('\n') { out.flush() } else { out.write_all(b"\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let missing = || io::Error::from_raw_os_error(2);
        let said = anyhow::Error::new(missing()).context(format!("cannot use /none: {}", missing()));
        assert_eq!(chain(&said), "cannot use /none: No such file or directory (os error 2)");
        assert_eq!(chain(&anyhow::Error::new(missing()).context("a")), "a: No such file or directory (os error 2)");
    }

    #[test]
    fn plain_has_no_colour() {
        assert_eq!(Style::plain().error("x"), "x");
    }
}
