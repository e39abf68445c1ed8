use std::path::PathBuf;

use guard_common::Direction;
use proptest::prelude::*;

use super::{super::observed::Fate, *};

fn from(text: &[u8], local: &[&str]) -> (Vec<Observed>, Result<Summary, InputError>) {
    let local: Vec<IpNet> = local.iter().map(|net| net.parse().unwrap()).collect();
    let mut flows = Vec::new();
    let options = Options { local: &local, ..Options::default() };
    let summary = read_from(&PathBuf::from("log"), text, &AtomicU64::new(0), options, &mut |flow| flows.push(flow));
    (flows, summary)
}

/// `out tcp 203.0.113.9:443`, packets in and out, whether answered.
fn told(flows: &[Observed]) -> Vec<(String, [u64; 2], bool)> {
    flows.iter().map(|flow| (flow.key.spoken(flow.direction), flow.packets, flow.answered)).collect()
}

const ZEEK: &str = "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n\
#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tservice\tduration\torig_bytes\tresp_bytes\tconn_state\tlocal_orig\tlocal_resp\tmissed_bytes\thistory\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\ttunnel_parents\n\
1764000000.250000\tC1\t192.0.2.1\t40000\t203.0.113.80\t443\ttcp\tssl\t1.5\t500\t4000\tSF\tT\tF\t0\tShADadFf\t8\t920\t7\t4380\t-\n\
1764000001.000000\tC2\t198.51.100.7\t50000\t192.0.2.1\t22\ttcp\t-\t-\t-\t-\tREJ\tF\tT\t0\tSr\t1\t60\t1\t40\t-\n\
1764000002.000000\tC3\t198.51.100.9\t50001\t192.0.2.1\t23\ttcp\t-\t-\t-\t-\tS0\tF\tT\t0\tS\t1\t60\t0\t0\t-\n\
1764000003.000000\tC4\t192.0.2.1\t8\t192.0.2.254\t0\ticmp\t-\t0.1\t56\t56\tOTH\tT\tT\t0\t-\t1\t84\t1\t84\t-\n\
broken line\n\
#close\t2026-01-01-00-00-00\n";

#[test]
fn zeeks_own_form() {
    let (flows, summary) = from(ZEEK.as_bytes(), &[]);
    let summary = summary.unwrap();
    assert_eq!(
        told(&flows),
        [
            ("out tcp 203.0.113.80:443".to_owned(), [7, 8], true),
            ("in tcp 198.51.100.7 -> 22".to_owned(), [1, 1], true),
            ("in tcp 198.51.100.9 -> 23".to_owned(), [1, 0], false),
            ("out icmp 192.0.2.254 8/0".to_owned(), [1, 1], true),
        ]
    );
    assert_eq!((flows[0].first, flows[0].last), (1_764_000_000_250_000, 1_764_000_001_750_000));
    assert_eq!((flows[1].listening, &*flows[1].reason, flows[2].listening), (Some(false), "refused", None));
    assert_eq!((summary.format, summary.read, summary.flows, summary.bad), (Format::ZeekTsv, 5, 4, 1));
    assert_eq!(summary.first_bad, Some(Bad { line: 11, why: "id.orig_h is not an address".to_owned() }));
    assert_eq!(summary.local, "192.0.2.1, the most common address");
}

#[test]
fn zeek_as_json_gives_the_same() {
    let json = r#"{"ts":1764000000.25,"uid":"C1","id.orig_h":"192.0.2.1","id.orig_p":40000,"id.resp_h":"203.0.113.80","id.resp_p":443,"proto":"tcp","duration":1.5,"conn_state":"SF","history":"ShADadFf","orig_pkts":8,"orig_ip_bytes":920,"resp_pkts":7,"resp_ip_bytes":4380}
{"ts":"2025-11-24T16:00:01.000000Z","id.orig_h":"198.51.100.7","id.orig_p":50000,"id.resp_h":"192.0.2.1","id.resp_p":22,"proto":"tcp","conn_state":"REJ","orig_pkts":1,"orig_ip_bytes":60,"resp_pkts":1,"resp_ip_bytes":40}
{"ts":1764000003.0,"id.orig_h":"2001:db8::1","id.orig_p":128,"id.resp_h":"2001:db8::fe","id.resp_p":0,"proto":"icmp","orig_pkts":1,"resp_pkts":1}
{"ts":17640
"#;
    let (flows, summary) = from(json.as_bytes(), &["192.0.2.1/32", "2001:db8::1/128"]);
    let (tsv, _) = from(ZEEK.as_bytes(), &["192.0.2.1/32"]);
    assert_eq!(flows[..2], tsv[..2]);
    assert_eq!(
        flows[2].key.spoken(Direction::Outbound),
        "out icmpv6 2001:db8::fe 128/0".replace("2001:db8::fe", "[2001:db8::fe]")
    );
    let summary = summary.unwrap();
    assert_eq!((summary.format, summary.bad, summary.first_bad.map(|bad| bad.line)), (Format::ZeekJson, 1, Some(4)));
}

#[test]
fn another_log_of_zeeks_is_refused_by_name() {
    let dns = "#separator \\x09\n#path\tdns\n#fields\tts\tuid\n1764000000.25\tC1\n";
    assert!(matches!(from(dns.as_bytes(), &[]).1, Err(InputError::OtherZeekLog { found, .. }) if found == "dns"));
}

#[test]
fn suricatas_flow_events() {
    let eve = r#"{"timestamp":"2026-01-02T03:04:09.000000+0000","flow_id":1,"in_iface":"eth0","event_type":"flow","src_ip":"192.0.2.1","src_port":40000,"dest_ip":"203.0.113.80","dest_port":443,"proto":"TCP","app_proto":"tls","flow":{"pkts_toserver":8,"pkts_toclient":7,"bytes_toserver":920,"bytes_toclient":4380,"start":"2026-01-02T03:04:05.678901+0000","end":"2026-01-02T03:04:06.000000+0000","age":1,"state":"closed","reason":"timeout","alerted":false},"tcp":{"tcp_flags":"1b","tcp_flags_ts":"1b","tcp_flags_tc":"1b","syn":true,"state":"closed"}}
{"timestamp":"2026-01-02T03:04:09.000000+0000","flow_id":2,"event_type":"flow","src_ip":"192.0.2.1","src_port":40001,"dest_ip":"203.0.113.81","dest_port":443,"proto":"TCP","flow":{"pkts_toserver":1,"pkts_toclient":1,"bytes_toserver":74,"bytes_toclient":54,"start":"2026-01-02T03:04:05.678901+0000","end":"2026-01-02T03:04:06.000000+0000","state":"closed"},"tcp":{"tcp_flags_tc":"14"}}
{"timestamp":"2026-01-02T03:04:09.000000+0000","event_type":"dns","src_ip":"192.0.2.1","src_port":40001,"dest_ip":"203.0.113.81","dest_port":53,"proto":"UDP"}
{"timestamp":"2026-01-02T03:04:09.000000+0000","event_type":"stats"}
"#;
    let (flows, summary) = from(eve.as_bytes(), &[]);
    let summary = summary.unwrap();
    assert_eq!(
        told(&flows),
        [("out tcp 203.0.113.80:443".to_owned(), [7, 8], true), ("out tcp 203.0.113.81:443".to_owned(), [1, 1], true)]
    );
    assert_eq!((flows[0].first, &*flows[0].reason, &*flows[1].reason), (1_767_323_045_678_901, "closed", "refused"));
    assert_eq!((summary.format, summary.flows, summary.other, summary.bad), (Format::Eve, 2, 2, 0));
}

#[test]
fn guards_own_records_of_one_flow_are_one() {
    let eve = r#"{"timestamp":"2026-01-02T03:04:05.000000+0000","flow_id":7,"in_iface":"eth0","event_type":"flow","src_ip":"192.0.2.1","src_port":40000,"dest_ip":"203.0.113.80","dest_port":443,"proto":"TCP","community_id":"1:x","host":"db1","flow":{"pkts_toserver":1,"pkts_toclient":0,"bytes_toserver":60,"bytes_toclient":0,"start":"2026-01-02T03:04:05.000000+0000","age":0,"state":"new","alerted":false},"guard":{"event":"begin","verdict":"deny","dropped":false,"rule":null,"reason":"not_listed","direction":"outbound","generation":1,"program":"/usr/bin/curl","pid":12,"uid":0}}
{"timestamp":"2026-01-02T03:04:06.000000+0000","flow_id":7,"in_iface":"eth0","event_type":"flow","src_ip":"192.0.2.1","src_port":40000,"dest_ip":"203.0.113.80","dest_port":443,"proto":"TCP","community_id":"1:x","host":"db1","flow":{"pkts_toserver":8,"pkts_toclient":7,"bytes_toserver":920,"bytes_toclient":4380,"start":"2026-01-02T03:04:05.000000+0000","end":"2026-01-02T03:04:06.000000+0000","age":1,"state":"closed","alerted":false},"guard":{"event":"end","verdict":"deny","dropped":false,"rule":null,"reason":"not_listed","direction":"outbound","generation":1,"end":"closed"}}
{"timestamp":"2026-01-02T03:04:07.000000+0000","flow_id":8,"event_type":"drop","src_ip":"198.51.100.9","src_port":40000,"dest_ip":"192.0.2.1","dest_port":23,"proto":"TCP","host":"db1","guard":{"event":"begin","verdict":"deny","dropped":true,"rule":null,"reason":"not_listed","direction":"inbound","generation":1},"packet":"RQ==","flow":{"pkts_toserver":1}}
"#;
    let (flows, summary) = from(eve.as_bytes(), &[]);
    assert_eq!(
        told(&flows),
        [
            ("out tcp 203.0.113.80:443".to_owned(), [7, 8], true),
            ("in tcp 198.51.100.9 -> 23".to_owned(), [1, 0], false)
        ]
    );
    assert_eq!(flows[0].who.as_ref().and_then(|who| who.program()), Some("/usr/bin/curl"));
    assert_eq!((flows[0].fate, flows[1].fate, flows[1].head.as_slice()), (Fate::WouldDeny, Fate::Denied, &[0x45][..]));
    assert_eq!(summary.unwrap().local, "as the records say");
}

#[test]
fn flow_logs_of_both_directions_are_one_flow() {
    let log = "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status\n\
        2 123456789010 eni-1 192.0.2.1 203.0.113.80 40000 443 6 8 920 1764000000 1764000060 ACCEPT OK\n\
        2 123456789010 eni-1 203.0.113.80 192.0.2.1 443 40000 6 7 4380 1764000000 1764000060 ACCEPT OK\n\
        2 123456789010 eni-1 192.0.2.1 203.0.113.80 40000 443 6 2 80 1764000060 1764000120 ACCEPT OK\n\
        2 123456789010 eni-1 198.51.100.9 192.0.2.1 50000 22 6 1 60 1764000061 1764000120 REJECT OK\n\
        2 123456789010 eni-1 203.0.113.81 192.0.2.1 443 40001 6 1 40 1764000061 1764000120 ACCEPT OK\n\
        2 123456789010 eni-1 - - - - - - - 1764000061 1764000120 - NODATA\n\
        2 123456789010 eni-1 192.0.2.1 nonsense 1 2 6 1 60 1764000061 1764000120 ACCEPT OK\n";
    let (flows, summary) = from(log.as_bytes(), &[]);
    let summary = summary.unwrap();
    assert_eq!(
        told(&flows),
        [
            ("out tcp 203.0.113.80:443".to_owned(), [7, 10], true),
            ("out tcp 203.0.113.81:443".to_owned(), [1, 0], true),
            ("in tcp 198.51.100.9 -> 22".to_owned(), [1, 0], false),
        ]
    );
    assert_eq!((flows[0].last, flows[2].fate), (1_764_000_120_000_000, Fate::Denied));
    assert_eq!((summary.bad, summary.other, summary.first_bad.map(|bad| bad.line)), (1, 1, Some(8)));
    // As CloudWatch exports them, without a header.
    let exported = log.lines().skip(1).map(|line| format!("2025-11-24T16:00:00.000Z {line}\n")).collect::<String>();
    assert_eq!(told(&from(exported.as_bytes(), &[]).0), told(&flows));
}

#[test]
fn what_is_none_of_these_is_refused_with_the_fix() {
    assert!(matches!(from(b"hello\n", &[]).1, Err(InputError::Unknown { .. })));
    assert!(matches!(from(&[0x28, 0xb5, 0x2f, 0xfd, 0], &[]).1, Err(InputError::Compressed { .. })));
    assert_eq!(from(b"", &[]).1.unwrap().flows, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Valid logs with bytes of them changed, cut and doubled: what is left of them may be anything.
    #[test]
    fn damaged_logs_do_no_harm(which in 0usize..3, changes in proptest::collection::vec((0usize..4000, any::<u8>(), 0u8..3), 0..40)) {
        let json = r#"{"timestamp":"2026-01-02T03:04:05.000000+0000","flow_id":7,"event_type":"flow","src_ip":"192.0.2.1","src_port":40000,"dest_ip":"203.0.113.80","dest_port":443,"proto":"TCP","flow":{"pkts_toserver":18446744073709551615,"bytes_toclient":18446744073709551615,"start":"2026-01-02T03:04:05.000000+0000"},"guard":{"event":"begin","verdict":"deny","dropped":true,"rule":null,"reason":"not_listed","direction":"outbound","generation":1,"who":{"found_by":"socket","pid":1}}}"#;
        let aws = "2 123456789010 eni-1 192.0.2.1 203.0.113.80 40000 443 6 18446744073709551615 920 1764000000 1764000060 ACCEPT OK\n".repeat(6);
        let mut bytes = [ZEEK.as_bytes(), &[json, "\n", json, "\n"].concat().into_bytes(), aws.as_bytes()][which].to_vec();
        for (at, value, how) in changes {
            let at = at % bytes.len().max(1);
            match how {
                0 if at < bytes.len() => bytes[at] = value,
                1 if at < bytes.len() => { bytes.remove(at); }
                _ => bytes.insert(at.min(bytes.len()), value),
            }
        }
        let (flows, summary) = from(&bytes, &[]);
        if let Ok(summary) = summary {
            prop_assert_eq!(summary.flows, flows.len() as u64);
            prop_assert!(summary.bad <= summary.read + 1);
        }
    }

    #[test]
    fn any_bytes_do_no_harm(start in 0usize..4, bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let starts: [&[u8]; 4] = [b"", b"#separator \\x09\n#fields\tts\tid.orig_h\n", b"{\"event_type\":", b"{\"id.orig_h\":"];
        let _ = from(&[starts[start], &bytes].concat(), &[]);
    }
}

/// Two TCP flows and a ping, as tcpdump writes them.
fn capture() -> Vec<u8> {
    let mut file = [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 101].map(u32::to_le_bytes).concat();
    let mut packet = |second: u32, source: [u8; 4], destination: [u8; 4], protocol: u8, data: &[u8]| {
        let length = (20 + data.len()) as u16;
        let mut ip = vec![0x45, 0];
        ip.extend(length.to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        ip.extend(source);
        ip.extend(destination);
        ip.extend(data);
        let record = [1_764_000_000 + second, 0, u32::from(length), u32::from(length)];
        file.extend(record.map(u32::to_le_bytes).concat());
        file.extend(ip);
    };
    let (ours, theirs) = ([192, 0, 2, 1], [203, 0, 113, 80]);
    let tcp = |source: u16, destination: u16, flags: u8| {
        let mut tcp = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        tcp
    };
    for second in 0..5u16 {
        packet(second.into(), ours, theirs, 6, &tcp(40_000 + second, 443, 2));
        packet(second.into(), theirs, ours, 6, &tcp(443, 40_000 + second, 0x12));
    }
    packet(9, theirs, ours, 1, &[8, 0, 0, 0, 0, 1, 0, 1]);
    file
}

fn of_file(bytes: &[u8]) -> (usize, Result<Summary, InputError>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let mut flows = 0;
    let summary = read(file.path(), Options::default(), &mut |_| flows += 1);
    (flows, summary)
}

fn zipped(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn captures_are_read_plain_and_zipped() {
    for bytes in [capture(), zipped(&capture())] {
        let (flows, summary) = of_file(&bytes);
        let summary = summary.unwrap();
        assert_eq!((flows, summary.flows, summary.read, summary.format), (6, 6, 11, Format::Capture));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Captures and gzip with bytes of them changed, and cut anywhere.
    #[test]
    fn damaged_captures_do_no_harm(
        zip in any::<bool>(),
        cut in any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..12),
    ) {
        let mut bytes = if zip { zipped(&capture()) } else { capture() };
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        let (flows, summary) = of_file(&bytes);
        if let Ok(summary) = summary {
            prop_assert_eq!(summary.flows, flows as u64);
        }
    }
}
