use clap::Args;

use super::{ByArgs, Exit, Global, InstanceArgs, reload};
use crate::{
    daemon::{
        attached,
        change::{self, Change},
        engine::Engine,
        kept,
        state_dir::Kept,
        way_back::{DEFAULT_WITHIN, Within},
    },
    host::picture::on_terminal,
    journal::Event,
    lockdown::{act, mark},
    record::clock::unix_now,
};

/// End a lockdown: back to the policy from before it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  guard restore --dry-run\n  guard restore                # the lockdown comes back unless you `guard confirm`\n\n\
    `guard reload POLICY` during a lockdown says what this puts in force; `guard release` opens the host instead."
)]
pub struct RestoreArgs {
    /// Show what would be cut, and stop there
    #[arg(long)]
    pub dry_run: bool,
    /// Go on even if this terminal's own connection would be cut
    #[arg(long)]
    pub cut_me: bool,
    /// The lockdown comes back unless `guard confirm` comes in this time (`90s`, `2m`; `none`) [default: 2m]
    #[arg(long, value_name = "TIME")]
    pub confirm_within: Option<Within>,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &RestoreArgs, global: &Global) -> anyhow::Result<Exit> {
    let (state, mut engine) = attached::existing(&args.instance.instance, &args.instance.state_dir())?;
    let _lock = state.lock()?;
    change::settle(&mut engine, &state)?;
    let suffix = args.instance.suffix();
    let Some((_, mark)) = mark::holding(&state)? else {
        anyhow::bail!("no lockdown holds here; guard status says what does");
    };
    if engine.read_back()?.state.word.is_pending() && !args.dry_run {
        let what = if mark.confirmed.is_none() { "the lockdown is not confirmed" } else { "a change is not confirmed" };
        anyhow::bail!("{what}: `guard rollback{suffix}` brings back what was before it; nothing was changed");
    }
    let Some((manifest, policy)) = kept::base(&state, Kept::Afterwards)? else {
        anyhow::bail!(
            "nothing was in force before the lockdown: `guard reload{suffix} POLICY` says what to put in force, or \
             `guard release{suffix}` opens this host; nothing was changed"
        );
    };
    let change = Change {
        audit: manifest.audit,
        exceptions: kept::holding(&manifest, i64::try_from(unix_now() / 1_000_000_000).unwrap_or(0)),
        from: Some(Kept::Afterwards),
        dry_run: args.dry_run,
        cut_me: args.cut_me,
        within: args.confirm_within.unwrap_or(Within::For(DEFAULT_WITHIN)),
        on_terminal: on_terminal(),
        ..Change::new(&policy, &manifest.source)
    };
    let entry = args.by.entry(Event::Restore, "the policy kept for after the lockdown was put in force");
    let (exit, changed) = reload::make(&mut engine, &state, &change, entry, &args.instance, global)?;
    if changed.published && changed.confirm_within.is_none() {
        // Nothing is left to confirm: the lockdown is over.
        act::keep_second_copy(&args.instance, &state, None);
    }
    Ok(exit)
}
