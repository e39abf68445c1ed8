//! How everything is printed: colour that only adds, strings from outside made harmless, tables, times.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

pub use crate::record::clock::for_people as utc;

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

/// Text from outside (a policy, a process's arguments, a packet) with everything made visible that could steer a
/// terminal or reorder what is read: control characters except newline and tab, and Unicode's bidirectional and
/// invisible format characters.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => harmless.push(c),
            c if steers(c) => {
                let _ = write!(harmless, "\\u{{{:x}}}", c as u32);
            }
            c => harmless.push(c),
        }
    }
    harmless
}

/// [`escape`], on one line.
#[must_use]
pub fn escape_line(text: &str) -> String {
    escape(text).replace('\n', "\\n").replace('\t', "\\t")
}

fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
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

/// One JSON object on one line.
pub fn json_line(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
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
    fn nothing_from_outside_steers_the_terminal() {
        assert_eq!(escape("a\x1b[2Jb\u{202e}c\r"), "a\\u{1b}[2Jb\\u{202e}c\\u{d}");
        assert_eq!(escape_line("two\nlines"), "two\\nlines");
        assert_eq!(escape("naïve → fine\n"), "naïve → fine\n");
    }

    #[test]
    fn plain_has_no_colour() {
        assert_eq!(Style::plain().error("x"), "x");
    }
}
