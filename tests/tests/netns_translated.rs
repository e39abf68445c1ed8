//! Other firewalls' rules that translate this host's own packets: where they may reach outside, the socket layer says nothing;
//! Docker's, which touch this host's own addresses alone, take nothing from it.

use std::{io::Write as _, net::SocketAddr, process::Stdio, time::Duration};

use guard_tests::{
    agent,
    echo::Echo,
    flows::PASSES,
    guard::Guard,
    new_world,
    process::Process,
    world::{World, has_ipv6},
};

const POLICY: &str = "version: 1\nname: translated\nmode: enforce\ninbound: []\n\
                      outbound: [{ name: out, to: any, services: tcp/9000 }]\n";

/// The daemon looks every five seconds, and loads its programs then.
const TOLD: Duration = Duration::from_secs(30);

/// As Docker 20.10 writes it (`iptables-save -t nat`), with a container's port published; the other form of its first rule
/// is that without the userland proxy.
const DOCKER: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
                      :DOCKER - [0:0]\n\
                      -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
                      -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
                      -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER\n\
                      -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
                      -A DOCKER -i docker0 -j RETURN\n\
                      -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80\nCOMMIT\n";

const DOCKER_V6: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
                         :POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n\
                         -A OUTPUT ! -d ::1/128 -m addrtype --dst-type LOCAL -j DOCKER\n\
                         -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00::2]:80\nCOMMIT\n";

/// As kube-proxy does it: service addresses are those of nobody, and go to an endpoint.
const SERVICES: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
                        :KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n\
                        -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
                        -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-A\n\
                        -A KUBE-SVC-A -p tcp -m tcp -j DNAT --to-destination 203.0.113.9:9000\nCOMMIT\n";

/// As Docker's nftables backend and others write it.
const NATIVE: &str = "add table ip native; add chain ip native own; \
                      add rule ip native own tcp dport 8080 dnat to 172.17.0.2:80; \
                      add chain ip native out { type nat hook output priority -100; }; \
                      add rule ip native out fib daddr type local counter jump own";

fn restore(world: &World, program: &str, rules: &str) {
    let mut command = world.operator.command(program);
    let mut child = Process::spawn(command.stdin(Stdio::piped())).unwrap();
    child.stdin().unwrap().write_all(rules.as_bytes()).unwrap();
    let ended = child.finish(PASSES).unwrap();
    assert!(ended.good(), "{program}: {}", ended.text());
}

fn nft(world: &World, rules: &str) {
    let ended = guard_tests::process::run(world.operator.command("nft").arg(rules), PASSES).unwrap();
    assert!(ended.good(), "{rules}: {}", ended.text());
}

/// Whether a program is told at once that its packet is denied; else it waits.
fn told_at_once(world: &World, to: SocketAddr) -> bool {
    let said = agent::ask(&world.server, &["connect", "tcp", &to.to_string()]).unwrap();
    assert!(!said.good(), "it is denied either way: {said:?}");
    said.refused()
}

fn denied(world: &World) -> Vec<Echo> {
    [false, true].into_iter().map(|v6| Echo::tcp(&world.intruder, world.intruder.address(v6), 9001).unwrap()).collect()
}

#[test]
fn dockers_rules_take_nothing_from_the_socket_layer() {
    let Some(world) = new_world("netns_translated dockers_rules_take_nothing") else { return };
    let echoes = denied(&world);
    restore(&world, "iptables-nft-restore", DOCKER);
    nft(&world, NATIVE);
    restore(&world, "iptables-legacy-restore", DOCKER);
    if has_ipv6() {
        restore(&world, "ip6tables-nft-restore", DOCKER_V6);
        restore(&world, "ip6tables-legacy-restore", DOCKER_V6);
    }
    let guard = Guard::start(&world, POLICY).unwrap();
    for echo in &echoes {
        assert!(told_at_once(&world, echo.address), "{}: {:#}", echo.address, guard.status().unwrap()["missing"]);
    }
    assert!(!guard.status().unwrap()["missing"].to_string().contains("this host's own packets"));
}

#[test]
fn rules_that_reach_outside_are_followed_as_they_come_and_go() {
    let Some(world) = new_world("netns_translated rules_that_reach_outside") else { return };
    let echoes = denied(&world);
    let server = Echo::tcp(&world.intruder, world.intruder.v4.into(), 9000).unwrap();
    let guard = Guard::start(&world, POLICY).unwrap();
    let service = "10.96.0.1:443";
    for (load, unload) in [("iptables-nft-restore", "iptables-nft"), ("iptables-legacy-restore", "iptables-legacy")] {
        for echo in &echoes {
            assert!(told_at_once(&world, echo.address), "{}", echo.address);
        }
        restore(&world, load, SERVICES);
        let said = |status: &serde_json::Value| status["missing"].to_string();
        let status = guard
            .status_until(TOLD, |status| said(status).contains("leaves every verdict to the wire, and a program"))
            .unwrap();
        assert!(said(&status).contains("table"), "{}", said(&status));
        assert_eq!(status["enforcing"], true, "{status:#}");
        // The service's address is not listed; the endpoint's is, and the wire sees that one.
        let asked = agent::ask(&world.server, &["connect", "tcp", service]).unwrap();
        assert!(asked.good(), "{load}: {asked:?}");
        for echo in &echoes {
            assert!(!told_at_once(&world, echo.address), "{load}: {}", echo.address);
            assert_eq!(echo.reached(), 0);
        }
        let mut flush = world.operator.command(unload);
        let ended = guard_tests::process::run(flush.args(["-t", "nat", "-F", "OUTPUT"]), PASSES).unwrap();
        assert!(ended.good(), "{}", ended.text());
        let status = guard.status_until(TOLD, |status| !said(status).contains("this host's own packets")).unwrap();
        assert_eq!(status["enforcing"], true, "{status:#}");
    }
    assert_eq!(server.reached(), 2);
    // Its own programs are nobody else's.
    let own = format!("guard {} (", guard.daemon().unwrap().pid());
    let records = guard.records().unwrap();
    assert!(
        !records.iter().any(|record| record["event_type"] == "alert" && record.to_string().contains(&own)),
        "{records:#?}"
    );
    for echo in &echoes {
        assert!(told_at_once(&world, echo.address), "{}", echo.address);
    }
}

/// With no daemon nobody tells the programs; the next start does.
#[test]
fn a_start_tells_what_came_meanwhile() {
    let Some(world) = new_world("netns_translated a_start_tells_what_came_meanwhile") else { return };
    let echoes = denied(&world);
    let mut guard = Guard::start(&world, POLICY).unwrap();
    guard.kill().unwrap();
    restore(&world, "iptables-nft-restore", SERVICES);
    let missing = guard.status().unwrap()["missing"].to_string();
    assert!(missing.contains("do not know yet"), "{missing}");
    assert!(told_at_once(&world, echoes[0].address));
    guard.run(&[]).unwrap();
    assert!(!told_at_once(&world, echoes[0].address));
    assert!(agent::ask(&world.server, &["connect", "tcp", "10.96.0.1:443"]).unwrap().errno != libc::EPERM);
}
