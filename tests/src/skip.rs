//! A test that cannot run here says so, where people and `cargo xtask test` see it.

use std::io::Write;

/// Prints `SKIPPED name: reason` past the test harness's capture, and appends `name<TAB>reason` to the file that
/// `GUARD_SKIPS` names.
pub fn skip(name: &str, reason: &str) {
    // Straight to the stream: the harness captures only what the print macros write.
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {reason}");
    let Some(path) = std::env::var_os("GUARD_SKIPS") else { return };
    let line = format!("{name}\t{reason}\n");
    let written = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    if let Err(error) = written.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("cannot note in {} that {name} was skipped: {error}", path.display());
    }
}

#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
