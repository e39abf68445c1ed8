//! The tests' own ground: without guard everything reaches everything, and nothing of a world is left.

use std::{fs, path::Path, time::Duration};

use guard_tests::{
    echo::{Echo, tcp_reaches, udp_reaches},
    frame::{TCP, UDP},
    new_world,
    servers::{Sshd, curl, dnsmasq, nginx},
    witness::Witness,
    world::World,
};

const LIMIT: Duration = Duration::from_secs(5);

fn in_time(holds: impl Fn() -> bool) -> bool {
    let deadline = std::time::Instant::now() + LIMIT;
    while !holds() {
        if std::time::Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    true
}

#[test]
fn everything_reaches_everything_and_the_witness_sees_it() {
    let Some(world) = new_world("netns_world everything_reaches_everything") else { return };
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    for ipv6 in [false, true] {
        let server = world.server.address(ipv6);
        let (tcp, udp) =
            (Echo::tcp(&world.server, server, 7000).unwrap(), Echo::udp(&world.server, server, 7000).unwrap());
        for host in [&world.responder, &world.client, &world.intruder] {
            let away = host.address(ipv6);
            tcp_reaches(host, tcp.address, LIMIT).unwrap_or_else(|error| panic!("tcp from {away}: {error}"));
            udp_reaches(host, udp.address, LIMIT).unwrap_or_else(|error| panic!("udp from {away}: {error}"));
            let far = Echo::tcp(host, away, 9000).unwrap();
            tcp_reaches(&world.server, far.address, LIMIT).unwrap_or_else(|error| panic!("tcp to {away}: {error}"));
            // The witness reads in a thread of its own, which may be behind.
            let three = || witness.count(|packet| packet.between(TCP, server, away, 9000)) >= 3;
            assert!(in_time(three), "to {away}");
            let answered = || witness.count(|packet| packet.between(UDP, away, server, 7000)) == 1;
            assert!(in_time(answered), "answer to {away}");
            let asked = || witness.count_towards(|packet| packet.between(UDP, away, server, 7000)) == 1;
            assert!(in_time(asked), "asked by {away}");
        }
        assert_eq!((tcp.reached(), udp.reached()), (3, 3));
    }
    let back = Echo::udp(&world.client, World::BACK_V4[1].into(), 9000).unwrap();
    udp_reaches(&world.server, back.address, LIMIT).unwrap();
    let back = Echo::udp(&world.client, World::BACK_V6[1].into(), 9000).unwrap();
    udp_reaches(&world.server, back.address, LIMIT).unwrap();
    assert_eq!(witness.lost().unwrap(), 0);
}

#[test]
fn real_servers_serve() {
    let Some(world) = new_world("netns_world real_servers_serve") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let _nginx = nginx(&world.server, world.dir(), 80).unwrap();
    let _dnsmasq = dnsmasq(&world.client, world.dir(), &["--bind-interfaces", "--listen-address=192.0.2.20"]).unwrap();
    for ipv6 in [false, true] {
        let server = world.server.address(ipv6);
        assert_eq!(curl(&world.client, server, 80, LIMIT).unwrap(), "guard-test\n");
        let mut ssh = sshd.client(&world.responder, server);
        let said = guard_tests::process::run(ssh.arg("cat /proc/self/cgroup"), LIMIT * 2).unwrap();
        let cgroup = format!("{}/guarded", world.name());
        assert!(said.stdout.contains(&cgroup), "a session is in the guarded cgroup: {}", said.text());
    }
}

#[test]
fn nothing_is_left() {
    let Some(world) = new_world("netns_world nothing_is_left") else { return };
    let (name, cgroup, dir) = (world.name().to_owned(), world.cgroup().to_owned(), world.dir().to_owned());
    // A process that nobody waits for.
    drop(world.server.command("sleep").arg("1000").spawn().unwrap());
    assert!(Path::new("/run/netns").join(format!("{name}-server")).exists() && cgroup.exists());
    drop(world);
    for role in ["server", "router", "client", "responder", "intruder"] {
        assert!(!Path::new("/run/netns").join(format!("{name}-{role}")).exists(), "{role}");
    }
    assert!(!cgroup.exists() && !cgroup.parent().unwrap().exists() && !dir.exists());
}

#[test]
fn what_a_killed_run_left_goes_with_the_next() {
    let Some(world) = new_world("netns_world what_a_killed_run_left") else { return };
    drop(world);
    // A pid beyond what the kernel gives, so that its maker cannot live.
    let name = "guard-test-4194399-1-0".to_owned();
    let cgroup = guard_tests::world::cgroup::root().unwrap().join(&name);
    fs::create_dir(&cgroup).unwrap();
    let netns = std::process::Command::new("ip").args(["netns", "add", &format!("{name}-server")]).status().unwrap();
    assert!(netns.success());
    fs::create_dir(std::env::temp_dir().join(format!("{name}-x"))).unwrap();
    guard_tests::world::reap();
    assert!(!cgroup.exists());
    assert!(!Path::new("/run/netns").join(format!("{name}-server")).exists());
    assert!(!std::env::temp_dir().join(format!("{name}-x")).exists());
}
