use clap::Args;

use super::{ByArgs, Exit, Global, InstanceArgs, output};
use crate::{
    daemon::{
        attached, control,
        state_dir::{StateDir, StateError},
    },
    journal::{self, Event},
};

/// Take everything down: this host is open again
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard release")]
pub struct ReleaseArgs {
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &ReleaseArgs, global: &Global) -> anyhow::Result<Exit> {
    let instance = &args.instance.instance;
    let state = match StateDir::open(&args.instance.state_dir()) {
        Ok(state) => Some(state),
        // What is pinned in the kernel can be taken down without it.
        Err(StateError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let lock = state.as_ref().map(StateDir::lock).transpose()?;
    let released = attached::release(instance)?;
    if let Some(state) = &state {
        state.forget()?;
        drop(lock);
        control::tell(&state.socket(), &control::Request::Released);
        if released {
            journal::record(
                state.path(),
                &args.by.entry(Event::Release, "nothing is attached any more, everything passes"),
            );
        }
    }
    let text = if released {
        "released: nothing of guard is attached any more, everything passes".to_owned()
    } else {
        format!("nothing of guard is attached here (instance {instance})")
    };
    if global.json {
        output::json_line(&serde_json::json!({ "released": released, "message": text }))?;
    } else {
        output::print(&text)?;
    }
    Ok(Exit::Good)
}
