//! A section's buffer: JSON lines in ASCII, bounded.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use serde_json::{Map, Value, ser::Formatter};

use super::{Outcome, Section};

/// Of one section. What comes after is counted, not kept.
const MOST_BYTES: usize = 64 << 20;

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    lines: usize,
    suspicious: usize,
    left_out: usize,
    notes: Vec<String>,
}

/// Written by the section's thread, and read by whoever closes the snapshot, whether that thread has ended or not.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Buffer>>);

impl Lines {
    /// One line. A `suspicious` list that is not empty counts as a mark.
    pub fn put(&self, value: &Value) {
        let marked = value.get("suspicious").and_then(Value::as_array).is_some_and(|marks| !marks.is_empty());
        let line = ascii(value);
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.bytes.len() + line.len() >= MOST_BYTES {
            buffer.left_out += 1;
            return;
        }
        buffer.bytes.extend_from_slice(&line);
        buffer.bytes.push(b'\n');
        buffer.lines += 1;
        buffer.suspicious += usize::from(marked);
    }

    /// What could not be seen, in a sentence: the section is partial by it.
    pub fn note(&self, note: impl Into<String>) {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.notes.len() < 100 {
            buffer.notes.push(note.into());
        }
    }

    /// `result`: how it ended, `None` if it has not.
    pub fn close(&self, name: &'static str, result: Option<Result<(), String>>, took: Duration) -> Section {
        let mut buffer = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if buffer.left_out > 0 {
            buffer
                .notes
                .push(format!("{} further lines were left out: the section has {MOST_BYTES} bytes", buffer.left_out));
        }
        let (outcome, error) = match result {
            Some(Ok(())) if buffer.notes.is_empty() => (Outcome::Complete, None),
            Some(Ok(())) => (Outcome::Partial, None),
            Some(Err(error)) => (Outcome::Failed, Some(error)),
            None => (Outcome::TimedOut, Some("did not end in time; its lines so far are kept".to_owned())),
        };
        Section {
            name,
            outcome,
            error,
            notes: buffer.notes,
            bytes: buffer.bytes,
            lines: buffer.lines,
            suspicious: buffer.suspicious,
            took,
        }
    }
}

/// A string of bytes that somebody else chose. Where they are not UTF-8, `NAME_base64` has them exactly.
pub fn put_text(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    if std::str::from_utf8(bytes).is_err() {
        use base64::Engine as _;
        object.insert(format!("{name}_base64"), base64::engine::general_purpose::STANDARD.encode(bytes).into());
    }
    object.insert(name.to_owned(), String::from_utf8_lossy(bytes).into());
}

/// JSON without a byte that is not printable ASCII.
#[must_use]
pub fn ascii(value: &impl Serialize) -> Vec<u8> {
    let mut line = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut line, Ascii);
    // Maps with string keys, written to memory: nothing here can fail.
    let _ = value.serialize(&mut serializer);
    line
}

struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for c in fragment.chars() {
            if matches!(c, ' '..='~') {
                writer.write_all(&[c as u8])?;
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_it_holds_a_line_is_ascii_and_comes_back() {
        let value = serde_json::json!({ "comm": "a\x1b[2J\u{202e}b\n\u{7f}\u{1f600}\"\\", "\u{9b}": 1 });
        let line = ascii(&value);
        assert!(line.iter().all(|byte| matches!(byte, b' '..=b'~')), "{}", String::from_utf8_lossy(&line));
        assert_eq!(serde_json::from_slice::<Value>(&line).unwrap(), value);
    }

    #[test]
    fn bytes_that_are_no_text_are_kept() {
        let mut object = Map::new();
        put_text(&mut object, "exe", b"/tmp/\xff");
        assert_eq!(Value::from(object), serde_json::json!({ "exe": "/tmp/\u{fffd}", "exe_base64": "L3RtcC//" }));
    }

    #[test]
    fn what_has_not_ended_keeps_its_lines() {
        let lines = Lines::default();
        lines.put(&serde_json::json!({ "suspicious": ["x"] }));
        lines.put(&serde_json::json!({ "suspicious": [] }));
        let section = lines.close("x", None, Duration::ZERO);
        assert_eq!((section.outcome, section.lines, section.suspicious), (Outcome::TimedOut, 2, 1));
    }
}
