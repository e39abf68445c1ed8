//! From packets to a report: what a guarded host did is what its report says.

use std::{
    net::{IpAddr, Ipv4Addr},
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
