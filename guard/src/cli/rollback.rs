use clap::Args;

use super::{ByArgs, Exit, Global, InstanceArgs, output};
use crate::{
    daemon::{attached, change, control, engine::Engine, state_dir::Kept},
    journal::{self, Event},
};

/// Undo an unconfirmed change now
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard rollback")]
pub struct RollbackArgs {
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &RollbackArgs, global: &Global) -> anyhow::Result<Exit> {
    let (state, mut engine) = attached::existing(&args.instance.instance, &args.instance.state_dir())?;
    let _lock = state.lock()?;
    let settled = change::settle(&mut engine, &state)?;
    if !settled {
        if !engine.read_back()?.state.word.is_pending() {
            return answer(global, false, None, "nothing is unconfirmed, so there is nothing to undo");
        }
        engine.roll_back()?;
        change::follow_rollback(&engine, &state)?;
        let kept = state.manifest(Kept::Active).ok().flatten();
        let entry = args.by.entry(Event::Rollback, "an unconfirmed change was undone").kept(kept.as_ref());
        journal::record(state.path(), &entry);
    }
    control::tell(&state.socket(), &control::Request::Changed);
    let generation = change::in_force(&engine.read_back()?).map(|(_, generation)| generation);
    let text = match generation {
        Some(generation) => format!("undone: generation {generation} is in force again"),
        None => "undone: no policy is in force, everything passes (guard release takes the hooks away too)".to_owned(),
    };
    answer(global, true, generation, &text)
}

fn answer(global: &Global, undone: bool, generation: Option<u32>, text: &str) -> anyhow::Result<Exit> {
    if global.json {
        output::json_line(&serde_json::json!({
            "rolled_back": undone, "generation": generation.unwrap_or(0), "message": text
        }))?;
    } else {
        output::print(text)?;
    }
    Ok(if undone { Exit::Good } else { Exit::No })
}
