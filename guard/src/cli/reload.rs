use std::path::PathBuf;

use clap::Args;

use super::{Exit, Global, InstanceArgs, NotAvailable};

/// Change the policy in force, in one step; on any error the old one stays
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  guard reload                 # the same file again\n  \
    guard reload policy.yaml --dry-run\n  guard reload policy.yaml --confirm-within 5m")]
pub struct ReloadArgs {
    /// Left out: the file that runs now, read again
    #[arg(value_name = "POLICY")]
    pub policy: Option<PathBuf>,
    /// Decide and record as ever, but drop nothing, whatever mode the policy names
    #[arg(long)]
    pub audit: bool,
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

pub fn run(_args: &ReloadArgs, _global: &Global) -> anyhow::Result<Exit> {
    Err(NotAvailable { command: "reload" }.into())
}
