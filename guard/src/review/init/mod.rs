//! A first policy in audit mode: a shipped one, filled in from what the host says, each line with its source, and a list of
//! what was not found.

mod facts;
mod shipped;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
    path::Path,
};

use serde::Serialize;

pub use facts::{Files, Found, GitLab, Named};
pub use shipped::Filled;

use super::suggest::service_text;
use crate::text::escape_line;

/// What kind of host it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// A self-managed GitLab.
    Gitlab,
    /// A public web server.
    Web,
    /// A runner of CI jobs.
    Ci,
    /// A person's machine.
    Workstation,
}

/// A port that something listens on, past loopback.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Listening {
    pub protocol: u8,
    pub port: u16,
    pub program: Option<String>,
}

/// What is known of the running host, beside its files.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// Remote, protocol and our port of the session that asks.
    pub session: Vec<(IpAddr, u8, u16)>,
    /// `None`: an image; nothing runs.
    pub listening: Option<Vec<Listening>>,
}

/// What the shipped policy is filled in with, and what a person still has to find out.
#[derive(Clone, Debug, Serialize)]
pub struct First {
    pub profile: Profile,
    /// The shipped policy's file name.
    pub from: &'static str,
    /// Its groups and services, by name: what is not here stays as it was shipped.
    pub filled: BTreeMap<String, Filled>,
    /// Listening services that no rule opens, as lines to take over.
    pub closed: Vec<Listening>,
    pub not_found: Vec<String>,
}

/// Puts together what is found below `root`.
#[must_use]
pub fn first(profile: Profile, files: &Files<'_>, running: &Running) -> First {
    let mut first = First {
        profile,
        from: profile.shipped().0,
        filled: BTreeMap::new(),
        closed: Vec::new(),
        not_found: Vec::new(),
    };
    first.way_in(running);
    let no_port = |_: u16| String::new();
    first.remotes("resolvers", None, &files.resolvers(), "in resolv.conf, systemd-resolved, dnsmasq", files, no_port);
    first.remotes("time_servers", None, &files.time_servers(), "in chrony, timesyncd, ntpd", files, no_port);
    let packages = files.package_sources();
    match profile {
        Profile::Workstation => {
            // The rest are on the web's ports, which are open to everyone there.
            let proxies: Vec<Named> = packages.into_iter().filter(|one| !matches!(one.port, 80 | 443)).collect();
            first.remotes("package_proxy", Some("proxy_port"), &proxies, "on a port of its own in apt", files, tcp);
        }
        _ => first.remotes("mirrors", Some("packages"), &packages, "in apt's sources", files, tcp),
    }
    match profile {
        Profile::Web => first.web(running),
        Profile::Gitlab => first.gitlab(files),
        Profile::Ci => {
            first.remotes(
                "forge",
                Some("forge_web"),
                &files.runner_urls(),
                "in gitlab-runner's config.toml",
                files,
                tcp,
            );
        }
        Profile::Workstation => {}
    }
    first.nobody_knows();
    first.listening(running);
    first
}

fn tcp(port: u16) -> String {
    service_text(6 << 16 | u32::from(port))
}

impl First {
    fn way_in(&mut self, running: &Running) {
        let source = "the session that asked for this";
        let found = |address: &IpAddr| Found { address: *address, source: source.to_owned(), will_rot: false };
        let remotes: BTreeSet<IpAddr> = running.session.iter().map(|(address, ..)| *address).collect();
        let mut ports: BTreeSet<String> =
            running.session.iter().filter(|(_, protocol, _)| *protocol == 6).map(|(.., port)| tcp(*port)).collect();
        if running.session.iter().any(|(_, protocol, _)| *protocol == 17) {
            // mosh(1): it begins with ssh, and its server takes the first port of these that is free.
            ports.extend(["ssh".to_owned(), "udp/60000-61000".to_owned()]);
        }
        if remotes.is_empty() {
            self.nothing("admins", "your own way in: no remote session carries this terminal; who logs in from where?");
        } else {
            self.filled.insert("admins".to_owned(), Filled::Addresses(remotes.iter().map(found).collect()));
            let source = format!("{source}; add a second way in");
            self.filled.insert("admin_ssh".to_owned(), Filled::Services(ports.into_iter().collect(), source));
        }
    }

    fn nothing(&mut self, name: &str, why: &str) {
        self.filled.insert(name.to_owned(), Filled::Nothing(why.to_owned()));
        self.not_found.push(format!("{name}: {why}"));
    }

    /// A group with the addresses of all that are named, and a service with their ports.
    fn remotes(
        &mut self,
        group: &str,
        service: Option<&str>,
        named: &[Named],
        place: &str,
        files: &Files<'_>,
        text: impl Fn(u16) -> String,
    ) {
        let mut all: Vec<Found> = Vec::new();
        let mut ports = BTreeMap::new();
        let mut unknown = BTreeSet::new();
        for one in named {
            let found = files.addresses(one);
            if found.is_empty() {
                if unknown.insert(one.host.clone()) {
                    self.not_found.push(format!("{group}: an address of {} ({})", one.host, one.source));
                }
                continue;
            }
            ports.entry(one.port).or_insert_with(|| one.source.clone());
            for found in found {
                if !all.iter().any(|known| known.address == found.address) {
                    all.push(found);
                }
            }
        }
        if all.is_empty() {
            let why =
                if named.is_empty() { format!("none {place}") } else { "none of the names has an address".to_owned() };
            return self.nothing(group, &why);
        }
        self.filled.insert(group.to_owned(), Filled::Addresses(all));
        if let Some(service) = service {
            let sources: BTreeSet<String> = ports.values().cloned().collect();
            let source = sources.into_iter().collect::<Vec<_>>().join(", ");
            let ports = ports.into_keys().map(text).collect();
            self.filled.insert(service.to_owned(), Filled::Services(ports, source));
        }
    }

    fn web(&mut self, running: &Running) {
        let listening: BTreeSet<u32> = running.listening.iter().flatten().map(Listening::word).collect();
        let ports: Vec<String> = [80, 443]
            .into_iter()
            .filter(|port| listening.contains(&(6 << 16 | port)))
            .map(|port| tcp(port as u16))
            .collect();
        if !ports.is_empty() {
            self.filled
                .insert("web".to_owned(), Filled::Services(ports, "what listens here; public: decide".to_owned()));
        }
    }

    fn gitlab(&mut self, files: &Files<'_>) {
        const FILE: &str = "/etc/gitlab/gitlab.rb";
        let gitlab = files.gitlab();
        if !gitlab.read {
            self.not_found.push(format!("{FILE}: GitLab's own ports are taken as its defaults"));
        }
        self.filled
            .insert("users".to_owned(), Filled::Everyone("public: decide who may ask (web, Git over SSH)".to_owned()));
        if let Some(external) = gitlab.external {
            // Port 80 redirects.
            let ports = if external.port == 443 { BTreeSet::from([80, 443]) } else { BTreeSet::from([external.port]) };
            let ports = ports.into_iter().map(tcp).collect();
            self.filled.insert("web".to_owned(), Filled::Services(ports, external.source));
        }
        if let Some((port, source)) = gitlab.ssh {
            self.filled.insert("git_ssh".to_owned(), Filled::Services(vec![tcp(port)], source));
        }
        match gitlab.registry {
            Some(registry) => {
                self.filled.insert("registry".to_owned(), Filled::Services(vec![tcp(registry.port)], registry.source));
            }
            None => self.nothing("registry", &format!("no registry_external_url in {FILE}")),
        }
        let smtp: Vec<Named> = gitlab.smtp.into_iter().collect();
        self.remotes("mail_relay", Some("submission"), &smtp, "in gitlab.rb (smtp_address)", files, tcp);
        self.remotes("directory", Some("logins"), &gitlab.ldap, "in gitlab.rb (ldap_servers)", files, tcp);
        self.remotes("object_storage", Some("storage"), &gitlab.storage, "in gitlab.rb (endpoint)", files, tcp);
    }

    /// Groups of the shipped policy that no file of a host tells.
    fn nobody_knows(&mut self) {
        for (name, comment) in shipped::groups(self.profile.shipped().1) {
            if !self.filled.contains_key(&name) {
                self.nothing(&name, if comment.is_empty() { "no file of this host tells it" } else { &comment });
            }
        }
    }

    fn listening(&mut self, running: &Running) {
        let Some(listening) = &running.listening else {
            self.not_found.push("listening services: an image has none".to_owned());
            return;
        };
        let opened = shipped::opened(self.profile, &self.filled);
        let closed: BTreeSet<Listening> = listening.iter().filter(|one| !opened(one.word())).cloned().collect();
        self.closed = closed.into_iter().collect();
    }

    /// YAML that `guard check` takes.
    #[must_use]
    pub fn policy(&self, name: &str) -> String {
        shipped::fill(self.profile, name, &self.filled, &self.closed, &self.not_found)
    }
}

fn write_closed(closed: &[Listening], text: &mut String) {
    if closed.is_empty() {
        return;
    }
    text.push_str(
        "  # These listen too, and no rule lets anybody in. Who has to? Say from whom, and take the line over:\n",
    );
    for one in closed {
        let program = one.program.as_deref().unwrap_or("program unknown");
        let _ = writeln!(
            text,
            "  # - {{ from: WHOM, services: {} }}   # listens: {}",
            service_text(one.word()),
            escape_line(program)
        );
    }
}

impl Listening {
    fn word(&self) -> u32 {
        u32::from(self.protocol) << 16 | u32::from(self.port)
    }
}

/// Whether a directory is the running host.
#[must_use]
pub fn is_running_host(root: &Path) -> bool {
    root == Path::new("/")
}
