//! Sockets that went round the wire layer before guard came: in a lockdown nothing of them leaves any more, and who held them
//! is in the timeline. The witness stands outside.

use std::{
    fs,
    io::Write,
    process::{ChildStdin, Stdio},
    thread,
    time::Duration,
};

use guard_tests::{
    af_xdp::Sender,
    agent,
    flows::{NOTHING, PASSES},
    frame::{UDP, ethernet_ip, ip, udp},
    guard::Guard,
    new_world,
    process::{Process, run},
    skip::skip,
    witness::Witness,
    world::World,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const BEFORE: &str = "version: 1\nname: before\nmode: audit\ninbound: []\noutbound: []\n";
/// Of the packet socket, and of the AF_XDP socket.
const PORTS: [u16; 2] = [9001, 9002];

fn frame(world: &World, port: u16) -> Vec<u8> {
    let (from, to) = (world.server.v4.into(), world.client.v4.into());
    let packet = ip(from, to, UDP, &udp((from, 4000), (to, port), b"round"));
    ethernet_ip(world.client.mac, world.server.mac, &packet)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A program in the guarded cgroup that sends a frame round the wire for each line of its input; `None`: not on this kernel.
fn sender(world: &World, what: &str, port: u16) -> Option<(Process, ChildStdin)> {
    let mut command = agent::command(&world.server, &[what, "eth0", &hex(&frame(world, port))]).unwrap();
    let mut process = Process::spawn(command.stdin(Stdio::piped())).unwrap();
    process.wait_line(PASSES, |line| line.starts_with("ok")).ok()?;
    let input = process.stdin().unwrap();
    Some((process, input))
}

fn leaves(witness: &Witness, port: u16, input: &mut impl Write, limit: Duration) -> bool {
    witness.forget();
    // Its process may be gone.
    let _ = input.write_all(b"send\n");
    witness.waits_for(limit, |packet| packet.destination_port == port)
}

/// `contained`, of a lockdown that waits for its confirmation.
fn lock_down(world: &World, guard: &Guard) -> (Process, Value) {
    let mut command = guard.command("lockdown").unwrap();
    command.args(["--yes", "--json", "--allow-from", "198.51.100.7", "--evidence", "none"]);
    command.arg("--cgroup").arg(world.cgroup());
    let mut process = Process::spawn(&mut command).unwrap();
    let contained = process.wait_line(LIMIT, |line| line.contains("\"event\":\"contained\"")).unwrap();
    (process, serde_json::from_str(&contained).unwrap())
}

fn of(contained: &Value, pid: u32) -> Value {
    let all = contained["round"].as_array().unwrap();
    let found = all.iter().find(|round| round["pids"][0] == pid);
    found.unwrap_or_else(|| panic!("{pid}: {contained:#}")).clone()
}

#[test]
fn what_went_round_before_is_found_and_cut() {
    const TEST: &str = "netns_lockdown_round what_went_round";
    let Some(world) = new_world(TEST) else { return };
    let guard = Guard::prepare(&world, BEFORE).unwrap();
    let (packet, mut packet_input) = sender(&world, "bypasses", PORTS[0]).unwrap();
    let Some((mut xdp, mut xdp_input)) = sender(&world, "xdp-sends", PORTS[1]) else {
        return skip(TEST, "this kernel has no AF_XDP");
    };
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    assert!(leaves(&witness, PORTS[0], &mut packet_input, PASSES), "the packet socket is live");
    assert!(leaves(&witness, PORTS[1], &mut xdp_input, PASSES), "the AF_XDP socket is live");

    // Shown before anything is done.
    let mut command = guard.command("lockdown").unwrap();
    command.args(["--dry-run", "--allow-from", "198.51.100.7", "--cgroup"]).arg(world.cgroup());
    let shown = run(&mut command, LIMIT).unwrap();
    let line = format!("AF_XDP socket of guard-test-agent {} -> ITS PROCESS IS ENDED", xdp.pid());
    assert!(shown.stdout.contains(&line), "{}", shown.text());
    assert!(leaves(&witness, PORTS[1], &mut xdp_input, PASSES), "--dry-run does nothing");

    let (_lockdown, contained) = lock_down(&world, &guard);
    let (brought_back, ended) = (of(&contained, packet.pid()), of(&contained, xdp.pid()));
    assert_eq!((&brought_back["done"], &ended["done"]), (&"brought_back".into(), &"ended".into()), "{contained:#}");
    assert!(
        xdp.ended().unwrap().is_some() && !leaves(&witness, PORTS[1], &mut xdp_input, NOTHING),
        "its process is gone"
    );
    assert!(!leaves(&witness, PORTS[0], &mut packet_input, NOTHING), "judged at the wire like any other");
    assert!(guard.packets("not_listed", "outbound", true).unwrap() >= 1, "{:#}", guard.status().unwrap());
    assert_eq!(witness.lost().unwrap(), 0);

    let timeline = fs::read_to_string(guard.state_dir().join("timeline.jsonl")).unwrap();
    for (pid, will) in
        [(packet.pid(), "brings back the packet socket"), (xdp.pid(), "ends the process with the AF_XDP")]
    {
        let entry = timeline.lines().find(|line| line.contains(will)).unwrap_or_else(|| panic!("{will}: {timeline}"));
        let entry: Value = serde_json::from_str(entry).unwrap();
        assert_eq!(entry["details"]["pids"][0], pid, "{entry:#}");
    }
    let status = guard.status().unwrap();
    assert_eq!(status["enforcing"], true, "{status:#}");
    assert!(!status["missing"].to_string().contains("round the wire"), "{status:#}");
}

/// This test's process holds it, and the command runs below this process.
#[test]
fn what_the_command_runs_under_is_never_ended() {
    const TEST: &str = "netns_lockdown_round never_ended";
    let Some(world) = new_world(TEST) else { return };
    let index = world.server.interface_index("eth0");
    let frame = frame(&world, PORTS[1]);
    let sender = match world.server.run(|| Sender::new(index, &frame).map(Kept)) {
        Ok(sender) => sender,
        Err(error) => return skip(TEST, &format!("no AF_XDP here: {error}")),
    };
    let guard = Guard::prepare(&world, BEFORE).unwrap();
    let (_lockdown, contained) = lock_down(&world, &guard);
    let left = of(&contained, std::process::id());
    assert_eq!(left["done"], "left", "{left:#}");
    assert!(left["error"].to_string().contains("carries your session"), "{left:#}");
    // The daemon says so for as long as it lasts, and does not end it either.
    let says = |status: &Value| {
        status["enforcing"] == false && status["problems"].to_string().contains("goes round the wire layer")
    };
    guard.status_until(LIMIT, says).unwrap();
    drop(sender);
}

/// Is made in one thread and dropped in another.
struct Kept(#[expect(dead_code, reason = "held, not used")] Sender);

// SAFETY: one thread at a time has it, and the mappings are the process's.
unsafe impl Send for Kept {}

/// 32-bit calls and programs outside the cgroup pass by the seal's cgroup form: the daemon finds what they made.
#[test]
fn what_begins_beside_the_seal_is_ended_by_the_daemon() {
    const TEST: &str = "netns_lockdown_round beside_the_seal";
    let Some(world) = new_world(TEST) else { return };
    let guard = Guard::prepare(&world, BEFORE).unwrap();
    let (_lockdown, contained) = lock_down(&world, &guard);
    assert_eq!(contained["round"], Value::Array(Vec::new()), "{contained:#}");
    let mut command = agent::command(&world.operator, &["xdp-sends", "eth0", &hex(&frame(&world, PORTS[1]))]).unwrap();
    let mut process = Process::spawn(command.stdin(Stdio::piped())).unwrap();
    if process.wait_line(PASSES, |line| line.starts_with("ok")).is_err() {
        return skip(TEST, "this kernel has no AF_XDP");
    }
    let ended = |record: &Value| {
        record["guard"]["kind"] == "goes_round" && record["guard"]["what"].to_string().contains("was ended")
    };
    let record = guard.wait_records(ended).unwrap().remove(0);
    assert!(record["guard"]["what"].to_string().contains(&process.pid().to_string()), "{record:#}");
    assert!(process.ended().unwrap().is_some());
    guard.status_until(LIMIT, |status| status["enforcing"] == true).unwrap();
}

/// It loads programs that drop more, its shield among them, and the daemon hears of each before it knows whose it is.
#[test]
fn what_a_lockdown_loads_itself_is_no_alarm() {
    let Some(world) = new_world("netns_lockdown_round what_a_lockdown_loads") else { return };
    let guard = Guard::start(&world, BEFORE).unwrap();
    let (lockdown, contained) = lock_down(&world, &guard);
    assert_eq!(contained["event"], "contained");
    guard.status_until(LIMIT, |status| status["enforcing"] == true).unwrap();
    // Nobody holds the lock while it waits for its confirmation, so that whatever is to be told is told by now.
    thread::sleep(Duration::from_secs(2));
    let of_lockdown = format!(" {}", lockdown.pid());
    let alarms = guard.records().unwrap().into_iter().filter(|record| {
        record["event_type"] == "alert"
            && record["guard"]["kind"] == "program_loaded"
            && record["guard"]["by"].as_str().is_some_and(|by| by.contains(&of_lockdown))
    });
    assert_eq!(alarms.collect::<Vec<_>>(), Vec::<Value>::new());
}
