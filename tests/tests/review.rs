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
