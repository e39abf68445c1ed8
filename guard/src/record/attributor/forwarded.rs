//! What this host only passes on: the container that it belongs to, by the network namespace that has its address. Address
//! translation is undone by the kernel's connection tracking first.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::linux::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    host::{
        conntrack::{self, Begun, Tracked, Tuple},
        identity::stat_in,
        route,
    },
    record::{clock::boot_now, recent::Recent},
};

/// A look may take at most this part of the time.
const SHARE: u32 = 20;
/// Between two looks at least: at what is translated, which is another for every flow; and into namespaces.
const PAUSE: Duration = Duration::from_millis(5);
const LONG_PAUSE: Duration = Duration::from_millis(200);
/// Network namespaces that are looked into.
const NAMESPACES: usize = 4_096;
/// Of a file of a namespace no more is read: whoever owns it decides how long it is.
const LONGEST: u64 = 4 << 20;
/// Their addresses that are remembered, and the time for one look: what comes after is of an unknown container.
const ADDRESSES: usize = 65_536;
const LOOK: Duration = Duration::from_millis(200);

/// Translated flows that are remembered from their beginning, and how many are taken in at once.
const BEGUN: usize = 16_384;
const AT_ONCE: usize = 4_096;

/// One network namespace that is not this host's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Its inode.
    pub netns: u64,
    /// A process in it: the oldest, most often its first.
    pub pid: u32,
}

/// When something was looked at, and when it may be again.
#[derive(Clone, Copy, Debug, Default)]
struct Looked {
    /// Boot-time nanoseconds; 0: never.
    at: u64,
    next: Option<Instant>,
}

impl Looked {
    /// Whether it is older than `time`, and not looked at too often.
    fn may_look(&self, time: u64) -> bool {
        (self.at == 0 || self.at < time) && self.next.is_none_or(|next| Instant::now() >= next)
    }
}

struct Look {
    at: u64,
    began: Instant,
}

impl Look {
    fn begin() -> Self {
        Self { at: boot_now(), began: Instant::now() }
    }

    fn ended(self, pause: Duration) -> Looked {
        Looked { at: self.at, next: Some(Instant::now() + pause.max(self.began.elapsed() * SHARE)) }
    }
}

#[derive(Debug)]
pub struct Forwarded {
    proc: PathBuf,
    namespaces: Looked,
    translations: Looked,
    own: HashSet<IpAddr>,
    /// `None`: more than one has this address, none of them or several linked to this host's.
    by_address: HashMap<IpAddr, Option<Behind>>,
    /// By protocol, this host's end and the remote, as the wire sees them: the end behind this host.
    translated: HashMap<(u8, SocketAddr, SocketAddr), SocketAddr>,
    /// The same, told by the kernel as they began: also of those that it has forgotten since.
    begun: Recent<(u8, SocketAddr, SocketAddr), SocketAddr>,
    /// Where this host passes anything on.
    told: Option<Begun>,
}

impl Default for Forwarded {
    fn default() -> Self {
        let mut forwarded = Self {
            proc: "/proc".into(),
            namespaces: Looked::default(),
            translations: Looked::default(),
            own: HashSet::new(),
            by_address: HashMap::new(),
            translated: HashMap::new(),
            begun: Recent::new(BEGUN),
            told: None,
        };
        forwarded.listen();
        forwarded
    }
}

impl Forwarded {
    /// Who is behind the local end of a flow that began at a time (boot-time nanoseconds), and which end it is there.
    /// `None`: this host itself, or nobody knows.
    pub fn behind(
        &mut self,
        protocol: u8,
        local: SocketAddr,
        remote: SocketAddr,
        time: u64,
    ) -> Option<(Behind, SocketAddr)> {
        if let Some(told) = &self.told {
            told.drain(AT_ONCE, |tracked| {
                translations(tracked).into_iter().for_each(|(ends, end)| self.begun.insert(ends, end));
            });
        }
        let mut found = self.find(protocol, local, remote);
        if found.is_none() && self.namespaces.may_look(time) {
            self.look_into_namespaces();
            found = self.find(protocol, local, remote);
        }
        // A host without containers need not be asked what it translates.
        if found.is_none() && !self.by_address.is_empty() && self.translations.may_look(time) {
            self.look_at_translations();
            found = self.find(protocol, local, remote);
        }
        found
    }

    fn find(&mut self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Option<(Behind, SocketAddr)> {
        let ends = (protocol, local, remote);
        let end = match self.begun.get(&ends).copied().or_else(|| self.translated.get(&ends).copied()) {
            Some(end) => end,
            // Without a translation an address of this host is this host.
            None if self.own.contains(&local.ip()) => return None,
            None => local,
        };
        self.by_address.get(&end.ip()).copied().flatten().map(|behind| (behind, end))
    }

    fn look_at_translations(&mut self) {
        let look = Look::begin();
        // A kernel that does not answer leaves what was known.
        if let Ok((tracked, _)) = conntrack::tracked() {
            self.translated = tracked.iter().flat_map(translations).collect();
        }
        self.translations = look.ended(PAUSE);
    }

    fn look_into_namespaces(&mut self) {
        let look = Look::begin();
        self.by_address.clear();
        if self.listen() {
            self.read_namespaces();
        }
        self.namespaces = look.ended(LONG_PAUSE);
    }

    /// Has the kernel tell of flows while this host passes anything on; whether it does.
    fn listen(&mut self) -> bool {
        let forwards = self.forwards();
        if !forwards {
            self.told = None;
        } else if self.told.is_none() {
            // A kernel that tracks nothing tells nothing.
            self.told = Begun::listen().ok();
        }
        forwards
    }

    /// Whether this namespace passes on anything at all: most hosts do not, and are spared the rest.
    fn forwards(&self) -> bool {
        let on = |name: &str| read(&self.proc.join("sys/net").join(name)).trim() != "0";
        on("ipv4/ip_forward") || on("ipv6/conf/all/forwarding")
    }

    fn read_namespaces(&mut self) {
        let inode = |path: &Path| fs::metadata(path).ok().map(|file| file.st_ino());
        let own = inode(&self.proc.join("self/ns/net"));
        let mut found: HashMap<u64, (u64, u32)> = HashMap::new();
        for entry in fs::read_dir(&self.proc).into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // Of a process that just ended nothing is there.
            let Some(netns) = inode(&entry.path().join("ns/net")) else { continue };
            if Some(netns) != own && (found.len() < NAMESPACES || found.contains_key(&netns)) {
                // What cannot be read is younger than all others.
                let started = stat_in(&entry.path()).map_or(u64::MAX, |stat| stat.started);
                let oldest = found.entry(netns).or_insert((started, pid));
                *oldest = (started, pid).min(*oldest);
            }
        }
        self.own = addresses(&self.proc.join("self")).into_iter().collect();
        let began = Instant::now();
        // Every engine gives its first container the same address, also one that runs in another's container: those that
        // are linked to this host are the ones whose packets it passes on.
        let (linked, others): (Vec<_>, Vec<_>) = found
            .into_iter()
            .map(|(netns, (_, pid))| (netns, pid))
            .partition(|(_, pid)| began.elapsed() < LOOK / 2 && route::is_linked(*pid));
        for group in [linked, others] {
            let mut of_group = HashMap::new();
            for (netns, pid) in group {
                // Whoever may make namespaces may give each of them any number of addresses.
                if self.by_address.len() + of_group.len() >= ADDRESSES || began.elapsed() > LOOK {
                    break;
                }
                for address in addresses(&self.proc.join(pid.to_string())) {
                    let behind = Some(Behind { netns, pid });
                    of_group.entry(address).and_modify(|known| *known = None).or_insert(behind);
                }
            }
            for (address, behind) in of_group {
                self.by_address.entry(address).or_insert(behind);
            }
        }
    }

    /// Inode of the socket at that end, in the namespace behind.
    pub fn socket(&self, behind: Behind, protocol: u8, end: SocketAddr) -> Option<u32> {
        let name = match protocol {
            6 => "tcp",
            17 => "udp",
            _ => return None,
        };
        let net = self.proc.join(behind.pid.to_string()).join("net");
        let mut waiting = None;
        for file in [name.to_owned(), format!("{name}6")] {
            for (local, inode) in sockets(&read(&net.join(file))) {
                if inode == 0 || local.port() != end.port() {
                    continue;
                }
                if local.ip() == end.ip() {
                    return Some(inode);
                }
                if local.ip().is_unspecified() {
                    waiting = Some(inode);
                }
            }
        }
        waiting
    }
}

fn read(path: &Path) -> String {
    use std::io::Read;
    let mut text = String::new();
    // What cannot be read, or is no text, tells nothing.
    let _ = fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    text
}

/// Both ways in which the wire sees a flow whose ends are translated: as it goes out (the answers' tuple, turned round),
/// and as it came in.
fn translations(tracked: &Tracked) -> Vec<((u8, SocketAddr, SocketAddr), SocketAddr)> {
    let Tracked { protocol, original, reply, .. } = tracked;
    let plain = Tuple { source: reply.destination, destination: reply.source };
    if plain == *original {
        return Vec::new();
    }
    vec![
        ((*protocol, reply.destination, reply.source), original.source),
        ((*protocol, original.destination, original.source), reply.source),
    ]
}

/// Addresses that a process's network namespace has as its own, but for loopback and link-local ones.
fn addresses(process: &Path) -> Vec<IpAddr> {
    let mut found = Vec::new();
    // `|-- 192.0.2.1`, and below it `/32 host LOCAL` where it is its own.
    let mut last = None;
    for line in read(&process.join("net/fib_trie")).lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last.take()
            && !address.is_loopback()
        {
            found.push(IpAddr::from(address));
        }
    }
    // Address in hex, index, prefix length, scope, flags, name.
    for line in read(&process.join("net/if_inet6")).lines() {
        let address = line.get(..32).and_then(|hex| u128::from_str_radix(hex, 16).ok()).map(Ipv6Addr::from);
        found.extend(address.filter(|a| !a.is_loopback() && !a.is_unicast_link_local()).map(IpAddr::from));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Local end and inode of each line of `/proc/net/tcp` and its like; words of addresses are in this machine's order.
fn sockets(text: &str) -> impl Iterator<Item = (SocketAddr, u32)> {
    text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (address, port) = fields.nth(1)?.split_once(':')?;
        let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
        let address = if address.len() == 8 {
            IpAddr::from(word(0)?)
        } else {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?).to_canonical()
        };
        let port = u16::from_str_radix(port, 16).ok()?;
        Some((SocketAddr::new(address, port), fields.nth(7)?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_as_the_kernel_lists_them() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                    0: C20200C0:9C40 09CB0071:2328 01 00000000:00000000 00:00000000 00000000     0        0 4711 1\n   \
                    1: 0000000000000000FFFF0000C20200C0:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 12 1\n\
                    nonsense\n";
        let found: Vec<_> = sockets(text).collect();
        assert_eq!(
            found,
            [("192.0.2.194:40000".parse().unwrap(), 4711), ("192.0.2.194:80".parse().unwrap(), 12)],
            "words in this machine's order"
        );
    }

    #[test]
    fn a_translated_flow_has_its_end_behind_the_host_both_ways() {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let tuple = |source, destination| Tuple { source: end(source), destination: end(destination) };
        let mut out = Tracked {
            protocol: 6,
            original: tuple("192.0.2.194:40000", "203.0.113.9:443"),
            reply: tuple("203.0.113.9:443", "192.0.2.10:50000"),
            answered: true,
            tcp_state: 3,
        };
        let found: HashMap<_, _> = translations(&out).into_iter().collect();
        assert_eq!(found[&(6, end("192.0.2.10:50000"), end("203.0.113.9:443"))], end("192.0.2.194:40000"));
        out.reply = tuple("203.0.113.9:443", "192.0.2.194:40000");
        assert!(translations(&out).is_empty(), "nothing is translated");
        let published = Tracked {
            original: tuple("203.0.113.9:60000", "192.0.2.10:8080"),
            reply: tuple("192.0.2.194:80", "203.0.113.9:60000"),
            ..out
        };
        let found: HashMap<_, _> = translations(&published).into_iter().collect();
        assert_eq!(found[&(6, end("192.0.2.10:8080"), end("203.0.113.9:60000"))], end("192.0.2.194:80"));
    }

    #[test]
    fn an_address_that_two_have_is_nobodys() {
        let home = tempfile::tempdir().unwrap();
        let place = |pid: &str, address: &str| {
            let net = home.path().join(pid).join("net");
            fs::create_dir_all(home.path().join(pid).join("ns")).unwrap();
            fs::create_dir_all(&net).unwrap();
            fs::write(home.path().join(pid).join("ns/net"), "").unwrap();
            fs::write(net.join("fib_trie"), format!("Local:\n  |-- {address}\n     /32 host LOCAL\n")).unwrap();
        };
        place("self", "192.0.2.10");
        place("7", "192.0.2.194");
        place("8", "192.0.2.195");
        place("9", "192.0.2.195");
        let mut forwarded = Forwarded { proc: home.path().to_owned(), ..Forwarded::default() };
        let remote = "203.0.113.9:443".parse().unwrap();
        let mut ask = |local: &str| forwarded.behind(6, local.parse().unwrap(), remote, 1).map(|found| found.0.pid);
        assert_eq!(ask("192.0.2.194:40000"), Some(7));
        assert_eq!(ask("192.0.2.195:40000"), None);
        assert_eq!(ask("192.0.2.10:40000"), None, "this host itself");
    }
}
