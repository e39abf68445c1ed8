use std::path::PathBuf;

use clap::Args;

use super::{Exit, Global, InstanceArgs, NotAvailable};

/// Put a policy in force on this host, then record until told to stop
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    guard run policy.yaml --audit          # decide and record, drop nothing\n  \
    guard run policy.yaml --dry-run        # what would be cut\n  \
    guard run policy.yaml                  # from a remote terminal: undone unless you `guard confirm` within 2 min\n\n\
    Ending the command ends the recording; the kernel still enforces until `guard release`.")]
pub struct RunArgs {
    #[arg(value_name = "POLICY")]
    pub policy: PathBuf,
    /// Decide and record as ever, but drop nothing, whatever mode the policy names
    #[arg(long)]
    pub audit: bool,
    /// Also drop denied inbound packets before packet sockets see them (XDP)
    #[arg(long)]
    pub shield: bool,
    /// Guard interfaces whose name matches (repeatable; `*` and `?`) instead of those where frames leave this host
    #[arg(long, value_name = "PATTERN")]
    pub interface: Vec<String>,
    /// Leave out interfaces whose name matches (repeatable)
    #[arg(long, value_name = "PATTERN")]
    pub not_interface: Vec<String>,
    /// Guard the sockets of this control group and those below it [default: the root of cgroup2]
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Show what would be cut, and stop there
    #[arg(long)]
    pub dry_run: bool,
    /// Go on even if this terminal's own connection would be cut
    #[arg(long)]
    pub cut_me: bool,
    /// Undo the change unless `guard confirm` comes in this time (`90s`, `2m`; `none`) [default: 2m from a remote
    /// terminal, none else]
    #[arg(long, value_name = "TIME")]
    pub confirm_within: Option<String>,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(_args: &RunArgs, _global: &Global) -> anyhow::Result<Exit> {
    Err(NotAvailable { command: "run" }.into())
}
