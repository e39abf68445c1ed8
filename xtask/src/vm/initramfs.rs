//! The guest's only file system: busybox, the payload with its libraries, a few modules.

use super::kernels::{Kernel, tool};
use super::libraries;
use crate::shell;
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the traffic inside needs, and what guard lists sockets by: the guest loads nothing by itself. Built into the
/// kernel or modules, as the kernel has it.
const MODULES: &[&str] = &[
    "veth",
    "bridge",
    "cls_bpf",
    "sch_ingress",
    "ipv6",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "netlink_diag",
];

/// What devices over devices, and tunnels, need besides. Ciphers are named, since nothing inside loads them on demand.
pub const STACKED: &[&str] = &[
    "crc32c_generic",
    "aes_generic",
    "ctr",
    "ghash_generic",
    "gcm",
    "8021q",
    "bonding",
    "vrf",
    "ipvlan",
    "macsec",
    "wireguard",
    "ip_gre",
    "ipip",
    "sit",
    "vxlan",
    "sctp",
];

/// The payload comes first and is run; the others lie beside it. `modules`: beyond those that every machine has. Returns the archive, not compressed: an emulated
/// processor is slower at unpacking than memory is at being read.
pub fn build(kernel: &Kernel, payload: &[PathBuf], modules: &[&str]) -> Result<Vec<u8>> {
    let tools = [tool("ip")?, tool("wg")?];
    let mut archive = Archive::default();
    archive.file("bin/busybox", 0o755, &std::fs::read(tool("busybox")?)?);
    let (first, _) = payload.split_first().context("no payload")?;
    for program in payload {
        let name = program.file_name().context("a payload without a name")?.to_string_lossy();
        archive.file(&format!("bin/{name}"), 0o755, &stripped(program)?);
    }
    for tool in &tools {
        let name = tool.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("bin/{name}"), 0o755, &std::fs::read(tool)?);
    }
    let programs: Vec<PathBuf> = payload.iter().cloned().chain(tools).collect();
    for library in libraries::of(&programs)? {
        let name = library.strip_prefix("/").unwrap_or(&library).to_string_lossy().into_owned();
        archive.file(&name, 0o755, &std::fs::read(&library)?);
    }
    let mut init = String::from(HEAD);
    let mut seen = BTreeSet::new();
    for module in MODULES.iter().chain(modules) {
        for path in dependencies(kernel, module)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().replace(".xz", "");
            if seen.insert(name.clone()) {
                archive.file(&format!("modules/{name}"), 0o644, &unpacked(&path)?);
                // A variant of a cipher for another processor refuses: the plain one is there.
                init += &format!("insmod /modules/{name} 2>/dev/null\n");
            }
        }
    }
    init += &format!("/bin/{}\n{TAIL}", first.file_name().unwrap_or_default().to_string_lossy());
    archive.file("init", 0o755, init.as_bytes());
    Ok(archive.close())
}

const HEAD: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /sbin
/bin/busybox --install -s /sbin
export PATH=/bin:/sbin GUARD_BIN=/bin/guard GUARD_PATIENCE=300
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
case \"$GUARD_CASE\" in
hybrid)
    mount -t tmpfs cgroup /sys/fs/cgroup
    mkdir /sys/fs/cgroup/unified /sys/fs/cgroup/pids
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    mount -t cgroup -o pids cgroup /sys/fs/cgroup/pids || echo guard-vm: FAILED this kernel has no cgroup v1
    ;;
no-btf)
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs none /sys/kernel/btf
    ;;
*) mount -t cgroup2 cgroup2 /sys/fs/cgroup ;;
esac
mount -t bpf bpf /sys/fs/bpf
";
const TAIL: &str = "reboot -f\n";

/// Without debug information, which is most of a program that was built for tests.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    shell::output(Command::new("strip").arg("-o").arg(file.path()).arg(program))?;
    Ok(std::fs::read(file.path())?)
}

/// A module and what it needs, in the order of loading.
fn dependencies(kernel: &Kernel, module: &str) -> Result<Vec<PathBuf>> {
    let mut command = Command::new(tool("modprobe")?);
    command.arg("-d").arg(&kernel.root).args(["-S", &kernel.version, "--show-depends", module]);
    // One that this kernel was built without: what needs it fails inside, and says so.
    let Ok(text) = shell::output(&mut command) else { return Ok(Vec::new()) };
    // Lines: "insmod PATH", with options that this machine's own configuration has, or "builtin NAME".
    let paths = text.lines().filter_map(|line| line.trim().strip_prefix("insmod ")?.split_whitespace().next());
    Ok(paths.map(Into::into).collect())
}

fn unpacked(module: &Path) -> Result<Vec<u8>> {
    if module.extension().is_some_and(|extension| extension == "xz") {
        let out = Command::new("xz").args(["-dc"]).arg(module).output().context("xz")?;
        ensure!(out.status.success(), "xz: {}", module.display());
        return Ok(out.stdout);
    }
    Ok(std::fs::read(module)?)
}

/// A cpio archive in the "newc" form, which the kernel documents in `driver-api/early-userspace/buffer-format`.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    dirs: BTreeSet<String>,
}

impl Archive {
    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        for (at, _) in name.match_indices('/') {
            let dir = name[..at].to_owned();
            if self.dirs.insert(dir.clone()) {
                self.entry(&dir, 0o040_755, &[]);
            }
        }
        self.entry(name, 0o100_000 | mode, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let links = if mode & 0o040_000 == 0 { 1 } else { 2 };
        // ino, mode, uid, gid, nlink, mtime, filesize, device numbers, namesize, check.
        let fields = [self.inode, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn close(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_directories_come_first() {
        let mut archive = Archive::default();
        archive.file("a/b/c", 0o644, b"hello");
        archive.file("a/b/d", 0o644, b"");
        let bytes = archive.close();
        let names: Vec<&str> = ["a\0", "a/b\0", "a/b/c\0", "a/b/d\0", "TRAILER!!!\0"].to_vec();
        let mut at = 0;
        for name in names {
            assert_eq!(at % 4, 0);
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[at + 110..at + 110 + field(11)], name.as_bytes());
            at = (at + 110 + field(11)).next_multiple_of(4) + field(6);
            at = at.next_multiple_of(4);
        }
        assert_eq!(at, bytes.len());
    }
}
