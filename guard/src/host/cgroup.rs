//! What a process's control group says: its systemd unit, its container.

/// Of `/proc/PID/cgroup`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// `ssh.service`, `session-3.scope`.
    pub unit: Option<String>,
    /// The container's id, or its name where its engine uses that (LXC, systemd-nspawn).
    pub container: Option<String>,
}

/// Both versions of control groups: version 2's line (`0::`), or whichever of version 1's names a container.
#[must_use]
pub fn parse(text: &str) -> Place {
    let paths = || text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).map(without_mark);
    let container = paths().find_map(|path| path.rsplit('/').find_map(container));
    let unified = text.lines().find_map(|line| line.strip_prefix("0::")).map(without_mark);
    let systemd = || text.lines().find_map(|line| line.split_once(":name=systemd:")).map(|(_, path)| path);
    // A host with both has its units in version 1's `name=systemd`.
    let unit = [unified, systemd()].into_iter().flatten().find_map(|path| {
        path.rsplit('/')
            .find(|part| (part.ends_with(".service") || part.ends_with(".scope")) && self::container(part).is_none())
    });
    Place { unit: unit.map(str::to_owned), container: container.map(str::to_owned) }
}

/// The group itself is gone.
fn without_mark(path: &str) -> &str {
    path.strip_suffix(" (deleted)").unwrap_or(path)
}

/// One part of the path: `docker-<id>.scope`, `libpod-<id>.scope`, `cri-containerd-<id>.scope`, `crio-<id>`,
/// `<id>`, `lxc.payload.<name>`, `machine-<name>.scope`.
fn container(part: &str) -> Option<&str> {
    let bare = part.strip_suffix(".scope").unwrap_or(part);
    let id = bare.rsplit('-').next().unwrap_or(bare);
    // containerd's `pod…:cri-containerd:<id>`.
    let id = id.rsplit(':').next().unwrap_or(id);
    if id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) && !bare.starts_with("libpod-conmon") {
        return Some(id);
    }
    let name = bare
        .strip_prefix("lxc.payload.")
        .or_else(|| part.strip_suffix(".scope")?.strip_prefix("machine-"))
        .or_else(|| part.strip_suffix(".service")?.strip_prefix("systemd-nspawn@"))?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn of(text: &str) -> (Option<String>, Option<String>) {
        let place = parse(&text.replace("ID", ID));
        (place.unit, place.container)
    }

    #[test]
    fn units_are_the_innermost() {
        assert_eq!(of("0::/system.slice/ssh.service").0.as_deref(), Some("ssh.service"));
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service\n";
        assert_eq!(of(user).0.as_deref(), Some("sync.service"));
        assert_eq!(of("0::/user.slice/user-0.slice/session-3.scope").0.as_deref(), Some("session-3.scope"));
        assert_eq!(of("4:memory:/x\n1:name=systemd:/system.slice/cron.service\n").0.as_deref(), Some("cron.service"));
        assert_eq!(of("0::/system.slice/gone.service (deleted)").0.as_deref(), Some("gone.service"));
        assert_eq!(of("0::/"), (None, None));
        assert_eq!(of(""), (None, None));
    }

    #[test]
    fn containers_of_each_engine() {
        for path in [
            "0::/system.slice/docker-ID.scope",
            "0::/docker/ID",
            "12:pids:/docker/ID\n0::/\n",
            "0::/machine.slice/libpod-ID.scope/container",
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/cri-containerd-ID.scope",
            "0::/kubepods/besteffort/pod7/ID",
            "0::/kubepods.slice/pod7.slice/crio-ID.scope",
            "0::/system.slice/nerdctl-ID.scope",
            "0::/system.slice/containerd.service/kubepods-pod7.slice:cri-containerd:ID",
        ] {
            assert_eq!(of(path).1.as_deref(), Some(ID), "{path}");
        }
        assert_eq!(
            of("0::/lxc.payload.web/system.slice/nginx.service"),
            (Some("nginx.service".to_owned()), Some("web".to_owned()))
        );
        assert_eq!(of("0::/machine.slice/machine-db.scope/payload").1.as_deref(), Some("db"));
        // Podman's monitor runs on the host.
        assert_eq!(of("0::/machine.slice/libpod-conmon-ID.scope").1, None);
        assert_eq!(of("0::/system.slice/docker.service"), (Some("docker.service".to_owned()), None));
    }
}
