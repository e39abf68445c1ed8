use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Exit, Global, InstanceArgs, run};
use crate::{
    daemon::{
        attached,
        state_dir::{Kept, StateDir},
    },
    review::{OBSERVING_POLICY, is_observing},
};

/// Record every flow of this host, without a policy: nothing is denied
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sudo guard observe                      # for a week, say; then:\n  \
    sudo guard suggest -o policy.yaml       # a policy from what was seen\n\n\
    Refused where a policy is in force: this would take its place.")]
pub struct ObserveArgs {
    #[command(flatten)]
    pub place: run::PlaceArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &ObserveArgs, global: &Global) -> anyhow::Result<Exit> {
    let state = StateDir::create(&args.instance.state_dir())?;
    let path = state.path().join("observing.yaml");
    if attached::open(&args.instance.instance)?.is_some()
        && let Some(manifest) = state.manifest(Kept::Active)?
        && !is_observing(manifest.base_sha256.as_ref().unwrap_or(&manifest.sha256))
    {
        bail!(
            "a policy is in force here, and observing would take its place and let everything pass. `guard run` with it \
             records too; `guard release{}` takes it down first",
            args.instance.suffix()
        );
    }
    let mut draft = path.clone().into_os_string();
    draft.push(".new");
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(OBSERVING_POLICY.as_bytes())?;
        fs::rename(&draft, &path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    drop(state);
    let run = run::RunArgs {
        policy: path,
        resume: false,
        audit: true,
        shield: false,
        place: args.place.clone(),
        dry_run: false,
        cut_me: false,
        // Nothing is cut, so there is nothing to undo.
        confirm_within: Some("none".parse().map_err(|error| anyhow::anyhow!("{error}"))?),
        by: super::ByArgs::default(),
        instance: args.instance.clone(),
    };
    run::run(&run, global)
}
