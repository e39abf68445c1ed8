//! A policy as it will hold, as YAML that `guard check` takes: includes and groups resolved, every default written out.

use std::fmt::Write as _;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::{
    essentials,
    model::{AddressSet, ContainerHost, Mode, Policy, Refusal, Rule},
    services::describe_range,
};

/// Addresses of one remote that are written on one line; more go one a line.
const ON_ONE_LINE: usize = 4;

/// The whole policy as one file.
#[must_use]
pub fn yaml(policy: &Policy) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "# effective policy; sha256 {} over {}", hex(&policy.sha256), files(policy));
    let _ = writeln!(text, "version: 1\nname: {}", quoted(&policy.name));
    let _ = writeln!(text, "mode: {{ inbound: {}, outbound: {} }}", mode(policy.inbound), mode(policy.outbound));
    for direction in [guard_common::Direction::Inbound, guard_common::Direction::Outbound] {
        let rules: Vec<&Rule> = policy.rules.iter().filter(|rule| rule.direction == direction).collect();
        if rules.is_empty() {
            let _ = writeln!(text, "\n{}: []   # denies all", direction.as_str());
            continue;
        }
        let _ = writeln!(text, "\n{}:", direction.as_str());
        for rule in rules {
            write_rule(&mut text, rule);
        }
    }
    text.push_str("\n# Essential traffic, each in its narrowest form (SECURITY.md).\nessentials:\n");
    for (name, switch, what) in essentials::NAMES {
        let mut essentials = policy.essentials;
        let set = format!("{name}: {}", *switch(&mut essentials));
        let _ = writeln!(text, "  {set:<27}# {what}");
    }
    if policy.lockdown {
        text.push_str("\n# An inbound flow that began before guard needs a remote that is named.\nlockdown: true\n");
    }
    let outbound = match policy.on_deny {
        Refusal::Drop => "drop",
        Refusal::Reject => "reject",
    };
    text.push_str("\n# What becomes of a denied packet: nothing is ever said toward the outside; who is behind this host is told.\n");
    let _ = writeln!(text, "on_deny: {{ inbound: drop, outbound: {outbound} }}");
    let judged = match policy.container_host {
        ContainerHost::Guard => "is judged as what crosses a guarded interface",
        ContainerHost::Ignore => "is not judged",
    };
    let _ = writeln!(
        text,
        "\n# What passes between containers or VMs on a bridge of this host and this host itself {judged}."
    );
    let _ = writeln!(text, "container_host: {}", policy.container_host.as_str());
    text.push_str(
        "\n# Whatever is not listed above is denied; so are source routes, ICMP redirects and what cannot be parsed.\n",
    );
    if policy.tests.is_empty() {
        return text;
    }
    text.push_str("\ntests:\n");
    for test in &policy.tests {
        let rule = test.rule.as_ref().map(|rule| format!(", rule: {}", quoted(rule))).unwrap_or_default();
        let _ = writeln!(text, "  - {{ flow: {}, expect: {}{rule} }}", quoted(&test.text), test.expect.as_str());
    }
    text
}

/// What passes, a line a rule, for a screen: `in   198.51.100.7 -> tcp/22   (way in 1)`.
#[must_use]
pub fn short(policy: &Policy) -> Vec<String> {
    let line = |rule: &Rule| {
        let way = if rule.direction == guard_common::Direction::Inbound { "in " } else { "out" };
        let remote = if rule.remote.named {
            let all: Vec<String> = networks(&rule.remote.set).map(|net| shown(&net)).collect();
            let more = all.len().saturating_sub(ON_ONE_LINE);
            let first = all.iter().take(ON_ONE_LINE).cloned().collect::<Vec<_>>().join(", ");
            if more == 0 { first } else { format!("{first} and {more} more") }
        } else {
            "any".to_owned()
        };
        let services: Vec<String> = rule.services.iter().map(|range| describe_range(*range)).collect();
        let deny = if rule.action == guard_common::Verdict::Deny { "DENY " } else { "" };
        let on = rule.interface.as_deref().map(|name| format!(" on {name}")).unwrap_or_default();
        let text = format!("{way} {deny}{remote}  {}{on}   ({})", services.join(", "), rule.label());
        crate::text::escape_line(&text)
    };
    let mut lines: Vec<String> = policy.rules.iter().map(line).collect();
    let mut on = policy.essentials;
    let names = essentials::NAMES.iter().filter(|(_, switch, _)| *switch(&mut on)).map(|(name, ..)| *name);
    lines.push(format!("essential: {}", names.collect::<Vec<_>>().join(", ")));
    lines.push("all else is denied, both ways".to_owned());
    lines
}

fn shown(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

fn write_rule(text: &mut String, rule: &Rule) {
    let place = &rule.place;
    let file = crate::text::escape_line(&place.file.display().to_string());
    let _ = writeln!(text, "  # {} {}", rule_label(rule), super::model::spoken_place(&file, place.line));
    let _ = writeln!(text, "  - action: {}", rule.action.as_str());
    if let Some(name) = &rule.name {
        let _ = writeln!(text, "    name: {}", quoted(name));
    }
    let key = if rule.direction == guard_common::Direction::Inbound { "from" } else { "to" };
    if rule.remote.named {
        let _ = writeln!(text, "    # {}", crate::text::escape_line(&rule.remote.text.join(", ")));
        write_set(text, key, &rule.remote.set);
    } else {
        let _ = writeln!(text, "    {key}: any");
    }
    let services: Vec<String> = rule.services.iter().map(|range| describe_range(*range)).collect();
    let _ = writeln!(text, "    services: [{}]", services.join(", "));
    if let Some(interface) = &rule.interface {
        let patterns: Vec<String> = interface.split(',').map(quoted).collect();
        let _ = writeln!(text, "    interface: [{}]", patterns.join(", "));
    }
    if let Some(local) = &rule.local {
        write_set(text, "local", local);
    }
    if let Some(expires) = rule.expires.and_then(|ns| jiff::Timestamp::from_nanosecond(ns).ok()) {
        let _ = writeln!(text, "    expires: {expires}");
    }
    if let Some(comment) = &rule.comment {
        let _ = writeln!(text, "    comment: {}", quoted(comment));
    }
}

fn rule_label(rule: &Rule) -> String {
    crate::text::escape_line(&rule.label())
}

fn write_set(text: &mut String, key: &str, set: &AddressSet) {
    let nets: Vec<String> = networks(set)
        .map(|net| match net {
            IpNet::V4(net) if net.prefix_len() == 32 => net.addr().to_string(),
            IpNet::V6(net) if net.prefix_len() == 128 => format!("\"{}\"", net.addr()),
            IpNet::V4(net) => net.to_string(),
            IpNet::V6(net) => format!("\"{net}\""),
        })
        .collect();
    if nets.len() <= ON_ONE_LINE {
        let _ = writeln!(text, "    {key}: [{}]", nets.join(", "));
        return;
    }
    let _ = writeln!(text, "    {key}:");
    for net in nets {
        let _ = writeln!(text, "      - {net}");
    }
}

/// The fewest networks that make up a set.
pub fn networks(set: &AddressSet) -> impl Iterator<Item = IpNet> + '_ {
    let v4 =
        set.v4.iter().flat_map(|(first, last)| Ipv4Subnets::new((*first).into(), (*last).into(), 0).map(IpNet::V4));
    let v6 =
        set.v6.iter().flat_map(|(first, last)| Ipv6Subnets::new((*first).into(), (*last).into(), 0).map(IpNet::V6));
    v4.chain(v6)
}

fn files(policy: &Policy) -> String {
    let names: Vec<String> =
        policy.files.iter().map(|file| crate::text::escape_line(&file.display().to_string())).collect();
    names.join(", ")
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Audit => "audit",
        Mode::Enforce => "enforce",
    }
}

/// A YAML scalar that reads back as `text`.
#[must_use]
pub fn quoted(text: &str) -> String {
    // JSON's strings are YAML's double-quoted ones.
    serde_json::Value::from(text).to_string()
}

#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
