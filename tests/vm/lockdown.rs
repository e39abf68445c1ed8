//! The essentials of `guard lockdown`: what is kept goes on, what an intruder holds ends, it is confirmed, and without a
//! confirmation the kernel opens the host again by itself, with the daemon dead.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use guard_tests::{
    flows::Flow,
    guard::Guard,
    process::{Process, run},
    session::Session,
    witness::Witness,
    world::World,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{LIMIT, SHORT};

const BEFORE: &str = "version: 1\nname: before\nmode: enforce\ninbound:\n  - { name: in, from: any, services: any }\n\
                      outbound:\n  - { name: out, to: any, services: any }\n";
/// Loading the programs is in it.
const PATIENCE: Duration = Duration::from_secs(300);
/// Long enough that all of what is looked at before it lies before it.
const WITHIN: Duration = Duration::from_secs(40);

struct Host {
    world: World,
    guard: Guard,
    kept: Session,
    intruder: Session,
    witness: Witness,
}

impl Host {
    fn new() -> Result<Self> {
        let world = World::create().context("a world")?;
        let guard = Guard::start(&world, BEFORE)?;
        let kept = Session::begin(&world, &Flow::new("in tcp client 7000", false))?;
        let intruder = Session::begin(&world, &Flow::new("out tcp intruder 4444", false))?;
        let witness = Witness::start(&world.router, World::WIRE)?;
        Ok(Self { world, guard, kept, intruder, witness })
    }

    /// Returns as soon as the host is contained; the process waits for the confirmation.
    fn lock_down(&self, within: &str) -> Result<Process> {
        let mut command = self.guard.command("lockdown")?;
        command.env("GUARD_RECOVERY", self.world.dir().join("recovery")).stdin(Stdio::null());
        command.args(["--yes", "--json", "--evidence", "none", "--allow-from", "192.0.2.20:tcp/7000"]);
        command.args(["--confirm-within", within, "--cgroup"]).arg(self.world.cgroup());
        let start = Instant::now();
        let mut process = Process::spawn(&mut command)?;
        process.wait_line(PATIENCE, |line| line.contains("\"event\":\"contained\""))?;
        println!("guard-vm: lockdown: contained {:?} after the command", start.elapsed());
        Ok(process)
    }

    fn is_contained(&mut self, when: &str) -> Result<()> {
        self.witness.forget();
        for from_server in [true, false] {
            self.kept.speaks(from_server, LIMIT).with_context(|| format!("{when}: the kept connection"))?;
            ensure!(self.intruder.speaks(from_server, SHORT).is_err(), "{when}: the intruder's connection goes on");
        }
        let to_intruder = self.witness.count(|packet| packet.destination == self.world.intruder.v4);
        ensure!(to_intruder == 0, "{when}: {to_intruder} packets to the intruder left");
        Ok(())
    }
}

pub fn confirmed() -> Result<()> {
    let mut host = Host::new()?;
    let waiting = host.lock_down("10m")?;
    host.is_contained("contained")?;
    host.guard.tell("confirm", &["--no-new-login", "--one-way-in"])?;
    let ended = waiting.finish(PATIENCE)?;
    ensure!(ended.good(), "after the confirmation: {}", ended.text());
    let status = host.guard.status()?;
    ensure!(!status["lockdown"]["confirmed"].is_null() && status["deadline"].is_null(), "{status:#}");
    host.is_contained("confirmed")?;
    host.guard.tell("restore", &["--confirm-within", "none"])?;
    let again = Session::begin(&host.world, &Flow::new("out tcp intruder 4445", false));
    again.context("restored: what was allowed before")?;
    host.guard.release()?;
    Ok(())
}

pub fn rolled_back_by_the_kernel() -> Result<()> {
    let mut host = Host::new()?;
    let start = Instant::now();
    let mut waiting = host.lock_down(&format!("{}s", WITHIN.as_secs()))?;
    host.is_contained("contained")?;
    // Nothing of guard runs any more.
    waiting.kill()?;
    if let Some(pid) = host.guard.status()?["daemon"]["pid"].as_i64() {
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    }
    host.guard.status_until(PATIENCE, |status| status["daemon"].is_null())?;
    // What it sends while it is cut, TCP sends again later and later.
    host.intruder.speaks(true, WITHIN * 3).context("after the deadline, with the daemon dead")?;
    let after = start.elapsed();
    println!("guard-vm: lockdown: open again {after:?} after the command");
    ensure!(after >= WITHIN, "open before the deadline");
    host.kept.speaks(true, LIMIT).context("the kept connection, after the deadline")?;
    run(host.guard.command("release")?.args(["--host", &hostname()]), PATIENCE)?;
    Ok(())
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
