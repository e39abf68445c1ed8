//! The commands as a user runs them: exit codes and JSON.

use std::{fs, process::Command};

use guard::daemon::state_dir::{Manifest, StateDir};
use serde_json::Value;
use tempfile::TempDir;

const POLICY: &str = "version: 1\nname: small\nmode: enforce\ninbound:\n  - { name: ssh, from: 198.51.100.7, services: ssh, interface: eth1 }\n\
outbound:\n  - { to: 192.0.2.53, services: dns }\n  - { name: no metadata, action: deny, to: 169.254.169.254, services: any }\n  - { name: link, to: 169.254.0.0/16, services: http }\n\
tests:\n  - { flow: \"out udp 192.0.2.53:53\", expect: allow, rule: \"outbound[0]\" }\n";

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

fn guard(directory: &TempDir, arguments: &[&str]) -> Ran {
    let output =
        Command::new(env!("CARGO_BIN_EXE_guard")).current_dir(directory.path()).args(arguments).output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn with_policy(text: &str) -> TempDir {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("policy.yaml"), text).unwrap();
    directory
}

#[test]
fn check_says_yes_and_no() {
    let directory = with_policy(POLICY);
    let good = guard(&directory, &["check", "policy.yaml"]);
    assert_eq!(good.code, 0, "{}{}", good.out, good.err);
    let json = guard(&directory, &["--json", "check", "policy.yaml"]).json();
    assert_eq!((&json["valid"], &json["errors"], &json["rules"]), (&true.into(), &0.into(), &4.into()));
    fs::write(directory.path().join("policy.yaml"), POLICY.replace("services: dns", "services: dsn")).unwrap();
    let bad = guard(&directory, &["check", "policy.yaml"]);
    assert_eq!(bad.code, 1);
    assert!(bad.out.contains("policy.yaml:7:") && bad.out.contains("did you mean `dns`?"), "{}", bad.out);
    assert!(bad.out.contains("nothing was changed"));
    let json = guard(&directory, &["check", "policy.yaml", "--json"]).json();
    let error = &json["diagnostics"][0];
    assert_eq!((&error["level"], &error["line"], &error["text"]), (&"error".into(), &7.into(), &"dsn".into()));
    assert_eq!(guard(&directory, &["check", "nowhere.yaml"]).code, 3);
}

/// Whichever command is given it: 1, with the place; as JSON where that was asked for. A policy that is not there: 3.
#[test]
fn every_command_refuses_a_bad_policy_alike() {
    let directory = with_policy(&POLICY.replace("services: dns", "services: dsn"));
    let flow = "out udp 192.0.2.53:53";
    for (command, rest) in [
        (&["check"][..], &[][..]),
        (&["test"], &[]),
        (&["explain"], &[flow]),
        (&["replay"], &["capture.pcap"]),
        (&["export", "nft"], &[]),
        (&["suggest"], &["--from", "flows.jsonl"]),
        (&["review", "--from", "flows.jsonl", "--policy"], &[]),
        (&["run", "--dry-run", "--state-dir", "state"], &[]),
    ] {
        let arguments = |policy| [command, &[policy], rest].concat();
        let ran = guard(&directory, &arguments("policy.yaml"));
        assert_eq!(ran.code, 1, "{command:?}: {}{}", ran.out, ran.err);
        let said = ran.out + &ran.err;
        assert!(said.contains("policy.yaml:7:") && said.contains("did you mean `dns`?"), "{command:?}: {said}");
        let ran = guard(&directory, &[arguments("policy.yaml"), vec!["--json"]].concat());
        assert_eq!(ran.code, 1, "{command:?}");
        let json = ran.json();
        assert_eq!((&json["valid"], &json["diagnostics"][0]["line"]), (&false.into(), &7.into()), "{command:?}");
        let ran = guard(&directory, &arguments("nowhere.yaml"));
        assert_eq!(ran.code, 3, "{command:?}: {}{}", ran.out, ran.err);
    }
}

#[test]
fn check_finds_rules_that_several_others_hide() {
    let halves =
        "  - { name: low, to: 10.0.0.0/9, services: any }\n  - { name: high, to: 10.128.0.0/9, services: any }\n";
    let policy = |rules: &str| format!("version: 1\nmode: audit\ninbound: []\noutbound:\n{rules}");
    let lines = |rules: &str| -> Vec<u64> {
        let json = guard(&with_policy(&policy(rules)), &["check", "--json", "policy.yaml"]).json();
        let all = json["diagnostics"].as_array().unwrap();
        all.iter().filter(|d| d["code"] == "never_decides").map(|d| d["line"].as_u64().unwrap()).collect()
    };
    assert_eq!(lines(&format!("{halves}  - {{ name: whole, to: 10.0.0.0/8, services: ssh }}\n")), [7]);
    assert!(lines(&format!("{halves}  - {{ name: more, to: 10.0.0.0/7, services: ssh }}\n")).is_empty());
    // Until the first of them expires the last decides nothing; then it does.
    let expiring = halves.replacen("any }", "any, expires: 2099-01-01T00:00:00Z }", 1);
    assert!(lines(&format!("{expiring}  - {{ name: whole, to: 10.0.0.0/8, services: ssh }}\n")).is_empty());
}

#[test]
fn effective_is_a_policy_again() {
    let directory = with_policy(POLICY);
    let effective = guard(&directory, &["check", "--effective", "policy.yaml"]);
    assert_eq!(effective.code, 0);
    assert!(effective.out.contains("neighbour_discovery: true"), "{}", effective.out);
    fs::write(directory.path().join("effective.yaml"), &effective.out).unwrap();
    assert_eq!(guard(&directory, &["check", "effective.yaml"]).code, 0);
    assert_eq!(guard(&directory, &["test", "effective.yaml"]).code, 0);
}

#[test]
fn explain_names_rule_reason_and_nearest() {
    let directory = with_policy(POLICY);
    let explain = |flow: &str| guard(&directory, &["explain", "--json", "policy.yaml", flow]);
    let allowed = explain("out udp 192.0.2.53:53");
    assert_eq!(allowed.code, 0);
    let json = allowed.json();
    assert_eq!(
        (&json["verdict"], &json["rule"], &json["reason"]),
        (&"allow".into(), &"outbound[0]".into(), &"rule_allow".into())
    );
    assert_eq!((&json["at"]["line"], &json["mode"]), (&7.into(), &"enforce".into()));

    let denied = explain("out udp 192.0.2.54:53");
    assert_eq!(denied.code, 1);
    let json = denied.json();
    assert_eq!(
        (&json["verdict"], &json["rule"], &json["reason"]),
        (&"deny".into(), &Value::Null, &"not_listed".into())
    );
    assert_eq!(
        (&json["nearest"]["at"]["rule"], &json["nearest"]["failed"][0]["condition"]),
        (&"outbound[0]".into(), &"remote".into())
    );
    assert_eq!(json["paste"], "- { to: 192.0.2.54, services: udp/53 }");

    let json = explain("out tcp 169.254.169.254:80").json();
    assert_eq!(
        (&json["reason"], &json["rule"], &json["overruled"]["rule"]),
        (&"rule_deny".into(), &"no metadata".into(), &"link".into())
    );

    // The interface that the flow leaves out is one that a rule asks for.
    let json = explain("in tcp 198.51.100.7 -> 22").json();
    assert_eq!((&json["verdict"], &json["assumed"]["interface"]), (&"allow".into(), &"eth1".into()));
    assert_eq!(explain("in tcp 198.51.100.7 -> 22 on eth0").code, 1);
    assert_eq!(explain("in tcp 198.51.100.7 -> 22 on eth1").code, 0);
    let several = with_policy(&POLICY.replace("interface: eth1", "interface: [eth1, \"veth*\"]"));
    for (interface, code) in [("eth1", 0), ("veth7", 0), ("eth2", 1)] {
        let flow = format!("in tcp 198.51.100.7 -> 22 on {interface}");
        assert_eq!(guard(&several, &["explain", "policy.yaml", &flow]).code, code, "{interface}");
    }
    assert_eq!(explain("out tcp 192.0.2.1").code, 2);
    assert_eq!(explain("out icmp 192.0.2.53 redirect").json()["reason"], "icmp_redirect");

    // The line to paste makes it pass.
    let pasted = POLICY.replace("outbound:\n", "outbound:\n  - { to: 192.0.2.54, services: udp/53 }\n");
    let pasted = with_policy(&pasted);
    assert_eq!(guard(&pasted, &["explain", "policy.yaml", "out udp 192.0.2.54:53"]).code, 0);
    let none = guard(&directory, &["explain", "--state-dir", "none", "out udp 192.0.2.54:53"]);
    assert_eq!(none.code, 3);
    assert!(none.err.contains("no policy is running"), "{}", none.err);
}

#[test]
fn a_policy_s_tests_pass_or_fail() {
    let directory = with_policy(POLICY);
    assert_eq!(guard(&directory, &["test", "policy.yaml"]).code, 0);
    let directory = with_policy(&POLICY.replace("expect: allow", "expect: deny"));
    let failed = guard(&directory, &["test", "policy.yaml"]);
    assert_eq!(failed.code, 1);
    assert!(failed.out.contains("policy.yaml:11: expected deny"), "{}", failed.out);
    let json = guard(&directory, &["--json", "test", "policy.yaml"]).json();
    assert_eq!((&json["failed"], &json["tests"][0]["passed"]), (&1.into(), &false.into()));
}

#[test]
fn completions_and_man_pages() {
    let directory = TempDir::new().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        assert!(guard(&directory, &["completions", shell]).out.contains("explain"));
    }
    assert_eq!(guard(&directory, &["man", "man1"]).code, 0);
    assert!(directory.path().join("man1/guard-explain.1").exists());
}

#[test]
fn explain_asks_the_policy_that_runs() {
    let directory = with_policy(POLICY);
    let source = directory.path().join("policy.yaml");
    let state_path = directory.path().join("state");
    let state = StateDir::create(&state_path).unwrap();
    let manifest = Manifest::new("small".to_owned(), String::new(), 1, source.clone(), true, 0);
    state.prepare(&manifest, std::slice::from_ref(&source)).unwrap();
    state.promote(&manifest).unwrap();
    // What was published counts, not what the file says by now.
    fs::write(&source, "changed").unwrap();
    let ran = guard(&directory, &["explain", "--json", "--state-dir", "state", "out udp 192.0.2.53:53"]);
    let json = ran.json();
    assert_eq!((ran.code, &json["rule"], &json["mode"]), (0, &"outbound[0]".into(), &"audit".into()));
    assert_eq!(json["at"]["file"], source.display().to_string());
}
