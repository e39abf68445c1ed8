//! Every verdict that a policy gives, in both directions and families, against real sockets; what is recorded of it;
//! audit against enforce; `explain` against the kernel.

use std::collections::BTreeMap;

use guard_tests::{
    cases::{Case, cases, policy, servers},
    flows::{Flow, all_pass_without_guard, try_all},
    frame::{ICMP, ICMPV6},
    guard::Guard,
    new_world,
    process::run,
    witness::Witness,
    world::World,
};
use serde_json::Value;

#[test]
fn each_flow_gets_its_verdict_reason_and_record() {
    let Some(world) = new_world("netns_verdicts each_flow_gets_its_verdict") else { return };
    let cases = cases();
    let _servers = servers(&world, &cases);
    all_pass_without_guard(&world, cases.iter().map(|case| case.flow));

    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    let status = guard.status().unwrap();
    assert_eq!((&status["mode"], &status["enforcing"]), (&"enforce".into(), &true.into()), "{status:#}");
    let witness = Witness::start(&world.router, World::WIRE).unwrap();
    let expected: Vec<(Flow, bool)> = cases.iter().map(|case| (case.flow, case.allowed)).collect();
    let wrong = try_all(&world, &expected);
    assert!(wrong.is_empty(), "{wrong:#?}");

    // Nothing of what was denied on its way out was seen outside.
    for case in cases.iter().filter(|case| !case.allowed && !case.flow.inbound) {
        let (flow, remote) = (case.flow, case.flow.remote_address(&world));
        let left = witness.count(|packet| {
            packet.destination == remote
                && packet.protocol == flow.protocol.number(flow.ipv6)
                && (flow.port == 0 && [8, 128].contains(&packet.source_port) || packet.destination_port == flow.port)
        });
        assert_eq!(left, 0, "{flow}");
    }
    assert_eq!(witness.lost().unwrap(), 0);
    let begins = first_records(&world, &guard, &cases);
    for (case, record) in &begins {
        let (flow, guard) = (case.flow, &record["guard"]);
        assert_eq!(guard["verdict"], if case.allowed { "allow" } else { "deny" }, "{flow}: {record}");
        assert_eq!(guard["rule"], case.rule.map_or(Value::Null, Value::from), "{flow}: {record}");
        assert_eq!(guard["reason"], case.reason, "{flow}: {record}");
        assert_eq!(guard["direction"], flow.direction(), "{flow}: {record}");
        assert_eq!(guard["dropped"], !case.allowed, "{flow}: {record}");
        assert_eq!(record["event_type"], if case.allowed { "flow" } else { "drop" }, "{flow}: {record}");
        eve_shape(record);
        if !case.allowed {
            assert!(record["packet"].as_str().is_some_and(|packet| packet.len() > 20), "first bytes: {record}");
        }
    }
    community_ids_equal_tsharks(&world, &witness, &begins);
    counters_agree(&guard.status().unwrap(), &cases);
}

/// The one `begin` record of each case.
fn first_records(world: &World, guard: &Guard, cases: &[Case]) -> Vec<(Case, Value)> {
    cases
        .iter()
        .map(|case| {
            let of_it = |record: &Value| case.flow.is_of(world, record) && record["guard"]["event"] == "begin";
            let records = guard.wait_records(of_it).unwrap_or_else(|error| panic!("{}: {error:#}", case.flow));
            assert_eq!(records.len(), 1, "one event a flow: {}: {records:#?}", case.flow);
            (*case, records[0].clone())
        })
        .collect()
}

/// The fields that Suricata's readers rely on.
fn eve_shape(record: &Value) {
    let timestamp = record["timestamp"].as_str().unwrap_or_default();
    // 2026-01-02T03:04:05.678901+0000
    assert_eq!((timestamp.len(), &timestamp[26..]), (31, "+0000"), "{record}");
    assert!(record["flow_id"].is_u64() && record["host"].is_string(), "{record}");
    for key in ["src_ip", "dest_ip", "proto", "community_id", "in_iface"] {
        assert!(record[key].is_string(), "{key}: {record}");
    }
    match record["proto"].as_str() {
        Some("TCP" | "UDP") => assert!(record["src_port"].is_u64() && record["dest_port"].is_u64(), "{record}"),
        _ => assert!(record["icmp_type"].is_u64() && record["icmp_code"].is_u64(), "{record}"),
    }
    let flow = &record["flow"];
    assert!(flow["pkts_toserver"].is_u64() && flow["bytes_toclient"].is_u64() && flow["start"].is_string(), "{record}");
}

/// Wireshark computes the same hash by its own code, from what the witness saw.
fn community_ids_equal_tsharks(world: &World, witness: &Witness, begins: &[(Case, Value)]) {
    let path = world.dir().join("witness.pcap");
    witness.write_pcap(&path).unwrap();
    let mut tshark = std::process::Command::new("tshark");
    tshark.args(["-n", "--enable-protocol", "communityid", "-T", "fields", "-E", "separator=;", "-r"]).arg(&path);
    for field in ["communityid", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "ip.proto", "ipv6.nxt"] {
        tshark.args(["-e", field]);
    }
    for field in ["tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport"] {
        tshark.args(["-e", field]);
    }
    if run(std::process::Command::new("tshark").arg("-v"), std::time::Duration::from_secs(20)).is_err() {
        guard_tests::skip::skip("netns_verdicts community_id", "tshark is not installed");
        return;
    }
    let ended = run(&mut tshark, std::time::Duration::from_secs(60)).unwrap();
    let mut by_ends = BTreeMap::new();
    for line in ended.stdout.lines() {
        let field: Vec<&str> = line.split(';').collect();
        let [id, v4_src, v4_dst, v6_src, v6_dst, ..] = field[..] else { continue };
        let port = |tcp: usize| [field[tcp], field[tcp + 2]].concat();
        by_ends.insert(format!("{v4_src}{v6_src} {} {v4_dst}{v6_dst} {}", port(7), port(8)), id.to_owned());
    }
    let mut compared = 0;
    for (case, record) in begins {
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        let port = |key: &str| record[key].as_u64().map(|port| port.to_string()).unwrap_or_default();
        let ends = format!("{} {} {} {}", text("src_ip"), port("src_port"), text("dest_ip"), port("dest_port"));
        // What was denied on its way out was not seen, and what came by the other link neither.
        if let Some(id) = by_ends.get(&ends) {
            assert_eq!(record["community_id"], id.as_str(), "{}: {record}", case.flow);
            compared += 1;
        }
    }
    assert!(compared > begins.len() / 2, "only {compared} of {} were compared\n{}", begins.len(), ended.text());
}

/// Totals by reason and by rule, as status reads them from the kernel.
fn counters_agree(status: &Value, cases: &[Case]) {
    for direction in ["inbound", "outbound"] {
        for reason in ["rule_allow", "rule_deny", "not_listed"] {
            let flows = cases.iter().filter(|case| case.reason == reason && case.flow.direction() == direction).count();
            let packets: u64 = status["reasons"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|line| {
                    line["reason"] == reason
                        && line["direction"] == direction
                        && line["dropped"] == (reason != "rule_allow")
                })
                .filter_map(|line| line["packets"].as_u64())
                .sum();
            assert!(packets >= flows as u64, "{reason} {direction}: {packets} packets of {flows} flows\n{status:#}");
        }
    }
    let mut by_rule = BTreeMap::new();
    for rule in cases.iter().filter_map(|case| case.rule) {
        *by_rule.entry(rule).or_insert(0u64) += 1;
    }
    for (rule, flows) in by_rule {
        let line = status["rules"].as_array().unwrap().iter().find(|line| line["rule"] == rule).unwrap().clone();
        assert_eq!(line["flows"], flows, "{line}");
    }
}

#[test]
fn audit_says_what_enforce_does_and_drops_nothing() {
    let Some(world) = new_world("netns_verdicts audit_says_what_enforce_does") else { return };
    let cases = cases();
    let _servers = servers(&world, &cases);
    let guard = Guard::start(&world, &policy("audit")).unwrap();
    let status = guard.status().unwrap();
    assert_eq!((&status["mode"], &status["enforcing"]), (&"audit".into(), &false.into()), "{status:#}");
    let all: Vec<(Flow, bool)> = cases.iter().map(|case| (case.flow, true)).collect();
    let wrong = try_all(&world, &all);
    assert!(wrong.is_empty(), "in audit mode {wrong:#?}");
    for (case, record) in first_records(&world, &guard, &cases) {
        let (flow, guard) = (case.flow, &record["guard"]);
        assert_eq!(guard["verdict"], if case.allowed { "allow" } else { "deny" }, "{flow}: {record}");
        assert_eq!(guard["rule"], case.rule.map_or(Value::Null, Value::from), "{flow}: {record}");
        assert_eq!(guard["reason"], case.reason, "{flow}: {record}");
        assert_eq!(guard["dropped"], false, "{flow}: {record}");
        assert_eq!(record["event_type"], "flow", "{flow}: {record}");
    }
    let status = guard.status().unwrap();
    let dropped = status["reasons"].as_array().unwrap().iter().filter(|line| line["dropped"] == true).count();
    assert_eq!(dropped, 0, "{status:#}");
}

#[test]
fn audit_switch_overrides_the_policy_and_a_mode_may_differ_by_direction() {
    let Some(world) = new_world("netns_verdicts audit_switch") else { return };
    let flows = [Flow::new("in tcp client 22", false), Flow::new("out tcp responder 22", false)];
    let _servers = guard_tests::flows::serve(&world, &flows);
    let guard = Guard::start_with(&world, &policy("enforce"), &["--audit"]).unwrap();
    assert_eq!(guard.status().unwrap()["mode"], "audit");
    assert!(try_all(&world, &flows.map(|flow| (flow, true))).is_empty());

    let mixed = guard.reload(&policy("{inbound: enforce, outbound: audit}"), &[]).unwrap();
    assert!(mixed.good(), "{}", mixed.text());
    let status = guard.status().unwrap();
    assert_eq!(
        (&status["mode"], &status["enforcing"], &status["enforcing_inbound"], &status["enforcing_outbound"]),
        (&"mixed".into(), &false.into(), &true.into(), &false.into()),
        "{status:#}"
    );
    let wrong = try_all(&world, &[(flows[0], false), (flows[1], true)]);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn explain_says_what_the_kernel_does() {
    let Some(world) = new_world("netns_verdicts explain_says_what_the_kernel_does") else { return };
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    for case in cases() {
        let mut questions = vec![case.flow.full_question(&world)];
        if case.plain {
            questions.push(case.flow.question(&world));
        }
        for question in questions {
            for answer in [guard.explain(&question).unwrap(), explain_file(&guard, &question)] {
                assert_eq!(answer["verdict"], if case.allowed { "allow" } else { "deny" }, "{question}: {answer}");
                assert_eq!(answer["rule"], case.rule.map_or(Value::Null, Value::from), "{question}: {answer}");
                assert_eq!(answer["reason"], case.reason, "{question}: {answer}");
            }
        }
    }
}

/// The same of the file, without what runs.
fn explain_file(guard: &Guard, question: &str) -> Value {
    let mut command = std::process::Command::new(guard_tests::guard::binary().unwrap());
    command.args(["explain", "--json"]).arg(guard.policy()).arg(question);
    let ended = run(&mut command, std::time::Duration::from_secs(20)).unwrap();
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{question}: {error}: {}", ended.text()))
}

#[test]
fn replies_pass_and_only_replies() {
    let Some(world) = new_world("netns_verdicts replies_pass_and_only_replies") else { return };
    let inside = [Flow::new("in udp client 53", false), Flow::new("in udp client 53", true)];
    let _servers = guard_tests::flows::serve(&world, &inside);
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    assert!(try_all(&world, &inside.map(|flow| (flow, true))).is_empty());

    for ipv6 in [false, true] {
        // A source port that is a service's opens nothing: "source port 53".
        let from: std::net::SocketAddr = (world.server.address(ipv6), 5353).into();
        let socket = world.client.run(|| std::net::UdpSocket::bind((world.client.address(ipv6), 53))).unwrap();
        let inner = world.server.run(|| std::net::UdpSocket::bind(from)).unwrap();
        inner.set_read_timeout(Some(guard_tests::flows::NOTHING)).unwrap();
        socket.send_to(b"x", from).unwrap();
        assert!(inner.recv(&mut [0; 8]).is_err(), "not asked for");
        // Asked, it may answer: the same two ends, now a reply.
        inner.send_to(b"question", socket.local_addr().unwrap()).unwrap();
        inner.set_read_timeout(Some(guard_tests::flows::PASSES)).unwrap();
        socket.set_read_timeout(Some(guard_tests::flows::PASSES)).unwrap();
        let (_, back) = socket.recv_from(&mut [0; 16]).unwrap();
        socket.send_to(b"y", back).unwrap();
        let mut got = [0; 8];
        assert_eq!(inner.recv(&mut got).unwrap(), 1, "the answer");
        assert_eq!(got[0], b'y');
        // But not from another port of the same host.
        let other = world.client.run(|| std::net::UdpSocket::bind((world.client.address(ipv6), 54))).unwrap();
        inner.set_read_timeout(Some(guard_tests::flows::NOTHING)).unwrap();
        other.send_to(b"z", from).unwrap();
        assert!(inner.recv(&mut [0; 8]).is_err(), "another port");
    }
    // An echo reply that nobody asked for does not come in.
    for ipv6 in [false, true] {
        let before = guard.packets("icmp_answer_unknown", "inbound", true).unwrap();
        let (client, server) = (world.client.address(ipv6), world.server.address(ipv6));
        let (reply, protocol) = if ipv6 { (129, ICMPV6) } else { (0, ICMP) };
        let message = guard_tests::frame::icmp(client, server, reply, 0, &[0x77, 0x77, 0, 1, 1, 2, 3, 4]);
        let packet = guard_tests::frame::ip(client, server, protocol, &message);
        let frame = guard_tests::frame::ethernet_ip(world.server.mac, world.client.mac, &packet);
        guard_tests::witness::send_frame(&world.client, "eth0", &frame).unwrap();
        let wanted = |status: &Value| {
            let lines = status["reasons"].as_array().unwrap();
            lines.iter().any(|l| {
                l["reason"] == "icmp_answer_unknown"
                    && l["direction"] == "inbound"
                    && l["packets"].as_u64() > Some(before)
            })
        };
        guard.status_until(guard_tests::flows::PASSES, wanted).unwrap();
    }
}
