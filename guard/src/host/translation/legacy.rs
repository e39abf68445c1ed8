//! Of the older iptables: one table of entries, read by getsockopt (linux/netfilter_ipv4/ip_tables.h,
//! linux/netfilter_ipv6/ip6_tables.h, linux/netfilter/x_tables.h).

use std::{collections::BTreeSet, fs, io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{is_harmless_target, only_local};

/// Where a family keeps what.
struct Layout {
    family: AddressFamily,
    level: i32,
    names: &'static str,
    /// `target_offset` of an entry; `next_offset` stands behind it.
    target: usize,
    /// The first match of an entry.
    matches: usize,
}

const FAMILIES: [(&str, Layout); 2] = [
    (
        "iptables-legacy",
        Layout { family: AddressFamily::Inet, level: libc::SOL_IP, names: "ip_tables_names", target: 88, matches: 112 },
    ),
    (
        "ip6tables-legacy",
        Layout {
            family: AddressFamily::Inet6,
            level: libc::SOL_IPV6,
            names: "ip6_tables_names",
            target: 140,
            matches: 168,
        },
    ),
];

pub fn translates() -> Option<String> {
    let found = FAMILIES.iter().find(|(_, layout)| {
        // To ask for a table makes it: only what is there is asked for.
        let names = fs::read_to_string(format!("/proc/thread-self/net/{}", layout.names)).unwrap_or_default();
        names.lines().any(|table| table == "nat")
            && read(layout).map_or(true, |table| translates_in(&table.entries, layout, table.first, table.last))
    });
    found.map(|(name, _)| format!("{name}, table nat"))
}

struct Table {
    entries: Vec<u8>,
    /// Offsets of the first entry of the output hook, and of its last, its policy.
    first: usize,
    last: usize,
}

fn read(layout: &Layout) -> io::Result<Table> {
    const GET_INFO: i32 = 64;
    const GET_ENTRIES: i32 = 65;
    const OUTPUT: usize = 3;
    let socket = socket(layout.family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // struct ipt_getinfo: name, hooks, five first entries, five policies, number of entries, size.
    let mut info = [0; 84];
    info[..3].copy_from_slice(b"nat");
    get(socket.as_raw_fd(), layout.level, GET_INFO, &mut info)?;
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let size = word(80);
    // struct ipt_get_entries: name, size, padding, entries.
    const HEAD: usize = 40;
    let mut bytes = vec![0; HEAD + size as usize];
    bytes[..3].copy_from_slice(b"nat");
    bytes[32..36].copy_from_slice(&size.to_ne_bytes());
    get(socket.as_raw_fd(), layout.level, GET_ENTRIES, &mut bytes)?;
    bytes.drain(..HEAD);
    Ok(Table { entries: bytes, first: word(36 + 4 * OUTPUT) as usize, last: word(56 + 4 * OUTPUT) as usize })
}

fn get(socket: i32, level: i32, option: i32, bytes: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes of a buffer that is ours.
    let result = unsafe { libc::getsockopt(socket, level, option, bytes.as_mut_ptr().cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a rule of the hook's chain, or of one that it jumps to, may change a destination outside.
fn translates_in(entries: &[u8], layout: &Layout, first: usize, last: usize) -> bool {
    let mut seen = BTreeSet::from([first]);
    let mut todo = vec![first];
    while let Some(mut at) = todo.pop() {
        loop {
            let Some(entry) = Entry::read(entries, layout, at) else { return true };
            if entry.target == "ERROR" {
                // The head of the next chain.
                break;
            }
            if !entry.only_local {
                match entry.jump {
                    // The next entry is no jump: a rule without a target.
                    Some(to) if to != entry.next => {
                        if seen.insert(to) {
                            todo.push(to);
                        }
                    }
                    _ if entry.target.is_empty() || is_harmless_target(entry.target) => {}
                    _ => return true,
                }
            }
            if at == last {
                break;
            }
            at = entry.next;
        }
    }
    false
}

struct Entry<'a> {
    only_local: bool,
    /// Empty: a verdict, or a jump.
    target: &'a str,
    jump: Option<usize>,
    next: usize,
}

impl<'a> Entry<'a> {
    /// `None`: it is not as it should be.
    fn read(entries: &'a [u8], layout: &Layout, at: usize) -> Option<Self> {
        let entry = entries.get(at..)?;
        let (target_at, length) = (short(entry, layout.target)?, short(entry, layout.target + 2)?);
        let entry = entry.get(..length)?;
        let mut only = false;
        let mut rest = entry.get(layout.matches..target_at)?;
        while !rest.is_empty() {
            let (bytes, name, revision, data) = part(rest)?;
            only |= name == "addrtype" && only_local(revision, data);
            rest = rest.get(bytes..)?;
        }
        let (_, target, _, data) = part(entry.get(target_at..)?)?;
        let verdict = i32::from_ne_bytes(data.get(..4)?.try_into().ok()?);
        let jump = if target.is_empty() { usize::try_from(verdict).ok() } else { None };
        Some(Self { only_local: only, target, jump, next: at + length })
    }
}

/// `struct xt_entry_match` and `xt_entry_target`: size of all, name, revision, data.
fn part(bytes: &[u8]) -> Option<(usize, &str, u32, &[u8])> {
    const HEAD: usize = 32;
    let size = short(bytes, 0)?;
    let data = bytes.get(HEAD..size)?;
    let name = bytes.get(2..31)?.split(|byte| *byte == 0).next()?;
    Some((size, std::str::from_utf8(name).ok()?, u32::from(*bytes.get(31)?), data))
}

fn short(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of IPv4 one after the other; each with its matches and its target.
    #[derive(Default)]
    struct Build(Vec<u8>);

    impl Build {
        fn add(&mut self, local: bool, target: &str, verdict: i32) -> usize {
            let (at, layout) = (self.0.len(), &FAMILIES[0].1);
            let mut entry = vec![0; layout.matches];
            if local {
                entry.extend(build_part("addrtype", 1, &[0, 0, 4, 0, 0, 0, 0, 0]));
            }
            let target_at = entry.len() as u16;
            entry.extend(build_part(target, 0, &[&verdict.to_ne_bytes()[..], &[0; 4]].concat()));
            let length = entry.len() as u16;
            entry[layout.target..][..2].copy_from_slice(&target_at.to_ne_bytes());
            entry[layout.target + 2..][..2].copy_from_slice(&length.to_ne_bytes());
            self.0.extend(entry);
            at
        }

        fn translates(&self, first: usize, last: usize) -> bool {
            translates_in(&self.0, &FAMILIES[0].1, first, last)
        }
    }

    fn build_part(name: &str, revision: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = ((32 + data.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(name.as_bytes());
        bytes.resize(31, 0);
        bytes.push(revision);
        bytes.extend(data);
        bytes
    }

    const ACCEPT: i32 = -2;
    const RETURN: i32 = -5;

    #[test]
    fn jumps_are_followed_and_local_ones_are_not() {
        for local in [true, false] {
            let mut build = Build::default();
            // One entry without, one with a match.
            let (plain, matched) = (152, 192);
            let chain = (if local { matched } else { plain }) + 2 * plain;
            let first = build.add(local, "", chain);
            let last = build.add(false, "", ACCEPT);
            build.add(false, "ERROR", 0);
            assert_eq!(build.0.len(), chain as usize);
            build.add(false, "", RETURN);
            build.add(false, "DNAT", 0);
            build.add(false, "", RETURN);
            build.add(false, "ERROR", 0);
            assert_eq!(build.translates(first, last), !local);
        }
    }

    #[test]
    fn a_rule_without_effect_is_none_and_a_damaged_one_counts() {
        let mut build = Build::default();
        let first = build.add(false, "", 152);
        build.add(false, "MARK", 0);
        let last = build.add(false, "", ACCEPT);
        assert!(!build.translates(first, last));
        build.0.truncate(last + 100);
        assert!(build.translates(first, last));
        let mut redirect = Build::default();
        redirect.add(false, "REDIRECT", 0);
        assert!(redirect.translates(0, 152));
    }
}
