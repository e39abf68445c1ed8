//! The same policy as an nftables ruleset: for kernels that cannot run guard, and for whoever wants to read it so.
//!
//! Verdicts for first packets are the same where nftables can express them. A rule is never wider than the policy's; what
//! nftables cannot hold as guard does, and lets pass for that reason, is said in [`Ruleset::notes`].

use std::{
    collections::HashMap,
    fmt::Write,
    net::{Ipv4Addr, Ipv6Addr},
};

use guard_common::{Direction, Verdict};

use super::{
    effective::hex,
    model::{AddressSet, ContainerHost, Mode, Policy, Rule, ServiceRange},
};

/// For `nft -f`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    pub text: String,
    /// What it does not say as the policy does, each in a sentence.
    pub notes: Vec<String>,
}

/// The table that it fills, and takes the place of.
pub const TABLE: &str = "inet guard";

/// What holds for every policy.
const ALWAYS: &[&str] = &[
    "a connection that is established goes on when a rule has expired or the ruleset is replaced: nftables does not judge \
     it again",
    "a TCP session that began before the ruleset is judged by the direction of its next packet, not by who began it",
    "ARP, EAPOL, LACP, LLDP, spanning tree and other frames that are not IP are not filtered: an inet table does not see \
     them",
    "packet sockets, XDP and programs at tc are not seen; forwarded packets are judged after address translation inbound \
     and before it outbound, and traffic among containers on a bridge is judged too",
    "essential traffic is told by address, port and type only: its lengths and options are not checked",
    "a DHCPv4 lease is renewed by broadcast alone: the server that gave it is not known here",
    "source routes are found by `ip option`, which needs Linux 5.3 and nft 0.9.2: on older ones take these two lines out",
    "a denied packet of a container is dropped, and its program not told: `on_deny` is not said",
    "nothing is recorded; `nft list ruleset` shows each rule's counter",
];

/// `now`: Unix time in nanoseconds; what has expired by then is left out.
#[must_use]
pub fn ruleset(policy: &Policy, now: i128) -> Ruleset {
    let mut sets = Sets::default();
    let mut notes = Vec::new();
    let judges: String = [Direction::Inbound, Direction::Outbound]
        .into_iter()
        .map(|direction| judge(policy, direction, now, &mut sets, &mut notes))
        .collect();
    if !policy.rules.iter().all(|rule| rule.expires.is_none_or(|expires| expires <= now)) {
        notes.push("rules expire to the second, by the wall clock (Linux 5.4)".to_owned());
    }
    if policy.lockdown {
        notes.push(
            "lockdown: an inbound session that began before the ruleset goes on where connection tracking knew it, though \
             its remote be not named"
                .to_owned(),
        );
    }
    if policy.container_host == ContainerHost::Ignore {
        notes.push(
            "what passes between this host and its containers is judged too, and as `container_host: guard` says; `ignore` is not \
             said"
                .to_owned(),
        );
    }
    notes.extend(ALWAYS.iter().map(|note| (*note).to_owned()));

    let mut text = format!(
        "#!/usr/sbin/nft -f\n# Policy {} (sha256 {}), written by guard {} at {}.\n# Not as the policy says it:\n",
        comment(&policy.name),
        hex(&policy.sha256),
        env!("CARGO_PKG_VERSION"),
        crate::record::clock::for_people(now),
    );
    for note in &notes {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "#  - {}", plain(note));
    }
    // Added first, so that there is one to delete.
    let _ = write!(text, "\nadd table {TABLE}\ndelete table {TABLE}\n\ntable {TABLE} {{\n{}{judges}", sets.text);
    text.push_str(&hooks(policy));
    text.push_str("}\n");
    Ruleset { text, notes }
}

/// What a denied packet gets: dropped, or, where that direction only audits, counted and passed.
fn deny(policy: &Policy, direction: Direction) -> &'static str {
    match mode(policy, direction) {
        Mode::Enforce => "counter drop",
        Mode::Audit => "counter return",
    }
}

fn mode(policy: &Policy, direction: Direction) -> Mode {
    match direction {
        Direction::Inbound => policy.inbound,
        Direction::Outbound => policy.outbound,
    }
}

/// A chain that returns for what is allowed and ends with what is not listed. Denies stand first: they win.
fn judge(policy: &Policy, direction: Direction, now: i128, sets: &mut Sets, notes: &mut Vec<String>) -> String {
    let mut text = format!("\tchain judge_{} {{\n", direction.as_str());
    for action in [Verdict::Deny, Verdict::Allow] {
        let verdict = if action == Verdict::Deny { deny(policy, direction) } else { "counter return" };
        for rule in policy.rules.iter().filter(|rule| (rule.direction, rule.action) == (direction, action)) {
            let label = comment(&rule.label());
            if rule.expires.is_some_and(|expires| expires <= now) {
                let _ = writeln!(text, "\t\t# expired: {label}");
                continue;
            }
            for conditions in conditions(rule, sets, notes) {
                let _ = writeln!(text, "\t\t{conditions}{verdict} comment \"{label}\"");
            }
        }
    }
    let _ = writeln!(text, "\t\t{} comment \"not listed\"\n\t}}", deny(policy, direction));
    text
}

/// Whatever the rules say, and of established flows too.
fn strictly_denied(policy: &Policy, direction: Direction) -> Vec<String> {
    let mut lines = vec!["icmp type redirect", "icmpv6 type nd-redirect"];
    if direction == Direction::Inbound {
        lines.extend(["ip option lsrr exists", "ip option ssrr exists", "exthdr rt exists"]);
    }
    lines.iter().map(|line| format!("{line} {}", deny(policy, direction))).collect()
}

/// The base chains: what passes before the rules are asked, then the rules.
fn hooks(policy: &Policy) -> String {
    let on = &policy.essentials;
    let mut text = String::new();
    for (hook, direction) in [("input", Direction::Inbound), ("output", Direction::Outbound)] {
        let inbound = direction == Direction::Inbound;
        let (device, dhcp, dhcpv6) = if inbound {
            (
                "iifname",
                "meta nfproto ipv4 udp sport 67 udp dport 68",
                "ip6 saddr fe80::/10 udp sport 547 udp dport 546",
            )
        } else {
            (
                "oifname",
                "ip daddr 255.255.255.255 udp sport 68 udp dport 67",
                "ip6 daddr { ff02::1:2, fe80::/10 } udp sport 546 udp dport 547",
            )
        };
        let essentials = [
            (on.neighbour_discovery, "icmpv6 type { 133, 134, 135, 136 } ip6 hoplimit 255", "neighbour_discovery"),
            (on.mld, "icmpv6 type { 130, 131, 132, 143 } ip6 hoplimit 1 ip6 saddr { ::, fe80::/10 }", "mld"),
            (on.dhcp, dhcp, "dhcp"),
            (on.dhcpv6, dhcpv6, "dhcpv6"),
        ];
        let mut lines = Vec::new();
        if on.loopback {
            lines.push(format!("{device} \"lo\" accept"));
        }
        lines.extend(strictly_denied(policy, direction));
        lines.extend(established(policy, mode(policy, direction)));
        let wanted = essentials.iter().filter(|(wanted, ..)| *wanted);
        lines.extend(wanted.map(|(_, what, name)| format!("{what} counter accept comment \"{name}\"")));
        lines.push(format!("jump judge_{}", direction.as_str()));
        lines.push("accept".to_owned());
        text.push_str(&base_chain(hook, mode(policy, direction), &lines));
    }
    // Passed on for others: judged as it comes in and as it goes out, as guard does between two guarded interfaces.
    let both =
        if policy.inbound == Mode::Enforce || policy.outbound == Mode::Enforce { Mode::Enforce } else { Mode::Audit };
    let mut lines = strictly_denied(policy, Direction::Inbound);
    lines.extend(established(policy, both));
    lines.extend(["jump judge_inbound", "jump judge_outbound", "accept"].map(str::to_owned));
    text.push_str(&base_chain("forward", both, &lines));
    text
}

fn base_chain(hook: &str, mode: Mode, lines: &[String]) -> String {
    let policy = if mode == Mode::Enforce { "drop" } else { "accept" };
    let lines: String = lines.iter().map(|line| format!("\t\t{line}\n")).collect();
    format!("\tchain {hook} {{\n\t\ttype filter hook {hook} priority 0; policy {policy};\n{lines}\t}}\n")
}

/// Replies pass, and errors about what passes; what connection tracking can make no sense of does not.
fn established(policy: &Policy, mode: Mode) -> Vec<String> {
    let mut lines = vec!["ct state established counter accept".to_owned()];
    if policy.essentials.icmp_errors {
        for errors in ["icmp type { 3, 11, 12 }", "icmpv6 type { 1, 2, 3, 4 }"] {
            lines.push(format!("ct state related {errors} counter accept comment \"icmp_errors\""));
        }
    }
    if mode == Mode::Enforce {
        lines.push("ct state invalid counter drop".to_owned());
    }
    lines
}

/// The conditions of a rule, as lines of which one must match; each ends in a blank, or is empty. None: it matches nothing.
fn conditions(rule: &Rule, sets: &mut Sets, notes: &mut Vec<String>) -> Vec<String> {
    let mut lines = Vec::new();
    let interfaces = interfaces(rule, notes);
    let services = services(&rule.services);
    let time = match rule.expires {
        Some(expires) => format!("meta time < {} ", expires.div_euclid(1_000_000_000).max(0)),
        None => String::new(),
    };
    for addresses in addresses(rule, sets) {
        for interface in &interfaces {
            for service in &services {
                lines.push(format!("{addresses}{interface}{service}{time}"));
            }
        }
    }
    lines
}

fn addresses(rule: &Rule, sets: &mut Sets) -> Vec<String> {
    if !rule.remote.named && rule.local.is_none() {
        return vec![String::new()];
    }
    let (remote, local) = match rule.direction {
        Direction::Inbound => ("saddr", "daddr"),
        Direction::Outbound => ("daddr", "saddr"),
    };
    let group = match &rule.remote.text[..] {
        [one] if one.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') => Some(one.as_str()),
        _ => None,
    };
    let mut lines = Vec::new();
    for family in [Family::V4, Family::V6] {
        let remote = sets.condition(family, remote, rule.remote.named.then_some(&*rule.remote.set), group);
        let local = sets.condition(family, local, rule.local.as_deref(), None);
        let (Some(remote), Some(local)) = (remote, local) else { continue };
        lines.push(match (remote.is_empty(), local.is_empty()) {
            (true, true) => format!("meta nfproto {} ", family.nfproto()),
            _ => format!("{remote}{local}"),
        });
    }
    lines
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn nfproto(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    const fn header(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// Sets of addresses, each once.
#[derive(Default)]
struct Sets {
    text: String,
    names: HashMap<(Family, AddressSet), String>,
}

impl Sets {
    /// `None`: no address of the family is in it. Empty: all are.
    fn condition(
        &mut self,
        family: Family,
        end: &str,
        set: Option<&AddressSet>,
        group: Option<&str>,
    ) -> Option<String> {
        let Some(set) = set else { return Some(String::new()) };
        let (elements, all): (Vec<String>, bool) = match family {
            Family::V4 => (
                set.v4.iter().map(|(a, b)| range(Ipv4Addr::from(*a), Ipv4Addr::from(*b))).collect(),
                set.v4 == [(0, u32::MAX)],
            ),
            Family::V6 => (
                set.v6.iter().map(|(a, b)| range(Ipv6Addr::from(*a), Ipv6Addr::from(*b))).collect(),
                set.v6 == [(0, u128::MAX)],
            ),
        };
        if elements.is_empty() {
            return None;
        }
        if all {
            return Some(String::new());
        }
        let of_family = match family {
            Family::V4 => AddressSet { v4: set.v4.clone(), v6: Vec::new() },
            Family::V6 => AddressSet { v4: Vec::new(), v6: set.v6.clone() },
        };
        let number = self.names.len() + 1;
        let text = &mut self.text;
        let name = self.names.entry((family, of_family)).or_insert_with(|| {
            // The number keeps names apart that were cut, and apart from nft's own words.
            let name = match group {
                Some(group) => format!("{}_{number}", group.chars().take(20).collect::<String>()),
                None => format!("addresses_{number}"),
            };
            let _ = write!(
                text,
                "\tset {name} {{\n\t\ttype {}_addr\n\t\tflags interval\n\t\telements = {{\n",
                family.nfproto()
            );
            for line in elements.chunks(4) {
                let _ = writeln!(text, "\t\t\t{},", line.join(", "));
            }
            text.push_str("\t\t}\n\t}\n");
            name
        });
        Some(format!("{} {end} @{name} ", family.header()))
    }
}

fn range<A: PartialEq + std::fmt::Display>(first: A, last: A) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn interfaces(rule: &Rule, notes: &mut Vec<String>) -> Vec<String> {
    let Some(patterns) = &rule.interface else { return vec![String::new()] };
    let device = if rule.direction == Direction::Inbound { "iifname" } else { "oifname" };
    let mut lines = Vec::new();
    for pattern in patterns.split(',') {
        let stem = pattern.strip_suffix('*').unwrap_or(pattern);
        if pattern == "*" {
            lines.push(String::new());
        } else if !stem.contains(['*', '?', '"', '\\']) && !stem.is_empty() {
            lines.push(format!("{device} \"{pattern}\" "));
        } else if rule.action == Verdict::Deny {
            notes.push(format!(
                "rule {}: interface {pattern} cannot be said, so it denies on every interface",
                rule.label()
            ));
            return vec![String::new()];
        } else {
            notes.push(format!(
                "rule {}: interface {pattern} cannot be said, so nothing is allowed by it",
                rule.label()
            ));
        }
    }
    lines
}

/// Of TCP, UDP, DCCP, SCTP and UDP-Lite: the name that nft has for their ports.
const fn ports_of(protocol: u32) -> Option<&'static str> {
    match protocol {
        6 => Some("tcp"),
        17 => Some("udp"),
        33 => Some("dccp"),
        132 => Some("sctp"),
        136 => Some("udplite"),
        _ => None,
    }
}

/// One line a protocol, and one for all that are whole; empty: any.
fn services(ranges: &[ServiceRange]) -> Vec<String> {
    /// Of protocol 255.
    const LAST: u32 = 0x00ff_ffff;
    let mut whole: Vec<String> = Vec::new();
    let mut parts: Vec<(u32, Vec<(u32, u32)>)> = Vec::new();
    for ServiceRange { first, last } in ranges.iter().filter(|range| range.first <= LAST) {
        let (first, last) = (*first, (*last).min(LAST));
        if (first, last) == (0, LAST) {
            return vec![String::new()];
        }
        let mut at = first;
        // A part of its first protocol, whole ones, a part of its last.
        while at <= last {
            let (protocol, end) = (at >> 16, (at | 0xffff).min(last));
            if at & 0xffff == 0 && end & 0xffff == 0xffff {
                let wholes = (last + 1) >> 16;
                whole.push(range(protocol, wholes - 1));
                at = wholes << 16;
            } else {
                let part = (at & 0xffff, end & 0xffff);
                match parts.iter_mut().find(|(known, _)| *known == protocol) {
                    Some((_, list)) => list.push(part),
                    None => parts.push((protocol, vec![part])),
                }
                at = end + 1;
            }
        }
    }
    let mut lines = Vec::new();
    for (protocol, parts) in parts {
        match (protocol, ports_of(protocol)) {
            (_, Some(name)) => {
                let ports: Vec<String> = parts.iter().map(|(first, last)| range(first, last)).collect();
                lines.push(format!("{name} dport {} ", one_of(&ports)));
            }
            (1 | 58, None) => {
                let name = if protocol == 1 { "icmp" } else { "icmpv6" };
                lines.extend(parts.iter().flat_map(|part| types(*part)).map(|line| line.replace("icmp", name)));
            }
            // Without ports its service is its number with a 0.
            (_, None) if parts.iter().any(|(first, _)| *first == 0) => whole.push(protocol.to_string()),
            (_, None) => {}
        }
    }
    if !whole.is_empty() {
        lines.push(format!("meta l4proto {} ", one_of(&whole)));
    }
    lines
}

/// `type << 8 | code`, from one to another: types that are whole, and parts of types.
fn types((first, last): (u32, u32)) -> Vec<String> {
    let mut lines = Vec::new();
    let mut at = first;
    while at <= last {
        let end = (at | 0xff).min(last);
        if at & 0xff == 0 && end & 0xff == 0xff {
            let wholes = (last + 1) >> 8;
            lines.push(format!("icmp type {} ", range(at >> 8, wholes - 1)));
            at = wholes << 8;
        } else {
            lines.push(format!("icmp type {} icmp code {} ", at >> 8, range(at & 0xff, end & 0xff)));
            at = end + 1;
        }
    }
    lines
}

fn one_of(list: &[String]) -> String {
    match list {
        [one] => one.clone(),
        many => format!("{{ {} }}", many.join(", ")),
    }
}

/// A rule's comment: nft keeps 128 bytes of it.
fn comment(text: &str) -> String {
    plain(text).chars().take(120).collect()
}

/// One line of ASCII without a quote, for which nft has no way to be written in one.
fn plain(text: &str) -> String {
    let plain = |c: char| match c {
        '"' => '\'',
        ' '..='~' => c,
        _ => '?',
    };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests;
