//! Debian's kernels, by apt under a configuration of our own: nothing is installed, and the machine's own lists stay as
//! they are. Mirror and keys are those of the machine's own sources, so that no host is named here.

use crate::shell;
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Copy)]
pub struct Suite {
    pub name: &'static str,
    /// The archive that holds it: the distribution's own, or that of its security team.
    security: bool,
    /// Not asked for unless named: kept for what comes.
    extra: bool,
}

const SUITES: &[Suite] = &[
    Suite { name: "bullseye", security: false, extra: false },
    Suite { name: "bookworm-security", security: true, extra: false },
    Suite { name: "bookworm-backports", security: false, extra: false },
    Suite { name: "trixie", security: false, extra: true },
    Suite { name: "trixie-backports", security: false, extra: true },
];

pub struct Kernel {
    /// As `uname -r` says it there.
    pub version: String,
    pub image: PathBuf,
    /// Holds `lib/modules`.
    pub root: PathBuf,
}

pub fn all() -> Vec<Suite> {
    SUITES.to_vec()
}

pub fn chosen(wanted: &[String]) -> Result<Vec<Suite>> {
    if wanted.is_empty() {
        return Ok(SUITES.iter().copied().filter(|suite| !suite.extra).collect());
    }
    wanted
        .iter()
        .map(|name| {
            let known = || SUITES.iter().map(|suite| suite.name).collect::<Vec<_>>().join(", ");
            let suite = SUITES.iter().find(|suite| suite.name == name);
            suite.copied().with_context(|| format!("no suite is called {name} (known: {})", known()))
        })
        .collect()
}

/// Unpacks a suite's cloud kernel below `dir`, unless it is there.
pub fn fetch(suite: Suite, dir: &Path) -> Result<Kernel> {
    let root = dir.join(suite.name);
    if let Ok(kernel) = unpacked(&root) {
        return Ok(kernel);
    }
    let apt = Apt::new(suite, &dir.join("apt").join(suite.name))?;
    let meta = format!("linux-image-cloud-{}", apt.architecture);
    let image = apt.depends(&meta)?.into_iter().find(|name| name.starts_with("linux-image-"));
    let image = image.with_context(|| format!("{meta} of {} depends on no kernel", suite.name))?;
    let mut packages = vec![image.clone()];
    // Newer ones split the kernel and its modules off.
    packages.extend(
        apt.depends(&image)?
            .into_iter()
            .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-")),
    );
    let partial = dir.join(format!("{}.partial", suite.name));
    let _ = std::fs::remove_dir_all(&partial);
    std::fs::create_dir_all(&partial)?;
    for package in &packages {
        let file = apt.download(package)?;
        shell::output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&partial))?;
        std::fs::remove_file(&file)?;
    }
    // Merged /usr: the tools look in /lib.
    if !partial.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", partial.join("lib"))?;
    }
    let kernel = unpacked(&partial)?;
    shell::output(Command::new(tool("depmod")?).arg("-b").arg(&partial).arg(&kernel.version))?;
    std::fs::rename(&partial, &root)?;
    unpacked(&root)
}

pub fn tool(name: &str) -> Result<PathBuf> {
    shell::find(name).with_context(|| format!("{name} is missing"))
}

/// The image is in `boot`, or, since Debian's 7.3, among its modules.
fn unpacked(root: &Path) -> Result<Kernel> {
    let modules = root.join("lib/modules");
    for entry in std::fs::read_dir(&modules).with_context(|| format!("no kernel below {}", root.display()))? {
        let place = entry?.path();
        let version = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let images = [root.join("boot").join(format!("vmlinuz-{version}")), place.join("vmlinuz")];
        if let Some(image) = images.into_iter().find(|image| image.is_file()) {
            return Ok(Kernel { version, image, root: root.to_path_buf() });
        }
    }
    bail!("no kernel below {}", root.display())
}

struct Apt {
    architecture: String,
    options: Vec<String>,
    dir: PathBuf,
}

impl Apt {
    fn new(suite: Suite, dir: &Path) -> Result<Self> {
        for below in ["lists/partial", "cache/archives/partial", "empty"] {
            std::fs::create_dir_all(dir.join(below))?;
        }
        std::fs::write(dir.join("status"), "")?;
        let (uri, keys) = archive(suite.security)?;
        std::fs::write(dir.join("sources.list"), format!("deb [signed-by={keys}] {uri} {} main\n", suite.name))?;
        let architecture = shell::output(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned();
        let at = |what: &str, below: &str| format!("{what}={}", dir.join(below).display());
        let options = vec![
            at("Dir::Etc::SourceList", "sources.list"),
            at("Dir::Etc::SourceParts", "empty"),
            at("Dir::Etc::PreferencesParts", "empty"),
            "Dir::Etc::Preferences=/dev/null".into(),
            at("Dir::State", "."),
            at("Dir::State::Lists", "lists"),
            at("Dir::State::status", "status"),
            at("Dir::Cache", "cache"),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".into(),
            "APT::Sandbox::User=root".into(),
            // The newest list of an old release may be past its date: nothing of it is installed.
            "Acquire::Check-Valid-Until=false".into(),
        ];
        let apt = Self { architecture, options, dir: dir.to_path_buf() };
        apt.run("apt-get", &["-qq", "update", "--error-on=any"]).context("no such suite at this machine's mirror")?;
        Ok(apt)
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.current_dir(&self.dir);
        for option in &self.options {
            command.args(["-o", option]);
        }
        shell::output(command.args(args))
    }

    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = self.run("apt-cache", &["depends", package])?;
        Ok(text.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned).collect())
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        self.run("apt-get", &["-qq", "download", package])?;
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(&format!("{package}_")) && name.ends_with(".deb") {
                return Ok(path);
            }
        }
        bail!("{package} was not downloaded")
    }
}

/// URI and keys of the machine's own Debian archive, or of its security archive.
pub fn archive(security: bool) -> Result<(String, String)> {
    let label = if security { "Debian-Security" } else { "Debian" };
    let format = "$(LABEL)\t$(REPO_URI)";
    let text =
        shell::output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let uri = text.lines().filter_map(|line| line.split_once('\t')).find(|(found, _)| *found == label);
    let (_, uri) = uri.with_context(|| format!("this machine's sources name no archive of {label}"))?;
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    ensure!(Path::new(keys).exists(), "{keys} is missing (package debian-archive-keyring)");
    Ok((uri.to_owned(), keys.to_owned()))
}
