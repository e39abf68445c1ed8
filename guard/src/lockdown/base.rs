//! The policy of a lockdown, written as a person would write it: what `check --effective` shows of it is what holds.
//!
//! Its base is policies/lockdown.yaml: the way in, essential traffic, nothing else. Whatever is added was asked for.

use std::{
    fmt::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use ipnet::IpNet;
use serde::Serialize;

use super::{mark::THIS_SESSION, offers::Offer, way_in::Way};
use crate::policy::{addresses, effective::quoted, services};

/// Name of the policy, and of its file in the state directory.
pub const NAME: &str = "lockdown";

/// `CIDR[:service]`, as `--allow-from` and `--allow-to` take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Allow {
    pub net: IpNet,
    /// As a rule writes it; `None`: the way in's services (from), any (to).
    pub service: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowError {
    #[error("{message}: {help}")]
    Address { message: String, help: String },
    #[error("{message}: {help}")]
    Service { message: String, help: String },
}

impl FromStr for Allow {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        // An IPv6 address has colons of its own: what is an address as a whole names no service.
        let unbracketed = |text: &str| {
            let (Some(inside), Some(_)) = (text.strip_prefix('['), text.find(']')) else { return text.to_owned() };
            inside.replacen(']', "", 1)
        };
        let whole = addresses::parse(&unbracketed(text));
        if let Ok(net) = whole {
            return Ok(Self { net, service: None });
        }
        if let Some((address, service)) = text.rsplit_once(':')
            && let Ok(net) = addresses::parse(&unbracketed(address))
        {
            return match services::parse(service) {
                Ok(services::Word::Ranges(_)) => Ok(Self { net, service: Some(service.to_owned()) }),
                Ok(services::Word::Name) => Err(AllowError::Service {
                    message: format!("`{service}` is no service that is built in"),
                    help: format!("write {address}:tcp/22, say"),
                }),
                Err(bad) => Err(AllowError::Service { message: bad.message, help: bad.help }),
            };
        }
        let bad = whole.err().map_or_else(Default::default, |bad| (bad.message, bad.help));
        Err(AllowError::Address { message: bad.0, help: bad.1 })
    }
}

/// What the person chose.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    pub ways: Vec<Way>,
    pub allow_from: Vec<Allow>,
    pub allow_to: Vec<Allow>,
    /// Services of the way in, for what names none: where an SSH server listens.
    pub ssh: Vec<String>,
    /// Resolvers that may be asked.
    pub dns: Vec<IpAddr>,
    /// Stay in service for everybody: `tcp/443`.
    pub serve: Vec<String>,
    pub keep: Vec<Offer>,
    /// Of the way in only what is open now goes on (`--this-session-only`).
    pub this_session_only: bool,
    /// A list file of further addresses that may come in.
    pub responders: Option<PathBuf>,
}

/// What `--on-timeout ssh-only` falls back to: whoever comes may try the way in, all else stays cut.
#[must_use]
pub fn ssh_only(choices: &Choices) -> String {
    let mut services: Vec<String> = choices.ssh.clone();
    services.extend(choices.ways.iter().filter(|way| way.inbound).map(|way| way.service.clone()));
    services.sort();
    services.dedup();
    let mut text = Text::new("lockdown-ssh-only");
    text.rule("the way in, from anywhere", "from", &["any".to_owned()], &services);
    let mut outbound = Text::default();
    for (number, way) in (1..).zip(choices.ways.iter().filter(|way| !way.inbound)) {
        outbound.rule(&carried_by(number, way), "to", &[net(&way.range)], std::slice::from_ref(&way.service));
    }
    // An adopted session's remote is not named here, and has to live.
    text.finish(&outbound, false, &[])
}

/// The whole policy, as YAML.
#[must_use]
pub fn text(choices: &Choices) -> String {
    let mut inbound = Text::new(NAME);
    if let Some(file) = &choices.responders {
        inbound.head.push_str(&format!(
            "groups:\n  responders: {{ file: {}, allow_empty: true }}\n",
            quoted(&file.display().to_string())
        ));
    }
    let mut tests = Vec::new();
    let ways: Vec<&Way> = choices.ways.iter().filter(|way| way.inbound).collect();
    if choices.this_session_only && !ways.is_empty() {
        let mut remotes: Vec<String> = ways.iter().map(|way| way.remote.ip().to_string()).collect();
        let mut services: Vec<String> = ways.iter().map(|way| way.service.clone()).collect();
        for words in [&mut remotes, &mut services] {
            words.sort();
            words.dedup();
        }
        inbound.rule(THIS_SESSION, "from", &remotes, &services);
        // What is open goes on by its entry in the flow tables. A rule would let others in, too: this one has expired.
        inbound.rules.push_str("    expires: 1970-01-01T00:00:00Z\n");
    }
    let listed = ways.into_iter().filter(|_| !choices.this_session_only);
    for (number, way) in (1..).zip(listed) {
        let name = format!("way in {number}: {} {}", way.program, way.pid);
        let mut services = vec![way.service.clone()];
        // mosh is begun over SSH: the next log-in needs that.
        if way.found.starts_with("mosh") {
            services.extend(choices.ssh.iter().cloned());
        }
        inbound.rule(&name, "from", &[net(&way.range)], &services);
        let protocol = way.service.split('/').next().unwrap_or_default();
        tests.push(format!("in {protocol} {} -> {}", bracketed(way.remote.ip()), way.local.port()));
    }
    for (number, allow) in (1..).zip(&choices.allow_from) {
        let services = allow.service.clone().map_or_else(|| choices.ssh.clone(), |service| vec![service]);
        inbound.rule(&format!("--allow-from {number}"), "from", &[net(&allow.net)], &services);
    }
    if choices.responders.is_some() {
        inbound.rule("responders.txt", "from", &["responders".to_owned()], &choices.ssh);
    }
    for (number, offer) in (1..).zip(choices.keep.iter().filter(|offer| !offer.inbound.is_empty())) {
        for (service, remotes) in &offer.inbound {
            let name = format!("--keep {number}: {} asked at {service}", offer.name);
            inbound.rule(
                &name,
                "from",
                &remotes.iter().map(|ip| net(&(*ip).into())).collect::<Vec<_>>(),
                std::slice::from_ref(service),
            );
        }
    }
    if !choices.serve.is_empty() {
        inbound.rule("--serve", "from", &["any".to_owned()], &choices.serve);
    }

    let mut outbound = Text::default();
    for (number, way) in (1..).zip(choices.ways.iter().filter(|way| !way.inbound)) {
        outbound.rule(&carried_by(number, way), "to", &[net(&way.range)], std::slice::from_ref(&way.service));
    }
    for (number, allow) in (1..).zip(&choices.allow_to) {
        let service = allow.service.clone().unwrap_or_else(|| "any".to_owned());
        outbound.rule(&format!("--allow-to {number}"), "to", &[net(&allow.net)], &[service]);
    }
    for (number, offer) in (1..).zip(choices.keep.iter().filter(|offer| !offer.outbound.is_empty())) {
        for (service, remotes) in &offer.outbound {
            let name = format!("--keep {number}: {} to {service}", offer.name);
            outbound.rule(
                &name,
                "to",
                &remotes.iter().map(|ip| net(&(*ip).into())).collect::<Vec<_>>(),
                std::slice::from_ref(service),
            );
        }
    }
    if !choices.dns.is_empty() {
        let resolvers: Vec<String> = choices.dns.iter().map(|ip| net(&(*ip).into())).collect();
        outbound.rule("--dns", "to", &resolvers, &["dns".to_owned()]);
    }
    inbound.finish(&outbound, true, &tests)
}

fn carried_by(number: usize, way: &Way) -> String {
    format!("way in, out {number}: {} {}", way.program, way.pid)
}

/// One address without its length, as people write it.
fn net(net: &IpNet) -> String {
    let whole = match net {
        IpNet::V4(net) => net.prefix_len() == 32,
        IpNet::V6(net) => net.prefix_len() == 128,
    };
    if whole { net.addr().to_string() } else { net.to_string() }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Where the resolvers of this host are: of resolv.conf, or of what stands behind a stub on this host.
#[must_use]
pub fn resolvers(read: &dyn Fn(&Path) -> Option<String>) -> Vec<IpAddr> {
    for place in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf"] {
        let Some(text) = read(Path::new(place)) else { continue };
        let mut found: Vec<IpAddr> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nameserver"))
            .filter_map(|rest| rest.trim().split('%').next()?.parse::<IpAddr>().ok())
            .filter(|address| !address.is_loopback())
            .collect();
        found.dedup();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

/// Rules of one direction being written.
#[derive(Default)]
struct Text {
    head: String,
    rules: String,
}

impl Text {
    fn new(name: &str) -> Self {
        Self { head: format!("version: 1\nname: {name}\nmode: enforce\n"), rules: String::new() }
    }

    fn rule(&mut self, name: &str, key: &str, remotes: &[String], services: &[String]) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.rules, "  - name: {}", quoted(&short(name)));
        let list = |words: &[String]| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", ");
        let _ = writeln!(self.rules, "    {key}: [{}]", list(remotes));
        let _ = writeln!(self.rules, "    services: [{}]", list(services));
    }

    /// `self` are the inbound rules.
    fn finish(&self, outbound: &Self, named: bool, tests: &[String]) -> String {
        let mut text = String::from("# Written by `guard lockdown`. Whatever is not listed is denied.\n");
        text.push_str(&self.head);
        if named {
            text.push_str("lockdown: true\n");
        }
        for (direction, rules) in [("inbound", &self.rules), ("outbound", &outbound.rules)] {
            let _ = match rules.is_empty() {
                true => writeln!(text, "{direction}: []"),
                false => write!(text, "{direction}:\n{rules}"),
            };
        }
        if !tests.is_empty() {
            text.push_str("tests:\n");
            for test in tests {
                let _ = writeln!(text, "  - {{ flow: {}, expect: allow }}", quoted(test));
            }
        }
        text
    }
}

/// Names may hold what a process called itself: made harmless, and bounded.
fn short(name: &str) -> String {
    crate::text::escape_line(name).chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use guard_common::Verdict;

    use super::*;
    use crate::policy::{
        answer::answer,
        compile::{Clocks, compile},
        load_str,
        model::{Mode, Policy},
    };

    fn way(remote: &str, range: &str, inbound: bool) -> Way {
        Way {
            inbound,
            remote: remote.parse().unwrap(),
            local: "192.0.2.1:22".parse().unwrap(),
            range: range.parse().unwrap(),
            service: if inbound { "tcp/22" } else { "tcp/443" }.to_owned(),
            pid: 3121,
            program: "sshd".to_owned(),
            found: "ancestor",
            cookie: 0,
        }
    }

    fn policy(text: &str) -> Policy {
        load_str("lockdown.yaml", text).unwrap_or_else(|found| panic!("{}\n{text}", found.render(false))).policy
    }

    fn verdict(policy: &Policy, flow: &str) -> Verdict {
        let now = Clocks { unix_ns: 0, boot_ns: 0 };
        let compiled = compile(policy, now, 1).unwrap();
        answer(policy, &compiled, &flow.parse().unwrap(), now).explanation.verdict
    }

    #[test]
    fn it_is_the_shipped_policy_for_these_responders() {
        let shipped = policy(include_str!("../../../policies/lockdown.yaml"));
        let choices = Choices {
            ways: vec![way("198.51.100.7:4000", "198.51.100.7/32", true)],
            allow_from: vec!["2001:db8:17::/48".parse().unwrap()],
            ssh: vec!["tcp/22".to_owned()],
            ..Choices::default()
        };
        let built = policy(&text(&choices));
        assert_eq!((built.inbound, built.outbound, built.lockdown), (Mode::Enforce, Mode::Enforce, true));
        assert!(shipped.lockdown);
        assert_eq!(built.essentials, shipped.essentials);
        for test in &shipped.tests {
            assert_eq!(verdict(&built, &test.text), test.expect, "{}", test.text);
        }
        assert_eq!(built.rules[0].name.as_deref(), Some("way in 1: sshd 3121"));
    }

    #[test]
    fn what_is_chosen_is_listed_and_nothing_else() {
        let offer = Offer {
            name: "rsyslog".to_owned(),
            outbound: [("tcp/6514".to_owned(), vec!["192.0.2.40".parse().unwrap()])].into(),
            ..Offer::default()
        };
        let choices = Choices {
            ways: vec![
                way("[2001:db8:17::7]:4000", "2001:db8:17::/64", true),
                way("203.0.113.200:443", "203.0.113.200/32", false),
            ],
            allow_to: vec!["192.0.2.20:tcp/2049".parse().unwrap()],
            ssh: vec!["tcp/22".to_owned()],
            dns: vec!["192.0.2.53".parse().unwrap()],
            serve: vec!["tcp/443".to_owned()],
            keep: vec![offer],
            ..Choices::default()
        };
        let built = policy(&text(&choices));
        for (flow, expected) in [
            ("in tcp [2001:db8:17::99] -> 22", Verdict::Allow),
            ("in tcp [2001:db8:18::7] -> 22", Verdict::Deny),
            ("in tcp 203.0.113.77 -> 443", Verdict::Allow),
            ("in tcp 203.0.113.77 -> 80", Verdict::Deny),
            ("out tcp 203.0.113.200:443", Verdict::Allow),
            ("out tcp 203.0.113.200:80", Verdict::Deny),
            ("out tcp 192.0.2.20:2049", Verdict::Allow),
            ("out udp 192.0.2.53:53", Verdict::Allow),
            ("out tcp 192.0.2.40:6514", Verdict::Allow),
            ("out tcp 192.0.2.40:443", Verdict::Deny),
        ] {
            assert_eq!(verdict(&built, flow), expected, "{flow}");
        }
        let open = policy(&ssh_only(&choices));
        assert!(!open.lockdown);
        assert_eq!(verdict(&open, "in tcp 203.0.113.77 -> 22"), Verdict::Allow);
        assert_eq!(verdict(&open, "in tcp 203.0.113.77 -> 443"), Verdict::Deny);
        assert_eq!(verdict(&open, "out tcp 192.0.2.40:6514"), Verdict::Deny);
    }

    #[test]
    fn this_session_only_lets_nobody_in() {
        let choices = Choices {
            ways: vec![way("198.51.100.7:4000", "198.51.100.7/32", true)],
            allow_from: vec!["192.0.2.20".parse().unwrap()],
            ssh: vec!["tcp/22".to_owned()],
            this_session_only: true,
            ..Choices::default()
        };
        let built = policy(&text(&choices));
        assert_eq!(verdict(&built, "in tcp 198.51.100.7 -> 22"), Verdict::Deny);
        assert_eq!(verdict(&built, "in tcp 192.0.2.20 -> 22"), Verdict::Allow);
        assert_eq!(built.rules[0].name.as_deref(), Some(THIS_SESSION));
        assert_eq!(built.rules[0].expires, Some(0));
    }

    #[test]
    fn nothing_chosen_is_nothing_allowed() {
        let built = policy(&text(&Choices::default()));
        assert!(built.rules.is_empty());
    }

    #[test]
    fn a_name_from_outside_stays_a_name() {
        let mut strange = way("198.51.100.7:4000", "198.51.100.7/32", true);
        strange.program = "x\"]\n  - { from: any, services: any } # \u{1b}[2J".to_owned();
        let built = policy(&text(&Choices { ways: vec![strange], ..Choices::default() }));
        assert_eq!(built.rules.len(), 1);
    }

    #[test]
    fn addresses_with_and_without_a_service() {
        let read = |text: &str| text.parse::<Allow>().map(|allow| (allow.net.to_string(), allow.service));
        assert_eq!(read("198.51.100.7"), Ok(("198.51.100.7/32".to_owned(), None)));
        assert_eq!(read("198.51.100.0/24:tcp/22"), Ok(("198.51.100.0/24".to_owned(), Some("tcp/22".to_owned()))));
        assert_eq!(read("2001:db8::/32"), Ok(("2001:db8::/32".to_owned(), None)));
        assert_eq!(read("[2001:db8::7]:ssh"), Ok(("2001:db8::7/128".to_owned(), Some("ssh".to_owned()))));
        assert_eq!(read("2001:db8::/32:tcp/22"), Ok(("2001:db8::/32".to_owned(), Some("tcp/22".to_owned()))));
        let help = |text: &str| text.parse::<Allow>().unwrap_err().to_string();
        assert!(help("198.51.100.7:22").contains("write tcp/22"), "{}", help("198.51.100.7:22"));
        assert!(help("198.51.100.7/24").contains("host bits"), "{}", help("198.51.100.7/24"));
        assert!(help("bastion.example").contains("bastion.example"), "{}", help("bastion.example"));
    }

    #[test]
    fn resolvers_are_those_behind_the_stub() {
        let stub = |path: &Path| match path.to_str()? {
            "/etc/resolv.conf" => Some("nameserver 127.0.0.53\noptions edns0\n".to_owned()),
            "/run/systemd/resolve/resolv.conf" => Some("nameserver 192.0.2.53\nnameserver fe80::1%2\n".to_owned()),
            _ => None,
        };
        assert_eq!(resolvers(&stub), ["192.0.2.53".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
        assert!(resolvers(&|_| None).is_empty());
    }
}
