//! Every warning that there is.

use guard::policy::{diagnostics::Level, load_str};

/// The warnings of a policy that is valid, by code and line; those that every small example gets are left out.
#[track_caller]
fn warnings(text: &str) -> Vec<(&'static str, u32)> {
    let loaded = load_str("policy.yaml", text).unwrap_or_else(|found| panic!("{}", found.render(false)));
    assert!(loaded.warnings.list.iter().all(|d| d.level == Level::Warning && d.help.is_some()));
    let usual = ["no_resolver", "no_time_server", "nobody_in"];
    let list = loaded.warnings.list.iter().filter(|d| !usual.contains(&d.code));
    list.map(|d| (d.code, d.excerpt.as_ref().map_or(0, |e| e.place.line))).collect()
}

fn all_codes(text: &str) -> Vec<&'static str> {
    load_str("policy.yaml", text).unwrap().warnings.list.iter().map(|d| d.code).collect()
}

/// With these outbound rules, the first on line 5.
fn outbound(rules: &str) -> String {
    format!("version: 1\nmode: enforce\ninbound: []\noutbound:\n{rules}\n")
}

#[test]
fn a_policy_without_mode() {
    let text = "version: 1\ninbound: []\noutbound: []\n";
    assert_eq!(warnings(text), [("no_mode", 1)]);
    assert_eq!(warnings(&text.replace("inbound:", "mode: { inbound: enforce }\ninbound:")), [("no_mode", 2)]);
    assert!(warnings(&outbound("  []")).is_empty());
    let loaded = load_str("p", text).unwrap();
    assert_eq!(loaded.policy.inbound, guard::policy::model::Mode::Audit);
}

#[test]
fn what_a_host_needs() {
    assert_eq!(all_codes(&outbound("  []")), ["nobody_in", "no_resolver", "no_time_server"]);
    let good = "version: 1\nmode: enforce\ninbound:\n  - { from: 10.0.0.1, services: ssh }\noutbound:\n  - { to: 10.0.0.53, services: [dns, ntp] }\n";
    assert!(all_codes(good).is_empty());
    // An expired way in is none; a deny is none either.
    let expired = good.replace("services: ssh", "services: ssh, expires: 2001-01-01T00:00:00Z");
    assert_eq!(all_codes(&expired), ["nobody_in", "expired"]);
    let denied = good.replace("services: ssh", "services: ssh, action: deny");
    assert_eq!(all_codes(&denied), ["nobody_in"]);
}

#[test]
fn a_rule_that_allows_everything() {
    assert_eq!(warnings(&outbound("  - { to: any, services: any }")), [("allows_everything", 5)]);
    assert!(warnings(&outbound("  - { to: any, services: any, action: deny }")).is_empty());
    assert!(warnings(&outbound("  - { to: any, services: https }")).is_empty());
}

#[test]
fn rules_that_decide_nothing() {
    let wide = "  - { to: 10.0.0.0/8, services: any }\n";
    assert_eq!(
        warnings(&outbound(&format!("{wide}  - {{ to: 10.1.0.0/16, services: https }}"))),
        [("never_decides", 6)]
    );
    // The wider one second: the narrow one is still named.
    assert!(warnings(&outbound(&format!("  - {{ to: 10.1.0.0/16, services: https }}\n{wide}"))).is_empty());
    // A deny settles it wherever it stands.
    assert_eq!(
        warnings(&outbound(&format!(
            "  - {{ to: 10.1.0.0/16, services: https }}\n{}",
            wide.replace("any }", "any, action: deny }")
        ))),
        [("never_decides", 5)]
    );
    // On one interface only, or until some time only: not hidden.
    assert!(
        warnings(&outbound(&format!(
            "{}  - {{ to: 10.1.0.0/16, services: https }}",
            wide.replace("any }", "any, interface: eth1 }")
        )))
        .is_empty()
    );
    assert!(
        warnings(&outbound(&format!(
            "{}  - {{ to: 10.1.0.0/16, services: https }}",
            wide.replace("any }", "any, expires: 2999-01-01T00:00:00Z }")
        )))
        .is_empty()
    );
    assert_eq!(warnings(&outbound("  - { to: 10.0.0.1, services: icmpv6/echo-request }")), [("never_decides", 5)]);
    assert_eq!(warnings(&outbound("  - { to: 10.0.0.1, services: ssh, local: \"fe80::1\" }")), [("never_decides", 5)]);
}

#[test]
fn a_listed_remote_that_a_deny_hides() {
    let rules =
        "  - { to: [10.0.0.1, 10.9.0.1], services: https }\n  - { action: deny, to: 10.9.0.0/16, services: any }";
    assert_eq!(warnings(&outbound(rules)), [("hidden_remote", 5)]);
    // Inside a group.
    let group = outbound("  - { to: trusted, services: https }\n  - { action: deny, to: 10.9.0.0/16, services: any }");
    let group = group.replace("mode: enforce", "mode: enforce\ngroups: { trusted: [10.0.0.1, 10.9.0.1] }");
    assert_eq!(warnings(&group), [("hidden_remote", 6)]);
    // A hole in a wide rule is what denies are for.
    let hole = "  - { to: 10.0.0.0/8, services: https }\n  - { action: deny, to: 10.9.0.0/16, services: any }";
    assert!(warnings(&outbound(hole)).is_empty());
}

#[test]
fn expiries() {
    let expires = |when: &str, action: &str| {
        outbound(&format!("  - {{ to: 10.0.0.1, services: ssh, expires: {when}, action: {action} }}"))
    };
    assert_eq!(warnings(&expires("2001-01-01T00:00:00Z", "allow")), [("expired", 5)]);
    assert_eq!(warnings(&expires("2999-01-01T00:00:00Z", "deny")), [("deny_expires", 5)]);
    assert!(warnings(&expires("2999-01-01T00:00:00Z", "allow")).is_empty());
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(30);
    assert_eq!(warnings(&expires(&soon.to_string(), "allow")), [("expires_soon", 5)]);
}

#[test]
fn one_family_only() {
    assert_eq!(warnings(&outbound("  - { to: 0.0.0.0/0, services: https }")), [("one_family", 5)]);
    assert_eq!(warnings(&outbound("  - { to: \"::/0\", services: https }")), [("one_family", 5)]);
    assert!(warnings(&outbound("  - { to: [0.0.0.0/0, \"::/0\"], services: https }")).is_empty());
}

#[test]
fn documentation_addresses() {
    assert_eq!(
        warnings(&outbound("  - { to: [10.0.0.1, 192.0.2.1], services: https }")),
        [("documentation_address", 5)]
    );
}

#[test]
fn groups_and_services_that_nobody_uses() {
    let text = "version: 1\nmode: audit\ngroups:\n  a: [10.0.0.1]\n  b: [a]\nservices:\n  git: tcp/22\ninbound: []\noutbound: []\n";
    assert_eq!(warnings(text), [("unused", 5), ("unused", 7)].map(|w| w).as_slice().to_vec());
}
