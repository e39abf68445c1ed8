//! `cargo xtask vagrant box`: a small Debian 12 for Vagrant's libvirt provider, made by mmdebstrap from the machine's own
//! sources. Everything that the scenarios use is in it, so that provisioning needs no network.
//!
//! There is no boot loader: the box carries kernel and initramfs, and its Vagrantfile boots them directly.

use crate::shell;
use crate::vm::kernels;
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SUITE: &str = "bookworm";

const PACKAGES: &[&str] = &[
    // A system that boots.
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "zstd",
    "sudo",
    "procps",
    "iproute2",
    // What Vagrant, guard's package and the scenarios call.
    "openssh-server",
    "openssh-client",
    "rsync",
    "libpcap0.8",
    "iputils-ping",
    "netcat-openbsd",
    "tcpdump",
    "curl",
    "python3-minimal",
    // The victim's services.
    "nginx-light",
    "postgresql",
    "dnsmasq",
];

/// For people who try containers, and the scenario that does.
const CONTAINERS: &[&str] = &["docker.io", "iptables", "busybox-static"];

/// The services run on the victim alone, which `provision.sh` makes of a box, and Docker where somebody asks for it.
const CUSTOMIZE: &str = r#"set -e
root=$1
inside() { chroot "$root" "$@"; }
inside useradd --create-home --shell /bin/bash vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' > "$root/etc/sudoers.d/vagrant"
install -d -m 0700 "$root/home/vagrant/.ssh"
cp "$VAGRANT_KEY" "$root/home/vagrant/.ssh/authorized_keys"
inside chown -R vagrant: /home/vagrant/.ssh
inside chmod 0600 /home/vagrant/.ssh/authorized_keys
echo box > "$root/etc/hostname"
echo '127.0.0.1 localhost box' > "$root/etc/hosts"
cat > "$root/etc/systemd/network/10-eth0.network" <<'END'
[Match]
Name=eth0
[Network]
DHCP=ipv4
END
cat > "$root/etc/ssh/sshd_config.d/lab.conf" <<'END'
UseDNS no
# Every try of an intruder counts, and none of ours is to be refused for another's.
MaxStartups 100
END
inside systemctl enable -q systemd-networkd.service
for unit in nginx postgresql@ dnsmasq; do
    mkdir -p "$root/etc/systemd/system/$unit.service.d"
    printf '[Unit]\nConditionPathExists=/etc/lab-victim\n' > "$root/etc/systemd/system/$unit.service.d/lab.conf"
done
for unit in docker.service docker.socket containerd.service; do
    mkdir -p "$root/etc/systemd/system/$unit.d"
    printf '[Unit]\nConditionPathExists=/etc/lab-containers\n' > "$root/etc/systemd/system/$unit.d/lab.conf"
done
inside systemctl mask -q apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-networkd-wait-online.service systemd-timesyncd.service getty@tty1.service
# The scenarios read the journal across reboots.
mkdir -p "$root/var/log/journal"
"#;

/// Only what the virtual disk and network need: the initramfs is small and quick to unpack where it is emulated.
const SETUP: &str = r#"set -e
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
echo MODULES=list > "$1/etc/initramfs-tools/conf.d/lab"
cat > "$1/etc/initramfs-tools/hooks/lab" <<'END'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk virtio_net ext4
END
chmod +x "$1/etc/initramfs-tools/hooks/lab"
"#;

const VAGRANTFILE: &str = r#"# Boots the kernel beside this file, or another by GUARD_KERNEL and GUARD_INITRD.
here = File.dirname(__FILE__)
Vagrant.configure("2") do |config|
  config.ssh.insert_key = false
  config.vm.provider :libvirt do |lv|
    lv.kernel = ENV["GUARD_KERNEL"] || File.join(here, "vmlinuz")
    lv.initrd = ENV["GUARD_INITRD"] || File.join(here, "initrd.img")
    lv.cmd_line = "root=/dev/vda rw rootfstype=ext4 net.ifnames=0 console=ttyS0 quiet panic=10 #{ENV["GUARD_CMDLINE"]}".strip
    lv.disk_bus = "virtio"
    lv.machine_type = "q35"
  end
end
"#;

/// Where a box is, made now unless one is there: the small one, where nobody needs Docker.
pub fn ready(containers: bool) -> Result<PathBuf> {
    let mut fit = [false, true].into_iter().filter(|has| *has || !containers).map(path);
    match fit.find(|path| path.exists()) {
        Some(path) => Ok(path),
        None => build(containers),
    }
}

fn path(containers: bool) -> PathBuf {
    let name = if containers { "guard-bookworm.box" } else { "guard-bookworm-small.box" };
    shell::target().join("vagrant").join(name)
}

pub fn build(containers: bool) -> Result<PathBuf> {
    ensure!(shell::is_root(), "needs root, to make a root file system");
    let start = Instant::now();
    let out = path(containers);
    let folder = out.parent().context("a file without a folder")?;
    std::fs::create_dir_all(folder)?;
    let dir = tempfile::Builder::new().prefix("box-").tempdir_in(folder)?;
    let at = |name: &str| dir.path().join(name);
    bootstrap(&at("root"), containers)?;
    for (name, link) in [("vmlinuz", "vmlinuz"), ("initrd.img", "initrd.img")] {
        std::fs::copy(at("root").join(link), at(name)).with_context(|| format!("the box has no {name}"))?;
    }
    shell::output(Command::new("truncate").args(["-s", "6G"]).arg(at("disk.raw")))?;
    // A disposable disk needs no journal.
    shell::output(
        Command::new("mkfs.ext4").args(["-q", "-F", "-O", "^has_journal", "-d"]).arg(at("root")).arg(at("disk.raw")),
    )?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd"]);
    shell::output(convert.arg(at("disk.raw")).arg(at("box.img")))?;
    std::fs::write(at("metadata.json"), r#"{"provider": "libvirt", "format": "qcow2", "virtual_size": 6}"#)?;
    std::fs::write(at("Vagrantfile"), VAGRANTFILE)?;
    let mut pack = Command::new("tar");
    // The disk is compressed already.
    pack.arg("-C").arg(dir.path()).arg("-cf").arg(at("box"));
    shell::output(pack.args(["metadata.json", "Vagrantfile", "vmlinuz", "initrd.img", "box.img"]))?;
    std::fs::rename(at("box"), &out)?;
    let megabytes = std::fs::metadata(&out)?.len() as f64 / 1e6;
    println!("{}  {megabytes:.0} MB, {:.0} s", out.display(), start.elapsed().as_secs_f64());
    Ok(out)
}

fn bootstrap(root: &Path, containers: bool) -> Result<()> {
    let mut include = PACKAGES.to_vec();
    if containers {
        include.extend(CONTAINERS);
    }
    let mut sources = String::new();
    for (security, suite) in [(false, SUITE.to_owned()), (true, format!("{SUITE}-security"))] {
        let (uri, keys) = kernels::archive(security)?;
        sources += &format!("deb [signed-by={keys}] {uri} {suite} main\n");
    }
    let folder = root.parent().context("a root without a folder")?;
    let list = folder.join("sources.list");
    std::fs::write(&list, sources)?;
    let hook = |name: &str, text: &str| -> Result<String> {
        let path = folder.join(name);
        std::fs::write(&path, text)?;
        Ok(format!("sh {} \"$1\"", path.display()))
    };
    // Its mounts stay in a namespace of their own.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "mmdebstrap", "--mode=root", "--variant=minbase"]);
    command.args(["--quiet", "--dpkgopt=force-unsafe-io", "--aptopt=Acquire::Languages \"none\""]);
    for doc in ["doc", "man", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{doc}/*"));
    }
    command.arg(format!("--include={}", include.join(",")));
    command.arg(format!("--setup-hook={}", hook("setup", SETUP)?));
    command.arg(format!("--customize-hook={}", hook("customize", CUSTOMIZE)?));
    command.args([SUITE]).arg(root).arg(&list);
    command.env("VAGRANT_KEY", key("vagrant.pub")?);
    let ended = shell::run(&mut command, Duration::from_secs(900))?;
    ensure!(ended.good, "mmdebstrap: {}", ended.how);
    Ok(())
}

/// Vagrant's own key, known to everybody: for machines that nobody but their maker reaches.
pub fn key(name: &str) -> Result<PathBuf> {
    let files = shell::output(Command::new("dpkg").args(["-L", "vagrant"]))?;
    let found = files.lines().find(|line| line.ends_with(&format!("/keys/{name}")));
    Ok(found.with_context(|| format!("the package vagrant has no {name}"))?.into())
}
