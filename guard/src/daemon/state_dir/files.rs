//! Files and folders of the state directory.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use super::StateError;

/// `/etc/guard/a.yaml` under `root` is `root/etc/guard/a.yaml`; what climbs above the root stays there.
pub(super) fn mirrored(root: &Path, file: &Path) -> PathBuf {
    let mut target = root.to_owned();
    let mut depth = 0usize;
    for component in file.components() {
        match component {
            Component::Normal(name) => {
                target.push(name);
                depth += 1;
            }
            Component::ParentDir if depth > 0 => {
                target.pop();
                depth -= 1;
            }
            Component::ParentDir | Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    target
}

pub(super) fn copy(from: &Path, to: &Path) -> Result<(), StateError> {
    let mut source = File::open(from).map_err(|source| io_error("cannot read", from, source))?;
    let mut target = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(to)
        .map_err(|source| io_error("cannot write", to, source))?;
    io::copy(&mut source, &mut target).map_err(|source| io_error("cannot write", to, source))?;
    Ok(())
}

/// Directories and files, nothing else.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(|source| io_error("cannot make", to, source))?;
    for entry in fs::read_dir(from).map_err(|source| io_error("cannot list", from, source))? {
        let entry = entry.map_err(|source| io_error("cannot list", from, source))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|source| io_error("cannot use", &from, source))?;
        if kind.is_dir() {
            copy_tree(&from, &to)?;
        } else if kind.is_file() {
            copy(&from, &to)?;
        }
    }
    Ok(())
}

pub(super) fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("cannot remove", path, error)),
        _ => Ok(()),
    }
}

pub(super) fn io_error(what: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::Io { what, path: path.to_owned(), source }
}
