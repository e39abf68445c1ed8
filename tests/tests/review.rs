//! What a person sees of a day: the few things that matter first, in the words and numbers that were recorded.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use guard::{
    cli::output::Style,
    review::{
        findings::{Finding, Kind},
        render,
        report::{self, Report, Since},
        words,
    },
};
use guard_tests::{
    day::{self, NOW, PLANTED},
    guard::binary,
    skip,
};

fn text(report: &Report) -> String {
    render::text::render(report, "", false, Style::plain())
}

fn report_of(directory: &Path) -> Report {
    report::of_directory(directory, Since::Everything, NOW).unwrap()
}

/// Compares with `tests/golden/review/NAME`; `UPDATE_GOLDEN=1` writes it.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/review").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, wanted, "{} differs; UPDATE_GOLDEN=1 writes it anew", path.display());
}

#[test]
fn all_that_is_planted_is_on_the_first_screen() {
    let home = tempfile::tempdir().unwrap();
    day::write(home.path(), true).unwrap();
    let report = report_of(home.path());
    let text = text(&report);
    println!("{text}");
    let screen: Vec<&str> = text.lines().take(40).collect();
    let joined = screen.join("\n");
    for (what, mark) in PLANTED {
        assert!(joined.contains(mark), "{what} ({mark}) is not on the first screen:\n{text}");
    }
    // Findings before the last planted one that nobody planted.
    let planted = |finding: &&Finding| {
        let line = words::flow(finding);
        finding.kind != Kind::Learned && PLANTED.iter().any(|(_, mark)| line.contains(mark))
    };
    let last = report.findings.iter().rposition(|finding| planted(&finding)).unwrap();
    let others = report.findings[..last].iter().filter(|finding| !planted(finding)).count();
    assert!(others <= 3, "{others} others come before:\n{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "wider than 80 columns:\n{text}");
    golden("bad.txt", &text);
    golden("bad.md", &render::markdown::render(&report));
}

#[test]
fn a_usual_day_has_little_to_review_and_an_empty_store_nothing() {
    let home = tempfile::tempdir().unwrap();
    day::write(home.path(), false).unwrap();
    let shown = text(&report_of(home.path()));
    golden("good.txt", &shown);
    let empty = tempfile::tempdir().unwrap();
    day::Days::begin(empty.path(), day::BEGAN).unwrap().end(NOW).unwrap();
    let report = report_of(empty.path());
    assert!(report.findings.is_empty());
    golden("empty.txt", &text(&report));
}

fn guard(state: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(binary().unwrap());
    command.args(arguments).arg("--state-dir").arg(state).env_remove("SUDO_USER");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn a_decision_hides_a_finding_until_it_is_taken_back() {
    let home = tempfile::tempdir().unwrap();
    day::write(home.path(), true).unwrap();
    let json = |arguments: &[&str]| -> (i32, serde_json::Value) {
        let (code, out, error) = guard(home.path(), arguments);
        (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}")))
    };
    let (code, before) = json(&["report", "--json"]);
    assert_eq!(code, 1);
    let findings = before["findings"].as_array().unwrap();
    let one = &findings[0];
    let short = one["short"].as_str().unwrap();
    let (code, shown, error) = guard(home.path(), &["show", short]);
    assert_eq!(code, 0, "{error}");
    assert!(shown.contains("UNUSUAL"), "{shown}");
    assert!(!shown.contains("- { to:"), "a line to paste that would let it out: {shown}");
    let (code, written) = json(&["ack", short, "--as", "kim", "--note", "seen", "--json"]);
    assert_eq!(code, 0);
    assert_eq!(written["written"][0]["by"]["name"], "kim");
    let (_, after) = json(&["report", "--json"]);
    assert_eq!(after["findings"].as_array().unwrap().len(), findings.len() - 1);
    assert_eq!(guard(home.path(), &["unack", short]).0, 0);
    assert_eq!(json(&["report", "--json"]).1["findings"], before["findings"]);
    // All of them: then the answer is yes.
    let ids: Vec<&str> = findings.iter().map(|finding| finding["short"].as_str().unwrap()).collect();
    let mut arguments = vec!["ack"];
    arguments.extend(&ids);
    assert_eq!(guard(home.path(), &arguments).0, 0);
    let (code, out, _) = guard(home.path(), &["report"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.starts_with("nothing to review"), "{out}");
    assert_eq!(guard(home.path(), &["show", "zz"]).0, 3);
    assert_eq!(guard(home.path(), &["show", "ffffffffffff"]).0, 3);
    let (code, out, _) = guard(home.path(), &["show", short]);
    assert_eq!(code, 0);
    assert!(out.contains("taken back") && out.contains("acknowledged by kim") || out.contains("by kim"), "{out}");
}

/// Acknowledging one thing is no look at the others: they stay, and the exit code says so.
#[test]
fn what_is_older_than_the_last_review_waits_for_one() {
    let home = tempfile::tempdir().unwrap();
    day::write(home.path(), true).unwrap();
    let json = |arguments: &[&str]| -> (i32, serde_json::Value) {
        let (code, out, error) = guard(home.path(), arguments);
        (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}")))
    };
    let ids = |report: &serde_json::Value| -> std::collections::BTreeSet<String> {
        report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|finding| finding["id"].as_str().unwrap().to_owned())
            .collect()
    };
    const LAST: [&str; 4] = ["report", "--since", "last-review", "--json"];
    // Nobody has looked at anything yet: it is all that is kept.
    let (code, before) = json(&LAST);
    assert_eq!((code, ids(&before)), (1, ids(&json(&["report", "--json"]).1)));
    let one = before["findings"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(guard(home.path(), &["ack", &one]).0, 0);
    let (code, after) = json(&LAST);
    let mut wanted = ids(&before);
    wanted.remove(&one);
    assert_eq!((code, ids(&after)), (1, wanted.clone()), "what nobody looked at is gone");
    assert!(after["findings"].as_array().unwrap().iter().all(|finding| finding["older"] == true), "{after:#}");
    assert!(!after["newer_than"].is_null() && after["to_review"] == 13 && after["learned"] == 8, "{after:#}");
    // Taking it back is no review either, and brings it back.
    assert_eq!(guard(home.path(), &["unack", &one]).0, 0);
    assert_eq!((json(&LAST).0, ids(&json(&LAST).1)), (1, ids(&before)));
    assert_eq!(guard(home.path(), &["ack", &one]).0, 0);
    // What comes after stands before what is older, in its kind.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64;
    let mut days = day::Days::begin(home.path(), now).unwrap();
    let who = std::sync::Arc::new(day::program("/usr/bin/wget", 7, "ci", "/usr/bin/dash"));
    days.put(&day::Talk::out(6, "203.0.113.222", 4443, &who).denied(), now).unwrap();
    days.end(now).unwrap();
    let (code, newer) = json(&LAST);
    let denied: Vec<_> =
        newer["findings"].as_array().unwrap().iter().filter(|finding| finding["kind"] == "outbound_denied").collect();
    assert_eq!(code, 1);
    assert!(denied.len() == 4 && denied[0]["remote"] == "203.0.113.222" && denied[0]["older"] == false, "{denied:#?}");
    assert!(denied[1..].iter().all(|finding| finding["older"] == true), "{denied:#?}");
    let (_, text, _) = guard(home.path(), &["report", "--since", "last-review"]);
    assert!(text.contains("older: 21 groups of which nothing was seen since."), "{text}");
    assert!(text.contains("listens since 2026-01-26 11:00Z, nobody came · older\n"), "{text}");
    // All of them: then, and only then, the answer is yes.
    let all = ids(&newer);
    let mut arguments = vec!["ack"];
    arguments.extend(all.iter().map(String::as_str));
    assert_eq!(guard(home.path(), &arguments).0, 0);
    let (code, out, _) = guard(home.path(), &["report", "--since", "last-review"]);
    assert!(code == 0 && out.starts_with("nothing to review"), "{out}");
}

/// The same two numbers in every form: what was learned is told apart everywhere.
#[test]
fn every_form_counts_alike() {
    let home = tempfile::tempdir().unwrap();
    day::write(home.path(), true).unwrap();
    let page = home.path().join("report.html");
    let (code, said, error) = guard(home.path(), &["report", "--html", page.to_str().unwrap()]);
    assert_eq!(code, 1, "{error}");
    let counts = "14 groups to review, 8 learned and never reviewed";
    assert!(said.starts_with(counts), "{said}");
    assert!(fs::read_to_string(&page).unwrap().contains(&format!("<h1>{counts}</h1>")));
    assert!(guard(home.path(), &["report"]).1.starts_with(counts));
    assert!(guard(home.path(), &["report", "--markdown"]).1.starts_with(&format!("# guard report: {counts}\n")));
    let json: serde_json::Value = serde_json::from_str(&guard(home.path(), &["report", "--json"]).1).unwrap();
    assert_eq!((&json["to_review"], &json["learned"]), (&14.into(), &8.into()));
    let first = json["findings"][0]["id"].as_str().unwrap();
    let (_, said, _) = guard(home.path(), &["ack", first]);
    assert!(said.contains("left: 13 groups to review, 8 learned and never reviewed"), "{said}");
    let (_, said, _) = guard(home.path(), &["unack", first, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&json["to_review"], &json["learned"]), (&14.into(), &8.into()));
}

/// Whoever looks at a group sees all of it: what stands in its oldest flow, too.
#[test]
fn show_is_of_all_flows_of_a_group() {
    let home = tempfile::tempdir().unwrap();
    let mut days = day::Days::begin(home.path(), day::BEGAN).unwrap();
    let minute = 60_000_000;
    let process = |pid| std::sync::Arc::new(day::program("/usr/bin/curl", pid, "ci", "/usr/bin/dash"));
    let old = day::Talk::out(6, "203.0.113.9", 443, &process(11)).denied();
    let old = day::Talk { names: vec!["old.example.org".into()], ..old };
    let mut first = old.at(1, day::DAY_BEGINS);
    first.head = b"GET /the-first-of-all".to_vec();
    days.put_flow(first).unwrap();
    let new = day::Talk::out(6, "203.0.113.9", 443, &process(22)).denied();
    for number in 1..31 {
        days.put_flow(new.at(number as u64 + 1, day::DAY_BEGINS + number * minute)).unwrap();
    }
    // Six more ports: with them it is shown as one.
    for port in 1000..1006 {
        days.put(&day::Talk::out(6, "203.0.113.9", port, &process(33)).denied(), day::DAY_BEGINS + 40 * minute)
            .unwrap();
    }
    days.end(NOW).unwrap();
    let report: serde_json::Value = serde_json::from_str(&guard(home.path(), &["report", "--json"]).1).unwrap();
    let finding = &report["findings"][0];
    assert_eq!(finding["groups"].as_array().unwrap().len(), 7, "{report:#}");
    let id = finding["id"].as_str().unwrap();
    // One of its groups was decided on by itself; later all of them.
    let member = finding["groups"][6].as_str().unwrap();
    assert_eq!(guard(home.path(), &["ack", member, "--as", "kim", "--note", "of one"]).0, 0);
    assert_eq!(guard(home.path(), &["unack", member, "--as", "kim"]).0, 0);
    assert_eq!(guard(home.path(), &["ack", id, "--as", "lee"]).0, 0);
    // What is acknowledged is not in the report, and can be looked at, and taken back, all the same.
    assert_eq!(guard(home.path(), &["report"]).0, 0);
    let (code, text, error) = guard(home.path(), &["show", id]);
    assert!(code == 0 && text.contains("7 groups are shown as this one"), "{text}{error}");
    assert_eq!(guard(home.path(), &["unack", id, "--as", "lee"]).0, 0);
    let again: serde_json::Value = serde_json::from_str(&guard(home.path(), &["report", "--json"]).1).unwrap();
    assert_eq!(again["findings"], report["findings"]);
    let (code, text, error) = guard(home.path(), &["show", id]);
    assert_eq!(code, 0, "{error}");
    println!("{text}");
    for wanted in [
        "pid 11",
        "pid 22",
        "pid 33",
        "asked as old.example.org",
        "GET /the-first-o",
        "flows    37: 2.2 kB out, 0 B in; the 10 newest",
        "30 flows 2026-01-26 00:01-00:30Z",
        "acknowledged by kim",
        "for 1 of 7 groups: of one",
        "acknowledged by lee",
        "for 7 of 7 groups",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing:\n{text}");
    }
    assert_eq!(text.matches("by lee").count(), 2, "what was decided at once is one line:\n{text}");
    let shown: serde_json::Value = serde_json::from_str(&guard(home.path(), &["show", id, "--json"]).1).unwrap();
    assert_eq!(shown["all"]["flows"], 37);
    assert_eq!(shown["processes"].as_array().unwrap().len(), 3);
    assert_eq!(shown["heads"].as_array().unwrap().len(), 2);
    assert_eq!(shown["history"].as_array().unwrap().len(), 16);
    assert_eq!(shown["flows"].as_array().unwrap().len(), 10);
}

#[test]
fn what_is_rare_among_hosts_comes_first() {
    let homes: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    for (number, home) in homes.iter().enumerate() {
        day::write(home.path(), number == 1).unwrap();
    }
    let mut arguments = vec!["report".to_owned(), "--from".to_owned()];
    arguments.extend(homes.iter().map(|home| home.path().display().to_string()));
    let output = Command::new(binary().unwrap()).args(&arguments).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(out.contains("on 3 hosts") && out.contains("seen on 1 of 3 hosts"), "{out}");
    let mirror = out.find("newmirror").unwrap();
    assert!(out.find("drop.example").unwrap() < mirror, "what is on all hosts comes before what is on one:\n{out}");
    assert!(output.stderr.is_empty());
}

/// Whoever may read the file may report on it, also while guard writes it; and changes nothing.
#[test]
fn a_report_does_not_need_root() {
    if !skip::is_root() {
        return skip::skip("review a_report_does_not_need_root", "only root can become somebody else");
    }
    let home = tempfile::tempdir().unwrap();
    let open_to_all = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open_to_all(home.path(), 0o755);
    let own = home.path().join("guard");
    fs::copy(binary().unwrap(), &own).unwrap();
    let state = home.path().join("state");
    fs::create_dir(&state).unwrap();
    open_to_all(&state, 0o755);
    let store = state.join(guard::store::FILE);
    let report = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&own);
        let output = command.args(["report", "--json", "--state-dir"]).arg(&state).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let mut days = day::Days::begin(&state, day::BEGAN).unwrap();
    let who = std::sync::Arc::new(day::program("/usr/bin/curl", 7, "ci", "/usr/bin/dash"));
    days.put(&day::Talk::out(6, "203.0.113.9", 443, &who).denied(), day::DAY_BEGINS).unwrap();
    days.flush().unwrap();
    // As guard makes it: for root alone.
    let (code, _, error) = report();
    assert_eq!(code, Some(3), "{error}");
    assert!(error.contains("store.db"), "{error}");
    // Let in, while it is written, and afterwards.
    for name in ["store.db", "store.db-wal", "store.db-shm"] {
        open_to_all(&state.join(name), 0o644);
    }
    let (code, out, error) = report();
    assert!(code == Some(1) && out.contains("203.0.113.9"), "{out}{error}");
    days.end(NOW).unwrap();
    let before = fs::read(&store).unwrap();
    let (code, after, error) = report();
    assert_eq!((code, error.as_str()), (Some(1), ""));
    assert!(after.contains("203.0.113.9") && fs::read(&store).unwrap() == before);
}
