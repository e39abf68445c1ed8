//! Checks that the committed eBPF object is the one that the sources beside it give, and names it and the build to the
//! compiler.

use std::{env, error::Error, fs, path::Path, process::Command};

#[path = "build_support/sources.rs"]
mod sources;

/// Set to 1 while working on the eBPF sources: an object that is out of date is then a warning.
const STALE_OK: &str = "GUARD_EBPF_STALE_OK";
const COMMAND: &str = "cargo xtask ebpf";
/// What `--version` calls the build; left out: the commit, for a release that is built from a repository.
const BUILD: &str = "GUARD_BUILD";

fn main() -> Result<(), Box<dyn Error>> {
    let package = env::var("CARGO_MANIFEST_DIR")?;
    let package = Path::new(&package);
    println!("cargo::rerun-if-changed=ebpf");
    println!("cargo::rerun-if-changed=build_support");
    println!("cargo::rerun-if-env-changed={STALE_OK}");
    println!("cargo::rerun-if-env-changed={BUILD}");
    println!("cargo::rustc-env={BUILD}={}", build_name(package));

    let manifest = fs::read_to_string(package.join("ebpf/manifest.json"))?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
    let field = |name: &str| {
        manifest[name].as_str().map(str::to_owned).ok_or_else(|| format!("ebpf/manifest.json: no string \"{name}\""))
    };
    let object = sources::hash_bytes(&fs::read(package.join("ebpf/guard.bpf.o"))?);
    println!("cargo::rustc-env=GUARD_EBPF_SHA256={object}");
    if object != field("object_sha256")? {
        return refuse("guard/ebpf/guard.bpf.o is not the object that guard/ebpf/manifest.json describes");
    }

    // A packaged crate has the object and no sources: then there is nothing to compare.
    let repository = package.join("..");
    if repository.join("guard-ebpf/src").is_dir() {
        println!("cargo::rerun-if-changed=../guard-ebpf/src");
        println!("cargo::rerun-if-changed=../guard-ebpf/Cargo.toml");
        println!("cargo::rerun-if-changed=../guard-ebpf/Cargo.lock");
        println!("cargo::rerun-if-changed=../guard-common/src");
        println!("cargo::rerun-if-changed=../guard-common/Cargo.toml");
        if sources::hash(&repository)? != field("sources_sha256")? {
            return refuse(
                "the eBPF sources (guard-ebpf, guard-common) have changed since guard/ebpf/guard.bpf.o was built",
            );
        }
    }
    Ok(())
}

/// Only releases ask git: a development build would else be made anew at every commit.
fn build_name(package: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(package).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = || {
        let log = git(&["rev-parse", "--git-path", "logs/HEAD"]).map(|log| package.join(log));
        if let Some(log) = log.filter(|log| log.exists()) {
            println!("cargo::rerun-if-changed={}", log.display());
        }
        git(&["rev-parse", "--short=12", "HEAD"])
    };
    match env::var(BUILD) {
        Ok(name) if !name.is_empty() => name,
        _ if release => commit().unwrap_or_else(|| "unknown".to_owned()),
        _ => "development".to_owned(),
    }
}

fn refuse(what: &str) -> Result<(), Box<dyn Error>> {
    if env::var(STALE_OK).is_ok_and(|value| value == "1") {
        println!("cargo::warning={what}: the programs are out of date ({COMMAND})");
        return Ok(());
    }
    println!("cargo::error={what}. Run: {COMMAND}   (or set {STALE_OK}=1 to go on with the old programs)");
    Ok(())
}
