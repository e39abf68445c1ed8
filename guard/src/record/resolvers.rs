//! Whose answers are taken for names: the resolvers that this host is set up to ask, and those that the policy in force
//! lists. Anybody else on the network, and any program here that asks a server of its own, can answer what it likes.

use std::{
    collections::HashSet,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use guard_common::{Direction, Verdict};

use crate::{
    policy::model::{AddressSet, Policy},
    review::init::Files,
};

/// UDP 53 as a service's word.
const DNS: u32 = 17 << 16 | 53;
/// Files are read again this often, where answers come.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Resolvers {
    root: PathBuf,
    read: Option<Instant>,
    /// What the host's files say.
    host: HashSet<IpAddr>,
    /// Remotes of rules that let DNS out.
    policy: Vec<Arc<AddressSet>>,
}

impl Default for Resolvers {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl Resolvers {
    /// `root`: where `etc` and `run` are.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned(), read: None, host: HashSet::new(), policy: Vec::new() }
    }

    /// The policy that is in force now. A rule for everybody names no resolver.
    pub fn of_policy(&mut self, policy: &Policy) {
        let lets_out = |rule: &&crate::policy::model::Rule| {
            rule.direction == Direction::Outbound
                && rule.action == Verdict::Allow
                && rule.services.iter().any(|range| (range.first..=range.last).contains(&DNS))
                && rule.remote.named
                && !is_everybody(&rule.remote.set)
        };
        self.policy = policy.rules.iter().filter(lets_out).map(|rule| Arc::clone(&rule.remote.set)).collect();
    }

    pub fn holds(&mut self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if self.policy.iter().any(|set| set.contains(address)) {
            return true;
        }
        if self.read.is_none_or(|read| read.elapsed() >= AGAIN) {
            self.host = Files::new(&self.root, true).every_resolver().into_iter().map(|at| at.to_canonical()).collect();
            self.read = Some(Instant::now());
        }
        self.host.contains(&address)
    }
}

/// Of either family.
fn is_everybody(set: &AddressSet) -> bool {
    set.v4 == [(0, u32::MAX)] || set.v6 == [(0, u128::MAX)]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn of(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn resolvers_are_those_of_the_host_and_of_the_policy() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("etc/resolv.conf", "nameserver 127.0.0.53\nnameserver 192.0.2.1 # first\nnameserver fe80::1%eth0\n");
        put("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.2\nnameserver 2001:db8::53\n");
        put("etc/systemd/resolved.conf.d/a.conf", "[Resolve]\nDNS=192.0.2.3:5353#dns.example 192.0.2.4%eth0\n");
        put("etc/dnsmasq.conf", "server=/corp.example/192.0.2.5\n");
        put("etc/dnsmasq.d/b", "server=192.0.2.6#5353\n");
        let mut resolvers = Resolvers::below(root.path());
        for listed in
            ["192.0.2.1", "192.0.2.2", "2001:db8::53", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6", "fe80::1"]
        {
            assert!(resolvers.holds(of(listed)), "{listed}");
        }
        assert!(resolvers.holds(of("::ffff:192.0.2.1")));
        assert!(!resolvers.holds(of("203.0.113.66")) && !resolvers.holds(of("127.0.0.53")));
        let policy = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), text).unwrap();
            crate::daemon::kept::read(file.path()).unwrap()
        };
        resolvers.of_policy(&policy(
            "version: 1\nname: t\nmode: audit\ninbound:\n  - { from: 203.0.113.1, services: dns }\noutbound:\n  \
             - { to: 203.0.113.66, services: [ssh, dns] }\n  - { to: 203.0.113.67, services: https }\n  \
             - { to: any, services: dns }\n  - { to: 0.0.0.0/0, services: dns }\n  \
             - { to: 203.0.113.68, services: dns, action: deny }\n",
        ));
        assert!(resolvers.holds(of("203.0.113.66")));
        for other in ["203.0.113.1", "203.0.113.67", "203.0.113.68", "198.51.100.1"] {
            assert!(!resolvers.holds(of(other)), "{other}");
        }
        resolvers.of_policy(&policy("version: 1\nname: t\nmode: audit\ninbound: []\noutbound: []\n"));
        assert!(!resolvers.holds(of("203.0.113.66")), "what is no longer in force lists nobody");
    }
}
