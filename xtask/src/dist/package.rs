//! The Debian package: put together by hand and packed by dpkg-deb, so that every file, owner and time in it is ours to say.

use super::Build;
use crate::shell;
use anyhow::{Context as _, Result, bail, ensure};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn file_name() -> String {
    format!("guard_{}_amd64.deb", env!("CARGO_PKG_VERSION"))
}

const CONTROL: &str = "Package: guard
Version: @VERSION@
Architecture: amd64
Maintainer: the maintainers of guard <guard@localhost>
Installed-Size: @SIZE@
Section: net
Priority: optional
Description: allow-lists for what enters and leaves this host, enforced in the kernel
 One policy file; guard lets through what it lists, denies the rest, and records
 each unlisted flow once, with its reason. As packaged it only records.
";

/// Files as they are in the repository, where they go, and whether they are programs.
const FILES: &[(&str, &str, u32)] = &[
    ("packaging/guard.service", "lib/systemd/system/guard.service", 0o644),
    ("packaging/policy.yaml", "etc/guard/policy.yaml", 0o644),
    ("docs/json.md", "usr/share/doc/guard/json.md", 0o644),
    ("docs/lockdown.md", "usr/share/doc/guard/lockdown.md", 0o644),
    ("docs/policy.md", "usr/share/doc/guard/policy.md", 0o644),
    ("docs/records.md", "usr/share/doc/guard/records.md", 0o644),
    ("docs/records.schema.json", "usr/share/doc/guard/records.schema.json", 0o644),
    ("docs/review.md", "usr/share/doc/guard/review.md", 0o644),
    ("docs/shift.md", "usr/share/doc/guard/shift.md", 0o644),
    ("docs/snapshot.md", "usr/share/doc/guard/snapshot.md", 0o644),
    ("SECURITY.md", "usr/share/doc/guard/SECURITY.md", 0o644),
    ("packaging/copyright", "usr/share/doc/guard/copyright", 0o644),
    ("packaging/postinst", "DEBIAN/postinst", 0o755),
    ("packaging/prerm", "DEBIAN/prerm", 0o755),
    ("packaging/postrm", "DEBIAN/postrm", 0o755),
];

const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/guard"),
    ("zsh", "usr/share/zsh/vendor-completions/_guard"),
    ("fish", "usr/share/fish/vendor_completions.d/guard.fish"),
];

/// How the package is packed.
#[derive(Clone, Copy)]
pub enum Packed {
    ToShip,
    /// To be tried here, and thrown away.
    Quickly,
}

/// `tree`: made anew.
pub fn build(guard: &Path, build: &Build, tree: &Path, deb: &Path, packed: Packed) -> Result<()> {
    if tree.exists() {
        std::fs::remove_dir_all(tree)?;
    }
    let put = |from: &Path, to: &str, mode: u32| -> Result<()> {
        let to = tree.join(to);
        std::fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        std::fs::copy(from, &to).with_context(|| from.display().to_string())?;
        Ok(std::fs::set_permissions(&to, std::fs::Permissions::from_mode(mode))?)
    };
    put(guard, "usr/bin/guard", 0o755)?;
    for (from, to, mode) in FILES {
        put(&build.sources.join(from), to, *mode)?;
    }
    for policy in &build.policies {
        put(&build.sources.join(policy), &format!("usr/share/doc/guard/{policy}"), 0o644)?;
    }
    for (name, to) in COMPLETIONS {
        let script = shell::output(Command::new(guard).args(["completions", name]))?;
        let to = tree.join(to);
        std::fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        std::fs::write(to, script)?;
    }
    let manuals = tree.join("usr/share/man/man1");
    shell::output(Command::new(guard).arg("man").arg(&manuals))?;
    for page in std::fs::read_dir(&manuals)? {
        // Without name and time of the file.
        shell::output(Command::new("gzip").args(["-9", "-n"]).arg(page?.path()))?;
    }
    control(tree)?;
    settle(tree, &build.time)?;
    let mut pack = Command::new("dpkg-deb");
    let compressed = match packed {
        Packed::ToShip => "-Zxz",
        Packed::Quickly => "-Znone",
    };
    pack.args(["--root-owner-group", compressed, "--build"]).arg(tree).arg(deb);
    pack.env("SOURCE_DATE_EPOCH", &build.time);
    shell::output(&mut pack)?;
    Ok(())
}

fn control(tree: &Path) -> Result<()> {
    let files = files(tree)?;
    let bytes: u64 = files.iter().map(|file| std::fs::metadata(tree.join(file)).map_or(0, |meta| meta.len())).sum();
    let control =
        CONTROL.replace("@VERSION@", env!("CARGO_PKG_VERSION")).replace("@SIZE@", &bytes.div_ceil(1024).to_string());
    std::fs::write(tree.join("DEBIAN/control"), control)?;
    std::fs::write(tree.join("DEBIAN/conffiles"), "/etc/guard/policy.yaml\n")?;
    let listed = files.iter().filter(|file| !file.starts_with("DEBIAN"));
    let sums = shell::output(Command::new("md5sum").current_dir(tree).args(listed))?;
    Ok(std::fs::write(tree.join("DEBIAN/md5sums"), sums)?)
}

/// Relative, sorted.
fn files(tree: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![tree.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(tree)?.to_path_buf());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Modes do not depend on the umask, nor times on when this runs.
fn settle(tree: &Path, time: &str) -> Result<()> {
    shell::output(Command::new("find").arg(tree).args(["-type", "d", "-exec", "chmod", "0755", "{}", "+"]))?;
    let mut modes = Command::new("find");
    modes.arg(tree).args(["-type", "f", "-not", "-perm", "-u+x", "-exec", "chmod", "0644", "{}", "+"]);
    shell::output(&mut modes)?;
    let stamp = format!("@{time}");
    shell::output(Command::new("find").arg(tree).args(["-exec", "touch", "-h", "-d", &stamp, "{}", "+"]))?;
    Ok(())
}

/// Installed, upgraded, removed, installed again and purged below a root of its own. What the scripts do where guard runs is
/// tried by `tests/tests/package_scripts.rs`.
pub fn holds(deb: &Path, root: &Path) -> Result<()> {
    if !shell::is_root() {
        println!("not root: the package is not tried");
        return Ok(());
    }
    if root.exists() {
        std::fs::remove_dir_all(root)?;
    }
    std::fs::create_dir_all(root.join("var/lib/dpkg/info"))?;
    std::fs::create_dir_all(root.join("var/lib/dpkg/updates"))?;
    std::fs::write(root.join("var/lib/dpkg/status"), "")?;
    std::fs::write(root.join("var/lib/dpkg/available"), "")?;
    let dpkg = |arguments: &[&str]| {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", root.display())).args(["--force-script-chrootless", "--force-confold"]);
        shell::output(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let file = deb.display().to_string();
    let there = |path: &str| root.join(path).exists();
    let enabled = || root.join("etc/systemd/system/sysinit.target.wants/guard.service").is_symlink();
    dpkg(&["--install", &file])?;
    ensure!(enabled(), "the unit is not enabled by the installation");
    for path in ["usr/bin/guard", "lib/systemd/system/guard.service", "usr/share/man/man1/guard-run.1.gz"] {
        ensure!(there(path), "the package does not install {path}");
    }
    let policy = root.join("etc/guard/policy.yaml");
    let checked = shell::output(Command::new(root.join("usr/bin/guard")).args(["check", "--json"]).arg(&policy))?;
    ensure!(checked.contains("\"valid\":true"), "the policy of the package: {checked}");
    let effective =
        shell::output(Command::new(root.join("usr/bin/guard")).args(["check", "--effective"]).arg(&policy))?;
    ensure!(effective.contains("audit") && !effective.contains("enforce"), "it must deny nothing: {effective}");

    std::fs::write(&policy, "# ours\n")?;
    std::fs::create_dir_all(root.join("var/lib/guard/default"))?;
    dpkg(&["--install", &file])?;
    ensure!(std::fs::read_to_string(&policy)? == "# ours\n", "an upgrade wrote over /etc/guard/policy.yaml");
    dpkg(&["--remove", "guard"])?;
    ensure!(!there("usr/bin/guard") && there("etc/guard/policy.yaml"), "remove must leave the policy, and only it");
    ensure!(there("var/lib/guard/default"), "remove took the records");
    dpkg(&["--install", &file])?;
    ensure!(there("usr/bin/guard") && enabled(), "installed again, the unit is not enabled");
    ensure!(std::fs::read_to_string(&policy)? == "# ours\n", "installed again, it wrote over /etc/guard/policy.yaml");
    std::fs::write(root.join("etc/guard/recovery"), "")?;
    dpkg(&["--remove", "guard"])?;
    dpkg(&["--purge", "guard"])?;
    for path in ["etc/guard", "var/lib/guard"] {
        if there(path) {
            bail!("purge left /{path}");
        }
    }
    ensure!(!enabled(), "purge left the unit enabled");
    std::fs::remove_dir_all(root)?;
    println!("the package installs, upgrades, is removed, comes again and is purged, below a root of its own");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_in_the_package() {
        let packed: Vec<&str> = FILES.iter().map(|(from, ..)| *from).collect();
        for entry in std::fs::read_dir(shell::root().join("docs")).unwrap() {
            let name = format!("docs/{}", entry.unwrap().file_name().to_string_lossy());
            assert!(packed.contains(&name.as_str()), "{name} is not");
        }
    }
}
