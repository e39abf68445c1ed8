//! Docker and Podman as Debian packages them, on a guarded host: what their containers send and what is published from them,
//! judged by who is outside.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use guard_tests::{
    agent::Said,
    echo::{Echo, tcp_reaches},
    engines::{Docker, Engine, IMAGE, Machine, Podman, missing},
    flows::{NOTHING, PASSES},
    guard::Guard,
    new_world,
    process::run,
    servers::dnsmasq,
    skip::skip,
    witness::Witness,
    world::{Namespace, World, has_ipv6},
};
use serde_json::Value;

/// Of `curl`: refused, and not later than this.
const AT_ONCE: Duration = Duration::from_millis(1000);

/// Ports as people publish them: 8080 is listed, as the host's; the containers' own 7000 and 8443 are nobody's business.
const POLICY: &str = r#"
version: 1
name: engines
mode: enforce
inbound:
  - { name: web, from: any, services: [tcp/8080, tcp/8443] }
outbound:
  - { name: out, to: any, services: tcp/9000 }
  - { name: resolver, to: 198.51.100.7, services: dns }
"#;

/// Servers outside: of the port that is listed, and of the one that is not.
struct Outside {
    listed: Echo,
    unlisted: Echo,
}

impl Outside {
    fn new(world: &World) -> Self {
        let echo = |port| Echo::tcp(&world.intruder, world.intruder.v4.into(), port).unwrap();
        Self { listed: echo(9000), unlisted: echo(9001) }
    }

    /// What the agent is to try: first what passes.
    fn asked(&self) -> [Vec<String>; 2] {
        [&self.listed, &self.unlisted]
            .map(|echo| vec!["connect".to_owned(), "tcp".to_owned(), echo.address.to_string()])
    }

    /// A container gets to the one and is told of the other at once, by a reset.
    fn judged(&self, what: &str, ask: impl Fn(&[&str]) -> anyhow::Result<Said>) {
        let [listed, unlisted] = self.asked().map(|words| ask_words(&ask, &words));
        assert!(listed.good(), "{what}: {listed:?}");
        assert_eq!(unlisted.errno, libc::ECONNREFUSED, "{what}: {unlisted:?}");
        assert!(unlisted.took < AT_ONCE, "{what}: {unlisted:?}");
    }
}

/// A world whose server can run the engines.
fn place(test: &str) -> Option<World> {
    let world = new_world(test)?;
    if let Some(why) = missing(&world) {
        skip(test, &why);
        return None;
    }
    Some(world)
}

fn ask_words(ask: impl Fn(&[&str]) -> anyhow::Result<Said>, words: &[String]) -> Said {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    ask(&words).unwrap()
}

fn wait_reaches(place: &Namespace, to: SocketAddr) {
    let deadline = Instant::now() + PASSES * 4;
    while let Err(error) = tcp_reaches(place, to, PASSES) {
        assert!(Instant::now() < deadline, "{to}: {error}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A record of a container's flow, with its id, name and image. guard looks into namespaces only so often: the flows of one
/// that has just begun may be nobody's, so that more are made.
fn recorded(guard: &Guard, port: u64, id: &str, name: &str, more: impl Fn()) {
    let of = |record: &Value| {
        let container = &record["guard"]["who"]["container"];
        let image = container["image"].as_str().is_some_and(|image| image.ends_with(IMAGE));
        record["dest_port"] == port && container["id"] == id && container["name"] == name && image
    };
    let deadline = Instant::now() + PASSES * 12;
    loop {
        std::thread::sleep(Duration::from_millis(700));
        let records = guard.records().unwrap();
        if records.iter().any(of) {
            return;
        }
        assert!(Instant::now() < deadline, "no record of {name} to port {port}: {records:#?}");
        more();
    }
}

/// That nobody but the listed was reached since, and nothing of what is not: by what is outside.
fn nothing_left(outside: &Outside, witness: &Witness, reached_before: u64) {
    assert_eq!(outside.unlisted.reached(), reached_before);
    let from_container = |address: IpAddr| matches!(address, IpAddr::V4(v4) if v4.is_private());
    let stray = witness.count(|packet| packet.destination_port == 9001 || from_container(packet.source));
    assert_eq!((stray, witness.lost().unwrap()), (0, 0));
}

fn in_its_right_mind(guard: &Guard) {
    let status = guard.status().unwrap();
    assert_eq!(status["enforcing"], true, "{status:#}");
    // Docker's rules at nat's output touch this host's own addresses alone.
    assert!(!status["missing"].to_string().contains("this host's own packets"), "{:#}", status["missing"]);
}

#[test]
fn a_docker_container_gets_out_as_the_policy_lists() {
    let Some(world) = place("engines a_docker_container_gets_out") else { return };
    let machine = Machine::start(&world).unwrap();
    let docker = Docker::start(&machine, &[]).unwrap();
    let outside = Outside::new(&world);
    let serve = ["/bin/agent", "serve", "7000"];
    let early = docker.start("early", &[], &serve).unwrap();
    for words in outside.asked() {
        let said = ask_words(|words| docker.agent_in("early", words), &words);
        assert!(said.good(), "without guard: {said:?}");
    }
    let before = outside.unlisted.reached();
    assert_eq!(before, 1);

    let guard = Guard::start(&world, POLICY).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    let late = docker.start("late", &[], &serve).unwrap();
    outside.judged("started before guard", |words| docker.agent_in("early", words));
    outside.judged("started after guard", |words| docker.agent_in("late", words));
    recorded(&guard, 9000, &early, "early", || outside.judged("early", |words| docker.agent_in("early", words)));
    recorded(&guard, 9001, &late, "late", || outside.judged("late", |words| docker.agent_in("late", words)));

    // With the host's network it is a program of the host's: told by the socket layer.
    let host = ["--network", "host"];
    let on_host = docker.start("on-host", &host, &["/bin/sleep", "1000"]).unwrap();
    let [listed, unlisted] = outside.asked().map(|words| ask_words(|words| docker.agent_in("on-host", words), &words));
    assert!(listed.good() && unlisted.refused(), "{listed:?} {unlisted:?}");
    let again = || {
        let [_, unlisted] = outside.asked().map(|words| ask_words(|words| docker.agent_in("on-host", words), &words));
        assert!(unlisted.refused(), "{unlisted:?}");
    };
    recorded(&guard, 9001, &on_host, "on-host", again);

    // A build's steps are containers as others are.
    let [listed, unlisted] =
        outside.asked().map(|words| format!("RUN [\"/bin/agent\", \"{}\"]\n", words.join("\", \"")));
    let context = world.dir().join("build");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), format!("FROM {IMAGE}\n{listed}{unlisted}")).unwrap();
    let built = docker.tell(&["build", "--no-cache", &context.to_string_lossy()]).unwrap();
    let said = |wanted: &str| built.lines().any(|line| line.starts_with(wanted));
    assert!(said("ok ") && said(&format!("{} ", libc::ECONNREFUSED)), "{built}");

    nothing_left(&outside, &witness, before);
    in_its_right_mind(&guard);
    // What an engine loads for each container (its devices) is no alarm.
    let records = guard.records().unwrap();
    let alarmed = |record: &&Value| record["event_type"] == "alert" && record.to_string().contains("runc");
    assert_eq!(records.iter().find(alarmed), None);
    let mut doctor = world.operator.command(guard_tests::guard::binary().unwrap());
    let doctor = run(doctor.args(["doctor", "--json"]), PASSES * 4).unwrap();
    let doctor: Value = serde_json::from_str(&doctor.stdout).unwrap();
    let engines = doctor["engines"].as_array().unwrap();
    assert!(engines.iter().any(|engine| engine["name"] == "Docker"), "{engines:#?}");
}

/// Names inside come from the engine, names outside from a resolver that is listed, or not at all.
#[test]
fn a_pair_of_containers_talks_and_asks_for_names() {
    let Some(world) = place("engines a_pair_of_containers_talks") else { return };
    let machine = Machine::start(&world).unwrap();
    let docker = Docker::start(&machine, &[]).unwrap();
    let outside = Outside::new(&world);
    let _resolver = dnsmasq(&world.responder, world.dir(), &[]).unwrap();
    let other = tempfile::tempdir_in(world.dir()).unwrap();
    let _other = dnsmasq(&world.intruder, other.path(), &[]).unwrap();
    let guard = Guard::start(&world, POLICY).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();

    docker.tell(&["network", "create", "back"]).unwrap();
    let back = ["--network", "back", "--dns", "198.51.100.7"];
    docker.start("db", &back, &["/bin/agent", "serve", "5432"]).unwrap();
    docker.start("web", &back, &["/bin/sleep", "1000"]).unwrap();
    docker.start("lost", &["--network", "back", "--dns", "203.0.113.9"], &["/bin/sleep", "1000"]).unwrap();
    let talk = "echo to the other | /bin/busybox timeout 5 /bin/busybox nc db 5432 & sleep 1; kill $!; true";
    let heard = docker.tell(&["exec", "web", "/bin/sh", "-c", talk]).unwrap();
    assert!(heard.contains("to the other"), "{heard}");
    let found = docker.ask(&["exec", "web", "/bin/nslookup", "db"]).unwrap();
    assert!(found.stdout.contains("127.0.0.11") && found.stdout.contains("172."), "{}", found.text());

    let found = docker.ask(&["exec", "web", "/bin/nslookup", "a.test"]).unwrap();
    assert!(
        found.stdout.contains("192.0.2.99"),
        "by the engine's resolver, from the one that is listed: {}",
        found.text()
    );
    let lost = docker.ask(&["exec", "lost", "/bin/busybox", "timeout", "2", "/bin/nslookup", "a.test"]).unwrap();
    assert!(!lost.stdout.contains("192.0.2.99"), "{}", lost.text());
    outside.judged("of a network of its own", |words| docker.agent_in("web", words));

    nothing_left(&outside, &witness, 0);
    assert_eq!(
        witness.count(|packet| packet.destination_port == 53 && packet.destination == IpAddr::from(world.intruder.v4)),
        0
    );
    in_its_right_mind(&guard);
}

/// From where, and to which of the server's addresses.
fn doors(world: &World) -> Vec<(&Namespace, IpAddr)> {
    let mut doors: Vec<(&Namespace, IpAddr)> =
        vec![(&world.intruder, world.server.v4.into()), (&world.client, World::BACK_V4[0].into())];
    if has_ipv6() {
        doors.push((&world.intruder, world.server.v6.into()));
        doors.push((&world.client, World::BACK_V6[0].into()));
    }
    doors
}

/// Host's port and the container's; whether it is listed.
const PUBLISHED: [(u16, u16, bool); 4] =
    [(8080, 7000, true), (8081, 7000, false), (8082, 8080, false), (8443, 9001, true)];

fn closed_unless_listed(world: &World, witness: &Witness) {
    for (place, address) in doors(world) {
        for (host, _, listed) in PUBLISHED {
            let to = SocketAddr::new(address, host);
            if listed {
                wait_reaches(place, to);
            } else {
                let error = tcp_reaches(place, to, NOTHING).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{to}: {error}");
            }
        }
    }
    // Not so much as an answer to a handshake.
    let spoke = witness.count(|packet| matches!(packet.source_port, 8081 | 8082));
    assert_eq!((spoke, witness.lost().unwrap()), (0, 0));
}

fn publish(engine: &dyn Engine) -> Vec<String> {
    let ports = PUBLISHED.map(|(host, inside, _)| (inside, format!("--publish={host}:{inside}")));
    let mut ids = Vec::new();
    for inside in [7000, 8080, 9001] {
        let publish: Vec<&str> =
            ports.iter().filter(|(port, _)| *port == inside).map(|(_, publish)| publish.as_str()).collect();
        let port = inside.to_string();
        let serve = ["/bin/agent", "serve", &port];
        ids.push(engine.start(&format!("serves-{inside}"), &publish, &serve).unwrap());
    }
    ids
}

#[test]
fn a_port_that_docker_publishes_is_closed_unless_it_is_listed() {
    let Some(world) = place("engines a_port_that_docker_publishes") else { return };
    let machine = Machine::start(&world).unwrap();
    let mut docker = Docker::start(&machine, &[]).unwrap();
    let ids = publish(&docker);
    for (place, address) in doors(&world) {
        for (host, ..) in PUBLISHED {
            wait_reaches(place, SocketAddr::new(address, host));
        }
    }
    let guard = Guard::start(&world, POLICY).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    closed_unless_listed(&world, &witness);
    let again = |port| wait_reaches(&world.intruder, SocketAddr::new(world.server.v4.into(), port));
    recorded(&guard, 8080, &ids[0], "serves-7000", || again(8080));
    recorded(&guard, 8443, &ids[2], "serves-9001", || again(8443));

    // Round the translation, straight at a container: a neighbour may, for whom Docker's rules leave the way open.
    let inside = docker.tell(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "serves-7000"]).unwrap();
    let inside: IpAddr = inside.trim().parse().unwrap();
    world.client.ip(&format!("route add {inside}/32 via {}\n", World::BACK_V4[0])).unwrap();
    let error = tcp_reaches(&world.client, SocketAddr::new(inside, 7000), NOTHING).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");

    // And one whose own port is another's published one: a rule without `local` lists that, too.
    let inside = docker.tell(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "serves-8080"]).unwrap();
    let inside: IpAddr = inside.trim().parse().unwrap();
    world.client.ip(&format!("route add {inside}/32 via {}\n", World::BACK_V4[0])).unwrap();
    wait_reaches(&world.client, SocketAddr::new(inside, 8080));
    let hosts = format!(
        "local: [{}, {}, \"{}\", \"{}\"]",
        world.server.v4,
        World::BACK_V4[0],
        world.server.v6,
        World::BACK_V6[0]
    );
    let done = guard.reload(&POLICY.replace("name: web,", &format!("name: web, {hosts},")), &[]).unwrap();
    assert!(done.good(), "{}", done.text());
    assert!(tcp_reaches(&world.client, SocketAddr::new(inside, 8080), NOTHING).is_err());
    closed_unless_listed(&world, &witness);

    // The engine again, without its proxy, and with IPv6 translated as IPv4 is.
    docker.stop().unwrap();
    let ipv6 = ["--ipv6", "--fixed-cidr-v6", "2001:db8:d::/64", "--ip6tables", "--experimental"];
    let flags = if has_ipv6() { &ipv6[..] } else { &[] };
    docker.run(&[&["--userland-proxy=false"], flags].concat()).unwrap();
    for name in ["serves-7000", "serves-8080", "serves-9001"] {
        docker.tell(&["start", name]).unwrap();
    }
    closed_unless_listed(&world, &witness);
    let outside = Outside::new(&world);
    outside.judged("after a restart", |words| docker.agent_in("serves-7000", words));
    nothing_left(&outside, &witness, 0);
    in_its_right_mind(&guard);
}

#[test]
fn podman_is_judged_the_same() {
    let Some(world) = place("engines podman_is_judged_the_same") else { return };
    let machine = Machine::start(&world).unwrap();
    let podman = Podman::start(&machine, "vfs").unwrap();
    let outside = Outside::new(&world);
    let ids = publish(&podman);
    let place: &Namespace = &world.intruder;
    for (host, ..) in PUBLISHED {
        wait_reaches(place, SocketAddr::new(world.server.v4.into(), host));
    }
    let guard = Guard::start(&world, POLICY).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    for (host, _, listed) in PUBLISHED {
        let to = SocketAddr::new(world.server.v4.into(), host);
        if listed {
            wait_reaches(place, to);
        } else {
            assert_eq!(tcp_reaches(place, to, NOTHING).unwrap_err().kind(), ErrorKind::TimedOut, "{to}");
        }
    }
    let again = || wait_reaches(place, SocketAddr::new(world.server.v4.into(), 8080));
    recorded(&guard, 8080, &ids[0], "serves-7000", again);
    let out = || outside.judged("started before guard", |words| podman.agent_in("serves-7000", words));
    out();
    recorded(&guard, 9001, &ids[0], "serves-7000", out);
    outside.judged("started after guard", |words| podman.agent(&[], words));
    let host = ["--network", "host"];
    let [listed, unlisted] = outside.asked().map(|words| ask_words(|words| podman.agent(&host, words), &words));
    assert!(listed.good() && unlisted.refused(), "{listed:?} {unlisted:?}");
    nothing_left(&outside, &witness, 0);
    in_its_right_mind(&guard);
}
