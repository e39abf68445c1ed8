use super::*;
use crate::policy::load_str;

fn of(text: &str) -> Ruleset {
    let policy = load_str("n.yaml", text).unwrap_or_else(|found| panic!("{}", found.render(false))).policy;
    ruleset(&policy, 1_800_000_000_000_000_000)
}

#[test]
fn a_rule_is_one_line_a_family_and_a_deny_stands_before() {
    let made = of("version: 1\nname: \"a \\\"b\\\"\"\nmode: enforce\n\
        groups: { responders: [198.51.100.7, \"2001:db8:17::/48\"] }\n\
        inbound:\n  - { name: ssh, from: responders, services: [ssh, tcp/8000-8009, udp/53] }\n\
        \x20 - { name: no, action: deny, from: 198.51.100.0/24, services: any, interface: eth0 }\noutbound: []\n");
    let lines: Vec<&str> = made.text.lines().map(str::trim).collect();
    assert!(
        lines.contains(&"ip saddr @responders_2 tcp dport { 22, 8000-8009 } counter return comment \"ssh\""),
        "{}",
        made.text
    );
    assert!(lines.contains(&"ip6 saddr @responders_3 udp dport 53 counter return comment \"ssh\""), "{}", made.text);
    let deny =
        lines.iter().position(|line| line.starts_with("ip saddr @addresses_1 iifname \"eth0\" counter drop")).unwrap();
    assert!(deny < lines.iter().position(|line| line.contains("\"ssh\"")).unwrap());
    assert!(made.text.starts_with("#!/usr/sbin/nft -f\n# Policy a 'b' (sha256 "), "{}", made.text);
    assert!(lines.contains(&"2001:db8:17::-2001:db8:17:ffff:ffff:ffff:ffff:ffff,"), "{}", made.text);
}

#[test]
fn what_cannot_be_said_is_narrower_and_noted() {
    let made = of("version: 1\nname: n\nmode: enforce\ninbound:\n\
        \x20 - { name: some, from: any, services: ssh, interface: \"eth?\" }\n\
        \x20 - { name: more, from: any, services: ssh, interface: \"wg*\" }\n\
        \x20 - { name: not, action: deny, from: any, services: ssh, interface: \"e*h\" }\n\
        \x20 - { name: old, from: any, services: ntp, expires: 2020-01-01T00:00:00Z }\n\
        \x20 - { name: new, from: any, services: ntp, expires: 2030-01-01T00:00:00Z }\noutbound: []\n");
    let rules: Vec<&str> = made
        .text
        .lines()
        .filter(|line| line.contains("dport 22") || line.contains("dport 123"))
        .map(str::trim)
        .collect();
    assert_eq!(
        rules,
        [
            "tcp dport 22 counter drop comment \"not\"",
            "iifname \"wg*\" tcp dport 22 counter return comment \"more\"",
            "udp dport 123 meta time < 1893456000 counter return comment \"new\"",
        ]
    );
    for note in ["rule some: interface eth?", "rule not: interface e*h"] {
        assert!(made.notes.iter().any(|line| line.starts_with(note)), "{note}: {:?}", made.notes);
    }
    assert!(made.text.contains("# expired: old"));
}

#[test]
fn services_are_cut_at_protocols_and_types() {
    let of = |first, last| services(&[ServiceRange { first, last }]);
    assert_eq!(of(0, u32::MAX), [""]);
    assert_eq!(of(6 << 16, 6 << 16 | 0xffff), ["meta l4proto 6 "]);
    assert_eq!(of(6 << 16 | 443, 17 << 16 | 53), ["tcp dport 443-65535 ", "udp dport 0-53 ", "meta l4proto 7-16 "]);
    assert_eq!(of(1 << 16 | 8 << 8, 1 << 16 | 8 << 8 | 255), ["icmp type 8 "]);
    assert_eq!(
        of(1 << 16 | 8 << 8 | 3, 1 << 16 | 11 << 8 | 1),
        ["icmp type 8 icmp code 3-255 ", "icmp type 9-10 ", "icmp type 11 icmp code 0-1 "]
    );
    assert_eq!(of(58 << 16 | 128 << 8, 58 << 16 | 128 << 8), ["icmpv6 type 128 icmpv6 code 0 "]);
    assert_eq!(of(47 << 16, 47 << 16), ["meta l4proto 47 "]);
    // A protocol without ports has no service 9.
    assert!(of(47 << 16 | 9, 47 << 16 | 9).is_empty());
    assert_eq!(of(255 << 16, u32::MAX), ["meta l4proto 255 "]);
}

#[test]
fn audit_counts_and_passes() {
    let made = of("version: 1\nname: n\nmode: { inbound: audit, outbound: enforce }\ninbound: []\noutbound: []\n");
    assert!(made.text.contains("hook input priority 0; policy accept;"));
    assert!(made.text.contains("hook output priority 0; policy drop;"));
    let chain = made.text.split("chain judge_inbound").nth(1).unwrap().split('}').next().unwrap();
    assert!(!chain.contains("drop") && chain.contains("counter return comment \"not listed\""), "{chain}");
}
