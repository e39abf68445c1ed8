//! What comes back after a reboot, and after a lockdown that failed: never an open host where one was locked down.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use guard_tests::{
    guard::{Guard, binary},
    new_world,
    process::{Process, run},
    raw_bpf::pass_in_front,
    servers::Sshd,
    terminal::Terminal,
    world::World,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const BEFORE: &str = "version: 1\nname: before\nmode: audit\ninbound: []\noutbound: []\n";

/// A host with a place of its own for the second copy.
struct Host {
    world: World,
    guard: Guard,
    recovery: PathBuf,
}

impl Host {
    fn new(test: &str) -> Option<Self> {
        let world = new_world(test)?;
        let guard = Guard::prepare(&world, BEFORE).unwrap();
        let recovery = world.dir().join("recovery");
        Some(Self { world, guard, recovery })
    }

    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.guard.command(name).unwrap();
        command.env("GUARD_RECOVERY", &self.recovery).args(arguments);
        command
    }

    fn ask(&self, name: &str, arguments: &[&str]) -> guard_tests::process::Ended {
        run(&mut self.command(name, arguments), LIMIT).unwrap()
    }

    fn tell(&self, name: &str, arguments: &[&str]) {
        let ended = self.ask(name, arguments);
        assert!(ended.good(), "guard {name} {arguments:?}: {}", ended.text());
    }

    fn lockdown(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("lockdown", &["--yes", "--allow-from", "198.51.100.7", "--evidence", "none"]);
        command.arg("--cgroup").arg(self.world.cgroup()).args(arguments);
        command
    }

    /// Proven, and it stays.
    fn locked_down(&self) {
        let ended = run(&mut self.lockdown(&["--confirm-within", "none"]), LIMIT).unwrap();
        assert!(ended.good() && ended.stdout.contains("CONTAINED, and stays so"), "{}", ended.text());
        assert!(self.recovery.exists());
    }

    /// `guard run` until it is ready: what it has said, and the status. It goes on in the background.
    fn run(&self, arguments: &[&str]) -> (String, Value) {
        let mut command = self.guard.run_command(arguments).unwrap();
        let mut daemon = Process::spawn(command.env("GUARD_RECOVERY", &self.recovery)).unwrap();
        daemon.wait_line(LIMIT, |line| line.contains("guard is ready")).unwrap();
        let said = daemon.output();
        daemon.kill().unwrap();
        (said, self.guard.status().unwrap())
    }

    fn damage(&self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        bytes.truncate(bytes.len() / 2);
        fs::write(path, bytes).unwrap();
    }

    fn verdict(&self, flow: &str) -> String {
        self.guard.explain(flow).unwrap()["verdict"].as_str().unwrap_or_default().to_owned()
    }
}

fn signal(pid: &Value, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid.as_i64().unwrap()).unwrap()), signal).unwrap();
}

#[test]
fn a_second_lockdown_that_fails_leaves_the_first() {
    let Some(host) = Host::new("netns_lockdown_back second") else { return };
    host.locked_down();
    let status = host.guard.status().unwrap();
    let first = status["lockdown"].clone();
    assert!(!first["confirmed"].is_null(), "{status:#}");
    // Who stands in front is found by the proof; the daemon, which would mend that, stands still.
    signal(&status["daemon"]["pid"], Signal::SIGSTOP);
    let index = host.world.server.interface_index("eth0");
    let foreign = pass_in_front(&host.world.operator, index, true).unwrap();
    for more in [&[][..], &["--on-timeout", "ssh-only"]] {
        let ended = run(host.lockdown(&["--confirm-within", "5m"]).args(more), LIMIT).unwrap();
        assert_eq!(ended.code(), Some(3), "{}", ended.text());
        for part in ["ENFORCEMENT FAILED", "stands before it", "the lockdown from before goes on"] {
            assert!(ended.stderr.contains(part), "{part}: {}", ended.text());
        }
        let status = host.guard.status().unwrap();
        assert_eq!((&status["lockdown"], &status["policy"]), (&first, &"lockdown".into()), "{more:?} {status:#}");
        assert!(status["deadline"].is_null(), "{status:#}");
        assert_eq!(host.verdict("in tcp 203.0.113.9 -> 22"), "deny");
    }
    drop(foreign);
    signal(&status["daemon"]["pid"], Signal::SIGCONT);
    assert!(host.recovery.exists());
}

/// Attached, and nothing in force: what holds after a failure is what is said to hold.
#[test]
fn a_first_lockdown_that_fails_says_what_holds() {
    let Some(mut host) = Host::new("netns_lockdown_back first") else { return };
    host.guard.run(&["--confirm-within", "5m"]).unwrap();
    host.guard.tell("rollback", &[]).unwrap();
    host.guard.signal(Signal::SIGSTOP).unwrap();
    let index = host.world.server.interface_index("eth0");
    let _foreign = pass_in_front(&host.world.operator, index, true).unwrap();
    for (more, says, mode) in [
        (&[][..], "no policy is in force, as before", "tracking"),
        (&["--on-timeout", "ssh-only"], "the way in alone stays open, to any source", "enforce"),
    ] {
        let ended = run(host.lockdown(&["--confirm-within", "5m"]).args(more), LIMIT).unwrap();
        assert_eq!(ended.code(), Some(3), "{}", ended.text());
        assert!(ended.stderr.contains(says), "{says}: {}", ended.text());
        let status = host.guard.status().unwrap();
        assert_eq!(status["mode"], mode, "{status:#}");
        assert!(status["deadline"].is_null(), "{status:#}");
    }
    assert_eq!(host.verdict("in tcp 203.0.113.9 -> 22"), "allow");
    assert_eq!(host.verdict("in tcp 203.0.113.9 -> 80"), "deny");
}

/// Until the terminal has shown it.
fn wait(terminal: &Terminal<'_>, text: &str) {
    let deadline = Instant::now() + LIMIT;
    while !terminal.process.output().contains(text) {
        assert!(Instant::now() < deadline, "{text}: {}", terminal.process.output());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a `guard confirm` of this instance waits for an answer: it reads its standard input (read is system call 0).
fn is_asking(instance: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let command = read("cmdline");
        command.contains("confirm\0") && command.contains(instance) && read("syscall").starts_with("0 0x0 ")
    })
}

#[test]
fn an_answer_confirms_what_was_asked_about_and_nothing_else() {
    let Some(host) = Host::new("netns_lockdown_back answer") else { return };
    let sshd = Sshd::start(&host.world.server, host.world.dir(), 22).unwrap();
    let mut terminal = Terminal::open(&sshd, &host.world);
    let lock_down = || {
        let mut command = host.lockdown(&["--allow-from", "192.0.2.20", "--confirm-within", "5m", "--json"]);
        let mut process = Process::spawn(command.stdin(Stdio::null())).unwrap();
        process.wait_line(LIMIT, |line| line.contains("\"event\":\"contained\"")).unwrap();
        process
    };
    let _first = lock_down();
    terminal.types(&format!(
        "NO_COLOR=1 {} confirm --instance {} --state-dir {}",
        binary().unwrap().display(),
        host.guard.instance(),
        host.guard.state_dir().display()
    ));
    let deadline = Instant::now() + LIMIT;
    while !is_asking(host.guard.instance()) {
        assert!(Instant::now() < deadline, "nobody is asked: {}", terminal.process.output());
        thread::sleep(Duration::from_millis(20));
    }
    // Somebody else undoes it and locks down anew, while the person thinks.
    host.tell("rollback", &[]);
    let _second = lock_down();
    terminal.types("y");
    wait(&terminal, "what was asked about does not hold any more");
    let status = host.guard.status().unwrap();
    assert!(status["lockdown"]["confirmed"].is_null() && !status["deadline"].is_null(), "{status:#}");
    host.tell("rollback", &[]);
}

#[test]
fn a_session_that_was_chosen_by_an_answer_is_ended() {
    let Some(host) = Host::new("netns_lockdown_back questions") else { return };
    let world = &host.world;
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let mut colleague = sshd.client(&world.responder, world.server.v4.into());
    let mut colleague = Process::spawn(colleague.args(["-tt", "echo here; sleep 600"])).unwrap();
    colleague.wait_line(LIMIT, |line| line.contains("here")).unwrap();
    let mut terminal = Terminal::open(&sshd, world);
    terminal.types(&format!(
        "NO_COLOR=1 {} lockdown --instance {} --state-dir {} --cgroup {} --evidence none --confirm-within 5m",
        binary().unwrap().display(),
        host.guard.instance(),
        host.guard.state_dir().display(),
        world.cgroup().display()
    ));
    wait(&terminal, "Cannot    undo");
    // Whether to cut the other session, and whether to lock down. A question's line has no end, so it is not waited for.
    terminal.types("y");
    terminal.types("y");
    wait(&terminal, "CONTAINED UNTIL");
    let deadline = Instant::now() + LIMIT;
    while colleague.ended().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the session that was chosen lives: {}", terminal.process.output());
        thread::sleep(Duration::from_millis(20));
    }
    assert!(terminal.process.output().contains("1 socket ended"), "{}", terminal.process.output());
    // The one that asked lives; the command that counts down is interrupted, and the kernel goes on.
    terminal.types("\u{3}");
    assert_eq!(terminal.run("true").0, 0);
    host.tell("rollback", &[]);
}

#[test]
fn whatever_is_damaged_a_host_that_was_locked_down_does_not_open() {
    let Some(mut host) = Host::new("netns_lockdown_back damaged") else { return };
    host.locked_down();
    let manifest = host.guard.state_dir().join("active/manifest.json");
    let copy = host.guard.state_dir().join("active/files");

    // The policy that the unit names is wrong.
    host.guard.write_policy("version: 1\ninbound: [{ from: nowhere").unwrap();
    host.guard.reboot().unwrap();
    let (said, status) = host.run(&[]);
    assert!(said.contains("NOT kept for afterwards"), "{said}");
    assert!(status["policy"] == "lockdown" && !status["lockdown"]["confirmed"].is_null(), "{status:#}");

    // The daemon dies, and the state directory goes: what the kernel still has is not replaced by what the unit names.
    host.guard.write_policy(BEFORE).unwrap();
    fs::remove_dir_all(host.guard.state_dir()).unwrap();
    let refused = host.ask("reload", &[&host.guard.policy().display().to_string()]);
    assert!(refused.code() == Some(3) && refused.stderr.contains("this host is locked down"), "{}", refused.text());
    let (said, status) = host.run(&[]);
    assert!(said.contains("by the second copy"), "{said}");
    assert!(status["policy"] == "lockdown" && !status["lockdown"]["confirmed"].is_null(), "{status:#}");

    // What is kept is damaged, and the second copy is good: the manifest, then the policy itself.
    for damaged in [&manifest, &files(&copy).remove(0)] {
        host.guard.reboot().unwrap();
        host.damage(damaged);
        let (said, status) = host.run(&["--resume"]);
        assert!(said.contains("by the second copy"), "{said}");
        assert!(status["policy"] == "lockdown" && status["enforcing"] == true, "{status:#}");
        assert!(host.guard.state_dir().join("active.damaged").exists());
    }

    // The second copy too: the SSH ports alone.
    host.guard.reboot().unwrap();
    host.damage(&manifest);
    host.damage(&host.recovery);
    let (said, status) = host.run(&[]);
    assert!(said.contains("LOCKED DOWN, to the SSH ports alone"), "{said}");
    assert!(status["policy"] == "lockdown-ssh-only" && status["enforcing"] == true, "{status:#}");
    assert_eq!(status["lockdown"]["confirmed"]["by"], "guard", "{status:#}");
    for (flow, verdict) in [
        ("in tcp 203.0.113.9 -> 22", "allow"),
        ("in tcp 203.0.113.9 -> 80", "deny"),
        ("out tcp 203.0.113.9:443", "deny"),
    ] {
        assert_eq!(host.verdict(flow), verdict, "{flow}");
    }

    // Before anything is put in force again a release is asked about, too, and leaves no copy behind.
    host.guard.reboot().unwrap();
    let refused = host.ask("release", &[]);
    assert!(refused.code() == Some(1) && refused.stdout.contains("THIS ENDS THE LOCKDOWN"), "{}", refused.text());
    let name = nix::unistd::gethostname().unwrap().to_string_lossy().into_owned();
    host.tell("release", &["--host", &name]);
    assert!(!host.recovery.exists());
    let timeline = fs::read_to_string(host.guard.state_dir().join("timeline.jsonl")).unwrap();
    assert!(timeline.contains("the lockdown is over"), "{timeline}");
}

/// Whoever is to be kept in can fill it.
#[test]
fn a_full_disk_opens_no_host_that_was_locked_down() {
    let Some(mut host) = Host::new("netns_lockdown_back full") else { return };
    let state = host.guard.state_dir().to_owned();
    fs::create_dir(&state).unwrap();
    // In the world's own mount namespace, in which all commands run.
    let shell = |host: &Host, script: &str| {
        let mut shell = host.world.operator.command("/bin/sh");
        run(shell.args(["-c", script, "sh"]).arg(&state), LIMIT).unwrap()
    };
    let mounted = shell(&host, "mount -t tmpfs -o size=16m,mode=700 none \"$1\"");
    assert!(mounted.good(), "{}", mounted.text());
    host.locked_down();
    host.guard.reboot().unwrap();
    let full = shell(&host, "cat /dev/zero > \"$1/fill\"");
    assert!(full.stderr.contains("No space left"), "{}", full.text());
    let (said, status) = host.run(&[]);
    assert!(said.contains("in force, but not written down as such"), "{said}");
    assert_eq!(status["enforcing"], true, "{said} {status:#}");
    assert!(!status["lockdown"]["confirmed"].is_null(), "{status:#}");
    // And what is released stays so.
    let name = nix::unistd::gethostname().unwrap().to_string_lossy().into_owned();
    host.tell("release", &["--host", &name]);
    assert!(!host.recovery.exists());
}

/// Pasted as it stands in the documentation, but for where things lie.
#[test]
fn the_line_for_hosts_without_systemd_brings_a_lockdown_back() {
    let Some(mut host) = Host::new("netns_lockdown_back line") else { return };
    host.locked_down();
    host.guard.reboot().unwrap();
    let boot = host.world.dir().join("boot");
    fs::create_dir(&boot).unwrap();
    // Of this world's cgroup, and never of the machine's.
    let (bin, cgroup) = (binary().unwrap(), host.world.cgroup().to_owned());
    let script = format!(
        "#!/bin/sh\ncase $1 in run) shift; exec {0} run --cgroup {1} \"$@\" ;; esac\nexec {0} \"$@\"\n",
        bin.display(),
        cgroup.display()
    );
    let (guard, hook) = (boot.join("guard"), boot.join("hook"));
    fs::write(&guard, script).unwrap();
    fs::set_permissions(&guard, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let shell = |script: &str| {
        let mut shell = host.world.operator.command("/bin/sh");
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", boot.display());
        shell.env("PATH", path).env("GUARD_RECOVERY", &host.recovery);
        shell.env("GUARD_INSTANCE", host.guard.instance()).env("GUARD_STATE_DIR", host.guard.state_dir());
        run(shell.args(["-c", script]), LIMIT).unwrap()
    };
    let line = include_str!("../../docs/lockdown.md").lines().find(|line| line.starts_with("printf")).unwrap();
    let line = line.replace("/etc/network/if-pre-up.d/guard", &hook.display().to_string());
    let line = line.replace("/etc/guard/policy.yaml", &host.guard.policy().display().to_string());
    let pasted = shell(&line);
    assert!(pasted.good(), "{}", pasted.text());
    // As for each interface: the first starts it, the others find it.
    for _ in 0..2 {
        let hooked = shell(&hook.display().to_string());
        assert!(hooked.good(), "{}", hooked.text());
        let status = host.guard.status().unwrap();
        assert_eq!(status["enforcing"], true, "{status:#}");
        assert!(!status["lockdown"]["confirmed"].is_null() && !status["daemon"].is_null(), "{status:#}");
    }
}

/// All below, each file.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn what_nobody_confirmed_ends_no_lockdown_that_somebody_did() {
    let Some(mut host) = Host::new("netns_lockdown_back unconfirmed") else { return };
    host.guard.run(&[]).unwrap();
    host.locked_down();
    let first = host.guard.status().unwrap()["lockdown"].clone();
    host.tell("restore", &["--confirm-within", "5m"]);
    assert_eq!(host.guard.status().unwrap()["policy"], "before");
    host.guard.reboot().unwrap();
    let (_, status) = host.run(&[]);
    assert_eq!((&status["policy"], &status["lockdown"]), (&"lockdown".into(), &first), "{status:#}");

    // A start that was killed when it had attached, and put nothing in force yet.
    host.guard.reboot().unwrap();
    let (active, aside) = (host.guard.state_dir().join("active"), host.guard.state_dir().join("aside"));
    fs::rename(&active, &aside).unwrap();
    host.guard.run(&["--confirm-within", "5m"]).unwrap();
    host.guard.tell("rollback", &[]).unwrap();
    host.guard.kill().unwrap();
    assert_eq!(host.guard.status().unwrap()["mode"], "tracking");
    fs::rename(&aside, &active).unwrap();
    let (_, status) = host.run(&[]);
    assert_eq!((&status["policy"], &status["lockdown"]), (&"lockdown".into(), &first), "{status:#}");
    assert_eq!(status["enforcing"], true, "{status:#}");

    // Another lockdown over it, which nobody confirms either.
    let mut second = Process::spawn(host.lockdown(&["--confirm-within", "5m", "--json"]).stdin(Stdio::null())).unwrap();
    second.wait_line(LIMIT, |line| line.contains("\"event\":\"contained\"")).unwrap();
    assert_ne!(host.guard.status().unwrap()["lockdown"], first);
    second.kill().unwrap();
    host.guard.reboot().unwrap();
    let (_, status) = host.run(&[]);
    assert_eq!((&status["policy"], &status["lockdown"]), (&"lockdown".into(), &first), "{status:#}");

    // Restored for good, the second copy goes at once.
    host.tell("restore", &["--confirm-within", "none"]);
    assert!(!host.recovery.exists());
    let status = host.guard.status().unwrap();
    assert!(status["policy"] == "before" && status["lockdown"].is_null(), "{status:#}");
}

/// On a host that has rebooted and that nothing is attached to yet.
#[test]
fn a_lockdown_that_is_refused_forgets_nothing_that_was_kept() {
    let Some(mut host) = Host::new("netns_lockdown_back refused") else { return };
    let sshd = Sshd::start(&host.world.server, host.world.dir(), 22).unwrap();
    host.guard.run(&[]).unwrap();
    host.guard.reboot().unwrap();
    let closed = host.world.dir().join("closed.yaml");
    fs::write(&closed, "version: 1\nname: closed\nmode: enforce\nlockdown: true\ninbound: []\noutbound: []\n").unwrap();
    for more in ["", "--on-timeout ssh-only"] {
        // It would cut the session that asks.
        let line = format!(
            "{} lockdown --instance {} --state-dir {} --cgroup {} --evidence none --yes --policy {} {more}",
            binary().unwrap().display(),
            host.guard.instance(),
            host.guard.state_dir().display(),
            host.world.cgroup().display(),
            closed.display()
        );
        let mut command = sshd.client(&host.world.responder, host.world.server.v4.into());
        let ended = run(command.arg(line), LIMIT).unwrap();
        assert_eq!(ended.code(), Some(3), "{}", ended.text());
        for part in ["--no-keep-session", "open as it was before", "what was kept from before a reboot still is"] {
            assert!(ended.stderr.contains(part), "{part}: {}", ended.text());
        }
        assert_eq!(host.guard.status().unwrap()["mode"], "none");
    }
    host.guard.write_policy("nonsense").unwrap();
    let (_, status) = host.run(&["--resume"]);
    assert!(status["policy"] == "before" && status["lockdown"].is_null(), "{status:#}");
}

/// Nobody reads what it says: it holds, and the exit code says so.
#[test]
fn a_lockdown_whose_reader_is_gone_holds() {
    let Some(host) = Host::new("netns_lockdown_back reader") else { return };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = host.lockdown(&["--confirm-within", "none"]);
    let ended = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null()).status().unwrap();
    assert!(ended.success(), "{ended}");
    let status = host.guard.status().unwrap();
    assert!(status["enforcing"] == true && !status["lockdown"]["confirmed"].is_null(), "{status:#}");
    assert!(status["deadline"].is_null() && !status["daemon"].is_null(), "{status:#}");
}

/// As the package's unit starts it.
#[test]
fn what_was_in_force_is_resumed_whatever_the_file_says() {
    let Some(mut host) = Host::new("netns_lockdown_back resume") else { return };
    let named = |name: &str| BEFORE.replace("name: before", &format!("name: {name}"));
    // Nothing is kept: the file.
    let (_, status) = host.run(&["--resume"]);
    assert_eq!(status["policy"], "before");
    // A change that was confirmed, an exception, and a file that is of no use.
    let changed = host.guard.reload(&named("second"), &["--confirm-within", "5m"]).unwrap();
    assert!(changed.good(), "{}", changed.text());
    host.tell("confirm", &[]);
    host.tell("allow", &["in tcp 198.51.100.9 -> 22", "--for", "10m"]);
    host.guard.write_policy("nonsense").unwrap();
    // The daemon alone was restarted: taken over as it is.
    let generation = host.guard.status().unwrap()["generation"].clone();
    let (said, status) = host.run(&["--resume"]);
    assert!(said.contains("taken over as it was"), "{said}");
    assert_eq!((&status["policy"], &status["generation"]), (&"second".into(), &generation), "{status:#}");
    host.guard.reboot().unwrap();
    let (_, status) = host.run(&["--resume"]);
    assert_eq!(status["policy"], "second", "{status:#}");
    assert_eq!(status["exceptions"].as_array().map(Vec::len), Some(1), "{status:#}");
    // One that nobody had confirmed is over.
    let changed = host.guard.reload(&named("third"), &["--confirm-within", "5m"]).unwrap();
    assert!(changed.good(), "{}", changed.text());
    assert_eq!(host.guard.status().unwrap()["policy"], "third");
    host.guard.reboot().unwrap();
    let (_, status) = host.run(&["--resume"]);
    assert_eq!(status["policy"], "second", "{status:#}");
    // Without it, the file.
    host.guard.reboot().unwrap();
    let (_, status) = host.run(&[]);
    assert_eq!(status["policy"], "third", "{status:#}");
}

/// Nothing is in the kernel, and the state directory is there, or not even that.
#[test]
fn a_confirmed_lockdown_comes_back_before_anything_else() {
    let Some(world) = new_world("netns_lockdown reboot") else { return };
    let recovery = world.dir().join("recovery");
    let mut guard =
        Guard::prepare(&world, "version: 1\nname: before\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    let mut command = guard.command("lockdown").unwrap();
    let more = ["--yes", "--allow-from", "198.51.100.7", "--evidence", "none", "--confirm-within", "none", "--cgroup"];
    command.env("GUARD_RECOVERY", &recovery).args(more).arg(world.cgroup());
    let ended = run(&mut command, LIMIT).unwrap();
    assert!(ended.good(), "{}", ended.text());
    assert!(recovery.exists());
    for lost in [false, true] {
        guard.reboot().unwrap();
        if lost {
            fs::remove_dir_all(guard.state_dir()).unwrap();
        }
        let mut run = guard.run_command(&[]).unwrap();
        let mut daemon = Process::spawn(run.env("GUARD_RECOVERY", &recovery)).unwrap();
        let said = daemon.wait_line(LIMIT, |line| line.contains("guard is ready")).unwrap();
        let status = guard.status().unwrap();
        assert!(status["policy"] == "lockdown" && status["enforcing"] == true, "{lost} {said} {status:#}");
        assert!(!status["lockdown"]["confirmed"].is_null(), "{status:#}");
        daemon.kill().unwrap();
        let mut record = guard.command("record").unwrap();
        let begun = guard_tests::process::run(record.arg("--detach"), LIMIT).unwrap();
        assert!(begun.good(), "{}", begun.text());
    }
    // What the unit named is what comes after it.
    guard.tell("restore", &["--confirm-within", "none"]).unwrap();
    assert_eq!(guard.status().unwrap()["policy"], "before");
}
