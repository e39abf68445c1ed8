//! `guard export nft`, loaded by real nft: every ready policy, and for generated policies and flows the same verdict from
//! the loaded ruleset, by a packet that is really sent, as from `decide`.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use guard::policy::{
    compile::{Clocks, compile},
    model::{FlowQuery, Mode},
    nearest::explain,
    nft::ruleset,
    ready,
};
use guard_common::{Direction, Verdict};
use guard_tests::{
    flows::PASSES,
    frame::{ICMP, ICMPV6, Ipv4Fields, TCP, UDP, ethernet_ip, icmp, ipv4, tcp, udp},
    generate::{self, Random, Times},
    guard::binary,
    new_world,
    process::run,
    referee::Asked,
    witness::send_frames,
    world::World,
};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket};

const POLICIES: u64 = 60;
const FLOWS: usize = 60;

fn nft(world: &World, arguments: &[&str]) -> String {
    let ended = run(world.operator.command("nft").args(arguments), PASSES * 4).unwrap();
    assert!(ended.good(), "nft {}: {}", arguments.join(" "), ended.text());
    ended.stdout
}

#[test]
fn every_ready_policy_loads() {
    let Some(world) = new_world("netns_export every_ready_policy") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("policies");
    let mut loaded = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "yaml") {
            continue;
        }
        let mut command = Command::new(binary().unwrap());
        let ended = run(command.args(["export", "nft"]).arg(&path), PASSES * 2).unwrap();
        assert!(ended.good() && ended.stderr.contains("not as the policy says it"), "{}", ended.text());
        let file = world.dir().join("exported.nft");
        std::fs::write(&file, &ended.stdout).unwrap();
        nft(&world, &["-f", &file.display().to_string()]);
        let listed = nft(&world, &["list", "table", "inet", "guard"]);
        for hook in ["input", "output", "forward"] {
            assert!(listed.contains(&format!("hook {hook}")), "{}: {listed}", path.display());
        }
        loaded += 1;
    }
    assert!(loaded >= 4);
}

/// A flow that can be sent here as its first packet.
#[derive(Clone, Debug)]
struct Sent {
    query: FlowQuery,
    local: IpAddr,
    protocol: u8,
}

/// Addresses that this kernel carries from and to anywhere.
fn ordinary(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => (1..=223).contains(&address.octets()[0]) && address.octets()[0] != 127,
        IpAddr::V6(address) => {
            let high = address.segments()[0];
            !(high == 0 || (0xfe80..=0xfeff).contains(&high) || high >= 0xff00)
        }
    }
}

fn flow(asked: &Asked) -> Option<Sent> {
    let protocol = u8::try_from(asked.service >> 16).ok()?;
    let kind = asked.service & 0xffff;
    let sendable = match protocol {
        TCP | UDP => true,
        // What asks for something: connection tracking takes no other message for the beginning of anything.
        ICMP => kind == 8 << 8 && asked.remote.is_ipv4(),
        ICMPV6 => kind == 128 << 8 && asked.remote.is_ipv6(),
        47 | 253 | 255 => kind == 0,
        _ => false,
    };
    let local = asked.local;
    let alike = local.is_ipv4() == asked.remote.is_ipv4() && local != asked.remote;
    (sendable && alike && ordinary(asked.remote) && ordinary(local)).then(|| Sent {
        query: FlowQuery {
            direction: asked.direction,
            remote: asked.remote,
            remote_port: None,
            local: Some(local),
            service: asked.service,
            interface: Some("eth0".to_owned()),
        },
        local,
        protocol,
    })
}

/// Its first packet, marked with its number: as IPv4's identification, or IPv6's flow label.
fn packet(sent: &Sent, number: u16) -> Vec<u8> {
    let (from, to) = match sent.query.direction {
        Direction::Inbound => (sent.query.remote, sent.local),
        Direction::Outbound => (sent.local, sent.query.remote),
    };
    let port = sent.query.service as u16;
    let payload = match sent.protocol {
        TCP => tcp((from, number), (to, port), 2, 1, 0, b""),
        UDP => udp((from, number), (to, port), b"a question"),
        ICMP | ICMPV6 => icmp(from, to, (port >> 8) as u8, 0, &[number.to_be_bytes(), [0, 1]].concat()),
        _ => vec![0; 8],
    };
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            ipv4(from, to, sent.protocol, &Ipv4Fields { id: number, ..Ipv4Fields::default() }, &payload)
        }
        (from, to) => {
            let mut packet = guard_tests::frame::ip(from, to, sent.protocol, &payload);
            packet[2..4].copy_from_slice(&number.to_be_bytes());
            packet
        }
    }
}

/// Every address is this host's for what comes in by `eth0`; what goes out goes to the router, whatever its address.
fn open_to_all(world: &World) {
    for family in ["-4", "-6"] {
        for line in ["rule add iif eth0 lookup 100", "route add local default dev lo table 100"] {
            let ended = run(world.operator.command("ip").arg(family).args(line.split(' ')), PASSES).unwrap();
            assert!(ended.good(), "ip {family} {line}: {}", ended.text());
        }
    }
    let mac = World::ROUTER_MAC.map(|byte| format!("{byte:02x}")).join(":");
    for router in [World::ROUTER_V4.to_string(), World::ROUTER_V6.to_string()] {
        world.server.ip(&format!("neighbour replace {router} lladdr {mac} dev eth0 nud permanent\n")).unwrap();
    }
    nft(
        world,
        &["table inet seen {
            set four { typeof ip id; flags dynamic; size 65535; }
            set six { typeof ip6 flowlabel; flags dynamic; size 65535; }
            chain in { type filter hook input priority 300; iifname eth0 add @four { ip id }; iifname eth0 add @six { ip6 flowlabel }; }
            chain out { type filter hook output priority 300; oifname eth0 add @four { ip id }; oifname eth0 add @six { ip6 flowlabel }; }
        }"],
    );
}

fn send(world: &World, outbound: &[Vec<u8>], inbound: &[Vec<u8>]) {
    let frames = inbound.iter().map(|packet| ethernet_ip(world.server.mac, World::ROUTER_MAC, packet));
    send_frames(&world.router, World::WIRE, 20_000, frames).unwrap();
    world.server.run(|| {
        let raw = |family| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap();
        let (four, six) = (raw(AddressFamily::Inet), raw(AddressFamily::Inet6));
        for packet in outbound {
            let (socket, to): (_, SocketAddr) = if packet[0] >> 4 == 4 {
                (&four, (Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap()), 0).into())
            } else {
                (&six, (Ipv6Addr::from(<[u8; 16]>::try_from(&packet[24..40]).unwrap()), 0).into())
            };
            let to = SockaddrStorage::from(to);
            // Refused by nftables is EPERM here: what counts is what was seen.
            let _ = sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty());
        }
    });
}

/// Numbers of the packets that got past the ruleset.
fn seen(world: &World) -> HashSet<u16> {
    let json: serde_json::Value = serde_json::from_str(&nft(world, &["-j", "list", "table", "inet", "seen"])).unwrap();
    let sets = json["nftables"].as_array().unwrap().iter().filter_map(|one| one["set"]["elem"].as_array());
    sets.flatten().filter_map(|element| u16::try_from(element.as_u64()?).ok()).collect()
}

#[test]
fn the_loaded_ruleset_decides_as_guard_does() {
    let Some(world) = new_world("netns_export the_loaded_ruleset") else { return };
    open_to_all(&world);
    let now: Clocks = ready::now();
    let mut number: u16 = 1000;
    let mut counted: BTreeMap<(Direction, bool, u8, &str), usize> = BTreeMap::new();
    for seed in 0..POLICIES {
        let mut policy = generate::policy(seed, now, Times::Coarse);
        (policy.inbound, policy.outbound) = (Mode::Enforce, Mode::Enforce);
        let compiled = compile(&policy, now, 1).unwrap();
        let made = ruleset(&policy, now.unix_ns);
        let file = world.dir().join("generated.nft");
        std::fs::write(&file, &made.text).unwrap();
        // A new table has no connections of the old one's to go by: numbers are used once.
        nft(&world, &["-f", &file.display().to_string()]);
        nft(&world, &["flush set inet seen four; flush set inet seen six"]);
        // What the ruleset says otherwise, narrower, it says by name.
        let narrower = made.notes.iter().any(|note| note.contains("cannot be said"));

        let mut random = Random(seed ^ 0xabcd);
        let mut tuples = HashSet::new();
        let mut flows: Vec<(u16, Sent)> = Vec::new();
        for _ in 0..FLOWS * 20 {
            let Some(sent) = flow(&generate::question(&mut random, &policy, now, Times::Coarse)) else { continue };
            // Without ports two flows between the same ends are one to connection tracking, whoever asks.
            let mut ends = [sent.query.remote, sent.local];
            ends.sort();
            if !matches!(sent.protocol, TCP | UDP | ICMP | ICMPV6) && !tuples.insert((ends, sent.protocol)) {
                continue;
            }
            number += 1;
            flows.push((number, sent));
            if flows.len() == FLOWS {
                break;
            }
        }
        let of = |direction: Direction| -> Vec<Vec<u8>> {
            let of_it = flows.iter().filter(|(_, sent)| sent.query.direction == direction);
            of_it.map(|(number, sent)| packet(sent, *number)).collect()
        };
        send(&world, &of(Direction::Outbound), &of(Direction::Inbound));
        // Whatever is to pass may take a moment; what is not to pass, another.
        let allowed =
            |(_, sent): &&(u16, Sent)| explain(&policy, &compiled, &sent.query, now).verdict == Verdict::Allow;
        let wanted: Vec<u16> = flows.iter().filter(allowed).map(|(number, _)| *number).collect();
        let deadline = Instant::now() + Duration::from_secs(2);
        while !narrower && Instant::now() < deadline {
            let passed = seen(&world);
            if wanted.iter().all(|number| passed.contains(number)) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(Duration::from_millis(50));
        let passed = seen(&world);
        for (number, sent) in &flows {
            let expected = explain(&policy, &compiled, &sent.query, now).verdict;
            let is = if passed.contains(number) { Verdict::Allow } else { Verdict::Deny };
            if narrower && is == Verdict::Deny {
                continue;
            }
            assert_eq!(is, expected, "policy {seed}, flow {number}: {:?}\n{}", sent.query, made.text);
            *counted
                .entry((sent.query.direction, sent.query.remote.is_ipv6(), sent.protocol, is.as_str()))
                .or_default() += 1;
        }
    }
    println!("{counted:#?}");
    // It was asked of both directions and families, by ports, types and protocols, with both answers.
    for direction in [Direction::Inbound, Direction::Outbound] {
        for ipv6 in [false, true] {
            for protocol in [TCP, UDP] {
                for verdict in ["allow", "deny"] {
                    let count = counted.get(&(direction, ipv6, protocol, verdict)).copied().unwrap_or(0);
                    assert!(count >= 5, "{direction:?} {ipv6} {protocol} {verdict}: {count}\n{counted:#?}");
                }
            }
        }
    }
}
