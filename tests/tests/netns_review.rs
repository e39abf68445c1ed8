//! From packets to a report: what a guarded host did is what its report says.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::unix::ffi::OsStrExt,
    time::Duration,
};

use guard_tests::{
    cases::policy,
    flows::{Flow, serve},
    guard::Guard,
    new_world,
    servers::curl,
};
use serde_json::Value;

const RESPONDER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

#[test]
fn what_was_denied_is_reported_and_acknowledged() {
    let Some(world) = new_world("netns_review what_was_denied_is_reported") else { return };
    let allowed = Flow::new("in tcp responder 8001", false);
    let _servers = serve(&world, &[allowed]);
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    assert!(allowed.passes(&world, true));
    // A program of the system's: where this one lies may make it an unusual process.
    curl(&world.server, RESPONDER, 444, Duration::from_secs(2)).unwrap_err();
    guard.wait_records(|record| record["guard"]["event"] == "socket_denied" && record["dest_port"] == 444).unwrap();
    // What listens may be in the store before the flows are.
    let status = guard
        .status_until(Duration::from_secs(20), |status| {
            status["daemon"]["store"]["written"].as_u64() >= Some(2) && status["to_review"].as_u64() > Some(0)
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(status["daemon"]["store"]["lost"], 0, "{status:#}");

    let report = |code: i32| -> Value {
        let ended = guard.ask("report", &["--json"]).unwrap();
        assert_eq!(ended.code(), Some(code), "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    };
    let before = report(1);
    let findings = before["findings"].as_array().unwrap();
    let found = findings
        .iter()
        .find(|finding| finding["direction"] == "outbound" && finding["verdict"] == "deny")
        .unwrap_or_else(|| panic!("{before:#}"));
    assert_eq!(found["kind"], "outbound_denied", "{found:#}");
    // Its path, or its name alone where it was gone before anybody could look.
    assert_eq!(found["program"].as_str().and_then(|program| program.rsplit('/').next()), Some("curl"), "{found:#}");
    let id = found["id"].as_str().unwrap();
    let shown = guard.ask("show", &[id]).unwrap();
    assert!(shown.stdout.contains("nearest") || shown.stdout.contains("not_listed"), "{}", shown.stdout);
    assert_eq!(guard.ask("ack", &[id, "--as", "kim"]).unwrap().code(), Some(0));
    let after = report(1);
    assert!(!after["findings"].as_array().unwrap().iter().any(|finding| finding["id"] == id), "{after:#}");
    let explained = guard.ask("explain", &[&id[..8]]).unwrap();
    assert_eq!(explained.code(), Some(1), "{}{}", explained.stdout, explained.stderr);
}

/// Observing lets everything pass: it never takes the place of a policy.
#[test]
fn observing_is_refused_where_a_policy_is_in_force() {
    let Some(world) = new_world("netns_review observing_is_refused") else { return };
    let mut guard = Guard::start(&world, &policy("enforce")).unwrap();
    let before = guard.status().unwrap();
    // While a daemon runs, and when it is gone: what the kernel holds is what counts.
    for killed in [false, true] {
        if killed {
            guard.kill().unwrap();
        }
        let refused = guard.ask("observe", &["--cgroup", &world.cgroup().display().to_string()]).unwrap();
        assert_eq!(refused.code(), Some(3), "{}", refused.text());
        assert!(refused.stderr.contains("a policy is in force here"), "{}", refused.text());
        let after = guard.status().unwrap();
        for field in ["policy", "policy_sha256", "generation", "enforcing"] {
            assert_eq!(after[field], before[field], "{field}");
        }
    }
}

/// Whoever starts a program chooses its name and arguments, also such that are no UTF-8 and steer a terminal.
#[test]
fn arguments_that_are_no_text_do_no_harm() {
    let Some(world) = new_world("netns_review arguments_that_are_no_text") else { return };
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    let hostile = |bytes: &'static [u8]| std::ffi::OsStr::from_bytes(bytes);
    let program = world.dir().join(hostile(b"x\xff\xfe\x1b[2J<b>"));
    std::fs::copy("/bin/bash", &program).unwrap();
    let mut command = world.server.command(&program);
    command.args(["-c", "echo > /dev/tcp/198.51.100.7/444"]);
    command.arg(hostile(b"\xc3\x28\x1b]0;owned\x07\n# heading")).arg(hostile(b"\xff\xff"));
    let _ = guard_tests::process::run(&mut command, Duration::from_secs(20)).unwrap();
    let is_it = |record: &Value| {
        record["dest_port"] == 444 && record["guard"]["who"]["exe"].as_str().is_some_and(|exe| exe.contains('\u{fffd}'))
    };
    let records = guard.wait_records(is_it).unwrap();
    let arguments = records[0]["guard"]["who"]["args"].as_array().unwrap();
    assert!(arguments.iter().any(|argument| argument.as_str().unwrap().contains("\u{fffd}(")), "{arguments:?}");
    let found = |report: &Value| {
        let mut all = report["findings"].as_array()?.iter();
        all.find(|finding| finding["program"].as_str().is_some_and(|program| program.contains('\u{fffd}'))).cloned()
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let finding = loop {
        let report: Value = serde_json::from_str(&guard.ask("report", &["--json"]).unwrap().stdout).unwrap();
        if let Some(finding) = found(&report) {
            break finding;
        }
        assert!(std::time::Instant::now() < deadline, "{report:#}");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(finding["kind"], "unusual_process", "{finding:#}");
    let id = finding["id"].as_str().unwrap();
    for (verb, arguments) in [
        ("report", &["--all"][..]),
        ("report", &["--markdown"]),
        ("show", &[id]),
        ("explain", &[id]),
        ("flows", &[]),
        ("ack", &[id]),
        ("handover", &[]),
        ("suggest", &[]),
    ] {
        let ended = guard.ask(verb, arguments).unwrap();
        for text in [&ended.stdout, &ended.stderr] {
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{verb}: {text:?}");
            assert!(!text.contains("\n# heading"), "{verb}: {text}");
        }
        // The flow is over, and nothing of an unusual process asks for a rule.
        assert!(!ended.stdout.is_empty() || matches!(verb, "flows" | "suggest"), "{verb}: {}", ended.text());
    }
}
