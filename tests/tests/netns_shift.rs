//! What a shift needs beside the policy: its history, and temporary exceptions.

use std::{
    fs, thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use guard_tests::{
    cases::policy,
    flows::{Flow, NOTHING, PASSES, serve},
    guard::{Guard, binary},
    new_world,
    process::{self, Ended},
    servers::Sshd,
    session::Session,
};
use nix::sys::signal::Signal;
use serde_json::Value;

fn timeline(guard: &Guard) -> Vec<Value> {
    let ended = guard.tell("timeline", &["--json"]).unwrap();
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn events(timeline: &[Value]) -> Vec<&str> {
    // What others load on this machine meanwhile is told too.
    let told = timeline.iter().filter(|entry| entry["details"]["kind"] != "program_loaded");
    told.filter_map(|entry| entry["event"].as_str()).collect()
}

#[test]
fn the_timeline_says_who_did_what_with_which_policy() {
    let Some(world) = new_world("netns_shift the_timeline") else { return };
    let mut guard = Guard::start_with(&world, &policy("enforce"), &["--as", "kim", "--note", "ticket 41"]).unwrap();
    let changed = policy("enforce").replace("name: verdicts", "name: changed");
    let reloaded = guard.reload(&changed, &["--confirm-within", "30s", "--as", "lee", "--json"]).unwrap();
    assert!(reloaded.good(), "{}", reloaded.text());
    // While nobody has confirmed it, no exception is made over it.
    let refused = guard.ask("allow", &["in tcp 198.51.100.9 -> 22"]).unwrap();
    assert!(refused.code() == Some(3) && refused.text().contains("unconfirmed"), "{}", refused.text());
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

    // The page for the next shift. The daemon is dead: exit code and text say what does not hold, or is not known.
    let ended = guard.ask("handover", &["--as", "kim", "--note", "lee takes over"]).unwrap();
    let page = &ended.stdout;
    for wanted in [
        "HANDOVER ",
        " by kim",
        "note        lee takes over",
        "policy      changed",
        "exceptions  none",
        "done ",
        "unknown     whether keys, passwords",
        "no daemon records or watches",
    ] {
        assert!(page.contains(wanted), "{wanted}: {page}");
    }
    assert_eq!(timeline(&guard).last().unwrap()["event"], "handover");
    let page = json(&guard.ask("handover", &["--json"]).unwrap());
    assert_eq!((&page["policy"], &page["policy_sha256"]), (&"changed".into(), &status["policy_sha256"]), "{page:#}");
    assert!(
        page["done"].as_array().unwrap().iter().any(|done| done["by"] == "lee" && done["event"] == "confirm"),
        "{page:#}"
    );
    assert_ne!(timeline(&guard).last().unwrap()["by"]["name"], "root", "a page that is only read is not written down");
    let brief = guard.ask("handover", &["--brief"]).unwrap().stdout;
    assert!(brief.contains("No temporary exception is open") && brief.contains("keys or passwords"), "{brief}");
    guard.tell("release", &["--as", "kim"]).unwrap();
    let last = timeline(&guard).pop().unwrap();
    assert_eq!((&last["event"], &last["by"]["name"]), (&"release".into(), &"kim".into()));
}

const EXCEPTIONS: &str = "version: 1\nname: narrow\nmode: enforce\ninbound:\n  \
    - { name: ssh from the responder, from: 198.51.100.7, services: ssh }\n  \
    - { name: web, from: any, services: tcp/8001 }\n  \
    - { name: no scanners, action: deny, from: 203.0.113.0/24, services: tcp/8000-8999 }\noutbound: []\n";

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.text()))
}

#[test]
fn an_exception_holds_over_every_change_and_ends_in_the_kernel() {
    let Some(world) = new_world("netns_shift an_exception_holds") else { return };
    let lent = Flow::new("in tcp client 8002", false);
    let web = Flow::new("in tcp client 8001", false);
    let _servers = serve(&world, &[lent, web]);
    let mut guard = Guard::start(&world, EXCEPTIONS).unwrap();
    assert!(!lent.passes(&world, false), "not listed, so not live before");
    let file = fs::read_to_string(guard.policy()).unwrap();

    let what = "in tcp 192.0.2.20 -> 8002";
    let made =
        json(&guard.tell("allow", &[what, "--for", "40s", "--note", "second pair", "--as", "lee", "--json"]).unwrap());
    let ends = UNIX_EPOCH + Duration::from_secs(made["exception"]["expires"].as_u64().unwrap());
    assert_eq!(made["exception"]["number"], 1, "{made:#}");
    assert!(lent.passes(&world, true), "allowed at once");
    // One decision: explain says by which exception, and whose.
    let explained = guard.explain(what).unwrap();
    assert_eq!((&explained["verdict"], &explained["rule"]), (&"allow".into(), &"allow #1".into()), "{explained:#}");
    assert_eq!(explained["comment"], "lee: second pair");
    let status = guard.status().unwrap();
    assert_eq!(status["exceptions"][0]["by"], "lee", "{status:#}");
    assert_eq!((&status["enforcing"], &status["problems"]), (&true.into(), &serde_json::json!([])), "{status:#}");
    let text = guard.ask("status", &[]).unwrap().stdout;
    assert!(text.contains("in tcp/8002 from 192.0.2.20 (allow #1, lee, \"second pair\")"), "{text}");

    // Kept over a reload, a kill and a restart; with the daemon dead it is as easily made.
    guard.kill().unwrap();
    let second = json(&guard.tell("allow", &["in tcp 192.0.2.20 -> 8003", "--json"]).unwrap());
    assert_eq!(second["exception"]["number"], 2);
    assert!(guard.reload(&EXCEPTIONS.replace("narrow", "other"), &[]).unwrap().good());
    assert!(lent.passes(&world, true), "after a reload");
    guard.run(&[]).unwrap();
    assert!(lent.passes(&world, true), "after a restart");
    let before = guard.status().unwrap()["generation"].as_u64();
    guard.signal(Signal::SIGHUP).unwrap();
    guard.status_until(PASSES * 4, |status| status["generation"].as_u64() > before).unwrap();
    assert!(lent.passes(&world, true), "after SIGHUP");
    let listed = json(&guard.tell("allow", &["--list", "--json"]).unwrap());
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed:#}");
    guard.tell("allow", &["--undo", "2"]).unwrap();
    assert_eq!(fs::read_to_string(guard.policy()).unwrap(), file.replace("narrow", "other"), "never in the file");

    guard.kill().unwrap();
    while SystemTime::now() < ends - Duration::from_millis(1500) {
        assert!(lent.passes(&world, true), "until it ends");
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep((ends + Duration::from_millis(200)).duration_since(SystemTime::now()).unwrap_or_default());
    assert!(!lent.passes(&world, false), "the kernel ended it, without a daemon");
    assert!(web.passes(&world, true));
    let status = guard.status().unwrap();
    assert_eq!(status["exceptions"], serde_json::json!([]), "{status:#}");
    let all = timeline(&guard);
    assert_eq!(all.iter().filter(|entry| entry["event"] == "allow").count(), 2, "{all:#?}");
    assert!(all.iter().any(|entry| entry["event"] == "undo"));
}

#[test]
fn a_denied_remote_is_cut_at_once_and_never_the_session_that_asks() {
    let Some(world) = new_world("netns_shift a_denied_remote") else { return };
    let flow = Flow::new("in tcp client 8001", false);
    let bystander = Flow::new("in tcp responder 8001", false);
    let _servers = serve(&world, &[flow, bystander]);
    let guard = Guard::start(&world, EXCEPTIONS).unwrap();
    let mut session = Session::begin(&world, &Flow::new("in tcp client 8001 second", false)).unwrap();
    // This test holds the server's end and is an ancestor of the command: taken for its terminal's connection.
    let refused = guard.ask("deny", &["192.0.2.20"]).unwrap();
    assert!(refused.code() == Some(1) && refused.text().contains("--cut-me"), "{}", refused.text());
    let denied = json(&guard.tell("deny", &["192.0.2.20", "--note", "scans us", "--cut-me", "--json"]).unwrap());
    assert_eq!(denied["changed"]["would_cut"].as_array().map(Vec::len), Some(1), "{denied:#}");
    assert!(session.speaks(false, NOTHING).is_err(), "its next packet is dropped");
    assert!(!flow.passes(&world, false) && bystander.passes(&world, true));
    guard.wait_records(|record| record["guard"]["event"] == "cut" && record["guard"]["rule"] == "deny #1").unwrap();

    // What a deny wins over is refused, and says by which rule: of the policy, or of the exceptions.
    let refused = guard.ask("allow", &["in tcp 203.0.113.9 -> 8080"]).unwrap();
    assert!(refused.code() == Some(3) && refused.text().contains("no scanners"), "{}", refused.text());
    let refused = guard.ask("allow", &["in tcp 192.0.2.20 -> 22"]).unwrap();
    assert!(refused.code() == Some(3) && refused.text().contains("deny #1"), "{}", refused.text());
    for wrong in ["in tcp any -> 22", "in tcp 0.0.0.0/0 -> 22", "in tcp", ""] {
        assert_eq!(guard.ask("allow", &[wrong]).unwrap().code(), Some(2), "{wrong}");
    }
    guard.tell("deny", &["--undo", "1"]).unwrap();
    assert!(flow.passes(&world, true), "undone");

    // From a session's own terminal.
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let over_ssh = |arguments: &str| {
        let command = format!(
            "{} deny --instance {} --state-dir {} {arguments}",
            binary().unwrap().display(),
            guard.instance(),
            guard.state_dir().display()
        );
        let mut ssh = sshd.client(&world.responder, world.server.address(false));
        process::run(ssh.arg(command), PASSES * 4).unwrap()
    };
    let refused = over_ssh("198.51.100.0/24");
    assert!(
        refused.code() == Some(1) && refused.text().contains("this would cut the connection"),
        "{}",
        refused.text()
    );
    assert!(refused.text().contains("deny #2"), "by which rule: {}", refused.text());
    assert_eq!(guard.status().unwrap()["exceptions"], serde_json::json!([]));
    let good = over_ssh("192.0.2.20 --for 1h");
    assert!(good.good(), "{}", good.text());
    assert!(!flow.passes(&world, false));

    // A lockdown ends what was let through for a while, and keeps what was cut.
    guard.tell("allow", &["in tcp 198.51.100.7 -> 8002", "--cut-me"]).unwrap();
    let mut command = guard.command("lockdown").unwrap();
    let more =
        ["--yes", "--console", "--no-keep-session", "--allow-from", "192.0.2.0/24:tcp/8001", "--evidence", "none"];
    command.args(more).args(["--confirm-within", "none", "--cgroup"]).arg(world.cgroup());
    let locked = process::run(&mut command, PASSES * 12).unwrap();
    assert!(locked.good(), "{}", locked.text());
    let status = guard.status().unwrap();
    let left: Vec<&str> =
        status["exceptions"].as_array().unwrap().iter().filter_map(|exception| exception["action"].as_str()).collect();
    assert_eq!((&status["enforcing"], &left[..]), (&true.into(), &["deny"][..]), "{status:#}");
    assert!(!flow.passes(&world, false), "the deny wins over the way in");
}

#[test]
fn a_deny_that_would_drop_nothing_is_refused() {
    let Some(world) = new_world("netns_shift audits") else { return };
    let guard = Guard::start(&world, &EXCEPTIONS.replace("enforce", "{inbound: enforce, outbound: audit}")).unwrap();
    let partly = json(&guard.tell("deny", &["192.0.2.20", "--json"]).unwrap());
    assert_eq!(partly["not_dropped"], serde_json::json!(["outbound"]), "{partly:#}");
    let text = guard.tell("deny", &["192.0.2.21"]).unwrap().stdout;
    assert!(text.contains("NOT DROPPED outbound: the policy only audits there"), "{text}");
    assert!(guard.reload(&EXCEPTIONS.replace("enforce", "audit"), &[]).unwrap().good());
    let before = guard.status().unwrap()["generation"].clone();
    let refused = guard.ask("deny", &["192.0.2.22"]).unwrap();
    assert!(refused.code() == Some(3) && refused.text().contains("would drop nothing"), "{}", refused.text());
    assert_eq!(guard.status().unwrap()["generation"], before, "nothing was changed");
}
