//! `cargo xtask ebpf`: builds the programs and commits them to `guard/ebpf`, so that nobody else needs the toolchain.
//!
//! The object must be the same bytes wherever it is built. So the sources are copied to a stage, a workspace of its own
//! whose members cargo names by relative paths, and every path of the machine is remapped.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

#[path = "../../guard/build_support/sources.rs"]
mod sources;

/// Rebuild the eBPF programs and their manifest.
#[derive(clap::Args)]
pub struct Args {
    /// Change nothing: rebuild in a temporary directory and compare with what is committed, byte for byte
    #[arg(long)]
    check: bool,
    /// Which toolchain builds: Debian's (packages rustc-web, cargo-web, rust-web-src) or a rustup nightly with rust-src
    #[arg(long, env = "GUARD_EBPF_TOOLCHAIN", value_enum)]
    toolchain: Option<Kind>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Debian,
    Nightly,
}

/// The programs, and those that only tests and benches load.
const OBJECT: &str = "guard/ebpf/guard.bpf.o";
const PROBE: &str = "tests/ebpf/probe.bpf.o";
const MANIFEST: &str = "guard/ebpf/manifest.json";
const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
const LINKER_FEATURE: &str = "llvm-22";
/// Where Debian's and apt.llvm.org's packages of that LLVM put it.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The stage's root. It takes the place of the repository's, so what its members inherit from there stands here too.
const STAGE: &str = r#"
[workspace]
resolver = "3"
members = ["guard-common", "guard-ebpf"]

[workspace.package]
version = "0.1.0"
edition = "2024"
rust-version = "1.95"
license = "MIT OR Apache-2.0"
publish = false

[workspace.lints]

[profile.release]
codegen-units = 1
debug = 2
panic = "abort"
"#;

pub fn run(args: &Args) -> Result<()> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?;
    let toolchain = Toolchain::find(args.toolchain)?;
    let linker = Linker::find(repository)?;

    if args.check {
        let stage = tempfile::tempdir()?;
        let built = build(repository, stage.path(), &toolchain, &linker)?;
        let manifest = Manifest::describe(repository, &built, &toolchain, &linker)?;
        return check(repository, &built, &manifest);
    }
    let built = build(repository, &repository.join("target/ebpf"), &toolchain, &linker)?;
    let manifest = Manifest::describe(repository, &built, &toolchain, &linker)?;
    for (path, bytes) in [(OBJECT, &built.object), (PROBE, &built.probe)] {
        let path = repository.join(path);
        fs::create_dir_all(path.parent().context("an object without directory")?)?;
        fs::write(path, bytes)?;
    }
    fs::write(repository.join(MANIFEST), serde_json::to_string_pretty(&manifest)? + "\n")?;
    println!("{OBJECT}: {} bytes, {}", built.object.len(), manifest.object_sha256);
    Ok(())
}

struct Built {
    object: Vec<u8>,
    probe: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    /// See `guard/build_support/sources.rs`.
    sources_sha256: String,
    object_sha256: String,
    probe_sha256: String,
    target: String,
    rustc: String,
    bpf_linker: String,
}

impl Manifest {
    fn describe(repository: &Path, built: &Built, toolchain: &Toolchain, linker: &Linker) -> Result<Self> {
        Ok(Self {
            sources_sha256: sources::hash(repository)?,
            object_sha256: sources::hash_bytes(&built.object),
            probe_sha256: sources::hash_bytes(&built.probe),
            target: TARGET.to_owned(),
            rustc: toolchain.version.clone(),
            bpf_linker: linker.version.clone(),
        })
    }
}

fn check(repository: &Path, built: &Built, manifest: &Manifest) -> Result<()> {
    let committed: Manifest = serde_json::from_slice(&fs::read(repository.join(MANIFEST))?).context(MANIFEST)?;
    if committed.sources_sha256 != manifest.sources_sha256 {
        bail!("{MANIFEST} is of other sources. Run: cargo xtask ebpf");
    }
    if (&committed.rustc, &committed.bpf_linker) != (&manifest.rustc, &manifest.bpf_linker) {
        bail!(
            "{OBJECT} was built by {}, {}; here are {}, {}: other bytes are to be expected, and prove nothing",
            committed.rustc,
            committed.bpf_linker,
            manifest.rustc,
            manifest.bpf_linker
        );
    }
    for (path, bytes) in [(OBJECT, &built.object), (PROBE, &built.probe)] {
        let there = fs::read(repository.join(path)).context(path)?;
        if there != *bytes {
            let place = there.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(there.len().min(bytes.len()));
            bail!(
                "{path} ({} bytes) is not what its sources give ({} bytes): first difference at byte {place}",
                there.len(),
                bytes.len()
            );
        }
    }
    if committed != *manifest {
        bail!("{MANIFEST} does not describe the objects beside it. Run: cargo xtask ebpf");
    }
    println!("{OBJECT} is, byte for byte, what its sources give ({})", manifest.object_sha256);
    Ok(())
}

/// Builds in `stage`.
fn build(repository: &Path, stage: &Path, toolchain: &Toolchain, linker: &Linker) -> Result<Built> {
    let workspace = stage.join("stage");
    if workspace.exists() {
        fs::remove_dir_all(&workspace)?;
    }
    for file in sources::files(repository)? {
        let to = workspace.join(&file);
        fs::create_dir_all(to.parent().context("a source file without directory")?)?;
        match file.file_name().is_some_and(|name| name == "Cargo.toml") {
            true => fs::write(to, without_tests(&fs::read_to_string(repository.join(&file))?))?,
            false => drop(fs::copy(repository.join(&file), to)?),
        }
    }
    fs::write(workspace.join("Cargo.toml"), STAGE)?;
    fs::copy(repository.join("guard-ebpf/Cargo.lock"), workspace.join("Cargo.lock"))?;

    let target = stage.join("target");
    let mut flags = vec!["-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()];
    for (from, to) in remapped(&workspace, toolchain)? {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    let status = toolchain
        .cargo()
        .current_dir(&workspace)
        .args(["build", "--release", "--locked", "--package", "guard-ebpf", "-Zbuild-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker.path)
        .status()
        .context("cargo did not start")?;
    if !status.success() {
        bail!("the eBPF programs do not build");
    }
    let release = target.join(TARGET).join("release");
    Ok(Built { object: stripped(&release.join("guard"))?, probe: stripped(&release.join("probe"))? })
}

/// The object without DWARF, from which the linker made BTF: three quarters of it, that no kernel and no loader reads.
fn stripped(object: &Path) -> Result<Vec<u8>> {
    let prefix = env::var_os("LLVM_PREFIX").unwrap_or_else(|| LLVM_PREFIX.into());
    let to = object.with_extension("stripped");
    let tool = Path::new(&prefix).join("bin/llvm-objcopy");
    let status = Command::new(&tool).arg("--strip-debug").arg(object).arg(&to).status();
    let status = status.with_context(|| {
        format!("{} does not start (Debian: apt-get install llvm-22, or set LLVM_PREFIX)", tool.display())
    })?;
    if !status.success() {
        bail!("{} {}: {status}", tool.display(), object.display());
    }
    fs::read(&to).with_context(|| to.display().to_string())
}

/// A manifest without what only tests depend on: no part of the object, and not in the lock file of the stage.
fn without_tests(manifest: &str) -> String {
    let mut within = false;
    let lines = manifest.lines().filter(|line| {
        if line.starts_with('[') {
            within = line.trim() == "[dev-dependencies]";
        }
        !within
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// Paths of this machine, and what stands for them in the object. Later ones win over earlier ones.
fn remapped(workspace: &Path, toolchain: &Toolchain) -> Result<Vec<(PathBuf, String)>> {
    let mut paths = vec![(toolchain.library.clone(), "/rust".to_owned())];
    if let Ok(library) = toolchain.library.canonicalize() {
        paths.push((library, "/rust".to_owned()));
    }
    let home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => Path::new(&env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"),
    };
    // One directory a registry or mirror; its name has the mirror's hash.
    if let Ok(registries) = fs::read_dir(home.join("registry/src")) {
        for registry in registries {
            paths.push((registry?.path(), "/crates".to_owned()));
        }
    }
    paths.push((workspace.canonicalize()?, "/guard".to_owned()));
    Ok(paths)
}

struct Toolchain {
    kind: Kind,
    version: String,
    /// Sources of the standard library.
    library: PathBuf,
}

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

impl Toolchain {
    fn find(wanted: Option<Kind>) -> Result<Self> {
        let kinds = match wanted {
            Some(kind) => vec![kind],
            None => vec![Kind::Debian, Kind::Nightly],
        };
        kinds.into_iter().find_map(Self::of_kind).context(
            "no toolchain for eBPF here. On Debian: apt-get install rustc-web cargo-web rust-web-src; elsewhere: \
             rustup toolchain install nightly --component rust-src",
        )
    }

    fn of_kind(kind: Kind) -> Option<Self> {
        let sysroot = PathBuf::from(output(Self::rustc(kind).args(["--print", "sysroot"]))?);
        let version = output(Self::rustc(kind).arg("--version"))?;
        let library = sysroot.join("lib/rustlib/src/rust");
        library.join("library/core/src/lib.rs").exists().then_some(Self { kind, version, library })
    }

    fn rustc(kind: Kind) -> Command {
        match kind {
            Kind::Debian => Command::new(DEBIAN_RUSTC),
            Kind::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
        }
    }

    /// Without what the cargo that runs us has set for its own toolchain.
    fn cargo(&self) -> Command {
        let mut command = match self.kind {
            Kind::Debian => {
                let mut command = Command::new(DEBIAN_CARGO);
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Kind::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]).env_remove("RUSTC");
                command
            }
        };
        for variable in ["RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
            command.env_remove(variable);
        }
        command
    }
}

struct Linker {
    path: PathBuf,
    version: String,
}

impl Linker {
    /// `BPF_LINKER`, then `PATH`, then the one that an earlier run installed; else installs it there.
    fn find(repository: &Path) -> Result<Self> {
        let root = repository.join("target/tools");
        let mut places: Vec<PathBuf> = env::var_os("BPF_LINKER").map(PathBuf::from).into_iter().collect();
        if let Some(path) = env::var_os("PATH") {
            places.extend(env::split_paths(&path).map(|directory| directory.join("bpf-linker")));
        }
        places.push(root.join("bin/bpf-linker"));
        let usable = |path: PathBuf| {
            let version = output(Command::new(&path).arg("--version"))?;
            (version == format!("bpf-linker {LINKER_VERSION}")).then_some(Self { path, version })
        };
        if let Some(linker) = places.into_iter().find_map(usable) {
            return Ok(linker);
        }
        println!("bpf-linker {LINKER_VERSION} is not here: building it (a minute)");
        let mut install = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        install.args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION, "--root"]).arg(&root);
        install.args(["--no-default-features", "--features", LINKER_FEATURE]);
        if env::var_os("LLVM_PREFIX").is_none() {
            install.env("LLVM_PREFIX", LLVM_PREFIX);
        }
        if !install.status()?.success() {
            bail!(
                "bpf-linker does not build. It needs LLVM 22 (Debian: apt-get install llvm-22-dev) or LLVM_PREFIX set"
            );
        }
        usable(root.join("bin/bpf-linker")).context("the bpf-linker that was just installed does not run")
    }
}

/// Trimmed standard output, where the command ran and succeeded.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
