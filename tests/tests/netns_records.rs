//! The shape of records is a promise: real records of every kind against docs/records.schema.json, by a validator that is
//! not guard's own. And whose the flows of containers are.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use guard_tests::{
    agent,
    echo::{Echo, connect, speaks, tcp_reaches, udp_reaches},
    flows::{NOTHING, PASSES, ping},
    guard::Guard,
    new_world,
    process::{Process, run},
    raw_bpf::pass_in_front,
    servers::dnsmasq,
    witness::send_frame,
    world::World,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/records.schema.json");

const POLICY: &str = "
version: 1
name: records
mode: enforce
inbound:
  - { name: echo, from: any, services: [tcp/9000, udp/9000] }
  - { name: session, from: any, services: tcp/9001 }
  - { name: ping, from: any, services: [icmp/echo-request, icmpv6/*] }
outbound:
  - { name: resolver, to: 198.51.100.7, services: [dns, tcp/9000] }
  - { name: intruder, to: 203.0.113.9, services: tcp/9000 }
";

/// The schema as it is, but that whatever it does not name is an error: what is written is what is documented.
fn strict() -> jsonschema::Validator {
    fn close(schema: &mut Value) {
        if let Some(object) = schema.as_object_mut() {
            // Not of the conditions below `allOf`, which name only what they are about.
            if object.get("type") == Some(&json!("object")) {
                object.insert("additionalProperties".to_owned(), json!(false));
            }
            object.iter_mut().filter(|(key, _)| *key != "allOf").for_each(|(_, value)| close(value));
        } else if let Some(list) = schema.as_array_mut() {
            list.iter_mut().for_each(close);
        }
    }
    let mut schema: Value = serde_json::from_str(&fs::read_to_string(SCHEMA).unwrap()).unwrap();
    jsonschema::draft202012::meta::validate(&schema).unwrap();
    close(&mut schema);
    jsonschema::draft202012::new(&schema).unwrap()
}

/// Paths of all fields below a value; those of a list are its entries'.
fn fields(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                fields(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| fields(value, at, found)),
        _ => {}
    }
}

/// The same of a schema.
fn documented(schema: &Value, at: &str, found: &mut BTreeSet<String>) {
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        documented(value, &path, found);
        documented(&value["items"], &path, found);
        found.insert(path);
    }
}

fn check(records: &[Value], validator: &jsonschema::Validator) {
    for record in records {
        let errors: Vec<String> =
            validator.iter_errors(record).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:#?}\n{record:#}");
    }
}

#[test]
fn records_of_every_kind_are_as_the_schema_says() {
    let Some(world) = new_world("netns_records records_of_every_kind") else { return };
    let validator = strict();
    let echoes: Vec<Echo> = [false, true]
        .into_iter()
        .flat_map(|ipv6| {
            let at = world.server.address(ipv6);
            [Echo::tcp(&world.server, at, 9000).unwrap(), Echo::udp(&world.server, at, 9000).unwrap()]
        })
        .collect();
    let sessions = Echo::tcp(&world.server, world.server.v4.into(), 9001).unwrap();
    let far = Echo::tcp(&world.responder, world.responder.v4.into(), 9000).unwrap();
    let _resolver = dnsmasq(&world.responder, world.dir(), &["--address=/example.org/203.0.113.9"]).unwrap();
    // Before guard: it is adopted.
    let mut session = connect(&world.client, sessions.address, PASSES).unwrap();
    speaks(&mut session).unwrap();
    let mut older = connect(&world.client, echoes[0].address, PASSES).unwrap();
    speaks(&mut older).unwrap();

    let guard = Guard::start(&world, POLICY).unwrap();
    speaks(&mut session).unwrap();
    speaks(&mut older).unwrap();
    drop(older);
    for (number, echo) in echoes.iter().enumerate() {
        let reach = if number % 2 == 0 { tcp_reaches } else { udp_reaches };
        reach(&world.client, echo.address, PASSES).unwrap();
    }
    for ipv6 in [false, true] {
        ping(&world.client, world.server.address(ipv6), PASSES).unwrap();
    }
    assert!(agent::ask(&world.server, &["connect", "tcp", &far.address.to_string()]).unwrap().good());
    let mut dig = world.server.command("dig");
    dig.args(["+short", "+tries=1", "+time=5", "@198.51.100.7", "www.example.org", "A"]);
    assert_eq!(run(&mut dig, PASSES * 5).unwrap().stdout.trim(), "203.0.113.9");
    // From a folder that everybody may write, with more arguments than are kept.
    let odd = tempfile::tempdir_in("/dev/shm").unwrap();
    let exe = odd.path().join("updater");
    fs::copy(agent::binary().unwrap(), &exe).unwrap();
    let to = SocketAddr::from((world.intruder.v4, 9000)).to_string();
    let mut command = world.server.command("python3");
    command.args(["-c", "import socket; socket.create_connection(('203.0.113.9', 9000), 1)"]).arg("x".repeat(2_000));
    let _ = run(&mut command, PASSES * 3).unwrap();
    let mut command = world.server.command(&exe);
    let _ = run(command.args(["connect", "tcp", &to]), PASSES).unwrap();
    // Refused before there is a packet; dropped; sealed; a packet of no flow.
    let refused = SocketAddr::from((world.intruder.v4, 4444)).to_string();
    assert!(agent::ask(&world.server, &["connect", "tcp", &refused]).unwrap().refused());
    assert!(tcp_reaches(&world.intruder, (world.server.v4, 4444).into(), NOTHING).is_err());
    assert!(!agent::ask(&world.server, &["bypass", "native", "eth0", "1", "00"]).unwrap().good());
    let runt = [[0xff; 12].as_slice(), &[8, 0], &[0x45; 10]].concat();
    send_frame(&world.router, World::WIRE, &runt).unwrap();
    // Cut by a reload, and what it says next.
    let done = guard
        .reload(&POLICY.replace("  - { name: session, from: any, services: tcp/9001 }\n", ""), &["--cut-me"])
        .unwrap();
    assert!(done.good(), "{}", done.text());
    session.set_read_timeout(Some(NOTHING)).unwrap();
    assert!(speaks(&mut session).is_err());
    drop(session);

    // Somebody stands before guard: an alert with who, and a gap when that is over.
    let index = world.server.interface_index("eth0");
    let somebody = pass_in_front(&world.operator, index, false).unwrap();

    let kinds = ["begin", "cut", "end", "socket_denied", "sealed", "packet", "alert", "alert_over"];
    let deadline = Instant::now() + Duration::from_secs(30);
    let records = loop {
        let records = guard.records().unwrap();
        let missing: Vec<_> =
            kinds.iter().filter(|kind| !records.iter().any(|r| r["guard"]["event"] == **kind)).collect();
        let adopted = records.iter().any(|record| record["guard"]["adopted"] == true);
        if adopted && missing.is_empty() {
            break records;
        }
        assert!(Instant::now() < deadline, "no record of {missing:?}");
        std::thread::sleep(Duration::from_millis(200));
    };
    check(&records, &validator);
    drop(somebody);
    // In audit mode, too.
    let audit = POLICY.replace("mode: enforce", "mode: audit");
    assert!(guard.reload(&audit, &[]).unwrap().good());
    tcp_reaches(&world.intruder, (world.server.v4, 9002).into(), NOTHING).unwrap_err();
    let records = {
        guard.wait_records(|r| r["dest_port"] == 9002 && r["guard"]["dropped"] == false).unwrap();
        guard.records().unwrap()
    };
    check(&records, &validator);

    // And what the schema names is what there is, but for what this world has not.
    let (mut seen, mut named) = (BTreeSet::new(), BTreeSet::new());
    records.iter().for_each(|record| fields(record, "", &mut seen));
    documented(&serde_json::from_str(&fs::read_to_string(SCHEMA).unwrap()).unwrap(), "", &mut named);
    let elsewhere = [
        "guard.late",
        "guard.who.container",
        "guard.who.container.id",
        "guard.who.container.image",
        "guard.who.container.name",
        "guard.who.netns",
        "guard.who.unit",
    ];
    let unseen: Vec<&str> = named.difference(&seen).map(String::as_str).filter(|p| !elsewhere.contains(p)).collect();
    assert_eq!(unseen, [""; 0], "documented, and never seen");
    // A validator that lets all pass would prove nothing.
    let mut wrong = records[0].clone();
    wrong["guard"]["nickname"] = json!("x");
    assert!(!validator.is_valid(&wrong));
    let mut wrong = records[0].clone();
    wrong["guard"]["verdict"] = json!("perhaps");
    assert!(!validator.is_valid(&wrong));
    wrong = records[0].clone();
    wrong.as_object_mut().unwrap().remove("flow_id");
    assert!(!validator.is_valid(&wrong));
    // How many are known, and whose the rest is, is told.
    let status = guard.status().unwrap();
    assert!(status["daemon"]["who"]["named"].as_u64() >= Some(5), "{:#}", status["daemon"]);
    assert!(status["daemon"]["dns"]["read"].as_u64() >= Some(1), "{:#}", status["daemon"]);
    assert!(status["daemon"]["flagged"]["written"].as_u64() >= Some(1), "{:#}", status["daemon"]);
    assert_eq!((&status["lost"]["processes"], &status["lost"]["answers"]), (&json!(0), &json!(0)));
    let shown = guard.ask("status", &[]).unwrap().stdout;
    assert!(shown.contains("who unknown "), "{shown}");
    let flows = guard.ask("flows", &[]).unwrap().stdout;
    assert!(
        flows.lines().any(|line| line.contains("203.0.113.9") && line.ends_with("asked as www.example.org")),
        "{flows}"
    );
}

const ID: &str = "8f1e0f5ac1d7c2a94d3bb5d6a7e8f90123456789abcdef0123456789abcdef01";

/// As Docker with systemd's control groups, and Podman, make one: a namespace behind a bridge, translated addresses, and a
/// control group that is named after it.
#[test]
fn flows_of_containers_are_their_containers() {
    let Some(world) = new_world("netns_records flows_of_containers") else { return };
    let validator = strict();
    world.server.sysctl("ipv4/ip_forward", "1").unwrap();
    world
        .server
        .ip("link add docker0 type bridge\naddress add 192.0.2.193/28 dev docker0\nlink set docker0 up\n")
        .unwrap();
    let mut nft = world.operator.command("nft");
    nft.arg(
        "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; };
         add rule ip nat post oifname eth0 ip saddr 192.0.2.192/28 masquerade;
         add chain ip nat pre { type nat hook prerouting priority -100; };
         add rule ip nat pre iifname eth0 tcp dport 8080 dnat to 192.0.2.195:9005",
    );
    let set = run(&mut nft, PASSES).unwrap();
    assert!(set.good(), "{}", set.text());
    let mut insides = Vec::new();
    for (number, scope) in
        [(194, format!("docker-{ID}.scope")), (195, format!("libpod-{}.scope", ID.replace('8', "9")))]
    {
        let namespace = world.namespace(&format!("c{number}")).unwrap();
        let link = format!(
            "link add veth{number} type veth peer name eth0 netns {}\nlink set veth{number} master docker0\nlink set veth{number} up\n",
            namespace.name()
        );
        world.server.ip(&link).unwrap();
        namespace
            .ip(&format!(
                "address add 192.0.2.{number}/28 dev eth0\nlink set eth0 up\nroute add default via 192.0.2.193\n"
            ))
            .unwrap();
        let cgroup = world.cgroup().parent().unwrap().join(scope);
        fs::create_dir(&cgroup).unwrap();
        let inside = namespace.in_cgroup(&cgroup).unwrap();
        // Its first process, as every container has one.
        let first = Process::spawn(inside.command("sleep").arg("600").stdin(Stdio::null())).unwrap();
        insides.push((namespace, inside, first));
    }
    let outside = Echo::tcp(&world.intruder, world.intruder.v4.into(), 9000).unwrap();
    let short = Echo::tcp(&world.intruder, world.intruder.v4.into(), 9100).unwrap();
    let policy = POLICY.replace("services: tcp/9001", "services: [tcp/9001, tcp/8080]").replace(
        "outbound:",
        "outbound:\n  - { name: containers, to: 203.0.113.9, services: [tcp/9000, tcp/9100, udp/9000] }",
    );
    let guard = Guard::start(&world, &policy).unwrap();
    let (docker, podman) = (&insides[0], &insides[1]);

    // One that is still there is named in full.
    let mut held = agent::command(&docker.1, &["hold", "tcp", &outside.address.to_string()]).unwrap();
    let held = Process::spawn(held.stdin(Stdio::piped())).unwrap();
    let of = |port: u16, direction: &'static str| {
        move |record: &Value| record["dest_port"] == port && record["guard"]["direction"] == direction
    };
    let records = guard.wait_records(of(9000, "outbound")).unwrap();
    let who = &records[0]["guard"]["who"];
    assert_eq!((&who["found_by"], &who["container"]["id"]), (&json!("forwarded"), &json!(ID)), "{:#}", records[0]);
    assert!(who["exe"].as_str().is_some_and(|exe| exe.ends_with("guard-test-agent")), "{who:#}");
    assert_eq!(who["pid"], held.pid(), "{who:#}");
    assert!(who["netns"].as_u64() > Some(0), "{who:#}");

    // One that is gone at once leaves its container.
    assert!(agent::ask(&docker.1, &["connect", "tcp", &short.address.to_string()]).unwrap().good());
    let known = |record: &Value| of(9100, "outbound")(record) && record["guard"]["who"]["found_by"] == "forwarded";
    let records = guard.wait_records(known).unwrap();
    let who = &records[0]["guard"]["who"];
    assert_eq!((&who["found_by"], &who["container"]["id"]), (&json!("forwarded"), &json!(ID)), "{:#}", records[0]);

    // A published port: whoever serves it inside, not whoever may listen on the host.
    let mut serve = podman.1.command("python3");
    serve.args(["-m", "http.server", "9005", "--bind", "192.0.2.195"]).current_dir(Path::new("/proc/self/fdinfo"));
    let served = Process::spawn(&mut serve).unwrap();
    let at = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 195), 9005));
    let deadline = Instant::now() + PASSES * 5;
    while connect(&world.operator, at, PASSES).is_err() {
        assert!(Instant::now() < deadline, "{}", served.output());
        std::thread::sleep(Duration::from_millis(100));
    }
    // Looking takes at most a twentieth of the time: on a busy machine not every flow is looked at.
    let mut open = Vec::new();
    let named = |record: &Value| of(8080, "inbound")(record) && record["guard"]["who"]["found_by"] == "forwarded";
    let records = loop {
        open.push(connect(&world.intruder, (world.server.v4, 8080).into(), PASSES).unwrap());
        let seen = guard.wait_records(of(8080, "inbound")).unwrap();
        let named: Vec<_> = seen.iter().filter(|record| named(record)).cloned().collect();
        if !named.is_empty() {
            break named;
        }
        assert!(open.len() < 20, "none of 20 is named: {:#}", seen[0]);
        std::thread::sleep(Duration::from_millis(250));
    };
    let who = &records[0]["guard"]["who"];
    assert_eq!((&who["container"]["id"], &who["pid"]), (&json!(ID.replace('8', "9")), &json!(served.pid())), "{who:#}");
    check(&guard.records().unwrap(), &validator);
    // The host's own are still the host's.
    assert!(agent::ask(&world.server, &["connect", "tcp", "203.0.113.9:9000"]).unwrap().good());
    let own = |record: &Value| record["guard"]["who"]["found_by"] == "socket" && record["dest_port"] == 9000;
    let records = guard.wait_records(own).unwrap();
    assert_eq!(records[0]["guard"]["who"].get("container"), None);
}

/// Every field that a command prints as JSON stands in its section of docs/json.md, and the first ones there are printed.
#[test]
fn every_field_of_json_is_documented() {
    let Some(world) = new_world("netns_records every_field_of_json") else { return };
    let _echo = Echo::tcp(&world.intruder, world.intruder.v4.into(), 9000).unwrap();
    let policy = POLICY.replace("services: tcp/9000 }", "services: tcp/9000, expires: 2997-01-01T00:00:00Z }");
    let guard = Guard::prepare(&world, &policy).unwrap();
    let mut sections = Sections::read();
    let mut dry = guard.run_command(&["--dry-run", "--json"]).unwrap();
    sections.check("reload", &run(&mut dry, PASSES * 4).unwrap().stdout);

    let mut command = guard.run_command(&["--json"]).unwrap();
    let mut daemon = Process::spawn(&mut command).unwrap();
    let ready = daemon.wait_line(PASSES * 4, |line| line.contains("\"ready\"")).unwrap();
    sections.check("run", &ready);
    tcp_reaches(&world.server, SocketAddr::from((world.intruder.v4, 9000)), PASSES).unwrap();
    // Not told by the socket layer, so that there is a packet.
    tcp_reaches(&world.operator, SocketAddr::from((world.intruder.v4, 9003)), NOTHING).unwrap_err();
    guard.tell("allow", &["out tcp 203.0.113.9:9004", "--for", "2h"]).unwrap();
    let answer = |name: &str, arguments: &[&str]| guard.ask(name, &[arguments, &["--json"]].concat()).unwrap().stdout;
    sections.check("flows", &answer("flows", &[]));
    sections.check("reload", &answer("reload", &["--confirm-within", "60"]));
    sections.check("status", &answer("status", &[]));
    sections.check("rollback", &answer("rollback", &[]));
    sections.check("rollback", &answer("rollback", &[]));
    sections.check("confirm", &answer("confirm", &[]));
    daemon.signal(Signal::SIGTERM).unwrap();
    sections.check("run", &daemon.wait_line(PASSES, |line| line.contains("\"ended\"")).unwrap());
    let (policy, capture) = (guard.policy().to_str().unwrap(), guard.state_dir().join("flagged.pcap"));
    let replayed = answer("replay", &[policy, capture.to_str().unwrap()]);
    assert!(replayed.contains("9003"), "{replayed}");
    sections.check("replay", &replayed);
    sections.check("release", &answer("release", &[]));
    sections.check("status", &answer("status", &[]));
    sections.all_were_checked();
}

/// The sections of docs/json.md that speak of one command each.
struct Sections {
    /// Command, words in backquotes, and whether it was asked.
    list: Vec<(String, BTreeSet<String>, bool)>,
}

impl Sections {
    fn read() -> Self {
        let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/json.md")).unwrap();
        let section = |section: &str| {
            let command = section.strip_prefix("`guard ")?.split(' ').next()?.to_owned();
            let words = section.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            Some((command, words, false))
        };
        Self { list: text.split("\n## ").filter_map(section).collect() }
    }

    /// Of each line of an answer.
    fn check(&mut self, command: &str, answer: &str) {
        let (_, words, asked) = self.list.iter_mut().find(|(known, ..)| known == command).unwrap();
        *asked = true;
        assert!(!answer.trim().is_empty(), "guard {command} says nothing");
        for line in answer.lines() {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{command}: {error}: {line}"));
            let mut keys = BTreeSet::new();
            // Of these the keys are reasons.
            keys_of(&value, command == "replay", &mut keys);
            let missing: Vec<_> = keys.difference(words).collect();
            assert!(missing.is_empty(), "guard {command} --json prints {missing:?}, which docs/json.md does not name");
        }
    }

    fn all_were_checked(&self) {
        let not: Vec<_> = self.list.iter().filter(|(.., asked)| !asked).map(|(command, ..)| command).collect();
        assert!(not.is_empty() && self.list.len() >= 7, "documented, and not tried here: {not:?}");
    }
}

fn keys_of(value: &Value, by_reason: bool, keys: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                keys.insert(key.clone());
                match value.as_object().filter(|_| by_reason && key == "reasons") {
                    Some(reasons) => reasons.values().for_each(|value| keys_of(value, by_reason, keys)),
                    None => keys_of(value, by_reason, keys),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| keys_of(value, by_reason, keys)),
        _ => {}
    }
}
