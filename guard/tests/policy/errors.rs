//! Every error that there is: its code, its place, and that it says what to do.

use guard::policy::{diagnostics::Level, load_str};

/// Loads a policy that must be wrong in exactly these ways: (code, line, underlined text, part of the help).
#[track_caller]
fn refused(text: &str, expected: &[(&str, u32, &str, &str)]) {
    let found = load_str("policy.yaml", text).expect_err("it was accepted");
    let errors: Vec<_> = found.of(Level::Error).collect();
    let shown = found.render(false);
    assert_eq!(errors.len(), expected.len(), "{shown}");
    for (error, (code, line, marked, help)) in errors.iter().zip(expected) {
        let excerpt = error.excerpt.as_ref().unwrap_or_else(|| panic!("no place: {shown}"));
        assert_eq!((error.code, excerpt.place.line, excerpt.marked_text()), (*code, *line, *marked), "{shown}");
        let said = error.help.as_deref().unwrap_or("");
        assert!(said.contains(help), "{help:?} is not in {said:?}");
    }
}

/// A policy with these outbound rules, the first on line 4.
fn outbound(rules: &str) -> String {
    format!("version: 1\ninbound: []\noutbound:\n{rules}\n")
}

/// A policy with these groups (the first on line 5), all of them used.
fn groups(groups: &str) -> String {
    format!("version: 1\ninbound: []\noutbound: []\ngroups:\n{groups}\n")
}

#[test]
fn the_top() {
    refused("inbound: []\noutbound: []\n", &[("no_version", 1, "", "version: 1")]);
    refused("version: 2\ninbound: []\noutbound: []\n", &[("bad_version", 1, "2", "version: 1")]);
    refused("version: 1\n", &[("no_direction", 1, "", "`inbound: []`"), ("no_direction", 1, "", "`outbound: []`")]);
    refused(
        "version: 1\ninbond: []\noutbound: []\n",
        &[("no_direction", 1, "", "inbound"), ("unknown_key", 2, "inbond", "`inbound`")],
    );
    refused("", &[("wrong_type", 1, "", "key: value")]);
    refused("[1, 2]", &[("wrong_type", 1, "[1, 2]", "key: value")]);
    refused(
        "version: 1\ninbound:\noutbound: {}\n",
        &[("wrong_type", 2, "", "`inbound: []`"), ("wrong_type", 3, "{}", "`outbound: []`")],
    );
    refused("version: 1\nmode: strict\ninbound: []\noutbound: []\n", &[("bad_mode", 2, "strict", "enforce, audit")]);
    refused(
        "version: 1\nmode: { inbuond: audit }\ninbound: []\noutbound: []\n",
        &[("unknown_key", 2, "inbuond", "`inbound`")],
    );
    refused("version: 1\nname: \"\"\ninbound: []\noutbound: []\n", &[("bad_name", 2, "\"\"", "printable")]);
    refused("version: 1\nversion: 1\ninbound: []\noutbound: []\n", &[("duplicate_key", 2, "version", "keep one")]);
    refused(
        "version: 1\nessentials: { dcp: false }\ninbound: []\noutbound: []\n",
        &[("unknown_key", 2, "dcp", "`dhcp`")],
    );
    refused(
        "version: 1\nessentials: { dhcp: \"no\" }\ninbound: []\noutbound: []\n",
        &[("wrong_type", 2, "\"no\"", "true or false")],
    );
}

#[test]
fn yaml_itself() {
    refused("version: 1\n\tinbound: []\n", &[("yaml_syntax", 2, "\t", "spaces")]);
    refused("version: 1\n---\nversion: 1\n", &[("several_documents", 2, "---", "include")]);
    refused("version: !int 1\n", &[("yaml_tag", 1, "1", "leave")]);
    let deep = format!("version: 1\ninbound: {}{}\n", "[".repeat(100), "]".repeat(100));
    assert_eq!(load_str("policy.yaml", &deep).unwrap_err().list.len(), 1);
}

#[test]
fn what_a_rule_must_have() {
    refused(&outbound("  - services: ssh"), &[("no_remote", 4, "services: ssh", "`to: any`")]);
    refused(&outbound("  - to: 10.0.0.1"), &[("no_services", 4, "to: 10.0.0.1", "services: any")]);
    refused(&outbound("  - { to: [], services: ssh }"), &[("empty_value", 4, "[]", "`to: any`")]);
    refused(&outbound("  - { to: 10.0.0.1, services: [] }"), &[("empty_value", 4, "[]", "`services: any`")]);
    refused(&outbound("  - { to: , services: ssh }"), &[("empty_value", 4, "", "`to: any`")]);
    refused(&outbound("  - { from: 10.0.0.1, services: ssh }"), &[("wrong_remote_key", 4, "10.0.0.1", "write `to:`")]);
    refused(
        "version: 1\ninbound:\n  - { to: any, services: ssh }\noutbound: []\n",
        &[("wrong_remote_key", 3, "any", "write `from:`")],
    );
    refused(&outbound("  - ssh"), &[("wrong_type", 4, "ssh", "key: value")]);
    refused(
        &outbound("  - { to: any, services: ssh, action: reject }"),
        &[("bad_verdict", 4, "reject", "allow or deny")],
    );
    refused(
        &outbound("  - { to: any, services: ssh, interfaces: eth0 }"),
        &[("unknown_key", 4, "interfaces", "`interface`")],
    );
    refused(&outbound("  - { to: any, services: ssh, interface: a/b }"), &[("bad_interface", 4, "a/b", "eth1")]);
    refused(
        &outbound("  - { to: any, services: ssh, interface: a-very-long-interface-name }"),
        &[("bad_interface", 4, "a-very-long-interface-name", "pattern")],
    );
    refused(&outbound("  - { to: {a: b}, services: ssh }"), &[("wrong_type", 4, "{a: b}", "")]);
}

#[test]
fn names() {
    refused(
        &outbound("  - { name: x, to: any, services: ssh }\n  - { name: x, to: any, services: http }"),
        &[("duplicate_name", 5, "x", "another name")],
    );
    refused(
        &outbound("  - { name: \"outbound[3]\", to: any, services: ssh }"),
        &[("bad_name", 4, "\"outbound[3]\"", "say what")],
    );
    refused(&outbound("  - { name: \" x\", to: any, services: ssh }"), &[("bad_name", 4, "\" x\"", "printable")]);
    refused(
        &outbound("  - { name: \"a\\u001bb\", to: any, services: ssh }"),
        &[("bad_name", 4, "\"a\\u001bb\"", "printable")],
    );
}

#[test]
fn addresses() {
    let to = |what: &str| outbound(&format!("  - {{ to: {what}, services: ssh }}"));
    refused(&to("10.0.0.5/24"), &[("host_bits", 4, "10.0.0.5/24", "10.0.0.0/24")]);
    refused(&to("\"2001:db8::5/64\""), &[("host_bits", 4, "\"2001:db8::5/64\"", "2001:db8::/64")]);
    refused(&to("10.0.0.0/33"), &[("bad_prefix", 4, "10.0.0.0/33", "0 to 32")]);
    refused(&to("10.0.0.0/255.0.0.0"), &[("netmask", 4, "10.0.0.0/255.0.0.0", "10.0.0.0/8")]);
    refused(&to("10.0.0.01"), &[("leading_zero", 4, "10.0.0.01", "10.0.0.1")]);
    refused(
        &to("10.0.0.256"),
        &[("host_name", 4, "10.0.0.256", "")].map(|mut e| {
            e.0 = "bad_address";
            e
        }),
    );
    refused(&to("\"fe80::1%eth0\""), &[("zone", 4, "\"fe80::1%eth0\"", "interface: eth0")]);
    refused(&to("\"::ffff:10.0.0.1\""), &[("mapped_address", 4, "\"::ffff:10.0.0.1\"", "10.0.0.1")]);
    refused(&to("\"[2001:db8::1]\""), &[("brackets", 4, "\"[2001:db8::1]\"", "2001:db8::1")]);
    refused(&to("host.example"), &[("host_name", 4, "host.example", "list file")]);
    refused(&to("\"*.host.example\""), &[("host_name", 4, "\"*.host.example\"", "egress proxy")]);
    refused(&to("[any, 10.0.0.1]"), &[("any_and_more", 4, "any", "`to: any`")]);
    refused(&to("responders"), &[("unknown_group", 4, "responders", "groups:")]);
}

#[test]
fn ipv6_without_quotes() {
    refused(
        &outbound("  - to: [10.0.0.1, 2001:db8::]\n    services: ssh"),
        &[("unquoted_ipv6", 4, "2001:db8::", "quote it: \"2001:db8::\"")],
    );
    refused(&outbound("  - to: 2001:db8::\n    services: ssh"), &[("yaml_syntax", 4, ":", "quote it: \"2001:db8::\"")]);
    // What YAML leaves alone needs no quotes.
    assert!(load_str("p", &outbound("  - { to: 2001:db8::1/128, services: ssh }")).is_ok());
    assert!(load_str("p", &outbound("  - to: [2001:db8::1, 2001:db8:1::/48]\n    services: ssh")).is_ok());
}

#[test]
fn services() {
    let service = |what: &str| outbound(&format!("  - {{ to: any, services: {what} }}"));
    refused(&service("tcp/8999-8000"), &[("inverted_port_range", 4, "8999-8000", "tcp/8000-8999")]);
    refused(&service("tcp/8000-"), &[("empty_port_range", 4, "8000-", "tcp/8000-65535")]);
    refused(&service("tcp/-"), &[("empty_port_range", 4, "-", "tcp/*")]);
    refused(&service("tcp/"), &[("no_port", 4, "", "tcp/*")]);
    refused(&service("tcp"), &[("no_port", 4, "tcp", "tcp/*")]);
    refused(&service("tcp/0"), &[("port_zero", 4, "0", "1 to 65535")]);
    refused(&service("tcp/65536"), &[("port_too_large", 4, "65536", "1 to 65535")]);
    refused(&service("tcp/https"), &[("bad_port", 4, "https", "write https")]);
    refused(&service("443"), &[("no_protocol", 4, "443", "tcp/443")]);
    refused(&service("443/tcp"), &[("reversed_service", 4, "443/tcp", "tcp/443")]);
    refused(&service("\"tcp:443\""), &[("bad_service", 4, "\"tcp:443\"", "tcp/443")]);
    refused(&service("tpc/443"), &[("unknown_protocol", 4, "tpc/443", "tcp/443")]);
    refused(&service("icmp/echo-requst"), &[("bad_icmp_type", 4, "icmp/echo-requst", "icmp/echo-request")]);
    refused(&service("icmp/3/x"), &[("bad_icmp_code", 4, "icmp/3/x", "icmp/3")]);
    refused(&service("proto/300"), &[("bad_protocol", 4, "proto/300", "proto/47")]);
    refused(&service("htps"), &[("unknown_service", 4, "htps", "`https`")]);
    let define = |what: &str| format!("version: 1\ninbound: []\noutbound: []\nservices:\n{what}\n");
    refused(&define("  ssh: tcp/2222"), &[("built_in_service", 5, "ssh", "another name")]);
    refused(&define("  Git: tcp/2222"), &[("bad_service_name", 5, "Git", "small letters")]);
    refused(
        &define(
            "  a: [b]
  b: [a]",
        ),
        &[("services_too_deep", 6, "a", "ports themselves")],
    );
}

#[test]
fn groups_of_addresses() {
    refused(&groups("  a: [b]\n  b: [a]"), &[("group_cycle", 6, "a", "out of the circle")]);
    refused(&groups("  a: [nonsense]"), &[("unknown_group", 5, "nonsense", "groups:")]);
    refused(&groups("  mirrors: [10.0.0.1]\n  b: [mirors]"), &[("unknown_group", 6, "mirors", "`mirrors`")]);
    refused(&groups("  a: []"), &[("empty_value", 5, "[]", "at least one")]);
    refused(&groups("  a: [any]"), &[("any_in_group", 5, "any", "0.0.0.0/0")]);
    refused(&groups("  any: [10.0.0.1]"), &[("bad_group_name", 5, "any", "taken")]);
    refused(&groups("  host.example: [10.0.0.1]"), &[("bad_group_name", 5, "host.example", "small letters")]);
    refused(&groups("  a: { except: [10.0.0.1] }"), &[("no_items", 5, "{ except: [10.0.0.1] }", "any_of")]);
    refused(&groups("  a: { any_of: [10.0.0.1], except: [10.0.0.0/8] }"), &[("empty_group", 5, "a", "`except`")]);
    refused(
        &groups("  a: { file: x, any_of: [10.0.0.1] }"),
        &[("file_missing", 5, "x", "relative"), ("file_and_items", 5, "[10.0.0.1]", "group of its own")],
    );
    refused(&groups("  a: { any_of: [10.0.0.1], allow_empty: true }"), &[("allow_empty", 5, "true", "leave it out")]);
    refused(
        &groups("  a: { fil: x }"),
        &[("no_items", 5, "{ fil: x }", "any_of"), ("unknown_key", 5, "fil", "`file`")],
    );
    refused(&groups("  a: 10.0.0.1\n  a: 10.0.0.2"), &[("duplicate_key", 6, "a", "keep one")]);
    let chain: String = (0..200).map(|n| format!("  g{n}: [g{}]\n", n + 1)).collect();
    let found = load_str("p", &groups(&format!("{chain}  g200: [10.0.0.1]"))).unwrap_err();
    assert!(found.list.iter().any(|d| d.code == "groups_too_deep"));
}

#[test]
fn expiry() {
    let expires = |when: &str| outbound(&format!("  - {{ to: any, services: ssh, expires: {when} }}"));
    refused(&expires("2027-01-01"), &[("bad_expiry", 4, "2027-01-01", "2027-01-01T00:00:00Z")]);
    refused(
        &expires("\"2027-01-01T00:00:00\""),
        &[("bad_expiry", 4, "\"2027-01-01T00:00:00\"", "2027-01-01T00:00:00Z for UTC")],
    );
    refused(&expires("tomorrow"), &[("bad_expiry", 4, "tomorrow", "RFC 3339")]);
    refused(&expires("2027-02-30T00:00:00Z"), &[("bad_expiry", 4, "2027-02-30T00:00:00Z", "RFC 3339")]);
    let kept = load_str("p", &expires("2999-01-01T01:00:00+01:00")).unwrap();
    assert_eq!(kept.policy.rules[0].expires.map(|ns| ns / 1_000_000_000), Some(32_472_144_000));
}

#[test]
fn tests_of_a_policy() {
    let test = |what: &str| format!("version: 1\ninbound: []\noutbound: []\ntests:\n  - {what}\n");
    refused(&test("{ flow: \"out tcp 10.0.0.1\", expect: deny }"), &[("bad_flow", 5, "\"out tcp 10.0.0.1\"", "443")]);
    refused(
        &test("{ flow: \"out tcp 10.0.0.1:1\" }"),
        &[("incomplete_test", 5, "{ flow: \"out tcp 10.0.0.1:1\" }", "expect")],
    );
    refused(&test("{ expect: deny }"), &[("incomplete_test", 5, "{ expect: deny }", "flow")]);
    refused(
        &test("{ flow: \"out tcp 10.0.0.1:1\", expect: denied }"),
        &[("bad_verdict", 5, "denied", "allow or deny")],
    );
    refused(
        &test("{ flow: \"out tcp 10.0.0.1:1\", expect: deny, rule: nope }"),
        &[("unknown_rule", 5, "nope", "rule of this policy")],
    );
}

#[test]
fn all_errors_at_once() {
    let found = load_str(
        "policy.yaml",
        &outbound("  - { to: 10.0.0.5/24, services: htps }\n  - { to: [10.0.0.0/99, x.y], services: tcp/9-8 }"),
    )
    .unwrap_err();
    let codes: Vec<_> = found.of(Level::Error).map(|d| d.code).collect();
    assert_eq!(codes, ["host_bits", "unknown_service", "bad_prefix", "host_name", "inverted_port_range"]);
    assert_eq!(found.summary(), "5 errors, 1 warning");
}
