use clap::Args;

use super::{Exit, Global, InstanceArgs, output, run};
use crate::{
    daemon::{attached, state_dir::StateDir},
    lockdown::detach,
};

/// Take the recording up of what is in force; changes nothing
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    guard record --detach        # after the recording daemon of a lockdown was killed\n\n\
    The kernel enforces with or without a daemon; without one nothing is written down.")]
pub struct RecordArgs {
    /// Go on in the background, in a session of its own
    #[arg(long)]
    pub detach: bool,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &RecordArgs, global: &Global) -> anyhow::Result<Exit> {
    if !args.detach {
        return run::record_only(&args.instance, global);
    }
    let (state, _kernel) = attached::existing(&args.instance.instance, &args.instance.state_dir())?;
    anyhow::ensure!(!StateDir::daemon_runs(&state)?, "a daemon runs already with {}", state.path().display());
    let pid = detach::start(&args.instance.instance, &state)
        .map_err(|error| anyhow::anyhow!("the recording could not begin: {error}"))?;
    if global.json {
        output::json_line(&serde_json::json!({ "event": "recording", "pid": pid }))?;
    } else {
        output::print(&format!("recording, process {pid}"))?;
    }
    Ok(Exit::Good)
}
