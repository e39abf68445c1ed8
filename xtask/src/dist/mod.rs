//! `cargo xtask dist`: guard as one static binary and a Debian package, with checksums; the same bytes from the same
//! sources, wherever they lie.

mod alone;
mod binary;
mod libpcap;
mod package;
mod sbom;

use crate::{newcomer, packages, shell};
use anyhow::{Context as _, Result, bail, ensure};
use libpcap::Library;
use package::Packed;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Build the static binary, the Debian package, their SBOM and checksums into target/dist
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

/// The package that was made last, of what is checked out.
pub fn package_made() -> Result<PathBuf> {
    let deb = folder().join(package::file_name());
    ensure!(deb.exists(), "{} is not there", deb.display());
    Ok(deb)
}

fn folder() -> PathBuf {
    shell::target().join(format!("dist/guard-{}-x86_64-linux", env!("CARGO_PKG_VERSION")))
}

pub fn run(args: &Args) -> Result<bool> {
    if let Some(reason) = packages::ready(packages::DIST, !args.no_install && shell::is_root())? {
        bail!("{reason}");
    }
    let dist = shell::target().join("dist");
    std::fs::create_dir_all(&dist)?;
    let build = Build::here(&dist)?;
    let out = folder();
    if out.exists() {
        std::fs::remove_dir_all(&out)?;
    }
    std::fs::create_dir_all(&out)?;
    if let Some(program) = &args.binary {
        let made = Made::of(program, &build, &out, &dist)?;
        package::holds(&made.deb, &dist.join("package-test"))?;
        alone::runs(&made.guard, None)?;
        return made.sums(&out).map(|()| true);
    }
    let library = libpcap::build(&dist.join("libpcap-x86_64"))?;
    let program = binary::build(&build, &library)?;
    let mut made = Made::of(&program, &build, &out, &dist)?;
    made.describe(&build, &library, &out)?;
    package::holds(&made.deb, &dist.join("package-test"))?;
    alone::runs(&made.guard, Some(&build.name))?;
    made.sums(&out)?;
    as_big_as_stated(&made.guard)?;
    if args.reproduce {
        reproduce(&build, &dist, &made)?;
        println!("the same bytes from a copy of the sources in another folder");
    }
    Ok(true)
}

/// What is handed out.
struct Made {
    guard: PathBuf,
    deb: PathBuf,
    sbom: Option<PathBuf>,
}

impl Made {
    fn of(program: &Path, build: &Build, out: &Path, dist: &Path) -> Result<Self> {
        let (guard, deb) = (out.join("guard"), out.join(package::file_name()));
        std::fs::copy(program, &guard)?;
        package::build(&guard, build, &dist.join("package"), &deb, Packed::ToShip)?;
        Ok(Self { guard, deb, sbom: None })
    }

    fn describe(&mut self, build: &Build, library: &Library, out: &Path) -> Result<()> {
        let linked = binary::crates(build, library)?;
        let text = || -> Result<String> {
            // Not below this repository, of which cargo would take the copy for a part.
            let copy = tempfile::tempdir()?;
            copy_sources(copy.path())?;
            sbom::build(build, copy.path(), library, &self.guard, &linked)
        };
        let (text, again) = (text()?, text()?);
        ensure!(text == again, "the SBOM is another when it is made again, of another folder");
        println!("the SBOM names all {} crates that are linked in", linked.len());
        let path = out.join(sbom::FILE);
        std::fs::write(&path, text)?;
        self.sbom = Some(path);
        Ok(())
    }

    fn sums(&self, out: &Path) -> Result<()> {
        let files: Vec<&PathBuf> = [&self.guard, &self.deb].into_iter().chain(&self.sbom).collect();
        let names = files.iter().map(|path| name_of(path));
        let sums = shell::output(Command::new("sha256sum").current_dir(out).args(names))?;
        std::fs::write(out.join("SHA256SUMS"), &sums)?;
        shell::output(Command::new("sha256sum").current_dir(out).args(["--check", "--strict", "SHA256SUMS"]))?;
        println!("\n{}", out.display());
        for path in files {
            println!("  {:<28} {:.1} MB", name_of(path), std::fs::metadata(path)?.len() as f64 / 1e6);
        }
        print!("{sums}");
        Ok(())
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A tenth more or less than README.md says.
fn as_big_as_stated(guard: &Path) -> Result<()> {
    let is = std::fs::metadata(guard)?.len() as f64 / 1e6;
    let stated = newcomer::Readme::read()?.number_before(" MB, libpcap and SQLite in it")?;
    ensure!((is / stated - 1.0).abs() < 0.1, "the binary has {is:.1} MB, and README.md says {stated}");
    Ok(())
}

/// What the repository tracks, in a folder of its own.
fn copy_sources(copy: &Path) -> Result<()> {
    let files = shell::output(Command::new("git").arg("-C").arg(shell::root()).args(["ls-files"]))?;
    for file in files.lines() {
        let to = copy.join(file);
        std::fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        std::fs::copy(shell::root().join(file), to).with_context(|| file.to_owned())?;
    }
    Ok(())
}

/// All of it, libpcap too, from a copy of the sources, in a folder of another name and depth.
fn reproduce(first: &Build, dist: &Path, made: &Made) -> Result<()> {
    let copy = dist.join("another/folder/for-the-same");
    if copy.exists() {
        std::fs::remove_dir_all(&copy)?;
    }
    copy_sources(&copy)?;
    let build = Build {
        target: copy.join("target"),
        sources: copy.clone(),
        name: first.name.clone(),
        time: first.time.clone(),
        policies: first.policies.clone(),
    };
    let library = libpcap::build(&copy.join("target/libpcap"))?;
    let again = binary::build(&build, &library)?;
    same(&made.guard, &again)?;
    let out = dist.join("again");
    std::fs::create_dir_all(&out)?;
    let mut other = Made::of(&again, &build, &out, dist)?;
    same(&made.deb, &other.deb)?;
    other.describe(&build, &library, &out)?;
    match (&made.sbom, &other.sbom) {
        (Some(one), Some(again)) => same(one, again),
        _ => bail!("no SBOM to compare"),
    }
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
