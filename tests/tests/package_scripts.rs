//! The Debian package's scripts, as they are, where systemd seems to run: what they ask of `guard` and `systemctl`, which
//! stand-ins write down, and what they make of the answers. That the files come and go as they should is tried by
//! `xtask/src/dist/package.rs`; the real `guard` under a real lockdown by `netns_package.rs`.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use guard::{
    daemon::{
        gather,
        report::{Deadline, Report},
    },
    lockdown::mark::Mark,
};
use guard_tests::process::{Ended, run};

const LIMIT: Duration = Duration::from_secs(30);

/// Each says what it was asked. `guard`: a lockdown ends only for whoever says the host's name, and what was released is
/// not attached any more.
const STAND_INS: &[(&str, &str)] = &[
    (
        "guard",
        r#"echo "guard $*" >> "$CASE/asked"
case "$1" in
    status) cat "$CASE/status"; exit "$(cat "$CASE/status-exit")" ;;
    release)
        [ ! -e "$CASE/release-fails" ] || { echo 'error: no'; exit 3; }
        if grep -q '"lockdown":{' "$CASE/status"; then
            case "$* " in *"--host $(uname -n) "*) ;; *) echo 'say --host'; exit 1 ;; esac
        fi
        [ -e "$CASE/comes-back" ] || { cp "$CASE/none" "$CASE/status"; echo 1 > "$CASE/status-exit"; } ;;
    run) [ ! -e "$CASE/would-cut" ] || exit 1 ;;
esac
"#,
    ),
    (
        "systemctl",
        r#"echo "systemctl $*" >> "$CASE/asked"
case "$*" in
    *is-enabled*) cat "$CASE/enabled" ;;
    *is-active*) cat "$CASE/unit"; [ "$(cat "$CASE/unit")" = active ] ;;
    *start*) [ ! -e "$CASE/start-fails" ] ;;
esac
"#,
    ),
    ("deb-systemd-helper", "echo \"deb-systemd-helper $*\" >> \"$CASE/asked\"\n"),
];

/// Nothing of the machine is read or written: its folders that matter are covered. `deb-systemd-invoke` is the real one.
const COVER: &str = "set -e
for folder in /run /etc /var/lib /sys/fs/bpf; do [ ! -d $folder ] || mount -t tmpfs none $folder; done
[ ! -e /usr/sbin/policy-rc.d ] || mount --bind /dev/null /usr/sbin/policy-rc.d
[ -e \"$CASE/offline\" ] || mkdir -p /run/systemd/system
mkdir -p /etc/guard /var/lib/guard/default
PATH=\"$CASE/bin:$PATH\"
set +e
";

struct Case {
    home: tempfile::TempDir,
}

impl Case {
    /// A host where `guard status --json` says this; `None`: it cannot say anything.
    fn new(status: Option<&Report>) -> Self {
        let case = Self { home: tempfile::tempdir().unwrap() };
        let text = |report: &Report| serde_json::to_string(report).unwrap() + "\n";
        case.set("none", &text(&gather::not_attached("default", Vec::new(), 0)));
        case.set("status", &status.map(text).unwrap_or_default());
        case.set("status-exit", if status.is_some() { "0" } else { "3" });
        case.set("unit", "active\n");
        case.set("enabled", "enabled\n");
        fs::create_dir(case.path().join("bin")).unwrap();
        for (name, script) in STAND_INS {
            let path = case.path().join("bin").join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        case
    }

    fn path(&self) -> &Path {
        self.home.path()
    }

    fn set(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    /// Nobody is at a terminal.
    fn sh(&self, script: &str) -> Ended {
        self.with(script, &[])
    }

    fn with(&self, script: &str, environment: &[(&str, &str)]) -> Ended {
        let mut command = self.command(&format!("{COVER}{script}"));
        run(command.envs(environment.iter().copied()).stdin(Stdio::null()), LIMIT).unwrap()
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if !nix::unistd::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["sh", "-c", script]).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging"));
        for name in ["GUARD_REMOVE", "GUARD_INSTANCE", "DEBIAN_FRONTEND", "DPKG_ROOT"] {
            command.env_remove(name);
        }
        command.env("CASE", self.path());
        command
    }

    /// At a terminal, where this is typed.
    fn typing(&self, script: &str, answer: &str) -> Ended {
        self.set("script", script);
        let mut command =
            self.command(&format!("{COVER}printf '{answer}' | script -qec \"sh $CASE/script\" /dev/null"));
        run(command.stdin(Stdio::null()), LIMIT).unwrap()
    }

    /// What was asked since the last look, but for what only looks at the unit.
    fn asked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path().join("asked")).unwrap_or_default();
        let _ = fs::remove_file(self.path().join("asked"));
        text.lines().filter(|line| !line.contains(" is-")).map(str::to_owned).collect()
    }
}

fn report(mode: &'static str) -> Report {
    Report { instance: "default".to_owned(), mode, ..Report::default() }
}

fn lockdown() -> Report {
    Report { lockdown: Some(Mark::default()), enforcing: true, ..report("enforce") }
}

fn released(named: bool) -> String {
    let host = nix::unistd::gethostname().unwrap().to_string_lossy().into_owned();
    format!(
        "guard release --note the package is removed{}",
        if named { format!(" --host {host}") } else { String::new() }
    )
}

const STATUS: &str = "guard status --json";
const STOP: &str = "systemctl stop guard.service";
const REMOVE: &str = "./prerm remove";

/// Whatever might enforce, or come to enforce: not in passing, and nothing is touched meanwhile.
#[test]
fn what_may_enforce_is_not_removed_without_a_word() {
    let deadline = Deadline { at: 60, seconds_left: 60, then_generation: 1 };
    let reports = [
        ("a lockdown holds", Some(lockdown())),
        ("its hooks are not sound", Some(report("enforce"))),
        ("one direction enforces", Some(report("mixed"))),
        ("audit, and the old policy comes back", Some(Report { deadline: Some(deadline), ..report("audit") })),
        (
            "its policy is called like a mode",
            Some(Report { policy: Some(r#"x","mode":"none","#.to_owned()), ..report("enforce") }),
        ),
        ("it cannot be read", None),
    ];
    for (what, report) in reports {
        let case = Case::new(report.as_ref());
        let ended = case.sh(REMOVE);
        assert_eq!(ended.code(), Some(1), "{what}: {}", ended.text());
        assert!(ended.stderr.contains("guard release") && ended.stderr.contains("GUARD_REMOVE"), "{}", ended.text());
        assert_eq!(case.asked(), [STATUS], "{what}");
    }
    // A terminal takes a second each: one of them stands for all.
    let case = Case::new(Some(&lockdown()));
    for (answer, frontend) in [("n\\n", ""), ("\\n", ""), ("y\\n", "DEBIAN_FRONTEND=noninteractive ")] {
        let ended = case.typing(&format!("{frontend}{REMOVE}"), answer);
        assert_eq!(ended.code(), Some(1), "{answer}: {}", ended.text());
        assert_eq!(case.asked(), [STATUS], "{answer}");
    }
}

#[test]
fn agreed_it_is_released_by_name_before_the_unit_stops() {
    for report in [Some(lockdown()), Some(report("enforce")), None] {
        let case = Case::new(report.as_ref());
        let ended = case.with(REMOVE, &[("GUARD_REMOVE", "release")]);
        assert!(ended.good(), "{}", ended.text());
        assert_eq!(case.asked(), [&released(true), STOP, STATUS]);
    }
    let case = Case::new(Some(&lockdown()));
    let ended = case.typing(REMOVE, "y\\n");
    assert!(ended.good(), "{}", ended.text());
    assert!(ended.stdout.contains("opens this host. Go on?"), "{}", ended.text());
    assert_eq!(case.asked(), [STATUS, &released(true), STOP, STATUS]);
}

/// Without its command nobody could take down what the kernel holds.
#[test]
fn what_cannot_be_released_is_not_removed() {
    let case = Case::new(Some(&lockdown()));
    case.set("release-fails", "");
    let ended = case.with(REMOVE, &[("GUARD_REMOVE", "release")]);
    assert_eq!(ended.code(), Some(1), "{}", ended.text());
    assert_eq!(case.asked(), [released(true)], "the unit was stopped all the same");

    let case = Case::new(Some(&report("enforce")));
    case.set("comes-back", "");
    let ended = case.with(REMOVE, &[("GUARD_REMOVE", "release")]);
    assert_eq!(ended.code(), Some(1), "it is attached after all: {}", ended.text());

    let case = Case::new(Some(&report("none")));
    let ended = case.sh(&format!("mkdir -p /sys/fs/bpf/guard/default /sys/fs/bpf/guard/lab && {REMOVE}"));
    assert_eq!(ended.code(), Some(1), "another instance: {}", ended.text());
    assert!(ended.stderr.contains("down: lab (guard release --instance"), "{}", ended.text());
    assert_eq!(case.asked(), [""; 0]);
}

#[test]
fn where_nothing_is_denied_it_just_goes() {
    for mode in ["none", "tracking", "audit"] {
        let case = Case::new(Some(&report(mode)));
        let ended = case.sh(&format!("mkdir -p /sys/fs/bpf/guard/default && {REMOVE}"));
        assert!(ended.good(), "{mode}: {}", ended.text());
        assert_eq!(case.asked(), [STATUS, &released(false), STOP, STATUS], "{mode}");
    }
    // An upgrade leaves all as it is.
    let case = Case::new(Some(&lockdown()));
    assert!(case.sh("./prerm upgrade 0.2.0").good());
    assert_eq!(case.asked(), [""; 0]);
}

const ENABLED: [&str; 2] =
    ["deb-systemd-helper --quiet was-enabled guard.service", "deb-systemd-helper enable guard.service"];
const RELOAD: &str = "systemctl daemon-reload";
const DRY: &str = "guard run --dry-run /etc/guard/policy.yaml";
const START: &str = "systemctl --quiet --system start guard.service";

#[test]
fn an_installation_enables_and_starts() {
    let case = Case::new(None);
    assert!(case.sh("./postinst configure ''").good());
    assert_eq!(case.asked(), [ENABLED[0], ENABLED[1], RELOAD, DRY, START]);

    // In a chroot, or an image that is made: it starts with the host.
    case.set("offline", "");
    assert!(case.sh("./postinst configure ''").good());
    assert_eq!(case.asked(), ENABLED);
}

/// dpkg tells postinst the same as at an upgrade.
#[test]
fn installed_again_after_a_removal_it_starts_again() {
    let case = Case::new(Some(&report("audit")));
    let ended = case.sh("./prerm remove && ./postrm remove && ./postinst configure 0.1.0");
    assert!(ended.good(), "{}", ended.text());
    let removed = [STATUS, &released(false), STOP, STATUS, RELOAD];
    assert_eq!(case.asked(), [&removed[..], &[ENABLED[0], ENABLED[1], RELOAD, DRY, START]].concat());
    assert!(case.sh("./postrm remove && ./postinst configure 0.1.0 && [ ! -e /var/lib/guard/.removed ]").good());
}

#[test]
fn a_policy_that_would_cut_who_installs_is_not_started() {
    let case = Case::new(None);
    case.set("would-cut", "");
    let ended = case.sh("./postrm remove && ./postinst configure 0.1.0");
    assert!(ended.good() && ended.stderr.contains("is not started"), "{}", ended.text());
    assert_eq!(case.asked().last().unwrap(), DRY);
}

#[test]
fn an_upgrade_restarts_what_runs_and_leaves_what_was_stopped() {
    for (unit, restarts) in [("active", true), ("failed", true), ("activating", true), ("inactive", false)] {
        let case = Case::new(Some(&lockdown()));
        case.set("unit", unit);
        assert!(case.sh("./postinst configure 0.1.0").good());
        let mut wanted = vec![ENABLED[0], ENABLED[1], RELOAD];
        wanted.extend(restarts.then_some("systemctl --quiet --system restart guard.service"));
        assert_eq!(case.asked(), wanted, "{unit}");
    }
    // Disabled and not running: not by an upgrade either.
    let case = Case::new(None);
    case.set("enabled", "disabled\n");
    case.set("unit", "failed\n");
    assert!(case.sh("./postinst configure 0.1.0").good());
    assert_eq!(case.asked().last().unwrap(), RELOAD);
}

#[test]
fn that_it_does_not_start_is_said_and_is_no_broken_package() {
    for before in ["''", "0.1.0"] {
        let case = Case::new(None);
        case.set("start-fails", "");
        let ended = case.sh(&format!("./postinst configure {before}"));
        assert!(ended.good() && ended.stderr.contains("did not start"), "{}", ended.text());
    }
}

#[test]
fn a_purge_takes_everything_along() {
    let case = Case::new(None);
    let ended = case.sh(
        "touch /etc/guard/recovery /etc/guard/recovery-lab && ./postrm purge && [ ! -e /var/lib/guard ] && [ ! -e /etc/guard ]",
    );
    assert!(ended.good(), "{}", ended.text());
    assert_eq!(case.asked(), ["deb-systemd-helper purge guard.service", RELOAD]);
    // Only what is guard's.
    let ended = case.sh("touch /etc/guard/responders.txt && ./postrm purge && [ -e /etc/guard/responders.txt ]");
    assert!(ended.good(), "{}", ended.text());
}

/// systemd's own measure of what the unit may do; lower is less. What is left is what guard is for: bpf(2) and network
/// administration, the host's own network and processes, sockets of all its families.
#[test]
fn the_unit_may_do_no_more_than_it_did() {
    const TENTHS: &str = "62";
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/guard.service");
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["security", "--no-pager", "--offline=true", "--threshold", TENTHS]).arg(unit);
    let ended = run(&mut analyze, LIMIT).unwrap();
    assert!(ended.good(), "{}", ended.text());
}
