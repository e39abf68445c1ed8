//! Who sits at guard's terminal, with the real parts in between: OpenSSH, and tmux, screen or sudo on the way. And what
//! guard tells the service manager that started it.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
    process::{ChildStdin, Command, Stdio},
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
    world::World,
};
use nix::sys::signal::Signal;

/// The responder's way in; with another address, what cuts it.
const GOOD: &str = "version: 1\nname: good\nmode: enforce\ninbound:\n  \
                    - { name: ssh, from: 198.51.100.7, services: ssh }\noutbound: []\n";

/// A person at a terminal of the server, over OpenSSH. What is run answers by files, since a multiplexer draws its screen
/// as it likes.
struct Terminal<'a> {
    process: Process,
    keyboard: ChildStdin,
    dir: &'a Path,
    number: u32,
}

impl<'a> Terminal<'a> {
    fn open(sshd: &Sshd, world: &'a World) -> Self {
        let mut command = sshd.client(&world.responder, world.server.v4.into());
        command.args(["-tt", "PS1= exec sh"]).stdin(Stdio::piped()).env("TERM", "xterm");
        let mut process = Process::spawn(&mut command).unwrap();
        let keyboard = process.stdin().unwrap();
        let mut terminal = Self { process, keyboard, dir: world.dir(), number: 0 };
        terminal.run("true");
        terminal
    }

    fn types(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").unwrap();
    }

    /// Runs a line in whatever shell has the terminal now: its exit code, and what it said.
    fn run(&mut self, line: &str) -> (i32, String) {
        self.number += 1;
        let (said, code) = (format!("said-{}", self.number), format!("code-{}", self.number));
        let (said, code) = (self.dir.join(said), self.dir.join(code));
        self.types(&format!("{line} > {} 2>&1; echo $? > {}", said.display(), code.display()));
        let deadline = Instant::now() + PASSES * 6;
        loop {
            if let Ok(Ok(number)) = fs::read_to_string(&code).map(|text| text.trim().parse()) {
                return (number, fs::read_to_string(&said).unwrap());
            }
            assert!(Instant::now() < deadline, "{line}: no answer\n{}", self.process.output());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whatever stands between the shell and OpenSSH, the session that asks is seen: refused to be cut, and given a deadline
/// unasked for.
fn carried_through(test: &str, program: &str, enter: impl Fn(&World) -> String) {
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
    assert_ne!(terminal.run("echo $$").1, before, "a shell of its own");
    let parents =
        terminal.run("p=$$; while [ $p -gt 1 ]; do cat /proc/$p/comm; p=$(cut -d' ' -f4 /proc/$p/stat); done").1;
    assert!(parents.contains(program), "below {program}: {parents}");

    let at = format!("--instance {} --state-dir {}", guard.instance(), guard.state_dir().display());
    let binary = binary().unwrap();
    let reload = format!("{} reload {at} {}", binary.display(), guard.policy().display());
    guard.write_policy(&GOOD.replace("198.51.100.7", "198.51.100.8").replace("good", "wrong")).unwrap();
    let (code, said) = terminal.run(&reload);
    assert_eq!(code, 3, "{said}");
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
    carried_through("netns_terminal tmux", "tmux", enter);
}

#[test]
fn a_session_is_seen_through_screen() {
    let enter = |world: &World| format!("SCREENDIR={} screen -c /dev/null sh", private(world));
    carried_through("netns_terminal screen", "screen", enter);
}

#[test]
fn a_session_is_seen_through_sudo() {
    // A terminal of its own for what it runs, as Debian sets it where use_pty is on.
    carried_through("netns_terminal sudo", "sudo", |_| "sudo -n sh".to_owned());
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
