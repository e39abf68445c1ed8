//! Ways round tc from a socket, each shown to work without guard, by a witness outside: what the seal refuses of them, and
//! what becomes of what it does not.

use std::{io::Write, process::Stdio};

use guard_tests::{
    agent::{self, ask},
    flows::{NOTHING, PASSES},
    frame::{UDP, ethernet_ip, ip, udp},
    guard::Guard,
    new_world,
    process::Process,
    skip::skip,
    witness::{Witness, packet_socket},
    world::World,
};

const POLICY: &str = "version: 1\nname: bypass\nmode: enforce\ninbound: []\noutbound: []\n";
const PORT: u16 = 9001;

/// A frame that no rule lists, from the server to the client, in hexadecimal.
fn frame(world: &World) -> String {
    let (from, to) = (world.server.v4.into(), world.client.v4.into());
    let packet = ip(from, to, UDP, &udp((from, 4000), (to, PORT), b"round"));
    ethernet_ip(world.client.mac, world.server.mac, &packet).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn leaves(witness: &Witness, limit: std::time::Duration) -> bool {
    witness.waits_for(limit, |packet| packet.destination_port == PORT)
}

/// A 32-bit system call asks of a 64-bit process; the cgroup form of the seal is not run for it.
#[test]
fn a_32_bit_call_is_refused_or_named() {
    const TEST: &str = "netns_bypass_seal a_32_bit_call";
    let Some(world) = new_world(TEST) else { return };
    let frame = frame(&world);
    let bypass = || ask(&world.server, &["bypass", "int80", "eth0", "1", &frame]);
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    match bypass() {
        Ok(said) => assert!(said.good() && leaves(&witness, PASSES), "without guard: {said:?}"),
        Err(error) => return skip(TEST, &format!("no 32-bit system calls here: {error}")),
    }
    let guard = Guard::start(&world, POLICY).unwrap();
    witness.forget();
    let said = bypass().unwrap();
    let missing = guard.status().unwrap()["missing"].to_string();
    if guard.sealed_at_functions().unwrap() {
        assert!(said.refused() && !leaves(&witness, NOTHING), "{said:?}");
        assert!(!missing.contains("32-bit"), "{missing}");
    } else {
        assert!(said.good() && leaves(&witness, PASSES), "the cgroup form learned to see it: say so in SECURITY.md");
        assert!(missing.contains("no fmod_ret seal") && missing.contains("32-bit"), "it is named: {missing}");
    }
}

/// Each is asked, whatever it was told before the seal stood: one that goes round is told not to, in enforce mode.
#[test]
fn sockets_from_before_are_asked() {
    let Some(world) = new_world("netns_bypass_seal sockets_from_before") else { return };
    let index = world.server.interface_index("eth0");
    let plain = world.server.run(|| packet_socket(index)).unwrap();
    let mut command = agent::command(&world.server, &["bypasses", "eth0", &frame(&world)]).unwrap();
    let mut bypasses = Process::spawn(command.stdin(Stdio::piped())).unwrap();
    bypasses.wait_line(PASSES, |line| line.starts_with("ok")).unwrap();
    let missing = |guard: &Guard| guard.status().unwrap()["missing"].to_string();
    let goes_round = format!("packet socket of guard-test-agent {}", bypasses.pid());

    let audits = Guard::start(&world, &POLICY.replace("enforce", "audit")).unwrap();
    let said = missing(&audits);
    assert!(said.contains("1 packet sockets go round the wire layer") && said.contains(&goes_round), "{said}");
    audits.reload(POLICY, &["--cut-me"]).unwrap();
    let back = |record: &serde_json::Value| {
        record["guard"]["kind"] == "goes_round" && record["guard"]["event"] == "alert_over"
    };
    audits.wait_records(back).unwrap();
    let said = missing(&audits);
    assert!(!said.contains("packet socket"), "{said}");
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    bypasses.stdin().unwrap().write_all(b"send\n").unwrap();
    assert!(!leaves(&witness, NOTHING), "judged");
    drop(plain);
}

/// In a lockdown others may not use `bpf(2)` against guard; where the kernel gives no way to refuse it, status names that.
#[test]
fn bpf_under_a_lockdown_is_refused_or_named() {
    let Some(world) = new_world("netns_bypass_seal bpf_under_a_lockdown") else { return };
    let policy = POLICY.replace("mode: enforce", "mode: enforce\nlockdown: true");
    let guard = Guard::start(&world, &policy).unwrap();
    let said = ask(&world.operator, &["bpf", "load", "6"]).unwrap();
    let status = guard.status().unwrap();
    let missing = status["missing"].to_string();
    if status["hooks"].to_string().contains("fmod_ret bpf") {
        assert!(said.refused() && !missing.contains("seal of bpf(2)"), "{said:?}, {missing}");
        assert!(guard.packets("bpf_refused", "outbound", true).unwrap() >= 1);
    } else {
        assert!(said.good(), "{said:?}");
        assert!(
            missing.contains("no fmod_ret seal of bpf(2)") && missing.contains("noticed, not stopped"),
            "{missing}"
        );
    }
}

#[test]
fn io_uring_is_refused() {
    const TEST: &str = "netns_bypass_seal io_uring";
    let Some(world) = new_world(TEST) else { return };
    let frame = frame(&world);
    let bypass = || ask(&world.server, &["bypass", "uring", "eth0", "1", &frame]).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    let said = bypass();
    if !said.good() {
        return skip(TEST, &format!("no setsockopt by io_uring here (Linux 6.7): {said:?}"));
    }
    assert!(leaves(&witness, PASSES), "without guard");
    let guard = Guard::start(&world, POLICY).unwrap();
    witness.forget();
    let said = bypass();
    assert!(said.refused() && !leaves(&witness, NOTHING), "{said:?}");
    assert!(guard.packets("sealed", "outbound", true).unwrap() >= 1);
    assert!(ask(&world.server, &["priority", "uring"]).unwrap().good(), "an ordinary option");
    assert_eq!(witness.lost().unwrap(), 0);
}

#[test]
fn af_xdp_does_not_send() {
    const TEST: &str = "netns_bypass_seal af_xdp";
    let Some(world) = new_world(TEST) else { return };
    let frame = frame(&world);
    let send = || ask(&world.server, &["xdp-send", "eth0", &frame]).unwrap();
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    let said = send();
    if said.errno == libc::EAFNOSUPPORT {
        return skip(TEST, "this kernel has no AF_XDP");
    }
    assert!(said.good() && leaves(&witness, PASSES), "without guard: {said:?}");
    let guard = Guard::start(&world, POLICY).unwrap();
    witness.forget();
    let said = send();
    assert!(said.refused() && !leaves(&witness, NOTHING), "{said:?}");
    assert!(guard.packets("sealed", "outbound", true).unwrap() >= 1);
    guard.wait_records(|record| record["guard"]["event"] == "sealed").unwrap();
    guard.release().unwrap();
    assert!(send().good() && leaves(&witness, PASSES), "released");
    assert_eq!(witness.lost().unwrap(), 0);
}
