//! Agents that run here and may stay: security, logging, backup, monitoring. Found by their executable and its unit,
//! and told with the word of the package database; a process name alone is never enough.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::packages::{Intact, Owner, Packages};
use crate::host::{
    cgroup,
    picture::Picture,
    processes::Process,
    sock_diag::{SocketState, has_listener},
};

/// One agent with the peers that it talks to now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Offer {
    /// As `--keep` takes it: the unit, else the program.
    pub name: String,
    pub unit: Option<String>,
    pub exe: PathBuf,
    pub pid: u32,
    /// `security`, `logs`, `backup`, `monitoring`, `access`; `None`: not one that guard knows, but asked for by name.
    pub kind: Option<&'static str>,
    pub owner: Option<Owner>,
    /// By service, the remotes that it is connected to.
    pub outbound: BTreeMap<String, Vec<IpAddr>>,
    /// By service of this host, the remotes that are connected to it.
    pub inbound: BTreeMap<String, Vec<IpAddr>>,
    /// Processes of the unit whose program is not of the agent's package, or not as it brought it: not kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// A process that only stands in an agent's unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    pub pid: u32,
    pub exe: PathBuf,
}

/// Executables (by file name) and the units that they belong to.
struct Known {
    kind: &'static str,
    exes: &'static [&'static str],
    units: &'static [&'static str],
}

const KNOWN: &[Known] = &[
    Known { kind: "security", exes: &["falcon-sensor", "falcon-sensor-bpf"], units: &["falcon-sensor"] },
    Known { kind: "security", exes: &["sentinelone-agent", "s1-agent"], units: &["sentinelone"] },
    Known { kind: "security", exes: &["wdavdaemon"], units: &["mdatp"] },
    Known {
        kind: "security",
        exes: &["elastic-agent", "elastic-endpoint"],
        units: &["elastic-agent", "ElasticEndpoint"],
    },
    Known { kind: "security", exes: &["wazuh-agentd", "ossec-agentd"], units: &["wazuh-agent", "ossec"] },
    Known { kind: "security", exes: &["cbagentd", "cbdaemon"], units: &["cbagentd", "cbdaemon"] },
    Known { kind: "security", exes: &["pmd"], units: &["traps_pmd"] },
    Known { kind: "security", exes: &["osqueryd"], units: &["osqueryd"] },
    Known { kind: "security", exes: &["velociraptor"], units: &["velociraptor_client", "velociraptor"] },
    Known { kind: "security", exes: &["falco"], units: &["falco", "falco-modern-bpf", "falco-kmod", "falco-bpf"] },
    Known { kind: "security", exes: &["tetragon"], units: &["tetragon"] },
    Known { kind: "security", exes: &["qualys-cloud-agent"], units: &["qualys-cloud-agent"] },
    Known { kind: "security", exes: &["nessusd", "nessus-service"], units: &["nessusagent", "nessusd"] },
    Known { kind: "security", exes: &["ir_agent"], units: &["ir_agent"] },
    Known { kind: "logs", exes: &["rsyslogd"], units: &["rsyslog"] },
    Known { kind: "logs", exes: &["syslog-ng"], units: &["syslog-ng"] },
    Known { kind: "logs", exes: &["systemd-journal-upload"], units: &["systemd-journal-upload"] },
    Known { kind: "logs", exes: &["fluent-bit"], units: &["fluent-bit", "td-agent-bit"] },
    Known {
        kind: "logs",
        exes: &["filebeat", "auditbeat", "packetbeat"],
        units: &["filebeat", "auditbeat", "packetbeat"],
    },
    Known { kind: "logs", exes: &["vector"], units: &["vector"] },
    Known { kind: "logs", exes: &["promtail", "alloy"], units: &["promtail", "alloy"] },
    Known { kind: "logs", exes: &["splunkd"], units: &["SplunkForwarder", "Splunkd"] },
    Known { kind: "backup", exes: &["bareos-fd"], units: &["bareos-fd", "bareos-filedaemon"] },
    Known { kind: "backup", exes: &["bacula-fd"], units: &["bacula-fd"] },
    Known { kind: "backup", exes: &["veeamservice"], units: &["veeamservice"] },
    Known { kind: "backup", exes: &["urbackupclientbackend"], units: &["urbackupclientbackend"] },
    Known { kind: "monitoring", exes: &["zabbix_agentd", "zabbix_agent2"], units: &["zabbix-agent", "zabbix-agent2"] },
    Known {
        kind: "monitoring",
        exes: &["node_exporter", "prometheus-node-exporter"],
        units: &["node_exporter", "prometheus-node-exporter"],
    },
    Known { kind: "monitoring", exes: &["telegraf"], units: &["telegraf"] },
    Known { kind: "monitoring", exes: &["collectd"], units: &["collectd"] },
    Known { kind: "monitoring", exes: &["netdata"], units: &["netdata"] },
    Known { kind: "monitoring", exes: &["nrpe"], units: &["nagios-nrpe-server", "nrpe"] },
    Known { kind: "monitoring", exes: &["check_mk_agent", "cmk-agent-ctl"], units: &["cmk-agent-ctl-daemon"] },
    Known { kind: "monitoring", exes: &["agent", "datadog-agent"], units: &["datadog-agent"] },
    Known { kind: "monitoring", exes: &["newrelic-infra"], units: &["newrelic-infra"] },
    Known { kind: "access", exes: &["teleport"], units: &["teleport"] },
    Known { kind: "access", exes: &["tailscaled"], units: &["tailscaled"] },
    Known {
        kind: "access",
        exes: &["amazon-ssm-agent", "ssm-agent-worker"],
        units: &["amazon-ssm-agent", "snap.amazon-ssm-agent.amazon-ssm-agent"],
    },
];

/// Of `--keep UNIT`, what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    #[error("--keep {0}: no process with this unit or program runs here (systemctl status shows a process's unit)")]
    NotRunning(String),
    #[error(
        "--keep {0}: it has no connection now, so its servers are not known: name them by --allow-to ADDRESS:tcp/PORT"
    )]
    NoConnection(String),
    #[error(
        "--keep {name}: {exe} is not what its package {package} brought, so it is not kept by name; if you mean it, name \
         its servers by --allow-to"
    )]
    Changed { name: String, exe: String, package: String },
}

/// The agents that guard knows, with connections now. `processes` that share a unit are one.
#[must_use]
pub fn find(picture: &Picture, packages: &Packages) -> Vec<Offer> {
    let mut offers: BTreeMap<String, Offer> = BTreeMap::new();
    let mut owners = Owners::of(packages);
    for process in from_the_first(picture) {
        let Some(kind) = known(process) else { continue };
        add(&mut offers, picture, &mut owners, process, Some(kind));
    }
    offers.into_values().filter(|offer| !offer.outbound.is_empty() || !offer.inbound.is_empty()).collect()
}

/// What `--keep` names: one of those that were found, or any unit or program that runs.
pub fn named(name: &str, found: &[Offer], picture: &Picture, packages: &Packages) -> Result<Offer, KeepError> {
    let offer = match found.iter().find(|offer| is_named(offer, name)) {
        Some(offer) => offer.clone(),
        None => {
            let mut offers = BTreeMap::new();
            let mut owners = Owners::of(packages);
            for process in from_the_first(picture) {
                let unit = unit_of(process);
                if unit.as_deref().is_some_and(|unit| unit == name || unit.strip_suffix(".service") == Some(name)) {
                    add(&mut offers, picture, &mut owners, process, None);
                }
            }
            let Some(offer) = offers.into_values().next() else { return Err(KeepError::NotRunning(name.to_owned())) };
            offer
        }
    };
    if let Some(Owner { package, intact: Intact::No }) = &offer.owner {
        let exe = crate::text::escape_line(&offer.exe.display().to_string());
        return Err(KeepError::Changed { name: name.to_owned(), exe, package: package.clone() });
    }
    if offer.outbound.is_empty() && offer.inbound.is_empty() {
        return Err(KeepError::NoConnection(name.to_owned()));
    }
    Ok(offer)
}

fn is_named(offer: &Offer, name: &str) -> bool {
    offer.name == name
        || offer.unit.as_deref().is_some_and(|unit| unit == name || unit.strip_suffix(".service") == Some(name))
}

/// By its executable; and where systemd says of which unit it is, by that too.
fn known(process: &Process) -> Option<&'static str> {
    let program = process.program()?;
    // Deleted or in memory: whatever it calls itself.
    if process.exe.as_ref()?.to_string_lossy().ends_with(" (deleted)") {
        return None;
    }
    let known = KNOWN.iter().find(|known| known.exes.contains(&program))?;
    let unit = unit_of(process)?;
    let unit = unit.strip_suffix(".service")?;
    known.units.iter().any(|known| known.eq_ignore_ascii_case(unit)).then_some(known.kind)
}

fn unit_of(process: &Process) -> Option<String> {
    // Of the unified hierarchy; `cgroup::parse` wants the line as /proc has it.
    cgroup::parse(&format!("0::{}", process.cgroup.as_deref()?)).unit
}

/// What the service manager started comes first, in the order of its start: whose program it is, the unit's is. What was
/// put into the unit later is measured by that.
fn from_the_first(picture: &Picture) -> Vec<&Process> {
    let mut processes: Vec<&Process> = picture.processes.iter().collect();
    processes.sort_by_key(|process| (process.parent != 1, process.start, process.pid));
    processes
}

/// Looked up once for each program: the database is read as a whole.
struct Owners<'a> {
    packages: &'a Packages,
    known: HashMap<PathBuf, Option<Owner>>,
}

impl<'a> Owners<'a> {
    fn of(packages: &'a Packages) -> Self {
        Self { packages, known: HashMap::new() }
    }

    fn owner(&mut self, exe: &Path, pid: u32) -> Option<Owner> {
        let read = || self.packages.owner(exe, Path::new(&format!("/proc/{pid}/exe")));
        self.known.entry(exe.to_owned()).or_insert_with(read).clone()
    }

    /// Of the same package as the agent, and as it brought it; an agent of no package is its own program alone.
    fn belongs(&mut self, offer: &Offer, exe: &Path, pid: u32) -> bool {
        if exe == offer.exe {
            return true;
        }
        match (&offer.owner, self.owner(exe, pid)) {
            (Some(agents), Some(owner)) => agents.package == owner.package && owner.intact != Intact::No,
            _ => false,
        }
    }
}

fn add(
    offers: &mut BTreeMap<String, Offer>,
    picture: &Picture,
    owners: &mut Owners<'_>,
    process: &Process,
    kind: Option<&'static str>,
) {
    let Some(exe) = process.exe.clone() else { return };
    let unit = unit_of(process);
    let program = process.program().unwrap_or_default().to_owned();
    let name = unit.as_deref().map_or(program, |unit| unit.strip_suffix(".service").unwrap_or(unit).to_owned());
    let offer = offers.entry(name.clone()).or_insert_with(|| Offer {
        name,
        unit,
        owner: owners.owner(&exe, process.pid),
        exe: exe.clone(),
        pid: process.pid,
        kind,
        ..Offer::default()
    });
    if !owners.belongs(offer, &exe, process.pid) {
        offer.left_out.push(LeftOut { pid: process.pid, exe });
        return;
    }
    offer.pid = offer.pid.min(process.pid);
    let listeners = picture.sockets.listeners();
    for socket in &picture.sockets.all {
        let connected = socket.state == SocketState::Established && matches!(socket.protocol, 6 | 17);
        let held = process.sockets.binary_search(&picture.sockets.holder(socket)).is_ok();
        let here = socket.remote.ip().is_loopback() || picture.own.contains(&socket.remote.ip());
        if !connected || !held || here {
            continue;
        }
        let protocol = if socket.protocol == 6 { "tcp" } else { "udp" };
        let (side, port) = if has_listener(&listeners, socket.protocol, socket.local) {
            (&mut offer.inbound, socket.local.port())
        } else {
            (&mut offer.outbound, socket.remote.port())
        };
        let remotes = side.entry(format!("{protocol}/{port}")).or_default();
        if !remotes.contains(&socket.remote.ip()) {
            remotes.push(socket.remote.ip());
            remotes.sort_unstable();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::host::{
        conntrack,
        processes::Processes,
        sock_diag::{Socket, Sockets},
    };

    fn process(pid: u32, exe: &str, unit: &str, sockets: &[u32]) -> Process {
        Process {
            pid,
            comm: "rsyslogd".to_owned(),
            exe: Some(exe.into()),
            cgroup: Some(format!("/system.slice/{unit}")),
            sockets: sockets.to_vec(),
            ..Process::default()
        }
    }

    fn picture(processes: Vec<Process>) -> Picture {
        let all = vec![
            Socket::tcp("192.0.2.1:41000", "192.0.2.40:6514", 1),
            Socket::tcp("192.0.2.1:41001", "203.0.113.9:4444", 2),
            Socket::tcp("127.0.0.1:41002", "127.0.0.1:9000", 3),
        ];
        Picture {
            sockets: Sockets { all, ..Sockets::default() },
            processes: Processes::from_list(processes),
            tracked: Vec::new(),
            conntrack: conntrack::Source::Absent,
            own: HashSet::from(["192.0.2.1".parse().unwrap()]),
            unix_peers: HashMap::new(),
        }
    }

    #[test]
    fn an_agent_is_known_by_its_executable_and_its_unit() {
        let packages = Packages::default();
        let found = find(&picture(vec![process(10, "/usr/sbin/rsyslogd", "rsyslog.service", &[1, 3])]), &packages);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].kind), ("rsyslog", Some("logs")));
        assert_eq!(found[0].outbound, BTreeMap::from([("tcp/6514".to_owned(), vec!["192.0.2.40".parse().unwrap()])]));
        // Its name, its path, its unit: none alone is enough, and nothing that was deleted.
        for (exe, unit) in [
            ("/dev/shm/.x", "rsyslog.service"),
            ("/usr/sbin/rsyslogd", "session-3.scope"),
            ("/usr/sbin/rsyslogd (deleted)", "rsyslog.service"),
        ] {
            assert!(find(&picture(vec![process(10, exe, unit, &[2])]), &packages).is_empty(), "{exe} {unit}");
        }
    }

    /// Somebody's process in the agent's unit: its connections are nobody's that was meant.
    #[test]
    fn what_only_stands_in_the_unit_is_left_out() {
        let packages = Packages::default();
        let mut agent = process(20, "/usr/local/bin/shipper", "shipper.service", &[1]);
        agent.parent = 1;
        let intruder = process(10, "/dev/shm/.x", "shipper.service", &[2]);
        let offer = named("shipper", &[], &picture(vec![intruder, agent]), &packages).unwrap();
        assert_eq!(offer.exe, Path::new("/usr/local/bin/shipper"));
        assert_eq!(offer.outbound, BTreeMap::from([("tcp/6514".to_owned(), vec!["192.0.2.40".parse().unwrap()])]));
        assert_eq!(offer.left_out, [LeftOut { pid: 10, exe: "/dev/shm/.x".into() }]);
    }

    #[test]
    fn programs_of_the_agents_own_package_are_the_agent() {
        let root = tempfile::tempdir().unwrap();
        let info = root.path().join("var/lib/dpkg/info");
        std::fs::create_dir_all(&info).unwrap();
        std::fs::write(info.join("shipper.list"), "/usr/bin/shipper\n/usr/lib/shipper/worker\n").unwrap();
        std::fs::write(info.join("netcat.list"), "/usr/bin/nc\n").unwrap();
        let mut agent = process(10, "/usr/bin/shipper", "shipper.service", &[]);
        agent.parent = 1;
        let others = [
            process(11, "/usr/lib/shipper/worker", "shipper.service", &[1]),
            process(12, "/usr/bin/nc", "shipper.service", &[2]),
        ];
        let picture = picture([vec![agent], others.to_vec()].concat());
        let offer = named("shipper", &[], &picture, &Packages::below(root.path())).unwrap();
        assert_eq!(offer.outbound.keys().collect::<Vec<_>>(), ["tcp/6514"], "the worker's, and not the other's");
        assert_eq!(offer.left_out, [LeftOut { pid: 12, exe: "/usr/bin/nc".into() }]);
    }

    #[test]
    fn any_unit_can_be_named_and_what_has_no_servers_is_said() {
        let packages = Packages::default();
        let picture = picture(vec![
            process(10, "/usr/local/bin/shipper", "shipper.service", &[1]),
            process(11, "/usr/local/bin/idle", "idle.service", &[]),
        ]);
        let named = |name: &str| named(name, &[], &picture, &packages);
        assert_eq!(named("shipper").unwrap().outbound.len(), 1);
        assert_eq!(named("shipper.service").unwrap().kind, None);
        assert_eq!(named("idle"), Err(KeepError::NoConnection("idle".to_owned())));
        assert_eq!(named("gone"), Err(KeepError::NotRunning("gone".to_owned())));
    }
}
