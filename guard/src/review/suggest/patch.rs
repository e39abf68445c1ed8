//! Proposed rules as a unified diff to a policy that a person wrote: lines are added, and nothing else is touched, so that
//! its comments and layout stay.

use std::fmt::Write as _;

use guard_common::Direction;

use super::write::{Suggestion, list_text};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("`{key}:` at line {line} is not written as a list with one rule a line: write it so, then ask again")]
    Layout { key: &'static str, line: usize },
}

/// Lines around a change.
const CONTEXT: usize = 3;

/// Some lines of the old text give way to others.
#[derive(Debug)]
struct Edit {
    /// Number of lines before it.
    at: usize,
    removed: usize,
    added: Vec<String>,
}

/// The policy with the rules in it, and the diff that makes it so. `path`: as the diff names it.
pub fn patch(old: &str, path: &str, suggestion: &Suggestion) -> Result<(String, String), PatchError> {
    let lines: Vec<&str> = old.split_inclusive('\n').collect();
    let mut edits = Vec::new();
    if !suggestion.lists.is_empty() {
        edits.push(add_to(&lines, "groups", |indent| suggestion.groups(indent), true)?);
    }
    for (key, direction) in [("inbound", Direction::Inbound), ("outbound", Direction::Outbound)] {
        if suggestion.rules.iter().any(|rule| rule.direction == direction) {
            edits.push(add_to(&lines, key, |indent| suggestion.rules_text(direction, indent), false)?);
        }
    }
    edits.sort_by_key(|edit| edit.at);
    let mut diff = String::new();
    for (file, nets) in suggestion.lists.values() {
        let name = match path.rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/{file}"),
            None => file.clone(),
        };
        let text = list_text(nets);
        let _ = writeln!(diff, "--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{} @@", text.lines().count());
        for line in text.lines() {
            let _ = writeln!(diff, "+{line}");
        }
    }
    if !edits.is_empty() {
        let _ = writeln!(diff, "--- a/{path}\n+++ b/{path}");
        hunks(&mut diff, &lines, &edits);
    }
    Ok((apply(&lines, &edits), diff))
}

/// Where and how lines are added under a key of the top level.
fn add_to(
    lines: &[&str],
    key: &'static str,
    text: impl Fn(&str) -> String,
    is_mapping: bool,
) -> Result<Edit, PatchError> {
    let added = |text: String| text.split_inclusive('\n').map(str::to_owned).collect::<Vec<_>>();
    let head = |line: &str| line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'));
    let Some(at) = lines.iter().position(|line| head(line)) else {
        let mut new = vec![format!("{key}:\n")];
        new.extend(added(text("  ")));
        // Groups are read first by people, too.
        let before = lines.iter().position(|line| line.starts_with("inbound") || line.starts_with("outbound"));
        let place = if is_mapping { before.unwrap_or(lines.len()) } else { end_of(lines) };
        return Ok(Edit { at: place, removed: 0, added: new });
    };
    let value = lines[at].split_once(':').map_or("", |(_, value)| value);
    let (value, comment) = match value.split_once(" #") {
        Some((value, comment)) => (value.trim(), Some(comment.trim_end())),
        None if value.trim_start().starts_with('#') => ("", None),
        None => (value.trim(), None),
    };
    match value {
        "" => {}
        "[]" | "{}" => {
            let comment = comment.map(|comment| format!("   #{comment}")).unwrap_or_default();
            let mut new = vec![format!("{key}:{comment}\n")];
            new.extend(added(text("  ")));
            return Ok(Edit { at, removed: 1, added: new });
        }
        _ => return Err(PatchError::Layout { key, line: at + 1 }),
    }
    // What belongs to the key is indented, or begins with the list's dash.
    let mut last = at;
    let mut indent = None;
    for (number, line) in lines.iter().enumerate().skip(at + 1) {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let inside = line.starts_with(' ') || (!is_mapping && line.starts_with('-'));
        if !inside {
            break;
        }
        last = number;
        let depth = line.len() - line.trim_start().len();
        if indent.is_none() {
            if !is_mapping && !trimmed.starts_with('-') {
                return Err(PatchError::Layout { key, line: at + 1 });
            }
            indent = Some(depth);
        }
    }
    let indent = " ".repeat(indent.unwrap_or(2));
    Ok(Edit { at: last + 1, removed: 0, added: added(text(&indent)) })
}

/// Before the comments and blank lines that end the file.
fn end_of(lines: &[&str]) -> usize {
    lines.len()
}

fn apply(lines: &[&str], edits: &[Edit]) -> String {
    let mut text = String::new();
    let mut at = 0;
    for edit in edits {
        lines[at..edit.at].iter().for_each(|line| push_line(&mut text, line));
        edit.added.iter().for_each(|line| push_line(&mut text, line));
        at = edit.at + edit.removed;
    }
    lines[at..].iter().for_each(|line| text.push_str(line));
    text
}

/// A last line without its end gets one before another follows.
fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    if !line.ends_with('\n') {
        text.push('\n');
    }
}

fn hunks(diff: &mut String, lines: &[&str], edits: &[Edit]) {
    let mut next = 0;
    let mut shift: isize = 0;
    while next < edits.len() {
        let first = next;
        let mut end = edits[first].at + edits[first].removed;
        next += 1;
        while next < edits.len() && edits[next].at <= end + 2 * CONTEXT {
            end = edits[next].at + edits[next].removed;
            next += 1;
        }
        let from = edits[first].at.saturating_sub(CONTEXT);
        let to = (end + CONTEXT).min(lines.len());
        let mut body = String::new();
        let (mut old_count, mut new_count) = (0, 0);
        let mut at = from;
        for edit in &edits[first..next] {
            for line in &lines[at..edit.at] {
                let bare = !line.ends_with('\n');
                if bare {
                    // The old last line had no end; the new one has.
                    let _ = writeln!(body, "-{line}\n\\ No newline at end of file\n+{line}");
                } else {
                    let _ = write!(body, " {line}");
                }
                (old_count, new_count) = (old_count + 1, new_count + 1);
            }
            for line in &lines[edit.at..edit.at + edit.removed] {
                let _ = write!(body, "-{line}");
                if !line.ends_with('\n') {
                    body.push_str("\n\\ No newline at end of file\n");
                }
                old_count += 1;
            }
            for line in &edit.added {
                let _ = write!(body, "+{line}");
                new_count += 1;
            }
            at = edit.at + edit.removed;
        }
        for line in &lines[at..to] {
            let _ = write!(body, " {line}");
            if !line.ends_with('\n') {
                body.push_str("\n\\ No newline at end of file\n");
            }
            (old_count, new_count) = (old_count + 1, new_count + 1);
        }
        let start = |count: usize, at: isize| if count == 0 { at } else { at + 1 };
        let _ = write!(
            diff,
            "@@ -{},{old_count} +{},{new_count} @@\n{body}",
            start(old_count, from as isize),
            start(new_count, from as isize + shift)
        );
        shift += new_count as isize - old_count as isize;
    }
}
