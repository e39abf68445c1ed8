//! List files: one address or CIDR a line, `#` begins a comment. Read as streams: a million lines cost their ranges and
//! no more.

use std::{
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{
    addresses::{self, Range},
    diagnostics::{Diagnostic, Excerpt, Level},
    model::AddressSet,
};

/// Longest line; an address with a comment is far shorter.
const MAX_LINE: usize = 4096;
/// Most addresses and networks in one list.
const MAX_ENTRIES: usize = 8_000_000;
/// Bad lines that are reported of one file.
const MAX_BAD: usize = 20;

/// What a list holds.
#[derive(Debug, Default)]
pub struct List {
    pub set: AddressSet,
    /// Addresses and networks read, before they were merged.
    pub entries: usize,
    /// Those that exist only in documents.
    pub documentation: usize,
    pub sha256: [u8; 32],
    pub errors: Vec<Diagnostic>,
    /// Bad lines beyond those in `errors`.
    pub more_errors: usize,
}

/// Reads a list to its end.
pub fn read(file: impl Read, path: &Arc<PathBuf>) -> io::Result<List> {
    let mut list = List::default();
    let mut hash = Sha256::new();
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let mut line = Vec::new();
    let mut number = 0u32;
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        number = number.saturating_add(1);
        hash.update(&line);
        if read > MAX_LINE {
            list.refuse(
                path,
                number,
                "",
                0..0,
                "long_line",
                format!("a line of more than {MAX_LINE} bytes"),
                "one address or CIDR a line",
            );
            break;
        }
        let text = content(&line);
        if text.is_empty() {
            continue;
        }
        if list.entries >= MAX_ENTRIES {
            list.refuse(
                path,
                number,
                "",
                0..0,
                "too_many_entries",
                format!("more than {MAX_ENTRIES} entries"),
                "sum neighbouring addresses up to networks",
            );
            break;
        }
        match range(text) {
            Some(Range::V4(first, last)) => v4.push((first, last)),
            Some(Range::V6(first, last)) => v6.push((first, last)),
            None => {
                list.bad_line(path, number, &line, text);
                continue;
            }
        }
        list.entries += 1;
    }
    list.documentation = documentation(&v4, &v6);
    list.set = AddressSet::from_ranges(v4, v6);
    list.sha256 = hash.finalize().into();
    Ok(list)
}

/// A line without comment and surrounding space.
fn content(line: &[u8]) -> &[u8] {
    let end = line.iter().position(|b| *b == b'#').unwrap_or(line.len());
    line[..end].trim_ascii()
}

/// The usual line without a detour over strings; everything else by the parser that the policy itself uses.
fn range(text: &[u8]) -> Option<Range> {
    if let Some((first, last)) = plain_v4(text) {
        return Some(Range::V4(first, last));
    }
    addresses::parse(std::str::from_utf8(text).ok()?).ok().map(addresses::range)
}

/// `a.b.c.d` or `a.b.c.d/n`, canonical; `None` sends the line to the slow parser.
fn plain_v4(text: &[u8]) -> Option<(u32, u32)> {
    let mut octets = [0u32; 5];
    let (mut at, mut digits) = (0, 0);
    let mut slash = false;
    for &byte in text {
        match byte {
            b'0'..=b'9' => {
                if digits > 0 && octets[at] == 0 {
                    return None;
                }
                digits += 1;
                octets[at] = octets[at] * 10 + u32::from(byte - b'0');
                if octets[at] > 255 {
                    return None;
                }
            }
            b'.' if digits > 0 && at < 3 => (at, digits) = (at + 1, 0),
            b'/' if digits > 0 && at == 3 => (at, digits, slash) = (4, 0, true),
            _ => return None,
        }
    }
    if digits == 0 || at < 3 || octets[4] > 32 {
        return None;
    }
    let first = octets[0] << 24 | octets[1] << 16 | octets[2] << 8 | octets[3];
    let host = if slash { u32::MAX.checked_shr(octets[4]).unwrap_or(0) } else { 0 };
    (first & host == 0).then_some((first, first | host))
}

fn documentation(v4: &[(u32, u32)], v6: &[(u128, u128)]) -> usize {
    const V4: [u32; 3] = [0xc000_0200, 0xc633_6400, 0xcb00_7100];
    let v4 = v4.iter().filter(|(first, last)| V4.contains(&(first & !0xff)) && last - first < 256).count();
    let v6 = v6.iter().filter(|(first, last)| first >> 96 == 0x2001_0db8 && last >> 96 == 0x2001_0db8).count();
    v4 + v6
}

impl List {
    fn bad_line(&mut self, path: &Arc<PathBuf>, number: u32, line: &[u8], content: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches(['\n', '\r']);
        let content = String::from_utf8_lossy(content);
        let start = line.find(content.as_ref()).unwrap_or(0);
        let marked = start..start + content.len();
        match addresses::parse(&content) {
            Ok(_) => self.refuse(path, number, line, marked, "bad_list_line", "not an address".to_owned(), ""),
            Err(bad) => self.refuse(path, number, line, marked, bad.code, bad.message, &bad.help),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one place, one message")]
    fn refuse(
        &mut self,
        path: &Arc<PathBuf>,
        number: u32,
        line: &str,
        marked: std::ops::Range<usize>,
        code: &'static str,
        message: String,
        help: &str,
    ) {
        if self.errors.len() >= MAX_BAD {
            self.more_errors += 1;
            return;
        }
        self.errors.push(Diagnostic {
            level: Level::Error,
            code,
            message,
            excerpt: Some(Excerpt::new(Arc::clone(path), number, line, marked)),
            label: String::new(),
            also: Vec::new(),
            help: (!help.is_empty()).then(|| help.to_owned()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> List {
        read(text.as_bytes(), &Arc::new(PathBuf::from("list.txt"))).unwrap()
    }

    #[test]
    fn reads_addresses_networks_and_comments() {
        let list = list("# mirrors\n192.0.2.1\n 198.51.100.0/24  # all of it\r\n\n2001:db8::/32\n0.0.0.0/0 # no end");
        assert!(list.errors.is_empty());
        assert_eq!(list.entries, 4);
        assert_eq!(list.set.v4, [(0, u32::MAX)]);
        assert_eq!(list.set.v6.len(), 1);
        assert_eq!(list.documentation, 3);
    }

    #[test]
    fn bad_lines_are_named() {
        let list = list("192.0.2.1\n192.0.2.5/24\nexample.org # a name\n");
        let places: Vec<_> =
            list.errors.iter().map(|e| (e.code, e.excerpt.as_ref().map(|x| (x.place.line, x.place.column)))).collect();
        assert_eq!(places, [("host_bits", Some((2, 1))), ("bad_address", Some((3, 1)))]);
        assert_eq!(list.entries, 1);
    }

    #[test]
    fn hostile_lists_are_bounded() {
        assert_eq!(list(&"x".repeat(10_000)).errors.len(), 1);
        let many = list(&"nonsense\n".repeat(1000));
        assert_eq!((many.errors.len(), many.more_errors), (MAX_BAD, 1000 - MAX_BAD));
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_read_alike_by_both(text in "[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9./]{1,7}") {
            let slow = addresses::parse(&text).ok().map(addresses::range);
            let fast = plain_v4(text.as_bytes()).map(|(first, last)| Range::V4(first, last));
            proptest::prop_assert_eq!(fast, slow);
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let list = read(bytes.as_slice(), &Arc::new(PathBuf::from("list.txt"))).unwrap();
            proptest::prop_assert!(list.entries + list.errors.len() <= 401);
        }
    }

    #[test]
    fn the_fast_reader_agrees_with_the_slow_one() {
        for text in [
            "0.0.0.0",
            "255.255.255.255/32",
            "192.0.2.0/24",
            "192.0.2.1/24",
            "1.2.3",
            "1.2.3.4.5",
            "01.2.3.4",
            "1.2.3.4/",
            "1.2.3.4/33",
            "1.2.3.256",
            "128.0.0.0/1",
            "0.0.0.0/0",
            "/8",
            "1..2.3",
            "1.2.3.4/032",
            "1.2.3.00",
        ] {
            let slow = addresses::parse(text).ok().map(addresses::range);
            match plain_v4(text.as_bytes()) {
                Some((first, last)) => assert_eq!(slow, Some(Range::V4(first, last)), "{text}"),
                None => assert_eq!(slow, None, "{text}"),
            }
        }
    }
}
