use std::path::PathBuf;

use clap::Args;

use super::{ByArgs, Exit, Global, InstanceArgs, output};
use crate::{
    daemon::{
        attached::{self, Kernel},
        change::{self, Change, Changed, audited},
        control, kept,
        state_dir::{Kept, StateDir},
        way_back::Within,
    },
    host::picture::{Picture, on_terminal},
    journal::{self, Entry, Event},
    lockdown::{afterwards, mark, marker},
};

/// Change the policy in force, in one step; on any error the old one stays
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  guard reload                 # the same file again\n  \
    guard reload policy.yaml --dry-run\n  guard reload policy.yaml --confirm-within 5m")]
pub struct ReloadArgs {
    /// Left out: the file that runs now, read again
    #[arg(value_name = "POLICY")]
    pub policy: Option<PathBuf>,
    /// Decide and record as ever, but drop nothing, whatever mode the policy names
    #[arg(long)]
    pub audit: bool,
    /// Show what would be cut, and stop there
    #[arg(long)]
    pub dry_run: bool,
    /// Go on even if this terminal's own connection would be cut
    #[arg(long)]
    pub cut_me: bool,
    /// Undo the change unless `guard confirm` comes in this time (`90s`, `2m`; `none`) [default: 2m from a remote
    /// terminal, none else]
    #[arg(long, value_name = "TIME")]
    pub confirm_within: Option<Within>,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &ReloadArgs, global: &Global) -> anyhow::Result<Exit> {
    let (state, mut engine) = attached::existing(&args.instance.instance, &args.instance.state_dir())?;
    let _lock = state.lock()?;
    change::settle(&mut engine, &state)?;
    // In a lockdown: what was kept for afterwards is what is changed.
    let locked = mark::holding(&state)?.is_some();
    if !locked
        && state.manifest(Kept::Active)?.is_none()
        && let Some(copy) = marker::path(&args.instance).filter(|copy| copy.exists())
    {
        anyhow::bail!(
            "the state directory has nothing, and {} says that this host is locked down; nothing was changed\n  do    \
             guard run{} POLICY takes the lockdown up again (POLICY is kept for afterwards); guard release opens this host",
            copy.display(),
            args.instance.suffix()
        );
    }
    let kept = state.manifest(if locked { Kept::Afterwards } else { Kept::Active })?;
    let (source, audit) = match (&args.policy, kept) {
        (Some(policy), _) => (policy.clone(), args.audit),
        (None, Some(kept)) => (kept.source, args.audit || kept.audit),
        (None, None) if locked => {
            anyhow::bail!("nothing was in force before the lockdown: name a policy (guard reload POLICY)")
        }
        (None, None) => anyhow::bail!("no policy is in force: name one (guard reload POLICY)"),
    };
    let policy = match kept::read_for(&source, global)? {
        Ok(policy) => audited(policy, audit),
        Err(exit) => return Ok(exit),
    };
    if locked && !args.dry_run {
        afterwards::keep(&state, &policy, &source, audit)?;
        let text = "kept for after the lockdown; the lockdown goes on as it is";
        journal::record(
            state.path(),
            &args.by.entry(Event::Reload, text).policy(&policy.name, &change::hex(&policy.sha256), 0),
        );
        let suffix = args.instance.suffix();
        if global.json {
            output::json_line(
                &serde_json::json!({ "published": false, "kept_for_afterwards": true, "policy": policy.name }),
            )?;
        } else {
            output::print(&format!(
                "a lockdown holds: policy {} is {text} (guard restore{suffix} puts it in force)",
                output::escape_line(&policy.name)
            ))?;
        }
        return Ok(Exit::Good);
    }
    let change = Change {
        audit,
        exceptions: kept::exceptions(&state)?,
        dry_run: args.dry_run,
        cut_me: args.cut_me,
        within: args.confirm_within.unwrap_or_default(),
        on_terminal: on_terminal(),
        ..Change::new(&policy, &source)
    };
    let entry = args.by.entry(Event::Reload, "another policy was put in force");
    make(&mut engine, &state, &change, entry, &args.instance, global).map(|(exit, _)| exit)
}

/// One change, written down, told to the daemon, and shown.
pub(super) fn make(
    engine: &mut Kernel,
    state: &StateDir,
    change: &Change<'_>,
    entry: Entry,
    instance: &InstanceArgs,
    global: &Global,
) -> anyhow::Result<(Exit, Changed)> {
    let changed = change::change(engine, state, &Picture::read()?, change)?;
    if changed.published {
        journal::record(state.path(), &entry.changed(&changed));
        control::tell(&state.socket(), &control::Request::Changed);
    }
    let said = if global.json {
        output::json_line(&changed)
    } else {
        output::print(&changed.render(&instance.suffix(), change.dry_run))
    };
    // What was changed is changed, though nobody reads it.
    if change.dry_run {
        said?;
    }
    let cuts = change.dry_run && changed.impact.cuts_session() && !change.cut_me;
    Ok((if cuts { Exit::No } else { Exit::Good }, changed))
}
