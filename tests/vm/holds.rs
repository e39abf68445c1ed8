//! What has to hold whatever happens to the daemon: killed, it changes nothing for packets, and a new one takes over what
//! is there. And who is behind this host is told of a denial at once, by answers that the kernel makes.

use std::{
    io::ErrorKind,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use guard_tests::{
    echo::{Echo, tcp_reaches, udp_reaches},
    flows::Flow,
    guard::Guard,
    session::Session,
    witness::Witness,
    world::{Namespace, World},
};
use serde_json::Value;

use super::{ALLOWED, DENIED, LIMIT, POLICY, SHORT, families};

pub fn kill_and_adoption() -> Result<()> {
    let world = World::create().context("a world")?;
    let mut guard = Guard::start(&world, POLICY)?;
    let mut session = Session::begin(&world, &Flow::new("in tcp client 7000", false))?;
    let generation = guard.status()?["generation"].clone();
    let echoes = [ALLOWED, DENIED].map(|port| Echo::udp(&world.client, world.client.address(false), port));
    let [listed, unlisted] = echoes.map(|echo| echo.context("a server"));
    let (listed, unlisted) = (listed?, unlisted?);
    let holds = |when: &str| -> Result<()> {
        udp_reaches(&world.server, listed.address, LIMIT).with_context(|| format!("{when}: listed"))?;
        ensure!(udp_reaches(&world.server, unlisted.address, SHORT).is_err(), "{when}: unlisted, and passed");
        Ok(())
    };
    holds("with the daemon")?;
    guard.kill()?;
    for from_server in [true, false] {
        session.speaks(from_server, LIMIT).context("the daemon is dead")?;
    }
    holds("the daemon is dead")?;
    guard.run(&["--json"])?;
    let ready = guard.daemon().map(|daemon| daemon.output()).unwrap_or_default();
    ensure!(ready.contains("\"adopted\":true"), "not taken over: {ready}");
    let status = guard.status()?;
    ensure!(status["enforcing"] == true, "taken over, and not enforcing: {status:#}");
    println!("guard-vm: holds: generation {generation}, after the take-over {}", status["generation"]);
    for from_server in [true, false] {
        session.speaks(from_server, LIMIT).context("taken over")?;
    }
    holds("taken over")?;
    guard.stop()?;
    guard.release()?;
    Ok(())
}

const TOLD: &str = "version: 1
name: behind
mode: enforce
on_deny: { outbound: reject }
inbound: []
outbound:
  - { name: out, to: any, services: [tcp/7000] }
";

/// A namespace behind a bridge of the server's, routed.
fn container(world: &World) -> Result<Namespace> {
    let container = world.namespace("container")?;
    world.server.sysctl("ipv4/ip_forward", "1")?;
    world.server.sysctl("ipv6/conf/all/forwarding", "1")?;
    world.server.ip(&format!(
        "link add docker0 type bridge\naddress add 192.0.2.193/28 dev docker0\n\
         address add 2001:db8:5::1/64 dev docker0 nodad\nlink set docker0 up\n\
         link add veth1 type veth peer name eth0 netns {}\nlink set veth1 master docker0\nlink set veth1 up\n",
        container.name()
    ))?;
    container
        .ip("address add 192.0.2.194/28 dev eth0\naddress add 2001:db8:5::2/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via 192.0.2.193\nroute add default via 2001:db8:5::1\n")?;
    world.router.ip("route add 192.0.2.192/28 via 192.0.2.10\nroute add 2001:db8:5::/64 via 2001:db8:2::10\n")?;
    Ok(container)
}

pub fn on_deny() -> Result<()> {
    let world = World::create().context("a world")?;
    let container = container(&world)?;
    let mut echoes = Vec::new();
    for &ipv6 in families() {
        let address = world.intruder.address(ipv6);
        echoes.push((Echo::tcp(&world.intruder, address, ALLOWED)?, Echo::tcp(&world.intruder, address, DENIED)?));
    }
    for (listed, unlisted) in &echoes {
        for echo in [listed, unlisted] {
            tcp_reaches(&container, echo.address, LIMIT).with_context(|| format!("without guard: {}", echo.address))?;
        }
    }
    let mut guard = Guard::start(&world, TOLD)?;
    let witness = Witness::start(&world.router, World::WIRE)?;
    for (listed, unlisted) in &echoes {
        tcp_reaches(&container, listed.address, LIMIT).with_context(|| format!("listed: {}", listed.address))?;
        let start = Instant::now();
        let error = tcp_reaches(&container, unlisted.address, LIMIT).err().context("unlisted, and passed")?;
        let took = start.elapsed();
        println!("guard-vm: on_deny: {}: {error} after {took:?}", unlisted.address);
        ensure!(error.kind() == ErrorKind::ConnectionRefused, "{}: {error}", unlisted.address);
        ensure!(took < Duration::from_secs(1), "{}: told only after {took:?}", unlisted.address);
    }
    ensure!(witness.count(|packet| packet.destination_port == DENIED) == 0, "an unlisted packet left");
    let status = guard.status()?;
    ensure!(status["rejected"]["resets"] == families().len(), "resets: {}", status["rejected"]);
    ensure!(status["enforcing"] == true, "{status:#}");
    guard.stop()?;
    guard.release()?;
    Ok(())
}

const BEHIND: &str = "version: 1
name: behind
mode: enforce
container_host: guard
inbound:
  - { name: in, from: any, services: [tcp/7000, udp/7000], interface: docker0 }
outbound:
  - { name: out, to: any, services: [tcp/7000, udp/7000], interface: docker0 }
  - { name: far, to: any, services: tcp/7000, interface: eth0 }
";

/// Both ways between a container and this host, and what it only passes on.
pub fn container_host() -> Result<()> {
    let world = World::create().context("a world")?;
    let container = container(&world)?;
    let mut pairs = Vec::new();
    for &ipv6 in families() {
        let (bridge, inside): (IpAddr, IpAddr) = if ipv6 {
            ("2001:db8:5::1".parse()?, "2001:db8:5::2".parse()?)
        } else {
            ("192.0.2.193".parse()?, "192.0.2.194".parse()?)
        };
        let server: &Namespace = &world.server;
        for (place, from, address) in [(server, &container, bridge), (&container, server, inside)] {
            for port in [ALLOWED, DENIED] {
                pairs.push((from, Echo::tcp(place, address, port)?, Echo::udp(place, address, port)?));
            }
        }
    }
    for (from, tcp, udp) in &pairs {
        tcp_reaches(from, tcp.address, LIMIT).with_context(|| format!("without guard: {}", tcp.address))?;
        udp_reaches(from, udp.address, LIMIT).with_context(|| format!("without guard: {}", udp.address))?;
    }
    let far = Echo::tcp(&world.intruder, world.intruder.address(false), ALLOWED)?;
    let mut guard = Guard::start(&world, BEHIND)?;
    for (from, tcp, udp) in &pairs {
        let before = tcp.reached() + udp.reached();
        if tcp.address.port() == ALLOWED {
            tcp_reaches(from, tcp.address, LIMIT).with_context(|| format!("listed: {}", tcp.address))?;
            udp_reaches(from, udp.address, LIMIT).with_context(|| format!("listed: {}", udp.address))?;
        } else {
            let said = [tcp_reaches(from, tcp.address, SHORT), udp_reaches(from, udp.address, SHORT)];
            ensure!(said.iter().all(std::result::Result::is_err), "unlisted, and passed: {}: {said:?}", tcp.address);
            ensure!(tcp.reached() + udp.reached() == before, "unlisted, and heard: {}", tcp.address);
        }
    }
    tcp_reaches(&container, far.address, LIMIT).context("passed on")?;
    let status = guard.status()?;
    ensure!(status["enforcing"] == true && status["container_host"] == "guard", "{status:#}");
    let hooks = status["hooks"].as_array().context("hooks")?;
    let there: Vec<&Value> = hooks.iter().filter(|hook| hook["target"] == "docker0").collect();
    println!("guard-vm: container_host: {there:?}");
    ensure!(there.len() == 2 && there.iter().all(|hook| hook["attached"] == true), "{there:?}");
    guard.stop()?;
    guard.release()?;
    Ok(())
}
