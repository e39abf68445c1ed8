//! Policies as they are read: from the user's file, or from the copy in the state directory.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    change::{self, audited, hex},
    engine::ReadBack,
    state_dir::{Kept, Manifest, StateDir},
};
use crate::{
    cli::{Exit, Global, check},
    policy::{
        self,
        diagnostics::Diagnostics,
        exceptions::{Exception, compose},
        model::Policy,
        ready::ready,
    },
    record::clock::unix_now,
};

/// A policy that nobody stands by to correct: its errors as text.
pub fn read(path: &Path) -> anyhow::Result<Policy> {
    Ok(ready(path).map_err(|found| invalid(path, &found))?.loaded.policy)
}

fn invalid(path: &Path, found: &Diagnostics) -> anyhow::Error {
    anyhow::anyhow!("{} is not valid:\n{}", path.display(), found.render(false).trim_end())
}

/// A policy that a person names on the command line: what is wrong with it is shown as `check` shows it, warnings too.
/// `Err`: it cannot be used, and that has been said.
pub fn read_for(path: &Path, global: &Global) -> io::Result<Result<Policy, Exit>> {
    match ready(path) {
        Ok(ready) => {
            check::show(&ready.loaded.warnings, true)?;
            Ok(Ok(ready.loaded.policy))
        }
        Err(found) => Ok(Err(check::refuse(&found, global)?)),
    }
}

/// The kept policy and what is known of it; `None` where nothing is kept. Its places name the files that it was copied
/// from. An error if the copy is not what was published.
pub fn load(state: &StateDir, kept: Kept) -> anyhow::Result<Option<(Manifest, Policy)>> {
    let Some((manifest, base)) = base(state, kept)? else { return Ok(None) };
    let policy = compose(base, &manifest.exceptions);
    anyhow::ensure!(
        hex(&policy.sha256) == manifest.sha256,
        "the exceptions in {} are not those that were published: their hash differs",
        state.path().display()
    );
    Ok(Some((manifest, policy)))
}

/// The same without its exceptions.
pub fn base(state: &StateDir, kept: Kept) -> anyhow::Result<Option<(Manifest, Policy)>> {
    let Some(manifest) = state.manifest(kept)? else { return Ok(None) };
    let copy = state.policy_file(kept, &manifest);
    // It fitted when it was published: only what it says is wanted, not its tables.
    let loaded = policy::load(&copy).map_err(|found| invalid(&copy, &found))?;
    let mut policy = audited(loaded.policy, manifest.audit);
    anyhow::ensure!(
        &hex(&policy.sha256) == manifest.base_sha256.as_ref().unwrap_or(&manifest.sha256),
        "{} is not the policy that was published: its hash differs",
        copy.display()
    );
    let root = state.files(kept);
    let original = |file: &Arc<PathBuf>| match file.strip_prefix(&root) {
        Ok(rest) => Arc::new(Path::new("/").join(rest)),
        Err(_) => Arc::clone(file),
    };
    policy.files = policy.files.iter().map(original).collect();
    for rule in &mut policy.rules {
        rule.place.file = original(&rule.place.file);
    }
    Ok(Some((manifest, policy)))
}

/// Exceptions that a manifest names and that have not expired by `now` (Unix seconds).
#[must_use]
pub fn holding(manifest: &Manifest, now: i64) -> Vec<Exception> {
    manifest.exceptions.iter().filter(|exception| exception.holds(now)).cloned().collect()
}

/// What a change of the policy carries over: the exceptions that hold now. None where nothing is in force.
pub fn exceptions(state: &StateDir) -> anyhow::Result<Vec<Exception>> {
    let now = i64::try_from(unix_now() / 1_000_000_000).unwrap_or(0);
    Ok(state.manifest(Kept::Active)?.map(|manifest| holding(&manifest, now)).unwrap_or_default())
}

/// The highest number that an exception of this instance has had; also of what was rolled back, so that none is used twice.
#[must_use]
pub fn last_exception(state: &StateDir) -> u32 {
    let of = |kept| state.manifest(kept).ok().flatten().map_or(0, |manifest: Manifest| manifest.last_exception);
    of(Kept::Active).max(of(Kept::Previous)).max(of(Kept::Next))
}

/// Which of the kept policies the kernel has in force: after a deadline that nobody was there to see, the previous one.
#[must_use]
pub fn in_force(state: &StateDir, read: &ReadBack) -> Kept {
    let generation = change::in_force(read).map(|(_, generation)| generation);
    let is = |kept| state.manifest(kept).ok().flatten().is_some_and(|manifest| Some(manifest.generation) == generation);
    if !is(Kept::Active) && is(Kept::Previous) { Kept::Previous } else { Kept::Active }
}
