use std::{fs::File, io::Write, path::PathBuf};

use guard_common::{Direction, Verdict};
use tempfile::TempDir;

use super::{capture::Reader, report, *};
use crate::policy;

const POLICY: &str = "version: 1
name: replayed
mode: enforce
inbound:
  - { name: ssh, from: 198.51.100.7, services: ssh }
outbound:
  - { name: resolver, to: 192.0.2.53, services: dns }
  - { name: soon over, to: 192.0.2.80, services: tcp/80, expires: 2020-01-01T00:00:10Z }
";

const US: [u8; 4] = [192, 0, 2, 1];
/// 2020-01-01T00:00:00Z.
const START: u32 = 1_577_836_800;

fn ip(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0];
    bytes.extend((20 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    bytes.extend(source);
    bytes.extend(destination);
    bytes.extend(payload);
    bytes
}

fn udp(source: [u8; 4], from: u16, destination: [u8; 4], to: u16) -> Vec<u8> {
    let ports = [from.to_be_bytes(), to.to_be_bytes(), [0, 8], [0, 0]].concat();
    ip(source, destination, 17, &ports)
}

fn tcp(source: [u8; 4], from: u16, destination: [u8; 4], to: u16, flags: u8) -> Vec<u8> {
    let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    ip(source, destination, 6, &header)
}

fn ethernet(outgoing: bool, packet: &[u8]) -> Vec<u8> {
    let (ours, theirs) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (destination, source) = if outgoing { (theirs, ours) } else { (ours, theirs) };
    [destination.as_slice(), &source, &[8, 0], packet].concat()
}

/// Frames with the second at which each was seen.
fn capture(link: u32, frames: &[(u32, Vec<u8>)]) -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("capture.pcap");
    let mut file = File::create(&path).unwrap();
    let header = [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65535, link];
    file.write_all(&header.map(u32::to_le_bytes).concat()).unwrap();
    for (second, frame) in frames {
        let length = frame.len() as u32;
        file.write_all(&[START + second, 0, length, length].map(u32::to_le_bytes).concat()).unwrap();
        file.write_all(frame).unwrap();
    }
    (directory, path)
}

fn replayed(path: &std::path::Path, local: &[&str]) -> (Vec<report::FlowLine>, report::Totals) {
    let policy = policy::load_str("policy.yaml", POLICY).unwrap().policy;
    let local: Vec<_> = local.iter().map(|net| net.parse().unwrap()).collect();
    let mut opened = Opened::new(Reader::open(path, None).unwrap(), &local);
    let compiled = compiled(&policy, opened.first).unwrap();
    let link = opened.reader().link();
    let mut replay = Replay::new(&compiled, link, opened.side.clone(), None, opened.first);
    opened.each(|frame, _| {
        replay.frame(frame);
    });
    let flows = replay.flows();
    let lines = flows.iter().map(|(key, flow)| report::flow_line(&policy, &replay, key, flow)).collect();
    let broken = opened.reader().broken().map(ToString::to_string);
    (lines, report::totals(&replay, &flows, broken))
}

fn conversation() -> Vec<(bool, Vec<u8>)> {
    let resolver = [192, 0, 2, 53];
    vec![
        (true, udp(US, 40000, resolver, 53)),
        (false, udp(resolver, 53, US, 40000)),
        (true, tcp(US, 40001, [203, 0, 113, 9], 4444, 2)),
        (false, tcp([198, 51, 100, 7], 50000, US, 22, 2)),
        (true, tcp(US, 22, [198, 51, 100, 7], 50000, 0x12)),
        (false, tcp([198, 51, 100, 7], 50000, US, 22, 0x10)),
    ]
}

fn check(lines: &[report::FlowLine], totals: &report::Totals) {
    let seen: Vec<_> = lines
        .iter()
        .map(|line| (line.direction, line.verdict, line.rule.as_deref(), line.reason, line.packets))
        .collect();
    assert_eq!(
        seen,
        [
            ("outbound", "allow", Some("resolver"), "rule_allow", 2),
            ("outbound", "deny", None, "not_listed", 1),
            ("inbound", "allow", Some("ssh"), "rule_allow", 3),
        ]
    );
    assert_eq!((totals.packets, totals.flows, totals.denied.flows, totals.allowed.packets), (6, 3, 1, 5));
}

#[test]
fn every_link_type_gives_the_same() {
    let frames: Vec<_> = conversation().iter().map(|(out, packet)| (0, ethernet(*out, packet))).collect();
    let (_kept, path) = capture(1, &frames);
    let (lines, totals) = replayed(&path, &[]);
    assert_eq!(totals.local, "02:00:00:00:00:01, which sends as 192.0.2.1, the most common address");
    check(&lines, &totals);
    let line = &lines[1];
    assert_eq!((line.src_ip.as_str(), line.src_port), ("192.0.2.1", Some(40001)));
    assert_eq!((line.dest_ip.as_str(), line.dest_port, line.proto.as_str()), ("203.0.113.9", Some(4444), "TCP"));
    assert_eq!(line.timestamp, "2020-01-01T00:00:00.000000+0000");
    let (lines, totals) = replayed(&path, &["192.0.2.1/32"]);
    check(&lines, &totals);

    let raw: Vec<_> = conversation().iter().map(|(_, packet)| (0, packet.clone())).collect();
    let (_kept, path) = capture(101, &raw);
    let (lines, totals) = replayed(&path, &[]);
    assert_eq!(totals.local, "192.0.2.1, the most common address");
    check(&lines, &totals);

    let null: Vec<_> =
        conversation().iter().map(|(_, packet)| (0, [&[2, 0, 0, 0], packet.as_slice()].concat())).collect();
    let (_kept, path) = capture(0, &null);
    let (lines, totals) = replayed(&path, &[]);
    check(&lines, &totals);

    let cooked: Vec<_> = conversation()
        .iter()
        .map(|(out, packet)| {
            let header = [0, if *out { 4 } else { 0 }, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0];
            (0, [header.as_slice(), packet].concat())
        })
        .collect();
    let (_kept, path) = capture(113, &cooked);
    let (lines, totals) = replayed(&path, &[]);
    check(&lines, &totals);

    let cooked2: Vec<_> = conversation()
        .iter()
        .map(|(out, packet)| {
            let header = [8, 0, 0, 0, 0, 0, 0, 2, 0, 1, if *out { 4 } else { 0 }, 6, 2, 0, 0, 0, 0, 1, 0, 0];
            (0, [header.as_slice(), packet].concat())
        })
        .collect();
    let (_kept, path) = capture(276, &cooked2);
    let (lines, totals) = replayed(&path, &[]);
    check(&lines, &totals);
}

#[test]
fn a_rule_expires_by_the_captures_clock() {
    let web = [192, 0, 2, 80];
    let frames: Vec<_> = [(1, 40000), (9, 40001), (11, 40002)]
        .map(|(second, port)| (second, ethernet(true, &tcp(US, port, web, 80, 2))))
        .into();
    let (_kept, path) = capture(1, &frames);
    let (lines, _) = replayed(&path, &["192.0.2.1/32"]);
    assert_eq!(lines.iter().map(|line| line.verdict).collect::<Vec<_>>(), ["allow", "allow", "deny"]);
}

#[test]
fn a_key_that_is_used_again_is_another_flow() {
    let resolver = [192, 0, 2, 53];
    let frames: Vec<_> = [0, 10, 60].map(|second| (second, ethernet(true, &udp(US, 40000, resolver, 53)))).into();
    let (_kept, path) = capture(1, &frames);
    let (lines, totals) = replayed(&path, &["192.0.2.1/32"]);
    assert_eq!(lines.iter().map(|line| line.packets).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(totals.allowed.packets, 3);
}

#[test]
fn what_is_not_the_hosts_is_skipped_and_said() {
    let other = [192, 0, 2, 9];
    let frames = [
        (0, ethernet(true, &udp(other, 1, [203, 0, 113, 9], 2))),
        (0, ethernet(true, &udp(US, 1, other, 2))),
        (0, ethernet(true, &udp([127, 0, 0, 1], 1, [127, 0, 0, 1], 2))),
    ];
    let (_kept, path) = capture(1, &frames);
    let (lines, totals) = replayed(&path, &["192.0.2.1/32"]);
    assert_eq!((lines.len(), totals.skipped.foreign, totals.skipped.both_local), (1, 1, 0));
    assert_eq!(totals.reasons["loopback"].packets, 1);
    let (_, totals) = replayed(&path, &["192.0.2.0/24"]);
    assert_eq!((totals.skipped.foreign, totals.skipped.both_local), (0, 1));
}

#[test]
fn a_capture_that_breaks_off_says_so() {
    let (_kept, path) = capture(1, &[(0, ethernet(true, &udp(US, 1, [192, 0, 2, 53], 53)))]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend([0; 20]);
    bytes.truncate(bytes.len() - 8);
    std::fs::write(&path, bytes).unwrap();
    let (lines, totals) = replayed(&path, &[]);
    assert_eq!(lines.len(), 1);
    assert!(totals.broken.is_some());
}

/// One that breaks off between two packets, which libpcap takes for the end.
#[test]
fn a_packed_capture_is_read_and_one_that_breaks_off_says_so() {
    let question = |second: u32| (second, ethernet(true, &udp(US, 1000 + second as u16, [192, 0, 2, 53], 53)));
    let (kept, path) = capture(1, &(0..40).map(question).collect::<Vec<_>>());
    let plain = std::fs::read(&path).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gzip.write_all(&plain).unwrap();
    let packed = gzip.finish().unwrap();
    let path = kept.path().join("capture.pcap.gz");
    std::fs::write(&path, &packed).unwrap();
    let (lines, totals) = replayed(&path, &[]);
    assert_eq!((lines.len(), totals.broken), (40, None));
    // Everything but what says that it is whole.
    std::fs::write(&path, &packed[..packed.len() - 8]).unwrap();
    let (lines, totals) = replayed(&path, &[]);
    assert_eq!(lines.len(), 40);
    assert!(totals.broken.is_some());
}

#[test]
fn what_is_no_capture_says_what_to_do() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("capture");
    for (bytes, said) in [(&b""[..], "empty"), (b"not a capture, but long enough to be one", "--flows")] {
        std::fs::write(&path, bytes).unwrap();
        let error = Reader::open(&path, None).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn other_link_types_are_refused() {
    let (_kept, path) = capture(105, &[]);
    let error = Reader::open(&path, None).err().unwrap().to_string();
    assert!(error.contains("link type"), "{error}");
}

/// Not a benchmark: `cargo xtask bench` measures. It keeps a slow path from going unseen.
#[test]
fn a_known_flow_is_followed_without_the_policy() {
    let policy = policy::load_str("policy.yaml", POLICY).unwrap().policy;
    let compiled = compiled(&policy, 0).unwrap();
    let side = Side::Given(vec!["192.0.2.1/32".parse().unwrap()]);
    let mut replay = Replay::new(&compiled, link::LinkType::Raw, side, None, 0);
    let packet = udp(US, 40000, [192, 0, 2, 53], 53);
    let mut decided = 0;
    for number in 0..1000 {
        let judgement = replay.frame(&Frame { time: number, length: packet.len() as u32, data: &packet }).unwrap();
        assert_eq!((judgement.outcome.verdict(), judgement.direction), (Verdict::Allow, Direction::Outbound));
        decided += u32::from(judgement.decided);
    }
    assert_eq!(decided, 1);
}
