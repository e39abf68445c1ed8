use clap::Args;

use super::{Exit, Global, InstanceArgs, NotAvailable};

/// Undo an unconfirmed change now
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard rollback")]
pub struct RollbackArgs {
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(_args: &RollbackArgs, _global: &Global) -> anyhow::Result<Exit> {
    Err(NotAvailable { command: "rollback" }.into())
}
