//! The static binary where there is nothing else.

use crate::{capture, shell};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What it must be able to say on a root that holds nothing but it, a policy and a capture, in what words, and with what
/// exit status.
const OFFLINE: &[(&[&str], &str, i32)] = &[
    (&["check", "/policy.yaml"], "valid", 0),
    (&["test", "/policy.yaml"], "tests passed", 0),
    (&["explain", "/policy.yaml", "out tcp 203.0.113.9:4444"], "no rule lists it", 1),
    (&["export", "nft", "/policy.yaml"], "table inet guard", 0),
    (&["replay", "/policy.yaml", "/capture.pcapng"], "1 of 2 flows would have been cut", 0),
    (&["review", "--from", "/capture.pcapng", "--policy", "/policy.yaml"], "denied 1 flow", 1),
];

/// And on one where, beside, the kernel can be asked: /proc, /sys with cgroup2, an interface, and something
/// to keep a state in that is not on the medium.
const ON_A_HOST: &[(&[&str], &str, i32)] = &[
    (&["doctor"], "guard can run here", 0),
    (&["lockdown", "--dry-run", "--console"], "nothing was changed (--dry-run)", 0),
    (&["lockdown", "--dry-run", "--allow-from", "198.51.100.7:tcp/22"], "Way in    198.51.100.7 tcp/22", 0),
    (&["snapshot", "-o", "-"], "manifest.sha256", 0),
];

/// In namespaces of its own; what is mounted ends with them. `$1` guard, `$2` a policy, `$3` a capture; then what
/// guard is asked.
const SCRIPT: &str = "set -e
guard=$1 policy=$2 capture=$3; shift 3
root=$(mktemp -d); trap 'umount -l $root; rmdir $root' EXIT
mount -t tmpfs none $root
cp \"$guard\" $root/guard; cp \"$policy\" $root/policy.yaml; cp \"$capture\" $root/capture.pcapng
chmod 0644 $root/policy.yaml
if [ -n \"$GUARD_ALONE_KERNEL\" ]; then
    mkdir $root/proc $root/sys $root/var
    mount -t tmpfs none $root/var
    mount -t proc proc $root/proc
    mount -t sysfs sysfs $root/sys
    mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
    ip link set lo up; ip link add eth0 type veth peer name eth1; ip link set eth0 up; ip link set eth1 up
    ip address add 192.0.2.10/24 dev eth0
fi
mount -o remount,ro $root
chroot $root /guard \"$@\"";

struct Alone<'a> {
    guard: &'a Path,
    capture: PathBuf,
}

impl Alone<'_> {
    fn ask(&self, arguments: &[&str], kernel: bool) -> Result<(Option<i32>, String)> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--net", "--pid", "--fork", "--kill-child"]);
        if !shell::is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["sh", "-c", SCRIPT, "sh"]).arg(self.guard);
        command.arg(shell::root().join("policies/web-server.yaml")).arg(&self.capture).args(arguments);
        if kernel {
            command.env("GUARD_ALONE_KERNEL", "1");
        }
        let ended = command.stdin(Stdio::null()).output().context("cannot start unshare")?;
        let mut said = String::from_utf8_lossy(&ended.stdout).into_owned();
        said += &String::from_utf8_lossy(&ended.stderr);
        Ok((ended.status.code(), said))
    }

    fn all(&self, asked: &[(&[&str], &str, i32)], kernel: bool) -> Result<()> {
        for (arguments, wanted, code) in asked {
            let (ended, said) = self.ask(arguments, kernel)?;
            ensure!(
                ended == Some(*code) && said.contains(wanted),
                "on an empty root `guard {}` ends with {ended:?} and not {code}, or does not say {wanted:?}:\n{said}",
                arguments.join(" ")
            );
        }
        Ok(())
    }
}

/// From a read-only root that has nothing but it, a policy and a capture: no loader, no libraries, no /usr; for what asks
/// no kernel, no /proc. `name`: of the build, which it must say; and which eBPF object it holds.
pub fn runs(guard: &Path, name: Option<&String>) -> Result<()> {
    let manifest = std::fs::read_to_string(shell::root().join("guard/ebpf/manifest.json"))?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
    let object = manifest["object_sha256"].as_str().context("the manifest names no object")?;
    let dir = tempfile::tempdir()?;
    let alone = Alone { guard, capture: dir.path().join("capture.pcapng") };
    std::fs::write(&alone.capture, capture::pcapng())?;
    let build = name.map_or("(build ".to_owned(), |name| format!("(build {name})"));
    alone.all(&[(&["--version"], &build, 0), (&["--version"], object, 0)], false)?;
    alone.all(OFFLINE, false)?;
    println!("runs alone, from a read-only root without /usr, /lib and /proc");
    if !shell::is_root() {
        println!("not root: what asks the kernel is not tried");
    } else {
        alone.all(ON_A_HOST, true)?;
        println!("shows a lockdown and streams a snapshot from there, with /proc and /sys beside");
    }
    Ok(())
}
