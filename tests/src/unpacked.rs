//! Programs of Debian packages that are better not installed on whoever's machine runs the tests (one would take the
//! place of the machine's own time service): unpacked below `target/unpacked`, where they stay.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// The path of a program: the system's own, where it has it, else from its package.
pub fn program(package: &str, path: &str) -> Result<PathBuf> {
    let own = Path::new("/").join(path);
    if own.exists() {
        return Ok(own);
    }
    let dir = crate::corpus::directory().with_file_name("unpacked").join(package);
    let program = dir.join("root").join(path);
    if !program.exists() {
        fs::create_dir_all(&dir)?;
        // Lists may never have been fetched here.
        if download(&dir, package).is_err() {
            said(Command::new("apt-get").args(["-qq", "update"]))?;
            download(&dir, package)?;
        }
        let archive = fs::read_dir(&dir)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
            .with_context(|| format!("the package {package} was not downloaded"))?;
        said(Command::new("dpkg-deb").arg("-x").arg(archive).arg(dir.join("root")))?;
    }
    ensure!(program.exists(), "the package {package} has no {path}");
    Ok(program)
}

fn download(dir: &Path, package: &str) -> Result<()> {
    said(Command::new("apt-get").current_dir(dir).args(["-qq", "-o", "APT::Sandbox::User=root", "download", package]))
}

fn said(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
