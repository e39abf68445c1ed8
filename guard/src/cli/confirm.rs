use clap::Args;

use super::{ByArgs, Exit, Global, InstanceArgs, output};
use crate::{
    daemon::{attached, change, control, state_dir::Kept},
    journal::{self, Event},
};

/// Keep a change that would otherwise be undone at its deadline
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard confirm")]
pub struct ConfirmArgs {
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &ConfirmArgs, global: &Global) -> anyhow::Result<Exit> {
    let (state, mut engine) = attached::existing(&args.instance.instance, &args.instance.state_dir())?;
    let _lock = state.lock()?;
    if change::settle(&mut engine, &state)? {
        control::tell(&state.socket(), &control::Request::Changed);
        return answer(global, false, "too late: the time to confirm is over, and the change was undone");
    }
    if !crate::daemon::engine::Engine::read_back(&engine)?.state.word.is_pending() {
        return answer(global, false, "nothing waits to be confirmed");
    }
    crate::daemon::engine::Engine::confirm(&mut engine)?;
    // A manifest that cannot be read only leaves the policy's name out.
    let kept = state.manifest(Kept::Active).ok().flatten();
    let entry = args.by.entry(Event::Confirm, "the change stays").kept(kept.as_ref());
    journal::record(state.path(), &entry);
    control::tell(&state.socket(), &control::Request::Changed);
    answer(global, true, "confirmed: the change stays until you make another")
}

fn answer(global: &Global, confirmed: bool, text: &str) -> anyhow::Result<Exit> {
    if global.json {
        output::json_line(&serde_json::json!({ "confirmed": confirmed, "message": text }))?;
    } else {
        output::print(text)?;
    }
    Ok(if confirmed { Exit::Good } else { Exit::No })
}
