//! `guard doctor`: what this host offers guard, what would stop it here and how to mend that, and what else is about.
//! Nothing is changed: what is tried is gone again at once.

pub mod engines;

use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};
use serde::Serialize;

use self::engines::Engine;
use crate::{
    daemon::state_dir::DEFAULT_ROOT,
    host::{
        firewalls::{self, OtherFirewall},
        processes::Processes,
    },
    kernel::{
        self, Feature, Offers,
        ground::{self, Beside, Bpffs},
    },
};

/// All that is found. Field names are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Examination {
    /// Nothing would stop guard here.
    pub can_run: bool,
    pub kernel: String,
    pub machine: &'static str,
    /// Empty: this process may not try them.
    pub features: Vec<Feature>,
    pub checks: Vec<Check>,
    pub interfaces: Vec<Interface>,
    /// Programs of others where guard would stand first. They go on, after guard.
    pub beside: Vec<Beside>,
    pub other_firewalls: Vec<OtherFirewall>,
    pub engines: Vec<Engine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Good,
    /// guard runs, and something is less than it could be.
    Careful,
    /// guard does not start, or would not hold.
    Stops,
}

/// One thing that guard stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub state: State,
    pub found: String,
    /// What to do; `None` where it is good.
    pub mend: Option<String>,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Good, found: found.into(), mend: None }
    }

    fn amiss(name: &'static str, state: State, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, state, found: found.into(), mend: Some(mend.into()) }
    }
}

/// An interface, and whether it would be guarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    pub name: String,
    pub guarded: bool,
    pub why: &'static str,
}

/// Looks at all of it.
pub fn examine() -> anyhow::Result<Examination> {
    let may = ground::missing_capabilities()?;
    let mut checks = vec![capabilities(&may), lockdown(), bpffs()];
    // Who may not ask learns nothing by being refused.
    let features = if may.needed.is_empty() { features() } else { Vec::new() };
    if may.needed.is_empty() {
        checks.extend(old_kernel(&features));
        checks.push(memory());
        checks.extend(cgroups());
    }
    checks.push(state_directory(Path::new(DEFAULT_ROOT)));
    let (devices, _) = kernel::preview(&kernel::Selection::default())?;
    let interfaces: Vec<Interface> = devices
        .into_iter()
        .map(|(device, why)| Interface { name: device.name, guarded: why.guarded(), why: why.as_str() })
        .collect();
    checks.push(guarded(&interfaces));
    let names: Vec<String> = interfaces.iter().map(|interface| interface.name.clone()).collect();
    Ok(Examination {
        can_run: !checks.iter().any(|check| check.state == State::Stops),
        kernel: kernel::kernel_release(),
        machine: std::env::consts::ARCH,
        features,
        checks,
        interfaces,
        beside: ground::beside()?,
        other_firewalls: firewalls::others(),
        engines: engines::engines(&Processes::read()?, &names, Path::new("/")),
    })
}

/// What guard does not start without, then what it does with less.
fn features() -> Vec<Feature> {
    let needed = kernel::needed().into_iter().map(|needed| Feature {
        name: needed.name,
        found: needed.refused.is_none(),
        required: true,
        lost_without: "guard does not start",
    });
    let offers = Offers::probe().list().into_iter().filter(|feature| !feature.required);
    needed.chain(offers).collect()
}

fn old_kernel(features: &[Feature]) -> Option<Check> {
    let lacks: Vec<&str> =
        features.iter().filter(|feature| feature.required && !feature.found).map(|feature| feature.name).collect();
    if lacks.is_empty() {
        return None;
    }
    Some(Check::amiss(
        "kernel",
        State::Stops,
        format!("lacks {}", lacks.join(", ")),
        "use Linux 5.10 or newer with BTF (CONFIG_DEBUG_INFO_BTF); until then: guard export nft POLICY | nft -f -",
    ))
}

fn capabilities(lacks: &ground::Lacks) -> Check {
    const NAME: &str = "capabilities";
    let without = |lacks: &[&str]| format!("without {}", lacks.join(", "));
    if !lacks.needed.is_empty() {
        Check::amiss(
            NAME,
            State::Stops,
            format!("{}: the kernel could not be asked for more", without(&lacks.needed)),
            "run it as root (sudo guard doctor); in a container, with these capabilities and the host's network namespace",
        )
    } else if !lacks.wished.is_empty() {
        Check::amiss(
            NAME,
            State::Careful,
            without(&lacks.wished),
            "flows of other users' processes are recorded without their process: add these, where you can",
        )
    } else {
        Check::good(NAME, "all that guard needs")
    }
}

fn lockdown() -> Check {
    const NAME: &str = "kernel lockdown";
    match ground::lockdown().as_deref() {
        None => Check::good(NAME, "this kernel has none"),
        Some("confidentiality") => Check::amiss(
            NAME,
            State::Careful,
            "confidentiality",
            "the kernel may refuse programs that read its memory, and hides its symbols: see the table for what is lost \
             (boot with lockdown=integrity to have it)",
        ),
        Some(mode) => Check::good(NAME, mode),
    }
}

fn memory() -> Check {
    const NAME: &str = "memory for maps";
    match ground::memory() {
        Ok(()) => Check::good(NAME, "can be had"),
        Err(error) => Check::amiss(
            NAME,
            State::Stops,
            format!("32 MiB were refused: {error}"),
            "raise the limit of locked memory (ulimit -l unlimited; LimitMEMLOCK=infinity in a unit), and the memory limit \
             of the control group that guard runs in",
        ),
    }
}

fn bpffs() -> Check {
    const NAME: &str = "bpffs";
    match ground::bpffs() {
        Bpffs::Mounted(path) => Check::good(NAME, format!("mounted at {}", path.display())),
        Bpffs::CanBeMounted(path) => Check::good(NAME, format!("not mounted; guard mounts it at {}", path.display())),
        Bpffs::ReadOnly(path) => Check::amiss(
            NAME,
            State::Stops,
            format!("read-only at {}", path.display()),
            format!("mount -o remount,rw {}   (in a container: mount one of its own)", path.display()),
        ),
        Bpffs::Absent(path) => Check::amiss(
            NAME,
            State::Stops,
            format!("{} is not there", path.display()),
            "mount -t sysfs sys /sys && mount -t bpf bpf /sys/fs/bpf",
        ),
    }
}

fn cgroups() -> Vec<Check> {
    const NAME: &str = "cgroup2";
    let mut checks = vec![match ground::cgroup2() {
        Some((root, Ok(()))) => Check::good(NAME, format!("mounted at {}", root.display())),
        Some((root, Err(error))) => Check::amiss(
            NAME,
            State::Stops,
            format!("programs at {} cannot be asked for: {error}", root.display()),
            "run it as root, in the host's control groups; or name a control group of its own: guard run --cgroup PATH",
        ),
        None => Check::amiss(
            NAME,
            State::Stops,
            "not mounted",
            "mount -t cgroup2 none /sys/fs/cgroup   (beside version 1: mkdir /sys/fs/cgroup/unified, and mount it there)",
        ),
    }];
    if ground::net_cgroups_of_version_1() {
        checks.push(Check::amiss(
            "cgroup version 1",
            State::Careful,
            "net_cls or net_prio is mounted",
            "before Linux 5.15 sockets in such a group are not seen by the socket layer and the seal (the wire judges them \
             all the same): unmount it, or boot with cgroup_no_v1=net_cls,net_prio",
        ));
    }
    checks
}

fn state_directory(root: &Path) -> Check {
    const NAME: &str = "state directory";
    let there = root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let read_only = statvfs(there).map(|found| found.flags().contains(FsFlags::ST_RDONLY));
    match read_only {
        Ok(false) => Check::good(NAME, format!("{} can be written", root.display())),
        Ok(true) | Err(_) => Check::amiss(
            NAME,
            State::Stops,
            format!("{} is read-only", there.display()),
            "start guard with one that can be written: guard run --state-dir DIR (a tmpfs will do; it is then lost at the next boot)",
        ),
    }
}

fn guarded(interfaces: &[Interface]) -> Check {
    const NAME: &str = "interfaces";
    let names: Vec<&str> =
        interfaces.iter().filter(|interface| interface.guarded).map(|interface| interface.name.as_str()).collect();
    if names.is_empty() {
        Check::amiss(
            NAME,
            State::Careful,
            "none would be guarded: frames leave this network namespace nowhere",
            "bring one up, or name one: guard run --interface NAME",
        )
    } else {
        Check::good(NAME, format!("would be guarded: {}", names.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_kernel_lacks_makes_it_too_old() {
        let feature = |name, found, required| Feature { name, found, required, lost_without: "" };
        assert_eq!(old_kernel(&[feature("tcx", false, false), feature("ring buffer", true, true)]), None);
        let old = old_kernel(&[feature("ring buffer", false, true), feature("BTF", false, true)]).unwrap();
        assert_eq!((old.state, old.found.as_str()), (State::Stops, "lacks ring buffer, BTF"));
        assert!(old.mend.unwrap().contains("guard export nft"));
    }

    #[test]
    fn without_the_capabilities_it_stops_and_with_few_it_is_careful() {
        let state = |needed: &[&'static str], wished: &[&'static str]| {
            capabilities(&ground::Lacks { needed: needed.to_vec(), wished: wished.to_vec() }).state
        };
        assert_eq!(state(&[], &[]), State::Good);
        assert_eq!(state(&[], &["CAP_SYS_PTRACE"]), State::Careful);
        assert_eq!(state(&["CAP_NET_ADMIN"], &["CAP_SYS_PTRACE"]), State::Stops);
    }

    #[test]
    fn a_state_directory_that_is_not_there_yet_is_judged_by_what_is() {
        let home = tempfile::tempdir().unwrap();
        let check = state_directory(&home.path().join("a/b/c"));
        assert_eq!(check.state, State::Good, "{check:?}");
        assert_eq!(state_directory(Path::new("/proc/self/none")).name, "state directory");
    }

    #[test]
    fn no_guarded_interface_is_said() {
        let lo = Interface { name: "lo".to_owned(), guarded: false, why: "loopback" };
        assert_eq!(guarded(std::slice::from_ref(&lo)).state, State::Careful);
        let eth0 = Interface { name: "eth0".to_owned(), guarded: true, why: "" };
        assert_eq!(guarded(&[lo, eth0]).found, "would be guarded: eth0");
    }
}
