//! Builds, checks and measures what cargo alone does not.

use clap::{Parser, Subcommand};

mod ebpf;

#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    Ebpf(ebpf::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Task::Ebpf(args) => ebpf::run(&args),
    }
}
