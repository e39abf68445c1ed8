//! A full disk and a damaged store under a policy that is enforced: they cost records, which is told as an alert, and never
//! enforcement.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use guard_tests::{
    cases::policy,
    flows::{Flow, NOTHING, serve},
    guard::Guard,
    new_world,
    process::{Ended, run},
    servers::curl,
    world::World,
};
use serde_json::Value;

const RESPONDER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
const PATIENCE: Duration = Duration::from_secs(40);

/// Where the daemon's disk is: the world's mounts are its own.
fn shell(world: &World, line: &str) -> Ended {
    run(world.operator.command("sh").args(["-c", line]), PATIENCE).unwrap()
}

fn alerts(world: &World, guard: &Guard, target: &str) -> Vec<Value> {
    let lines = shell(world, &format!("cat {}/flows.jsonl", guard.state_dir().display())).stdout;
    let all = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    all.filter(|r| r["guard"]["kind"] == "records_lost" && r["guard"]["target"] == target).collect()
}

fn reported(guard: &Guard, target: &str) -> Option<Value> {
    let report: Value = serde_json::from_str(&guard.ask("report", &["--json"]).unwrap().stdout).ok()?;
    let alerts = report["alerts"].as_array()?;
    alerts.iter().find(|alert| alert["kind"] == "records_lost" && alert["target"] == target).cloned()
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_full_disk_and_a_damaged_store_are_alerts_and_open_nothing() {
    let Some(world) = new_world("netns_disk a_full_disk_and_a_damaged_store") else { return };
    let allowed = Flow::new("in tcp responder 8001", false);
    let _servers = serve(&world, &[allowed]);
    let mut guard = Guard::prepare(&world, &policy("enforce")).unwrap();
    let state = guard.state_dir().display().to_string();
    std::fs::create_dir(guard.state_dir()).unwrap();
    let mounted =
        shell(&world, &format!("chmod 700 {state} && mount -t tmpfs -o size=8m,mode=0700 guard-test {state}"));
    assert!(mounted.good(), "{}", mounted.text());
    guard.run(&[]).unwrap();
    let enforces = |guard: &Guard| {
        assert!(allowed.passes(&world, true), "what is allowed passes");
        curl(&world.server, RESPONDER, 444, NOTHING).unwrap_err();
        let status = guard.status().unwrap();
        assert_eq!((&status["enforcing"], &status["problems"]), (&true.into(), &serde_json::json!([])), "{status:#}");
    };
    enforces(&guard);

    // Nothing fits any more.
    shell(&world, &format!("cat /dev/zero > {state}/ballast"));
    let full = until("the disk is not felt", || {
        enforces(&guard);
        let status = guard.status().unwrap();
        (!status["daemon"]["records"]["error"].is_null()).then_some(status)
    });
    assert!(full["daemon"]["records"]["lost"].as_u64() > Some(0), "{:#}", full["daemon"]);
    enforces(&guard);
    // For longer than the daemon takes to look.
    let longer = Instant::now() + Duration::from_secs(6);
    while Instant::now() < longer {
        enforces(&guard);
    }
    // And again: what was lost is told with both its times.
    assert!(shell(&world, &format!("rm {state}/ballast")).good());
    let over = until("no alert of the full disk", || {
        enforces(&guard);
        alerts(&world, &guard, "flows.jsonl").into_iter().find(|record| record["guard"]["event"] == "alert_over")
    });
    let gap = &over["guard"]["gap"];
    assert!(gap["from"].as_i64() < gap["to"].as_i64() && gap["from"].as_i64() > Some(0), "{over:#}");
    // A line that still fits ends it for a moment: then it is told as over when it is looked at.
    assert!(over["guard"]["what"].as_str().unwrap().contains("be written"), "{over:#}");
    let row = until("it is not in the report", || reported(&guard, "flows.jsonl").filter(|row| !row["over"].is_null()));
    assert_eq!((&row["severity"], &row["packets"]), (&2.into(), &Value::Null), "{row:#}");
    let status = guard.status().unwrap();
    assert_eq!((&status["gaps"], &status["daemon"]["records"]["error"]), (&serde_json::json!([]), &Value::Null));

    // The daemon is gone, the store is damaged, and the kernel goes on.
    guard.kill().unwrap();
    let damage = format!("cd {state} && rm -f store.db-wal store.db-shm && head -c 50000 /dev/urandom > store.db");
    assert!(shell(&world, &damage).good());
    assert!(allowed.passes(&world, true));
    curl(&world.server, RESPONDER, 444, NOTHING).unwrap_err();
    guard.run(&[]).unwrap();
    let aside = |what: &Value| what.as_str().is_some_and(|what| what.contains("set aside as"));
    let told = until("no alert of the damaged store", || {
        alerts(&world, &guard, "store.db").into_iter().find(|record| aside(&record["guard"]["what"]))
    });
    assert_eq!(told["guard"]["repaired"], true);
    assert!(allowed.passes(&world, true));
    curl(&world.server, RESPONDER, 444, NOTHING).unwrap_err();
    let row = until("it is not in the report", || reported(&guard, "store.db").filter(|row| aside(&row["what"])));
    assert_eq!(row["repaired"], true, "{row:#}");
    let text = guard.ask("report", &[]).unwrap().stdout;
    assert!(text.contains("a damaged store was set aside as store.db.damaged-"), "{text}");
}
