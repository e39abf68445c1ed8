//! A first policy from what the host says, in audit mode: each line with its source, and a list of what was not found.

mod facts;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
    path::Path,
};

use guard_common::Direction;
use serde::Serialize;

pub use facts::{Files, Found, GitLab, Named};

use super::suggest::service_text;
use crate::{policy::effective::quoted, text::escape_line};

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

/// One rule of the first policy.
#[derive(Clone, Debug, Serialize)]
pub struct Rule {
    pub name: String,
    #[serde(serialize_with = "as_str")]
    pub direction: Direction,
    /// Empty: everyone.
    pub remotes: Vec<Found>,
    pub services: Vec<String>,
    pub comment: String,
}

fn as_str<S: serde::Serializer>(direction: &Direction, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(direction.as_str())
}

/// The policy, and what a person still has to find out.
#[derive(Clone, Debug, Serialize)]
pub struct First {
    pub profile: Profile,
    pub rules: Vec<Rule>,
    /// Listening services that no rule opens, as lines to take over.
    pub closed: Vec<Listening>,
    pub not_found: Vec<String>,
}

const HTTP: u32 = 6 << 16 | 80;
const HTTPS: u32 = 6 << 16 | 443;

/// Puts together what is found below `root`.
#[must_use]
pub fn first(profile: Profile, files: &Files<'_>, running: &Running) -> First {
    let mut first = First { profile, rules: Vec::new(), closed: Vec::new(), not_found: Vec::new() };
    first.session(running);
    first.profile_inbound(files, running);
    first.remotes(
        "resolvers",
        &files.resolvers(),
        "resolvers (resolv.conf, systemd-resolved, dnsmasq)",
        |_| vec!["dns".to_owned()],
        files,
    );
    first.remotes(
        "time",
        &files.time_servers(),
        "time servers (chrony, timesyncd, ntpd)",
        |_| vec!["ntp".to_owned()],
        files,
    );
    first.remotes("packages", &files.package_sources(), "package sources (apt)", |port| vec![tcp(port)], files);
    first.profile_outbound(files);
    first.listening(running);
    first
}

fn tcp(port: u16) -> String {
    service_text(6 << 16 | u32::from(port))
}

impl First {
    fn session(&mut self, running: &Running) {
        if running.session.is_empty() {
            self.not_found
                .push("your own way in: no remote session carries this terminal; who logs in from where?".to_owned());
        }
        let mut by_port: BTreeMap<(u8, u16), Vec<Found>> = BTreeMap::new();
        for (address, protocol, port) in &running.session {
            let found =
                Found { address: *address, source: "the session that asked for this".to_owned(), will_rot: false };
            by_port.entry((*protocol, *port)).or_default().push(found);
        }
        for ((protocol, port), remotes) in by_port {
            let (service, comment) = match protocol {
                6 => (tcp(port), "your way in: add a second one"),
                // mosh(1): its server takes the first port of these that is free.
                _ => (
                    "udp/60000-61000".to_owned(),
                    "your way in, mosh: it begins with ssh, so list that too, and add a second way",
                ),
            };
            self.push("this session", Direction::Inbound, remotes, vec![service], comment);
        }
    }

    fn push(&mut self, name: &str, direction: Direction, remotes: Vec<Found>, services: Vec<String>, comment: &str) {
        let taken: BTreeSet<&str> = self.rules.iter().map(|rule| rule.name.as_str()).collect();
        let mut unique = name.to_owned();
        let mut number = 2;
        while taken.contains(unique.as_str()) {
            unique = format!("{name} {number}");
            number += 1;
        }
        self.rules.push(Rule { name: unique, direction, remotes, services, comment: comment.to_owned() });
    }

    /// One outbound rule for each port, of all that are named.
    fn remotes(
        &mut self,
        name: &str,
        named: &[Named],
        what: &str,
        services: impl Fn(u16) -> Vec<String>,
        files: &Files<'_>,
    ) {
        if named.is_empty() {
            self.not_found.push(what.to_owned());
        }
        let mut by_port: BTreeMap<u16, Vec<Found>> = BTreeMap::new();
        let mut unknown = BTreeSet::new();
        for one in named {
            let found = files.addresses(one);
            if found.is_empty() && unknown.insert(one.host.clone()) {
                self.not_found.push(format!("an address of {} ({})", one.host, one.source));
            }
            let list = by_port.entry(one.port).or_default();
            for found in found {
                if !list.iter().any(|known| known.address == found.address) {
                    list.push(found);
                }
            }
        }
        for (port, remotes) in by_port {
            if !remotes.is_empty() {
                self.push(name, Direction::Outbound, remotes, services(port), "");
            }
        }
    }

    fn profile_inbound(&mut self, files: &Files<'_>, running: &Running) {
        let open = "public: decide who may ask";
        match self.profile {
            Profile::Web => {
                let listening: Vec<u32> = running.listening.iter().flatten().map(Listening::word).collect();
                let found: Vec<u32> = [HTTP, HTTPS].into_iter().filter(|word| listening.contains(word)).collect();
                let ports = if found.is_empty() { vec![HTTP, HTTPS] } else { found };
                self.push("web", Direction::Inbound, Vec::new(), ports.into_iter().map(service_text).collect(), open);
            }
            Profile::Gitlab => {
                let gitlab = files.gitlab();
                if !gitlab.read {
                    self.not_found
                        .push("/etc/gitlab/gitlab.rb: GitLab's own ports are taken as its defaults".to_owned());
                }
                let mut ports: BTreeSet<u16> = gitlab.external.iter().map(|named| named.port).collect();
                if ports.is_empty() || ports.contains(&443) {
                    // Port 80 redirects.
                    ports.extend([80, 443]);
                }
                ports.extend(gitlab.registry.iter().map(|named| named.port));
                let place = gitlab.external.map_or_else(|| "GitLab's defaults".to_owned(), |named| named.source);
                let services = ports.into_iter().map(tcp).collect();
                self.push("gitlab web", Direction::Inbound, Vec::new(), services, &format!("{open}; {place}"));
                self.push("git over ssh", Direction::Inbound, Vec::new(), vec![tcp(gitlab.ssh.unwrap_or(22))], open);
            }
            Profile::Ci | Profile::Workstation => {}
        }
    }

    fn profile_outbound(&mut self, files: &Files<'_>) {
        match self.profile {
            Profile::Gitlab => {
                let gitlab = files.gitlab();
                if let Some(smtp) = gitlab.smtp {
                    self.remotes("mail", &[smtp], "", |port| vec![tcp(port)], files);
                }
                if !gitlab.ldap.is_empty() {
                    self.remotes("directory", &gitlab.ldap, "", |port| vec![tcp(port)], files);
                }
                if !gitlab.storage.is_empty() {
                    self.remotes("object storage", &gitlab.storage, "", |port| vec![tcp(port)], files);
                }
            }
            Profile::Ci => {
                let what = "the forge whose jobs run here (gitlab-runner's config.toml)";
                self.remotes("forge", &files.runner_urls(), what, |port| vec![tcp(port)], files);
            }
            Profile::Workstation => {
                let services = vec!["http".to_owned(), "https".to_owned()];
                self.push(
                    "the web",
                    Direction::Outbound,
                    Vec::new(),
                    services,
                    "everyone: an egress proxy is narrower",
                );
            }
            Profile::Web => {}
        }
    }

    fn listening(&mut self, running: &Running) {
        let Some(listening) = &running.listening else {
            self.not_found.push("listening services: an image has none".to_owned());
            return;
        };
        let opened: BTreeSet<&String> = self
            .rules
            .iter()
            .filter(|rule| rule.direction == Direction::Inbound)
            .flat_map(|rule| &rule.services)
            .collect();
        let closed: BTreeSet<Listening> =
            listening.iter().filter(|one| !opened.contains(&service_text(one.word()))).cloned().collect();
        self.closed = closed.into_iter().collect();
    }

    /// YAML that `guard check` takes.
    #[must_use]
    pub fn policy(&self, name: &str) -> String {
        let mut text = String::new();
        let profile = serde_json::to_value(self.profile)
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "# A first policy, put together by guard init (profile {profile}) from what this host says."
        );
        let _ = writeln!(
            text,
            "# It only records. Watch (guard run policy.yaml), correct it, and then set mode to enforce."
        );
        if !self.not_found.is_empty() {
            text.push_str("#\n# Not found; a person has to know:\n");
            for line in &self.not_found {
                let _ = writeln!(text, "#   {}", escape_line(line));
            }
        }
        let _ = writeln!(text, "version: 1\nname: {}\nmode: audit", quoted(name));
        for (direction, key) in [(Direction::Inbound, "from"), (Direction::Outbound, "to")] {
            let _ = write!(text, "\n{}:", direction.as_str());
            let rules: Vec<&Rule> = self.rules.iter().filter(|rule| rule.direction == direction).collect();
            let metadata = direction == Direction::Outbound;
            text.push_str(if rules.is_empty() && !metadata { " []\n" } else { "\n" });
            for rule in rules {
                if !rule.comment.is_empty() {
                    let _ = writeln!(text, "  # {}", escape_line(&rule.comment));
                }
                if rule.remotes.iter().any(|found| found.will_rot) {
                    text.push_str(
                        "  # will rot: a name's addresses change; a list file that you keep up to date does not\n",
                    );
                }
                let _ = writeln!(text, "  - name: {}", quoted(&rule.name));
                if rule.remotes.is_empty() {
                    let _ = writeln!(text, "    {key}: any");
                } else {
                    let _ = writeln!(text, "    {key}:");
                    for found in &rule.remotes {
                        let _ = writeln!(text, "      - {}   # {}", address(found.address), escape_line(&found.source));
                    }
                }
                let _ = writeln!(text, "    services: [{}]", rule.services.join(", "));
            }
            if metadata {
                text.push_str(
                    "  # Nobody but root's own agents has business with a cloud's metadata; a deny wins over every allow.\n  \
                     - name: \"no cloud metadata\"\n    action: deny\n    to: [169.254.169.254, \"fd00:ec2::254\"]\n    \
                     services: any\n",
                );
            } else {
                self.write_closed(&mut text);
            }
        }
        text
    }

    fn write_closed(&self, text: &mut String) {
        if self.closed.is_empty() {
            return;
        }
        text.push_str(
            "  # These listen too, and no rule lets anybody in. Who has to? Say from whom, and take the line over:\n",
        );
        for one in &self.closed {
            let program = one.program.as_deref().unwrap_or("program unknown");
            let _ = writeln!(
                text,
                "  # - {{ from: WHOM, services: {} }}   # listens: {}",
                service_text(one.word()),
                escape_line(program)
            );
        }
    }
}

impl Listening {
    fn word(&self) -> u32 {
        u32::from(self.protocol) << 16 | u32::from(self.port)
    }
}

fn address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"{address}\""),
    }
}

/// Whether a directory is the running host.
#[must_use]
pub fn is_running_host(root: &Path) -> bool {
    root == Path::new("/")
}
