use clap::Args;

use super::{Exit, Global, InstanceArgs, NotAvailable};

/// Keep a change that would otherwise be undone at its deadline
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard confirm")]
pub struct ConfirmArgs {
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(_args: &ConfirmArgs, _global: &Global) -> anyhow::Result<Exit> {
    Err(NotAvailable { command: "confirm" }.into())
}
