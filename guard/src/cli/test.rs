use std::path::PathBuf;

use clap::Args;

use super::{Exit, Global, NotAvailable};

/// Run the tests that a policy carries
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard test policy.yaml")]
pub struct TestArgs {
    #[arg(value_name = "POLICY")]
    pub policy: PathBuf,
}

pub fn run(_args: &TestArgs, _global: &Global) -> anyhow::Result<Exit> {
    Err(NotAvailable { command: "test" }.into())
}
