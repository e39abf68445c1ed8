//! One policy and the flows that show every kind of verdict that it gives: what each must get, by whom.

use crate::{
    flows::{Flow, serve},
    world::World,
};

/// With `MODE` to be replaced.
pub const POLICY: &str = r#"
version: 1
name: verdicts
mode: MODE
groups:
  responders: [198.51.100.7, "2001:db8:17::/48"]
  outside: [203.0.113.0/24, "2001:db8:bad::/48"]
  neighbours: { any_of: [192.0.2.0/24, "2001:db8:2::/64"], except: [192.0.2.128/25] }
  intruder: [203.0.113.9, "2001:db8:bad::9"]
services:
  admin: [tcp/22, tcp/8000-8999]
inbound:
  - { name: administration, from: responders, services: admin }
  - { name: wide web, from: outside, services: [tcp/443, udp/443] }
  - { name: narrow, from: intruder, services: tcp/8443 }
  - { name: dns for all, from: any, services: dns }
  - { name: no dns for the intruder, action: deny, from: intruder, services: udp/53 }
  - { name: pings from neighbours, from: neighbours, services: ping }
  - { name: on the back link, from: any, services: tcp/7001, interface: eth1 }
  - { name: on the second address, from: any, services: tcp/7002, local: [192.0.2.11, "2001:db8:2::11"] }
outbound:
  - { name: mirrors, to: responders, services: [tcp/443, udp/443, ping] }
  - { name: resolvers, to: neighbours, services: dns }
  - { name: much of the outside, to: outside, services: [tcp/1-9999, "udp/*"] }
  - { name: not the intruder's shell, action: deny, to: intruder, services: [tcp/4444, udp/4444] }
  - { name: out by the back link, to: any, services: [tcp/9001, udp/9001], interface: "eth1*" }
"#;

/// What a flow must get.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub flow: Flow,
    pub allowed: bool,
    pub rule: Option<&'static str>,
    pub reason: &'static str,
    /// Neither the interface nor our own address matters to it.
    pub plain: bool,
}

#[must_use]
pub fn policy(mode: &str) -> String {
    POLICY.replace("MODE", mode)
}

/// In both families.
#[must_use]
pub fn cases() -> Vec<Case> {
    let allow = "rule_allow";
    let table: &[(&str, Option<&'static str>, &'static str)] = &[
        ("in tcp responder 22", Some("administration"), allow),
        ("in tcp responder 8000", Some("administration"), allow),
        ("in tcp responder 8999", Some("administration"), allow),
        ("in tcp responder 7999", None, "not_listed"),
        ("in tcp responder 9000", None, "not_listed"),
        ("in udp responder 8000", None, "not_listed"),
        ("in tcp client 22", None, "not_listed"),
        ("in tcp intruder 22", None, "not_listed"),
        // The narrower prefix does not hide the wider one's ports.
        ("in tcp intruder 443", Some("wide web"), allow),
        ("in udp intruder 443", Some("wide web"), allow),
        ("in tcp intruder 8443", Some("narrow"), allow),
        ("in tcp client 8443", None, "not_listed"),
        ("in udp client 53", Some("dns for all"), allow),
        ("in tcp intruder 53", Some("dns for all"), allow),
        ("in udp intruder 53", Some("no dns for the intruder"), "rule_deny"),
        ("in ping client", Some("pings from neighbours"), allow),
        ("in ping intruder", None, "not_listed"),
        ("in tcp back 7001", Some("on the back link"), allow),
        ("in tcp client 7001", None, "not_listed"),
        ("in tcp client 7002 second", Some("on the second address"), allow),
        ("in tcp client 7002", None, "not_listed"),
        ("out tcp responder 443", Some("mirrors"), allow),
        ("out udp responder 443", Some("mirrors"), allow),
        ("out ping responder", Some("mirrors"), allow),
        ("out ping intruder", None, "not_listed"),
        ("out tcp responder 22", None, "not_listed"),
        ("out udp client 53", Some("resolvers"), allow),
        ("out tcp client 53", Some("resolvers"), allow),
        ("out udp client 54", None, "not_listed"),
        ("out tcp intruder 9999", Some("much of the outside"), allow),
        ("out tcp intruder 10000", None, "not_listed"),
        ("out udp intruder 20000", Some("much of the outside"), allow),
        ("out tcp intruder 4444", Some("not the intruder's shell"), "rule_deny"),
        ("out udp intruder 4444", Some("not the intruder's shell"), "rule_deny"),
        ("out tcp back 9001", Some("out by the back link"), allow),
        ("out udp back 9001", Some("out by the back link"), allow),
        ("out tcp client 9001", None, "not_listed"),
    ];
    let case = |ipv6: bool| {
        move |&(text, rule, reason): &(&str, Option<&'static str>, &'static str)| Case {
            flow: Flow::new(text, ipv6),
            allowed: reason == "rule_allow",
            rule,
            reason,
            plain: !text.contains("700") && !text.contains("9001") && !text.contains("back"),
        }
    };
    table.iter().map(case(false)).chain(table.iter().map(case(true))).collect()
}

/// Servers for all of them.
#[must_use]
pub fn servers(world: &World, cases: &[Case]) -> Vec<crate::echo::Echo> {
    serve(world, &cases.iter().map(|case| case.flow).collect::<Vec<_>>())
}
