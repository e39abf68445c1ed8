//! bpf(2) that fails while a lockdown, a start or a reload is made: what the command says is what holds, and a host that was
//! closed is never opened by it.

use std::{
    net::UdpSocket,
    process::Command,
    time::{Duration, Instant},
};

use guard_tests::{
    faults::{Fault, Faulty},
    guard::Guard,
    new_world,
    world::World,
};

const LIMIT: Duration = Duration::from_secs(60);
const ERRORS: [i32; 2] = [libc::EPERM, libc::ENOMEM];

/// Which calls of a run with these commands fail: of each command one in the middle; with `GUARD_FAULTS=ends` the first and
/// the last (minutes), with `GUARD_FAULTS=all` each (hours).
fn chosen(calls: &[u32]) -> Vec<Fault> {
    let wanted = std::env::var("GUARD_FAULTS").unwrap_or_default();
    let is_wanted = |at: usize| {
        let before = calls[..at].iter().filter(|call| **call == calls[at]).count();
        let after = calls[at + 1..].iter().filter(|call| **call == calls[at]).count();
        match wanted.as_str() {
            "all" => true,
            "ends" => before == 0 || after == 0,
            _ => before == (before + after) / 2,
        }
    };
    let faults = (0..calls.len()).filter(|at| is_wanted(*at));
    faults.enumerate().map(|(number, at)| Fault { at, errno: ERRORS[number % ERRORS.len()] }).collect()
}

/// A host with a listener for what no policy here lists.
struct Host {
    guard: Guard,
    listener: UdpSocket,
    talker: UdpSocket,
    /// Dropped last.
    world: World,
}

impl Host {
    fn new(test: &str, policy: &str) -> Option<Self> {
        let world = new_world(test)?;
        let guard = Guard::prepare(&world, policy).unwrap();
        let listener = world.server.run(|| UdpSocket::bind((world.server.v4, 7000))).unwrap();
        let talker = world.client.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        talker.connect((world.server.v4, 7000)).unwrap();
        Some(Self { guard, listener, talker, world })
    }

    /// Whether what is not listed comes in.
    fn is_open(&self) -> bool {
        let mut word = [0; 16];
        self.listener.set_nonblocking(true).unwrap();
        while self.listener.recv(&mut word).is_ok() {}
        self.listener.set_nonblocking(false).unwrap();
        self.listener.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let until = Instant::now() + Duration::from_millis(150);
        while Instant::now() < until {
            // It may be told that nobody takes it.
            let _ = self.talker.send(b"beat");
            if self.listener.recv(&mut word).is_ok() {
                return true;
            }
        }
        false
    }

    fn lockdown(&self) -> Command {
        let mut command = self.guard.command("lockdown").unwrap();
        command.args(["--yes", "--console", "--no-keep-session", "--evidence", "none", "--confirm-within", "none"]);
        command.arg("--cgroup").arg(self.world.cgroup());
        command
    }

    fn release(&self) {
        let host = nix::unistd::gethostname().unwrap().to_string_lossy().into_owned();
        self.guard.tell("release", &["--host", &host]).unwrap();
    }
}

/// The end of a command of which one call failed: its exit code and what it said, which is never a panic nor nothing.
fn end(command: &mut Command, fault: Fault) -> (bool, String) {
    let mut faulty = Faulty::spawn(command, Some(fault)).unwrap();
    let until = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = faulty.process.ended().unwrap() {
            break status;
        }
        assert!(Instant::now() < until, "{fault:?}: {}", faulty.process.output());
        std::thread::sleep(Duration::from_millis(5));
    };
    // What it wrote last may be on its way.
    std::thread::sleep(Duration::from_millis(20));
    let said = faulty.process.output();
    assert!(matches!(status.code(), Some(0 | 3)), "{fault:?}: {status} {said}");
    assert!(!said.contains("panicked"), "{fault:?}: {said}");
    assert!(status.success() || !said.trim().is_empty(), "{fault:?}: failed without a word");
    (status.success(), said)
}

fn calls(command: &mut Command) -> Vec<u32> {
    let mut faulty = Faulty::spawn(command, None).unwrap();
    let until = Instant::now() + LIMIT;
    while faulty.process.ended().unwrap().is_none() {
        assert!(Instant::now() < until, "{}", faulty.process.output());
        std::thread::sleep(Duration::from_millis(5));
    }
    faulty.calls()
}

#[test]
fn a_lockdown_holds_or_says_that_it_does_not() {
    let Some(host) = Host::new("netns_faults lockdown", "version: 1\nmode: audit\ninbound: []\noutbound: []\n") else {
        return;
    };
    assert!(host.is_open());
    let calls = calls(&mut host.lockdown());
    assert!(!host.is_open());
    host.release();
    let (mut held, mut undone) = (0, 0);
    let faults = chosen(&calls);
    for fault in &faults {
        let (good, said) = end(&mut host.lockdown(), *fault);
        let status = host.guard.status().unwrap();
        let what = format!("call {} of {}, command {}, {}", fault.at, calls.len(), calls[fault.at], fault.errno);
        if good {
            held += 1;
            assert!(!host.is_open(), "{what}: it says that it holds: {said}\n{status:#}");
            assert_eq!(status["enforcing"], true, "{what}: {said}\n{status:#}");
        } else {
            undone += 1;
            let closed = !host.is_open();
            let says_closed = said.contains("COULD NOT BE UNDONE") || said.contains("stays open, to any source");
            assert!(!closed || says_closed, "{what}: closed, and it does not say so: {said}\n{status:#}");
            assert!(closed || status["enforcing"] == false, "{what}: {said}\n{status:#}");
        }
        host.release();
    }
    eprintln!("lockdown: {} of {} calls failed: {held} held, {undone} were undone", faults.len(), calls.len());
    assert!(held > 0 && undone > 0);
}

#[test]
fn a_reload_never_opens_what_is_closed() {
    let policy = |name: &str| format!("version: 1\nname: {name}\nmode: enforce\ninbound: []\noutbound: []\n");
    let Some(mut host) = Host::new("netns_faults reload", &policy("one")) else { return };
    host.guard.run(&[]).unwrap();
    assert!(!host.is_open());
    let mut names = ["one", "two"];
    let reload = |host: &Host, name: &str| {
        host.guard.write_policy(&policy(name)).unwrap();
        let mut command = host.guard.command("reload").unwrap();
        command.arg(host.guard.policy());
        command
    };
    let calls = calls(&mut reload(&host, names[1]));
    names.swap(0, 1);
    let (mut changed, mut stayed) = (0, 0);
    for fault in chosen(&calls) {
        let what = format!("call {} of {}, command {}, {}", fault.at, calls.len(), calls[fault.at], fault.errno);
        let (good, said) = end(&mut reload(&host, names[1]), fault);
        let status = host.guard.status().unwrap();
        assert!(!host.is_open() && status["enforcing"] == true, "{what}: {said}\n{status:#}");
        let now = if good { names[1] } else { names[0] };
        assert_eq!(status["policy"], now, "{what}: {said}\n{status:#}");
        if good {
            names.swap(0, 1);
            changed += 1;
        } else {
            stayed += 1;
        }
    }
    eprintln!("reload: of {} calls: {changed} changed all the same, {stayed} left what was in force", calls.len());
    assert!(stayed > 0);
}

/// Renamed, taken down and up, moved away and brought back under another name: what was guarded stays so.
#[test]
fn a_lockdown_holds_on_an_interface_that_is_renamed_or_moved() {
    let Some(host) = Host::new("netns_faults moved", "version: 1\nmode: audit\ninbound: []\noutbound: []\n") else {
        return;
    };
    assert!(host.is_open());
    let ended = guard_tests::process::run(&mut host.lockdown(), LIMIT).unwrap();
    assert!(ended.good() && !host.is_open(), "{}", ended.text());
    let server = &host.world.server;
    server.ip("link set eth0 down\nlink set eth0 name up0\nlink set up0 up\n").unwrap();
    assert!(!host.is_open(), "renamed");
    let other = host.world.namespace("elsewhere").unwrap();
    server.ip(&format!("link set up0 netns {}\n", other.name())).unwrap();
    other.ip("link set up0 name up1\n").unwrap();
    other.ip(&format!("link set up1 netns {}\n", server.name())).unwrap();
    server.ip(&format!("address add {}/24 dev up1\nlink set up1 up\n", server.v4)).unwrap();
    assert!(!host.is_open(), "moved and brought back");
    let status = host.guard.status_until(LIMIT, |status| status["enforcing"] == true).unwrap();
    let interfaces = status["interfaces"].to_string();
    assert!(interfaces.contains("up1"), "{status:#}");
    // It is the lockdown that keeps it closed: released, it is open.
    host.release();
    assert!(host.is_open());
}
