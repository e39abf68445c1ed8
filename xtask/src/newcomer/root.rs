//! A bare Debian, by mmdebstrap from this machine's own mirror: what is essential, and apt.

use crate::{apt, shell};
use anyhow::{Context as _, Result};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    Bookworm,
    Trixie,
}

impl Suite {
    pub const ALL: [Self; 2] = [Self::Bookworm, Self::Trixie];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    pub fn version(self) -> u32 {
        match self {
            Self::Bookworm => 12,
            Self::Trixie => 13,
        }
    }
}

/// Unpacked anew, so that nobody has been there. The archive is made once.
pub fn bare(suite: Suite) -> Result<PathBuf> {
    let dir = shell::target().join("newcomer");
    std::fs::create_dir_all(&dir)?;
    let archive = dir.join(format!("{}.tar", suite.name()));
    if !archive.exists() {
        println!("making a bare Debian {}", suite.version());
        make(suite, &archive)?;
    }
    let root = dir.join(suite.name());
    remove(&root)?;
    std::fs::create_dir_all(&root)?;
    shell::output(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&root).arg("--numeric-owner"))?;
    // Installing a server starts it; there is nothing here that it should serve.
    let policy = root.join("usr/sbin/policy-rc.d");
    std::fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
    std::fs::set_permissions(&policy, std::fs::Permissions::from_mode(0o755))?;
    Ok(root)
}

pub fn remove(root: &Path) -> Result<()> {
    if root.exists() {
        std::fs::remove_dir_all(root).with_context(|| root.display().to_string())?;
    }
    Ok(())
}

fn make(suite: Suite, archive: &Path) -> Result<()> {
    let source = apt::Archive { suite: suite.name().to_owned(), ..apt::Archive::main()? };
    let partial = archive.with_extension("partial");
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--mode=root", "--variant=minbase", "--format=tar", "--dpkgopt=force-unsafe-io"]);
    // The newest list of a mirror that stands still may be past its date.
    command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    if source.uri.starts_with("https:") {
        command.arg("--include=ca-certificates");
    }
    for proxy in proxies()? {
        command.arg(format!("--aptopt={proxy}"));
    }
    shell::output(command.arg(suite.name()).arg(&partial).arg(source.line("deb")))?;
    Ok(std::fs::rename(&partial, archive)?)
}

/// By which this machine's own apt gets out, if by any.
fn proxies() -> Result<Vec<String>> {
    let all = shell::output(Command::new("apt-config").arg("dump"))?;
    let proxy = |line: &&str| line.starts_with("Acquire::http") && line.contains("::Proxy ");
    Ok(all.lines().filter(proxy).map(|line| line.trim_end_matches(';').to_owned()).collect())
}
