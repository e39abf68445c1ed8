//! A cgroup2 directory of our own: guard's socket layer is attached to one of its children, and killing the cgroup is
//! the way to end every process of a world, whoever its parent is by now.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Removed on drop, with every process in it and in the cgroups below it killed.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub fn create(name: &str) -> io::Result<Self> {
        let path = root()?.join(name);
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    pub fn child(&self, name: &str) -> io::Result<Self> {
        let path = self.path.join(name);
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("cannot remove cgroup {}: {error}", self.path.display());
        }
    }
}

/// Where cgroup2 is mounted: not always `/sys/fs/cgroup` (hybrid hierarchies).
pub fn root() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let dir = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(dir))
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 is mounted"))
}

/// Kills what is in it, then removes it and what is below it.
pub fn remove(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        kill(path);
        match remove_tree(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Processes that were killed are not gone yet.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn kill(path: &Path) {
    // One write since 5.14; before, process by process.
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let mut todo = vec![path.to_owned()];
    while let Some(dir) = todo.pop() {
        for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
            if let Ok(pid) = pid.parse() {
                // It may have ended by itself.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        todo.extend(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
    }
}
