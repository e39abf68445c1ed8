//! Real captures, from the source packages of tcpdump, Wireshark and nDPI: fetched by apt under a configuration of our own into
//! `target/corpus`, where they stay. Nothing is installed, and the machine's own lists stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// Source packages that carry captures.
const PACKAGES: [&str; 2] = ["tcpdump", "wireshark"];
const ENDINGS: [&str; 3] = ["pcap", "pcapng", "cap"];

/// Every capture of tcpdump's and Wireshark's, sorted; fetches what is missing.
pub fn captures() -> Result<Vec<PathBuf>> {
    captures_of(&PACKAGES)
}

/// The same of any source packages.
pub fn captures_of(packages: &[&str]) -> Result<Vec<PathBuf>> {
    // Test programs run side by side.
    let dir = directory();
    fs::create_dir_all(&dir)?;
    let lock = fs::File::create(dir.join("lock"))?;
    lock.lock()?;
    let mut all = Vec::new();
    for package in packages {
        let unpacked = dir.join(package);
        if !unpacked.join(".complete").exists() {
            fetch(package, &dir.join("apt"), &unpacked).with_context(|| format!("the source package {package}"))?;
        }
        collect(&unpacked, &mut all)?;
    }
    all.sort();
    Ok(all)
}

#[must_use]
pub fn directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("target"),
        PathBuf::from,
    );
    target.join("corpus")
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else if path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known)) {
            into.push(path);
        }
    }
    Ok(())
}

fn fetch(package: &str, apt: &Path, to: &Path) -> Result<()> {
    let options = configure(apt)?;
    let run = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(apt).args(["-qq"]);
        for option in &options {
            command.args(["-o", option]);
        }
        output(command.args(args))
    };
    run(&["update", "--error-on=any"])?;
    // Upstream's part is all that is wanted; an archive may lack the rest.
    run(&["source", "--download-only", "--tar-only", package])?;
    let archive = fs::read_dir(apt)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{package}_")) && name.contains(".orig.tar.") && !name.ends_with(".asc")
        })
        .context("no upstream archive in it")?;
    fs::create_dir_all(to)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&archive).arg("-C").arg(to).arg("--wildcards");
    for ending in ENDINGS {
        tar.arg(format!("*.{ending}"));
    }
    // A pattern that matches nothing is an error to tar, and none here: the captures are counted later.
    let _ = tar.stderr(std::process::Stdio::null()).status()?;
    fs::write(to.join(".complete"), "")?;
    Ok(fs::remove_file(archive)?)
}

/// The machine's own Debian archive, for sources; lists and caches below `apt`.
fn configure(apt: &Path) -> Result<Vec<String>> {
    for below in ["lists/partial", "cache/archives/partial", "empty"] {
        fs::create_dir_all(apt.join(below))?;
    }
    fs::write(apt.join("status"), "")?;
    let format = "$(LABEL)\t$(REPO_URI)\t$(RELEASE)";
    let targets = output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let (uri, suite) = targets
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .find_map(|fields| match fields[..] {
            ["Debian", uri, suite] => Some((uri.to_owned(), suite.to_owned())),
            _ => None,
        })
        .context("this machine's sources name no archive of Debian")?;
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    ensure!(Path::new(keys).exists(), "{keys} is missing (package debian-archive-keyring)");
    fs::write(apt.join("sources.list"), format!("deb-src [signed-by={keys}] {uri} {suite} main\n"))?;
    let at = |what: &str, below: &str| format!("{what}={}", apt.join(below).display());
    Ok(vec![
        at("Dir::Etc::SourceList", "sources.list"),
        at("Dir::Etc::SourceParts", "empty"),
        at("Dir::Etc::PreferencesParts", "empty"),
        "Dir::Etc::Preferences=/dev/null".into(),
        at("Dir::State", "."),
        at("Dir::State::Lists", "lists"),
        at("Dir::State::status", "status"),
        at("Dir::Cache", "cache"),
        "Acquire::Languages=none".into(),
        "APT::Sandbox::User=root".into(),
        // An archive's snapshot may be past its date: nothing of it is installed.
        "Acquire::Check-Valid-Until=false".into(),
    ])
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| name.clone())?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
