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
    cli::{Exit, Global, check, output},
    policy::{self, diagnostics::Diagnostics, model::Policy, ready::ready},
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
        Err(found) => {
            if global.json {
                output::json_line(&serde_json::json!({ "valid": false, "diagnostics": found.json() }))?;
            } else {
                check::show(&found, true)?;
            }
            Ok(Err(Exit::No))
        }
    }
}

/// The kept policy and what is known of it; `None` where nothing is kept. Its places name the files that it was copied
/// from. An error if the copy is not what was published.
pub fn load(state: &StateDir, kept: Kept) -> anyhow::Result<Option<(Manifest, Policy)>> {
    let Some(manifest) = state.manifest(kept)? else { return Ok(None) };
    let copy = state.policy_file(kept, &manifest);
    // It fitted when it was published: only what it says is wanted, not its tables.
    let loaded = policy::load(&copy).map_err(|found| invalid(&copy, &found))?;
    let mut policy = audited(loaded.policy, manifest.audit);
    anyhow::ensure!(
        hex(&policy.sha256) == manifest.sha256,
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

/// Which of the kept policies the kernel has in force: after a deadline that nobody was there to see, the previous one.
#[must_use]
pub fn in_force(state: &StateDir, read: &ReadBack) -> Kept {
    let generation = change::in_force(read).map(|(_, generation)| generation);
    let is = |kept| state.manifest(kept).ok().flatten().is_some_and(|manifest| Some(manifest.generation) == generation);
    if !is(Kept::Active) && is(Kept::Previous) { Kept::Previous } else { Kept::Active }
}
