use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::Args;

use super::{Exit, command};

/// Write the man pages, one a command, into a directory
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Made if it does not exist
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

pub fn run(args: &ManArgs) -> anyhow::Result<Exit> {
    fs::create_dir_all(&args.directory).with_context(|| format!("cannot make {}", args.directory.display()))?;
    clap_mangen::generate_to(command(), &args.directory)
        .with_context(|| format!("cannot write man pages to {}", args.directory.display()))?;
    Ok(Exit::Good)
}
