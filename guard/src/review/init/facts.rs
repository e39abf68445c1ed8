//! What a host says of itself in its files: whom it asks for names, time and packages, and what GitLab is set up for.
//!
//! Everything is text of others: it is only shown harmless, and only addresses get into rules.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
};

/// Bytes of one file that are read.
const MOST_BYTES: u64 = 1 << 20;

/// A remote end that a file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// A name or an address.
    pub host: String,
    pub port: u16,
    /// File and line.
    pub source: String,
}

/// A comment begins a line, or a word: `9.9.9.9#dns.example` is none.
fn without_comment(line: &str) -> &str {
    let begins = |at: usize| line[..at].chars().next_back().is_none_or(char::is_whitespace);
    let at = line.match_indices('#').map(|(at, _)| at).find(|at| begins(*at));
    at.map_or(line, |at| &line[..at])
}

/// An address for a rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Found {
    pub address: IpAddr,
    pub source: String,
    /// It was a name: others may stand behind it tomorrow.
    pub will_rot: bool,
}

/// The files of a host.
pub struct Files<'a> {
    root: &'a Path,
    /// `/etc/hosts` below `root`, which alone answers for an image.
    hosts: BTreeMap<String, Vec<IpAddr>>,
    offline: bool,
}

impl<'a> Files<'a> {
    /// `offline`: an image of a host; nobody is asked for names.
    #[must_use]
    pub fn new(root: &'a Path, offline: bool) -> Self {
        let mut files = Self { root, hosts: BTreeMap::new(), offline };
        for (_, line) in files.lines(Path::new("etc/hosts")) {
            let mut words = line.split_ascii_whitespace();
            let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
            for name in words {
                files.hosts.entry(name.to_ascii_lowercase()).or_default().push(address);
            }
        }
        files
    }

    /// Lines without comments, each with its place.
    fn lines(&self, path: &Path) -> Vec<(String, String)> {
        let Some(text) = self.read(path) else { return Vec::new() };
        (1..)
            .zip(text.lines())
            .map(|(number, line)| (format!("/{}:{number}", path.display()), without_comment(line).trim()))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with(';') && !line.starts_with('!'))
            .map(|(place, line)| (place, line.to_owned()))
            .collect()
    }

    fn read(&self, path: &Path) -> Option<String> {
        let mut text = Vec::new();
        fs::File::open(self.root.join(path)).ok()?.take(MOST_BYTES).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// A file, and those of a folder that end so, sorted.
    fn with_folder(&self, file: &str, folder: &str, ending: &str) -> Vec<PathBuf> {
        let mut paths = vec![PathBuf::from(file)];
        let mut more: Vec<PathBuf> = fs::read_dir(self.root.join(folder))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.ends_with(ending)))
            .map(|entry| Path::new(folder).join(entry.file_name()))
            .collect();
        more.sort();
        paths.append(&mut more);
        paths
    }

    /// Resolvers that are asked over the network: of the first place that names some.
    #[must_use]
    pub fn resolvers(&self) -> Vec<Named> {
        self.resolver_places().into_iter().find(|found| !found.is_empty()).unwrap_or_default()
    }

    /// Those of all places, as addresses.
    #[must_use]
    pub fn every_resolver(&self) -> Vec<IpAddr> {
        self.resolver_places().into_iter().flatten().filter_map(|named| named.host.parse().ok()).collect()
    }

    /// Where resolvers stand, the nearest to those who ask first.
    fn resolver_places(&self) -> [Vec<Named>; 4] {
        let of = |path: &str| -> Vec<Named> {
            self.lines(Path::new(path))
                .into_iter()
                .filter_map(|(source, line)| {
                    let host = line.strip_prefix("nameserver")?.trim().split('%').next()?.to_owned();
                    Some(Named { host, port: 53, source })
                })
                .filter(|named| named.host.parse::<IpAddr>().is_ok_and(|address| !address.is_loopback()))
                .collect()
        };
        let mut set = self.setting("etc/systemd/resolved.conf", "etc/systemd/resolved.conf.d", &["DNS"], 53);
        for named in &mut set {
            // address:port%interface#name
            let host = named.host.split(['#', '%']).next().unwrap_or_default();
            named.host = match host.parse::<SocketAddr>() {
                Ok(address) => address.ip().to_string(),
                Err(_) => host.to_owned(),
            };
        }
        let mut forwarded = Vec::new();
        for path in self.with_folder("etc/dnsmasq.conf", "etc/dnsmasq.d", "") {
            for (source, line) in self.lines(&path) {
                if let Some(host) = line.strip_prefix("server=") {
                    let host =
                        host.rsplit('/').next().unwrap_or(host).split(['#', '@']).next().unwrap_or("").to_owned();
                    forwarded.push(Named { host, port: 53, source });
                }
            }
        }
        // systemd-resolved and dnsmasq answer on loopback; whom they ask stands in the files that they are given.
        let given =
            ["run/systemd/resolve/resolv.conf", "run/dnsmasq/resolv.conf", "run/NetworkManager/no-stub-resolv.conf"];
        [of("etc/resolv.conf"), given.into_iter().flat_map(of).collect(), set, forwarded]
    }

    /// Time servers of chrony, systemd-timesyncd or ntpd.
    #[must_use]
    pub fn time_servers(&self) -> Vec<Named> {
        let mut files = self.with_folder("etc/chrony/chrony.conf", "etc/chrony/conf.d", ".conf");
        files.extend(self.with_folder("etc/chrony.conf", "etc/chrony/sources.d", ".sources"));
        files.extend([PathBuf::from("etc/ntpsec/ntp.conf"), PathBuf::from("etc/ntp.conf")]);
        let mut found = Vec::new();
        for file in files {
            for (source, line) in self.lines(&file) {
                let mut words = line.split_ascii_whitespace();
                if matches!(words.next(), Some("server" | "pool" | "peer"))
                    && let Some(host) = words.next()
                {
                    found.push(Named { host: host.to_owned(), port: 123, source });
                }
            }
        }
        if found.is_empty() {
            found = self.setting("etc/systemd/timesyncd.conf", "etc/systemd/timesyncd.conf.d", &["NTP"], 123);
        }
        if found.is_empty() {
            found = self.setting("etc/systemd/timesyncd.conf", "etc/systemd/timesyncd.conf.d", &["FallbackNTP"], 123);
        }
        found
    }

    /// `Key=word word` of systemd's configuration.
    fn setting(&self, file: &str, folder: &str, keys: &[&str], port: u16) -> Vec<Named> {
        let mut found = Vec::new();
        for path in self.with_folder(file, folder, ".conf") {
            for (source, line) in self.lines(&path) {
                let Some((key, value)) = line.split_once('=') else { continue };
                if !keys.contains(&key.trim()) {
                    continue;
                }
                for host in value.split_ascii_whitespace() {
                    found.push(Named { host: host.to_owned(), port, source: source.clone() });
                }
            }
        }
        found
    }

    /// Where packages come from, or the proxy that fetches them.
    #[must_use]
    pub fn package_sources(&self) -> Vec<Named> {
        let mut found = Vec::new();
        for path in self.with_folder("etc/apt/apt.conf", "etc/apt/apt.conf.d", "") {
            for (source, line) in self.lines(&path) {
                if line.to_ascii_lowercase().contains("::proxy")
                    && let Some(named) = line.split('"').nth(1).and_then(|url| of_url(url, &source))
                {
                    found.push(named);
                }
            }
        }
        if !found.is_empty() {
            return found;
        }
        let mut files = self.with_folder("etc/apt/sources.list", "etc/apt/sources.list.d", ".list");
        files.extend(self.with_folder("etc/apt/sources.list", "etc/apt/sources.list.d", ".sources").split_off(1));
        for path in files {
            for (source, line) in self.lines(&path) {
                let is_deb = line.starts_with("deb ") || line.starts_with("deb-src ");
                if is_deb || line.to_ascii_lowercase().starts_with("uris:") {
                    found.extend(line.split_ascii_whitespace().filter_map(|word| of_url(word, &source)));
                }
            }
        }
        found
    }

    /// The GitLab that this machine's runner serves.
    #[must_use]
    pub fn runner_urls(&self) -> Vec<Named> {
        self.lines(Path::new("etc/gitlab-runner/config.toml"))
            .iter()
            .filter_map(|(source, line)| of_url(line.strip_prefix("url")?.split('"').nth(1)?, source))
            .collect()
    }

    /// `gitlab.rb`, as far as it is written in the usual way.
    #[must_use]
    pub fn gitlab(&self) -> GitLab {
        let mut gitlab = GitLab::default();
        let mut in_ldap = false;
        let mut smtp: (Option<(String, String)>, u16) = (None, 25);
        for (source, line) in self.lines(Path::new("etc/gitlab/gitlab.rb")) {
            gitlab.read = true;
            let value = quoted_value(&line);
            let number = || {
                line.rsplit(['=', '>', ':'])
                    .next()
                    .and_then(|text| text.trim().trim_matches(['"', '\'', ',']).parse::<u16>().ok())
            };
            if line.starts_with("external_url") {
                gitlab.external = value.and_then(|url| of_url(url, &source));
            } else if line.starts_with("registry_external_url") {
                gitlab.registry = value.and_then(|url| of_url(url, &source));
            } else if line.contains("'gitlab_shell_ssh_port'") || line.contains("\"gitlab_shell_ssh_port\"") {
                gitlab.ssh = number().map(|port| (port, source.clone()));
            } else if line.contains("smtp_address") {
                smtp.0 = value.map(|host| (host.to_owned(), source.clone()));
            } else if line.contains("smtp_port") {
                smtp.1 = number().unwrap_or(25);
            } else if line.contains("ldap_servers") {
                in_ldap = true;
            } else if in_ldap && line.contains("host") {
                let host = value.or_else(|| line.split_once(':').map(|(_, host)| host.trim()));
                gitlab.ldap.extend(host.map(|host| Named { host: host.to_owned(), port: 389, source: source.clone() }));
            } else if in_ldap && line.contains("port") {
                if let (Some(last), Some(port)) = (gitlab.ldap.last_mut(), number()) {
                    last.port = port;
                }
            } else if line.contains("endpoint")
                && let Some(named) = value.and_then(|url| of_url(url, &source))
            {
                gitlab.storage.push(named);
            }
            if in_ldap && (line == "EOS" || line == "}") {
                in_ldap = false;
            }
        }
        gitlab.smtp = smtp.0.map(|(host, source)| Named { host, port: smtp.1, source });
        gitlab
    }

    /// Its addresses, asked for now. Empty: nobody knows it.
    #[must_use]
    pub fn addresses(&self, named: &Named) -> Vec<Found> {
        let found = |address, will_rot, how: String| Found { address, source: how, will_rot };
        let host = named.host.trim_matches(['[', ']']);
        if let Ok(address) = host.parse::<IpAddr>() {
            return vec![found(address, false, named.source.clone())];
        }
        if host.is_empty() || host.len() > 253 {
            return Vec::new();
        }
        let addresses: Vec<IpAddr> = match self.hosts.get(&host.to_ascii_lowercase()) {
            Some(addresses) => addresses.clone(),
            None if self.offline => Vec::new(),
            None => (host, 0)
                .to_socket_addrs()
                .map(|all| all.map(|one| one.ip().to_canonical()).collect())
                .unwrap_or_default(),
        };
        let mut addresses: Vec<IpAddr> = addresses.into_iter().filter(|address| !address.is_loopback()).collect();
        addresses.sort();
        addresses.dedup();
        addresses.into_iter().map(|address| found(address, true, format!("{host}, of {}", named.source))).collect()
    }
}

/// What GitLab's configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitLab {
    pub read: bool,
    pub external: Option<Named>,
    pub registry: Option<Named>,
    /// Port, and where it stands.
    pub ssh: Option<(u16, String)>,
    pub smtp: Option<Named>,
    pub ldap: Vec<Named>,
    pub storage: Vec<Named>,
}

fn quoted_value(line: &str) -> Option<&str> {
    // The value is what is quoted last: keys are quoted too.
    let end = line.rfind(['"', '\''])?;
    let quote = line.as_bytes()[end];
    let start = line[..end].bytes().rposition(|byte| byte == quote)?;
    Some(&line[start + 1..end])
}

fn of_url(url: &str, source: &str) -> Option<Named> {
    let (scheme, rest) = url.split_once("://")?;
    let port = match scheme.rsplit('+').next()? {
        "https" => 443,
        "http" => 80,
        "ftp" => 21,
        _ => return None,
    };
    let authority = rest.split('/').next()?;
    let authority = authority.rsplit('@').next()?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, text)) if !host.ends_with(':') && (!host.contains(':') || host.ends_with(']')) => {
            (host, text.parse().unwrap_or(port))
        }
        _ => (authority, port),
    };
    (!host.is_empty()).then(|| Named { host: host.to_owned(), port, source: source.to_owned() })
}
