use clap::Args;

use super::{ByArgs, Exit, Global, InstanceArgs, output};
use crate::{
    daemon::{
        attached,
        change::{self, Change},
        control, kept,
        state_dir::Kept,
        way_back::{DEFAULT_WITHIN, Within},
    },
    host::picture::{Picture, on_terminal},
    journal::{self, Event},
    lockdown::mark,
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
    if mark.confirmed.is_none() && !args.dry_run {
        anyhow::bail!(
            "the lockdown is not confirmed: `guard rollback{suffix}` brings back what was before it; nothing was changed"
        );
    }
    let Some((manifest, policy)) = kept::base(&state, Kept::Afterwards)? else {
        anyhow::bail!(
            "nothing was in force before the lockdown: `guard reload{suffix} POLICY` says what to put in force, or \
             `guard release{suffix}` opens this host; nothing was changed"
        );
    };
    let change = Change {
        policy: &policy,
        source: &manifest.source,
        audit: manifest.audit,
        exceptions: kept::holding(&manifest, i64::try_from(unix_now() / 1_000_000_000).unwrap_or(0)),
        again: false,
        dry_run: args.dry_run,
        cut_me: args.cut_me,
        within: args.confirm_within.unwrap_or(Within::For(DEFAULT_WITHIN)),
        on_terminal: on_terminal(),
        lockdown: None,
        restores: true,
    };
    let changed = change::change(&mut engine, &state, &Picture::read()?, &change)?;
    if changed.published {
        let entry = args.by.entry(Event::Restore, "the policy kept for after the lockdown was put in force");
        journal::record(state.path(), &entry.changed(&changed));
        control::tell(&state.socket(), &control::Request::Changed);
    }
    if global.json {
        output::json_line(&changed)?;
    } else {
        output::print(&changed.render(&suffix, args.dry_run))?;
    }
    Ok(if args.dry_run && changed.impact.cuts_session() && !args.cut_me { Exit::No } else { Exit::Good })
}
