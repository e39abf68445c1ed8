//! Opening a policy's files: regular ones, of bounded size, and, as root, only what nobody else can write.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Largest YAML file. Long lists belong into list files.
pub const MAX_POLICY_BYTES: u64 = 32 << 20;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is not a regular file", path.display())]
    NotRegular { path: PathBuf },
    #[error("{} is larger than {} MiB", path.display(), MAX_POLICY_BYTES >> 20)]
    TooLarge { path: PathBuf },
    #[error("{} is not UTF-8 (byte {at})", path.display())]
    NotUtf8 { path: PathBuf, at: usize },
    #[error("{} can be written by others than root ({how}); whoever writes it decides what this host lets through", path.display())]
    Writable { path: PathBuf, how: String, fix: String },
}

impl FileError {
    /// What to do.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "paths are relative to the file that names them".to_owned()
            }
            Self::Io { .. } => "make it readable, or run as a user who can read it".to_owned(),
            Self::NotRegular { .. } => "name a file, not a directory, device or pipe".to_owned(),
            Self::TooLarge { .. } => "put long lists of addresses into a list file: `{ file: … }`".to_owned(),
            Self::NotUtf8 { .. } => "save it as UTF-8".to_owned(),
            Self::Writable { fix, .. } => fix.clone(),
        }
    }
}

/// Opens a file and checks it by its descriptor, so that it cannot be exchanged in between.
pub fn open(path: &Path) -> Result<File, FileError> {
    let failed = |source| FileError::Io { path: path.to_owned(), source };
    // A pipe would block, a terminal would become ours.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular { path: path.to_owned() });
    }
    if nix::unistd::geteuid().is_root() {
        trusted(path, &metadata)?;
        // By its true way and by the way that was named: whoever can put another link there chooses the file.
        let real = fs::canonicalize(path).map_err(failed)?;
        let named = std::path::absolute(path).map_err(failed)?;
        for directory in real.ancestors().skip(1).chain(named.ancestors().skip(1)) {
            trusted(directory, &fs::metadata(directory).map_err(failed)?)?;
        }
    }
    Ok(file)
}

/// As sshd has it for keys: root's own (or, under sudo, the caller's own), and written by nobody else. A directory with
/// the sticky bit (`/tmp`) passes: others cannot exchange what root has put there.
fn trusted(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    let shown = crate::text::escape_line(&path.display().to_string());
    let owner = metadata.uid();
    let caller = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse::<u32>().ok());
    if owner != 0 && Some(owner) != caller {
        let how = format!("it belongs to user {owner}");
        return Err(FileError::Writable { path: path.to_owned(), how, fix: format!("chown root {shown}") });
    }
    let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
    if metadata.mode() & 0o022 != 0 && !sticky {
        let how = format!("mode {:04o}", metadata.mode() & 0o7777);
        return Err(FileError::Writable { path: path.to_owned(), how, fix: format!("chmod go-w {shown}") });
    }
    Ok(())
}

/// The whole of a YAML file.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let mut bytes = Vec::new();
    open(path)?
        .take(MAX_POLICY_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| FileError::Io { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_POLICY_BYTES {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes)
        .map_err(|error| FileError::NotUtf8 { path: path.to_owned(), at: error.utf8_error().valid_up_to() })
}
