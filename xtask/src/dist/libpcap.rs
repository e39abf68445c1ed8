//! libpcap, as a static library without what guard does not use: captures from D-Bus, RDMA, USB and Bluetooth would need
//! libraries that are not to be had static.

use crate::shell;
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `libpcap.a` is, and its version.
pub struct Library {
    pub directory: PathBuf,
    pub version: String,
}

const CONFIGURE: &[&str] = &[
    "--disable-shared",
    "--disable-dbus",
    "--disable-rdma",
    "--disable-usb",
    "--disable-bluetooth",
    "--without-libnl",
    "--without-dag",
    "--without-dpdk",
];

/// Built once; later runs take what is there.
pub fn build(at: &Path) -> Result<Library> {
    let done = at.join("version");
    if let Ok(version) = std::fs::read_to_string(&done) {
        return Ok(Library { directory: at.join("source"), version });
    }
    if at.exists() {
        std::fs::remove_dir_all(at)?;
    }
    let (archive, version) = fetch(&at.join("apt"))?;
    let source = at.join("source");
    std::fs::create_dir_all(&source)?;
    shell::output(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&source).arg("--strip-components=1"))?;
    println!("building libpcap {version}");
    let flags = format!("CFLAGS=-O2 -g0 -fPIC -ffile-prefix-map={}=/libpcap", source.display());
    shell::output(Command::new("./configure").current_dir(&source).args(CONFIGURE).arg(flags))?;
    shell::output(Command::new("make").current_dir(&source).arg("libpcap.a"))?;
    ensure!(source.join("libpcap.a").exists(), "libpcap's build made no libpcap.a");
    std::fs::write(done, &version)?;
    Ok(Library { directory: source, version })
}

/// Debian's source package of this machine's own release, by apt under a configuration of our own: nothing is installed,
/// and the machine's lists stay as they are.
fn fetch(apt: &Path) -> Result<(PathBuf, String)> {
    for below in ["lists/partial", "cache/archives/partial", "empty"] {
        std::fs::create_dir_all(apt.join(below))?;
    }
    std::fs::write(apt.join("status"), "")?;
    let format = "$(LABEL)\t$(REPO_URI)\t$(RELEASE)";
    let targets =
        shell::output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let (uri, suite) = targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian\t")?.split_once('\t'))
        .context("this machine's sources name no archive of Debian")?;
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    ensure!(Path::new(keys).exists(), "{keys} is missing (package debian-archive-keyring)");
    std::fs::write(apt.join("sources.list"), format!("deb-src [signed-by={keys}] {uri} {suite} main\n"))?;
    let at = |what: &str, below: &str| format!("{what}={}", apt.join(below).display());
    let options = [
        at("Dir::Etc::SourceList", "sources.list"),
        at("Dir::Etc::SourceParts", "empty"),
        at("Dir::Etc::PreferencesParts", "empty"),
        "Dir::Etc::Preferences=/dev/null".to_owned(),
        at("Dir::State", "."),
        at("Dir::State::Lists", "lists"),
        at("Dir::State::status", "status"),
        at("Dir::Cache", "cache"),
        "Acquire::Languages=none".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        "Acquire::Check-Valid-Until=false".to_owned(),
    ];
    for verb in [&["update", "--error-on=any"][..], &["source", "--download-only", "libpcap"]] {
        let mut command = Command::new("apt-get");
        command.current_dir(apt).arg("-qq");
        for option in &options {
            command.args(["-o", option]);
        }
        shell::output(command.args(verb))?;
    }
    let archive = std::fs::read_dir(apt)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libpcap_") && name.contains(".orig.tar.") && !name.ends_with(".asc")
        })
        .context("the source package of libpcap has no upstream archive")?;
    let name = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let version = name["libpcap_".len()..].split(".orig").next().unwrap_or_default().to_owned();
    Ok((archive, version))
}
