//! What a step needs from the system: installed where missing and we are root, else named in one command.

use crate::shell;
use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// A thing to be there, and the Debian package that brings it.
pub struct Need {
    pub package: &'static str,
    pub there: fn() -> bool,
}

/// None when all is there, else the reason for a skip.
pub fn ready(needs: &[Need], install: bool) -> Result<Option<String>> {
    let missing: Vec<&str> = needs.iter().filter(|need| !(need.there)()).map(|need| need.package).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    if missing.contains(&"") {
        return Ok(Some("needs root".into()));
    }
    let command = format!("apt-get install -y --no-install-recommends --allow-downgrades {}", missing.join(" "));
    if !install || shell::find("apt-get").is_none() {
        return Ok(Some(format!("missing; as root run: {command}")));
    }
    println!("missing: {}; installing", missing.join(", "));
    update()?;
    let ended = apt(&["install", "-y", "--no-install-recommends", "--allow-downgrades"], &missing)?;
    let still: Vec<&str> = needs.iter().filter(|need| !(need.there)()).map(|need| need.package).collect();
    ensure!(still.is_empty(), "{} still missing after the installation ({})", still.join(", "), ended);
    Ok(None)
}

/// The lists of packages, once a run.
pub fn update() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_none() {
        // Its failure shows where a package is asked for and not found: old lists may do.
        let _ = apt(&["update"], &[])?;
        let _ = DONE.set(());
    }
    Ok(())
}

fn apt(verb: &[&str], packages: &[&str]) -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"]).args(verb).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // Servers are installed for their programs: none is to be started on this machine. policy-rc.d would say so too,
    // and needs a file of the machine to be changed.
    command.env("RUNLEVEL", "1");
    Ok(shell::run(&mut command, Duration::from_secs(600))?.how)
}

macro_rules! program {
    ($package:literal, $program:literal) => {
        Need { package: $package, there: || shell::find($program).is_some() }
    };
}

macro_rules! file {
    ($package:literal, $path:literal) => {
        Need { package: $package, there: || Path::new($path).exists() }
    };
}

/// To build guard at all.
pub const BUILD: &[Need] = &[program!("gcc", "cc"), LIBPCAP];

/// And to open the report's page as people do.
pub const UNIT: &[Need] = &[program!("gcc", "cc"), LIBPCAP, program!("chromium", "chromium")];

const LIBPCAP: Need = Need {
    package: "libpcap-dev",
    there: || {
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
            .iter()
            .any(|dir| Path::new(dir).join("libpcap.so").exists())
    },
};

/// To load programs and make namespaces: nothing that could be installed, so its absence is a skip.
pub const ROOT: &[Need] = &[ROOT_NEED];

/// Of no package.
const ROOT_NEED: Need = Need { package: "", there: shell::is_root };

/// To rebuild the eBPF object (bpf-linker is built by that step itself).
pub const EBPF: &[Need] = &[
    file!("rustc-web", "/usr/bin/rustc"),
    file!("cargo-web", "/usr/bin/cargo"),
    Need { package: "rust-web-src", there: rust_source },
    file!("llvm-22-dev", "/usr/lib/llvm-22/include/llvm-c/Core.h"),
    // What llvm-config's list of system libraries names.
    file!("zlib1g-dev", "/usr/include/zlib.h"),
    program!("g++", "c++"),
];

/// Debian keeps it beside the compiler's own libraries, by version.
fn rust_source() -> bool {
    let Ok(sysroot) = shell::output(Command::new("/usr/bin/rustc").args(["--print", "sysroot"])) else { return false };
    Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}

/// To talk across namespaces with real programs.
pub const NETWORK: &[Need] = &[
    ROOT_NEED,
    program!("iproute2", "ip"),
    program!("iproute2", "tc"),
    program!("nftables", "nft"),
    program!("iptables", "iptables-nft-restore"),
    program!("tcpdump", "tcpdump"),
    program!("openssh-server", "sshd"),
    program!("openssh-client", "ssh"),
    program!("nginx-light", "nginx"),
    program!("dnsmasq-base", "dnsmasq"),
    program!("bind9-dnsutils", "dig"),
    program!("tshark", "tshark"),
    file!("postgresql", "/usr/lib/postgresql"),
    program!("netcat-openbsd", "nc"),
    program!("socat", "socat"),
    program!("curl", "curl"),
    program!("iputils-ping", "ping"),
    program!("bpftool", "bpftool"),
    program!("util-linux", "nsenter"),
    program!("sudo", "sudo"),
    program!("tmux", "tmux"),
    program!("screen", "screen"),
    program!("mosh", "mosh-server"),
    program!("wireshark-common", "editcap"),
];

/// Container engines; their daemons are started by the tests alone. What only runs beside them is not asked for.
pub const ENGINES: &[Need] = &[
    ROOT_NEED,
    program!("iproute2", "ip"),
    program!("util-linux", "nsenter"),
    program!("util-linux", "setpriv"),
    program!("docker.io", "dockerd"),
    program!("tini", "tini"),
    program!("iptables", "iptables"),
    program!("podman", "podman"),
    program!("runc", "runc"),
    file!("containernetworking-plugins", "/usr/lib/cni/bridge"),
    program!("dnsmasq-base", "dnsmasq"),
    program!("busybox-static", "busybox"),
    program!("binutils", "strip"),
];

/// To try to get out of a guarded host, with the tools that an intruder would bring.
pub const ESCAPE: &[Need] = &[
    ROOT_NEED,
    program!("iproute2", "ip"),
    program!("iproute2", "tc"),
    program!("nftables", "nft"),
    program!("util-linux", "unshare"),
    program!("netcat-openbsd", "nc"),
    program!("socat", "socat"),
    program!("curl", "curl"),
    program!("iputils-ping", "ping"),
    program!("bpftool", "bpftool"),
    program!("nmap", "nmap"),
    program!("hping3", "hping3"),
    file!("python3-scapy", "/usr/lib/python3/dist-packages/scapy/all.py"),
    program!("iodine", "iodine"),
    program!("ptunnel", "ptunnel"),
    program!("bind9-dnsutils", "dig"),
    program!("busybox-static", "busybox"),
];

/// What the demo's hosts run, and its walls.
pub const DEMO: &[Need] = &[
    ROOT_NEED,
    program!("iproute2", "ip"),
    program!("util-linux", "unshare"),
    program!("openssh-server", "sshd"),
    program!("openssh-client", "ssh-keygen"),
    program!("nginx-light", "nginx"),
    program!("dnsmasq-base", "dnsmasq"),
    program!("netcat-openbsd", "nc"),
    program!("curl", "curl"),
    program!("busybox-static", "busybox"),
    program!("iputils-ping", "ping"),
];

/// To try the package.
pub const PACKAGE: &[Need] = &[
    program!("gcc", "cc"),
    LIBPCAP,
    program!("git", "git"),
    program!("dpkg", "dpkg-deb"),
    program!("init-system-helpers", "deb-systemd-helper"),
    program!("systemd", "systemd-analyze"),
    program!("util-linux", "unshare"),
];

/// To build libpcap, and the package.
pub const DIST: &[Need] = &[
    program!("gcc", "cc"),
    program!("make", "make"),
    program!("flex", "flex"),
    program!("bison", "bison"),
    program!("git", "git"),
    program!("dpkg", "dpkg-deb"),
    program!("init-system-helpers", "deb-systemd-helper"),
    program!("xz-utils", "xz"),
    program!("util-linux", "unshare"),
    file!("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"),
    program!("iproute2", "ip"),
];

/// To make a bare Debian, and to be somebody there.
pub const NEWCOMER: &[Need] = &[
    ROOT_NEED,
    program!("mmdebstrap", "mmdebstrap"),
    program!("git", "git"),
    program!("iproute2", "ip"),
    program!("util-linux", "unshare"),
    file!("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"),
];

/// To check the parser against another one.
pub const CORPUS: &[Need] = &[program!("tshark", "tshark"), program!("dpkg-dev", "dpkg-source")];

/// To boot other kernels.
pub const VIRTUAL: &[Need] = &[
    program!("qemu-system-x86", "qemu-system-x86_64"),
    program!("busybox-static", "busybox"),
    program!("kmod", "modprobe"),
    program!("xz-utils", "xz"),
    program!("binutils", "strip"),
    program!("iproute2", "ip"),
    program!("wireguard-tools", "wg"),
    program!("dpkg", "dpkg-deb"),
    file!("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"),
];

/// To build a box, and to run machines under Vagrant and libvirt.
pub const VAGRANT: &[Need] = &[
    ROOT_NEED,
    program!("qemu-system-x86", "qemu-system-x86_64"),
    // A newer one, of the backports, does not go with Debian 12's qemu-system-x86.
    Need {
        package: "qemu-utils/bookworm",
        there: || ["qemu-img", "qemu-system-x86_64"].iter().all(|name| shell::find(name).is_some()),
    },
    program!("mmdebstrap", "mmdebstrap"),
    program!("vagrant", "vagrant"),
    Need { package: "vagrant-libvirt", there: vagrant_libvirt },
    program!("libvirt-daemon-system", "libvirtd"),
    program!("libvirt-clients", "virsh"),
    file!("libvirt-daemon-driver-qemu", "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"),
    program!("dnsmasq-base", "dnsmasq"),
    program!("iptables", "iptables"),
    program!("iproute2", "ip"),
    program!("rsync", "rsync"),
    program!("openssh-client", "ssh"),
    program!("netcat-openbsd", "nc"),
    program!("tcpdump", "tcpdump"),
    program!("curl", "curl"),
    program!("iputils-ping", "ping"),
    program!("python3-minimal", "python3"),
    program!("e2fsprogs", "mkfs.ext4"),
    program!("zstd", "zstd"),
    program!("binutils", "strip"),
    program!("util-linux", "unshare"),
    file!("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"),
];

fn vagrant_libvirt() -> bool {
    let gems = std::fs::read_dir("/usr/share/rubygems-integration/all/specifications");
    gems.into_iter().flatten().flatten().any(|gem| gem.file_name().to_string_lossy().starts_with("vagrant-libvirt-"))
}
