//! Attempts that go on while something happens to guard: nothing may pass in between.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use guard_tests::{
    frame::{UDP, udp},
    guard::Guard,
    process::Process,
    raw_bpf::{detach, pass_in_front, pinned_links},
    witness::{Witness, packet_socket},
    world::World,
};

use crate::{POLICY, attempt::Direction, frames::Ends, scene::own};

/// To the intruder, from inside, every millisecond until it is told to stop.
const FLOOD_PORT: u16 = 9;

type Moment = (&'static str, Result<()>);

/// What the flooding program does, in the guarded cgroup and namespace: by a packet socket, which no hook but the wire sees
/// (a datagram socket would be told no before there is a packet).
pub fn flood() -> Result<()> {
    let socket = packet_socket(nix::net::if_::if_nametoindex("eth0")?)?;
    let frames = [false, true].map(|ipv6| {
        let ends = Ends::new(Direction::Out, ipv6);
        ends.ip(UDP, &udp((ends.from, 4000), (ends.to, FLOOD_PORT), b"anybody there?"))
    });
    println!("ready");
    loop {
        for frame in &frames {
            // Dropped or not is for others to see.
            let _ = crate::sockets::send(&socket, frame);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// None may pass; that they were live is shown by the release.
pub fn all(world: &World, guard: &mut Guard) -> Vec<Moment> {
    vec![
        ("moment: policy reloads under attempt", watched(world, guard, reloads)),
        ("moment: the daemon killed and started again under attempt", watched(world, guard, killed)),
        ("moment: the daemon stopped under attempt", watched(world, guard, stopped)),
        ("moment: a hook detached, noticed and put back", noticed(world, guard, detached)),
        ("moment: a foreign program in front, noticed and overtaken", noticed(world, guard, in_front)),
        ("moment: released, the attempts get out (so they were live)", released(world, guard)),
        ("moment: started under attempt, from the ready line on nothing gets out", started(world, guard)),
    ]
}

struct Flood {
    witness: Witness,
    _process: Process,
}

impl Flood {
    fn start(world: &World) -> Result<Self> {
        let witness = Witness::start(&world.router, World::WIRE)?;
        let mut process = Process::spawn(own(&world.server)?.arg("--flood").stdin(Stdio::null()))?;
        process.wait_line(Duration::from_secs(10), |line| line == "ready")?;
        Ok(Self { witness, _process: process })
    }

    fn left(&self) -> usize {
        self.witness.count(|packet| packet.destination_port == FLOOD_PORT)
    }
}

/// Nothing gets out while this happens.
fn watched(world: &World, guard: &mut Guard, happens: fn(&mut Guard) -> Result<()>) -> Result<()> {
    let flood = Flood::start(world)?;
    happens(guard)?;
    thread::sleep(Duration::from_millis(300));
    ensure!(flood.witness.lost()? == 0, "the witness lost frames");
    ensure!(flood.left() == 0, "{} packets got out", flood.left());
    Ok(())
}

fn reloads(guard: &mut Guard) -> Result<()> {
    for round in 0..6 {
        let policy = format!("{POLICY}  - {{ name: round {round}, to: 192.0.2.{}, services: tcp/1 }}\n", 100 + round);
        let done = guard.reload(&policy, &[])?;
        ensure!(done.good(), "{}", done.text());
    }
    Ok(())
}

fn killed(guard: &mut Guard) -> Result<()> {
    for _ in 0..2 {
        guard.kill()?;
        thread::sleep(Duration::from_millis(200));
        guard.run(&[])?;
    }
    Ok(())
}

fn stopped(guard: &mut Guard) -> Result<()> {
    guard.signal(nix::sys::signal::Signal::SIGSTOP)?;
    thread::sleep(Duration::from_millis(500));
    guard.signal(nix::sys::signal::Signal::SIGCONT)
}

/// What gets out meanwhile is what guard does not promise to stop: it has to say so, and to end it.
fn noticed(world: &World, guard: &mut Guard, happens: fn(&World) -> Result<Vec<std::os::fd::OwnedFd>>) -> Result<()> {
    let flood = Flood::start(world)?;
    thread::sleep(Duration::from_millis(100));
    ensure!(flood.left() == 0, "{} packets got out before", flood.left());
    guard.signal(nix::sys::signal::Signal::SIGSTOP)?;
    let foreign = happens(world);
    let during = thread::scope(|_| {
        thread::sleep(Duration::from_millis(100));
        guard.status()
    });
    guard.signal(nix::sys::signal::Signal::SIGCONT)?;
    let (foreign, during) = (foreign?, during?);
    ensure!(during["enforcing"] == false, "status does not tell: {during:#}");
    let start = Instant::now();
    guard.status_until(Duration::from_secs(15), |status| status["enforcing"] == true)?;
    let (took, meanwhile) = (start.elapsed(), flood.left());
    thread::sleep(Duration::from_millis(500));
    ensure!(meanwhile > 0, "nothing got out meanwhile: the hook was not out of the way");
    println!("    put back after {} ms; {meanwhile} packets got out meanwhile", took.as_millis());
    ensure!(flood.left() <= meanwhile + 2, "{} packets got out after it was put back", flood.left() - meanwhile);
    drop(foreign);
    Ok(())
}

fn detached(world: &World) -> Result<Vec<std::os::fd::OwnedFd>> {
    let links = pinned_links(&world.operator)?;
    let index = world.server.interface_index("eth0").to_string();
    let egress = links
        .iter()
        .find(|link| link.contains("wire") && link.contains("egress") && link.contains(&index))
        .with_context(|| format!("{links:?}"))?;
    detach(&world.operator, egress)?;
    Ok(Vec::new())
}

fn in_front(world: &World) -> Result<Vec<std::os::fd::OwnedFd>> {
    Ok(vec![pass_in_front(&world.operator, world.server.interface_index("eth0"), true)?])
}

fn released(world: &World, guard: &mut Guard) -> Result<()> {
    let flood = Flood::start(world)?;
    guard.release()?;
    thread::sleep(Duration::from_millis(300));
    ensure!(flood.left() > 0, "nothing got out without guard either");
    Ok(())
}

fn started(world: &World, guard: &mut Guard) -> Result<()> {
    let flood = Flood::start(world)?;
    thread::sleep(Duration::from_millis(100));
    ensure!(flood.left() > 0, "nothing got out before the start");
    guard.run(&[])?;
    // What had left by then may still be on its way to the witness.
    thread::sleep(Duration::from_millis(50));
    flood.witness.forget();
    thread::sleep(Duration::from_millis(500));
    ensure!(flood.witness.lost()? == 0, "the witness lost frames");
    ensure!(flood.left() == 0, "{} packets got out after the ready line", flood.left());
    Ok(())
}
