//! Removes what runs left that were killed: their names carry the pid and start time of who made them.

use std::{fs, path::Path};

use super::{cgroup, names::is_orphan, namespace};

pub fn reap() {
    // Processes first: they hold the namespaces.
    if let Ok(root) = cgroup::root() {
        for name in orphans(&root) {
            if let Err(error) = cgroup::remove(&root.join(&name)) {
                eprintln!("cannot remove the cgroup {name} that a dead run left: {error}");
            }
        }
    }
    for name in orphans(Path::new("/run/netns")) {
        // Another run may be reaping it too.
        namespace::delete(&name);
    }
    for name in orphans(&std::env::temp_dir()) {
        // The same.
        let _ = fs::remove_dir_all(std::env::temp_dir().join(name));
    }
}

fn orphans(dir: &Path) -> Vec<String> {
    // A directory that is not there holds nothing.
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| is_orphan(name)).collect()
}
