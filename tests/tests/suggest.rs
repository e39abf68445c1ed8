//! `guard suggest` and `guard replay --flows` as people type them: over a store, over files, since a time, and what they refuse.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use guard::{
    record::who::{Unusual, Who},
    review::suggest::service_text,
};
use guard_tests::{
    day::{BEGAN, DAY_BEGINS, Days, NOW, Talk, program},
    guard::binary,
};
use proptest::prelude::*;
use serde_json::Value;

const MINUTE: i64 = 60_000_000;

/// Exit code, output, error.
fn guard(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(binary().unwrap()).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn curl() -> Arc<Who> {
    Arc::new(program("/usr/bin/curl", 11, "ci", "/usr/bin/dash"))
}

/// A state directory: three flows on the 25th of January, two on the 26th; some of each kind.
fn state() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let mut days = Days::begin(home.path(), BEGAN).unwrap();
    let before = DAY_BEGINS - 600 * MINUTE;
    days.put(&Talk::out(6, "203.0.113.1", 443, &curl()), before).unwrap();
    days.put(&Talk::out(6, "203.0.113.2", 8443, &curl()), before + MINUTE).unwrap();
    // A stranger who got nothing: kept in the ring.
    let probe = Talk { listening: Some(false), ..Talk::inbound(6, "198.51.100.9", 23, None).denied() };
    days.put(&probe, before + 2 * MINUTE).unwrap();
    days.put(&Talk::out(6, "203.0.113.3", 443, &curl()), DAY_BEGINS + MINUTE).unwrap();
    let sshd = Arc::new(program("/usr/sbin/sshd", 600, "root", "/usr/lib/systemd/systemd"));
    days.put(&Talk::inbound(6, "198.51.100.7", 22, Some(&sshd)), DAY_BEGINS + 2 * MINUTE).unwrap();
    days.end(NOW).unwrap();
    home
}

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path
}

const POLICY: &str = "# Ours. Do not touch.\nversion: 1\nname: ours\nmode: audit   # for now\n\ninbound: []   # nobody\n\n\
    outbound:\n  # the one that we know\n  - { name: mirror, to: 203.0.113.1, services: https }   # paid until May\n";

/// What was decided of each flow (`-> 203.0.113.1:443` to verdict), and the totals.
fn replayed(policy: &Path, flows: &str, state: &Path) -> (Vec<(String, String)>, Value) {
    let (policy, state) = (policy.display().to_string(), state.display().to_string());
    let (code, out, error) = guard(&["replay", &policy, "--flows", flows, "--state-dir", &state, "--json"]);
    assert_eq!(code, 0, "{flows}: {error}");
    let mut lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let totals = lines.pop().unwrap();
    assert_eq!(totals["type"], "totals");
    let one = |line: &Value| {
        let to = format!("{}:{}", line["dest_ip"].as_str().unwrap(), line["dest_port"]);
        (to, line["verdict"].as_str().unwrap().to_owned())
    };
    (lines.iter().map(one).collect(), totals)
}

#[test]
fn what_was_recorded_is_judged_anew_by_time_file_and_store() {
    let home = state();
    let dir = tempfile::tempdir().unwrap();
    let policy = write(dir.path(), "policy.yaml", POLICY);
    let of = |lines: &[(&str, &str)]| -> Vec<(String, String)> {
        lines.iter().map(|(to, verdict)| ((*to).to_owned(), (*verdict).to_owned())).collect()
    };
    // All of the store, the ring of strangers too.
    let (all, totals) = replayed(&policy, "2026-01-01", home.path());
    let wanted = of(&[
        ("203.0.113.1:443", "allow"),
        ("203.0.113.2:8443", "deny"),
        ("203.0.113.3:443", "deny"),
        ("192.0.2.10:22", "deny"),
        ("192.0.2.10:23", "deny"),
    ]);
    assert_eq!(all, wanted);
    assert_eq!(
        (&totals["flows"], &totals["allowed"]["flows"], &totals["denied"]["flows"]),
        (&5.into(), &1.into(), &4.into())
    );
    assert_eq!(totals["reasons"]["not_listed"]["flows"], 4, "{totals:#}");
    assert_eq!(totals["local"], "this host, as it recorded itself");
    // Since a time: the day, and nothing that was over before.
    let (day, totals) = replayed(&policy, "2026-01-26T00:00Z", home.path());
    assert_eq!(day, wanted[2..4]);
    assert_eq!((&totals["flows"], &totals["allowed"]["flows"]), (&2.into(), &0.into()));
    assert!(totals["first"].as_str().unwrap().starts_with("2026-01-26T00:01"), "{totals:#}");
    // An age reaches back from now, before which all of this was.
    assert_eq!(replayed(&policy, "1s", home.path()).1["flows"], 0);
    // A file, whatever its name is; the state directory is not asked.
    let zeek = "#separator \\x09\n#unset_field\t-\n#path\tconn\n#fields\tts\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\t\
        conn_state\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\n\
        1769385600.0\t192.0.2.10\t40000\t203.0.113.1\t443\ttcp\tSF\t8\t800\t8\t800\n\
        1769385601.0\t192.0.2.10\t40001\t203.0.113.9\t4444\ttcp\tSF\t8\t800\t8\t800\n";
    let zeek = write(dir.path(), "7d", zeek);
    let (file, totals) = replayed(&policy, &zeek.display().to_string(), Path::new("/nonexistent"));
    assert_eq!(file, of(&[("203.0.113.1:443", "allow"), ("203.0.113.9:4444", "deny")]));
    assert!(totals["local"].as_str().unwrap().contains("192.0.2.10"), "{totals:#}");
    // For people.
    let (policy, state) = (policy.display().to_string(), home.path().display().to_string());
    let (code, out, error) = guard(&["replay", &policy, "--flows", "2026-01-01", "--state-dir", &state]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("out tcp 203.0.113.2:8443") && out.contains("mirror") && out.contains("not_listed"), "{out}");
    assert!(error.contains("store.db"), "what was read: {error}");
    // Neither.
    let (code, _, error) = guard(&["replay", &policy, "--flows", "yesterday", "--state-dir", &state]);
    assert!(code == 3 && error.contains("neither a file that is there nor a time"), "{code} {error}");
    let (code, _, error) =
        guard(&["replay", &policy, "--flows", "7d", "--state-dir", &dir.path().display().to_string()]);
    assert!(code == 3 && error.contains("no records"), "{code} {error}");
}

fn suggest(state: &Path, arguments: &[&str]) -> (i32, String, String) {
    let state = state.display().to_string();
    guard(&[&["suggest", "--state-dir", &state, "--root", "/nonexistent"], arguments].concat())
}

#[test]
fn nothing_is_written_over() {
    let (home, dir) = (state(), tempfile::tempdir().unwrap());
    let mine = write(dir.path(), "policy.yaml", "mine\n");
    let dangling = dir.path().join("dangling.yaml");
    std::os::unix::fs::symlink(dir.path().join("nowhere"), &dangling).unwrap();
    for there in [&mine, &dangling] {
        let (code, out, error) = suggest(home.path(), &["-o", there.to_str().unwrap()]);
        assert!(code == 3 && out.is_empty() && error.contains("is there already"), "{code} {out} {error}");
    }
    assert_eq!(fs::read_to_string(&mine).unwrap(), "mine\n");
    assert!(!dir.path().join("nowhere").exists());
    let new = dir.path().join("new.yaml");
    assert_eq!(suggest(home.path(), &["-o", new.to_str().unwrap()]).0, 0);
    assert_eq!(guard(&["check", new.to_str().unwrap()]).0, 0);
    assert_eq!(suggest(home.path(), &["-o", new.to_str().unwrap()]).0, 3, "not even over its own");
}

#[test]
fn only_what_was_seen_since_a_time_is_learned_from() {
    let home = state();
    let services = |arguments: &[&str]| -> (i32, u64, Vec<String>) {
        let (code, out, error) = suggest(home.path(), &[arguments, &["--json"]].concat());
        let json: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}"));
        let remotes =
            json["rules"].as_array().unwrap().iter().flat_map(|rule| rule["remotes"].as_array().unwrap().clone());
        let mut remotes: Vec<String> = remotes.map(|remote| remote.as_str().unwrap().to_owned()).collect();
        remotes.sort();
        (code, json["flows"].as_u64().unwrap(), remotes)
    };
    let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let all = strings(&["198.51.100.7/32", "203.0.113.1/32", "203.0.113.2/32", "203.0.113.3/32"]);
    assert_eq!(services(&[]), (0, 5, all));
    assert_eq!(services(&["--since", "2026-01-26"]), (0, 2, strings(&["198.51.100.7/32", "203.0.113.3/32"])));
    assert_eq!(services(&["--since", "1s"]), (1, 0, Vec::new()), "nothing to suggest");
}

/// With a policy given, a diff: it keeps comments and layout, `patch` takes it, and what comes of it passes `guard check`, also
/// where a rule has so many addresses that they are in a file of their own.
#[test]
fn a_diff_is_taken_by_patch_and_what_comes_of_it_passes() {
    let home = tempfile::tempdir().unwrap();
    let mut days = Days::begin(home.path(), BEGAN).unwrap();
    days.put(&Talk::out(6, "203.0.113.1", 443, &curl()), DAY_BEGINS).unwrap();
    for number in 0..80u8 {
        let talk = Talk::out(6, "203.0.113.1", 9443, &curl()).to([203, 0, 113, number * 2].into());
        days.put(&talk, DAY_BEGINS + i64::from(number) * MINUTE).unwrap();
    }
    days.end(NOW).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let policy = write(dir.path(), "policy.yaml", POLICY);
    // A list that lies there already is not taken for one of ours.
    write(dir.path(), "policy-tcp-9443-by-curl.txt", "192.0.2.1\n");
    let (code, diff, said) = suggest(home.path(), &[policy.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("1 of them are allowed by the policy already"), "{said}");
    assert!(diff.contains("+++ b/policy-tcp-9443-by-curl-2.txt"), "{diff}");
    assert_eq!(fs::read_to_string(&policy).unwrap(), POLICY, "only `patch` changes it");
    let change = write(dir.path(), "more.diff", &diff);
    let mut command = Command::new("git");
    command.args(["apply", "-p1"]).arg(&change).current_dir(dir.path());
    let applied = command.output().unwrap();
    assert!(applied.status.success(), "{}\n{diff}", String::from_utf8_lossy(&applied.stderr));
    let new = fs::read_to_string(&policy).unwrap();
    for line in POLICY.lines() {
        assert!(new.lines().any(|kept| kept == line), "{line:?} is gone:\n{new}");
    }
    let (code, _, error) = guard(&["check", policy.to_str().unwrap()]);
    assert_eq!(code, 0, "{error}\n{new}");
    assert_eq!(guard(&["explain", policy.to_str().unwrap(), "out tcp 203.0.113.158:9443"]).0, 0);
    assert_eq!(guard(&["explain", policy.to_str().unwrap(), "out tcp 203.0.113.159:9443"]).0, 1);
    // Then there is nothing more to say.
    let (code, diff, said) = suggest(home.path(), &[policy.to_str().unwrap()]);
    assert!(code == 1 && diff.is_empty() && said.contains("nothing to suggest"), "{code} {diff} {said}");
}

prop_compose! {
    fn any_talk()(
        inbound in any::<bool>(),
        protocol in prop_oneof![Just(6u8), Just(17u8)],
        port in prop_oneof![Just(22u16), Just(443), Just(53), 1u16..3000],
        v6 in any::<bool>(),
        host in 0u8..40,
        who in 0usize..4,
        fate in 0usize..3,
        answered in prop::bool::weighted(0.8),
        bytes in prop_oneof![Just([54, 54]), Just([4000, 900])],
    ) -> (Talk, bool) {
        let unusual = Who { unusual: vec![Unusual::Memfd], ..program("memfd:a", 13, "ci", "/usr/bin/dash") };
        let who = [Some(curl()), Some(Arc::new(program("/usr/bin/wget", 12, "ci", "/usr/bin/dash"))), Some(Arc::new(unusual)), None][who].clone();
        let remote = if v6 { format!("2001:db8::{host:x}") } else { format!("203.0.113.{host}") };
        let talk = match inbound {
            true => Talk::inbound(protocol, &remote, port, who.as_ref()),
            false => Talk { who, ..Talk::out(protocol, &remote, port, &curl()) },
        };
        let fates = [guard::review::observed::Fate::Allowed, guard::review::observed::Fate::WouldDeny, guard::review::observed::Fate::Denied];
        (Talk { port, fate: fates[fate], bytes, ..talk }, answered)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]

    /// By the commands themselves: whatever was recorded, the proposed policy allows it when it is replayed, or the proposal
    /// names it as left out.
    #[test]
    fn every_flow_is_allowed_when_replayed_or_was_left_out(
        talks in prop::collection::vec(any_talk(), 1..120),
        most in 1usize..30,
        wide in any::<bool>(),
    ) {
        let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut days = Days::begin(home.path(), BEGAN).unwrap();
        for (number, (talk, answered)) in talks.iter().enumerate() {
            let mut flow = talk.at(number as u64 + 1, DAY_BEGINS + number as i64 * MINUTE);
            flow.answered = *answered;
            days.put_flow(flow).unwrap();
        }
        days.end(NOW).unwrap();
        let policy = dir.path().join("suggested.yaml");
        let most = most.to_string();
        let mut arguments = vec!["--json", "--max-rules", &most, "-o", policy.to_str().unwrap()];
        if wide {
            arguments.extend(["--widest", "/28,/120"]);
        }
        let (code, out, error) = suggest(home.path(), &arguments);
        prop_assert!(code == 0 || code == 1, "{code} {error}");
        let suggested: Value = serde_json::from_str(&out).unwrap();
        if code == 1 {
            // There is no file then: what listed nothing would be this.
            fs::write(&policy, "version: 1\nname: none\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
        }
        let left_out: BTreeSet<(String, String, Option<String>)> = suggested["left_out"].as_array().unwrap().iter().map(|line| {
            let text = |key: &str| line[key].as_str().map(str::to_owned);
            (text("direction").unwrap(), text("service").unwrap(), text("remote"))
        }).collect();
        let (policy, state) = (policy.display().to_string(), home.path().display().to_string());
        let (code, out, error) = guard(&["replay", &policy, "--flows", "2026-01-01", "--state-dir", &state, "--json"]);
        prop_assert_eq!(code, 0, "{}", error);
        let mut seen = 0;
        for line in out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).filter(|line| line["type"] == "flow") {
            seen += 1;
            let inbound = line["direction"] == "inbound";
            let remote = line[if inbound { "src_ip" } else { "dest_ip" }].as_str().unwrap();
            let protocol: u32 = if line["proto"] == "TCP" { 6 } else { 17 };
            let service = service_text(protocol << 16 | line["dest_port"].as_u64().unwrap() as u32);
            let direction = line["direction"].as_str().unwrap().to_owned();
            let named = |remote: Option<&str>| left_out.contains(&(direction.clone(), service.clone(), remote.map(str::to_owned)));
            prop_assert!(line["verdict"] == "allow" || named(None) || named(Some(remote)), "{line:#} of {suggested:#}");
        }
        prop_assert_eq!(seen, talks.len());
    }
}
