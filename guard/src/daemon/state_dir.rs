//! The state directory of an instance: the policy in force with all its files, the one before it, and the records.
//!
//! ```text
//! active/        the policy that was published last: manifest.json, and every file of it under files/
//! previous/      the one before it: what a rollback returns to
//! afterwards/    in a lockdown: what `restore` returns to
//! before/        while one is put in force: what a failure returns to
//! active.damaged what could not be read after a reboot
//! flows.jsonl    records, for others
//! store.db       records, for review
//! acks.jsonl     decisions on them
//! timeline.jsonl who did what when, and what guard noticed
//! control.sock   the daemon's socket
//! lock           held by whoever changes the policy
//! daemon.lock    held while a daemon runs
//! ```
//!
//! Files of a policy lie under `files/` by their absolute path, so that what they name relative to themselves is found.

mod files;
mod lock;

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::lock::Lock;

use self::files::{copy, copy_tree, io_error, mirrored, remove};
use crate::{lockdown::mark::Mark, policy::exceptions::Exception, record::clock::Clock};

/// Where instances keep their state unless told otherwise.
pub const DEFAULT_ROOT: &str = "/var/lib/guard";

/// Format of `manifest.json`.
const VERSION: u32 = 1;

/// What was published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    pub name: String,
    /// Hex.
    pub sha256: String,
    pub generation: u32,
    /// The file that `run` or `reload` was given; SIGHUP and `reload` without a file read it again.
    pub source: PathBuf,
    /// Forced to audit mode by `--audit`.
    pub audit: bool,
    /// Unix time in nanoseconds, as text: JSON numbers are not exact that far.
    pub published: String,
    /// Unix time of the boot, by the clock when its expiries were turned into boot time; in nanoseconds, as text.
    pub booted: String,
    /// Over the policy's own rules; those that expired since it was published, too. [`Self::sha256`] is of both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceptions: Vec<Exception>,
    /// With exceptions: hex, of the policy alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_sha256: Option<String>,
    /// The highest number that an exception has had.
    #[serde(default)]
    pub last_exception: u32,
    /// It is a lockdown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lockdown: Option<Mark>,
    /// It waits for its confirmation: where the machine went down meanwhile, the one before it holds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfirmed: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} belongs to user {owner}, or others can write it: make it root's own (chown root, chmod 0700)")]
    Unsafe { path: PathBuf, owner: u32 },
    #[error("{path} is damaged: {source}")]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("{path} is of format {found}; this guard knows {VERSION}")]
    Version { path: PathBuf, found: u32 },
    #[error(
        "{holder} is changing this instance, for more than {waited} s; nothing was changed: try again when it is done"
    )]
    Busy { holder: String, waited: u64 },
}

/// An instance's directory, which exists and only its owner can write.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// Which of the kept policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Active,
    Previous,
    /// Written, but not published yet.
    Next,
    /// What held before a lockdown, or was asked for since.
    Afterwards,
    /// While a lockdown is being put in force: what held when it began.
    Before,
}

impl Kept {
    const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Previous => "previous",
            Self::Next => "next",
            Self::Afterwards => "afterwards",
            Self::Before => "before",
        }
    }
}

impl StateDir {
    /// `/var/lib/guard/<instance>`, or what was asked for.
    #[must_use]
    pub fn default_path(instance: &str) -> PathBuf {
        Path::new(DEFAULT_ROOT).join(instance)
    }

    /// Makes it where it is missing; refuses one that somebody else could have filled.
    pub fn create(path: &Path) -> Result<Self, StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| io_error("cannot make", path, source))?;
        Self::open(path)
    }

    /// One that must be there.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let metadata = fs::metadata(path).map_err(|source| io_error("cannot use", path, source))?;
        let safe = metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.permissions().mode() & 0o022 == 0;
        if !safe {
            return Err(StateError::Unsafe { path: path.to_owned(), owner: metadata.uid() });
        }
        let path = fs::canonicalize(path).map_err(|source| io_error("cannot use", path, source))?;
        Ok(Self { path })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.path.join("flows.jsonl")
    }

    /// First bytes of flagged flows: those that came in, and those that this host began.
    #[must_use]
    pub fn flagged(&self) -> [PathBuf; 2] {
        ["flagged-in.pcap", "flagged.pcap"].map(|name| self.path.join(name))
    }

    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.path.join(crate::store::FILE)
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// Whether anything is to be enforced: false after a release, and after a first start that nobody confirmed.
    #[must_use]
    pub fn in_force(&self) -> bool {
        self.path.join(Kept::Active.name()).exists()
    }

    /// What is kept there; `None` where nothing is.
    pub fn manifest(&self, kept: Kept) -> Result<Option<Manifest>, StateError> {
        let path = self.path.join(kept.name()).join("manifest.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("cannot read", &path, source)),
        };
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|source| StateError::Damaged { path: path.clone(), source })?;
        if manifest.version != VERSION {
            return Err(StateError::Version { path, found: manifest.version });
        }
        Ok(Some(manifest))
    }

    /// Where the copies of a policy's files lie, each by its absolute path.
    #[must_use]
    pub fn files(&self, kept: Kept) -> PathBuf {
        self.path.join(kept.name()).join("files")
    }

    /// The active policy was published again, as it is, under another number.
    pub fn set_generation(&self, manifest: &Manifest, generation: u32) -> Result<(), StateError> {
        let booted = Clock::read().map_or(0, |clock| clock.unix_ns(0)).to_string();
        self.write_manifest(Kept::Active, &Manifest { generation, booted, ..manifest.clone() })
    }

    /// The copy of the policy's first file.
    #[must_use]
    pub fn policy_file(&self, kept: Kept, manifest: &Manifest) -> PathBuf {
        mirrored(&self.files(kept), &manifest.source)
    }

    /// Copies a policy's files to `next/`. They become `active/` by [`Self::promote`], once they are published.
    pub fn prepare(&self, manifest: &Manifest, files: &[PathBuf]) -> Result<(), StateError> {
        self.fill(Kept::Next, manifest, files)
    }

    /// What is to hold after the lockdown: another policy than held before it.
    pub fn set_afterwards(&self, manifest: &Manifest, files: &[PathBuf]) -> Result<(), StateError> {
        self.fill(Kept::Afterwards, manifest, files)
    }

    /// Before a lockdown takes its place: what is active now is what `restore` returns to. Nothing active: nothing is.
    pub fn keep_for_afterwards(&self) -> Result<(), StateError> {
        self.copy_active(Kept::Afterwards)
    }

    fn copy_active(&self, to: Kept) -> Result<(), StateError> {
        let target = self.path.join(to.name());
        remove(&target)?;
        match self.in_force() {
            true => copy_tree(&self.path.join(Kept::Active.name()), &target),
            false => Ok(()),
        }
    }

    /// The files of a kept policy become those of `next/`, under another manifest: what they were copied from may have
    /// changed since.
    pub fn prepare_from(&self, kept: Kept, manifest: &Manifest) -> Result<(), StateError> {
        let next = self.path.join(Kept::Next.name());
        remove(&next)?;
        copy_tree(&self.files(kept), &next.join("files"))?;
        self.write_manifest(Kept::Next, manifest)
    }

    /// What is active now, for whoever has to bring it back after more than one step.
    pub fn keep_before(&self) -> Result<(), StateError> {
        self.copy_active(Kept::Before)
    }

    /// It is active again, and nothing is previous.
    pub fn put_back_before(&self) -> Result<(), StateError> {
        if self.path.join(Kept::Before.name()).exists() {
            remove(&self.path.join(Kept::Active.name()))?;
            self.rename(Kept::Before, Kept::Active)?;
        }
        remove(&self.path.join(Kept::Previous.name()))
    }

    pub fn forget_before(&self) -> Result<(), StateError> {
        remove(&self.path.join(Kept::Before.name()))
    }

    /// What is active cannot be read: put aside, for whoever wants to know why. In place of an older one.
    pub fn put_aside(&self) -> Result<PathBuf, StateError> {
        let (active, aside) = (self.path.join(Kept::Active.name()), self.path.join("active.damaged"));
        remove(&aside)?;
        fs::rename(&active, &aside).map_err(|source| io_error("cannot rename", &active, source))?;
        Ok(aside)
    }

    /// The manifest of what is active, anew.
    pub fn rewrite(&self, manifest: &Manifest) -> Result<(), StateError> {
        self.write_manifest(Kept::Active, manifest)
    }

    fn fill(&self, kept: Kept, manifest: &Manifest, files: &[PathBuf]) -> Result<(), StateError> {
        let next = self.path.join(kept.name());
        remove(&next)?;
        for file in files {
            let target = mirrored(&next.join("files"), file);
            let parent = target.parent().unwrap_or(&next);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|source| io_error("cannot make", parent, source))?;
            copy(file, &target)?;
        }
        self.write_manifest(kept, manifest)
    }

    /// `next/` becomes `active/`, `active/` becomes `previous/`. `manifest` with the generation that was published.
    pub fn promote(&self, manifest: &Manifest) -> Result<(), StateError> {
        self.write_manifest(Kept::Next, manifest)?;
        remove(&self.path.join(Kept::Previous.name()))?;
        self.rename(Kept::Active, Kept::Previous)?;
        self.rename(Kept::Next, Kept::Active)
    }

    /// After a rollback: `previous/` becomes `active/` again; without one nothing is active.
    pub fn roll_back(&self) -> Result<(), StateError> {
        remove(&self.path.join(Kept::Active.name()))?;
        self.rename(Kept::Previous, Kept::Active)
    }

    /// After a release: nothing is active.
    pub fn forget(&self) -> Result<(), StateError> {
        for kept in [Kept::Next, Kept::Previous, Kept::Active, Kept::Afterwards, Kept::Before] {
            remove(&self.path.join(kept.name()))?;
        }
        Ok(())
    }

    fn write_manifest(&self, kept: Kept, manifest: &Manifest) -> Result<(), StateError> {
        let directory = self.path.join(kept.name());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| io_error("cannot make", &directory, source))?;
        let (draft, path) = (directory.join("manifest.json.new"), directory.join("manifest.json"));
        let text =
            serde_json::to_vec_pretty(manifest).map_err(|source| StateError::Damaged { path: path.clone(), source })?;
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&draft, &path)
        };
        write().map_err(|source| io_error("cannot write", &path, source))
    }

    fn rename(&self, from: Kept, to: Kept) -> Result<(), StateError> {
        let (from, to) = (self.path.join(from.name()), self.path.join(to.name()));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("cannot rename", &from, error)),
            _ => Ok(()),
        }
    }
}

impl Manifest {
    #[must_use]
    pub fn new(
        name: String,
        sha256: String,
        generation: u32,
        source: PathBuf,
        audit: bool,
        published_unix_ns: i128,
    ) -> Self {
        let booted = Clock::read().map_or(0, |clock| clock.unix_ns(0));
        Self {
            version: VERSION,
            name,
            sha256,
            generation,
            source,
            audit,
            published: published_unix_ns.to_string(),
            booted: booted.to_string(),
            exceptions: Vec::new(),
            base_sha256: None,
            last_exception: 0,
            lockdown: None,
            unconfirmed: false,
        }
    }

    /// The clock when it was published.
    #[must_use]
    pub fn clock(&self) -> Clock {
        Clock::at_boot(self.booted.parse().unwrap_or(0))
    }

    /// Unix time in nanoseconds.
    #[must_use]
    pub fn published_ns(&self) -> i128 {
        self.published.parse().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
