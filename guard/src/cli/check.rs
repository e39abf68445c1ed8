use std::path::PathBuf;

use clap::Args;

use super::{Exit, Global, NotAvailable};

/// Check a policy: every error and warning at once, each with its place and the fix
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  guard check policy.yaml\n  guard check --effective policy.yaml | less")]
pub struct CheckArgs {
    #[arg(value_name = "POLICY")]
    pub policy: PathBuf,
    /// Print the policy as it will hold: includes and groups resolved, defaults and essential traffic written out
    #[arg(long)]
    pub effective: bool,
}

pub fn run(_args: &CheckArgs, _global: &Global) -> anyhow::Result<Exit> {
    Err(NotAvailable { command: "check" }.into())
}
