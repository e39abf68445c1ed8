//! What has to hold whatever happens to the daemon: killed, it changes nothing for packets, and a new one takes over what
//! is there. And who is behind this host is told of a denial at once, by answers that the kernel makes.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use guard_tests::{
    echo::{Echo, tcp_reaches, udp_reaches},
    flows::Flow,
    guard::Guard,
    session::Session,
    witness::Witness,
    world::World,
};

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

/// A container is a namespace behind a bridge, routed.
pub fn on_deny() -> Result<()> {
    let world = World::create().context("a world")?;
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
