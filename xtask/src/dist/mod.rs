//! `cargo xtask dist`: guard as one static binary and a Debian package, with checksums; the same bytes from the same
//! sources, wherever they lie.

mod binary;
mod libpcap;
mod package;

use crate::{packages, shell};
use anyhow::{Context as _, Result, bail, ensure};
use package::Packed;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Build the static binary, the Debian package and their checksums into target/dist
///
/// libpcap is built from Debian's source package without what guard does not use, and linked in, as SQLite is.
#[derive(clap::Args)]
pub struct Args {
    /// Build once more from a copy of the sources in another folder, and compare
    #[arg(long)]
    reproduce: bool,
    /// Pack and try this binary, which is built already
    #[arg(long, value_name = "FILE", conflicts_with = "reproduce")]
    binary: Option<PathBuf>,
    /// Install nothing, even as root
    #[arg(long)]
    no_install: bool,
}

/// What a build is made of and where it goes.
struct Build {
    /// The repository, or a copy of its files.
    sources: PathBuf,
    target: PathBuf,
    /// `--version` calls it so.
    name: String,
    /// Of the commit, in Unix seconds: for whatever keeps a time.
    time: String,
    /// Those that the repository tracks, by their paths in it.
    policies: Vec<String>,
}

impl Build {
    fn here(dist: &Path) -> Result<Self> {
        let git = |arguments: &[&str]| -> Result<String> {
            let mut git = Command::new("git");
            Ok(shell::output(git.arg("-C").arg(shell::root()).args(arguments))?.trim().to_owned())
        };
        let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
        let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
        Ok(Self {
            sources: shell::root(),
            target: dist.join("build"),
            name: if changed { format!("{commit}-changed") } else { commit },
            time: git(&["log", "-1", "--format=%ct"])?,
            policies: git(&["ls-files", "policies/*.yaml"])?.lines().map(str::to_owned).collect(),
        })
    }
}

/// The package of a binary that is built already, installed and removed, and then thrown away.
pub fn try_package(binary: &Path) -> Result<()> {
    let dist = shell::target().join("dist");
    std::fs::create_dir_all(&dist)?;
    let (tree, deb) = (dist.join("tried"), dist.join("tried.deb"));
    package::build(binary, &Build::here(&dist)?, &tree, &deb, Packed::Quickly)?;
    package::holds(&deb, &dist.join("tried-root"))?;
    std::fs::remove_file(&deb)?;
    Ok(std::fs::remove_dir_all(&tree)?)
}

/// The package of a binary that is built already, packed quickly.
pub fn quick_package(binary: &Path, deb: &Path) -> Result<()> {
    let dist = shell::target().join("dist");
    std::fs::create_dir_all(&dist)?;
    let tree = tempfile::Builder::new().prefix("quick-").tempdir_in(&dist)?;
    package::build(binary, &Build::here(&dist)?, &tree.path().join("tree"), deb, Packed::Quickly)
}

pub fn run(args: &Args) -> Result<bool> {
    if let Some(reason) = packages::ready(packages::DIST, !args.no_install && shell::is_root())? {
        bail!("{reason}");
    }
    let dist = shell::target().join("dist");
    std::fs::create_dir_all(&dist)?;
    let build = Build::here(&dist)?;
    let library = || libpcap::build(&dist.join("libpcap"));
    let program = match &args.binary {
        Some(binary) => binary.clone(),
        None => binary::build(&build, &library()?)?,
    };
    let out = dist.join(format!("guard-{}-x86_64-linux", env!("CARGO_PKG_VERSION")));
    if out.exists() {
        std::fs::remove_dir_all(&out)?;
    }
    std::fs::create_dir_all(&out)?;
    let (guard, deb) = (out.join("guard"), out.join(package::file_name()));
    std::fs::copy(&program, &guard)?;
    package::build(&guard, &build, &dist.join("package"), &deb, Packed::ToShip)?;
    package::holds(&deb, &dist.join("package-test"))?;
    binary::runs_alone(&guard, args.binary.is_none().then_some(&build.name))?;
    let sums = shell::output(Command::new("sha256sum").current_dir(&out).args(["guard"]).arg(package::file_name()))?;
    std::fs::write(out.join("SHA256SUMS"), &sums)?;

    println!("\n{}", out.display());
    for path in [&guard, &deb] {
        let bytes = std::fs::metadata(path)?.len();
        println!("  {:<28} {:.1} MB", name_of(path), bytes as f64 / 1e6);
    }
    print!("{sums}");
    if args.reproduce {
        reproduce(&build, &library()?, &dist, &guard, &deb)?;
        println!("the same bytes from a copy of the sources in another folder");
    }
    Ok(true)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// From a copy of what the repository tracks, in a folder of another name and depth.
fn reproduce(first: &Build, library: &libpcap::Library, dist: &Path, guard: &Path, deb: &Path) -> Result<()> {
    let copy = dist.join("another/folder/for-the-same");
    if copy.exists() {
        std::fs::remove_dir_all(&copy)?;
    }
    std::fs::create_dir_all(&copy)?;
    let files = shell::output(Command::new("git").arg("-C").arg(&first.sources).args(["ls-files"]))?;
    for file in files.lines() {
        let to = copy.join(file);
        std::fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        std::fs::copy(first.sources.join(file), to).with_context(|| file.to_owned())?;
    }
    let build = Build {
        target: copy.join("target"),
        sources: copy,
        name: first.name.clone(),
        time: first.time.clone(),
        policies: first.policies.clone(),
    };
    let again = binary::build(&build, library)?;
    same(guard, &again)?;
    let again_deb = dist.join("again.deb");
    package::build(&again, &build, &dist.join("package-again"), &again_deb, Packed::ToShip)?;
    same(deb, &again_deb)
}

fn same(one: &Path, other: &Path) -> Result<()> {
    let equal = std::fs::read(one)? == std::fs::read(other)?;
    ensure!(
        equal,
        "{} and {} differ: the build is not reproducible (diffoscope says where)",
        one.display(),
        other.display()
    );
    Ok(())
}
