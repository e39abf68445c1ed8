//! Segments that somebody writes who knows a session's two ends, and nothing else of it: they end no session, and turn none
//! round.

use std::{net::SocketAddr, thread, time::Duration};

use guard_tests::{
    flows::{Flow, PASSES},
    frame::{ACK, FIN, RST, SYN, TCP, ethernet_ip, ip, tcp},
    guard::Guard,
    new_world,
    session::Session,
    witness::send_frame,
    world::World,
};

/// What comes in on 7001 is allowed, and so is what goes out to 7002; the other way round, neither.
const POLICY: &str = "version: 1\nname: forged\nmode: enforce\n\
    inbound:\n  - { name: in, from: any, services: tcp/7001 }\n\
    outbound:\n  - { name: out, to: any, services: tcp/7002 }\n";

/// As conntrack remembers a connection that was reset.
const CLOSED: Duration = Duration::from_secs(10);

/// Remote and local end, as the server sees them.
fn ends(world: &World, flow: &Flow, session: &Session) -> (SocketAddr, SocketAddr) {
    let (asker, asked) = (session.asker(flow).unwrap(), flow.asked(world));
    if flow.inbound { (asker, asked) } else { (asked, asker) }
}

/// From the server's own link, in the remote's name; its numbers are wrong, so that the server's TCP takes no notice.
fn forge(world: &World, (remote, local): (SocketAddr, SocketAddr), flags: u8) {
    let segment = tcp((remote.ip(), remote.port()), (local.ip(), local.port()), flags, 0x0bad_0bad, 1, b"");
    let frame = ethernet_ip(world.server.mac, world.client.mac, &ip(remote.ip(), local.ip(), TCP, &segment));
    send_frame(&world.client, "eth0", &frame).unwrap();
}

fn sessions(world: &World) -> Vec<(Flow, Session)> {
    let mut sessions = Vec::new();
    for ipv6 in [false, true] {
        for text in ["in tcp responder 7001", "out tcp intruder 7002"] {
            let flow = Flow::new(text, ipv6);
            sessions.push((flow, Session::begin(world, &flow).unwrap_or_else(|error| panic!("{flow}: {error}"))));
        }
    }
    sessions
}

/// The remote speaks first: a session that were taken for denied or for another would hear nothing of it.
fn go_on(sessions: &mut [(Flow, Session)], after: &str) {
    for (flow, session) in sessions {
        for from_server in [false, true] {
            session.speaks(from_server, PASSES).unwrap_or_else(|error| panic!("{flow}, after {after}: {error}"));
        }
    }
}

fn forged_ends_and_beginnings(world: &World, arguments: &[&str]) {
    let guard = Guard::start_with(world, POLICY, arguments).unwrap();
    let mut sessions = sessions(world);
    for (name, end) in [("a RST", &[RST][..]), ("a FIN", &[FIN | ACK]), ("FINs", &[FIN | ACK, FIN | ACK, ACK])] {
        for (flow, session) in &sessions {
            let ends = ends(world, flow, session);
            end.iter().for_each(|flags| forge(world, ends, *flags));
            forge(world, ends, SYN);
        }
        go_on(&mut sessions, name);
    }
    // By then it is forgotten.
    let forged = || sessions.iter().map(|(flow, session)| ends(world, flow, session));
    forged().for_each(|ends| forge(world, ends, RST));
    thread::sleep(CLOSED + Duration::from_secs(4));
    forged().for_each(|ends| forge(world, ends, SYN));
    go_on(&mut sessions, "a RST, and a SYN when it was forgotten");

    for (flow, session) in &sessions {
        let port = session.asker(flow).unwrap().port();
        let records = guard.all_records_with(&format!("_port\":{port},")).unwrap();
        // A forged segment that no connection can have is told of by itself.
        let of_flows = records.iter().filter(|record| record["guard"]["event"] != "packet");
        let (right, other): (Vec<_>, Vec<_>) =
            of_flows.partition(|record| record["guard"]["direction"] == flow.direction());
        assert!(!right.is_empty() && other.is_empty(), "{flow}: {other:#?}");
    }
}

#[test]
fn a_forged_end_ends_no_session() {
    let Some(world) = new_world("netns_forged a_forged_end_ends_no_session") else { return };
    forged_ends_and_beginnings(&world, &[]);
}

#[test]
fn a_forged_end_ends_no_session_behind_the_shield() {
    let Some(world) = new_world("netns_forged behind_the_shield") else { return };
    forged_ends_and_beginnings(&world, &["--shield"]);
}
