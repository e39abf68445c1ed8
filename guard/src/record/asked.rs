//! What remotes were asked as: answers that this host got from resolvers that are listed, by address. Labels for people,
//! made by whoever answers: they decide nothing.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use guard_common::abi::{ANSWER_BYTES, AnswerEvent};
use serde::{Deserialize, Serialize};
use simple_dns::{CLASS, Name, Packet, PacketFlag, RCODE, rdata::RData};

use super::{flow::Key, recent::Recent, resolvers::Resolvers};

/// Addresses that are remembered at least, and twice as many at most. With the longest names it takes about 150 MB, which
/// whoever answers for a zone of its own can bring about.
const ADDRESSES: usize = 16_384;
/// Names of one address: a shared one may have thousands.
const NAMES: usize = 16;
/// Bytes of a name as it is kept. A real one is not longer (RFC 1035 section 2.3.4); one whose strange bytes make it so is
/// not kept.
const LONGEST: usize = 253;
/// Aliases that are followed: those that resolvers follow, about.
const ALIASES: usize = 16;
/// A name is kept as a label for this long after it was asked for last, whatever its TTL.
const KEPT_NS: i64 = 14 * 86_400 * 1_000_000_000;
/// Answers that are read a second; the rest is counted.
const RATE: u32 = 2_000;
const SECOND: u64 = 1_000_000_000;
/// That a name was asked for again is put into the store no more often.
const SAVED_NS: i64 = 3_600_000_000_000;
/// Names that wait to be put there.
const UNSAVED: usize = 16_384;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerCounts {
    pub read: u64,
    /// No answers of DNS, or ones that are made wrong.
    pub malformed: u64,
    /// Came faster than they are read.
    pub too_many: u64,
    /// From servers that neither this host nor its policy lists: no names.
    #[serde(default)]
    pub unlisted: u64,
}

#[derive(Debug)]
pub struct AskedAs {
    by_address: Recent<IpAddr, Vec<Asked>>,
    pub resolvers: Resolvers,
    /// With the boot-time nanoseconds of the answer.
    unsaved: Vec<(IpAddr, Arc<str>, i64)>,
    counts: AnswerCounts,
    /// Of the second that began then, how many were read.
    second: (u64, u32),
}

#[derive(Clone, Debug)]
struct Asked {
    name: Arc<str>,
    /// Boot-time nanoseconds of the last answer; below 0: before this boot.
    at: i64,
    /// Of the last one that was put into the store.
    saved: i64,
}

impl Default for AskedAs {
    fn default() -> Self {
        Self {
            by_address: Recent::new(ADDRESSES),
            resolvers: Resolvers::default(),
            unsaved: Vec::new(),
            counts: AnswerCounts::default(),
            second: (0, 0),
        }
    }
}

impl AskedAs {
    #[must_use]
    pub const fn counts(&self) -> AnswerCounts {
        self.counts
    }

    /// One event of the `ANSWERS` ring.
    pub fn told(&mut self, bytes: &[u8]) {
        if bytes.len() < size_of::<AnswerEvent>() {
            return;
        }
        // SAFETY: an AnswerEvent is numbers only, so any bytes are one; as many are read as it is long.
        let event = unsafe { bytes.as_ptr().cast::<AnswerEvent>().read_unaligned() };
        // Whoever runs a program here can have it ask a server of its own, and be answered whatever suits.
        let from = Key::from_event(event.family as u8, &event.key).map(|key| key.remote());
        if !from.is_some_and(|from| self.resolvers.holds(from)) {
            self.counts.unlisted += 1;
            return;
        }
        self.answer(&event.bytes[..(event.length as usize).min(ANSWER_BYTES)], event.time);
    }

    /// What a resolver answered, at a time (boot-time nanoseconds).
    pub fn answer(&mut self, bytes: &[u8], at: u64) {
        let (began, read) = &mut self.second;
        if at.wrapping_sub(*began) >= SECOND {
            (*began, *read) = (at, 0);
        }
        if *read == RATE {
            self.counts.too_many += 1;
            return;
        }
        *read += 1;
        match addresses(bytes) {
            None => self.counts.malformed += 1,
            Some((name, addresses)) => {
                self.counts.read += 1;
                let name: Arc<str> = name.into();
                for address in addresses {
                    self.keep(address, &name, at.cast_signed());
                }
            }
        }
    }

    fn keep(&mut self, address: IpAddr, name: &Arc<str>, at: i64) {
        let known = self.by_address.get(&address).and_then(|names| names.iter().find(|asked| asked.name == *name));
        let mut saved = known.map_or(i64::MIN, |asked| asked.saved);
        if at.saturating_sub(saved) >= SAVED_NS && self.unsaved.len() < UNSAVED {
            self.unsaved.push((address, Arc::clone(name), at));
            saved = at;
        }
        self.put(address, Asked { name: Arc::clone(name), at, saved });
    }

    fn put(&mut self, address: IpAddr, new: Asked) {
        let mut names = self.by_address.remove(&address).unwrap_or_default();
        names.retain(|asked| asked.name != new.name && new.at.saturating_sub(asked.at) <= KEPT_NS);
        names.truncate(NAMES - 1);
        names.insert(0, new);
        self.by_address.insert(address, names);
    }

    /// What a store kept, the oldest first; the time in boot-time nanoseconds, below 0 before this boot.
    pub fn remember(&mut self, address: IpAddr, name: &Arc<str>, at: i64) {
        if name.len() <= LONGEST && name.bytes().all(|byte| byte.is_ascii_graphic()) {
            self.put(address.to_canonical(), Asked { name: Arc::clone(name), at, saved: at });
        }
    }

    /// What is to be put into the store since this was asked last, with the boot-time nanoseconds of the answers.
    pub fn unsaved(&mut self) -> Vec<(IpAddr, Arc<str>, i64)> {
        std::mem::take(&mut self.unsaved)
    }

    /// Names that this address was answered for, the latest first.
    pub fn names(&mut self, address: IpAddr, now: u64) -> Vec<Arc<str>> {
        let fresh = |asked: &&Asked| now.cast_signed().saturating_sub(asked.at) <= KEPT_NS;
        let asked = self.by_address.get(&address.to_canonical()).map_or(&[][..], |asked| &asked[..]);
        asked.iter().filter(fresh).map(|asked| Arc::clone(&asked.name)).collect()
    }
}

/// The name that was asked for, and its addresses, through aliases. `None`: no answer to one question.
fn addresses(bytes: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    let packet = Packet::parse(bytes).ok()?;
    if !packet.has_flags(PacketFlag::RESPONSE) || packet.rcode() != RCODE::NoError {
        return None;
    }
    let [question] = &packet.questions[..] else { return None };
    let asked = spoken(&question.qname);
    if asked.is_empty() || asked.len() > LONGEST {
        return None;
    }
    let internet = || packet.answers.iter().filter(|record| record.class == CLASS::IN);
    let aliases: HashMap<String, String> = internet()
        .filter_map(|record| match &record.rdata {
            RData::CNAME(alias) => Some((spoken(&record.name), spoken(&alias.0))),
            _ => None,
        })
        .collect();
    // The chain from what was asked; what stands beside it is not believed.
    let mut chain = vec![asked.clone()];
    while let Some(next) = chain.last().and_then(|last| aliases.get(last))
        && !chain.contains(next)
        && chain.len() <= ALIASES
    {
        chain.push(next.clone());
    }
    let found =
        internet().filter(|record| chain.contains(&spoken(&record.name))).filter_map(|record| match &record.rdata {
            RData::A(record) => Some(IpAddr::from(Ipv4Addr::from(record.address))),
            RData::AAAA(record) => Some(IpAddr::from(Ipv6Addr::from(record.address)).to_canonical()),
            _ => None,
        });
    Some((asked, found.collect()))
}

/// In lower case, without the last dot; bytes that a host name does not have as `\123` (RFC 1035 section 5.1), so that
/// what is kept is plain text whatever somebody answers.
fn spoken(name: &Name<'_>) -> String {
    let mut text = String::new();
    for label in name.as_bytes() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*' => text.push(char::from(*byte)),
                b'A'..=b'Z' => text.push(char::from(byte.to_ascii_lowercase())),
                other => text.push_str(&format!("\\{other:03}")),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::{
        QCLASS, QTYPE, Question, ResourceRecord, TYPE,
        rdata::{A, CNAME},
    };

    use super::*;

    fn name(text: &str) -> Name<'_> {
        Name::new_unchecked(text)
    }

    fn a<'a>(of: &'a str, address: [u8; 4]) -> ResourceRecord<'a> {
        let address = A { address: u32::from_be_bytes(address) };
        ResourceRecord::new(name(of), CLASS::IN, 60, RData::A(address))
    }

    fn cname<'a>(of: &'a str, to: &'a str) -> ResourceRecord<'a> {
        ResourceRecord::new(name(of), CLASS::IN, 60, RData::CNAME(CNAME(name(to))))
    }

    fn answer(asked: &str, records: Vec<ResourceRecord<'_>>) -> Vec<u8> {
        let mut packet = Packet::new_reply(7);
        let question = Question::new(name(asked), QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false);
        packet.questions.push(question);
        packet.answers = records;
        packet.build_bytes_vec_compressed().unwrap()
    }

    fn names(store: &mut AskedAs, address: &str, now: u64) -> Vec<String> {
        store.names(address.parse().unwrap(), now).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_has_the_names_that_were_asked_for() {
        let mut store = AskedAs::default();
        let records = vec![cname("www.Example.org", "cdn.example.net"), a("cdn.example.net", [203, 0, 113, 9])];
        store.answer(&answer("www.example.org", records), 1);
        store.answer(&answer("api.example.com", vec![a("api.example.com", [203, 0, 113, 9])]), 2);
        assert_eq!(names(&mut store, "203.0.113.9", 3), ["api.example.com", "www.example.org"]);
        assert_eq!(names(&mut store, "::ffff:203.0.113.9", 3).len(), 2);
        assert_eq!(names(&mut store, "203.0.113.10", 3), [""; 0]);
        assert_eq!(names(&mut store, "203.0.113.9", KEPT_NS as u64 + 2), ["api.example.com"], "kept for 14 days");
        assert_eq!(store.counts(), AnswerCounts { read: 2, ..AnswerCounts::default() });
    }

    fn event(from: [u8; 4], bytes: &[u8]) -> Vec<u8> {
        let key = Key::new(17, from.into(), 53, [192, 0, 2, 10].into(), 40000, 0).unwrap();
        let Key::V4(v4) = key else { panic!("{key:?}") };
        let key = guard_common::abi::FlowKeyV6 {
            remote: [v4.remote, 0, 0, 0],
            local: [v4.local, 0, 0, 0],
            remote_port: v4.remote_port,
            local_port: v4.local_port,
            protocol_scope: v4.protocol_scope,
        };
        let mut event = AnswerEvent { time: 5, family: 4, length: bytes.len() as u32, key, bytes: [0; ANSWER_BYTES] };
        event.bytes[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: an AnswerEvent is numbers without padding (its size is asserted): all its bytes are there.
        unsafe { std::slice::from_raw_parts((&raw const event).cast::<u8>(), size_of::<AnswerEvent>()).to_vec() }
    }

    /// A program here asks a server that it chose, which says that the program's own master is a mirror that everybody
    /// knows: the flow to it stays in its network, and not in a zone that was acknowledged.
    #[test]
    fn a_server_that_nobody_lists_names_nothing() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
        let mut store = AskedAs { resolvers: Resolvers::below(root.path()), ..AskedAs::default() };
        let zone = |store: &mut AskedAs| {
            let master: IpAddr = "203.0.113.66".parse().unwrap();
            let asked = store.names(master, 6).first().cloned();
            super::super::observer::remote_group(None, asked.as_deref(), master).to_string()
        };
        let lie = answer("deb.example.org", vec![a("deb.example.org", [203, 0, 113, 66])]);
        store.told(&event([203, 0, 113, 66], &lie));
        assert_eq!(zone(&mut store), "203.0.113.0/24");
        assert_eq!(store.counts(), AnswerCounts { unlisted: 1, ..AnswerCounts::default() });
        // The same from whom the host asks is a name.
        store.told(&event([192, 0, 2, 53], &lie));
        assert_eq!(zone(&mut store), "names in example.org");
    }

    #[test]
    fn what_was_kept_is_known_to_the_next_daemon() {
        let mut store = AskedAs::default();
        let api = || answer("api.example.com", vec![a("api.example.com", [203, 0, 113, 9])]);
        store.answer(&api(), 10);
        let saved = store.unsaved();
        assert_eq!(saved, [("203.0.113.9".parse().unwrap(), "api.example.com".into(), 10)]);
        // Once an hour at most.
        store.answer(&api(), SAVED_NS as u64);
        assert_eq!(store.unsaved(), []);
        store.answer(&api(), SAVED_NS as u64 + 10);
        assert_eq!(store.unsaved().len(), 1);
        // A new boot: those times are before it.
        let mut next = AskedAs::default();
        for (address, name, at) in saved {
            next.remember(address, &name, at - KEPT_NS + 1_000);
        }
        next.remember([203, 0, 113, 9].into(), &"\u{1b}[2J.example".into(), 0);
        assert_eq!(names(&mut next, "203.0.113.9", 1_010), ["api.example.com"]);
        assert_eq!(names(&mut next, "203.0.113.9", 1_011), [""; 0], "14 days after it was asked for");
        assert_eq!(next.unsaved(), []);
    }

    #[test]
    fn what_stands_beside_the_answer_is_not_believed() {
        let mut store = AskedAs::default();
        let records = vec![a("www.example.org", [203, 0, 113, 9]), a("bank.example.com", [203, 0, 113, 10])];
        store.answer(&answer("www.example.org", records), 1);
        assert_eq!(names(&mut store, "203.0.113.10", 1), [""; 0]);
        // A ring of aliases ends.
        let ring =
            vec![cname("a.example", "b.example"), cname("b.example", "a.example"), a("b.example", [192, 0, 2, 1])];
        store.answer(&answer("a.example", ring), 1);
        assert_eq!(names(&mut store, "192.0.2.1", 1), ["a.example"]);
    }

    #[test]
    fn hostile_names_become_plain_text() {
        let mut store = AskedAs::default();
        let evil = "\u{1b}[2J<script>\u{202e}.example.org";
        store.answer(&answer(evil, vec![a(evil, [203, 0, 113, 9])]), 1);
        let found = names(&mut store, "203.0.113.9", 1);
        assert!(found[0].is_ascii() && !found[0].contains(['\u{1b}', '<', '>']), "{found:?}");
        assert!(found[0].starts_with("\\027\\0912j\\060script"), "{found:?}");
    }

    #[test]
    fn answers_that_lie_are_counted_and_bring_nothing() {
        let mut store = AskedAs::default();
        let good = answer("www.example.org", vec![a("www.example.org", [203, 0, 113, 9])]);
        // Names that point at themselves, at one another, and past the end.
        for pointer in [[0xc0, 12], [0xc0, 14], [0xff, 0xff]] {
            let mut bytes = vec![0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
            bytes.extend(pointer);
            bytes.extend([0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 9]);
            store.answer(&bytes, 1);
        }
        // Counts of what is not there.
        let mut lying = good.clone();
        lying[6..8].copy_from_slice(&u16::MAX.to_be_bytes());
        store.answer(&lying, 1);
        let mut query = good.clone();
        query[2] &= 0x7f;
        store.answer(&query, 1);
        store.answer(&[], 1);
        for cut in 0..good.len() {
            store.answer(&good[..cut], 1);
        }
        assert_eq!(store.counts().read, 0);
        assert_eq!(store.counts().malformed, 6 + good.len() as u64);
        assert_eq!(names(&mut store, "203.0.113.9", 1), [""; 0]);
    }

    #[test]
    fn a_name_that_its_strange_bytes_make_too_long_is_not_kept() {
        let mut store = AskedAs::default();
        let long = format!("{0}.{0}.{0}.example", "\u{1}".repeat(40));
        store.answer(&answer(&long, vec![a(&long, [203, 0, 113, 9])]), 1);
        assert_eq!((store.counts().malformed, names(&mut store, "203.0.113.9", 1)), (1, vec![]));
        // As many aliases as a resolver follows, and no more.
        let of = |number: usize| format!("n{number}.example");
        for (aliases, found) in [(ALIASES, 1), (ALIASES + 1, 0)] {
            let all: Vec<String> = (0..=aliases).map(of).collect();
            let mut records: Vec<_> = all.windows(2).map(|pair| cname(&pair[0], &pair[1])).collect();
            records.push(a(&all[aliases], [192, 0, 2, aliases as u8]));
            store.answer(&answer(&all[0], records), 1);
            assert_eq!(names(&mut store, &format!("192.0.2.{aliases}"), 1).len(), found);
        }
    }

    #[test]
    fn a_flood_stays_within_its_rate_and_its_bounds() {
        let mut store = AskedAs::default();
        for number in 0..5_000_u32 {
            let [_, b, c, d] = number.to_be_bytes();
            let asked = format!("n{number}.example.org");
            store.answer(&answer(&asked, vec![a(&asked, [198, b, c, d])]), 1);
        }
        assert_eq!((store.counts().read, store.counts().too_many), (u64::from(RATE), 3_000));
        for number in 0..100 {
            let asked = format!("n{number}.example.com");
            store.answer(&answer(&asked, vec![a(&asked, [192, 0, 2, 1])]), 2 * SECOND);
        }
        assert_eq!(names(&mut store, "192.0.2.1", 2 * SECOND).len(), NAMES);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Nothing that comes over the wire breaks it, and no name has a byte that steers a terminal.
        #[test]
        fn any_bytes_are_borne(bytes in prop::collection::vec(any::<u8>(), 0..600), places in prop::collection::vec((0usize..200, any::<u8>()), 0..12)) {
            let mut store = AskedAs::default();
            store.answer(&bytes, 1);
            let records = vec![cname("www.example.org", "cdn.example.net"), a("cdn.example.net", [203, 0, 113, 9])];
            let mut broken = answer("www.example.org", records);
            for (at, byte) in places {
                if let Some(place) = broken.get_mut(at) {
                    *place = byte;
                }
            }
            store.answer(&broken, 1);
            for name in store.names("203.0.113.9".parse().unwrap(), 1) {
                prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
            }
        }
    }
}
