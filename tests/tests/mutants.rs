//! Would the differential tests notice? Each mutant is one small error, put into a copy of `decide` and the compiler, or of
//! the parser and the judge; the comparison with the referee must then fail. A mutant that no longer applies, or does not build, is an error too.
//!
//! The copy is a workspace of its own with just what takes part, so that a mutant costs seconds. `GUARD_MUTANT` runs
//! those whose name contains it, or `packets`, or `decisions`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

#[path = "../mutants/list.rs"]
mod list;
#[path = "../mutants/packets.rs"]
mod packets;

use list::{MUTANTS, Mutant};
use packets::OF_PACKETS;

#[test]
fn every_mutant_of_decisions_is_caught() -> Result<()> {
    every_one_is_caught("decisions", MUTANTS)
}

#[test]
fn every_mutant_of_packets_is_caught() -> Result<()> {
    every_one_is_caught("packets", OF_PACKETS)
}

fn every_one_is_caught(of: &str, mutants: &[Mutant]) -> Result<()> {
    ensure!(mutants.len() >= 20);
    let only = std::env::var("GUARD_MUTANT").unwrap_or_default();
    let chosen: Vec<_> = mutants.iter().filter(|mutant| mutant.name.contains(&only) || of == only).collect();
    if chosen.is_empty() {
        return Ok(());
    }
    let copy = Copied::make(of)?;
    copy.build().context("the copy without a mutant")?;
    ensure!(copy.agrees()?, "the copy without a mutant differs from the referee in its {of}");

    let mut survived = Vec::new();
    for mutant in &chosen {
        let began = Instant::now();
        let original = copy.apply(mutant)?;
        let caught = copy.build().and_then(|()| Ok(!copy.agrees()?));
        fs::write(copy.path(mutant), original)?;
        let caught = caught.with_context(|| format!("mutant \"{}\"", mutant.name))?;
        let seconds = began.elapsed().as_secs_f32();
        println!("{} {} ({seconds:.1} s)", if caught { "caught  " } else { "SURVIVED" }, mutant.name);
        if !caught {
            survived.push(mutant.name);
        }
    }
    ensure!(survived.is_empty(), "not caught: {survived:?}");
    Ok(())
}

/// The workspace that mutants are put into.
struct Copied(PathBuf);

/// What is copied, and where to: the shared crate, the pure part of `guard`, and the referee's side.
const SOURCES: &[(&str, &str)] = &[
    ("guard-common/src", "guard-common/src"),
    ("guard/src/policy/compile", "guard/src/policy/compile"),
    ("guard/src/policy/model.rs", "guard/src/policy/model.rs"),
    ("tests/src/differential.rs", "referee/src/differential.rs"),
    ("tests/src/generate.rs", "referee/src/generate.rs"),
    ("tests/src/referee.rs", "referee/src/referee.rs"),
    ("Cargo.lock", "Cargo.lock"),
];

/// For packets, these too. Decisions do without, since it is the compiler's time that a mutant takes.
const FOR_PACKETS: &[(&str, &str)] = &[
    ("guard/src/replay/memory.rs", "guard/src/replay/memory.rs"),
    ("tests/src/frame.rs", "referee/src/frame.rs"),
    ("tests/src/parity", "referee/src/parity"),
];

const WORKSPACE: &str = r#"
[workspace]
resolver = "3"
members = ["guard-common", "guard", "referee"]
[profile.dev]
debug = false
opt-level = 1
"#;
const GUARD_COMMON: &str = r#"
[package]
name = "guard-common"
edition = "2024"
"#;
const GUARD: &str = r#"
[package]
name = "guard"
edition = "2024"
[dependencies]
guard-common = { path = "../guard-common" }
foldhash = "0.2"
hashbrown = { version = "0.17", default-features = false, features = ["default-hasher", "inline-more"] }
serde = { version = "1", features = ["derive"] }
thiserror = "2"
"#;
const GUARD_LIB: &str = "pub mod policy { pub mod compile; pub mod model; }";
const GUARD_LIB_FOR_PACKETS: &str = "pub mod replay { pub mod memory; }";
const REFEREE: &str = r#"
[package]
name = "referee"
edition = "2024"
[dependencies]
guard-common = { path = "../guard-common" }
guard = { path = "../guard" }
anyhow = "1"
"#;
/// Exit status 0: they agree. 10: they do not; a panic too is a difference.
const OF_DECISIONS: &str = r#"
#![allow(dead_code)]
mod differential; mod generate; mod referee;
fn main() {
    let agrees = std::panic::catch_unwind(|| {
        differential::check_all(vec![differential::Userspace; 2], 0..3000, 40).is_ok()
    });
    std::process::exit(if agrees.unwrap_or(false) { 0 } else { 10 });
}
"#;
const OF_THE_PACKETS: &str = r#"
#![allow(dead_code)]
mod differential; mod frame; mod generate; mod parity; mod referee;
fn main() {
    let agrees = std::panic::catch_unwind(|| {
        parity::check_all::<parity::memory::Userspace>(vec![vec![], vec![]], 0..3000, generate::Times::Exact).is_ok()
    });
    std::process::exit(if agrees.unwrap_or(false) { 0 } else { 10 });
}
"#;

impl Copied {
    fn make(of: &str) -> Result<Self> {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants").join(of);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's root")?;
        for part in ["guard-common", "guard", "referee"] {
            match fs::remove_dir_all(to.join(part)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let packets = of == "packets";
        let more = if packets { FOR_PACKETS } else { &[] };
        for (from, into) in SOURCES.iter().chain(more) {
            copy(&root.join(from), &to.join(into)).with_context(|| format!("copying {from}"))?;
        }
        for (file, text) in [
            ("Cargo.toml", WORKSPACE),
            ("guard-common/Cargo.toml", GUARD_COMMON),
            ("guard/Cargo.toml", GUARD),
            ("guard/src/lib.rs", &[GUARD_LIB, if packets { GUARD_LIB_FOR_PACKETS } else { "" }].concat()),
            ("referee/Cargo.toml", REFEREE),
            ("referee/src/main.rs", if packets { OF_THE_PACKETS } else { OF_DECISIONS }),
        ] {
            fs::write(to.join(file), text)?;
        }
        Ok(Self(to))
    }

    fn path(&self, mutant: &Mutant) -> PathBuf {
        self.0.join(mutant.file)
    }

    /// Returns the file as it was.
    fn apply(&self, mutant: &Mutant) -> Result<String> {
        let original = fs::read_to_string(self.path(mutant))?;
        let found = original.matches(mutant.from).count();
        ensure!(found == 1, "mutant \"{}\" applies {found} times in {}, not once", mutant.name, mutant.file);
        fs::write(self.path(mutant), original.replace(mutant.from, mutant.to))?;
        Ok(original)
    }

    fn build(&self) -> Result<()> {
        // What was fetched for this workspace is all that is needed.
        let output = self.cargo(&["build", "--quiet", "--offline"])?;
        ensure!(output.status.success(), "does not build:\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn agrees(&self) -> Result<bool> {
        let output = Command::new("timeout").arg("60").arg(self.0.join("target/debug/referee")).output()?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(10 | 124) => Ok(false),
            _ => bail!("ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
        }
    }

    fn cargo(&self, arguments: &[&str]) -> Result<Output> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Ok(Command::new(cargo)
            .args(arguments)
            .current_dir(&self.0)
            .env("CARGO_TARGET_DIR", self.0.join("target"))
            // What is built anew is one small change away from what was built before; CI builds all else without.
            .env("CARGO_INCREMENTAL", "1")
            .env_remove("RUSTFLAGS")
            .output()?)
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_file() {
        fs::create_dir_all(to.parent().unwrap_or(to))?;
        fs::copy(from, to)?;
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
