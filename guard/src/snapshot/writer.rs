//! Where a snapshot goes: a new directory, or a tar stream that leaves nothing behind.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{Outcome, Section, decode::hex, lines::ascii, network::host_name};
use crate::{object::OBJECT_SHA256, record::clock};

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{path} is there already; evidence is never written over: name another directory by -o")]
    Exists { path: PathBuf },
    #[error("cannot write {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("cannot write the tar stream: {0}")]
    Stream(#[source] io::Error),
}

/// `manifest.json`. Field names are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Manifest {
    pub format: u32,
    pub guard: &'static str,
    pub build: &'static str,
    pub ebpf_object_sha256: &'static str,
    pub host: Option<String>,
    pub machine_id: Option<String>,
    pub boot_id: Option<String>,
    /// UTC, by the host's own clock.
    pub started: String,
    pub finished: String,
    /// Effective user id of who took it: others than 0 see less.
    pub uid: u32,
    pub sections: Vec<About>,
}

#[derive(Clone, Debug, Serialize)]
pub struct About {
    pub name: &'static str,
    pub file: String,
    pub outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub notes: Vec<String>,
    pub lines: usize,
    pub suspicious: usize,
    pub bytes: usize,
    pub milliseconds: u64,
    pub sha256: String,
}

enum Sink<W: Write> {
    Directory(PathBuf),
    Tar { tar: Box<tar::Builder<W>>, name: String, time: u64 },
}

/// Takes sections as they come.
pub struct Writer<W: Write> {
    sink: Sink<W>,
    manifest: Manifest,
    sums: String,
}

/// `2026-11-24T031402Z`: a name for a directory.
#[must_use]
pub fn name_of_now() -> String {
    clock::for_people(clock::unix_now()).replace(' ', "T").replace(':', "")
}

impl Writer<io::Sink> {
    /// A new directory that only its owner may enter. The one above it is made if it is missing.
    pub fn directory(path: &Path) -> Result<Self, WriteError> {
        let cannot = |source: io::Error| WriteError::Io { path: path.to_owned(), source };
        if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(above).map_err(cannot)?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => Ok(Self::new(Sink::Directory(path.to_owned()))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(WriteError::Exists { path: path.to_owned() })
            }
            Err(error) => Err(cannot(error)),
        }
    }
}

impl<W: Write> Writer<W> {
    /// A tar stream with one directory in it.
    pub fn tar(out: W) -> Self {
        let time = u64::try_from(clock::unix_now() / 1_000_000_000).unwrap_or(0);
        let name = format!("guard-snapshot-{}", name_of_now());
        Self::new(Sink::Tar { tar: Box::new(tar::Builder::new(out)), name, time })
    }

    fn new(sink: Sink<W>) -> Self {
        let line = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let manifest = Manifest {
            format: 1,
            guard: env!("CARGO_PKG_VERSION"),
            build: env!("GUARD_BUILD"),
            ebpf_object_sha256: OBJECT_SHA256,
            host: host_name().ok(),
            machine_id: line("/etc/machine-id"),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            started: clock::for_people(clock::unix_now()),
            finished: String::new(),
            uid: nix::unistd::geteuid().as_raw(),
            sections: Vec::new(),
        };
        Self { sink, manifest, sums: String::new() }
    }

    pub fn section(&mut self, section: &Section) -> Result<(), WriteError> {
        let file = format!("{}.jsonl", section.name);
        let sha256 = self.file(&file, &section.bytes)?;
        self.manifest.sections.push(About {
            name: section.name,
            file,
            outcome: section.outcome,
            error: section.error.clone(),
            notes: section.notes.clone(),
            lines: section.lines,
            suspicious: section.suspicious,
            bytes: section.bytes.len(),
            milliseconds: u64::try_from(section.took.as_millis()).unwrap_or(u64::MAX),
            sha256,
        });
        Ok(())
    }

    /// Both manifests. `manifest.sha256` comes last: where it is, everything is.
    pub fn finish(mut self) -> Result<Manifest, WriteError> {
        self.manifest.finished = clock::for_people(clock::unix_now());
        let mut manifest = ascii(&self.manifest);
        manifest.push(b'\n');
        self.file("manifest.json", &manifest)?;
        let sums = self.sums.clone();
        self.file("manifest.sha256", sums.as_bytes())?;
        match self.sink {
            Sink::Directory(path) => {
                File::open(&path)
                    .and_then(|directory| directory.sync_all())
                    .map_err(|source| WriteError::Io { path, source })?;
            }
            Sink::Tar { tar, .. } => {
                tar.into_inner().and_then(|mut out| out.flush()).map_err(WriteError::Stream)?;
            }
        }
        Ok(self.manifest)
    }

    /// Its SHA-256, hex.
    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<String, WriteError> {
        let sha256 = hex(&Sha256::digest(bytes));
        self.sums.push_str(&format!("{sha256}  {name}\n"));
        match &mut self.sink {
            Sink::Directory(directory) => {
                let path = directory.join(name);
                let written = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
                written.map_err(|source| WriteError::Io { path, source })?;
            }
            Sink::Tar { tar, name: directory, time } => {
                let mut header = tar::Header::new_ustar();
                header.set_size(bytes.len() as u64);
                header.set_mode(0o600);
                header.set_mtime(*time);
                tar.append_data(&mut header, format!("{directory}/{name}"), bytes).map_err(WriteError::Stream)?;
            }
        }
        Ok(sha256)
    }
}
