//! Text from outside (a policy, a process's arguments, a packet) made harmless before people see it.

use std::fmt::Write as _;

/// Makes everything visible that could steer a terminal or reorder what is read: control characters except newline and
/// tab, and Unicode's bidirectional and invisible format characters.
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

/// The same for what is only read: each such character becomes U+FFFD, newline and tab too.
#[must_use]
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// JSON that means the same, without such characters: outside of strings it has none.
#[must_use]
pub fn escape_json(json: &str) -> String {
    let mut harmless = String::with_capacity(json.len());
    for c in json.chars() {
        if steers(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(harmless, "\\u{unit:04x}");
            }
        } else {
            harmless.push(c);
        }
    }
    harmless
}

fn steers(c: char) -> bool {
    c.is_control()
        // No characters at all (Unicode 23.7); YAML and XML take the first plane's for damage.
        || c as u32 & 0xfffe == 0xfffe
        || matches!(c, '\u{fdd0}'..='\u{fdef}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_steers_the_terminal() {
        assert_eq!(escape("a\x1b[2Jb\u{202e}c\r"), "a\\u{1b}[2Jb\\u{202e}c\\u{d}");
        assert_eq!(escape_line("two\nlines"), "two\\nlines");
        assert_eq!(harmless("a\x1b[2Jb\u{202e}c\n"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
        assert_eq!(escape("naïve → fine\n"), "naïve → fine\n");
        let json = serde_json::to_string(&["a\u{9b}31m\u{202e}\u{10ffff}\n\u{1b}é"]).unwrap();
        assert_eq!(escape_json(&json), r#"["a\u009b31m\u202e\udbff\udfff\n\u001bé"]"#);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&escape_json(&json)).unwrap(),
            serde_json::from_str::<serde_json::Value>(&json).unwrap()
        );
    }
}
