use clap::Args;

use super::{Exit, Global, InstanceArgs, NotAvailable};

/// Say what a policy does with a flow, and why
#[derive(Debug, Args)]
#[command(
    override_usage = "guard explain [OPTIONS] [POLICY] FLOW",
    after_help = "Examples:\n  \
        guard explain policy.yaml 'out tcp 203.0.113.9:443'\n  \
        guard explain policy.yaml 'in udp 198.51.100.7 -> 53'\n  \
        guard explain 'out icmp 203.0.113.9 echo-request'        # the policy that is running\n  \
        guard explain policy.yaml 'out tcp [2001:db8::9]:443'\n\n\
        Exit code 1 when the flow is denied."
)]
pub struct ExplainArgs {
    /// The policy (left out: the one that is running), then the flow
    #[arg(value_name = "POLICY FLOW", required = true, num_args = 1..=2)]
    pub what: Vec<String>,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(_args: &ExplainArgs, _global: &Global) -> anyhow::Result<Exit> {
    Err(NotAvailable { command: "explain" }.into())
}
