//! What must go on all the while: a guard that lets nothing through is no guard.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use guard_tests::{
    echo::{connect, udp_reaches},
    guard::Guard,
    world::{Inside, World},
};

use crate::{
    mark::{responder, server},
    scene::Scene,
};

const PASSES: Duration = Duration::from_secs(5);

type Control = (&'static str, Result<()>);

pub fn all(world: &World, guard: &Guard, scene: &mut Scene) -> Vec<Control> {
    vec![
        ("control: sessions from before guard still speak", scene.sessions_speak()),
        ("control: new sessions, in and out", both(|ipv6| sessions(world, ipv6))),
        ("control: large transfers, in and out", both(|ipv6| transfers(world, ipv6))),
        ("control: names are resolved", both(|ipv6| resolver(world, ipv6))),
        ("control: neighbours are found after a flush", both(|ipv6| neighbours(world, ipv6))),
        ("control: path MTU is discovered", both(|ipv6| path_mtu(world, ipv6))),
        ("control: guard enforces, and says so", enforces(guard)),
    ]
}

fn both(one: impl Fn(bool) -> Result<()>) -> Result<()> {
    [false, true].into_iter().try_for_each(|ipv6| one(ipv6).with_context(|| if ipv6 { "IPv6" } else { "IPv4" }))
}

fn inbound(world: &World, ipv6: bool) -> Result<TcpStream> {
    Ok(connect(&world.intruder, SocketAddr::new(server(ipv6), 80), PASSES)?)
}

fn outbound(place: &Inside, ipv6: bool) -> Result<TcpStream> {
    Ok(connect(place, SocketAddr::new(responder(ipv6), 443), PASSES)?)
}

fn sessions(world: &World, ipv6: bool) -> Result<()> {
    guard_tests::echo::speaks(&mut inbound(world, ipv6)?)?;
    guard_tests::echo::speaks(&mut outbound(&world.server, ipv6)?)?;
    Ok(())
}

fn transfers(world: &World, ipv6: bool) -> Result<()> {
    for stream in [inbound(world, ipv6)?, outbound(&world.server, ipv6)?] {
        there_and_back(stream, 4 << 20)?;
    }
    Ok(())
}

fn there_and_back(mut stream: TcpStream, length: usize) -> Result<()> {
    let data: Vec<u8> = (0..length).map(|at| (at / 7) as u8).collect();
    let mut writer = stream.try_clone()?;
    let sent = data.clone();
    let write = std::thread::spawn(move || writer.write_all(&sent));
    let mut back = vec![0; length];
    stream.read_exact(&mut back)?;
    write.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(back == data, "what came back is not what was sent");
    Ok(())
}

fn resolver(world: &World, ipv6: bool) -> Result<()> {
    let router: IpAddr = if ipv6 { World::ROUTER_V6.into() } else { World::ROUTER_V4.into() };
    Ok(udp_reaches(&world.server, (router, 53).into(), PASSES)?)
}

fn neighbours(world: &World, ipv6: bool) -> Result<()> {
    for _ in 0..2 {
        world.server.ip("neigh flush dev eth0")?;
        world.router.ip("neigh flush dev br0")?;
        sessions(world, ipv6)?;
    }
    Ok(())
}

/// Behind the router a link is narrower than ours.
fn path_mtu(world: &World, ipv6: bool) -> Result<()> {
    world.router.ip("link set responder0 mtu 1300")?;
    let done = outbound(&world.server, ipv6).and_then(|stream| there_and_back(stream, 60_000));
    world.router.ip("link set responder0 mtu 1500")?;
    done
}

fn enforces(guard: &Guard) -> Result<()> {
    let status = guard.status()?;
    ensure!(status["enforcing"] == true, "{status:#}");
    Ok(())
}
