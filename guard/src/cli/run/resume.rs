//! What `guard run` finds kept from before a restart or a reboot. A lockdown always comes first; with `--resume` so does
//! any policy. Whatever is damaged on the way there, a host that was locked down does not open.

use std::path::Path;

use super::{RunArgs, begin, options, put_in_force, record_only};
use crate::{
    cli::{Exit, Global, output},
    daemon::{
        attached::{self, StartOptions},
        change::{self, Change},
        engine::Engine,
        kept,
        state_dir::{Kept, Lock, Manifest, StateDir},
    },
    host::{picture::Picture, ssh},
    journal::{self, Entry, Event},
    lockdown::{
        act, afterwards,
        mark::Mark,
        marker::{self, Recovery},
    },
    policy::{self, model::Policy},
    review::is_observing,
};

/// As the lockdown's own, in the state directory.
const FILE: &str = "lockdown.yaml";

/// What became of it.
pub(super) enum Resumed {
    /// It was put in force or found there, and recorded to its end.
    Ended(Exit),
    /// POLICY is to be put in force, under the lock that is still held.
    Nothing(Lock),
}

/// What the kernel has.
struct Live {
    generation: Option<u32>,
    pending: bool,
}

pub(super) fn resume(args: &RunArgs, state: &StateDir, lock: Lock, global: &Global) -> anyhow::Result<Resumed> {
    let live = look(args, state)?;
    let manifest = match change::forget_unconfirmed(state, live.generation).and_then(|()| state.manifest(Kept::Active))
    {
        Ok(manifest) => manifest,
        // What the kernel has stays as it is.
        Err(error) if live.generation.is_some() => return Err(error.into()),
        Err(error) => return damaged(args, state, lock, &error.to_string(), global),
    };
    let Some(manifest) = manifest else {
        // Also where the kernel still has it, and the state directory was taken away below it.
        return second_copy(args, state, lock, None, global);
    };
    let observing = is_observing(manifest.base_sha256.as_ref().unwrap_or(&manifest.sha256));
    if manifest.lockdown.is_none() && (!args.resume || observing) {
        return Ok(Resumed::Nothing(lock));
    }
    let stands = live.pending || live.generation == Some(manifest.generation);
    if stands && (live.pending || manifest.lockdown.is_some()) {
        if manifest.lockdown.is_some() {
            keep_for_afterwards(args, state, Some(&manifest), global);
        }
        drop(lock);
        return record_only(&args.instance, global).map(Resumed::Ended);
    }
    match kept::base(state, Kept::Active) {
        Ok(Some((manifest, policy))) => {
            let change = Change {
                audit: manifest.audit,
                from: Some(Kept::Active),
                lockdown: manifest.lockdown.clone().map(Mark::rebooted),
                ..Change::new(&policy, &manifest.source)
            };
            put(args, &change, state, lock, None, global)
        }
        Ok(None) => Ok(Resumed::Nothing(lock)),
        Err(error) if live.generation.is_some() => Err(error),
        Err(error) => damaged(args, state, lock, &format!("{error:#}"), global),
    }
}

/// What was left half made is taken down, what is over is settled.
fn look(args: &RunArgs, state: &StateDir) -> anyhow::Result<Live> {
    let Some(mut kernel) = attached::open_for_start(&args.instance.instance)? else {
        return Ok(Live { generation: None, pending: false });
    };
    change::settle(&mut kernel, state)?;
    let read = kernel.read_back()?;
    Ok(Live {
        generation: change::in_force(&read).map(|(_, generation)| generation),
        pending: read.state.word.is_pending(),
    })
}

/// What was in force cannot be read, and nothing is in force: it is put aside. The second copy may know.
fn damaged(args: &RunArgs, state: &StateDir, lock: Lock, why: &str, global: &Global) -> anyhow::Result<Resumed> {
    eprintln!("notice: what was in force cannot be read: {}", output::escape_line(why));
    // What it says of a lockdown counts, though it may be all that is left of it.
    let text = std::fs::read(state.path().join("active/manifest.json")).unwrap_or_default();
    let mark = state.manifest(Kept::Active).ok().flatten().and_then(|manifest| manifest.lockdown);
    let lockdown = mark.is_some() || String::from_utf8_lossy(&text).contains("\"lockdown\"");
    match state.put_aside() {
        Ok(aside) => eprintln!("notice: it is kept as {}", output::escape_line(&aside.display().to_string())),
        Err(error) => eprintln!("notice: it could not be put aside: {}", output::escape_line(&error.to_string())),
    }
    second_copy(args, state, lock, lockdown.then_some(mark), global)
}

/// The state directory has nothing to go by. A second copy says that this host was locked down: it is, again. `locked`: so
/// does what is left of the state directory, with the mark if that can be read.
fn second_copy(
    args: &RunArgs,
    state: &StateDir,
    lock: Lock,
    locked: Option<Option<Mark>>,
    global: &Global,
) -> anyhow::Result<Resumed> {
    let found = match marker::path(&args.instance).map(|path| (marker::read(&path), path)) {
        Some((Ok(Some(recovery)), path)) => match load(&recovery) {
            Ok(policy) => {
                let by = format!("by the second copy ({}): the state directory has nothing of it", path.display());
                Ok(Some((recovery, policy, by)))
            }
            Err(error) => Err(format!("{error:#}")),
        },
        Some((Err(error), _)) => Err(error.to_string()),
        Some((Ok(None), _)) | None => Ok(None),
    };
    let (recovery, policy, by) = match (found, locked) {
        (Ok(Some(found)), _) => found,
        (Ok(None), None) => return Ok(Resumed::Nothing(lock)),
        (Ok(None), Some(mark)) => ssh_alone(mark)?,
        (Err(error), mark) => {
            eprintln!("notice: {}", output::escape_line(&error));
            ssh_alone(mark.flatten())?
        }
    };
    // Where it cannot be written the policy still comes in force.
    let source = act::write(state, FILE, &recovery.policy).unwrap_or_else(|error| {
        eprintln!("notice: {}", output::escape_line(&format!("{error:#}")));
        state.path().join(FILE)
    });
    let policy = kept::read(&source).unwrap_or(policy);
    let change = Change { lockdown: Some(recovery.mark.rebooted()), ..Change::new(&policy, &source) };
    put(args, &change, state, lock, Some(&by), global)
}

fn load(recovery: &Recovery) -> anyhow::Result<Policy> {
    policy::load_str("recovery", &recovery.policy)
        .map(|loaded| loaded.policy)
        .map_err(|found| anyhow::anyhow!("the second copy's policy is not valid:\n{}", found.render(false).trim_end()))
}

/// That it was locked down is known, and no more than that: closed but for the SSH ports. `mark`: since when, if known.
fn ssh_alone(mark: Option<Mark>) -> anyhow::Result<(Recovery, Policy, String)> {
    let mut ports = ssh::configured(Path::new("/"));
    if let Ok(picture) = Picture::read() {
        ports.extend(ssh::listening(&picture));
    }
    let services: Vec<String> = ports.iter().map(|port| format!("tcp/{port}")).collect();
    let mut recovery = marker::without_ways(&services);
    if let Some(mark) = mark {
        recovery.mark.at = mark.at;
        recovery.mark.by = mark.by;
    }
    let policy = load(&recovery)?;
    let by = format!("to the SSH ports alone ({}): it is not known any more who may come in", services.join(" "));
    Ok((recovery, policy, by))
}

/// Puts what was kept in force, and records. `by`: a lockdown, and it is not the state directory that knows of it.
fn put(
    args: &RunArgs,
    change: &Change<'_>,
    state: &StateDir,
    lock: Lock,
    by: Option<&str>,
    global: &Global,
) -> anyhow::Result<Resumed> {
    let Some(_daemon_lock) = state.lock_daemon()? else {
        anyhow::bail!("a daemon runs already with {}", state.path().display());
    };
    let locked = change.lockdown.is_some();
    let mut options = options(args);
    if locked {
        options = StartOptions { shield: true, ports: true, ..options };
    }
    let change = Change { cut_me: true, resumes: true, ..change.clone() };
    let (mut kernel, put) = put_in_force(&args.instance.instance, &options, &change, state)?;
    if locked {
        keep_for_afterwards(args, state, state.manifest(Kept::Active).ok().flatten().as_ref(), global);
    }
    drop(lock);
    if let Some(by) = by {
        let text = format!("LOCKED DOWN, {by}");
        journal::record(state.path(), &Entry::new(Event::Lockdown, text.clone()));
        say(&text, global);
    } else if !locked && std::path::absolute(&args.policy)? != change.source {
        let (kept, asked) = (change.source.display(), args.policy.display());
        eprintln!(
            "notice: {}",
            output::escape_line(&format!("--resume: {kept} was in force, and is again; {asked} is not read"))
        );
    }
    begin(args, &mut kernel, state, &put, global).map(Resumed::Ended)
}

/// While a lockdown holds, what `run` names is only kept for afterwards. `active`: the lockdown's own manifest, whose file
/// is not meant. The caller holds the lock; what goes wrong here is said, and the lockdown goes on.
fn keep_for_afterwards(args: &RunArgs, state: &StateDir, active: Option<&Manifest>, global: &Global) {
    let own = std::path::absolute(&args.policy).is_ok_and(|path| active.is_some_and(|active| active.source == path));
    // With --resume POLICY is meant where nothing else was.
    let known = args.resume && !matches!(state.manifest(Kept::Afterwards), Ok(None));
    if own || known {
        return;
    }
    match afterwards::keep_file(state, &args.policy, args.audit) {
        Ok(()) => {
            let text = "a lockdown holds: this policy is kept for afterwards (guard restore), the lockdown is recorded";
            say(text, global);
        }
        Err(error) => {
            let text = format!("a lockdown holds, and this policy is NOT kept for afterwards: {error:#}");
            eprintln!("notice: {}", output::escape_line(&text));
        }
    }
}

/// Nobody may read it: that ends nothing.
fn say(text: &str, global: &Global) {
    let _ = if global.json {
        output::json_line(&serde_json::json!({ "event": "notice", "message": text }))
    } else {
        output::print(&output::escape_line(text))
    };
}
