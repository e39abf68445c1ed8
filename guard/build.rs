//! Checks that the committed eBPF object is the one that the sources beside it give, and names it to the compiler.

use std::{env, error::Error, fs, path::Path};

#[path = "build_support/sources.rs"]
mod sources;

/// Set to 1 while working on the eBPF sources: an object that is out of date is then a warning.
const STALE_OK: &str = "GUARD_EBPF_STALE_OK";
const COMMAND: &str = "cargo xtask ebpf";

fn main() -> Result<(), Box<dyn Error>> {
    let package = env::var("CARGO_MANIFEST_DIR")?;
    let package = Path::new(&package);
    println!("cargo::rerun-if-changed=ebpf");
    println!("cargo::rerun-if-changed=build_support");
    println!("cargo::rerun-if-env-changed={STALE_OK}");

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

fn refuse(what: &str) -> Result<(), Box<dyn Error>> {
    if env::var(STALE_OK).is_ok_and(|value| value == "1") {
        println!("cargo::warning={what}: the programs are out of date ({COMMAND})");
        return Ok(());
    }
    println!("cargo::error={what}. Run: {COMMAND}   (or set {STALE_OK}=1 to go on with the old programs)");
    Ok(())
}
