//! What a shift needs beside the policy: its history.

use std::{thread, time::Duration};

use guard_tests::{cases::policy, guard::Guard, new_world};
use serde_json::Value;

fn timeline(guard: &Guard) -> Vec<Value> {
    let ended = guard.tell("timeline", &["--json"]).unwrap();
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn events(timeline: &[Value]) -> Vec<&str> {
    timeline.iter().filter_map(|entry| entry["event"].as_str()).collect()
}

#[test]
fn the_timeline_says_who_did_what_with_which_policy() {
    let Some(world) = new_world("netns_shift the_timeline") else { return };
    let mut guard = Guard::start_with(&world, &policy("enforce"), &["--as", "kim", "--note", "ticket 41"]).unwrap();
    let changed = policy("enforce").replace("name: verdicts", "name: changed");
    let reloaded = guard.reload(&changed, &["--confirm-within", "30s", "--as", "lee", "--json"]).unwrap();
    assert!(reloaded.good(), "{}", reloaded.text());
    guard.tell("confirm", &["--as", "lee"]).unwrap();
    guard.tell("note", &["called", "the network team"]).unwrap();
    // Undone by the kernel, at its deadline: that is in the timeline without anybody's doing.
    guard.reload(&policy("enforce"), &["--confirm-within", "5s"]).unwrap();
    guard.status_until(Duration::from_secs(20), |status| status["policy"] == "changed").unwrap();
    thread::sleep(Duration::from_millis(500));
    guard.kill().unwrap();
    let entries = timeline(&guard);
    assert_eq!(events(&entries), ["run", "reload", "confirm", "note", "reload", "rollback"], "{entries:#?}");
    let [run, reload, confirm, note, _, rollback] = &entries[..] else { unreachable!() };
    assert_eq!(
        (&run["by"]["name"], &run["by"]["by"], &run["note"]),
        (&"kim".into(), &"as".into(), &"ticket 41".into())
    );
    let status = guard.status().unwrap();
    assert_eq!(reload["policy"]["sha256"], status["policy_sha256"], "{entries:#?}");
    assert_eq!((&confirm["by"]["name"], &confirm["policy"]["name"]), (&"lee".into(), &"changed".into()));
    assert_eq!(note["text"], "called the network team");
    assert!(rollback["by"].is_null(), "nobody did it: {rollback:#}");
    assert_eq!(
        (&rollback["policy"]["name"], &rollback["policy"]["sha256"]),
        (&"changed".into(), &status["policy_sha256"])
    );

    // What is said of guard's own traces is what is there.
    let footprint = &run["footprint"];
    let pins = std::path::Path::new(footprint["pins"].as_str().unwrap());
    assert!(pins.ends_with(guard.instance()), "{footprint:#}");
    assert_eq!(footprint["state_dir"], guard.state_dir().to_str().unwrap());
    let hooks = status["hooks"].as_array().unwrap().len();
    assert_eq!(footprint["links"].as_array().unwrap().len(), hooks, "{footprint:#}");
    assert!(footprint["map_bytes"].as_u64().unwrap() > 1 << 20, "{footprint:#}");

    let text = guard.tell("timeline", &[]).unwrap().stdout;
    assert!(text.contains("confirm   lee (as)"), "{text}");
    guard.tell("release", &["--as", "kim"]).unwrap();
    let last = timeline(&guard).pop().unwrap();
    assert_eq!((&last["event"], &last["by"]["name"]), (&"release".into(), &"kim".into()));
}
