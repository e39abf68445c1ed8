//! Policies as they are read: from the user's file, or from the copy in the state directory.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    change::{audited, hex},
    state_dir::{Kept, Manifest, StateDir},
};
use crate::policy::model::Policy;

/// A policy from a file, with its errors as they are shown.
pub fn read(path: &Path) -> anyhow::Result<Policy> {
    let _ = path;
    anyhow::bail!("not yet")
}

/// The kept policy and what is known of it; `None` where nothing is kept. Its places name the files that it was copied
/// from. An error if the copy is not what was published.
pub fn load(state: &StateDir, kept: Kept) -> anyhow::Result<Option<(Manifest, Policy)>> {
    let Some(manifest) = state.manifest(kept)? else { return Ok(None) };
    let copy = state.policy_file(kept, &manifest);
    let mut policy = audited(read(&copy)?, manifest.audit);
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
