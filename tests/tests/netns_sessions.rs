//! Sessions that began before guard did: judged like any other, and none lost that the policy allows.

use guard_tests::{
    flows::{Flow, NOTHING, PASSES, Protocol},
    guard::Guard,
    new_world,
    servers::Sshd,
    session::{Session, Speaking},
};

/// Only what the responder asks of us on 5000-5999, and what we ask of the client there.
const POLICY: &str = r#"
version: 1
name: sessions
mode: enforce
groups:
  responder: [198.51.100.7, "2001:db8:17::7"]
  client: [192.0.2.20, "2001:db8:2::20"]
inbound:
  - { name: asks us, from: responder, services: [tcp/22, tcp/5000-5999, udp/5000-5999] }
outbound:
  - { name: we ask, to: client, services: [tcp/5000-5999, udp/5000-5999] }
"#;

/// This very process holds the sessions, so that guard takes them for its operator's own.
const OURS: [&str; 1] = ["--cut-me"];

/// Whether the policy allows it, by its direction: the wrong way round, each would be denied.
fn sessions() -> Vec<(Flow, bool)> {
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        for protocol in ["tcp", "udp"] {
            for (text, allowed) in [
                ("in PROTOCOL responder 5001", true),
                ("out PROTOCOL client 5002", true),
                ("in PROTOCOL client 5003", false),
                ("out PROTOCOL responder 5004", false),
                ("in PROTOCOL intruder 5005", false),
                ("out PROTOCOL intruder 5006", false),
            ] {
                all.push((Flow::new(&text.replace("PROTOCOL", protocol), ipv6), allowed));
            }
        }
    }
    all
}

#[test]
fn idle_sessions_are_judged_whichever_side_speaks_next() {
    let Some(world) = new_world("netns_sessions idle_sessions_are_judged") else { return };
    let mut held: Vec<(Flow, bool, bool, Session)> = Vec::new();
    for (flow, allowed) in sessions() {
        for server_first in [true, false] {
            if server_first && flow.inbound && flow.protocol == Protocol::Udp {
                // The server's socket is not connected: that it has been asked, nothing on the host knows.
                continue;
            }
            // Two of a kind need two ports.
            let flow = Flow { port: flow.port + if server_first { 100 } else { 0 }, ..flow };
            let session = Session::begin(&world, &flow).unwrap_or_else(|error| panic!("{flow}: {error}"));
            held.push((flow, allowed, server_first, session));
        }
    }
    let guard = Guard::start_with(&world, POLICY, &OURS).unwrap();
    for (flow, allowed, server_first, session) in &mut held {
        let limit = if *allowed { PASSES } else { NOTHING };
        let spoke = session.speaks(*server_first, limit);
        assert_eq!(spoke.is_ok(), *allowed, "{flow}, server first: {server_first}: {spoke:?}");
        if *allowed {
            session.speaks(!*server_first, PASSES).unwrap_or_else(|error| panic!("{flow}, back: {error}"));
        }
    }
    for (flow, allowed, server_first, session) in &held {
        let port = session.asker(flow).unwrap().port();
        let records = guard
            .wait_records(|record| flow.is_of(&world, record) && record["src_port"] == port)
            .unwrap_or_else(|error| panic!("{flow}, server first {server_first}: {error:#}"));
        let told = &records[0]["guard"];
        assert_eq!(told["verdict"], if *allowed { "allow" } else { "deny" }, "{flow}: {records:#?}");
        assert_eq!(told["direction"], flow.direction(), "{flow}: {records:#?}");
    }
}

#[test]
fn no_packet_of_an_allowed_session_is_lost_by_the_start() {
    let Some(world) = new_world("netns_sessions no_packet_is_lost") else { return };
    let mut speaking: Vec<(Flow, Speaking)> = Vec::new();
    let known = |flow: &Flow| flow.protocol == Protocol::Tcp || !flow.inbound;
    for (flow, _) in sessions().into_iter().filter(|(flow, allowed)| *allowed && known(flow)) {
        for number in 0..3 {
            let flow = Flow { port: flow.port + 10 * number, ..flow };
            speaking.push((flow, Session::begin(&world, &flow).unwrap().keep_speaking()));
        }
    }
    let denied = Flow::new("in tcp intruder 5005", false);
    let mut denied = Session::begin(&world, &denied).unwrap();
    let before: u64 = speaking.iter().map(|(_, session)| session.said()).sum();

    let guard = Guard::start_with(&world, POLICY, &OURS).unwrap();
    assert!(denied.speaks(true, NOTHING).is_err(), "the denied one is cut");
    std::thread::sleep(NOTHING);
    let after: u64 = speaking.iter().map(|(_, session)| session.said()).sum();
    assert!(after > before + 100, "they did not go on: {before}, {after}");
    guard.release().unwrap();
    for (flow, session) in speaking {
        // UDP does not send again: an error is one lost datagram. For TCP, a loss shows as a retransmission's delay.
        session.finish().unwrap_or_else(|error| panic!("{flow}: {error}"));
    }
}

#[test]
fn a_shell_that_began_before_goes_on_and_another_is_cut() {
    let Some(world) = new_world("netns_sessions a_shell_that_began_before") else { return };
    let sshd = Sshd::start(&world.server, world.dir(), 22).unwrap();
    let shell = |host: &guard_tests::world::Inside| {
        let mut command = sshd.client(host, world.server.v4.into());
        command.stdin(std::process::Stdio::piped());
        let mut shell =
            guard_tests::process::Process::spawn(command.arg("while read w; do echo heard $w; done")).unwrap();
        let stdin = shell.stdin().unwrap();
        (shell, stdin)
    };
    let say = |(shell, stdin): &mut (guard_tests::process::Process, std::process::ChildStdin), word: &str, limit| {
        use std::io::Write;
        writeln!(stdin, "{word}").unwrap();
        shell.wait_line(limit, |line| line == format!("heard {word}"))
    };
    let (mut ours, mut intruders) = (shell(&world.responder), shell(&world.intruder));
    for shell in [&mut ours, &mut intruders] {
        say(shell, "before", PASSES * 2).unwrap();
    }
    let _guard = Guard::start_with(&world, POLICY, &OURS).unwrap();
    say(&mut ours, "after", PASSES).unwrap();
    assert!(say(&mut intruders, "after", NOTHING).is_err(), "the intruder's shell is cut");
    // And stays so: retransmissions do not get through.
    std::thread::sleep(NOTHING * 2);
    assert!(!intruders.0.output().contains("heard after"));
    say(&mut ours, "later", PASSES).unwrap();
}
