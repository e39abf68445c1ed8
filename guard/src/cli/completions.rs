use std::io;

use clap::Args;
use clap_complete::{Shell, generate};

use super::{Exit, command};

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard completions bash > /usr/share/bash-completion/completions/guard")]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    pub shell: Shell,
}

pub fn run(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    generate(args.shell, &mut command(), "guard", &mut script);
    io::Write::write_all(&mut io::stdout(), &script)?;
    Ok(Exit::Good)
}
