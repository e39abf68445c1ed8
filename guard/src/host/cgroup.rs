//! What a process's control group says: its systemd unit, its container.

use std::{collections::HashMap, fs, io::Read, path::Path};

use serde::Deserialize;

use crate::record::who::Container;

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

/// Names and images of containers, as far as their engines' files tell.
#[derive(Debug, Default)]
pub struct Containers {
    known: HashMap<String, Container>,
}

/// Files longer than this are not read.
const LONGEST: u64 = 8 << 20;
/// Containers that are remembered.
const MOST: usize = 4096;

#[derive(Deserialize)]
struct DockerFile {
    #[serde(rename = "Name")]
    name: Option<String>,
    #[serde(rename = "Config")]
    config: Option<DockerConfig>,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(rename = "Image")]
    image: Option<String>,
}

#[derive(Deserialize)]
struct PodmanEntry {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    /// JSON in a string.
    #[serde(default)]
    metadata: String,
}

#[derive(Deserialize)]
struct PodmanMetadata {
    #[serde(rename = "image-name")]
    image: Option<String>,
}

impl Containers {
    pub fn describe(&mut self, id: String) -> Container {
        if let Some(known) = self.known.get(&id) {
            return known.clone();
        }
        let described = describe_in(Path::new("/"), &id);
        if self.known.len() >= MOST {
            self.known.clear();
        }
        self.known.insert(id, described.clone());
        described
    }
}

/// Docker and Podman keep files that anybody with root's rights may read; others have to be asked, which is not done.
fn describe_in(root: &Path, id: &str) -> Container {
    let mut container = Container { id: id.to_owned(), ..Container::default() };
    // An id goes into a path: nothing but an id may.
    if id.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return container;
    }
    let docker: Option<DockerFile> = read(&root.join(format!("var/lib/docker/containers/{id}/config.v2.json")));
    if let Some(file) = docker {
        container.name = file.name.map(|name| name.trim_start_matches('/').to_owned());
        container.image = file.config.and_then(|config| config.image);
        return container;
    }
    let podman: Option<Vec<PodmanEntry>> =
        read(&root.join("var/lib/containers/storage/overlay-containers/containers.json"));
    if let Some(entry) = podman.into_iter().flatten().find(|entry| entry.id == id) {
        container.name = entry.names.into_iter().next();
        let metadata: Option<PodmanMetadata> = serde_json::from_str(&entry.metadata).ok();
        container.image = metadata.and_then(|metadata| metadata.image);
    }
    container
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
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

    #[test]
    fn names_and_images_from_the_engines_files() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(describe_in(root.path(), ID), Container { id: ID.to_owned(), ..Container::default() });
        let podman = root.path().join("var/lib/containers/storage/overlay-containers");
        fs::create_dir_all(&podman).unwrap();
        let list =
            serde_json::json!([{ "id": ID, "names": ["db"], "metadata": "{\"image-name\":\"docker.io/pg:16\"}" }]);
        fs::write(podman.join("containers.json"), list.to_string()).unwrap();
        let found = describe_in(root.path(), ID);
        assert_eq!((found.name.as_deref(), found.image.as_deref()), (Some("db"), Some("docker.io/pg:16")));
        let docker = root.path().join("var/lib/docker/containers").join(ID);
        fs::create_dir_all(&docker).unwrap();
        fs::write(docker.join("config.v2.json"), r#"{"Name":"/web","Config":{"Image":"nginx:1"}}"#).unwrap();
        let found = describe_in(root.path(), ID);
        assert_eq!((found.name.as_deref(), found.image.as_deref()), (Some("web"), Some("nginx:1")));
        assert_eq!(describe_in(root.path(), "../../x").name, None);
    }
}
