//! The static binary: built with every path taken out of it, and tried where there is nothing else.

use super::{Build, libpcap::Library};
use crate::shell;
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Named, so that build scripts, which run here, are built as ever.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

pub fn build(build: &Build, library: &Library) -> Result<PathBuf> {
    println!("building guard {} ({}), static", env!("CARGO_PKG_VERSION"), build.name);
    let ended = shell::run(&mut cargo(build, library)?, Duration::from_secs(3600))?;
    ensure!(ended.good, "guard does not build ({})", ended.how);
    Ok(build.target.join(TARGET).join("release/guard"))
}

/// Names and versions of the crates in the binary that was just built, as cargo tells of what it has linked.
pub fn crates(build: &Build, library: &Library) -> Result<BTreeSet<(String, String)>> {
    let json = shell::output(cargo(build, library)?.args(["--quiet", "--message-format=json"]))?;
    // What runs while it is built (build scripts, macros) lies elsewhere.
    let linked = build.target.join(TARGET);
    let mut found = BTreeSet::new();
    for line in json.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's JSON")?;
        let files = message["filenames"].as_array().into_iter().flatten().filter_map(|file| file.as_str());
        if message["reason"] == "compiler-artifact"
            && files.into_iter().any(|file| Path::new(file).starts_with(&linked))
        {
            let id = message["package_id"].as_str().context("an artifact of no package")?;
            found.insert(name_and_version(id).with_context(|| format!("cargo names a package {id}"))?);
        }
    }
    Ok(found)
}

/// Of a package's name as cargo gives it: `SOURCE#NAME@VERSION`, or `SOURCE#VERSION` where the folder has the crate's name.
fn name_and_version(id: &str) -> Option<(String, String)> {
    let (source, rest) = id.rsplit_once('#')?;
    let (name, version) = rest.split_once('@').or_else(|| Some((source.rsplit('/').next()?, rest)))?;
    Some((name.to_owned(), version.to_owned()))
}

fn cargo(build: &Build, library: &Library) -> Result<Command> {
    let sources = build.sources.display().to_string();
    let registry = cargo_home()?.join("registry/src");
    let registry = registry.display();
    let sysroot = shell::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let standard = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Cstrip=symbols".to_owned(),
        format!("--remap-path-prefix={}=/target", build.target.display()),
        format!("--remap-path-prefix={sources}=/guard"),
        format!("--remap-path-prefix={registry}=/crates"),
        format!("--remap-path-prefix={}=/rust", standard.display()),
    ];
    // SQLite is C.
    let c_flags = format!(
        "-ffile-prefix-map={}=/target -ffile-prefix-map={sources}=/guard -ffile-prefix-map={registry}=/crates",
        build.target.display()
    );
    let mut cargo = shell::cargo();
    cargo
        .current_dir(&build.sources)
        .args(["build", "--release", "--locked", "--package", "guard", "--bin", "guard"])
        .args(["--target", TARGET])
        .arg("--target-dir")
        .arg(&build.target)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_INCREMENTAL", "0")
        .env("CFLAGS", c_flags)
        .env("GUARD_BUILD", &build.name)
        .env("SOURCE_DATE_EPOCH", &build.time)
        .env("LIBPCAP_LIBDIR", &library.directory)
        .env("LIBPCAP_VER", &library.version);
    Ok(cargo)
}

fn cargo_home() -> Result<PathBuf> {
    match std::env::var_os("CARGO_HOME") {
        Some(home) => Ok(home.into()),
        None => Ok(Path::new(&std::env::var_os("HOME").context("no HOME")?).join(".cargo")),
    }
}
