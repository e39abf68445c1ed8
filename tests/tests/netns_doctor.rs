//! `guard doctor` in a host whose parts are as they are: what would stop guard is said with what to do, and what others
//! have at guard's hooks is named.

use guard_tests::{
    flows::PASSES,
    guard::{Guard, binary},
    new_world,
    process::{Ended, run},
    raw_bpf::pass_in_front,
    world::World,
};
use serde_json::Value;

fn doctor(world: &World, before: &[&str]) -> (Ended, Value) {
    let doctor = binary().unwrap();
    let mut words = before.to_vec();
    let program = doctor.to_string_lossy().into_owned();
    words.extend([program.as_str(), "doctor", "--json"]);
    let mut command = world.operator.command(words[0]);
    let ended = run(command.args(&words[1..]), PASSES * 4).unwrap();
    let json = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.text()));
    (ended, json)
}

fn state<'a>(json: &'a Value, name: &str) -> &'a str {
    let checks = json["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {json:#}"));
    // What is not good says what to do.
    assert_eq!(check["mend"].is_null(), check["state"] == "good", "{check:#}");
    check["state"].as_str().unwrap()
}

#[test]
fn it_says_what_is_here_and_what_would_stop_guard() {
    let Some(world) = new_world("netns_doctor it_says") else { return };
    let (ended, json) = doctor(&world, &[]);
    assert_eq!((ended.code(), &json["can_run"]), (Some(0), &true.into()), "{json:#}");
    let guarded = json["interfaces"].as_array().unwrap().iter().filter(|line| line["guarded"] == true);
    let guarded: Vec<&str> = guarded.map(|line| line["name"].as_str().unwrap()).collect();
    assert_eq!(guarded, ["eth0", "eth1"]);
    let features = json["features"].as_array().unwrap();
    assert!(features.iter().filter(|feature| feature["required"] == true).all(|feature| feature["found"] == true));
    assert_eq!(json["beside"], serde_json::json!([]), "{json:#}");

    // What it says is true: guard starts, and status names the same features as missing.
    let policy = "version: 1\nname: d\nmode: audit\ninbound: []\noutbound: []\n";
    let guard = Guard::start_with(&world, policy, &["--shield"]).unwrap();
    let status = guard.status().unwrap();
    let missing = status["missing"].to_string();
    // Its table is the doctor's, less what guard would not have started without, and with what only the shield shows: a
    // veth's driver has XDP of its own.
    let mut wished: Vec<&Value> = features.iter().filter(|feature| feature["required"] == false).collect();
    let shown: Vec<&Value> =
        status["features"].as_array().unwrap().iter().filter(|feature| feature["required"] == false).collect();
    let native = shown.iter().copied().find(|feature| feature["name"] == "native_xdp").unwrap();
    assert_eq!(native["found"], true, "{status:#}");
    wished.push(native);
    assert_eq!(shown, wished);
    for feature in features {
        let named = missing.contains(&format!("no {}:", feature["name"].as_str().unwrap()));
        assert_eq!(named, feature["found"] == false, "{feature}: {missing}");
    }
    guard.release().unwrap();

    // Other programs, other firewalls, an engine's bridge.
    let _other = pass_in_front(&world.operator, world.server.interface_index("eth0"), true).unwrap();
    world.server.ip("link add docker0 type bridge\n").unwrap();
    let table = run(world.operator.command("nft").args(["add", "table", "inet", "theirs"]), PASSES).unwrap();
    assert!(table.good(), "{}", table.text());
    let (ended, json) = doctor(&world, &[]);
    assert_eq!(ended.code(), Some(0), "others stop nothing: {json:#}");
    let beside: Vec<String> = json["beside"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| format!("{} {}", one["interface"].as_str().unwrap(), one["hook"].as_str().unwrap()))
        .collect();
    assert_eq!(beside, ["eth0 tcx egress"], "{json:#}");
    assert!(json["other_firewalls"].to_string().contains("inet theirs"), "{json:#}");
    let docker = json["engines"].as_array().unwrap().iter().find(|engine| engine["name"] == "Docker");
    assert!(docker.is_some_and(|engine| engine["means"].as_str().unwrap().contains("published port")), "{json:#}");
}

#[test]
fn what_is_taken_away_stops_it() {
    let Some(world) = new_world("netns_doctor what_is_taken_away") else { return };
    let (ended, json) = doctor(&world, &["setpriv", "--bounding-set=-net_admin", "--"]);
    assert_eq!((ended.code(), state(&json, "capabilities")), (Some(1), "stops"), "{json:#}");
    assert_eq!(json["features"], serde_json::json!([]), "who may not ask says nothing of the kernel");
    // A mount namespace of its own, in which things are missing; what runs in it is not this machine's.
    for (line, name) in [
        ("mount -o remount,ro,bind /sys/fs/bpf", "bpffs"),
        ("mount -t tmpfs none /var/lib -o ro", "state directory"),
        ("awk '$3 ~ /^cgroup2$/ {print $2}' /proc/mounts | tac | while read m; do umount -l $m; done", "cgroup2"),
    ] {
        let script = format!("set -e; mount --make-rprivate /; {line}; exec \"$@\"");
        let (ended, json) = doctor(&world, &["unshare", "--mount", "sh", "-c", &script, "sh"]);
        assert_eq!((ended.code(), state(&json, name)), (Some(1), "stops"), "{line}: {json:#}");
        assert_eq!(json["can_run"], false);
    }
}
