//! `guard replay` on captures as real tools make them: tcpdump on every link type that it writes here, editcap and mergecap
//! for the others and for pcapng. The traffic is the same, so every one of them must give the same flows.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use guard_tests::{
    flows::{Flow, NOTHING, PASSES, serve},
    guard::binary,
    new_world,
    process::{Ended, Process, run},
    world::World,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const POLICY: &str = "version: 1\nname: replayed\nmode: enforce\n\
    inbound:\n  - { name: in, from: [198.51.100.7, \"2001:db8:17::7\"], services: tcp/8001 }\n\
    outbound:\n  - { name: out, to: [203.0.113.9, \"2001:db8:bad::9\"], services: udp/8002 }\n";

/// Listed and not, both ways.
const FLOWS: [(&str, Option<&str>); 4] = [
    ("in tcp responder 8001", Some("in")),
    ("in udp intruder 8003", None),
    ("out udp intruder 8002", Some("out")),
    ("out tcp intruder 4444", None),
];

/// A capture in the server, with tcpdump.
struct Tcpdump {
    process: Process,
    file: PathBuf,
}

impl Tcpdump {
    fn start(world: &World, name: &str, arguments: &[&str]) -> Self {
        let file = world.dir().join(name);
        let mut command = world.server.command("tcpdump");
        command.args(["-Z", "root", "-n", "-U", "--immediate-mode", "-w"]).arg(&file).args(arguments);
        let mut process = Process::spawn(&mut command).unwrap();
        process.wait_line(PASSES * 2, |line| line.contains("listening on")).unwrap();
        Self { process, file }
    }

    /// Ends it, once it has written what it has seen.
    fn end(self) -> PathBuf {
        let size = || fs::metadata(&self.file).unwrap().len();
        let mut before = 0;
        while before != size() {
            before = size();
            thread::sleep(NOTHING);
        }
        self.process.signal(Signal::SIGINT).unwrap();
        let said = self.process.finish(PASSES * 2).unwrap().text();
        assert!(said.contains("\n0 packets dropped by kernel"), "{said}");
        self.file
    }
}

fn tool(name: &str, arguments: &[&str]) {
    let ended = run(Command::new(name).args(arguments), PASSES * 4).unwrap();
    assert!(ended.good(), "{name} {}: {}", arguments.join(" "), ended.text());
}

fn replay(policy: &Path, capture: &Path, arguments: &[&str]) -> Ended {
    let mut command = Command::new(binary().unwrap());
    command.args(["replay", "--json"]).args(arguments).arg(policy).arg(capture);
    run(&mut command, PASSES * 4).unwrap()
}

/// Flows of TCP and UDP: both ends and what was said of them, with their packets.
fn flows(ended: &Ended) -> BTreeMap<String, u64> {
    let lines = ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| matches!(line["proto"].as_str(), Some("TCP" | "UDP")))
        .map(|line| {
            let fields =
                ["direction", "proto", "src_ip", "src_port", "dest_ip", "dest_port", "verdict", "rule", "reason"];
            (fields.map(|field| line[field].to_string()).join(" "), line["packets"].as_u64().unwrap())
        })
        .collect()
}

#[test]
fn every_tools_capture_gives_the_same_flows() {
    let Some(world) = new_world("netns_replay every_tools_capture") else { return };
    let asked: Vec<Flow> = FLOWS.iter().flat_map(|(text, _)| [false, true].map(|ipv6| Flow::new(text, ipv6))).collect();
    let _servers = serve(&world, &asked);
    let captures = [
        Tcpdump::start(&world, "ethernet.pcap", &["-i", "eth0", "-s", "4096"]),
        Tcpdump::start(&world, "cooked.pcap", &["-i", "any", "-y", "LINUX_SLL", "-s", "4096"]),
        Tcpdump::start(&world, "cooked2.pcap", &["-i", "any", "-y", "LINUX_SLL2", "-s", "4096"]),
        // Of each packet as much as its headers: lengths are then those of the wire, not of what was kept.
        Tcpdump::start(&world, "short.pcap", &["-i", "eth0", "-s", "96"]),
    ];
    for flow in &asked {
        assert!(flow.passes(&world, true), "{flow}");
    }
    let [ethernet, cooked, cooked2, short] = captures.map(Tcpdump::end);

    let policy = world.dir().join("policy.yaml");
    guard_tests::servers::private_file(&policy, POLICY).unwrap();
    let local: Vec<String> = [false, true]
        .into_iter()
        .flat_map(|ipv6| ["--local".to_owned(), world.server.address(ipv6).to_string()])
        .collect();
    let local: Vec<&str> = local.iter().map(String::as_str).collect();
    let ended = replay(&policy, &ethernet, &local);
    assert!(ended.good(), "{}", ended.text());
    let expected = flows(&ended);
    // A flow that is denied bars nothing the other way: the answers to denied datagrams are two flows of their own.
    assert_eq!(expected.len(), asked.len() + 2, "{expected:#?}");
    // With a filter, of the same flows those that it takes.
    let ended = replay(&policy, &ethernet, &[&local[..], &["--filter", "udp port 8002"]].concat());
    let of_port: BTreeMap<_, _> = expected.clone().into_iter().filter(|(line, _)| line.contains("8002")).collect();
    assert!(of_port.len() == 2 && flows(&ended) == of_port, "{}", ended.text());
    let wrong = replay(&policy, &ethernet, &[&local[..], &["--filter", "udp prt 8002"]].concat());
    assert!(wrong.code() == Some(2) && wrong.stderr.contains("not a capture filter"), "{}", wrong.text());
    for (flow, (_, rule)) in asked.iter().zip(FLOWS.iter().flat_map(|row| [row, row])) {
        let of_it = |line: &&String| {
            line.starts_with(if flow.inbound { "\"inbound" } else { "\"outbound" })
                && line.contains(&format!(" {} ", flow.port))
                && line.contains(&format!("\"{}\"", flow.remote_address(&world)))
        };
        let line = expected.keys().find(of_it).unwrap_or_else(|| panic!("{flow}: {expected:#?}"));
        let wanted = match rule {
            Some(rule) => format!("\"allow\" \"{rule}\" \"rule_allow\""),
            None => "\"deny\" null \"not_listed\"".to_owned(),
        };
        assert!(line.ends_with(&wanted), "{flow}: {line}");
    }

    let at = |name: &str| world.dir().join(name);
    let text = |path: &Path| path.display().to_string();
    let (ip, loopback, half) = (at("raw.pcap"), at("loopback.pcap"), at("half.pcap"));
    // Without its 14 bytes an Ethernet frame is raw IP; with 4 bytes before it, what a BSD loopback has.
    tool("editcap", &["-F", "pcap", "-C", "14", "-L", "-T", "rawip", &text(&ethernet), &text(&ip)]);
    tool("editcap", &["-F", "pcap", "-C", "10", "-L", "-T", "null", &text(&ethernet), &text(&loopback)]);
    let mut all = vec![
        (ethernet.clone(), vec![]),
        (cooked.clone(), vec![]),
        (cooked2.clone(), vec![]),
        (short, vec![]),
        (ip, local.clone()),
        (loopback, local.clone()),
        (cooked.clone(), local.clone()),
    ];
    for (capture, arguments) in all.clone() {
        let ng = at(&format!("{}-{}.pcapng", capture.file_stem().unwrap().display(), arguments.len()));
        tool("editcap", &["-F", "pcapng", &text(&capture), &text(&ng)]);
        assert_eq!(fs::read(&ng).unwrap()[..4], [0x0a, 0x0d, 0x0d, 0x0a], "a pcapng's first block");
        all.push((ng, arguments));
    }
    // Cut in two and put together again, in the order of time: two interfaces in one file.
    let count = ended_packets(&ended) / 2;
    tool("editcap", &["-F", "pcapng", "-r", &text(&ethernet), &text(&half), &format!("1-{count}")]);
    let (rest, merged) = (at("rest.pcapng"), at("merged.pcapng"));
    tool("editcap", &["-F", "pcapng", &text(&ethernet), &text(&rest), &format!("1-{count}")]);
    tool("mergecap", &["-I", "none", "-F", "pcapng", "-w", &text(&merged), &text(&rest), &text(&half)]);
    all.push((merged, vec![]));

    for (capture, arguments) in all {
        let ended = replay(&policy, &capture, &arguments);
        assert!(ended.good(), "{}: {}", capture.display(), ended.text());
        assert_eq!(flows(&ended), expected, "{} {arguments:?}\n{}", capture.display(), ended.text());
    }

    // libpcap reads one link type a file: what is of another ends the reading, is not passed over, and is not misread.
    let mixed = at("mixed.pcapng");
    tool("mergecap", &["-a", "-F", "pcapng", "-w", &text(&mixed), &text(&ethernet), &text(&cooked)]);
    let ended = replay(&policy, &mixed, &[]);
    assert_eq!(ended.code(), Some(3), "{}", ended.text());
    let totals: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    assert!(totals["broken"].as_str().is_some_and(|why| why.contains("interface")), "{totals:#}");
    let seen = flows(&ended);
    assert!(seen.iter().all(|(flow, count)| expected.get(flow) >= Some(count)), "{seen:#?}");
}

fn ended_packets(ended: &Ended) -> u64 {
    let totals: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    totals["packets"].as_u64().unwrap()
}
