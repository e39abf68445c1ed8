//! While a lockdown holds, every other change of the policy is for afterwards.

use std::path::{Path, PathBuf};

use crate::{
    daemon::{
        change::{audited, hex},
        kept,
        state_dir::{Kept, Manifest, StateDir},
    },
    policy::{exceptions::compose, model::Policy},
    record::clock::unix_now,
};

/// What `guard restore` will put in force, with the exceptions that are kept for afterwards and still hold. The caller
/// holds the lock.
pub fn keep(state: &StateDir, policy: &Policy, source: &Path, audit: bool) -> anyhow::Result<()> {
    let source = std::path::absolute(source)?;
    let files =
        policy.files.iter().map(|file| std::path::absolute(file.as_path())).collect::<Result<Vec<PathBuf>, _>>()?;
    let now = i64::try_from(unix_now() / 1_000_000_000).unwrap_or(0);
    let exceptions = state.manifest(Kept::Afterwards)?.map(|before| kept::holding(&before, now)).unwrap_or_default();
    let composed = compose(policy.clone(), &exceptions);
    // It gets its generation when it is published.
    let mut manifest = Manifest::new(policy.name.clone(), hex(&composed.sha256), 0, source, audit, unix_now());
    if !exceptions.is_empty() {
        manifest.base_sha256 = Some(hex(&policy.sha256));
        manifest.last_exception = exceptions.iter().map(|exception| exception.number).max().unwrap_or(0);
        manifest.exceptions = exceptions;
    }
    Ok(state.set_afterwards(&manifest, &files)?)
}

/// The same with the policy that a file holds.
pub fn keep_file(state: &StateDir, source: &Path, audit: bool) -> anyhow::Result<()> {
    keep(state, &audited(kept::read(source)?, audit), source, audit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::exceptions::Exception;

    #[test]
    fn exceptions_that_still_hold_are_carried_over() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::create(&home.path().join("state")).unwrap();
        let file = home.path().join("one.yaml");
        std::fs::write(&file, "version: 1\nname: one\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
        keep_file(&state, &file, false).unwrap();
        let mut before = state.manifest(Kept::Afterwards).unwrap().unwrap();
        assert!(before.exceptions.is_empty() && before.base_sha256.is_none());
        let exception = |number: u32, expires: i64| -> Exception {
            serde_json::from_value(serde_json::json!({
                "number": number, "action": "allow", "direction": "inbound", "remotes": ["198.51.100.9"],
                "services": [[6 << 16 | 22, 6 << 16 | 22]], "expires": expires, "made": 1, "by": "kim"
            }))
            .unwrap()
        };
        before.exceptions = vec![exception(3, 1), exception(4, 4_000_000_000)];
        state.set_afterwards(&before, std::slice::from_ref(&file)).unwrap();

        std::fs::write(&file, "version: 1\nname: two\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
        keep_file(&state, &file, false).unwrap();
        let after = state.manifest(Kept::Afterwards).unwrap().unwrap();
        assert_eq!(after.exceptions.iter().map(|exception| exception.number).collect::<Vec<_>>(), [4]);
        assert_eq!((after.name.as_str(), after.last_exception), ("two", 4));
        assert_ne!(after.base_sha256, Some(after.sha256.clone()));
        // As `status` and a rollback read it.
        kept::load(&state, Kept::Afterwards).unwrap().unwrap();
    }
}
