//! At least 200 real captures through the parser: no panic, and the 5-tuples that tshark has.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use guard::{
    record::flow::words,
    replay::{
        capture::Reader,
        link::{self, LinkType},
    },
};
use guard_common::{
    Reason,
    packet::{Packet, transport},
};
use guard_tests::{corpus, skip::skip};

const NEEDED: usize = 200;

#[test]
fn real_captures_have_tsharks_tuples() {
    let captures = match corpus::captures() {
        Ok(captures) => captures,
        Err(error) => return skip("corpus", &format!("{error:#}")),
    };
    if Command::new("tshark").arg("--version").output().is_err() {
        return skip("corpus", "tshark is not installed");
    }

    let mut files = 0;
    let mut merged: BTreeMap<u32, Vec<Record>> = BTreeMap::new();
    for path in &captures {
        let Ok(mut reader) = Reader::open(path, None) else { continue };
        files += 1;
        let kind = reader.link();
        let mut number = 0;
        while let Some(frame) = reader.next_frame() {
            number += 1;
            merged.entry(number_of(kind)).or_default().push(Record {
                file: path.clone(),
                number,
                kind,
                length: frame.length,
                data: frame.data.to_vec(),
            });
        }
    }
    assert!(files >= NEEDED, "{files} captures of link types that guard reads, of {}", captures.len());

    let mut tally = Tally::default();
    for (number, records) in &merged {
        let path = corpus::directory().join(format!("merged-{number}.pcap"));
        write(&path, *number, records).unwrap();
        let lines = tshark(&path);
        assert_eq!(lines.len(), records.len(), "tshark read another number of packets of link type {number}");
        for (record, line) in records.iter().zip(&lines) {
            tally.compare(record, line);
        }
    }
    println!("{files} captures: {tally:#?}");
    assert!(
        tally.differ.is_empty(),
        "{} differ: {:#?}",
        tally.differ.len(),
        &tally.differ[..tally.differ.len().min(20)]
    );
    let refused: usize = tally.refused.values().sum();
    assert!(refused * 20 < tally.equal, "{refused} packets are refused");
    assert!(tally.equal > 5000, "only {} packets were compared", tally.equal);
}

struct Record {
    file: PathBuf,
    number: u32,
    kind: LinkType,
    length: u32,
    data: Vec<u8>,
}

/// Raw and loopback links have several numbers; one of each is written.
const fn number_of(kind: LinkType) -> u32 {
    match kind {
        LinkType::Ethernet => 1,
        LinkType::Cooked => 113,
        LinkType::Cooked2 => 276,
        LinkType::Raw => 101,
        LinkType::Loopback => 0,
    }
}

fn write(path: &Path, link: u32, records: &[Record]) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&[0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 262_144, link].map(u32::to_le_bytes).concat())?;
    for record in records {
        let kept = record.data.len() as u32;
        file.write_all(&[0, 0, kept, record.length].map(u32::to_le_bytes).concat())?;
        file.write_all(&record.data)?;
    }
    file.flush()
}

/// Fields of one packet, by name; the outermost of each.
type Line = BTreeMap<&'static str, String>;

const FIELDS: [&str; 26] = [
    "frame.protocols",
    "ip.version",
    "ip.hdr_len",
    "ip.flags.rb",
    "tcp.flags",
    "udp.length",
    "ip.src",
    "ip.dst",
    "ip.proto",
    "ip.len",
    "ipv6.src",
    "ipv6.dst",
    "tcp.srcport",
    "tcp.dstport",
    "udp.srcport",
    "udp.dstport",
    "sctp.srcport",
    "sctp.dstport",
    "icmp.type",
    "icmp.code",
    "icmp.ident",
    "icmpv6.type",
    "icmpv6.code",
    "icmpv6.echo.identifier",
    "_ws.malformed",
    "_ws.short",
];

fn tshark(path: &Path) -> Vec<Line> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(path).args(["-n", "-T", "fields", "-E", "separator=|", "-E", "occurrence=f"]);
    for preference in
        ["ip.defragment:FALSE", "ipv6.defragment:FALSE", "ip.check_checksum:FALSE", "ip.tso_support:FALSE"]
    {
        command.args(["-o", preference]);
    }
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| FIELDS.iter().copied().zip(line.split('|').map(str::to_owned)).collect()).collect()
}

#[derive(Debug, Default)]
struct Tally {
    equal: usize,
    neither_is_ip: usize,
    /// Refused here, by reason; tshark shows what it can of anything.
    refused: BTreeMap<&'static str, usize>,
    /// IP further in than guard looks (PPPoE, MPLS, more tags): denied as what it is outside.
    deeper: usize,
    differ: Vec<String>,
}

impl Tally {
    fn compare(&mut self, record: &Record, line: &Line) {
        let mut packet = Packet::default();
        link::read(record.kind, &record.data, record.length, &mut packet);
        let outermost = outermost(&line["frame.protocols"]);
        let mut differ = |what: String| {
            self.differ.push(format!(
                "{} packet {}: {what}; tshark {} {}",
                record.file.file_name().unwrap_or_default().to_string_lossy(),
                record.number,
                line["frame.protocols"],
                line["ip.src"],
            ));
        };
        if let Some(reason) = packet.refused() {
            *self.refused.entry(reason.as_str()).or_default() += 1;
            if !may_refuse(reason, record, line) {
                differ(format!("refused as {}", reason.as_str()));
            }
            return;
        }
        match (packet.family, outermost) {
            (0, None) => self.neither_is_ip += 1,
            (0, Some(Outermost { direct: false, .. })) => self.deeper += 1,
            (family, Some(outermost)) if family == outermost.family => match tuple(&packet, line, &outermost) {
                Ok(()) => self.equal += 1,
                Err(what) => differ(what),
            },
            (family, _) => differ(format!("family {family}")),
        }
    }
}

struct Outermost {
    family: u8,
    /// Nothing but what guard looks through stands before it.
    direct: bool,
    /// The protocol after the network header and its extensions.
    upper: String,
}

fn outermost(protocols: &str) -> Option<Outermost> {
    let names: Vec<_> = protocols.split(':').collect();
    let at = names.iter().position(|name| matches!(*name, "ip" | "ipv6"))?;
    let known =
        |name: &str| matches!(name, "eth" | "ethertype" | "vlan" | "ieee8021ad" | "sll" | "raw" | "null" | "loop");
    let tags = names[..at].iter().filter(|name| matches!(**name, "vlan" | "ieee8021ad")).count();
    let upper = names[at + 1..].iter().find(|name| !name.starts_with("ipv6.") && **name != "ah");
    Some(Outermost {
        family: if names[at] == "ip" { 4 } else { 6 },
        direct: names[..at].iter().all(|name| known(name)) && tags <= 2,
        upper: upper.copied().unwrap_or_default().to_owned(),
    })
}

/// Whether tshark's view of it, too, gives cause for that reason. The source packages' captures of malformed packets give
/// much of it.
fn may_refuse(reason: Reason, record: &Record, line: &Line) -> bool {
    let broken = !line["_ws.malformed"].is_empty() || !line["_ws.short"].is_empty();
    let protocols = &line["frame.protocols"];
    let number = |field: &str| line[field].parse::<u32>().unwrap_or(0);
    let has_options = number("ip.hdr_len") > 20;
    match reason {
        // It was cut by the capture, or says that it is longer than its frame.
        Reason::Truncated => {
            let cut = (record.data.len() as u32) < record.length;
            broken || cut || number("ip.len") > record.length.saturating_sub(link_header(record.kind))
        }
        // Its reserved bit (RFC 791, 3.1) is 1.
        Reason::BadIpv4 => number("ip.version") != 4 || matches!(&*line["ip.flags.rb"], "1" | "True") || has_options,
        Reason::BadIpv6 => broken && line["ipv6.src"].is_empty(),
        Reason::BadTransport => {
            let short = line["udp.length"].parse().is_ok_and(|length: u32| length < 8);
            broken || short || impossible(&line["tcp.flags"])
        }
        Reason::EtherType => line["ip.src"].is_empty() && line["ipv6.src"].is_empty(),
        Reason::SourceRoute => {
            protocols.contains(":ipv6.routing") || has_options || broken && protocols.contains(":ipv6.hopopts")
        }
        Reason::ExtensionChain => protocols.contains(":ipv6."),
        _ => false,
    }
}

const fn link_header(kind: LinkType) -> u32 {
    match kind {
        LinkType::Ethernet => 14,
        LinkType::Cooked => 16,
        LinkType::Cooked2 => 20,
        LinkType::Raw => 0,
        LinkType::Loopback => 4,
    }
}

/// Flags that no TCP sends (RFC 9293, 3.10.7): none of SYN, ACK and RST, or SYN with an end.
fn impossible(flags: &str) -> bool {
    let Ok(flags) = u16::from_str_radix(flags.trim_start_matches("0x"), 16) else { return false };
    let (fin, syn, rst, ack) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0, flags & 16 != 0);
    !(syn || rst || ack) || syn && (fin || rst)
}

fn tuple(packet: &Packet, line: &Line, outermost: &Outermost) -> Result<(), String> {
    let (source, destination) = if packet.family == 4 {
        let v4 = |name: &str| line[name].parse::<std::net::Ipv4Addr>().map(u32::from).map_err(|_| name.to_owned());
        ([v4("ip.src")?, 0, 0, 0], [v4("ip.dst")?, 0, 0, 0])
    } else {
        let v6 = |name: &str| line[name].parse().map(words).map_err(|_| name.to_owned());
        (v6("ipv6.src")?, v6("ipv6.dst")?)
    };
    let used = if packet.family == 4 { 1 } else { 4 };
    if packet.source[..used] != source[..used] || packet.destination[..used] != destination[..used] {
        return Err("addresses".into());
    }
    if packet.family == 4 && line["ip.proto"] != packet.protocol.to_string() {
        return Err(format!("protocol {}, {} there", packet.protocol, line["ip.proto"]));
    }
    if packet.is(Packet::LATER) {
        return Ok(());
    }
    let name = match packet.protocol {
        transport::TCP => "tcp",
        transport::UDP => "udp",
        transport::SCTP => "sctp",
        transport::ICMP if packet.family == 4 => "icmp",
        transport::ICMPV6 if packet.family == 6 => "icmpv6",
        _ => return Ok(()),
    };
    if outermost.upper != name {
        return Err(format!("protocol {name}, {} there", outermost.upper));
    }
    let number = |field: &str| line.get(field).and_then(|text| parse(text));
    let (from, to) = if name == "icmp" || name == "icmpv6" {
        icmp(packet, line, name)
    } else {
        (number(&format!("{name}.srcport")), number(&format!("{name}.dstport")))
    };
    let ours = (Some(packet.source_port), Some(packet.destination_port));
    if (from, to) == ours { Ok(()) } else { Err(format!("ports {ours:?}, {:?} there", (from, to))) }
}

fn icmp(packet: &Packet, line: &Line, name: &str) -> (Option<u16>, Option<u16>) {
    let number = |field: &str| line.get(format!("{name}.{field}").as_str()).and_then(|text| parse(text));
    let (Some(kind), Some(code)) = (number("type"), number("code")) else { return (None, None) };
    let pairs: &[(u16, u16)] =
        if packet.family == 4 { &[(8, 0), (13, 14), (15, 16), (17, 18)] } else { &[(128, 129), (139, 140)] };
    let identifier = match kind {
        139 | 140 => Some(if kind == 139 { packet.source_port } else { packet.destination_port }),
        _ if packet.family == 4 => number("ident"),
        _ => number("echo.identifier"),
    };
    for (question, answer) in pairs {
        let service = Some(question << 8 | code);
        if kind == *question {
            return (identifier, service);
        }
        if kind == *answer {
            return (service, identifier);
        }
    }
    (Some(0), Some(kind << 8 | code))
}

fn parse(text: &str) -> Option<u16> {
    match text.strip_prefix("0x") {
        Some(hexadecimal) => u16::from_str_radix(hexadecimal, 16).ok(),
        None => text.parse().ok(),
    }
}
