use clap::Args;

use super::{Exit, Global, InstanceArgs, NotAvailable};

/// Say what the kernel enforces, read back from it
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard status")]
pub struct StatusArgs {
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(_args: &StatusArgs, _global: &Global) -> anyhow::Result<Exit> {
    Err(NotAvailable { command: "status" }.into())
}
