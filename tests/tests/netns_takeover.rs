//! A new daemon that was asked for something else takes over what runs: other programs into the links that are there,
//! another control group. Meanwhile sessions go on and nothing unlisted passes.

use std::{
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use guard_tests::{
    agent::ask,
    cases::policy,
    flows::{Flow, PASSES, serve},
    frame::{UDP, ethernet_ip, ip, udp},
    guard::Guard,
    new_world,
    process::{Process, run},
    session::Session,
    witness::{Witness, packet_socket},
    world::World,
};

const UNLISTED: u16 = 4444;

/// Unlisted datagrams from the server, by a packet socket: nothing but the wire stands in their way.
struct Flood<'a> {
    stop: &'a AtomicBool,
}

impl Drop for Flood<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn flood(world: &World, stop: &AtomicBool) {
    let index = world.server.interface_index("eth0");
    let socket = world.server.run(|| packet_socket(index)).unwrap();
    let (from, to) = (world.server.v4.into(), world.client.v4.into());
    let frame =
        ethernet_ip(world.client.mac, world.server.mac, &ip(from, to, UDP, &udp((from, 4000), (to, UNLISTED), b"out")));
    while !stop.load(Ordering::Relaxed) {
        // Dropped or not is for the witness to see.
        let _ = nix::unistd::write(&socket, &frame);
        thread::sleep(Duration::from_millis(1));
    }
}

/// Ids of the programs at the server's hooks, by the names of their pins.
fn programs(world: &World, guard: &Guard) -> Vec<(String, u64)> {
    let pins = format!(
        "for p in /sys/fs/bpf/guard/{}/programs/*; do echo $(basename $p) $(bpftool -j prog show pinned $p); done",
        guard.instance()
    );
    let ended = run(world.operator.command("sh").args(["-c", &pins]), PASSES * 2).unwrap();
    assert!(ended.good(), "{}", ended.text());
    let line = |line: &str| {
        let (name, json) = line.split_once(' ')?;
        let json: serde_json::Value = serde_json::from_str(json).ok()?;
        Some((name.to_owned(), json["id"].as_u64()?))
    };
    ended.stdout.lines().filter_map(line).collect()
}

#[test]
fn its_programs_are_replaced_without_a_gap() {
    let Some(world) = new_world("netns_takeover programs_are_replaced") else { return };
    let listed = Flow::new("in tcp responder 8101", false);
    let session = Session::begin(&world, &listed).unwrap().keep_speaking();
    let mut guard = Guard::start(&world, &policy("enforce")).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _flood = Flood { stop: &stop };
        scope.spawn(|| flood(&world, &stop));
        let mut before = programs(&world, &guard);
        assert!(before.iter().any(|(name, _)| name == "wire_egress"), "{before:?}");
        for arguments in [&["--shield"][..], &[]] {
            let said = session.said();
            guard.kill().unwrap();
            guard.run(arguments).unwrap();
            let status = guard.status().unwrap();
            assert_eq!(status["enforcing"], true, "{status:#}");
            let shield = status["hooks"].to_string().contains("\"shield\"");
            assert_eq!(shield, !arguments.is_empty(), "{status:#}");
            let now = programs(&world, &guard);
            for (name, id) in before.iter().filter(|(name, _)| name != "shield" && !name.starts_with("seal_")) {
                let other = now.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name}: {now:?}"));
                assert_ne!(other.1, *id, "{name} is the old one");
            }
            before = now;
            thread::sleep(Duration::from_millis(300));
            assert!(session.said() > said, "the session stands still");
        }
    });
    assert!(guard.packets("not_listed", "outbound", true).unwrap() > 0, "the flood was there to be dropped");
    assert_eq!(witness.lost().unwrap(), 0);
    assert_eq!(witness.count(|packet| packet.destination_port == UNLISTED), 0, "packets passed unjudged");
    let slowest = session.slowest();
    session.finish().unwrap();
    assert!(slowest < 2000, "an exchange took {slowest} ms");
}

#[test]
fn another_control_group_is_held_and_the_old_one_no_longer() {
    let Some(world) = new_world("netns_takeover another_control_group") else { return };
    let listed = Flow::new("in tcp responder 8101", false);
    let unlisted = Flow::new("out tcp client 4444", false);
    let _servers = serve(&world, &[unlisted]);
    let session = Session::begin(&world, &listed).unwrap().keep_speaking();
    let mut guard = Guard::start(&world, &policy("enforce")).unwrap();
    let second = world.cgroup().parent().unwrap().join("second");
    std::fs::create_dir(&second).unwrap();
    let inside_second = world.server.in_cgroup(&second).unwrap();
    let asked = unlisted.asked(&world).to_string();
    let connect = |second: bool| {
        let place = if second { &inside_second } else { &*world.server };
        ask(place, &["connect", "tcp", &asked]).unwrap()
    };
    let frame = ethernet_ip(
        world.client.mac,
        world.server.mac,
        &ip(
            world.server.v4.into(),
            world.client.v4.into(),
            UDP,
            &udp((world.server.v4.into(), 4000), (world.client.v4.into(), UNLISTED), b"out"),
        ),
    );
    let frame: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let bypass = |second: bool| {
        let place = if second { &inside_second } else { &*world.server };
        ask(place, &["bypass", "native", "eth0", "1", &frame]).unwrap()
    };
    // The socket layer says no at once; elsewhere the wire drops, and the program waits. The seal refuses; elsewhere it is not.
    assert!(connect(false).refused() && !connect(true).refused());
    assert!(bypass(false).refused() && bypass(true).good());

    guard.kill().unwrap();
    // What it holds goes with it, a moment later.
    guard.status_until(PASSES * 4, |status| status["daemon"].is_null()).unwrap();
    let run_in = |cgroup: &Path| -> Process {
        let mut command = guard.command("run").unwrap();
        command.arg("--cgroup").arg(cgroup).arg(guard.policy()).stdin(Stdio::null());
        let mut process = Process::spawn(&mut command).unwrap();
        process.wait_line(PASSES * 12, |line| line.contains("guard is ready")).unwrap();
        process
    };
    let daemon = run_in(&second);
    let status = guard.status().unwrap();
    assert_eq!(status["enforcing"], true, "{status:#}");
    let targets: Vec<&str> = status["hooks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|hook| hook["layer"] == "socket" || hook["layer"] == "backstop")
        .map(|hook| hook["target"].as_str().unwrap())
        .collect();
    assert!(!targets.is_empty() && targets.iter().all(|target| target.ends_with("/second")), "{targets:?}");
    assert!(connect(true).refused() && !connect(false).refused());
    assert!(bypass(true).refused() && bypass(false).good());
    let slowest = session.slowest();
    session.finish().unwrap();
    assert!(slowest < 2000, "an exchange took {slowest} ms");
    drop(daemon);
}
