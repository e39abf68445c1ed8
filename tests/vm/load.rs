//! Runs as the only program of a virtual machine (`cargo xtask vm load`): guard on this kernel. Each result is one line
//! on the serial console that begins with `guard-vm: `.

mod admission;
mod holds;
mod lockdown;
mod programs;
mod seal;
mod stacked;

use std::{
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use guard_tests::{
    agent, budget,
    echo::{Echo, tcp_reaches, udp_reaches},
    flows::Flow,
    guard::Guard,
    session::Session,
    world::{World, has_ipv6},
};
use serde_json::{Value, json};

/// What one of them is called, and the test.
type Case = (&'static str, fn() -> Result<()>);

/// `GUARD_CASE`, which the kernel hands on from its command line, says what is odd about this machine.
fn cases() -> Vec<Case> {
    let base: [Case; 3] = [
        ("programs load within their budget", programs::load),
        ("a world without guard", world),
        ("one allowed and one denied flow", flows),
    ];
    let essentials: [Case; 5] = [
        ("killed, and taken over", holds::kill_and_adoption),
        ("a denied container is told at once", holds::on_deny),
        ("the seal at kernel functions", seal::functions),
        ("a lockdown, confirmed and restored", lockdown::confirmed),
        ("a lockdown, undone by the kernel", lockdown::rolled_back_by_the_kernel),
    ];
    let rest: [Case; 4] = [
        ("a connection outlives a wrong edit", cut),
        ("expiry after a clock step", clock),
        ("bpf(2) under a lockdown is guard's alone", admission::others),
        ("containers and this host, both ways", holds::container_host),
    ];
    match std::env::var("GUARD_CASE").as_deref() {
        Ok("no-btf") => vec![("a kernel without type information is refused by name", refused)],
        Ok("stacked") => vec![("devices over devices, and tunnels", stacked::devices)],
        // The container's answers need a bridge and IPv6 as any other machine's; the seal may not be at functions.
        Ok("ipv6-off" | "hybrid") => base.into_iter().chain([essentials[0], essentials[1], essentials[3]]).collect(),
        // What is refused by `fmod_ret` is refused with the kernel's own BPF LSM and without.
        Ok("bpf-lsm" | "no-bpf-lsm") => base.into_iter().chain([essentials[0], essentials[2], rest[2]]).collect(),
        Ok(_) => base.into_iter().chain([essentials[0], essentials[2]]).collect(),
        Err(_) => base.into_iter().chain(essentials).chain(rest).collect(),
    }
}

/// What takes long: for `cargo xtask vm test`.
const NOT_IN_CI: [&str; 5] = [
    "killed, and taken over",
    "a denied container is told at once",
    "containers and this host, both ways",
    "a lockdown, confirmed and restored",
    "a lockdown, undone by the kernel",
];

fn main() -> ExitCode {
    let mut good = true;
    let words = std::env::var("GUARD_ONLY").unwrap_or_default();
    let in_ci = std::env::var("GUARD_PART").is_ok_and(|part| part == "ci");
    let wanted = |name: &str| name.contains(words.as_str()) && !(in_ci && NOT_IN_CI.contains(&name));
    for (name, case) in cases().into_iter().filter(|(name, _)| wanted(name)) {
        let start = Instant::now();
        match case() {
            Ok(()) => println!("guard-vm: passed {name} ({:.1} s)", start.elapsed().as_secs_f64()),
            Err(error) => {
                good = false;
                println!("guard-vm: FAILED {name}: {error:#}");
            }
        }
    }
    println!("guard-vm: end");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn families() -> &'static [bool] {
    if has_ipv6() { &[false, true] } else { &[false] }
}

/// Says what is missing and since when kernels have it, and leaves nothing in the kernel.
fn refused() -> Result<()> {
    let world = World::create().context("a world")?;
    let error = Guard::start(&world, POLICY).err().context("guard started")?.to_string();
    println!("guard-vm: refused: {error}");
    ensure!(error.contains("type information (BTF)") && error.contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
    ensure!(error.contains("guard export nft"), "what else there is: {error}");
    Ok(())
}

/// An emulated processor is slow.
const LIMIT: Duration = Duration::from_secs(10);
/// For what must not get through.
const SHORT: Duration = Duration::from_secs(2);
const ALLOWED: u16 = 7000;
const DENIED: u16 = 7001;

/// What the denials below prove nothing without.
fn world() -> Result<()> {
    let world = World::create().context("a world")?;
    for &ipv6 in families() {
        let open = Echo::tcp(&world.server, world.server.address(ipv6), DENIED)?;
        tcp_reaches(&world.client, open.address, LIMIT).context("without guard")?;
        let far = Echo::udp(&world.client, world.client.address(ipv6), DENIED)?;
        udp_reaches(&world.server, far.address, LIMIT).context("without guard")?;
    }
    Ok(())
}

pub const POLICY: &str = "version: 1
name: vm
mode: enforce
inbound:
  - { name: in, from: [192.0.2.20, '2001:db8:2::20'], services: [tcp/7000, udp/7000] }
outbound:
  - { name: out, to: [192.0.2.20, '2001:db8:2::20'], services: [tcp/7000, udp/7000] }
";

/// Both directions, families and protocols, by the binary as an operator runs it.
fn flows() -> Result<()> {
    let world = World::create().context("a world")?;
    let start = Instant::now();
    let mut guard = Guard::start(&world, POLICY)?;
    println!("guard-vm: seconds started {:.2}", start.elapsed().as_secs_f64());
    let status = guard.status()?;
    println!("guard-vm: status {status}");
    seal_programs()?;
    ensure!(status["enforcing"] == true, "guard does not say that it enforces");
    for &ipv6 in families() {
        for (from, to) in [(&world.client, &world.server), (&world.server, &world.client)] {
            let address = to.address(ipv6);
            let tcp = (Echo::tcp(to, address, ALLOWED)?, Echo::tcp(to, address, DENIED)?);
            tcp_reaches(from, tcp.0.address, LIMIT).with_context(|| format!("allowed, tcp to {address}"))?;
            ensure!(tcp_reaches(from, tcp.1.address, SHORT).is_err(), "denied, and tcp to {address} got through");
            let udp = (Echo::udp(to, address, ALLOWED)?, Echo::udp(to, address, DENIED)?);
            udp_reaches(from, udp.0.address, LIMIT).with_context(|| format!("allowed, udp to {address}"))?;
            ensure!(udp_reaches(from, udp.1.address, SHORT).is_err(), "denied, and udp to {address} got through");
            ensure!((tcp.1.reached(), udp.1.reached()) == (0, 0), "a denied flow reached {address}");
        }
    }
    named(&guard, &world)?;
    guard.stop()?;
    guard.release()?;
    Ok(())
}

/// Those at kernel functions, which guard alone loads.
fn seal_programs() -> Result<()> {
    let mut counts = Vec::new();
    for program in aya::programs::loaded_programs() {
        let program = program?;
        let name = program.name_as_str().unwrap_or_default();
        if matches!(name, "seal_option" | "seal_create") {
            counts.push((name.to_owned(), program.verified_instruction_count().unwrap_or(0)));
        }
    }
    counts.sort();
    counts.dedup();
    programs::tell(&counts);
    budget::check_some(&counts)?;
    Ok(())
}

/// A program that is gone at once has its name: this kernel takes the programs that tell of it, and its fields are found.
fn named(guard: &Guard, world: &World) -> Result<()> {
    let notices = guard.status()?["daemon"]["notices"].to_string();
    ensure!(!notices.contains("which programs run"), "{notices}");
    let to = SocketAddr::new(world.client.address(false), ALLOWED).to_string();
    agent::ask(&world.server, &["connect", "tcp", &to])?;
    let of = |record: &Value| record["guard"]["who"]["args"].as_array().is_some_and(|args| args.contains(&json!(to)));
    let found = guard.wait_records(of).context("no record has the arguments")?;
    let who = &found[0]["guard"]["who"];
    println!("guard-vm: who {who}");
    ensure!(who["exe"].as_str().is_some_and(|exe| exe.ends_with("guard-test-agent")), "exe: {who}");
    ensure!(who["parents"][0]["pid"] == std::process::id(), "parents: {who}");
    ensure!(who["found_by"] == "socket", "found_by: {who}");
    Ok(())
}

/// Longer than the 8 s after which TCP gives up where the host itself tells it that its packets are dropped.
const CUT: Duration = Duration::from_secs(15);

/// Cut by a change that nobody confirms, a connection goes on when the kernel undoes it.
fn cut() -> Result<()> {
    let world = World::create().context("a world")?;
    let mut guard = Guard::start(&world, POLICY)?;
    let flow = Flow::new("in tcp client 7000", false);
    let mut session = Session::begin(&world, &flow)?;
    let before = guard.packets("not_listed", "outbound", true)?;
    let wrong = POLICY.replace("from: [192.0.2.20,", "from: [192.0.2.21,");
    let within = format!("{}s", CUT.as_secs());
    let start = Instant::now();
    // The connection ends in this very process, so guard would refuse to cut it.
    let done = guard.reload(&wrong, &["--cut-me", "--confirm-within", &within])?;
    ensure!(done.good(), "reload: {}", done.text());
    ensure!(session.speaks(true, SHORT).is_err(), "it is not cut");
    std::thread::sleep(CUT.saturating_sub(start.elapsed()));
    let tried = guard.packets("not_listed", "outbound", true)? - before;
    println!("guard-vm: cut: {tried} packets of the server were dropped meanwhile");
    ensure!(tried >= 3, "only {tried} packets were held back");
    session.speaks(true, CUT * 2).context("after the deadline, from the server")?;
    println!("guard-vm: cut: goes on {:?} after the change", start.elapsed());
    session.speaks(false, CUT * 2).context("after the deadline, to the server")?;
    guard.stop()?;
    guard.release()?;
    Ok(())
}

/// 2030-01-01T00:00:00Z, in Unix time.
const NEW_YEAR: i64 = 1_893_456_000;

/// A rule's expiry is a wall time: when the clock is stepped, the kernel's own clock is told anew.
fn clock() -> Result<()> {
    let set = |seconds: i64| -> Result<()> {
        let time = nix::sys::time::TimeSpec::new(seconds, 0);
        Ok(nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, time)?)
    };
    set(NEW_YEAR)?;
    let world = World::create().context("a world")?;
    let far = Echo::udp(&world.client, world.client.address(false), ALLOWED)?;
    let policy = "version: 1\nname: clock\nmode: enforce\ninbound: []\noutbound:\n  \
                  - { name: lent, to: any, services: udp/7000, expires: 2030-01-01T01:00:00Z }\n";
    let guard = Guard::start(&world, policy)?;
    for (when, at, passes) in [
        ("an hour before its end", NEW_YEAR, true),
        ("stepped past its end", NEW_YEAR + 7200, false),
        ("stepped back", NEW_YEAR + 600, true),
    ] {
        set(at)?;
        let start = Instant::now();
        let limit = if passes { LIMIT } else { SHORT };
        while udp_reaches(&world.server, far.address, limit).is_ok() != passes {
            // One look may take ten seconds in an emulated kernel, and the first ones may come before the daemon's.
            ensure!(start.elapsed() < 10 * LIMIT, "{when}: it should pass: {passes}");
        }
        println!("guard-vm: clock: {when}: right after {:?}", start.elapsed());
    }
    guard.release()?;
    Ok(())
}
