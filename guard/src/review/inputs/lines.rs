//! Lines of bounded length.

use std::io::{self, BufRead};

/// An EVE record with a payload is the longest that is written in earnest.
const MAX_LINE: usize = 1 << 20;

pub struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    number: u64,
}

/// One line, without its end.
pub enum Line<'a> {
    Whole(&'a [u8]),
    /// Longer than [`MAX_LINE`]; skipped.
    TooLong,
}

impl<R: BufRead> Lines<R> {
    pub const fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), number: 0 }
    }

    /// 1-based, of the line read last.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// `None` at the end.
    pub fn next_line(&mut self) -> Option<io::Result<Line<'_>>> {
        self.line.clear();
        let mut long = false;
        let mut any = false;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Some(Err(error)),
            };
            if available.is_empty() {
                if !any {
                    return None;
                }
                break;
            }
            any = true;
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            long |= self.line.len() + part.len() > MAX_LINE;
            if !long {
                self.line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                break;
            }
        }
        self.number += 1;
        if long {
            self.line.clear();
            return Some(Ok(Line::TooLong));
        }
        Some(Ok(Line::Whole(self.line.trim_ascii_end())))
    }
}

/// Hands every line that can be read to `each`, which says what is wrong with it. What ended the reading early, if
/// anything.
pub fn each(
    lines: &mut Lines<impl BufRead>,
    summary: &mut super::Summary,
    mut each: impl FnMut(&[u8], &mut super::Summary) -> Result<(), String>,
) -> Option<io::Error> {
    loop {
        let number = lines.number() + 1;
        let problem = match lines.next_line()? {
            Err(error) => return Some(error),
            Ok(Line::TooLong) => Err(format!("it is longer than {MAX_LINE} bytes")),
            Ok(Line::Whole(line)) if line.trim_ascii().is_empty() => continue,
            Ok(Line::Whole(line)) => {
                summary.read += 1;
                each(line, summary)
            }
        };
        if let Err(why) = problem {
            summary.bad_line(number, why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_skipped_and_the_next_is_read() {
        let mut text = vec![b'x'; MAX_LINE + 5];
        text.extend(b"\nnext\r\nlast");
        let mut lines = Lines::new(io::BufReader::with_capacity(64, text.as_slice()));
        assert!(matches!(lines.next_line(), Some(Ok(Line::TooLong))));
        assert!(matches!(lines.next_line(), Some(Ok(Line::Whole(b"next")))));
        assert!(matches!(lines.next_line(), Some(Ok(Line::Whole(b"last")))));
        assert_eq!(lines.number(), 3);
        assert!(lines.next_line().is_none());
    }
}
