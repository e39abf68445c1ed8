use std::path::PathBuf;

use clap::Args;

use super::{Exit, Global, InstanceArgs, check, output, run::PlaceArgs};
use crate::{
    daemon::{
        attached::{self, StartOptions},
        engine::Engine,
    },
    lockdown::{
        base::Allow,
        prepare::{Found, Guarded, PrepareError, Wishes, prepare},
    },
};

/// Contain this host now: the way in stays, everything else is cut
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    guard lockdown --dry-run                          # what stays, what is cut, what that harms\n  \
    guard lockdown --allow-from 198.51.100.9          # and a second way in\n  \
    guard lockdown --keep rsyslog --serve tcp/443     # go on shipping logs, stay in service\n\n\
    It opens again by itself unless `guard confirm` comes in time.")]
pub struct LockdownArgs {
    /// May come in, too: an address or CIDR, and after a colon the service [default: the way in's]
    #[arg(long, value_name = "CIDR[:SERVICE]")]
    pub allow_from: Vec<Allow>,
    /// May be reached from here: an address or CIDR, and after a colon the service [default: any]
    #[arg(long, value_name = "CIDR[:SERVICE]")]
    pub allow_to: Vec<Allow>,
    /// Keep what this unit is connected to now (a security agent, a log shipper)
    #[arg(long, value_name = "UNIT")]
    pub keep: Vec<String>,
    /// Stay in service for everybody on these ports (tcp/80,tcp/443)
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    pub serve: Vec<String>,
    /// Leave the resolvers open: a look-up can be a tunnel
    #[arg(long)]
    pub dns: bool,
    /// Put this policy in force instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["allow_from", "allow_to", "keep", "serve", "dns", "responders"])]
    pub policy: Option<PathBuf>,
    /// Cut the session that asks, too
    #[arg(long)]
    pub no_keep_session: bool,
    /// Nobody comes in over the network: you sit at the console
    #[arg(long)]
    pub console: bool,
    /// Of an IPv6 source keep the one address, not its /64
    #[arg(long)]
    pub exact: bool,
    /// Addresses that may come in, one a line [default: /etc/guard/responders.txt, if it is there]
    #[arg(long, value_name = "FILE")]
    pub responders: Option<PathBuf>,
    /// Cut this other session that comes from where you come from (a bastion), by its process
    #[arg(long, value_name = "PID")]
    pub cut: Vec<u32>,
    /// Show all of it, and stop there
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

impl LockdownArgs {
    fn wishes(&self) -> Wishes {
        Wishes {
            allow_from: self.allow_from.clone(),
            allow_to: self.allow_to.clone(),
            keep: self.keep.clone(),
            serve: self.serve.clone(),
            dns: self.dns,
            policy: self.policy.clone(),
            no_keep_session: self.no_keep_session,
            console: self.console,
            exact: self.exact,
            responders: self.responders.clone(),
            cut: self.cut.clone(),
        }
    }

    fn options(&self) -> StartOptions {
        StartOptions {
            include: self.place.interface.clone(),
            exclude: self.place.not_interface.clone(),
            // Else a packet socket would still hear what is denied: so do magic-packet implants take their orders.
            shield: true,
            cgroup: self.place.cgroup.clone(),
            ports: true,
        }
    }
}

pub fn run(args: &LockdownArgs, global: &Global) -> anyhow::Result<Exit> {
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "a lockdown needs root: sudo guard lockdown");
    let guarded = guarded(args)?;
    let found = Found::read(args.exact, &guarded)?;
    let prepared = match prepare(&found, &args.wishes(), &guarded) {
        Ok(prepared) => prepared,
        Err(error) => return refused(error, global),
    };
    let suffix = args.instance.suffix();
    if global.json {
        output::json_line(&serde_json::json!({ "event": "plan", "plan": prepared.plan }))?;
    } else {
        output::print(&prepared.plan.render(&suffix))?;
    }
    if !global.json {
        output::print(&format!("\n{}\nnothing was changed (--dry-run)\n", prepared.plan.policy))?;
    }
    Ok(Exit::Good)
}

/// Of an instance that runs, what it has; else what would be guarded.
fn guarded(args: &LockdownArgs) -> anyhow::Result<Guarded> {
    let (generation, lines, tables) = match attached::open(&args.instance.instance)? {
        Some(kernel) => {
            let engine: &dyn Engine = &kernel;
            (engine.next_generation()?, engine.interfaces()?, engine.flows()?)
        }
        None => (1, attached::preview(&args.options())?, Vec::new()),
    };
    let guarded = || lines.iter().filter(|line| line.guarded);
    Ok(Guarded {
        indices: guarded().map(|line| line.index).collect(),
        names: guarded().map(|line| line.name.clone()).collect(),
        tables,
        generation,
    })
}

/// Nothing was changed: said as whoever asked can use it.
fn refused(error: PrepareError, global: &Global) -> anyhow::Result<Exit> {
    match error {
        PrepareError::Refused(refusal) => {
            if global.json {
                output::json_line(&serde_json::json!({ "event": "refused", "message": refusal.to_string() }))?;
            } else {
                let text = output::escape(&refusal.to_string());
                eprintln!("{} {text}", output::Style::stderr().error("error:"));
            }
            Ok(Exit::CouldNot)
        }
        PrepareError::Policy(found) => {
            if global.json {
                output::json_line(&serde_json::json!({ "valid": false, "diagnostics": found.json() }))?;
            } else {
                check::show(&found, true)?;
            }
            Ok(Exit::No)
        }
        PrepareError::Other(error) => Err(error),
    }
}
