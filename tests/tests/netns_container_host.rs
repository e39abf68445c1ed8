//! `container_host`: what passes between the members of a bridge and this host itself. Containers here are namespaces behind a
//! bridge, translated (IPv4) or routed (IPv6), as every runtime makes them.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use guard_tests::{
    agent,
    echo::{Echo, connect, speaks, tcp_reaches, udp_reaches, udp_socket},
    flows::{NOTHING, PASSES},
    frame::{self, ICMP},
    guard::Guard,
    new_world,
    process::{Ended, Process, run},
    witness::{Witness, send_frame},
    world::{Namespace, World},
};
use serde_json::Value;

const BRIDGE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 193);
const BRIDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0x30, 193];
const BRIDGE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x5, 0, 0, 0, 0, 1);

/// Both ways one port is listed on the bridge, and one on the way out.
const LISTED: &str = "inbound:\n  - { name: cache, from: any, services: [tcp/9000, udp/9000], interface: docker0 }\n  \
    - { name: published, from: 203.0.113.9, services: tcp/8080 }\n\
    outbound:\n  - { name: health, to: any, services: [tcp/9100, udp/9100], interface: docker0 }\n  \
    - { name: out, to: any, services: tcp/9200, interface: eth0 }\n";

fn policy(container_host: &str) -> String {
    format!("version: 1\nname: runner\nmode: enforce\ncontainer_host: {container_host}\n{LISTED}")
}

/// A namespace with a veth whose other end is a port of the bridge.
struct Container {
    place: Namespace,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Container {
    fn address(&self, ipv6: bool) -> IpAddr {
        if ipv6 { self.v6.into() } else { self.v4.into() }
    }
}

fn bridge(world: &World, name: &str, v4: Ipv4Addr, v6: Ipv6Addr) {
    world
        .server
        .ip(&format!(
            "link add {name} address 02:00:00:00:30:{:02x} type bridge mcast_snooping 0\naddress add {v4}/28 dev {name}\n\
             address add {v6}/64 dev {name} nodad\nlink set {name} up\n",
            v4.octets()[3]
        ))
        .unwrap();
}

/// `number` is the last part of its addresses.
fn container(world: &World, bridge: &str, gateway: (Ipv4Addr, Ipv6Addr), number: u8) -> Container {
    let place = world.namespace(&format!("c{number}")).unwrap();
    let v4 = Ipv4Addr::from(u32::from(gateway.0) + u32::from(number) - 1);
    let v6 = Ipv6Addr::from(u128::from(gateway.1) + u128::from(number) - 1);
    world
        .server
        .ip(&format!(
            "link add veth{number} type veth peer name eth0 netns {}\nlink set veth{number} master {bridge}\n\
             link set veth{number} up\n",
            place.name()
        ))
        .unwrap();
    place
        .ip(&format!(
            "address add {v4}/28 dev eth0\naddress add {v6}/64 dev eth0 nodad\nlink set eth0 up\nlink set lo up\n\
             route add default via {}\nroute add default via {}\n",
            gateway.0, gateway.1
        ))
        .unwrap();
    Container { place, v4, v6 }
}

/// `docker0` with two containers.
fn containers(world: &World) -> [Container; 2] {
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        world.server.sysctl(key, "1").unwrap();
    }
    bridge(world, "docker0", BRIDGE_V4, BRIDGE_V6);
    world.router.ip("route add 2001:db8:5::/64 via 2001:db8:2::10\n").unwrap();
    let mut nft = world.operator.command("nft");
    nft.arg(
        "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; \
         add rule ip nat post oifname eth0 ip saddr 192.0.2.192/28 masquerade",
    );
    let set = run(&mut nft, PASSES).unwrap();
    assert!(set.good(), "{}", set.text());
    [2, 3].map(|number| container(world, "docker0", (BRIDGE_V4, BRIDGE_V6), number))
}

/// Every address of the host that a container can ask.
fn of_host(world: &World) -> [IpAddr; 4] {
    [BRIDGE_V4.into(), BRIDGE_V6.into(), world.server.address(false), world.server.address(true)]
}

/// TCP and UDP of one port at each address.
fn echoes(place: &Namespace, addresses: &[IpAddr], port: u16) -> Vec<[Echo; 2]> {
    let both =
        |address: &IpAddr| [Echo::tcp(place, *address, port).unwrap(), Echo::udp(place, *address, port).unwrap()];
    addresses.iter().map(both).collect()
}

/// Whether all of them are reached from there, or none.
fn reach(place: &Namespace, echoes: &[[Echo; 2]], all: bool) {
    let limit = if all { PASSES } else { NOTHING };
    for [tcp, udp] in echoes {
        let before = tcp.reached() + udp.reached();
        let said = [tcp_reaches(place, tcp.address, limit), udp_reaches(place, udp.address, limit)];
        let reached = tcp.reached() + udp.reached() - before;
        match all {
            true => assert!(said.iter().all(Result::is_ok), "{}: {said:?}", tcp.address),
            false => assert_eq!(reached, 0, "{}: {said:?}", tcp.address),
        }
    }
}

fn interface<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["interfaces"].as_array().unwrap().iter().find(|line| line["name"] == name).unwrap_or(&Value::Null)
}

fn rule_flows(status: &Value, rule: &str) -> u64 {
    let rules = status["rules"].as_array().unwrap();
    rules.iter().find(|line| line["rule"] == rule).unwrap()["flows"].as_u64().unwrap()
}

/// The flows that a dry run lists, as `explain` reads them.
fn cuts(ended: &Ended) -> Vec<String> {
    let line = ended.stdout.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{}", ended.text()));
    let json: Value = serde_json::from_str(line).unwrap();
    let cuts = json["would_cut"].as_array().unwrap();
    let mut flows: Vec<String> = cuts.iter().map(|cut| cut["flow"].as_str().unwrap().to_owned()).collect();
    flows.sort();
    flows
}

fn reload(guard: &Guard, policy: &str) {
    // The test holds these sessions, and is not spared for it.
    let done = guard.reload(policy, &["--cut-me"]).unwrap();
    assert!(done.good(), "{}", done.text());
}

#[test]
fn containers_and_this_host_are_judged_both_ways_where_the_policy_says_so() {
    let Some(world) = new_world("netns_container_host both_ways") else { return };
    let [one, two] = containers(&world);
    let host = of_host(&world);
    let (cache, closed) = (echoes(&world.server, &host[..2], 9000), echoes(&world.server, &host, 9001));
    let own = [one.address(false), one.address(true)];
    let (health, private) = (echoes(&one.place, &own, 9100), echoes(&one.place, &own, 9101));
    let guard = Guard::start(&world, &policy("ignore")).unwrap();

    let open = || {
        for (from, echoes) in [(&one.place, &cache), (&one.place, &closed), (&two.place, &private)] {
            reach(from, echoes, true);
        }
        reach(&world.server, &health, true);
        reach(&world.server, &private, true);
    };
    let shut = || {
        reach(&one.place, &cache, true);
        reach(&one.place, &closed, false);
        reach(&world.server, &health, true);
        reach(&world.server, &private, false);
        // With each other they talk as they like.
        reach(&two.place, &private, true);
        for [tcp, _] in &health {
            let said = agent::ask(&world.server, &["connect", "tcp", &tcp.address.to_string()]).unwrap();
            assert!(said.good(), "{said:?}");
        }
        for [tcp, _] in &private {
            let said = agent::ask(&world.server, &["connect", "tcp", &tcp.address.to_string()]).unwrap();
            assert!(said.refused(), "the program is told at once: {said:?}");
        }
    };
    open();
    let status = guard.status().unwrap();
    assert_eq!(status["container_host"], "ignore");
    assert_eq!(interface(&status, "docker0")["container_host"], "ignore");
    assert_eq!(interface(&status, "eth0")["container_host"], Value::Null);
    let ports =
        |status: &Value| status["hooks"].as_array().unwrap().iter().filter(|h| h["target"] == "docker0").count();
    assert_eq!(ports(&status), 0);
    let screen = guard.ask("status", &[]).unwrap().stdout;
    assert!(screen.contains("containers with this host and with each other (container_host: ignore)"), "{screen}");

    for _ in 0..2 {
        reload(&guard, &policy("guard"));
        shut();
        let status = guard.status().unwrap();
        assert_eq!((&status["container_host"], &status["enforcing"]), (&"guard".into(), &true.into()), "{status:#}");
        let line = interface(&status, "docker0");
        assert_eq!((&line["container_host"], &line["guarded"]), (&"guard".into(), &false.into()), "{line}");
        assert_eq!(ports(&status), 2, "{:#}", status["hooks"]);
        let screen = guard.ask("status", &[]).unwrap().stdout;
        assert!(screen.contains("containers with this host (container_host: guard); NOT with each other"), "{screen}");
        reload(&guard, &policy("ignore"));
        open();
        assert_eq!(ports(&guard.status_until(PASSES * 4, |status| ports(status) == 0).unwrap()), 0);
    }
    let alerts = guard.all_records_with("put back").unwrap();
    assert!(alerts.is_empty(), "what the reload did was taken for an intruder's doing: {alerts:#?}");
    let records =
        guard.wait_records(|record| record["src_ip"] == one.v4.to_string() && record["dest_port"] == 9001).unwrap();
    assert!(records.iter().all(|record| record["guard"]["direction"] == "inbound"), "{records:#?}");
}

#[test]
fn what_is_only_passed_on_is_judged_once_and_published_ports_are_unaffected() {
    let Some(world) = new_world("netns_container_host judged_once") else { return };
    let [one, two] = containers(&world);
    let mut nft = world.operator.command("nft");
    nft.arg(format!(
        "add chain ip nat in {{ type nat hook prerouting priority -100; }}; \
         add rule ip nat in fib daddr type local tcp dport 8080 dnat to {}:9101",
        two.v4
    ));
    let set = run(&mut nft, PASSES).unwrap();
    assert!(set.good(), "{}", set.text());
    let published = Echo::tcp(&two.place, two.v4.into(), 9101).unwrap();
    let outside: Vec<[Echo; 2]> = [9200, 9201]
        .into_iter()
        .map(|port| [false, true].map(|v6| Echo::tcp(&world.intruder, world.intruder.address(v6), port).unwrap()))
        .collect();
    let guard = Guard::start(&world, &policy("guard")).unwrap();
    for echo in &outside[0] {
        tcp_reaches(&one.place, echo.address, PASSES).unwrap();
    }
    tcp_reaches(&world.intruder, (world.server.v4, 8080).into(), PASSES).unwrap();
    assert_eq!(published.reached(), 1);
    for echo in &outside[1] {
        let error = tcp_reaches(&one.place, echo.address, PASSES).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "on_deny holds: {error}");
    }
    // At the host's address it is the host's port, which is listed to somebody else. (Where br_netfilter translates in the bridge
    // already, the two containers only talk to each other.)
    for key in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
        let _ = world.server.sysctl(key, "0");
    }
    assert!(tcp_reaches(&one.place, (world.server.v4, 8080).into(), NOTHING).is_err());
    assert_eq!(published.reached(), 1);

    let status = guard.status().unwrap();
    assert_eq!((rule_flows(&status, "out"), rule_flows(&status, "published")), (2, 1), "{:#}", status["rules"]);
    assert_eq!(status["rejected"]["resets"], 2);
    assert_eq!(status["enforcing"], true, "{:#}", status["problems"]);
    let forwarded = |flow: &Value| flow["dest_port"] == 9200 || flow["dest_port"] == 9101;
    let records = guard.wait_records(forwarded).unwrap();
    assert!(records.iter().all(|record| record["in_iface"] != "docker0"), "{records:#?}");

    // An error of this host's own about a container's packet belongs to what is passed on.
    world.server.ip("link set eth0 mtu 1400\n").unwrap();
    let witness = Witness::start(&one.place, "eth0").unwrap();
    let socket = udp_socket(&one.place, false, NOTHING).unwrap();
    socket.connect((world.intruder.v4, 9200)).unwrap();
    socket.send(&[0; 1450]).unwrap();
    assert!(witness.waits_for(PASSES, |packet| packet.protocol == ICMP && packet.source == IpAddr::from(BRIDGE_V4)));
}

/// Frames that only somebody with raw sockets in a container would send.
#[test]
fn a_forged_frame_does_not_pass_for_one_that_is_passed_on() {
    let Some(world) = new_world("netns_container_host forged") else { return };
    let [one, _two] = containers(&world);
    for interface in ["all", "default", "docker0", "veth2"] {
        world.server.sysctl(&format!("ipv4/conf/{interface}/rp_filter"), "0").unwrap();
    }
    let listens = |family: &str| {
        let mut command = world.server.command("socat");
        command.args([
            "-u",
            &format!("UDP{family}-RECV:9001{}", if family == "6" { ",ipv6only" } else { "" }),
            "STDOUT",
        ]);
        Process::spawn(&mut command).unwrap()
    };
    let heard = [listens("4"), listens("6")];
    let from = [2, 0, 0, 0, 7, 7];
    let group = [0x01, 0x80, 0xc2, 0, 0, 3];
    let all_nodes = [0xff; 6];
    let datagram = |source: IpAddr, to: IpAddr, text: &str| {
        frame::ip(source, to, frame::UDP, &frame::udp((source, 4000), (to, 9001), format!("{text}\n").as_bytes()))
    };
    // Each has a word of its own, and whether a kernel without guard hands it up.
    let send = |phase: &str| {
        let mut words = Vec::new();
        for v6 in [false, true] {
            let (source, stranger): (IpAddr, IpAddr) = if v6 {
                (one.v6.into(), Ipv6Addr::LOCALHOST.into())
            } else {
                (one.v4.into(), Ipv4Addr::new(198, 51, 100, 99).into())
            };
            let stranger = if v6 { "2001:db8:99::99".parse().unwrap() } else { stranger };
            let addresses: [IpAddr; 2] = if v6 {
                [BRIDGE_V6.into(), world.server.v6.into()]
            } else {
                [BRIDGE_V4.into(), world.server.v4.into()]
            };
            for to in addresses {
                for (kind, mac, source) in [
                    ("plain", BRIDGE_MAC, source),
                    ("group", group, source),
                    ("all", all_nodes, source),
                    ("stranger", BRIDGE_MAC, stranger),
                ] {
                    let word = format!("<{phase} {kind} {source} {to}>");
                    send_frame(&one.place, "eth0", &frame::ethernet_ip(mac, from, &datagram(source, to, &word)))
                        .unwrap();
                    words.push(word);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(500));
        let said: String = heard.iter().map(Process::output).collect();
        words.into_iter().partition::<Vec<String>, _>(|word| said.contains(word))
    };
    std::thread::sleep(Duration::from_millis(300));
    let (live, dead) = send("open");
    for kind in ["plain", "group", "all", "stranger"] {
        for v6 in [false, true] {
            let is = |word: &&String| word.contains(kind) && word.contains("::") == v6;
            assert!(
                live.iter().any(|word| is(&word)),
                "proves nothing: {kind} {v6}, only {live:?} were heard, not {dead:?}"
            );
        }
    }
    let guard = Guard::start(&world, &policy("guard")).unwrap();
    let (passed, stopped) = send("guard");
    assert!(passed.is_empty(), "{passed:?}");
    assert_eq!(stopped.len(), 16);
    assert_eq!(guard.status().unwrap()["enforcing"], true);
    reload(&guard, &policy("ignore"));
    let (passed, _) = send("ignore");
    assert_eq!(passed.len(), live.len(), "{passed:?}");
}

#[test]
fn sessions_are_listed_before_they_are_cut_and_a_deadline_brings_them_back() {
    let Some(world) = new_world("netns_container_host sessions") else { return };
    let [one, _two] = containers(&world);
    let host = of_host(&world);
    let closed = echoes(&world.server, &host[..2], 9001);
    let own = [one.address(false), one.address(true)];
    let private = echoes(&one.place, &own, 9101);
    let mut sessions = Vec::new();
    for [tcp, _] in &closed {
        sessions.push(connect(&one.place, tcp.address, PASSES).unwrap());
    }
    for [tcp, _] in &private {
        sessions.push(connect(&world.server, tcp.address, PASSES).unwrap());
    }
    let mut guard = Guard::prepare(&world, &policy("ignore")).unwrap();
    let would_cut = |guard: &Guard, text: &str| -> Vec<String> {
        guard.write_policy(text).unwrap();
        let mut dry = guard.run_command(&["--dry-run", "--json"]).unwrap();
        let ended = run(&mut dry, PASSES * 8).unwrap();
        cuts(&ended)
    };
    assert_eq!(would_cut(&guard, &policy("ignore")), [""; 0]);
    let expected = [
        format!("in tcp {} -> 9001", one.v4),
        format!("in tcp [{}] -> 9001", one.v6),
        format!("out tcp {}:9101", one.v4),
        format!("out tcp [{}]:9101", one.v6),
    ];
    assert_eq!(would_cut(&guard, &policy("guard")), expected, "before the first start");

    guard.write_policy(&policy("ignore")).unwrap();
    guard.run(&[]).unwrap();
    for session in &mut sessions {
        speaks(session).unwrap();
    }
    let done = guard.reload(&policy("guard"), &["--dry-run", "--json"]).unwrap();
    assert_eq!(cuts(&done), expected, "{}", done.text());
    for session in &mut sessions {
        speaks(session).unwrap();
    }
    // The kernel undoes it with nobody there.
    let done = guard.reload(&policy("guard"), &["--confirm-within", "6s", "--cut-me"]).unwrap();
    assert!(done.good(), "{}", done.text());
    guard.kill().unwrap();
    for session in &mut sessions {
        session.set_read_timeout(Some(NOTHING)).unwrap();
        assert!(speaks(session).is_err(), "cut while the change waits");
    }
    std::thread::sleep(Duration::from_secs(6));
    reach(&one.place, &closed, true);
    guard.write_policy(&policy("ignore")).unwrap();
    guard.run(&[]).unwrap();
    assert_eq!(guard.status().unwrap()["container_host"], "ignore");

    reload(&guard, &policy("guard"));
    reach(&one.place, &closed, false);
    // Nobody there, and somebody else after it.
    guard.kill().unwrap();
    reach(&one.place, &closed, false);
    reach(&world.server, &private, false);
    guard.write_policy(&policy("guard")).unwrap();
    guard.run(&[]).unwrap();
    reach(&one.place, &closed, false);
    let status = guard.status().unwrap();
    assert_eq!((&status["container_host"], &status["enforcing"]), (&"guard".into(), &true.into()), "{status:#}");

    // A bridge that comes later, and a container that does.
    let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 225), Ipv6Addr::new(0x2001, 0xdb8, 0x6, 0, 0, 0, 0, 1));
    bridge(&world, "br-later", v4, v6);
    let late = container(&world, "br-later", (v4, v6), 4);
    let more = echoes(&world.server, &[v4.into(), v6.into()], 9001);
    let is_judged = |status: &Value| interface(status, "br-later")["container_host"] == "guard";
    guard.status_until(PASSES * 4, is_judged).unwrap();
    reach(&late.place, &more, false);
    assert_eq!(
        guard.status_until(PASSES * 4, |status| status["enforcing"] == true).unwrap()["container_host"],
        "guard"
    );
    let nobody: SocketAddr = (late.v4, 9).into();
    assert!(agent::ask(&world.server, &["connect", "tcp", &nobody.to_string()]).unwrap().refused());
}
