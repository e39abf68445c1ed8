//! What time undoes, by the kernel alone: expiry, and changes that nobody confirmed. The daemon is dead, or stopped.

use std::{
    io::Write,
    process::Stdio,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use guard_tests::{
    flows::{Flow, NOTHING, PASSES, serve},
    frame::{Packet, SYN, TCP},
    guard::Guard,
    new_world,
    process::Process,
    servers::Sshd,
    session::Session,
    witness::Witness,
    world::World,
};
use nix::sys::signal::Signal;

/// How the daemon is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemon {
    Killed,
    Stopped,
}

impl Daemon {
    fn take_away(self, guard: &mut Guard) {
        match self {
            Self::Killed => guard.kill().unwrap(),
            Self::Stopped => guard.signal(Signal::SIGSTOP).unwrap(),
        }
    }
}

/// RFC 3339, of a time from now.
fn from_now(seconds: u64) -> String {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds;
    let (days, rest) = (at / 86_400, at % 86_400);
    // Days to a civil date (Howard Hinnant's algorithm), from 0000-03-01 on.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Tries again and again until a try passes or not, as wanted; how long that took.
fn until(flow: &Flow, world: &World, wanted: bool, limit: Duration) -> Duration {
    let start = Instant::now();
    loop {
        if flow.attempt(world, NOTHING).is_ok() == wanted {
            return start.elapsed();
        }
        assert!(start.elapsed() < limit, "{flow} does not become {wanted} within {limit:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn expiry(daemon: Daemon) {
    let Some(world) = new_world(&format!("netns_deadline expiry {daemon:?}")) else { return };
    let flows: Vec<Flow> = [false, true]
        .into_iter()
        .flat_map(|ipv6| ["in tcp client 8001", "out udp client 8002"].map(|text| Flow::new(text, ipv6)))
        .collect();
    let lasting = Flow::new("in tcp client 8003", false);
    let _servers = serve(&world, &[&flows[..], &[lasting]].concat());
    let policy = format!(
        "version: 1\nname: expiry\nmode: enforce\ninbound:\n  \
         - {{ name: lent, from: any, services: [tcp/8001, tcp/8101], expires: {end} }}\n  \
         - {{ name: kept, from: any, services: tcp/8003 }}\n\
         outbound:\n  - {{ name: lent out, to: any, services: [udp/8002, udp/8102], expires: {end} }}\n",
        end = from_now(6)
    );
    let start = Instant::now();
    let mut guard = Guard::start(&world, &policy).unwrap();
    let mut sessions: Vec<(Flow, Session)> = ["in tcp client 8101", "out udp client 8102"]
        .map(|text| Flow::new(text, false))
        .map(|flow| (flow, Session::begin(&world, &flow).unwrap()))
        .into();
    assert!(flows.iter().all(|flow| flow.passes(&world, true)));
    daemon.take_away(&mut guard);
    for (flow, session) in &mut sessions {
        session.speaks(true, PASSES).unwrap_or_else(|error| panic!("{flow}: {error}"));
    }
    assert!(start.elapsed() < Duration::from_secs(5), "too slow a machine for this test");

    thread::sleep(Duration::from_millis(6500).saturating_sub(start.elapsed()));
    for flow in &flows {
        assert!(!flow.passes(&world, false), "{flow}: expired");
    }
    for (flow, session) in &mut sessions {
        assert!(session.speaks(true, NOTHING).is_err() && session.speaks(false, NOTHING).is_err(), "{flow}: expired");
    }
    assert!(lasting.passes(&world, true));
}

#[test]
fn expiry_holds_with_the_daemon_killed() {
    expiry(Daemon::Killed);
}

#[test]
fn expiry_holds_with_the_daemon_stopped() {
    expiry(Daemon::Stopped);
}

/// `allow` lets the client in on 8001, `deny` on 8002 only.
fn policy(port: u16) -> String {
    format!(
        "version: 1\nname: p{port}\nmode: enforce\ninbound:\n  - {{ from: any, services: tcp/{port} }}\noutbound: []\n"
    )
}

fn change_that_nobody_confirms(daemon: Daemon) {
    let Some(world) = new_world(&format!("netns_deadline unconfirmed {daemon:?}")) else { return };
    let (old, new) = (Flow::new("in tcp client 8001", false), Flow::new("in tcp client 8002", false));
    let _servers = serve(&world, &[old, new]);
    let mut guard = Guard::start(&world, &policy(8001)).unwrap();
    let generation = guard.status().unwrap()["generation"].clone();
    let start = Instant::now();
    let done = guard.reload(&policy(8002), &["--confirm-within", "6s"]).unwrap();
    assert!(done.good(), "{}", done.text());
    let status = guard.status().unwrap();
    assert!(status["deadline"]["seconds_left"].as_u64().is_some_and(|left| left <= 6), "{status:#}");
    assert!(!old.passes(&world, false) && new.passes(&world, true), "the new one holds meanwhile");
    // One change at a time.
    assert!(!guard.reload(&policy(8001), &[]).unwrap().good(), "a reload while one is pending");

    daemon.take_away(&mut guard);
    let took = until(&old, &world, true, Duration::from_secs(10));
    assert!(start.elapsed() >= Duration::from_secs(5), "too early: {took:?}");
    assert!(!new.passes(&world, false), "the old one holds again");
    let status = guard.status().unwrap();
    assert_eq!((&status["generation"], &status["policy"]), (&generation, &"p8001".into()), "{status:#}");

    // A daemon that starts later completes the rollback and never confirms.
    if daemon == Daemon::Killed {
        guard.write_policy(&policy(8001)).unwrap();
        guard.run(&[]).unwrap();
        let status = guard.status_until(PASSES, |status| status["deadline"].is_null()).unwrap();
        assert_eq!(status["policy"], "p8001", "{status:#}");
        assert!(old.passes(&world, true) && !new.passes(&world, false));
    }
}

#[test]
fn an_unconfirmed_change_ends_with_the_daemon_killed() {
    change_that_nobody_confirms(Daemon::Killed);
}

#[test]
fn an_unconfirmed_change_ends_with_the_daemon_stopped() {
    change_that_nobody_confirms(Daemon::Stopped);
}

#[test]
fn an_unconfirmed_first_start_opens_again() {
    let Some(world) = new_world("netns_deadline an_unconfirmed_first_start") else { return };
    let flow = Flow::new("in tcp client 8002", false);
    let _servers = serve(&world, &[flow]);
    let mut guard = Guard::start_with(&world, &policy(8001), &["--confirm-within", "5s"]).unwrap();
    assert!(!flow.passes(&world, false));
    guard.kill().unwrap();
    until(&flow, &world, true, Duration::from_secs(10));
    let status = guard.status().unwrap();
    assert_eq!((&status["mode"], &status["enforcing"]), (&"tracking".into(), &false.into()), "{status:#}");
}

#[test]
fn confirm_keeps_a_change_and_rollback_undoes_it() {
    let Some(world) = new_world("netns_deadline confirm_keeps") else { return };
    let (old, new) = (Flow::new("in tcp client 8001", false), Flow::new("in tcp client 8002", false));
    let _servers = serve(&world, &[old, new]);
    let guard = Guard::start(&world, &policy(8001)).unwrap();
    assert!(!guard.ask("confirm", &[]).unwrap().good(), "nothing is pending");

    assert!(guard.reload(&policy(8002), &["--confirm-within", "30s"]).unwrap().good());
    guard.tell("rollback", &[]).unwrap();
    assert!(old.passes(&world, true) && !new.passes(&world, false));
    assert!(guard.status().unwrap()["deadline"].is_null());

    assert!(guard.reload(&policy(8002), &["--confirm-within", "5s"]).unwrap().good());
    guard.tell("confirm", &[]).unwrap();
    thread::sleep(Duration::from_millis(5500));
    assert!(!old.passes(&world, false) && new.passes(&world, true), "confirmed for good");

    // In the last second it is too late to be sure.
    let start = Instant::now();
    assert!(guard.reload(&policy(8001), &["--confirm-within", "5s"]).unwrap().good());
    thread::sleep(Duration::from_millis(4300).saturating_sub(start.elapsed()));
    let late = guard.ask("confirm", &[]).unwrap();
    assert!(!late.good(), "confirmed {:?} after the reload: {}", start.elapsed(), late.text());
    until(&new, &world, true, Duration::from_secs(10));
}

/// A person at a terminal of the server, over OpenSSH.
struct Shell {
    process: Process,
    stdin: std::process::ChildStdin,
    number: u32,
}

impl Shell {
    fn open(sshd: &Sshd, world: &World) -> Self {
        let mut command = sshd.client(&world.responder, world.server.v4.into());
        // A terminal of its own; keep-alives so long that only the network decides.
        command.args(["-tt", "PS1= exec sh"]).stdin(Stdio::piped());
        let mut process = Process::spawn(&mut command).unwrap();
        let stdin = process.stdin().unwrap();
        let mut shell = Self { process, stdin, number: 0 };
        shell.run("stty -echo", PASSES * 2).unwrap();
        shell
    }

    /// Runs a line; what it said, and its exit code at the end.
    fn run(&mut self, line: &str, limit: Duration) -> anyhow::Result<String> {
        self.number += 1;
        let (mark, before) = (format!("done-{}-", self.number), self.process.output().len());
        // The mark is put together by the shell, so that an echoed line is not mistaken for it.
        writeln!(self.stdin, "{line}; echo done-''{}-$?", self.number)?;
        self.process.wait_line(limit, |line| line.contains(&mark))?;
        Ok(self.process.output()[before..].to_owned())
    }
}

/// How long the wrong edit holds.
const CUT: Duration = Duration::from_secs(20);

#[test]
fn a_wrong_edit_over_ssh_comes_back_by_itself() {
    let Some(world) = new_world("netns_deadline a_wrong_edit_over_ssh") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let good = "version: 1\nname: good\nmode: enforce\ninbound:\n  \
                - { name: ssh, from: 198.51.100.7, services: ssh }\noutbound: []\n";
    // One digit of the operator's own address.
    let wrong = good.replace("198.51.100.7", "198.51.100.8").replace("good", "wrong");
    let guard = Guard::start(&world, good).unwrap();
    let mut shell = Shell::open(&sshd, &world);
    let path = guard.policy().display().to_string();
    let at = format!("--instance {} --state-dir {}", guard.instance(), guard.state_dir().display());
    let binary = guard_tests::guard::binary().unwrap();
    let reload = |more: &str| format!("{} reload {at} {more} {path}", binary.display());

    guard.write_policy(&wrong).unwrap();
    let refused = shell.run(&reload(""), PASSES * 2).unwrap();
    assert!(!refused.contains("-0\r"), "it was not refused: {refused}");
    assert!(refused.contains("22") && refused.contains("ssh"), "it names the session and the nearest rule: {refused}");
    assert_eq!(guard.status().unwrap()["policy"], "good");
    let dry = shell.run(&reload("--dry-run"), PASSES * 2).unwrap();
    assert!(dry.contains("198.51.100.7"), "what would be cut: {dry}");
    assert_eq!(guard.status().unwrap()["policy"], "good");

    // Insisting cuts the session. More than twice as long as the 8 s after which TCP gives up where the host itself tells
    // it that its packets are dropped.
    // Both ends of the connection, and the shell.
    let who = |said: &str| said.lines().find(|line| line.starts_with("198.51.100.7 ")).unwrap_or(said).to_owned();
    let connection = shell.run("echo $SSH_CONNECTION $$", PASSES).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    let start = Instant::now();
    let answer = shell.run(&reload(&format!("--cut-me --confirm-within {}s", CUT.as_secs())), Duration::from_secs(3));
    assert_eq!(guard.status().unwrap()["policy"], "wrong", "{answer:?}");
    witness.forget();
    assert!(shell.run("echo typed-''meanwhile", Duration::from_secs(1)).is_err(), "the session is cut");
    thread::sleep((CUT - Duration::from_secs(1)).saturating_sub(start.elapsed()));
    let of_ssh =
        |packet: &Packet| packet.protocol == TCP && [packet.source_port, packet.destination_port].contains(&22);
    assert!(witness.count_towards(of_ssh) >= 3, "the keystrokes are sent again and again");
    assert_eq!(witness.count(of_ssh), 0, "and nothing leaves");
    assert!(guard.packets("not_listed", "outbound", true).unwrap() >= 3, "though the server tries, too");

    // TCP sends what was held up at its next try: each comes after twice the time of the one before.
    let back = shell.run("echo $SSH_CONNECTION $$", CUT * 2).unwrap();
    assert_eq!(who(&back), who(&connection), "the same connection and shell");
    assert!(shell.process.output().contains("typed-meanwhile"), "{}", shell.process.output());
    assert_eq!(witness.count_towards(|packet| of_ssh(packet) && packet.tcp_flags & SYN != 0), 0, "no SYN");
    assert_eq!(witness.lost().unwrap(), 0);
    let status = guard.status().unwrap();
    assert_eq!((&status["policy"], &status["enforcing"]), (&"good".into(), &true.into()), "{status:#}");
}

#[test]
fn a_remote_terminal_gets_a_deadline_unasked() {
    let Some(world) = new_world("netns_deadline a_remote_terminal_gets_a_deadline") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let policy = |name: &str| {
        format!(
            "version: 1\nname: {name}\nmode: enforce\ninbound:\n  - {{ from: 198.51.100.7, services: ssh }}\n\
             outbound: []\n"
        )
    };
    let guard = Guard::start(&world, &policy("first")).unwrap();
    assert!(guard.status().unwrap()["deadline"].is_null(), "none without a terminal");
    let mut shell = Shell::open(&sshd, &world);
    guard.write_policy(&policy("second")).unwrap();
    let at = format!("--instance {} --state-dir {}", guard.instance(), guard.state_dir().display());
    let binary = guard_tests::guard::binary().unwrap();
    let said =
        shell.run(&format!("{} reload {at} {}", binary.display(), guard.policy().display()), PASSES * 2).unwrap();
    let status = guard.status().unwrap();
    assert!(status["deadline"]["seconds_left"].as_u64().is_some_and(|left| left > 60), "{said}{status:#}");
    shell.run(&format!("{} confirm {at}", binary.display()), PASSES * 2).unwrap();
    let status = guard.status().unwrap();
    assert!(status["deadline"].is_null() && status["policy"] == "second", "{status:#}");
}
