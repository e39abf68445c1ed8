//! Who sits at guard's terminal, with the real parts in between: OpenSSH, and tmux, screen or sudo on the way. And what
//! guard tells the service manager that started it.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use guard_tests::{
    flows::{Flow, PASSES},
    guard::{Guard, binary},
    new_world,
    process::Process,
    servers::Sshd,
    skip::skip,
    terminal::Terminal,
    world::World,
};
use nix::sys::signal::Signal;

/// The responder's way in; with another address, what cuts it.
const GOOD: &str = "version: 1\nname: good\nmode: enforce\ninbound:\n  \
                    - { name: ssh, from: 198.51.100.7, services: ssh }\noutbound: []\n";

/// Whatever stands between the shell and OpenSSH, the session that asks is seen: refused to be cut, and given a deadline
/// unasked for.
fn carried_through(test: &str, program: &str, found: &str, enter: impl Fn(&World) -> String) {
    let Some(world) = new_world(test) else { return };
    if !["/usr/bin", "/bin"].iter().any(|dir| Path::new(dir).join(program).exists()) {
        return skip(test, &format!("{program} is not installed"));
    }
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let guard = Guard::start(&world, GOOD).unwrap();
    let mut terminal = Terminal::open(&sshd, &world);
    let before = terminal.run("echo $$").1;
    terminal.types(&enter(&world));
    // What is typed before the new shell reads is read by it.
    thread::sleep(Duration::from_millis(500));
    assert_ne!(terminal.run("echo $$").1, before, "a shell of its own: {}", terminal.process.output());
    let parents =
        terminal.run("p=$$; while [ $p -gt 1 ]; do cat /proc/$p/comm; p=$(cut -d' ' -f4 /proc/$p/stat); done").1;
    assert!(parents.contains(program), "below {program}: {parents}");

    let at = format!("--instance {} --state-dir {}", guard.instance(), guard.state_dir().display());
    let binary = binary().unwrap();
    let reload = format!("{} reload {at} {}", binary.display(), guard.policy().display());
    guard.write_policy(&GOOD.replace("198.51.100.7", "198.51.100.8").replace("good", "wrong")).unwrap();
    let (code, said) = terminal.run(&reload);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("198.51.100.7 -> 22") && said.contains("ssh"), "the session and the nearest rule: {said}");
    assert_eq!(guard.status().unwrap()["policy"], "good");

    guard.write_policy(&GOOD.replace("good", "better")).unwrap();
    let (code, said) = terminal.run(&reload);
    let status = guard.status().unwrap();
    assert_eq!((code, &status["policy"]), (0, &"better".into()), "{said}");
    let left = status["deadline"]["seconds_left"].as_u64();
    assert!(left.is_some_and(|left| (60..=120).contains(&left)), "two minutes: {said}{status:#}");
    let (code, said) = terminal.run(&format!("{} confirm {at}", binary.display()));
    let status = guard.status().unwrap();
    assert!(code == 0 && status["deadline"].is_null() && status["policy"] == "better", "{said}{status:#}");

    // A lockdown keeps it by itself, says how it was found, and it lives on.
    let more = format!("--yes --evidence none --confirm-within none --cgroup {}", world.cgroup().display());
    let (code, said) = terminal.run(&format!("NO_COLOR=1 {} lockdown {at} {more}", binary.display()));
    assert!(code == 0 && said.contains("CONTAINED, and stays so"), "{said}");
    let (_, way) = said.split_once("Way in    198.51.100.7 tcp/22 (your sshd").unwrap_or_else(|| panic!("{said}"));
    assert!(way.lines().next().unwrap().ends_with(&format!("found through {found})")), "{said}");
    assert_eq!(terminal.run("echo here"), (0, "here\n".to_owned()));
    assert_eq!(guard.status().unwrap()["lockdown"]["ways"], serde_json::json!(["198.51.100.7/32"]));
}

/// Private to the test: nobody else's multiplexer is met, and its server goes with the world's cgroup.
fn private(world: &World) -> String {
    let dir = world.dir().join("sockets");
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    dir.display().to_string()
}

#[test]
fn a_session_is_seen_through_tmux() {
    let enter = |world: &World| format!("TMUX_TMPDIR={} tmux -f /dev/null new-session 'PS1= exec sh'", private(world));
    carried_through("netns_terminal tmux", "tmux", "its terminal multiplexer", enter);
}

#[test]
fn a_session_is_seen_through_screen() {
    // Begun apart and attached to: else its server is a child of the client.
    let enter = |world: &World| {
        let screen = format!("SCREENDIR={} screen -c /dev/null", private(world));
        format!("{screen} -dmS kept sh; until {screen} -x kept; do sleep 0.1; done")
    };
    carried_through("netns_terminal screen", "screen", "its terminal multiplexer", enter);
}

#[test]
fn a_session_is_seen_through_sudo() {
    // A terminal of its own for what it runs, as Debian sets it where use_pty is on.
    carried_through("netns_terminal sudo", "sudo", "this command's parents", |_| "sudo -n sh".to_owned());
}

/// mosh has no connection: its server answers by UDP whoever has the key. Where nothing tells who that is (no connection
/// tracking, nothing in guard's tables yet), the address that started it counts.
#[test]
fn a_session_is_seen_through_mosh() {
    const TEST: &str = "netns_terminal mosh";
    let Some(world) = new_world(TEST) else { return };
    if !Path::new("/usr/bin/mosh-server").exists() {
        return skip(TEST, "mosh-server is not installed");
    }
    let guard = Guard::prepare(&world, &GOOD.replace("services: ssh", "services: [ssh, udp/60001]")).unwrap();
    let at = |name: &str| world.dir().join(name).display().to_string();
    let wrong = at("wrong.yaml");
    guard_tests::servers::private_file(Path::new(&wrong), GOOD).unwrap();
    let line = |arguments: &[&str], policy: &str| {
        let command = guard.run_command(arguments).unwrap();
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        line.replace(&guard.policy().display().to_string(), policy)
    };
    // What the shell under mosh does: what would be cut by both policies, the refusal, and that it is done.
    let script = format!(
        "#!/bin/sh\n{} > {} 2>&1\n{} > {} 2>&1\n{} > {} 2>&1\necho $? > {}\nexec sleep 60\n",
        line(&["--dry-run", "--json"], &guard.policy().display().to_string()),
        at("kept"),
        line(&["--dry-run", "--json"], &wrong),
        at("cut"),
        line(&[], &wrong),
        at("refused"),
        at("code")
    );
    let path = at("under-mosh");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let login = format!("{} 4000 {} 22", world.responder.v4, world.server.v4);
    let mut server = world.operator.command("mosh-server");
    server.args(["new", "-i", &world.server.v4.to_string(), "-p", "60001", "--", &path]);
    server.env("SSH_CONNECTION", &login).env("LC_ALL", "C.UTF-8").env("TERM", "xterm").env("SHELL", "/bin/sh");
    let started = guard_tests::process::run(&mut server, PASSES * 2).unwrap();
    let text = started.text();
    let key = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("MOSH CONNECT 60001 "))
        .unwrap_or_else(|| panic!("{text}"));
    // Its server starts the shell when the client has spoken.
    let mut client = world.responder.command("script");
    client.args(["-qfec", &format!("stty rows 24 cols 80; mosh-client {} 60001", world.server.v4), "/dev/null"]);
    client.env("MOSH_KEY", key.trim()).env("LC_ALL", "C.UTF-8").env("TERM", "xterm").stdin(Stdio::piped());
    let mut client = Process::spawn(&mut client).unwrap();
    let _keyboard = client.stdin();
    let deadline = Instant::now() + PASSES * 6;
    let code = loop {
        if let Ok(Ok(code)) = fs::read_to_string(at("code")).map(|text| text.trim().parse::<i32>()) {
            break code;
        }
        assert!(Instant::now() < deadline, "nothing came of it: {}", client.output());
        thread::sleep(Duration::from_millis(50));
    };
    let said = |name: &str| fs::read_to_string(at(name)).unwrap();
    let json = |name: &str| -> serde_json::Value {
        let text = said(name);
        let line = text.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{name}: {text}"));
        serde_json::from_str(line).unwrap()
    };
    let session = &json("kept")["session"][0];
    assert_eq!((&session["found"], &session["would_be_cut"]), (&"mosh_login".into(), &false.into()), "{session}");
    assert_eq!(session["flow"], "in udp 198.51.100.7 -> 60001");
    let cut = json("cut");
    assert_eq!(cut["session"][0]["would_be_cut"], true, "{cut}");
    assert_eq!(cut["would_cut"][0]["nearest"]["failed"][0]["condition"], "service", "{cut}");
    let refused = said("refused");
    assert_eq!(code, 1, "{refused}");
    assert!(refused.contains("198.51.100.7 -> 60001") && refused.contains("fails on service"), "{refused}");
}

#[test]
fn the_service_manager_is_told() {
    let Some(world) = new_world("netns_terminal the_service_manager") else { return };
    let path = world.dir().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PASSES * 4)).unwrap();
    let heard = || {
        let mut message = [0; 512];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let flow = Flow::new("in tcp client 8002", false);
    let _servers = guard_tests::flows::serve(&world, &[flow]);
    let guard = Guard::prepare(&world, GOOD).unwrap();
    let mut command: Command = guard.run_command(&[]).unwrap();
    let mut daemon = Process::spawn(command.env("NOTIFY_SOCKET", &path)).unwrap();
    let ready = heard();
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
    // Not before it is true: what waits for guard may rely on it.
    assert!(!flow.passes(&world, false));
    assert_eq!(guard.status().unwrap()["enforcing"], true);
    // A reload on request: each begins with its moment, and ends whatever came of it.
    let monotonic = || {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
        u64::try_from(now.tv_sec()).unwrap() * 1_000_000 + u64::try_from(now.tv_nsec()).unwrap() / 1000
    };
    for (policy, status) in
        [(GOOD.replace("good", "better"), "reloaded: policy better"), ("version: 2".to_owned(), "not reloaded, ")]
    {
        guard.write_policy(&policy).unwrap();
        let before = monotonic();
        daemon.signal(Signal::SIGHUP).unwrap();
        let reloading = heard();
        assert!(reloading.lines().any(|line| line == "RELOADING=1"), "{reloading}");
        let time = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
        assert!((before..=monotonic()).contains(&time.parse().unwrap()), "{before} {reloading}");
        let done = heard();
        assert!(done.lines().any(|line| line == "READY=1"), "{done}");
        let said = done.lines().find_map(|line| line.strip_prefix("STATUS=")).unwrap();
        assert!(said.starts_with(status), "{done}");
    }
    assert_eq!(guard.status().unwrap()["policy"], "better");
    daemon.signal(Signal::SIGTERM).unwrap();
    let stopping = heard();
    assert!(stopping.lines().any(|line| line == "STOPPING=1"), "{stopping}");
    let ended = daemon_ends(&mut daemon);
    assert!(ended, "it does not end");
    assert!(!flow.passes(&world, false), "the kernel still enforces");
}

fn daemon_ends(daemon: &mut Process) -> bool {
    let deadline = Instant::now() + PASSES * 2;
    while Instant::now() < deadline {
        if daemon.ended().unwrap().is_some() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}
