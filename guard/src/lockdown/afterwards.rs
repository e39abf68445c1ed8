//! While a lockdown holds, every other change of the policy is for afterwards.

use std::path::{Path, PathBuf};

use crate::{
    daemon::{
        change::hex,
        state_dir::{Manifest, StateDir},
    },
    policy::model::Policy,
    record::clock::unix_now,
};

/// What `guard restore` will put in force.
pub fn keep(state: &StateDir, policy: &Policy, source: &Path, audit: bool) -> anyhow::Result<()> {
    let source = std::path::absolute(source)?;
    let files =
        policy.files.iter().map(|file| std::path::absolute(file.as_path())).collect::<Result<Vec<PathBuf>, _>>()?;
    // It gets its generation when it is published.
    let manifest = Manifest::new(policy.name.clone(), hex(&policy.sha256), 0, source, audit, unix_now());
    Ok(state.set_afterwards(&manifest, &files)?)
}
