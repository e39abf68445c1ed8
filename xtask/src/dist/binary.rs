//! The static binary: built with every path taken out of it, and tried where there is nothing else.

use super::{Build, libpcap::Library};
use crate::shell;
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Named, so that build scripts, which run here, are built as ever.
const TARGET: &str = "x86_64-unknown-linux-gnu";

pub fn build(build: &Build, library: &Library) -> Result<PathBuf> {
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
    println!("building guard {} ({}), static", env!("CARGO_PKG_VERSION"), build.name);
    let mut cargo = shell::cargo();
    cargo
        .current_dir(&build.sources)
        .args(["build", "--release", "--locked", "--package", "guard", "--bin", "guard", "--target", TARGET])
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
    let ended = shell::run(&mut cargo, Duration::from_secs(3600))?;
    ensure!(ended.good, "guard does not build ({})", ended.how);
    Ok(build.target.join(TARGET).join("release/guard"))
}

fn cargo_home() -> Result<PathBuf> {
    match std::env::var_os("CARGO_HOME") {
        Some(home) => Ok(home.into()),
        None => Ok(Path::new(&std::env::var_os("HOME").context("no HOME")?).join(".cargo")),
    }
}

/// On a root that has nothing but it and a policy, read-only: no loader, no libraries, no /usr, no /proc.
pub fn runs_alone(guard: &Path, name: Option<&String>) -> Result<()> {
    let manifest = std::fs::read_to_string(shell::root().join("guard/ebpf/manifest.json"))?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
    let object = manifest["object_sha256"].as_str().context("the manifest names no object")?;
    let policy = shell::root().join("policies/web-server.yaml");
    // A mount namespace of its own (and, for who is not root, a user namespace): what is mounted ends with it.
    let script = "set -e; root=$(mktemp -d); trap 'umount -l $root; rmdir $root' EXIT; mount -t tmpfs none $root; \
                  cp \"$1\" $root/guard; cp \"$2\" $root/policy.yaml; chmod 0644 $root/policy.yaml; \
                  mount -o remount,ro $root; ls $root; \
                  for arguments in --version 'check /policy.yaml' 'test /policy.yaml' 'export nft /policy.yaml'; do \
                  echo \"-- $arguments\"; chroot $root /guard $arguments; done";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    if !shell::is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let said = shell::output(command.args(["sh", "-c", script, "sh"]).arg(guard).arg(&policy))?;
    let build = name.map_or("(build ".to_owned(), |name| format!("(build {name})"));
    for wanted in [&build, object, "valid", "table inet guard"] {
        ensure!(said.contains(wanted), "on an empty root guard does not say {wanted:?}:\n{said}");
    }
    println!("runs alone, from a read-only root without /usr, /lib and /proc");
    Ok(())
}
