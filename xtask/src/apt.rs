//! Debian's packages by apt under a configuration of our own: nothing is installed, and the machine's own lists stay as
//! they are. Mirrors and keys are those of the machine's own sources, so that no host is named here.

use crate::shell;
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An archive of this machine's sources: where it is, and the suite that the machine itself uses of it.
pub struct Archive {
    pub uri: String,
    pub suite: String,
}

impl Archive {
    /// Debian's own.
    pub fn main() -> Result<Self> {
        ensure!(Path::new(KEYS).exists(), "{KEYS} is missing (package debian-archive-keyring)");
        let format = "$(LABEL)\t$(REPO_URI)\t$(RELEASE)";
        let mut targets = Command::new("apt-get");
        let targets = shell::output(targets.args(["indextargets", "--format", format, "Created-By: Packages"]))?;
        let found = targets.lines().find_map(|line| {
            let mut fields = line.split('\t');
            (fields.next() == Some("Debian")).then_some((fields.next()?, fields.next()?))
        });
        let (uri, suite) = found.context("this machine's sources name no archive of Debian")?;
        Ok(Self { uri: uri.to_owned(), suite: suite.to_owned() })
    }

    /// As a line of `sources.list`; `kind`: `deb` or `deb-src`.
    pub fn line(&self, kind: &str) -> String {
        format!("{kind} [signed-by={KEYS}] {} {} main", self.uri, self.suite)
    }
}

pub struct Apt {
    options: Vec<String>,
    dir: PathBuf,
}

impl Apt {
    /// Its lists and what it fetches go into `dir`.
    pub fn new(dir: &Path, source: &str) -> Result<Self> {
        for below in ["lists/partial", "cache/archives/partial", "empty"] {
            std::fs::create_dir_all(dir.join(below))?;
        }
        std::fs::write(dir.join("status"), "")?;
        std::fs::write(dir.join("sources.list"), format!("{source}\n"))?;
        let at = |what: &str, below: &str| format!("{what}={}", dir.join(below).display());
        let options = vec![
            at("Dir::Etc::SourceList", "sources.list"),
            at("Dir::Etc::SourceParts", "empty"),
            at("Dir::Etc::PreferencesParts", "empty"),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            at("Dir::State", "."),
            at("Dir::State::Lists", "lists"),
            at("Dir::State::status", "status"),
            at("Dir::Cache", "cache"),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            // The newest list of an old release may be past its date: nothing of it is installed.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ];
        let apt = Self { options, dir: dir.to_path_buf() };
        apt.run(&["update", "--error-on=any"])?;
        Ok(apt)
    }

    /// The upstream archive of a source package.
    pub fn source(&self, package: &str) -> Result<PathBuf> {
        self.run(&["source", "--download-only", package])?;
        self.fetched(|name| {
            name.starts_with(&format!("{package}_")) && name.contains(".orig.tar.") && !name.ends_with(".asc")
        })
        .with_context(|| format!("the source package of {package} has no upstream archive"))
    }

    fn fetched(&self, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if wanted(&path.file_name().unwrap_or_default().to_string_lossy()) {
                return Ok(path);
            }
        }
        bail!("no such file in {}", self.dir.display())
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("apt-get");
        command.current_dir(&self.dir).arg("-qq");
        for option in &self.options {
            command.args(["-o", option]);
        }
        shell::output(command.args(arguments))
    }
}
