//! Somebody with root undoes guard, piece by piece: each is an alert with who and what, put back where that is possible,
//! and told as a gap afterwards.

use std::{
    io::Write,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use guard_common::abi::StateWord;
use guard_tests::{
    agent,
    cases::policy,
    flows::{Flow, NOTHING, PASSES, serve},
    frame::{UDP, ethernet_ip, ip, udp},
    guard::Guard,
    new_world,
    process::{Process, run},
    raw_bpf::{any_at_tcx, detach, pass_in_front, pinned_links, replace_in},
    witness::Witness,
    world::{World, mounts::BPFFS},
};
use serde_json::Value;

fn is_alert(record: &Value, kind: &str) -> bool {
    record["event_type"] == "alert" && record["guard"]["kind"] == kind
}

/// The records of one kind: how it began, and how it was over.
fn alerts(guard: &Guard, kind: &str) -> Vec<Value> {
    guard.wait_records(|record| is_alert(record, kind) && record["guard"]["event"] == "alert").unwrap()
}

fn over(guard: &Guard, kind: &str) -> Value {
    let all = guard.wait_records(|record| is_alert(record, kind) && record["guard"]["event"] == "alert_over");
    all.unwrap().pop().unwrap()
}

fn timeline(guard: &Guard) -> Vec<Value> {
    let ended = guard.tell("timeline", &["--json"]).unwrap();
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn bpftool(world: &World, arguments: &[&str]) -> String {
    let ended = run(world.operator.command("bpftool").args(arguments), PASSES * 4).unwrap();
    assert!(ended.good(), "bpftool {}: {}", arguments.join(" "), ended.text());
    ended.stdout
}

#[test]
fn a_detached_hook_is_put_back_and_told_as_a_gap() {
    let Some(world) = new_world("netns_watch a_detached_hook") else { return };
    let flow = Flow::new("in tcp client 22", false);
    let _servers = serve(&world, &[flow]);
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    let index = world.server.interface_index("eth0");
    let links = pinned_links(&world.operator).unwrap();
    let ingress = links.iter().find(|link| link.ends_with(&format!("wire_ingress_{index}"))).unwrap();
    thread::sleep(Duration::from_millis(1500));
    detach(&world.operator, ingress).unwrap();
    let began = alerts(&guard, "hook_detached").remove(0);
    assert_eq!((&began["guard"]["target"], &began["alert"]["severity"]), (&"eth0".into(), &1.into()), "{began:#}");
    let over = over(&guard, "hook_detached");
    assert_eq!(over["guard"]["repaired"], true, "{over:#}");
    let gap = &over["guard"]["gap"];
    let lasted = gap["to"].as_i64().unwrap() - gap["from"].as_i64().unwrap();
    // Seen by the next glance; a machine under load is no failure.
    assert!((1..2_000_000).contains(&lasted), "{lasted} us: {gap:#}");
    println!("gap: {} ms, {} packets", lasted / 1000, gap["packets"]);

    let status = guard.status_until(PASSES, |status| status["enforcing"] == true).unwrap();
    assert_eq!(status["gaps"][0]["on"], "eth0", "{status:#}");
    let text = guard.ask("status", &[]).unwrap().stdout;
    assert!(text.starts_with("ENFORCING again; GAP on eth0 from "), "after trouble, that comes first: {text}");
    assert!(text.contains("by: unknown"), "{text}");
    assert!(!flow.passes(&world, false), "enforced again");
    // What others load on this machine meanwhile is told too.
    let events: Vec<String> = timeline(&guard)
        .iter()
        .filter(|entry| entry["event"] == "run" || entry["details"]["kind"] == "hook_detached")
        .map(|entry| entry["event"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(events, ["run", "alert", "repaired"]);

    // And kept with the records: in the report, and on the page for the next shift.
    let status = guard.status_until(PASSES, |status| status["alerts"].as_u64() > Some(0)).unwrap();
    assert_eq!(status["enforcing"], true, "{status:#}");
    let report: Value = serde_json::from_str(&guard.ask("report", &["--json"]).unwrap().stdout).unwrap();
    let of_hook = |alert: &&Value| alert["kind"] == "hook_detached";
    let kept: Vec<&Value> = report["alerts"].as_array().unwrap().iter().filter(of_hook).collect();
    let [kept] = &kept[..] else { panic!("one row from its beginning to its end: {report:#}") };
    assert_eq!((&kept["repaired"], &kept["packets"]), (&true.into(), &gap["packets"]), "{kept:#}");
    assert!(kept["over"].is_string(), "{kept:#}");
    // Another program in the link that stays: whose link it is says nothing.
    replace_in(&world.operator, ingress).unwrap();
    let replaced = |record: &Value| {
        is_alert(record, "hook_detached") && record["guard"]["by"].as_str().is_some_and(|by| by.contains("somebody"))
    };
    let alert = guard.wait_records(replaced).unwrap().remove(0);
    assert_eq!(alert["guard"]["repaired"], true, "{alert:#}");
    assert!(!flow.passes(&world, false), "ours again");

    let text = guard.ask("report", &[]).unwrap().stdout;
    assert!(text.contains("the tcx ingress program was detached") && text.contains("put back after"), "{text}");
}

#[test]
fn whoever_insists_on_the_first_place_raises_an_alert_and_no_war() {
    let Some(world) = new_world("netns_watch whoever_insists") else { return };
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    let index = world.server.interface_index("eth0");
    let mut held = Vec::new();
    for round in 0..3 {
        held.push(pass_in_front(&world.operator, index, false).unwrap());
        guard
            .status_until(Duration::from_secs(10), |status| status["enforcing"] == true)
            .unwrap_or_else(|error| panic!("round {round}: {error:#}"));
    }
    held.push(pass_in_front(&world.operator, index, false).unwrap());
    let insists = |record: &Value| {
        is_alert(record, "foreign_in_front")
            && record["guard"]["what"].as_str().is_some_and(|what| what.contains("3 times in a minute"))
    };
    let alert = guard.wait_records(insists).unwrap().remove(0);
    let own = format!(" {} (", std::process::id());
    let loaded = guard.wait_records(|record| {
        is_alert(record, "program_loaded") && record["guard"]["by"].as_str().is_some_and(|by| by.contains(&own))
    });
    let loaded = loaded.unwrap().remove(0);
    assert!(loaded["guard"]["what"].as_str().is_some_and(|what| what.contains("sched_cls program")), "{loaded:#}");
    assert!(alert["guard"]["by"].as_str().is_some_and(|by| by.contains("uid 0")), "who: {alert:#}");
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        let status = guard.status().unwrap();
        assert_eq!(status["enforcing"], false, "no war: {status:#}");
        assert!(status["problems"].to_string().contains("eth0"), "{status:#}");
        thread::sleep(Duration::from_millis(300));
    }
    drop(held);
    guard.status_until(PASSES, |status| status["enforcing"] == true).unwrap();
    over(&guard, "foreign_in_front");
}

#[test]
fn changed_maps_are_put_back() {
    let Some(world) = new_world("netns_watch changed_maps") else { return };
    let flow = Flow::new("in tcp client 22", false);
    let _servers = serve(&world, &[flow]);
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    thread::sleep(Duration::from_millis(1500));
    let maps = format!("{BPFFS}/guard/{}/maps", guard.instance());
    let index = world.server.interface_index("eth0");
    let key: Vec<String> = index.to_ne_bytes().iter().map(|byte| format!("0x{byte:02x}")).collect();
    let map = format!("{maps}/INTERFACES");
    let mut arguments = vec!["map", "update", "pinned", &map, "key"];
    arguments.extend(key.iter().map(String::as_str));
    arguments.push("value");
    // As if nothing were guarded there.
    arguments.extend(["0"; 16]);
    bpftool(&world, &arguments);
    let alert = alerts(&guard, "maps_changed").remove(0);
    assert!(alert["guard"]["what"].as_str().is_some_and(|what| what.contains("eth0")), "{alert:#}");
    assert!(!flow.passes(&world, false), "put back");

    // The state word, as after a release: every packet passes.
    let before = guard.status().unwrap();
    let map = format!("{maps}/STATE");
    write_word(&world, &map, StateWord::TRACKING);
    let alert = alerts(&guard, "state_changed").remove(0);
    assert_eq!(alert["guard"]["repaired"], true, "{alert:#}");
    let status = guard.status_until(PASSES, |status| status["enforcing"] == true).unwrap();
    assert_eq!((&status["policy_sha256"], &status["problems"]), (&before["policy_sha256"], &serde_json::json!([])));
    assert_eq!(status["generation"], before["generation"], "as it was: {status:#}");
    assert!(!flow.passes(&world, false), "enforced again");

    // Another map in the place of the tables.
    let slot = (word(&world, &map)[0] & 3).to_string();
    let other = format!("{BPFFS}/other");
    let mut arguments = vec!["map", "create", &other, "type", "array", "key", "4", "value", "64", "entries", "16"];
    // BPF_F_RDONLY_PROG, BPF_F_MMAPABLE, BPF_F_INNER_MAP: as guard makes them.
    arguments.extend(["name", "other", "flags", "5248"]);
    bpftool(&world, &arguments);
    let tables = format!("{maps}/TABLES");
    bpftool(&world, &["map", "update", "pinned", &tables, "key", &slot, "0", "0", "0", "value", "pinned", &other]);
    let another = |record: &Value| {
        is_alert(record, "maps_changed")
            && record["guard"]["target"].as_str().is_some_and(|at| at.starts_with("TABLES"))
    };
    let alert = guard.wait_records(another).unwrap().remove(0);
    assert_eq!(alert["guard"]["repaired"], true, "{alert:#}");
    let status = guard.status_until(PASSES, |status| status["enforcing"] == true).unwrap();
    assert!(status["generation"].as_u64() > before["generation"].as_u64(), "published anew: {status:#}");
    assert!(!flow.passes(&world, false), "enforced again");

    // A deadline that nobody asked for, over already, after which nothing would judge.
    let active = StateWord(u64::from_ne_bytes(word(&world, &map)));
    let forged = StateWord::pending(active.active(), StateWord::TRACKING.active(), 1);
    write_word(&world, &map, forged);
    let forged = |record: &Value| {
        is_alert(record, "state_changed")
            && record["guard"]["what"].as_str().is_some_and(|what| what.contains("deadline"))
    };
    let alert = guard.wait_records(forged).unwrap().remove(0);
    assert_eq!(alert["guard"]["repaired"], true, "{alert:#}");
    let status = guard.status_until(PASSES, |status| status["enforcing"] == true).unwrap();
    assert_eq!((&status["policy_sha256"], &status["deadline"]), (&before["policy_sha256"], &Value::Null), "{status:#}");
    assert!(!flow.passes(&world, false), "enforced again");
}

/// The first 8 bytes of the one value of a map.
fn word(world: &World, map: &str) -> [u8; 8] {
    let dump: Value = serde_json::from_str(&bpftool(world, &["-j", "map", "dump", "pinned", map])).unwrap();
    let bytes = dump[0]["value"].as_array().unwrap().iter().take(8);
    let bytes: Vec<u8> =
        bytes.map(|byte| u8::from_str_radix(byte.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

fn write_word(world: &World, map: &str, word: StateWord) {
    let dump: Value = serde_json::from_str(&bpftool(world, &["-j", "map", "dump", "pinned", map])).unwrap();
    let mut value: Vec<String> =
        dump[0]["value"].as_array().unwrap().iter().map(|byte| byte.as_str().unwrap().to_owned()).collect();
    for (byte, now) in value.iter_mut().zip(word.0.to_ne_bytes()) {
        *byte = format!("0x{now:02x}");
    }
    let mut arguments = vec!["map", "update", "pinned", map, "key", "0", "0", "0", "0", "value"];
    arguments.extend(value.iter().map(String::as_str));
    bpftool(world, &arguments);
}

#[test]
fn a_new_interface_is_guarded_within_a_tenth_of_a_second_and_told() {
    let Some(world) = new_world("netns_watch a_new_interface") else { return };
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    thread::sleep(Duration::from_millis(1500));
    let mut took = Vec::new();
    for round in 0..5 {
        let (one, two) = (format!("new{round}"), format!("peer{round}"));
        let mut command = world.operator.command("ip");
        command.args(["link", "add", &one, "type", "veth", "peer", "name", &two]);
        assert!(run(&mut command, PASSES).unwrap().good());
        // What is down is nobody's yet; it can send from the moment that it is up.
        let mut command = world.operator.command("ip");
        assert!(run(command.args(["link", "set", &one, "up"]), PASSES).unwrap().good());
        let made = Instant::now();
        let guarded = world.operator.run(move || {
            let index = nix::net::if_::if_nametoindex(one.as_str()).unwrap();
            while !any_at_tcx(index, true).unwrap() && made.elapsed() < Duration::from_secs(5) {
                thread::sleep(Duration::from_millis(1));
            }
            made.elapsed()
        });
        took.push(guarded);
    }
    took.sort_unstable();
    println!("guarded after {took:?}");
    // The middle one: a machine under load is no failure.
    assert!(took[2] < Duration::from_millis(100), "{took:?}");
    let told = |record: &Value| {
        is_alert(record, "interface_changed")
            && record["guard"]["what"].as_str().is_some_and(|what| {
                what.contains("interface new0 ") && what.contains("guarded") && !what.contains("NOT")
            })
    };
    guard.wait_records(told).unwrap();
}

/// By an AF_XDP socket from before, which guard leaves alone outside of a lockdown.
#[test]
fn a_hundred_packets_a_second_round_the_wire_are_an_alert_within_five_seconds() {
    let Some(world) = new_world("netns_watch a_hundred_packets") else { return };
    let frame = round_frame(&world);
    let mut command = agent::command(&world.server, &["xdp-sends", "eth0", &frame]).unwrap();
    let mut process = Process::spawn(command.stdin(Stdio::piped())).unwrap();
    process.wait_line(PASSES, |line| line.starts_with("ok")).unwrap();
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    let status = guard.status().unwrap();
    let holder = format!("AF_XDP socket of guard-test-agent {}", process.pid());
    assert!(status["missing"].to_string().contains(&holder), "{status:#}");
    assert_eq!(status["enforcing"], true, "that it is open is no traffic: {status:#}");
    // Other traffic, which is judged, is no alert.
    let session = guard_tests::session::Session::begin(&world, &Flow::new("out udp intruder 8102", false)).unwrap();
    let speaking = session.keep_speaking();
    thread::sleep(Duration::from_secs(5));
    let went_round = |record: &Value| is_alert(record, "went_round");
    assert!(!guard.records().unwrap().iter().any(went_round), "nothing went round yet");

    let mut input = process.stdin().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let began = Instant::now();
    let sending = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            input.write_all(b"1\n").unwrap();
            thread::sleep(Duration::from_millis(10));
        }
    });
    let alert = guard.wait_records(went_round).unwrap().remove(0);
    let took = began.elapsed();
    println!("alert after {took:?}: {}", alert["guard"]["what"]);
    assert!(took < Duration::from_secs(5), "{took:?}");
    // Though this kernel lists no AF_XDP sockets.
    let by = format!("guard-test-agent {}", process.pid());
    assert!(alert["guard"]["by"].as_str().is_some_and(|held| held.contains(&by)), "who: {alert:#}");
    let status = guard.status().unwrap();
    assert_eq!(status["enforcing"], false, "{status:#}");
    assert!(status["problems"].to_string().contains("did not see"), "{status:#}");
    stop.store(true, Ordering::Relaxed);
    sending.join().unwrap();
    guard.status_until(Duration::from_secs(15), |status| status["enforcing"] == true).unwrap();
    let gap = over(&guard, "went_round")["guard"]["gap"].clone();
    assert!(gap["packets"].as_u64().is_some_and(|packets| packets > 100), "{gap:#}");
    speaking.finish().unwrap();
}

/// A frame that no rule lists, in hexadecimal.
fn round_frame(world: &World) -> String {
    let (from, to) = (world.server.v4.into(), world.client.v4.into());
    let packet = ip(from, to, UDP, &udp((from, 4000), (to, 9001), b"round"));
    ethernet_ip(world.client.mac, world.server.mac, &packet).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A packet socket that goes round though guard enforces, since whoever made it is outside of the guarded cgroup.
#[test]
fn a_packet_socket_that_goes_round_is_brought_back() {
    const TEST: &str = "netns_watch a_packet_socket";
    let Some(world) = new_world(TEST) else { return };
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    thread::sleep(Duration::from_millis(1500));
    let frame = round_frame(&world);
    let mut command = agent::command(&world.operator, &["bypasses", "eth0", &frame]).unwrap();
    let mut process = Process::spawn(command.stdin(Stdio::piped())).unwrap();
    process.wait_line(PASSES, |line| line.starts_with("ok")).unwrap();
    // That it was opened is told with its holder, and so is what became of it.
    let opened = alerts(&guard, "packet_socket").remove(0);
    let by = format!("guard-test-agent {}", process.pid());
    assert!(opened["guard"]["by"].as_str().is_some_and(|held| held.contains(&by)), "{opened:#}");
    let back = over(&guard, "goes_round");
    assert_eq!(back["guard"]["repaired"], true, "{back:#}");
    assert!(back["guard"]["what"].as_str().is_some_and(|what| what.contains(&by)), "{back:#}");
    assert_eq!(guard.status().unwrap()["enforcing"], true);
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    process.stdin().unwrap().write_all(b"send\n").unwrap();
    assert!(!witness.waits_for(NOTHING, |packet| packet.destination_port == 9001), "judged");
}
