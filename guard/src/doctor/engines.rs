//! Container engines, virtual machines and Kubernetes on this host, and what each means for what guard sees.

use std::{fs, path::Path};

use serde::Serialize;

use crate::host::processes::Processes;

/// One that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Engine {
    pub name: &'static str,
    /// By what: untrusted text where it is a file's.
    pub found_by: String,
    pub means: &'static str,
}

/// What gives one away: a running program, a path, an interface.
struct Sign {
    name: &'static str,
    programs: &'static [&'static str],
    paths: &'static [&'static str],
    interfaces: &'static [&'static str],
    means: &'static str,
}

const CONTAINERS: &str = "what containers send is judged where it leaves this host, as the host's own; what comes in to a \
                          published port is judged as the host's port, before it is translated; containers among each \
                          other are not judged, unless their interfaces are named by --interface; with this host they are \
                          where the policy has `container_host: guard`";
const PODS: &str = "pods are judged where their frames leave this node; addresses of services are translated before that, \
                    so rules name the addresses of pods and nodes, not of services; list the node's own needs (API \
                    server, DNS, the overlay's port) before you enforce";
const MACHINES: &str = "what virtual machines send is judged where it leaves this host, as the host's own";

const SIGNS: &[Sign] = &[
    Sign {
        name: "Docker",
        programs: &["dockerd"],
        paths: &["/run/docker.sock"],
        interfaces: &["docker0"],
        means: CONTAINERS,
    },
    Sign {
        name: "Podman",
        programs: &["podman", "conmon"],
        paths: &["/run/podman/podman.sock"],
        interfaces: &["podman0", "cni-podman0"],
        means: CONTAINERS,
    },
    Sign {
        name: "LXD or Incus",
        programs: &["lxd", "incusd"],
        paths: &[],
        interfaces: &["lxdbr0", "incusbr0"],
        means: CONTAINERS,
    },
    Sign { name: "LXC", programs: &["lxc-start"], paths: &[], interfaces: &["lxcbr0"], means: CONTAINERS },
    Sign { name: "systemd-nspawn", programs: &["systemd-nspawn"], paths: &[], interfaces: &[], means: CONTAINERS },
    Sign {
        name: "Kubernetes",
        programs: &["kubelet", "k3s", "k3s-server", "k3s-agent", "rke2"],
        paths: &["/etc/kubernetes/kubelet.conf", "/var/lib/kubelet"],
        interfaces: &["kube-ipvs0"],
        means: PODS,
    },
    Sign {
        name: "libvirt",
        programs: &["libvirtd", "virtqemud"],
        paths: &[],
        interfaces: &["virbr0"],
        means: MACHINES,
    },
];

/// Cilium puts eBPF programs of its own at the same hooks.
const CILIUM: &str = "it has programs of its own at the same hooks, may translate addresses before guard sees them, and \
                      also wants to stand first: try it in audit mode, and look at `guard status` after each of its \
                      restarts";

/// Looks at /proc, a few paths and the interfaces' names. `root`: `/`, but in tests.
#[must_use]
pub fn engines(processes: &Processes, interfaces: &[String], root: &Path) -> Vec<Engine> {
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    let mut found: Vec<Engine> = SIGNS
        .iter()
        .filter_map(|sign| {
            let program = processes.iter().filter_map(|process| Some((process.program()?, process.pid)));
            let running = program.filter(|(name, _)| sign.programs.contains(name)).min_by_key(|(_, pid)| *pid);
            let by = running
                .map(|(name, pid)| format!("{name} runs, pid {pid}"))
                .or_else(|| {
                    let path = sign.paths.iter().find(|path| at(path).exists())?;
                    Some(format!("{path} is there"))
                })
                .or_else(|| {
                    let name = interfaces.iter().find(|name| sign.interfaces.contains(&name.as_str()))?;
                    Some(format!("interface {name}"))
                })?;
            Some(Engine { name: sign.name, found_by: by, means: sign.means })
        })
        .collect();
    found.extend(networks(&at("/etc/cni/net.d")));
    let cilium = |name: &&String| name.starts_with("cilium_") || name.starts_with("lxc_health");
    if let Some(name) = interfaces.iter().find(cilium)
        && !found.iter().any(|engine| engine.means == CILIUM)
    {
        found.push(Engine { name: "Cilium", found_by: format!("interface {name}"), means: CILIUM });
    }
    found
}

/// The first configuration there, as container runtimes take it (CNI specification: by name).
fn networks(directory: &Path) -> Option<Engine> {
    let mut files: Vec<_> = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "conf" || end == "conflist" || end == "json"));
    files.sort();
    let file = files.first()?;
    let bytes = fs::read(file).ok().filter(|bytes| bytes.len() < 1 << 20)?;
    let json: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let plugin = json["plugins"][0]["type"].as_str().or_else(|| json["type"].as_str()).unwrap_or("unknown");
    let cilium = plugin.contains("cilium");
    Some(Engine {
        name: if cilium { "Cilium" } else { "container network (CNI)" },
        found_by: format!("{}: plugin {plugin}", file.display()),
        means: match plugin {
            _ if cilium => CILIUM,
            // As Podman and other engines write it.
            "bridge" => CONTAINERS,
            _ => PODS,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::processes::Process;

    fn names(engines: &[Engine]) -> Vec<(&'static str, String)> {
        engines.iter().map(|engine| (engine.name, engine.found_by.clone())).collect()
    }

    #[test]
    fn each_is_found_by_what_runs_else_by_what_is_there() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(engines(&Processes::default(), &[], root.path()), []);
        let dockerd = Process { pid: 7, comm: "x".into(), exe: Some("/usr/bin/dockerd".into()), ..Process::default() };
        let named = Process { pid: 8, comm: "kubelet".into(), exe: Some("/tmp/a".into()), ..Process::default() };
        let processes = Processes::from_list(vec![dockerd, named]);
        fs::create_dir_all(root.path().join("var/lib/kubelet")).unwrap();
        let found = engines(&processes, &["lo".into(), "virbr0".into()], root.path());
        assert_eq!(
            names(&found),
            [
                ("Docker", "dockerd runs, pid 7".to_owned()),
                ("Kubernetes", "/var/lib/kubelet is there".to_owned()),
                ("libvirt", "interface virbr0".to_owned()),
            ]
        );
    }

    #[test]
    fn the_first_network_by_name_counts() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("etc/cni/net.d");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("90-x.conf"), "{\"type\": \"bridge\"}").unwrap();
        fs::write(directory.join("05-c.conflist"), "{\"plugins\": [{\"type\": \"cilium-cni\"}, {\"type\": \"p\"}]}")
            .unwrap();
        fs::write(directory.join("00-readme.txt"), "no").unwrap();
        let found = engines(&Processes::default(), &["cilium_host".into()], root.path());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].name, found[0].means), ("Cilium", CILIUM));
        fs::write(directory.join("00-a.conf"), "not json").unwrap();
        assert_eq!(names(&engines(&Processes::default(), &[], root.path())), []);
    }
}
