//! `cargo xtask demo`: a server, three hosts outside it, real programs on all of them; first without guard, then with.

mod network;
mod traffic;

use crate::lab::{host, sandbox};
use crate::{packages, shell};
use anyhow::{Context as _, Result, bail, ensure};
use network::Network;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use traffic::{ACTIONS, Expect};

/// Show guard at work: a server with real services, three hosts outside, what passes and what does not
///
/// Needs root, for network namespaces; touches none of the machine's own interfaces, and leaves nothing.
#[derive(clap::Args)]
pub struct Args {
    /// Install nothing, even as root
    #[arg(long)]
    no_install: bool,
    #[arg(long, hide = true)]
    inside: bool,
}

pub fn run(args: &Args) -> Result<bool> {
    if args.inside {
        return inside();
    }
    let needs = packages::ready(packages::BUILD, !args.no_install && shell::is_root())?
        .or(packages::ready(packages::DEMO, !args.no_install && shell::is_root())?);
    if let Some(reason) = needs {
        bail!("{reason}");
    }
    if std::env::var_os("GUARD_BIN").is_none() {
        let build = ["build", "--package", "guard", "--bin", "guard", "--locked", "--quiet"];
        let built = shell::run(shell::cargo().args(build), Duration::from_secs(1200))?;
        if !built.good {
            bail!("guard does not build ({})", built.how);
        }
    }
    sandbox::enter(&["demo", "--inside"])
}

/// Which of the shipped policies the server runs.
const POLICY: &str = "policies/web-server.yaml";

fn inside() -> Result<bool> {
    let cgroup = sandbox::inside().context("--inside is for the demo itself")?;
    let start = Instant::now();
    sandbox::settle()?;
    let network = Network::make(&cgroup)?;
    println!("A web server and three hosts outside it, each in a network namespace of its own:\n");
    for host in network.hosts() {
        println!("  {:<10} {:<16} {}", host.name, host.v4, host.v6);
    }
    println!("\nWithout guard, all of this gets through:\n");
    let mut good = true;
    for action in ACTIONS {
        let seen = (action.run)(&network)?;
        println!("  {:<6} {:<11} {:<44} {}", tick(seen.reached), action.who, action.what, seen.detail);
        // A demo in which the attack would not work anyway shows nothing.
        good &= seen.reached;
    }
    if !good {
        bail!("something above did not get through although nothing stood in its way: the demo is at fault");
    }

    let guard = Guard::start(&network, &cgroup)?;
    println!("\nWith {POLICY} enforced on the server ({:.1} s from start to ready):\n", guard.ready.as_secs_f64());
    for action in ACTIONS {
        let seen = (action.run)(&network)?;
        let as_expected = seen.reached == matches!(action.expect, Expect::Allowed);
        good &= as_expected;
        let verdict = if seen.reached { "passed" } else { "DENIED" };
        let odd = if as_expected { "" } else { "   <- not what the policy says" };
        println!("  {verdict:<6} {:<11} {:<44} {}{odd}", action.who, action.what, seen.detail);
    }
    let scanned = format!(" in tcp {} ", network.intruder.v4);
    println!("\n$ guard status\n");
    println!("{}", guard.ask(&network, &["status"])?);
    println!("$ guard flows\n");
    let flows = guard.ask(&network, &["flows"])?;
    let (scan, rest): (Vec<_>, Vec<_>) = flows.lines().partition(|line| line.contains(&scanned));
    for line in rest {
        println!("{line}");
    }
    println!("({} more from the port scan)\n", scan.len());
    guard.ask(&network, &["release"])?;
    println!("Took {:.0} s; everything is taken down.", start.elapsed().as_secs_f64());
    Ok(good)
}

fn tick(reached: bool) -> &'static str {
    if reached { "passed" } else { "failed" }
}

struct Guard {
    program: PathBuf,
    ready: Duration,
    _daemon: host::Server,
}

const ENFORCED: &str = "/run/lab/policy.yaml";
const LOG: &str = "/run/lab/guard.log";

impl Guard {
    fn start(network: &Network, cgroup: &Path) -> Result<Self> {
        let program = std::env::var_os("GUARD_BIN").map_or_else(|| shell::target().join("debug/guard"), PathBuf::from);
        // As shipped it watches only.
        let text = std::fs::read_to_string(shell::root().join(POLICY)).context(POLICY)?;
        ensure!(text.contains("\nmode: audit\n"), "{POLICY} has another mode than was expected");
        std::fs::write(ENFORCED, text.replace("\nmode: audit\n", "\nmode: enforce\n"))?;
        let start = Instant::now();
        let mut command = network.server.command(&program.to_string_lossy());
        command.args(["run", ENFORCED, "--cgroup"]).arg(cgroup).args(INSTANCE);
        let daemon = host::Server::start_to(&mut command, Path::new(LOG))?;
        let said = || std::fs::read_to_string(LOG).unwrap_or_default();
        host::wait_for("guard run", || said().contains("ready")).with_context(|| format!("guard said:\n{}", said()))?;
        Ok(Self { program, ready: start.elapsed(), _daemon: daemon })
    }

    fn ask(&self, network: &Network, args: &[&str]) -> Result<String> {
        let mut command = network.server.command(&self.program.to_string_lossy());
        let (_, text) = host::ask(command.args(args).args(INSTANCE), "", Duration::from_secs(5))?;
        Ok(text)
    }
}

const INSTANCE: [&str; 4] = ["--instance", "demo", "--state-dir", "/run/lab/state"];
