use clap::Args;

use super::{Exit, Global, InstanceArgs, NotAvailable};

/// Take everything down: this host is open again
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard release")]
pub struct ReleaseArgs {
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(_args: &ReleaseArgs, _global: &Global) -> anyhow::Result<Exit> {
    Err(NotAvailable { command: "release" }.into())
}
