use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;

use super::{Exit, Global, NotAvailable};

/// Show what a policy would have done with recorded traffic, flow by flow
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  guard replay policy.yaml capture.pcapng\n  \
    guard replay policy.yaml capture.pcap --local 192.0.2.10/32 --filter 'tcp port 443'\n  \
    tcpdump -w - -i eth0 | guard replay policy.yaml -")]
pub struct ReplayArgs {
    #[arg(value_name = "POLICY")]
    pub policy: PathBuf,
    /// pcap or pcapng; `-` reads standard input
    #[arg(value_name = "CAPTURE")]
    pub capture: PathBuf,
    /// Addresses of the host that the policy is for (repeatable)
    #[arg(long, value_name = "CIDR")]
    pub local: Vec<IpNet>,
    /// Only packets that this capture filter takes (pcap-filter(7))
    #[arg(long, value_name = "FILTER")]
    pub filter: Option<String>,
}

pub fn run(_args: &ReplayArgs, _global: &Global) -> anyhow::Result<Exit> {
    Err(NotAvailable { command: "replay" }.into())
}
