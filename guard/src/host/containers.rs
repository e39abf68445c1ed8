//! Names and images of containers, as far as their engines' files tell. Docker and Podman keep files that anybody with
//! root's rights may read; others have to be asked, which is not done. Those of users without root are theirs to write, and
//! are not read.

use std::{
    collections::HashMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Deserialize;

use crate::record::who::Container;

/// What was found, kept: a container's name is asked for with each of its flows.
#[derive(Debug, Default)]
pub struct Containers {
    known: HashMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    container: Container,
    /// When its files are read again: soon where they told not all, since an engine may be about to write them.
    again: Instant,
    pause: Duration,
}

/// Files longer than this are not read.
const LONGEST: u64 = 8 << 20;
/// Containers that are remembered.
const MOST: usize = 4096;
/// Before the files are read again, where they did not tell all; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// And at last, or where they did: a container may be renamed.
const LAST_PAUSE: Duration = Duration::from_secs(300);

impl Containers {
    pub fn describe(&mut self, id: String) -> Container {
        self.describe_in(Path::new("/"), id, Instant::now())
    }

    fn describe_in(&mut self, root: &Path, id: String, now: Instant) -> Container {
        let known = self.known.get(&id);
        if let Some(known) = known.filter(|known| now < known.again) {
            return known.container.clone();
        }
        let (before, pause) = match known {
            Some(known) => (Some(&known.container), known.pause * 2),
            None => (None, FIRST_PAUSE),
        };
        let found = read_of(root, &id);
        let complete = found.name.is_some() && found.image.is_some();
        // Of one that is gone its files are gone, too.
        let container = Container {
            name: found.name.or_else(|| before.and_then(|before| before.name.clone())),
            image: found.image.or_else(|| before.and_then(|before| before.image.clone())),
            id: found.id,
        };
        let pause = if complete { LAST_PAUSE } else { pause.min(LAST_PAUSE) };
        if self.known.len() >= MOST {
            self.known.clear();
        }
        self.known.insert(id, Known { container: container.clone(), again: now + pause, pause });
        container
    }
}

fn read_of(root: &Path, id: &str) -> Container {
    let nothing = Container { id: id.to_owned(), ..Container::default() };
    // An id goes into a path: nothing but an id may.
    if id.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return nothing;
    }
    docker(root, id).or_else(|| podman(root, id)).unwrap_or(nothing)
}

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

fn docker(root: &Path, id: &str) -> Option<Container> {
    let file: DockerFile = docker_roots(root)
        .iter()
        .find_map(|directory| json(&directory.join("containers").join(id).join("config.v2.json")))?;
    Some(Container {
        id: id.to_owned(),
        name: file.name.map(|name| name.trim_start_matches('/').to_owned()).filter(|name| !name.is_empty()),
        image: file.config.and_then(|config| config.image).filter(|image| !image.is_empty()),
    })
}

#[derive(Default, Deserialize)]
struct DockerSettings {
    #[serde(rename = "data-root")]
    data_root: Option<String>,
    /// The same, before Docker 17.05.
    graph: Option<String>,
}

/// Where Docker's data may be: as the daemon that runs was told, as its file of settings says, and where they are by default
/// (from its own package, and as a snap).
fn docker_roots(root: &Path) -> Vec<PathBuf> {
    let mut roots = Vec::new();
    let pid = text(&root.join("run/docker.pid")).and_then(|text| text.trim().parse::<u32>().ok());
    if let Some(pid) = pid {
        let command = text(&root.join(format!("proc/{pid}/cmdline"))).unwrap_or_default();
        let mut arguments = command.split('\0').peekable();
        // The number may be another's by now.
        if arguments.next().is_some_and(|program| program.rsplit('/').next() == Some("dockerd")) {
            while let Some(argument) = arguments.next() {
                let (name, value) = argument.split_once('=').unzip();
                if matches!(name.unwrap_or(argument), "--data-root" | "--graph" | "-g") {
                    roots.extend(value.or_else(|| arguments.peek().copied()).map(str::to_owned));
                }
            }
        }
    }
    let settings: DockerSettings = json(&root.join("etc/docker/daemon.json")).unwrap_or_default();
    roots.extend(settings.data_root.or(settings.graph));
    roots.extend(["/var/lib/docker", "/var/snap/docker/common/var-lib-docker"].map(str::to_owned));
    below(root, roots)
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

fn podman(root: &Path, id: &str) -> Option<Container> {
    // One that goes with its end, or with the machine's, is in a file of its own (since 4.4).
    const FILES: [&str; 2] = ["containers.json", "volatile-containers.json"];
    let storages = podman_storages(root);
    let entries = storages.iter().flat_map(|directory| FILES.map(|file| directory.join(file))).find_map(|file| {
        let entries: Option<Vec<PodmanEntry>> = json(&file);
        entries.into_iter().flatten().find(|entry| entry.id == id)
    })?;
    let metadata: Option<PodmanMetadata> = serde_json::from_str(&entries.metadata).ok();
    Some(Container {
        id: entries.id,
        name: entries.names.into_iter().next().filter(|name| !name.is_empty()),
        image: metadata.and_then(|metadata| metadata.image).filter(|image| !image.is_empty()),
    })
}

/// Its directories of containers: one for each storage driver that was ever used (`overlay-containers`, `vfs-containers`).
fn podman_storages(root: &Path) -> Vec<PathBuf> {
    let mut roots = Vec::new();
    for file in ["etc/containers/storage.conf", "usr/share/containers/storage.conf"] {
        let settings = text(&root.join(file)).unwrap_or_default();
        roots.extend(["graphroot", "runroot"].iter().filter_map(|key| setting(&settings, key)));
    }
    roots.extend(["/var/lib/containers/storage", "/run/containers/storage"].map(str::to_owned));
    let mut found = Vec::new();
    for directory in below(root, roots) {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut storages: Vec<PathBuf> = entries
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.ends_with("-containers")))
            .map(|entry| entry.path())
            .collect();
        storages.sort();
        found.extend(storages);
    }
    found
}

/// Of a file in TOML, as far as a line `key = "value"` goes.
fn setting(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let value = line.trim().strip_prefix(key)?.trim_start().strip_prefix('=')?.trim_start().strip_prefix('"')?;
        value.split_once('"').map(|(value, _)| value.to_owned())
    })
}

/// Absolute paths, each once.
fn below(root: &Path, paths: Vec<String>) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for path in paths {
        if let Ok(path) = Path::new(&path).strip_prefix("/")
            && !found.contains(&root.join(path))
        {
            found.push(root.join(path));
        }
    }
    found
}

fn json<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&bytes(path)?).ok()
}

fn text(path: &Path) -> Option<String> {
    String::from_utf8(bytes(path)?).ok()
}

fn bytes(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn put_docker(root: &Path, data: &str, name: &str) {
        let file = format!(r#"{{"Name":"/{name}","Config":{{"Image":"nginx:1"}}}}"#);
        put(root, &format!("{data}/containers/{ID}/config.v2.json"), &file);
    }

    fn put_podman(root: &Path, directory: &str, file: &str) {
        let list =
            serde_json::json!([{ "id": ID, "names": ["db"], "metadata": "{\"image-name\":\"docker.io/pg:16\"}" }]);
        put(root, &format!("{directory}/{file}"), &list.to_string());
    }

    fn found(root: &Path) -> (Option<String>, Option<String>) {
        let Container { id, name, image } = read_of(root, ID);
        assert_eq!(id, ID);
        (name, image)
    }

    fn both(name: &str, image: &str) -> (Option<String>, Option<String>) {
        (Some(name.to_owned()), Some(image.to_owned()))
    }

    #[test]
    fn docker_keeps_a_file_for_each() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(found(root.path()), (None, None));
        put_docker(root.path(), "var/lib/docker", "web");
        assert_eq!(found(root.path()), both("web", "nginx:1"));
        assert_eq!(read_of(root.path(), "../../x").name, None);
    }

    #[test]
    fn dockers_data_may_lie_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        put_docker(root.path(), "srv/docker", "by settings");
        put(root.path(), "etc/docker/daemon.json", r#"{"data-root": "/srv/docker", "dns": ["192.0.2.53"]}"#);
        assert_eq!(found(root.path()), both("by settings", "nginx:1"));
        put_docker(root.path(), "mnt/d", "by argument");
        put(root.path(), "run/docker.pid", "77");
        for command in ["/usr/sbin/dockerd\0--data-root\0/mnt/d\0", "dockerd\0-H\0fd://\0--data-root=/mnt/d\0"] {
            put(root.path(), "proc/77/cmdline", command);
            assert_eq!(found(root.path()), both("by argument", "nginx:1"));
        }
        put(root.path(), "proc/77/cmdline", "/bin/sh\0--data-root\0/mnt/d\0");
        assert_eq!(found(root.path()), both("by settings", "nginx:1"));
        put(root.path(), "proc/77/cmdline", "dockerd\0--data-root\0relative\0--data-root");
        assert_eq!(found(root.path()), both("by settings", "nginx:1"));
    }

    #[test]
    fn podman_keeps_a_list_for_each_storage_driver() {
        for (directory, file) in [
            ("var/lib/containers/storage/overlay-containers", "containers.json"),
            ("var/lib/containers/storage/vfs-containers", "containers.json"),
            ("var/lib/containers/storage/btrfs-containers", "volatile-containers.json"),
            ("run/containers/storage/overlay-containers", "volatile-containers.json"),
            ("srv/pods/overlay-containers", "containers.json"),
        ] {
            let root = tempfile::tempdir().unwrap();
            put(
                root.path(),
                "etc/containers/storage.conf",
                "[storage]\n# graphroot = \"/x\"\n graphroot = \"/srv/pods\"\n",
            );
            put(root.path(), "var/lib/containers/storage/vfs-images/images.json", "[]");
            put(root.path(), "var/lib/containers/storage/a-containers/containers.json", "not json");
            assert_eq!(found(root.path()), (None, None));
            put_podman(root.path(), directory, file);
            assert_eq!(found(root.path()), both("db", "docker.io/pg:16"), "{directory}");
        }
    }

    #[test]
    fn an_answer_that_lacks_something_is_asked_for_again() {
        let root = tempfile::tempdir().unwrap();
        let (mut containers, start) = (Containers::default(), Instant::now());
        let mut name = |after: Duration| containers.describe_in(root.path(), ID.to_owned(), start + after).name;
        assert_eq!(name(Duration::ZERO), None);
        put_docker(root.path(), "var/lib/docker", "web");
        assert_eq!(name(FIRST_PAUSE / 2), None, "not at each flow");
        assert_eq!(name(FIRST_PAUSE).as_deref(), Some("web"));
        put_docker(root.path(), "var/lib/docker", "renamed");
        assert_eq!(name(FIRST_PAUSE * 4).as_deref(), Some("web"));
        assert_eq!(name(FIRST_PAUSE + LAST_PAUSE).as_deref(), Some("renamed"));
        fs::remove_dir_all(root.path().join("var")).unwrap();
        assert_eq!(name(LAST_PAUSE * 3).as_deref(), Some("renamed"), "one that is gone keeps its name");
    }
}
