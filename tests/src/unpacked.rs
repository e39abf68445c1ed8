//! Programs of Debian packages that are better not installed on whoever's machine runs the tests (one would take the
//! place of the machine's own time service): unpacked below `target/unpacked`, where they stay.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// The path of a program: the system's own, where it has it, else from its package. An error is a reason to skip: the package
/// is not to be had, or nothing may be fetched (`GUARD_NO_INSTALL`, which `cargo xtask test --no-install` sets).
pub fn program(package: &str, path: &str) -> Result<PathBuf> {
    let own = Path::new("/").join(path);
    if own.exists() {
        return Ok(own);
    }
    let all = crate::corpus::directory().with_file_name("unpacked");
    let dir = all.join(package);
    let program = dir.join("root").join(path);
    if program.exists() {
        return Ok(program);
    }
    ensure!(env::var_os("GUARD_NO_INSTALL").is_none(), "{package} is not installed");
    fs::create_dir_all(&all)?;
    // Under its name only when it is whole: what broke off is not taken for it by the next run.
    let new = tempfile::Builder::new().prefix(package).tempdir_in(&all)?;
    fetch(package, new.path()).with_context(|| format!("{package} is not installed, and its package not to be had"))?;
    ensure!(new.path().join("root").join(path).exists(), "the package {package} has no {path}");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::rename(new.path(), &dir)?;
    Ok(program)
}

fn fetch(package: &str, dir: &Path) -> Result<()> {
    // Lists may never have been fetched here.
    if download(dir, package).is_err() {
        said(Command::new("apt-get").args(["-qq", "update"]))?;
        download(dir, package)?;
    }
    let archive = fs::read_dir(dir)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
        .context("nothing was downloaded")?;
    said(Command::new("dpkg-deb").arg("-x").arg(archive).arg(dir.join("root")))
}

fn download(dir: &Path, package: &str) -> Result<()> {
    said(Command::new("apt-get").current_dir(dir).args(["-qq", "-o", "APT::Sandbox::User=root", "download", package]))
}

fn said(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
