//! The seal where the kernel takes programs at its functions (`fmod_ret`): every way to ask for a way round the wire.

use std::{io::Write, process::Stdio, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use guard_tests::{
    agent::{Said, ask, command},
    frame::{UDP, ethernet_ip, ip, udp},
    guard::Guard,
    process::{Process, run},
    raw_bpf::pinned_links,
    witness::Witness,
    world::World,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);
const WAYS: [&str; 3] = ["native", "int80", "uring"];
/// Where the frames are sent that no rule lists.
const PORT: u16 = 9001;

/// The world outside and the guarded task in it.
struct Round {
    world: World,
    witness: Witness,
    frame: String,
    /// The ways that this kernel has.
    has: Vec<&'static str>,
}

impl Round {
    /// Tries each way without guard: who has none to begin with shows nothing by being refused.
    fn new() -> Result<Self> {
        let world = World::create().context("a world")?;
        let (from, to) = (world.server.v4.into(), world.client.v4.into());
        let denied = ip(from, to, UDP, &udp((from, 4000), (to, PORT), b"round"));
        let frame = ethernet_ip(world.client.mac, world.server.mac, &denied);
        let frame = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        let witness = Witness::start(&world.router, World::WIRE)?;
        let mut round = Self { world, witness, frame, has: Vec::new() };
        for way in WAYS {
            round.witness.forget();
            let (said, socket) = (round.bypass(way, "1")?, round.xdp(way)?);
            println!("guard-vm: seal: without guard, {way}: bypass {said:?}, AF_XDP {socket:?}");
            ensure!(!said.refused() && !socket.refused(), "without guard, {way} is refused");
            if said.good() {
                ensure!(
                    round.witness.waits_for(LIMIT, |packet| packet.destination_port == PORT),
                    "{way}: nothing left"
                );
                round.has.push(way);
            }
        }
        ensure!(round.has.starts_with(&["native", "int80"]), "this kernel has only {:?}: nothing is shown", round.has);
        Ok(round)
    }

    fn bypass(&self, way: &str, on: &str) -> Result<Said> {
        ask(&self.world.server, &["bypass", way, "eth0", on, &self.frame])
    }

    fn xdp(&self, way: &str) -> Result<Said> {
        ask(&self.world.server, &["xdp", way])
    }

    fn escaped(&self) -> usize {
        thread::sleep(Duration::from_millis(300));
        self.witness.count(|packet| packet.destination_port == PORT)
    }

    /// Every way round is refused, and nothing else.
    fn is_refused(&self, when: &str) -> Result<()> {
        self.witness.forget();
        for way in WAYS {
            let has = self.has.contains(&way);
            for on in ["1", "0"] {
                let said = self.bypass(way, on)?;
                ensure!(said.refused() || !has, "{when}, {way}: bypass {on}: {said:?}");
            }
            let socket = self.xdp(way)?;
            // A socket by io_uring is of another kernel than an option by it: some refuse neither, and make none.
            ensure!(socket.refused() || (way == "uring" && !has), "{when}, {way}: AF_XDP {socket:?}");
            let other = ask(&self.world.server, &["priority", way])?;
            ensure!(other.good() || !has, "{when}, {way}: an ordinary option: {other:?}");
        }
        ensure!(self.escaped() == 0, "{when}: {} frames went round", self.escaped());
        Ok(())
    }
}

fn sound(guard: &Guard, when: &str) -> Result<()> {
    let status = guard.status()?;
    ensure!(status["enforcing"] == true, "{when}: {status:#}");
    ensure!(!status["missing"].to_string().contains("fmod_ret"), "{when}: {status:#}");
    ensure!(guard.sealed_at_functions()?, "{when}: the seal is not at functions: {status:#}");
    Ok(())
}

pub fn functions() -> Result<()> {
    let round = Round::new()?;
    let world = &round.world;
    // Prepared before guard starts.
    let mut old = Process::spawn(command(&world.server, &["bypasses", "eth0", &round.frame])?.stdin(Stdio::piped()))?;
    let mut keyboard = old.stdin().context("no standard input")?;
    old.wait_line(LIMIT, |line| line.starts_with("ok"))?;

    let mut guard = Guard::start(world, super::POLICY)?;
    sound(&guard, "started")?;
    round.is_refused("with guard")?;
    ensure!(guard.packets("sealed", "outbound", true)? >= 6, "not counted");
    guard.wait_records(|record| record["guard"]["event"] == "sealed")?;
    // A task of another cgroup is left alone, as the cgroup form leaves its sockets.
    let outside = ask(&world.operator, &["bypass", "native", "eth0", "1", &round.frame])?;
    ensure!(outside.good(), "a task of another cgroup: {outside:?}");

    // What went round before was told to stop when guard started, and cannot begin again. One that goes the right way is
    // refused every value, 0 too: so nothing was left to tell.
    let told = |old: &mut Process, keyboard: &mut dyn Write, on: &str, lines: usize| -> Result<String> {
        writeln!(keyboard, "{on}")?;
        for _ in 0..1000 {
            if let Some(line) = old.output().lines().nth(lines) {
                return Ok(line.to_owned());
            }
            thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("no answer: {}", old.output())
    };
    round.witness.forget();
    let stopped = told(&mut old, &mut keyboard, "0", 1)?;
    ensure!(stopped.starts_with("1 ") && round.escaped() == 0, "guard's start did not tell it to stop: {stopped}");
    let again = told(&mut old, &mut keyboard, "1", 2)?;
    println!("guard-vm: seal: a socket older than guard, told by its start: 0: {stopped}; 1: {again}");
    ensure!(again.starts_with("1 ") && round.escaped() == 0, "it begins again: {again}");

    // The kernel goes on by itself, and the next daemon takes over.
    guard.kill()?;
    round.is_refused("with the daemon dead")?;
    guard.run(&[])?;
    sound(&guard, "taken over")?;
    round.is_refused("taken over")?;
    // A pin that is taken away is noticed, and put back.
    let pins = pinned_links(&world.operator)?;
    let pin = pins.iter().find(|pin| pin.ends_with("/seal_option")).context("no pin of the seal")?;
    guard.signal(Signal::SIGSTOP)?;
    ensure!(run(world.operator.command("/sbin/rm").arg(pin), LIMIT)?.good(), "cannot unpin");
    ensure!(guard.status()?["enforcing"] == false, "unpinned, and not noticed: {:#}", guard.status()?);
    guard.signal(Signal::SIGCONT)?;
    guard.status_until(LIMIT * 3, |status| status["enforcing"] == true)?;
    round.is_refused("pinned again")?;

    guard.release()?;
    for way in &round.has {
        round.witness.forget();
        let (said, socket) = (round.bypass(way, "1")?, round.xdp(way)?);
        ensure!(said.good() && !socket.refused(), "refused after release, {way}: {said:?}, AF_XDP {socket:?}");
        ensure!(round.witness.waits_for(LIMIT, |packet| packet.destination_port == PORT), "released, {way}");
    }
    Ok(())
}
