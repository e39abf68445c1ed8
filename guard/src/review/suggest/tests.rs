use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use guard_common::{Direction, Verdict};
use proptest::prelude::*;

use super::{
    super::{group::Remote, judged::Judge, observed::Fate},
    timers::NotFired,
    *,
};
use crate::{
    policy,
    record::{
        flow::Key,
        who::{FoundBy, Unusual, Who},
    },
};

fn flow(direction: Direction, protocol: u8, remote: IpAddr, port: u16, program: Option<&str>) -> Observed {
    let local: IpAddr = if remote.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" }.parse().unwrap();
    let (remote_port, local_port) = if direction == Direction::Inbound { (40000, port) } else { (port, 40000) };
    let key = Key::new(protocol, remote, remote_port, local, local_port, 0).unwrap();
    Observed {
        flow_id: 1,
        host: "db1".into(),
        machine: "".into(),
        first: 1_767_323_045_000_000,
        last: 1_767_323_046_000_000,
        direction,
        key,
        interface: Some("eth0".into()),
        fate: Fate::WouldDeny,
        rule: None,
        reason: "not_listed".into(),
        generation: 1,
        packets: [5, 6],
        bytes: [700, 800],
        answered: true,
        adopted: false,
        listening: None,
        who: program.map(|exe| {
            Arc::new(Who { found_by: FoundBy::Socket, pid: 1, exe: Some(exe.to_owned()), ..Who::default() })
        }),
        names: Vec::new(),
        remote_group: Remote::network_of(remote),
        head: Vec::new(),
    }
}

fn of(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn suggested(flows: &[Observed], most: usize, widest: &str) -> (Suggestion, String) {
    let mut learner = Learner::new(None);
    flows.iter().for_each(|flow| learner.see(flow));
    let widest = if widest.is_empty() { Widest::default() } else { widest.parse().unwrap() };
    let suggestion = suggest(learner, most, widest, "suggested", &BTreeSet::new(), NotFired::default());
    let text = suggestion.policy("suggested");
    suggestion.check(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    (suggestion, text)
}

use Direction::{Inbound, Outbound};

#[test]
fn rules_have_their_evidence() {
    let mut named = flow(Outbound, 6, of("203.0.113.80"), 443, Some("/usr/bin/curl"));
    named.names = vec!["cdn.example".into()];
    let mut other = flow(Outbound, 6, of("203.0.113.90"), 443, Some("/usr/bin/curl"));
    other.names = vec!["cdn.example".into()];
    let mut flows = vec![named, other];
    flows.push(flow(Outbound, 17, of("192.0.2.53"), 53, Some("/usr/sbin/dnsmasq")));
    flows.extend((0..60).map(|n| flow(Inbound, 6, IpAddr::from([198, 51, 100, n]), 80, Some("/usr/sbin/nginx"))));
    flows.push(flow(Inbound, 6, of("2001:db8:17::7"), 22, Some("/usr/sbin/sshd")));
    let (suggestion, text) = suggested(&flows, 30, "");
    assert!(
        text.contains("  - name: \"http to nginx\"\n    from: any   # public: decide\n    services: http\n"),
        "{text}"
    );
    assert!(text.contains("will rot: cdn.example had more than one address"), "{text}");
    assert!(text.contains("to: [203.0.113.80, 203.0.113.90]\n    services: https"), "{text}");
    assert!(text.contains("from: [\"2001:db8:17::7\"]\n    services: ssh"), "{text}");
    assert!(
        text.contains("# 2 flows, 3.0 kB, 2026-01-02 03:04:05Z to 2026-01-02 03:04:06Z, by /usr/bin/curl"),
        "{text}"
    );
    assert_eq!(suggestion.rules.len(), 4);
    assert!(suggestion.left_out.is_empty());
}

#[test]
fn networks_are_summed_up_as_far_as_is_allowed() {
    let flows: Vec<Observed> =
        [8, 9, 10, 11, 77].map(|n| flow(Outbound, 6, IpAddr::from([203, 0, 113, n]), 443, None)).to_vec();
    let (exact, _) = suggested(&flows, 30, "");
    let nets =
        |suggestion: &Suggestion| suggestion.rules[0].remotes.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(nets(&exact), ["203.0.113.8/30", "203.0.113.77/32"]);
    let (wide, _) = suggested(&flows, 30, "/24");
    assert_eq!(nets(&wide), ["203.0.113.0/25"]);
    // IPv6 has a number of its own.
    let flows = [1, 2].map(|n| flow(Outbound, 6, of(&format!("2001:db8:17:{n}::9")), 443, None)).to_vec();
    assert_eq!(nets(&suggested(&flows, 30, "/24").0), ["2001:db8:17:1::9/128", "2001:db8:17:2::9/128"]);
    assert_eq!(nets(&suggested(&flows, 30, "/24,/56").0), ["2001:db8:17::/62"]);
}

#[test]
fn two_networks_side_by_side_are_not_summed_up_to_a_wider_one() {
    let flows: Vec<Observed> = (0..32).map(|n| flow(Outbound, 6, IpAddr::from([203, 0, 113, n]), 443, None)).collect();
    let nets =
        |widest| suggested(&flows, 30, widest).0.rules[0].remotes.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(nets("/28"), ["203.0.113.0/28", "203.0.113.16/28"]);
    assert_eq!(nets(""), ["203.0.113.0/27"], "seen whole");
}

#[test]
fn an_address_that_two_programs_use_is_one() {
    let named = |program: &str, port| {
        let mut flow = flow(Outbound, 6, of("203.0.113.80"), port, Some(program));
        flow.names = vec!["cdn.example".into()];
        flow
    };
    let flows = [named("/usr/bin/curl", 443), named("/usr/bin/wget", 443), named("/usr/bin/git", 443)];
    let (suggestion, text) = suggested(&flows, 1, "");
    assert_eq!((suggestion.rules.len(), suggestion.rules[0].addresses.len()), (1, 1), "{text}");
    assert!(!text.contains("will rot") && text.contains("asked as cdn.example"), "{text}");
    assert_eq!(suggestion.rules[0].evidence.flows, 3);
}

#[test]
fn rules_of_the_same_many_addresses_have_one_list() {
    let flows: Vec<Observed> = (0..200)
        .map(|n| {
            let program = if n < 100 { "/usr/bin/curl" } else { "/usr/bin/wget" };
            flow(Outbound, 6, IpAddr::from([203, 0, 113, (n % 100) * 2]), 443, Some(program))
        })
        .collect();
    let (suggestion, text) = suggested(&flows, 30, "");
    assert_eq!((suggestion.rules.len(), suggestion.lists.len()), (2, 1), "{text}");
    assert_eq!(text.matches("    to: https-by-curl\n").count(), 2, "{text}");
}

#[test]
fn what_is_not_learned_is_left_out_and_named() {
    let mut flagged = flow(Outbound, 6, of("203.0.113.9"), 4444, Some("/dev/shm/.x"));
    flagged.who = Some(Arc::new(Who {
        found_by: FoundBy::Socket,
        exe: Some("/dev/shm/.x".into()),
        unusual: vec![Unusual::DeletedExe],
        ..Who::default()
    }));
    let mut denied = flow(Outbound, 6, of("169.254.169.254"), 80, None);
    denied.reason = "rule_deny".into();
    let mut alone = flow(Outbound, 17, of("192.0.2.40"), 514, Some("/usr/sbin/rsyslogd"));
    alone.answered = false;
    let mut flows = vec![flagged, denied, alone];
    let scanner = of("198.51.100.99");
    for port in 1..40 {
        let mut probe = flow(Inbound, 6, scanner, port, None);
        probe.answered = port == 22;
        flows.push(probe);
    }
    let (suggestion, text) = suggested(&flows, 30, "");
    assert!(suggestion.rules.is_empty(), "{text}");
    let why: BTreeSet<Why> = suggestion.left_out.iter().map(|line| line.0).collect();
    assert_eq!(why, [Why::FlaggedProcess, Why::DenyRule, Why::Scan, Why::Unanswered].into());
    assert!(text.contains("#     out udp/514 192.0.2.40: 1 flow,"), "{text}");
    assert!(!text.contains("- name"), "no line to paste that would let them out");
}

#[test]
fn hostile_text_stays_in_its_comment() {
    let evil = "/tmp/x\n  - name: pwned\n    to: any\n    services: any\u{2028}- {to: any}\u{85}\r- {to: any}\x1b[2J\"";
    let mut one = flow(Outbound, 6, of("203.0.113.9"), 443, Some(evil));
    one.names = vec!["a\nb: c".into(), "x\r- y".into()];
    one.host = "db1\noutbound: [{to: any, services: any}]".into();
    let (suggestion, text) = suggested(&[one], 30, "");
    assert_eq!(suggestion.rules.len(), 1);
    let read = policy::load_str("suggested.yaml", &text).unwrap().policy;
    assert_eq!(read.rules.len(), 1);
    assert!(read.rules[0].remote.named);
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()) && !text.contains('\u{2028}'), "{text:?}");
}

#[test]
fn more_than_64_addresses_are_a_list_file() {
    let flows: Vec<Observed> =
        (0..100).map(|n| flow(Outbound, 6, IpAddr::from([203, 0, 113, n * 2]), 443, Some("/usr/bin/curl"))).collect();
    let (suggestion, text) = suggested(&flows, 30, "");
    assert!(text.contains("  https-by-curl: { file: \"suggested-https-by-curl.txt\" }   # 100 networks"), "{text}");
    assert!(text.contains("to: https-by-curl\n"), "{text}");
    assert_eq!(suggestion.lists["https-by-curl"].1.len(), 100);
}

const POLICY: &str = "# Ours. Do not touch.\nversion: 1\nmode: audit   # for now\n\ninbound: []   # nobody\n\noutbound:\n\
    # names\n- { name: resolver, to: 192.0.2.53, services: dns }   # the only one\n\n# The end.\ntests:\n\
    \x20 - { flow: \"out udp 192.0.2.53:53\", expect: allow }";

#[test]
fn a_diff_keeps_comments_and_layout_and_others_take_it() {
    let known = policy::load_str("policy.yaml", POLICY).unwrap().policy;
    let mut learner = Learner::new(Some(Judge::new(&known, 0).unwrap()));
    learner.see(&flow(Outbound, 17, of("192.0.2.53"), 53, None));
    for n in 0..70 {
        learner.see(&flow(Outbound, 6, IpAddr::from([203, 0, 113, n * 2]), 443, Some("/usr/bin/curl")));
    }
    learner.see(&flow(Inbound, 6, of("198.51.100.7"), 22, Some("/usr/sbin/sshd")));
    let suggestion =
        suggest(learner, 30, Widest::default(), "policy", &["resolver".to_owned()].into(), NotFired::elsewhere());
    assert_eq!((suggestion.allowed, suggestion.rules.len()), (1, 2));
    let (new, diff) = patch(POLICY, "policy.yaml", &suggestion).unwrap();
    suggestion.check(&new).unwrap();
    let kept: Vec<&str> = new.lines().filter(|line| POLICY.lines().any(|old| old == *line)).collect();
    let without: Vec<&str> = POLICY.lines().filter(|line| !line.starts_with("inbound")).collect();
    assert_eq!(kept, without, "every other line is as it was");
    for (tool, arguments) in [("git", &["apply", "change.diff"][..]), ("patch", &["-p1", "-i", "change.diff"])] {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("policy.yaml"), POLICY).unwrap();
        std::fs::write(home.path().join("change.diff"), &diff).unwrap();
        let Ok(output) = std::process::Command::new(tool).args(arguments).current_dir(home.path()).output() else {
            assert_ne!(tool, "git", "git is needed");
            continue;
        };
        assert!(output.status.success(), "{tool}: {}\n{diff}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(std::fs::read_to_string(home.path().join("policy.yaml")).unwrap(), new, "{tool}");
        policy::load(&home.path().join("policy.yaml")).unwrap_or_else(|found| panic!("{}", found.render(false)));
    }
}

#[test]
fn a_layout_that_cannot_be_added_to_is_named() {
    let mut learner = Learner::new(None);
    learner.see(&flow(Outbound, 6, of("203.0.113.80"), 443, None));
    let suggestion = suggest(learner, 30, Widest::default(), "p", &BTreeSet::new(), NotFired::default());
    let old = "version: 1\noutbound: [{ to: 192.0.2.1, services: ssh }]\ninbound: []\n";
    assert_eq!(patch(old, "p.yaml", &suggestion), Err(PatchError::Layout { key: "outbound", line: 2 }));
}

prop_compose! {
    fn any_flow()(
        inbound in any::<bool>(),
        (protocol, low) in prop_oneof![
            (Just(6u8), prop_oneof![Just(22u16), Just(443), any::<u16>()]),
            (Just(17u8), prop_oneof![Just(53u16), any::<u16>()]),
            (Just(1u8), any::<u16>()), (Just(58u8), any::<u16>()), (Just(132u8), any::<u16>()), (any::<u8>(), Just(0u16)),
        ],
        v6 in any::<bool>(),
        network in 0u8..4, host in any::<u8>(),
        program in prop_oneof![Just(None), Just(Some("/usr/bin/curl".to_owned())), ".{0,20}".prop_map(Some)],
        name in proptest::option::of(".{0,12}"),
        answered in prop::bool::weighted(0.8), adopted in any::<bool>(), unusual in prop::bool::weighted(0.1),
        fate in prop_oneof![Just(Fate::Allowed), Just(Fate::WouldDeny), Just(Fate::Denied), Just(Fate::Seen)],
        deny in prop::bool::weighted(0.1),
    ) -> Observed {
        let v6 = if protocol == 58 { true } else if protocol == 1 { false } else { v6 };
        let remote: IpAddr = if v6 {
            format!("2001:db8:{network}::{host:x}").parse().unwrap()
        } else {
            IpAddr::from([203, 0, network, host])
        };
        let direction = if inbound { Inbound } else { Outbound };
        let port = if guard_has_ports(protocol) || matches!(protocol, 1 | 58) { low } else { 0 };
        let mut flow = flow(direction, protocol, remote, port, None);
        flow.who = program.map(|exe| Arc::new(Who {
            found_by: FoundBy::Socket, exe: Some(exe), unusual: if unusual { vec![Unusual::Memfd] } else { vec![] }, ..Who::default()
        }));
        flow.names = name.into_iter().map(Arc::from).collect();
        (flow.answered, flow.adopted, flow.fate) = (answered, adopted, fate);
        if deny { flow.reason = "rule_deny".into(); }
        flow
    }
}

fn guard_has_ports(protocol: u8) -> bool {
    crate::record::flow::has_ports(protocol)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Every flow is allowed by the policy, or is in what was left out; and nothing else is allowed: each rule's services, in
    /// its direction, were seen with each of its remotes.
    #[test]
    fn every_answered_flow_is_covered_or_named(
        flows in proptest::collection::vec(any_flow(), 1..150),
        most in 1usize..40,
        wide in any::<bool>(),
    ) {
        let (suggestion, text) = suggested(&flows, most, if wide { "/28,/120" } else { "" });
        prop_assert!(suggestion.rules.len() <= most);
        let home = tempfile::tempdir().unwrap();
        for (file, nets) in suggestion.lists.values() {
            std::fs::write(home.path().join(file), write::list_text(nets)).unwrap();
        }
        let path = home.path().join("suggested.yaml");
        std::fs::write(&path, &text).unwrap();
        let loaded = policy::load(&path).map_err(|found| TestCaseError::fail(found.render(false)))?;
        let judge = Judge::new(&loaded.policy, 0).unwrap();
        let learned: BTreeSet<(Direction, u32, IpAddr)> = flows
            .iter()
            .filter(|flow| why(flow).is_none())
            .map(|flow| (flow.direction, word(flow), flow.remote()))
            .collect();
        let remotes = |direction: Direction, service: u32| -> BTreeSet<IpAddr> {
            learned.iter().filter(|seen| (seen.0, seen.1) == (direction, service)).map(|seen| seen.2).collect()
        };
        for flow in &flows {
            let allowed = judge.judge(flow).reason.verdict() == Verdict::Allow;
            let named = suggestion.left_out.iter().any(|(_, direction, service, remote, _)| {
                *direction == flow.direction && *service == word(flow) && (remote.is_unspecified() || *remote == flow.remote())
            });
            prop_assert!(allowed || named, "{} is neither allowed nor named:\n{text}", flow.key.spoken(flow.direction));
            if why(flow).is_none() && !named {
                prop_assert!(allowed);
            }
        }
        for rule in &suggestion.rules {
            prop_assert!(!rule.services.is_empty());
            for service in &rule.services {
                let seen = remotes(rule.direction, *service);
                if rule.is_public() {
                    prop_assert!(rule.direction == Inbound && seen.len() > rules::PUBLIC, "public: {} remotes\n{text}", seen.len());
                }
                for net in &rule.remotes {
                    let within = seen.iter().filter(|address| net.contains(*address)).count();
                    let least = if net.addr().is_ipv4() { 28 } else { 120 };
                    if wide {
                        prop_assert!(within > 0 && net.prefix_len() >= least, "{net} {service:x}\n{text}");
                    } else {
                        prop_assert_eq!(within, net.hosts().count(), "{} was not seen whole: {}", net, text);
                    }
                }
            }
        }
        // By the policy as it is read back, too: the same remotes the other way, and the port beside.
        for flow in flows.iter().filter(|flow| has_ports(flow.key.protocol()) && flow.key.protocol() != 132) {
            let (local, remote, service) = (flow.key.local(), flow.remote(), word(flow) as u16);
            for (direction, port) in [(flow.direction.opposite(), service), (flow.direction, service ^ 1)] {
                let (remote_port, local_port) = if direction == Inbound { (40000, port) } else { (port, 40000) };
                let key = Key::new(flow.key.protocol(), remote, remote_port, local, local_port, 0).unwrap();
                let other = Observed { direction, key, who: None, reason: "not_listed".into(), fate: Fate::Seen, answered: true, ..flow.clone() };
                let seen = remotes(direction, word(&other));
                let near = wide && seen.iter().any(|seen| sum(*seen) == sum(remote));
                let public = direction == Inbound && seen.len() > rules::PUBLIC;
                if why(&other).is_none() && !seen.contains(&remote) && !near && !public {
                    let verdict = judge.judge(&other).reason.verdict();
                    prop_assert!(verdict != Verdict::Allow, "{} is allowed:\n{text}", key.spoken(direction));
                }
            }
        }
    }

    /// However addresses lie, a network is no wider than was asked for, each address is in one, and none is in two; and where
    /// nothing was asked for, nothing is in it that was not seen.
    #[test]
    fn no_network_is_wider_than_was_asked_for(
        hosts in proptest::collection::btree_set(0u16..600, 1..300),
        v4 in proptest::option::of(1u8..=32),
        v6 in proptest::option::of(1u8..=128),
    ) {
        let addresses: BTreeSet<IpAddr> = hosts
            .iter()
            .map(|host| match host % 3 {
                0 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, *host / 3]),
                _ => IpAddr::from([203, 0, (host >> 8) as u8, *host as u8]),
            })
            .collect();
        let nets = rules::sum_up(addresses.iter().copied(), Widest { v4, v6 });
        for net in &nets {
            let widest = if net.addr().is_ipv4() { v4 } else { v6 };
            match widest {
                Some(widest) => prop_assert!(net.prefix_len() >= widest, "{net} is wider than /{widest}"),
                None => prop_assert!(net.hosts().all(|host| addresses.contains(&host)), "{net} was not seen whole"),
            }
        }
        for address in &addresses {
            prop_assert_eq!(nets.iter().filter(|net| net.contains(address)).count(), 1, "{}", address);
        }
    }
}

/// The network of the width that the tests allow.
fn sum(address: IpAddr) -> ipnet::IpNet {
    ipnet::IpNet::new(address, if address.is_ipv4() { 28 } else { 120 }).unwrap().trunc()
}
