//! The person at a lockdown's terminal, over real OpenSSH: what is asked and answered, and `--this-session-only`, where
//! what is open goes on and nobody else comes in.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use guard_tests::{
    guard::{Guard, binary},
    keystrokes::Keystrokes,
    new_world,
    process::{Process, run},
    servers::Sshd,
    terminal::Terminal,
    world::World,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
/// A packet that is lost is sent again after this, at least.
const PAUSE: Duration = Duration::from_millis(200);

fn over_ssh(sshd: &Sshd, world: &World, line: &str) -> Command {
    let mut command = sshd.client(&world.responder, world.server.v4.into());
    command.env("LC_ALL", "C").args(["-o", "ConnectTimeout=1"]).arg(line);
    command
}

fn line(guard: &Guard, name: &str, more: &str) -> String {
    let at = format!("--instance {} --state-dir {}", guard.instance(), guard.state_dir().display());
    format!("NO_COLOR=1 {} {name} {at} {more}", binary().unwrap().display())
}

/// What stands between the shell and the terminal's questions: how many there will be is asked first.
fn plan(terminal: &mut Terminal<'_>, lockdown: &str) -> Value {
    let (code, said) = terminal.run(&format!("{lockdown} --dry-run --json"));
    assert_eq!(code, 0, "{said}");
    let line = said.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no JSON: {said}"));
    serde_json::from_str::<Value>(line).unwrap()["plan"].take()
}

fn until_ended(process: &mut Process) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if process.ended().unwrap().is_some() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Who else comes from the bastion is cut by the answer, at once; the terminal that asked lives on and counts down, and
/// the confirmation asks what it has to.
#[test]
fn the_answers_at_the_terminal_count() {
    let Some(world) = new_world("netns_lockdown_ask answers") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let guard = Guard::prepare(&world, "version: 1\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    let listener = world.intruder.run(|| TcpListener::bind((world.intruder.v4, 4444))).unwrap();
    let mut shell = world.server.command("/bin/bash");
    let _shell = Process::spawn(shell.args(["-c", "exec 3<>/dev/tcp/203.0.113.9/4444; cat <&3"])).unwrap();
    let _stream = listener.accept().unwrap();
    let other = |world: &World| {
        let mut command = sshd.client(&world.responder, world.server.v4.into());
        let mut process = Process::spawn(command.args(["-tt", "echo $PPID; sleep 600"])).unwrap();
        let pid = process.wait_line(LIMIT, |line| line.trim().parse::<u32>().is_ok()).unwrap();
        (process, pid.trim().parse::<u32>().unwrap())
    };
    let (mut first, first_pid) = other(&world);
    let (mut second, _) = other(&world);
    let mut terminal = Terminal::open(&sshd, &world);
    let lockdown =
        line(&guard, "lockdown", &format!("--cgroup {} --evidence none --confirm-within 5m", world.cgroup().display()));

    // No: nothing is changed.
    let asked = plan(&mut terminal, &lockdown);
    let others = asked["way_in"]["others"].as_array().unwrap();
    assert_eq!(others.len(), 2, "{asked:#}");
    let offers = asked["offered"].as_array().unwrap().len();
    let answers = |cut: Option<u32>, go: &str| {
        let each =
            others.iter().map(|other| if Some(other["pid"].as_u64().unwrap() as u32) == cut { "y" } else { "n" });
        let all: Vec<&str> = each.chain(std::iter::repeat_n("n", offers)).chain([go]).collect();
        all.join("\n")
    };
    terminal.types(&lockdown);
    terminal.types(&answers(None, "n"));
    terminal.process.wait_line(LIMIT, |line| line.contains("nothing was changed")).unwrap();
    assert_eq!(guard.status().unwrap()["mode"], "none");

    // Yes, and one of the others goes.
    let holder = others.iter().map(|other| other["pid"].as_u64().unwrap() as u32).find(|pid| *pid == first_pid);
    assert_eq!(holder, Some(first_pid), "{asked:#}");
    terminal.types(&lockdown);
    terminal.types(&answers(Some(first_pid), "y"));
    terminal.process.wait_line(LIMIT, |line| line.contains("-> CUT")).unwrap();
    terminal.process.wait_line(LIMIT, |line| line.contains("CONTAINED UNTIL")).unwrap();
    assert!(until_ended(&mut first), "cut by the answer: {}", terminal.process.output());
    assert!(second.ended().unwrap().is_none(), "kept by the answer");
    let said = terminal.process.output();
    assert!(said.contains("1 socket ended"), "{said}");
    // The others that are kept have the countdown, too.
    second.wait_line(LIMIT, |line| line.contains("it opens in") && line.contains("guard confirm")).unwrap();

    // In another login: nobody is asked about a new one, since this is it, but there is one way in only.
    let mut again = Terminal::open(&sshd, &world);
    again.process.wait_line(LIMIT, |line| line.contains("it opens in")).unwrap();
    again.types(&line(&guard, "confirm", "--as kim"));
    again.types("n");
    again.process.wait_line(LIMIT, |line| line.contains("--one-way-in answers this")).unwrap();
    assert!(guard.status().unwrap()["lockdown"]["confirmed"].is_null());
    again.types(&line(&guard, "confirm", "--as kim"));
    again.types("y");
    again.process.wait_line(LIMIT, |line| line.contains("CONFIRMED by kim")).unwrap();
    terminal.process.wait_line(LIMIT, |line| line.contains("CONFIRMED. next")).unwrap();
    assert!(terminal.process.output().contains(" left)"), "it counted down");
    // Nobody has the terminal any more but its shell.
    assert_eq!(terminal.run("echo here"), (0, "here\n".to_owned()));
    let status = guard.status().unwrap();
    assert_eq!(status["lockdown"]["confirmed"]["by"], "kim", "{status:#}");
    let timeline = fs::read_to_string(guard.state_dir().join("timeline.jsonl")).unwrap();
    assert!(timeline.contains("ends the socket of out tcp 203.0.113.9:4444"), "{timeline}");
    second.kill().unwrap();
}

/// With `--foreground` the command itself records, until it is told to stop; the lockdown goes on.
#[test]
fn in_the_foreground_it_records_itself() {
    let Some(world) = new_world("netns_lockdown_ask foreground") else { return };
    let guard = Guard::prepare(&world, "version: 1\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    let lockdown = |foreground: &[&str]| {
        let mut command = guard.command("lockdown").unwrap();
        command.args(["--yes", "--allow-from", "198.51.100.7", "--evidence", "none", "--confirm-within", "none"]);
        command.arg("--cgroup").arg(world.cgroup()).args(foreground);
        Process::spawn(&mut command).unwrap()
    };
    let mut command = lockdown(&["--foreground"]);
    command.wait_line(LIMIT, |line| line.contains("guard is ready")).unwrap();
    let status = guard.status().unwrap();
    assert_eq!(status["daemon"]["pid"], command.pid(), "{status:#}");
    // Once more, where a daemon records already: that one goes on, and the command ends as any other.
    let again = lockdown(&["--foreground"]).finish(LIMIT).unwrap();
    assert!(again.good() && again.stdout.contains("CONTAINED, and stays so"), "{}", again.text());
    assert!(again.stdout.contains("a daemon records already"), "{}", again.text());
    command.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(command.finish(LIMIT).unwrap().good());
    let status = guard.status().unwrap();
    assert!(status["daemon"].is_null() && status["enforcing"] == true, "{status:#}");
}

#[test]
fn what_is_open_goes_on_and_nobody_else_comes_in() {
    let Some(world) = new_world("netns_lockdown_ask only") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let guard = Guard::prepare(&world, "version: 1\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    // The one that is asked from is a terminal of its own; beside it somebody types.
    let keys = Keystrokes::start(&mut over_ssh(&sshd, &world, "cat")).unwrap();
    let mut intruder = Process::spawn(&mut over_ssh(&sshd, &world, "echo $PPID; sleep 600")).unwrap();
    let pid = intruder.wait_line(LIMIT, |line| line.trim().parse::<u32>().is_ok()).unwrap();
    let more = format!(
        "--yes --evidence none --this-session-only --confirm-within 5m --allow-to 192.0.2.20:tcp/8081 --cut {} --cgroup {}",
        pid.trim(),
        world.cgroup().display()
    );
    let mut lockdown = Process::spawn(&mut over_ssh(&sshd, &world, &line(&guard, "lockdown", &more))).unwrap();
    lockdown.wait_line(LIMIT, |line| line.contains("CONTAINED UNTIL")).unwrap();
    for part in ["THIS SESSION ONLY", "does not answer      192.0.2.20:8081: "] {
        assert!(lockdown.output().contains(part), "{part}\n{}", lockdown.output());
    }
    // Its client is not told: not even a reset leaves.
    let deadline = Instant::now() + LIMIT;
    while Path::new("/proc").join(pid.trim()).exists() {
        assert!(Instant::now() < deadline, "cut: {}", lockdown.output());
        thread::sleep(Duration::from_millis(20));
    }
    intruder.kill().unwrap();
    let comes_in = || run(&mut over_ssh(&sshd, &world, "true"), LIMIT).unwrap().good();
    assert!(!comes_in(), "nobody begins another");
    let explained = guard.explain("in tcp 198.51.100.7 -> 22").unwrap();
    assert_eq!(explained["verdict"], "deny", "{explained:#}");
    assert!(lockdown.ended().unwrap().is_none(), "{}", lockdown.output());

    // It says what that means, and the confirmation ends no socket of these.
    let doubt = guard.ask("confirm", &[]).unwrap();
    assert!(doubt.code() == Some(1) && doubt.stdout.contains("only the sessions that are open"), "{}", doubt.text());
    guard.tell("confirm", &["--one-way-in"]).unwrap();
    let ended = lockdown.finish(LIMIT).unwrap();
    assert!(ended.good() && ended.stdout.contains("CONFIRMED"), "{}", ended.text());
    assert!(!comes_in());
    let said = guard.ask("status", &[]).unwrap().stdout;
    assert!(said.lines().next().unwrap().contains("no way in but what is open"), "{said}");

    // An exception, which is a generation of its own, lets somebody in; the session goes on through both.
    guard.tell("allow", &["in tcp 198.51.100.7 -> 22", "--for", "10m"]).unwrap();
    assert!(comes_in());
    guard.tell("allow", &["--undo", "1"]).unwrap();
    assert!(!comes_in());
    let typed = keys.finish();
    eprintln!("{typed:?}");
    assert_eq!(typed.keys, typed.echoed, "no key is lost");
    // A packet between a flip and the next system call is sent once more.
    assert!(typed.slowest < PAUSE * 3, "{typed:?}");
    let named = guard.all_records_with("--this-session-only").unwrap();
    assert!(named.iter().any(|record| record["guard"]["rule"] == "--this-session-only"), "{named:#?}");
}

/// A command that no session carries any more, at a terminal: the person says which one at the SSH port is theirs.
#[test]
fn a_session_is_chosen_by_its_number() {
    let Some(world) = new_world("netns_lockdown_ask choice") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let guard = Guard::prepare(&world, "version: 1\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    let mut terminal = Terminal::open(&sshd, &world);
    let lockdown = line(&guard, "lockdown", &format!("--cgroup {} --evidence none", world.cgroup().display()));
    // Its parent is gone before it looks; the shell, which sleeps, leaves the keyboard to it.
    terminal.types(&format!(
        "t=$(tty); (env -u SSH_CONNECTION setsid sh -c 'sleep 0.3; {lockdown}' < $t > $t 2>&1 &); sleep 1000"
    ));
    let screen = |text: &str, terminal: &Terminal<'_>| {
        let deadline = std::time::Instant::now() + LIMIT;
        while !terminal.process.output().contains(text) {
            assert!(std::time::Instant::now() < deadline, "{text}: {}", terminal.process.output());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    // The question itself stands in a line that has not ended.
    screen("at the SSH port  1. 198.51.100.7", &terminal);
    terminal.types("1");
    screen("found through your answer", &terminal);
    assert!(terminal.process.output().contains("Policy    in  198.51.100.7  tcp/22"), "{}", terminal.process.output());
    // Whatever is offered on this machine is not kept.
    let deadline = std::time::Instant::now() + LIMIT;
    while !terminal.process.output().contains("nothing was changed") {
        assert!(std::time::Instant::now() < deadline, "{}", terminal.process.output());
        terminal.types("n");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    assert_eq!(guard.status().unwrap()["mode"], "none");
}

#[test]
fn without_a_session_it_is_refused() {
    let Some(world) = new_world("netns_lockdown_ask none") else { return };
    let guard = Guard::prepare(&world, "version: 1\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    let refused = guard.ask("lockdown", &["--this-session-only", "--allow-from", "198.51.100.7", "--dry-run"]).unwrap();
    assert_eq!(refused.code(), Some(3), "{}", refused.text());
    assert!(refused.stderr.contains("no connection that carries this terminal"), "{}", refused.text());
}
