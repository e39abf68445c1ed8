//! Where an instance lives in bpffs: `<bpffs>/guard/<instance>/{maps,programs,links}`, root's own.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::statfs,
};

use super::{KernelError, sys};

const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

#[derive(Clone, Debug)]
pub struct Pins {
    /// Where the bpffs is, or is to be.
    root: PathBuf,
    directory: PathBuf,
}

impl Pins {
    /// `bpffs`: `None` is the one that is mounted, else the one to be at /sys/fs/bpf. Makes and mounts nothing.
    pub fn find(bpffs: Option<&Path>, instance: &str) -> Result<Self, KernelError> {
        check_instance_name(instance)?;
        let root = bpffs.map_or_else(default_root, Path::to_owned);
        let pins = Self { directory: root.join("guard").join(instance), root };
        pins.introduce();
        Ok(pins)
    }

    /// Where the bpffs is, or is to be.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn is_bpffs(&self) -> bool {
        statfs(&self.root).is_ok_and(|found| found.filesystem_type().0 == BPF_FS_MAGIC)
    }

    /// Makes a bpffs where there is none.
    pub fn mount(&self) -> Result<(), KernelError> {
        if self.is_bpffs() {
            return Ok(());
        }
        mount(Some("bpf"), &self.root, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .map_err(|error| KernelError::path("cannot mount a bpffs at", &self.root)(error.into()))
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        // bpffs takes no dots in names.
        self.directory.join("maps").join(name.replace('.', "_"))
    }

    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join("programs").join(name)
    }

    #[must_use]
    pub fn link(&self, name: &str) -> PathBuf {
        self.directory.join("links").join(name)
    }

    /// Makes the directories. Fails where the instance is there already.
    pub fn create(&self) -> Result<(), KernelError> {
        if let Some(parent) = self.directory.parent() {
            make(parent).or_else(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(KernelError::path("cannot make", parent)(error)),
            })?;
            check(parent)?;
        }
        for path in [&self.directory, &self.map(""), &self.program(""), &self.link("")] {
            make(path).map_err(KernelError::path("cannot make", path))?;
        }
        Ok(())
    }

    /// Whether the instance is there; refuses one that others could have made.
    pub fn exists(&self) -> Result<bool, KernelError> {
        if !self.is_bpffs() || !self.directory.exists() {
            return Ok(false);
        }
        check(&self.directory)?;
        Ok(true)
    }

    /// Names and descriptors of what is pinned under `links`.
    pub fn links(&self) -> Result<Vec<(String, OwnedFd)>, KernelError> {
        let directory = self.link("");
        let mut links = Vec::new();
        for entry in fs::read_dir(&directory).map_err(KernelError::path("cannot list", &directory))? {
            let entry = entry.map_err(KernelError::path("cannot list", &directory))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if let Some(link) = sys::pinned(&entry.path()).map_err(KernelError::path("cannot open", &entry.path()))? {
                links.push((name, link));
            }
        }
        Ok(links)
    }

    /// The number of their file system, as the kernel has it within.
    pub fn device(&self) -> Result<u32, KernelError> {
        let device = fs::metadata(&self.directory).map_err(KernelError::path("cannot use", &self.directory))?.dev();
        Ok(libc::major(device) << 20 | libc::minor(device))
    }

    /// Inodes of the directories that hold pins, and of those above them, the root apart.
    pub fn directories(&self) -> Result<BTreeSet<u64>, KernelError> {
        let parent = self.directory.parent().unwrap_or(&self.directory);
        let all = [parent, &self.directory, &self.map(""), &self.program(""), &self.link("")];
        let inode = |path: &Path| fs::metadata(path).map_err(KernelError::path("cannot use", path));
        all.iter().map(|path| inode(path).map(|found| found.ino())).collect()
    }

    /// Removes everything. What is detached by then stays so; links lose their last holder but open descriptors.
    pub fn remove(&self) -> Result<(), KernelError> {
        for part in ["links", "programs", "maps"] {
            let directory = self.directory.join(part);
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                fs::remove_file(entry.path()).map_err(KernelError::path("cannot unpin", &entry.path()))?;
            }
            fs::remove_dir(&directory).map_err(KernelError::path("cannot remove", &directory))?;
        }
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(KernelError::path("cannot remove", &self.directory)(error))
            }
            _ => Ok(()),
        }
    }
}

/// An instance's name is a directory's in bpffs, which takes no dots (kernel/bpf/inode.c, `bpf_lookup`), and in the state
/// root.
pub fn check_instance_name(instance: &str) -> Result<(), KernelError> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=64).contains(&instance.len()) && instance.bytes().all(sound) {
        Ok(())
    } else {
        Err(KernelError::InstanceName(instance.to_owned()))
    }
}

/// Pins so that the path names `object` from then on, whatever was pinned there.
pub fn pin_over(object: BorrowedFd<'_>, path: &Path) -> Result<(), KernelError> {
    let failed = || KernelError::path("cannot pin", path);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
        _ => {}
    }
    sys::pin(object, path).map_err(failed())
}

fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn check(path: &Path) -> Result<(), KernelError> {
    let metadata = fs::symlink_metadata(path).map_err(KernelError::path("cannot use", path))?;
    let why = if !metadata.is_dir() {
        "it is no directory"
    } else if metadata.uid() != 0 {
        "it belongs to somebody else"
    } else if metadata.mode() & 0o077 != 0 {
        "others can enter it"
    } else {
        return Ok(());
    };
    Err(KernelError::Unsafe { path: path.to_owned(), why })
}

/// The bpffs that is mounted, else where it is to be.
pub fn default_root() -> PathBuf {
    mounted().unwrap_or_else(|| PathBuf::from(DEFAULT_BPFFS))
}

/// Of /proc/self/mountinfo; /sys/fs/bpf before others.
fn mounted() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").ok()?;
    let mut found = text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some("bpf")).then(|| before.split(' ').nth(4)).flatten()
    });
    let first = found.next()?;
    Some(PathBuf::from(if first != DEFAULT_BPFFS && found.any(|path| path == DEFAULT_BPFFS) {
        DEFAULT_BPFFS
    } else {
        first
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_a_bpffs_takes() {
        for good in ["default", "web-1", "A_b", &"x".repeat(64)] {
            check_instance_name(good).unwrap();
        }
        for bad in ["", "web.1", ".", "..", "../up", "a/b", "ü", "a b", &"x".repeat(65)] {
            assert!(matches!(check_instance_name(bad), Err(KernelError::InstanceName(_))), "{bad}");
        }
    }
}
