use clap::Args;

use super::{Exit, Global, InstanceArgs, NotAvailable};

/// List the flows that the kernel holds, or follow them as they come
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard flows --follow")]
pub struct FlowsArgs {
    /// Print records as they come, until interrupted
    #[arg(long)]
    pub follow: bool,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(_args: &FlowsArgs, _global: &Global) -> anyhow::Result<Exit> {
    Err(NotAvailable { command: "flows" }.into())
}
