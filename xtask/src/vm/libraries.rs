//! The shared libraries that a program names, so that what was built for this machine runs in the guest too.
//!
//! A payload linked statically would have to be built a second time, with all its dependencies.

use crate::shell;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// By the paths under which the loader looks for them, the loader itself included.
pub fn of(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut all = BTreeSet::new();
    for program in programs {
        let text = shell::output(Command::new("ldd").arg(program))
            .with_context(|| format!("the libraries of {}", program.display()))?;
        for line in text.lines() {
            // "name => path (address)", or "path (address)" for the loader.
            let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
            let path = path.split_whitespace().next().unwrap_or_default();
            if path.starts_with('/') {
                all.insert(Path::new(path).to_path_buf());
            }
        }
    }
    Ok(all)
}
