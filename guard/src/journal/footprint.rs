//! What guard itself has on this host: an investigator has to tell it from what an intruder left.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::kernel::Instance;

/// Field names are stable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// The binary that wrote this, and its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    pub pid: u32,
    pub state_dir: PathBuf,
    /// Directory of the pins in bpffs.
    pub pins: PathBuf,
    /// Of the eBPF object that the programs are from.
    pub object_sha256: String,
    /// Programs by name with the kernel's tag of their instructions.
    pub programs: Vec<String>,
    pub maps: Vec<String>,
    pub links: Vec<String>,
    /// Kernel memory that the maps hold, in bytes.
    pub map_bytes: u64,
    /// Units and other files of guard's outside the state directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
}

/// Where guard's own files may be beside its state directory.
const PLACES: [&str; 7] = [
    "/etc/guard",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/transient",
    "/usr/lib/systemd/system",
    "/usr/local/lib/guard",
    "/usr/local/sbin",
];
/// Names in bpffs and files that are listed, at most.
const MOST: usize = 128;

impl Footprint {
    #[must_use]
    pub fn of(kernel: &Instance, state_dir: &Path) -> Self {
        let settings = kernel.settings();
        let pins = kernel.pin_directory().to_owned();
        let programs = settings.programs.iter().map(|(name, tag)| format!("{name} {tag}")).take(MOST).collect();
        let mut files = Vec::new();
        for place in PLACES {
            // Whole directories of guard's own; of the others what bears its name.
            let own = Path::new(place).ends_with("guard");
            files.extend(
                names(Path::new(place))
                    .into_iter()
                    .filter(|name| own || name.starts_with("guard"))
                    .map(|name| Path::new(place).join(name)),
            );
        }
        files.truncate(MOST);
        Self {
            binary: fs::read_link("/proc/self/exe").ok(),
            pid: std::process::id(),
            state_dir: state_dir.to_owned(),
            object_sha256: settings.object_sha256.clone(),
            programs,
            maps: names(&pins.join("maps")),
            links: names(&pins.join("links")),
            // What cannot be read is not guessed.
            map_bytes: kernel.memory().unwrap_or(0),
            pins,
            files,
        }
    }

    /// One line; the caller makes it harmless.
    #[must_use]
    pub fn spoken(&self) -> String {
        let mut text = format!(
            "guard's own: {} programs, {} maps ({} KiB), {} links under {}; files under {}",
            self.programs.len(),
            self.maps.len(),
            self.map_bytes / 1024,
            self.links.len(),
            self.pins.display(),
            self.state_dir.display()
        );
        for file in &self.files {
            text.push_str(&format!(", {}", file.display()));
        }
        text
    }
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names.truncate(MOST);
    names
}
