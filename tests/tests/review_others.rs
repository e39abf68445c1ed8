//! `guard review`: what others recorded, in each of their forms, gives the same findings as what guard records itself.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use guard::review::{group::Remote, inputs, observed::Observed, recorded::Recorded};
use guard_tests::{
    day::{DAY_BEGINS, Talk},
    guard::binary,
    random::Random,
};
use serde_json::{Value, json};

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
const OURS: &str = "192.0.2.10";

/// One flow, as whoever began it sees it.
struct Line {
    at: i64,
    from: (String, u16),
    to: (String, u16),
    protocol: u8,
    /// Packets and bytes of the asked end; none: nobody answered.
    back: Option<(u64, u64)>,
    bytes: u64,
}

fn out(at: i64, to: &str, port: u16, protocol: u8, bytes: u64) -> Line {
    let from = (OURS.to_owned(), 40_000 + (at / SECOND % 20_000) as u16);
    Line { at, from, to: (to.to_owned(), port), protocol, back: Some((7, 4380)), bytes }
}

fn into(at: i64, from: &str, port: u16) -> Line {
    let to = (OURS.to_owned(), port);
    Line {
        at,
        from: (from.to_owned(), 33_000 + (at / SECOND % 20_000) as u16),
        to,
        protocol: 6,
        back: Some((7, 4380)),
        bytes: 920,
    }
}

/// Three weeks of DNS and a public web server under scans; on the last day somebody calls home, uploads, and opens a port.
fn lines() -> Vec<Line> {
    let mut random = Random(11);
    let mut lines = Vec::new();
    let begins = DAY_BEGINS - 20 * DAY;
    for day in 0..21 {
        let mut any = || begins + day * DAY + random.below(86_400) as i64 * SECOND;
        let times: Vec<i64> = (0..130).map(|_| any()).collect();
        for (number, at) in times.into_iter().enumerate() {
            let [_, b, c, d] = (random.next() as u32).to_be_bytes();
            lines.push(match number {
                0..20 => out(at, "192.0.2.53", 53, 17, 120),
                20..50 => into(at, &format!("198.{}.{c}.{d}", 18 + (b & 1)), 443),
                _ => Line {
                    back: (number % 2 == 0).then_some((1, 40)),
                    bytes: 60,
                    ..into(at, &format!("198.51.{c}.{d}"), [22, 23, 445, 3389][number % 4])
                },
            });
        }
    }
    for beat in 0..9 {
        lines.push(Line {
            back: None,
            bytes: 60,
            ..out(DAY_BEGINS + 10_800 * SECOND + beat * 300 * SECOND, "203.0.113.9", 4444, 6, 60)
        });
    }
    lines.push(out(DAY_BEGINS + 14_400 * SECOND, "203.0.113.88", 443, 6, 18_000_000));
    lines.push(into(DAY_BEGINS + 18_000 * SECOND, "198.51.100.77", 9001));
    lines.sort_by_key(|line| line.at);
    lines
}

fn seconds(at: i64) -> String {
    format!("{}.{:06}", at / SECOND, at % SECOND)
}

fn protocol(line: &Line) -> &'static str {
    if line.protocol == 6 { "tcp" } else { "udp" }
}

fn zeek(lines: &[Line]) -> String {
    let mut text =
        "#separator \\x09\n#unset_field\t-\n#path\tconn\n#fields\tts\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\t\
         proto\tconn_state\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\n"
            .to_owned();
    for line in lines {
        let (packets, bytes) = line.back.unwrap_or_default();
        let state = match line.back {
            None => "S0",
            Some((1, 40)) => "REJ",
            Some(_) => "SF",
        };
        let row: [&str; 11] = [
            &seconds(line.at),
            &line.from.0,
            &line.from.1.to_string(),
            &line.to.0,
            &line.to.1.to_string(),
            protocol(line),
            state,
            "8",
            &line.bytes.to_string(),
            &packets.to_string(),
            &bytes.to_string(),
        ];
        text.push_str(&row.join("\t"));
        text.push('\n');
    }
    text
}

fn zeek_json(lines: &[Line]) -> String {
    let one = |line: &Line| {
        let (packets, bytes) = line.back.unwrap_or_default();
        let state = if line.back == Some((1, 40)) { "REJ" } else { "SF" };
        json!({"ts": line.at as f64 / 1e6, "id.orig_h": line.from.0, "id.orig_p": line.from.1, "id.resp_h": line.to.0,
               "id.resp_p": line.to.1, "proto": protocol(line), "conn_state": if packets == 0 { "S0" } else { state },
               "orig_pkts": 8, "orig_ip_bytes": line.bytes, "resp_pkts": packets, "resp_ip_bytes": bytes})
        .to_string()
    };
    lines.iter().map(|line| one(line) + "\n").collect()
}

fn eve(lines: &[Line]) -> String {
    let time = |at: i64| guard::record::clock::timestamp(i128::from(at) * 1000);
    let one = |line: &Line| {
        let (packets, bytes) = line.back.unwrap_or_default();
        json!({"timestamp": time(line.at), "flow_id": line.at, "event_type": "flow", "src_ip": line.from.0,
               "src_port": line.from.1, "dest_ip": line.to.0, "dest_port": line.to.1,
               "proto": protocol(line).to_uppercase(),
               "flow": {"pkts_toserver": 8, "pkts_toclient": packets, "bytes_toserver": line.bytes,
                        "bytes_toclient": bytes, "start": time(line.at), "end": time(line.at), "state": "closed"},
               "tcp": {"tcp_flags_tc": if line.back == Some((1, 40)) { "14" } else { "1b" }}})
        .to_string()
    };
    lines.iter().map(|line| one(line) + "\n").collect()
}

fn aws(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        let at = line.at / SECOND;
        let mut one = |from: &(String, u16), to: &(String, u16), packets: u64, bytes: u64| {
            text.push_str(&format!(
                "2 123456789010 eni-1 {} {} {} {} {} {packets} {bytes} {at} {} ACCEPT OK\n",
                from.0,
                to.0,
                from.1,
                to.1,
                line.protocol,
                at + 60
            ));
        };
        one(&line.from, &line.to, 8, line.bytes);
        if let Some((packets, bytes)) = line.back {
            one(&line.to, &line.from, packets, bytes);
        }
    }
    text
}

fn review(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(binary().unwrap()).arg("review").args(arguments).env("NO_COLOR", "1").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn json_of(arguments: &[&str]) -> (i32, Value) {
    let (code, out, error) = review(&[arguments, &["--json"]].concat());
    (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}")))
}

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path
}

/// `(kind, flow)` of each finding, but for those that were always there.
fn news(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut news: Vec<(String, String)> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["kind"] != "learned")
        .map(|finding| (text(&finding["kind"]), text(&finding["flow"])))
        .collect();
    news.sort();
    news
}

#[test]
fn every_form_gives_the_same_findings() {
    let home = tempfile::tempdir().unwrap();
    let lines = lines();
    let wanted = [
        ("new_service", "in tcp/9001 from 198.51.100.77"),
        ("outbound_first_seen", "out tcp/443 to 203.0.113.88"),
        ("outbound_first_seen", "out tcp/4444 to 203.0.113.9"),
    ]
    .map(|(kind, flow)| (kind.to_owned(), flow.to_owned()));
    // Named to mislead: the content says what it is.
    let texts =
        [("a.pcap", zeek(&lines)), ("b.txt", zeek_json(&lines)), ("conn.log", eve(&lines)), ("eve.json", aws(&lines))];
    for (name, text) in texts {
        let path = write(home.path(), name, &text);
        let (code, report) = json_of(&["--local", OURS, "--from", path.to_str().unwrap()]);
        assert_eq!(code, 1);
        assert_eq!(news(&report), wanted, "{name}: {report:#}");
        // The scans are one line, the services that always were are listed once.
        let background = report["background"].as_array().unwrap();
        assert_eq!(background.len(), 1, "{name}: {background:#?}");
        assert_eq!((&background[0]["flows"], &background[0]["ports"]), (&json!(21 * 80), &json!(4)), "{name}");
        assert_eq!(report["findings"].as_array().unwrap().len(), 5, "{name}: {report:#}");
        let beat = report["findings"].as_array().unwrap().iter().find(|one| one["flow"] == wanted[2].1).unwrap();
        assert_eq!(
            (&beat["flows"]["all"], beat["every_seconds"].as_f64().map(f64::round)),
            (&json!(9), Some(300.0)),
            "{name}"
        );
    }
}

#[test]
fn a_policy_and_a_time_say_what_is_reported() {
    let home = tempfile::tempdir().unwrap();
    let log = write(home.path(), "conn.log", &zeek(&lines()));
    let policy = write(
        home.path(),
        "policy.yaml",
        "version: 1\nname: t\nmode: enforce\ngroups: { resolvers: [192.0.2.53] }\ninbound:\n  - { name: web, from: any, services: https }\n\
         outbound:\n  - { name: resolvers, to: resolvers, services: dns }\n",
    );
    let from = ["--from", log.to_str().unwrap(), "--policy", policy.to_str().unwrap()];
    let (code, report) = json_of(&from);
    assert_eq!(code, 1);
    let wanted = [
        ("inbound_denied", "in tcp/9001 from 198.51.100.77"),
        ("outbound_denied", "out tcp/443 to 203.0.113.88"),
        ("outbound_denied", "out tcp/4444 to 203.0.113.9"),
    ];
    let found = news(&report);
    // Whoever asks for a port that nobody lists is denied: known here only if something talks with it.
    assert_eq!(
        found[found.len() - 2..],
        wanted[1..].iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>()[..]
    );
    let denied = report["findings"].as_array().unwrap().iter().find(|one| one["flow"] == wanted[2].1).unwrap();
    assert_eq!((&denied["verdict"], &denied["reason"]), (&json!("deny"), &json!("not_listed")));
    let dns = report["findings"].as_array().unwrap().iter().find(|one| one["rule"] == "resolvers").unwrap();
    assert_eq!((&dns["remote_group"], &dns["kind"]), (&json!("group resolvers"), &json!("learned")));

    // With a time, nothing is learned: what was before is usual.
    let (_, report) = json_of(&["--from", log.to_str().unwrap(), "--since", "2026-01-26"]);
    assert_eq!(report["findings"].as_array().unwrap().len(), 3, "{report:#}");
    // And of a quiet day there is nothing to review.
    let quiet = lines().into_iter().filter(|line| line.at < DAY_BEGINS).collect::<Vec<_>>();
    let quiet = write(home.path(), "quiet.log", &zeek(&quiet));
    let (code, out, _) = review(&["--from", quiet.to_str().unwrap(), "--since", "2026-01-25"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.starts_with("nothing to review since 2026-01-25 00:00Z"), "{out}");
}

#[test]
fn what_is_bad_is_counted_and_named_and_costs_itself_only() {
    let home = tempfile::tempdir().unwrap();
    let text = zeek(&lines()) + "no line of this log\n\u{1b}[2J\tx\n";
    let log = write(home.path(), "conn.log", &text);
    let number = text.lines().count() - 1;
    let (code, out, error) = review(&["--from", log.to_str().unwrap()]);
    assert_eq!(code, 1, "{error}");
    assert!(out.contains("2 lines cannot be read"), "{out}");
    let whole = out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(whole.contains(&format!("the first is line {number}: id.orig_h is not an address")), "{out}");
    assert!(!out.contains('\u{1b}') && out.lines().all(|line| line.chars().count() <= 80), "{out}");

    let other = write(home.path(), "other", "hello\n");
    let (code, _, error) = review(&["--from", other.to_str().unwrap()]);
    assert_eq!(code, 3);
    assert!(error.contains("neither a capture"), "{error}");
    assert_eq!(review(&["--from", "/nowhere/at.all"]).0, 3);
    assert_eq!(review(&[]).0, 2);
    let bad = write(home.path(), "bad.yaml", "version: 1\nname: [\n");
    let (code, _, error) = review(&["--from", log.to_str().unwrap(), "--policy", bad.to_str().unwrap()]);
    assert_eq!(code, 1, "{error}");
}

#[test]
fn compressed_piped_and_in_every_form_of_a_report() {
    let home = tempfile::tempdir().unwrap();
    let text = zeek(&lines());
    let log = write(home.path(), "conn.log", &text);
    let plain = json_of(&["--from", log.to_str().unwrap()]).1;
    let zipped = home.path().join("conn.log.gz");
    let gzip = Command::new("gzip").arg("-c").arg(&log).output().unwrap();
    fs::write(&zipped, gzip.stdout).unwrap();
    let unzipped = json_of(&["--from", zipped.to_str().unwrap()]).1;
    assert_eq!(unzipped["findings"], plain["findings"]);
    // Cut: what came before is reported, and that it is cut is said.
    let half = fs::read(&zipped).unwrap();
    fs::write(&zipped, &half[..half.len() / 2]).unwrap();
    let (code, cut) = json_of(&["--from", zipped.to_str().unwrap()]);
    assert_eq!(code, 3, "{cut:#}");
    assert!(cut["read"][0]["broken"].is_string() && cut["read"][0]["flows"].as_u64() > Some(100), "{cut:#}");

    let mut piped = Command::new(binary().unwrap())
        .args(["review", "--from", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let piped: Value = serde_json::from_slice(&piped.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(piped["findings"], plain["findings"]);

    let (code, markdown, _) = review(&["--from", log.to_str().unwrap(), "--markdown"]);
    assert_eq!(code, 1);
    assert!(markdown.contains("## New inbound services (1)") && markdown.contains("- read: `"), "{markdown}");
    let page = home.path().join("report.html");
    let (code, _, error) = review(&["--from", log.to_str().unwrap(), "--html", page.to_str().unwrap()]);
    assert_eq!(code, 1, "{error}");
    assert!(fs::read_to_string(&page).unwrap().contains("203.0.113.88"));

    let id = plain["findings"][0]["id"].as_str().unwrap();
    let (code, shown) = json_of(&["--from", log.to_str().unwrap(), "--show", &id[..6]]);
    assert_eq!((code, &shown["id"]), (0, &json!(id)));
    assert_eq!(
        shown["flows"].as_array().unwrap().len() as u64,
        shown["finding"]["flows"]["all"].as_u64().unwrap().min(50)
    );
    assert_eq!(review(&["--from", log.to_str().unwrap(), "--show", "zzzz"]).0, 3);
}

/// A flow of another group each: what is kept stays bounded, and all are counted.
#[test]
fn many_groups_are_kept_as_fewer() {
    let mut recorded = Recorded::new(None, None);
    const FLOWS: u64 = 400_000;
    for number in 0..FLOWS {
        let [a, b, c, d] = (number as u32).wrapping_mul(2_654_435_761).to_be_bytes();
        let talk = if number % 4 == 0 {
            Talk { listening: None, ..Talk::inbound(6, "203.0.113.1", 1 + (number % 60_000) as u16, None).denied() }
        } else {
            Talk { who: None, ..Talk::out(6, "203.0.113.1", 1 + (number % 60_000) as u16, &std::sync::Arc::default()) }
        };
        let talk = talk.to([a | 1, b, c, d].into());
        let at = DAY_BEGINS + number as i64 * SECOND / 100;
        let flow = Observed { remote_group: Remote::network_of(talk.remote), ..talk.at(number, at) };
        recorded.see(flow);
    }
    let report = recorded.finish(Vec::new());
    let found: u64 = report.findings.iter().map(|finding| finding.facts.flows).sum();
    let tried: u64 = report.background.iter().map(|line| line.flows).sum();
    assert_eq!((found + tried, report.findings.len() < 250_000), (FLOWS, true), "{found} {tried}");
    assert!(peak() < 700 << 20, "{} MB", peak() >> 20);
}

/// Bytes of memory that this process had at most.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn guards_own_stream_is_read_as_well() {
    let home = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for number in 0..3 {
        let time = guard::record::clock::timestamp(i128::from(DAY_BEGINS + number * SECOND) * 1000);
        text.push_str(&format!(
            "{{\"timestamp\":\"{time}\",\"flow_id\":{number},\"event_type\":\"drop\",\"src_ip\":\"{OURS}\",\"src_port\":40000,\
             \"dest_ip\":\"203.0.113.9\",\"dest_port\":4444,\"proto\":\"TCP\",\"host\":\"db1\",\"guard\":{{\"event\":\"begin\",\
             \"verdict\":\"deny\",\"dropped\":true,\"rule\":null,\"reason\":\"not_listed\",\"direction\":\"outbound\",\"generation\":1,\
             \"program\":\"/usr/bin/curl\",\"pid\":7,\"uid\":0}},\"flow\":{{\"pkts_toserver\":1}}}}\n"
        ));
    }
    let path = write(home.path(), "flows.jsonl", &text);
    let mut flows = 0;
    inputs::read(&path, inputs::Options::default(), &mut |_| flows += 1).unwrap();
    assert_eq!(flows, 3);
    let (code, report) = json_of(&["--from", path.to_str().unwrap()]);
    assert_eq!((code, &report["hosts"]), (1, &json!(["db1"])));
    let one = &report["findings"][0];
    assert_eq!(
        (&one["kind"], &one["program"], &one["flows"]["denied"]),
        (&json!("outbound_denied"), &json!("/usr/bin/curl"), &json!(3))
    );
}
