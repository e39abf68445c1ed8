//! What `guard lockdown` is asked for.

use std::path::PathBuf;

use clap::Args;

use super::super::{ByArgs, InstanceArgs, run::PlaceArgs};
use crate::{
    daemon::{attached::StartOptions, way_back::Within},
    lockdown::{act::OnTimeout, base::Allow, prepare::Wishes},
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
    /// Keep what is open from where you come from, and let nobody else in from there, you neither: for a bastion or a NAT
    /// that others use
    #[arg(long, conflicts_with_all = ["policy", "no_keep_session"])]
    pub this_session_only: bool,
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
    /// Ask nothing: only what the options name is kept
    #[arg(long, short)]
    pub yes: bool,
    /// It opens again unless `guard confirm` comes in this time (`90s`, `2m`; `none`: it stays once it is proven)
    #[arg(long, value_name = "TIME", default_value = "2m")]
    pub confirm_within: Within,
    /// What holds when nobody confirms
    #[arg(long, value_enum, default_value_t)]
    pub on_timeout: OnTimeout,
    /// Save the volatile state to this new directory first; `none`: do not
    /// [default: /var/lib/guard/evidence/TIME]
    #[arg(long, value_name = "DIR")]
    pub evidence: Option<PathBuf>,
    /// How many seconds that may take before the host is contained; the rest follows
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    pub snapshot_within: f64,
    /// End the sockets of what is cut at once, not at the confirmation: a rollback cannot bring them back
    #[arg(long)]
    pub destroy_now: bool,
    /// Write the countdown to every terminal: it tells the intruder, too
    #[arg(long)]
    pub wall: bool,
    /// Record in this process, at the terminal, instead of in the background
    #[arg(long)]
    pub foreground: bool,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

impl LockdownArgs {
    pub(super) fn wishes(&self) -> Wishes {
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
            this_session_only: self.this_session_only,
            responders: self.responders.clone(),
            cut: self.cut.clone(),
        }
    }

    pub(super) fn options(&self) -> StartOptions {
        StartOptions {
            include: self.place.interface.clone(),
            exclude: self.place.not_interface.clone(),
            // Else a packet socket would still hear what is denied: so do magic-packet implants take their orders.
            shield: true,
            cgroup: self.place.cgroup.clone(),
            flows: self.place.flows,
            ports: true,
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds, from 0 to 600".to_owned()),
    }
}
