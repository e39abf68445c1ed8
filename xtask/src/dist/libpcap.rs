//! libpcap, as a static library without what guard does not use: captures from D-Bus, RDMA, USB and Bluetooth would need
//! libraries that are not to be had static.

use crate::apt::{Apt, Archive};
use crate::shell;
use anyhow::{Result, ensure};
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

/// Debian's source package of this machine's own release.
fn fetch(dir: &Path) -> Result<(PathBuf, String)> {
    let archive = Apt::new(dir, &Archive::main()?.line("deb-src"))?.source("libpcap")?;
    let name = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let version = name["libpcap_".len()..].split(".orig").next().unwrap_or_default().to_owned();
    Ok((archive, version))
}
