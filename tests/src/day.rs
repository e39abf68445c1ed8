//! A host's days in a record store: three weeks of what it always does, and one day of 50,000 flows in which twelve things
//! are hidden. The same every time.

use std::{net::IpAddr, path::Path, sync::Arc};

use anyhow::Result;
use guard::{
    record::{
        flow::Key,
        who::{ExeKind, FoundBy, Parent, Unusual, Who},
    },
    review::{
        group::Remote,
        observed::{Fate, Observed},
    },
    store::{Begun, Change, FILE, Limits, Listener, Losses, Writer},
};
use guard_common::Direction;

use crate::random::Random;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// 2026-01-26 00:00Z, when the day begins.
pub const DAY_BEGINS: i64 = 1_769_385_600 * SECOND;
/// When it is over.
pub const NOW: i64 = DAY_BEGINS + DAY;
/// When guard began to record.
pub const BEGAN: i64 = DAY_BEGINS - 21 * DAY;

/// What of the planted a report's line must hold, each named.
pub const PLANTED: [(&str, &str); 12] = [
    ("a deleted program that calls home", "203.0.113.9"),
    ("a program that never was a file", "198.51.100.99"),
    ("a scan for file shares, from /tmp", "tcp/445"),
    ("a shell on a socket", "tcp/9002 to 203.0.113.77"),
    ("a chat server", "192.0.2.66"),
    ("a resolver that nobody lists", "203.0.113.53"),
    ("the cloud's metadata", "169.254.169.254"),
    ("an upload to a new place", "drop.example"),
    ("ssh to a host next door", "10.2.3.4"),
    ("a service that answers", "tcp/9001"),
    ("a port that only listens", "tcp/31337"),
    ("a known host that tries the database", "10.1.2.3"),
];

/// Flows of one kind, as they come.
#[derive(Clone, Debug)]
pub struct Talk {
    pub direction: Direction,
    pub protocol: u8,
    pub port: u16,
    pub remote: IpAddr,
    pub group: Remote,
    pub fate: Fate,
    pub rule: Option<&'static str>,
    pub who: Option<Arc<Who>>,
    pub names: Vec<Arc<str>>,
    pub bytes: [u64; 2],
    pub listening: Option<bool>,
}

impl Talk {
    #[must_use]
    pub fn out(protocol: u8, remote: &str, port: u16, who: &Arc<Who>) -> Self {
        let remote: IpAddr = remote.parse().expect("an address");
        Self {
            direction: Direction::Outbound,
            protocol,
            port,
            remote,
            group: Remote::network_of(remote),
            fate: Fate::Allowed,
            rule: None,
            who: Some(Arc::clone(who)),
            names: Vec::new(),
            bytes: [4000, 900],
            listening: None,
        }
    }

    #[must_use]
    pub fn inbound(protocol: u8, remote: &str, port: u16, who: Option<&Arc<Who>>) -> Self {
        let remote: IpAddr = remote.parse().expect("an address");
        Self {
            direction: Direction::Inbound,
            who: who.cloned(),
            listening: Some(who.is_some()),
            bytes: [600, 9000],
            remote,
            group: Remote::network_of(remote),
            ..Self::out(protocol, "192.0.2.1", port, &Arc::default())
        }
    }

    #[must_use]
    pub fn denied(mut self) -> Self {
        self.fate = Fate::Denied;
        self.bytes = match self.direction {
            Direction::Inbound => [60, 0],
            Direction::Outbound => [0, 60],
        };
        self
    }

    #[must_use]
    pub fn by(mut self, rule: &'static str, group: &str) -> Self {
        self.rule = Some(rule);
        self.group = Remote::Group(group.into());
        self
    }

    #[must_use]
    pub fn named(mut self, name: &str, zone: &str) -> Self {
        self.names = vec![name.into()];
        self.group = Remote::Zone(zone.into());
        self
    }

    #[must_use]
    pub fn to(mut self, remote: IpAddr) -> Self {
        self.remote = remote;
        if matches!(self.group, Remote::Network(_)) {
            self.group = Remote::network_of(remote);
        }
        self
    }

    /// As one flow.
    #[must_use]
    pub fn at(&self, id: u64, first: i64) -> Observed {
        let ephemeral = 32768 + (id % 28_000) as u16;
        let local: IpAddr =
            if self.remote.is_ipv4() { [192, 0, 2, 10].into() } else { "2001:db8::10".parse().expect("an address") };
        let (remote_port, local_port) = match self.direction {
            Direction::Outbound => (self.port, ephemeral),
            Direction::Inbound => (ephemeral, self.port),
        };
        let denied = matches!(self.fate, Fate::Denied | Fate::WouldDeny);
        let reason = match (denied, self.rule) {
            (true, None) => "not_listed",
            (true, Some(_)) => "rule_deny",
            (false, Some(_)) => "rule_allow",
            (false, None) => "tracking",
        };
        Observed {
            flow_id: id,
            host: "db1".into(),
            machine: "0123456789abcdef0123456789abcdef".into(),
            first,
            last: first + if denied { 0 } else { SECOND },
            direction: self.direction,
            key: Key::new(self.protocol, self.remote, remote_port, local, local_port, 0).expect("one family"),
            interface: Some("eth0".into()),
            fate: self.fate,
            rule: self.rule.map(Arc::from),
            reason: reason.into(),
            generation: 7,
            packets: [u64::from(self.bytes[0] > 0) * 4, u64::from(self.bytes[1] > 0) * 4],
            bytes: self.bytes,
            answered: !denied,
            adopted: false,
            listening: self.listening,
            who: self.who.clone(),
            names: self.names.clone(),
            remote_group: self.group.clone(),
            head: if denied { b"\x45\0\0\x3cGET / HTTP/1.1".to_vec() } else { Vec::new() },
        }
    }
}

/// A program with a parent.
#[must_use]
pub fn program(exe: &str, pid: u32, user: &str, parent: &str) -> Who {
    Who {
        found_by: FoundBy::Socket,
        pid,
        started: u64::from(pid) * 1_000_000,
        comm: exe.rsplit('/').next().unwrap_or(exe).chars().take(15).collect(),
        exe: Some(exe.to_owned()),
        args: vec![exe.to_owned()],
        uid: Some(u32::from(user != "root")),
        user: Some(user.to_owned()),
        parents: vec![Parent { pid: pid / 2, exe: parent.to_owned() }],
        ..Who::default()
    }
}

/// Hands changes to a writer in transactions of many.
pub struct Days {
    writer: Writer,
    batch: Vec<Change>,
    id: u64,
    now: i64,
}

impl Days {
    pub fn begin(directory: &Path, began: i64) -> Result<Self> {
        let begun = Begun {
            host: "db1".to_owned(),
            machine: "0123456789abcdef0123456789abcdef".to_owned(),
            boot: "b".to_owned(),
            at: began,
        };
        let limits = Limits { bytes: 8 << 30, age: i64::MAX / 4, ..Limits::default() };
        let writer = Writer::open(&directory.join(FILE), limits, &begun)?;
        Ok(Self { writer, batch: Vec::new(), id: 0, now: began })
    }

    pub fn put(&mut self, talk: &Talk, at: i64) -> Result<()> {
        self.id += 1;
        self.put_flow(talk.at(self.id, at))
    }

    pub fn put_flow(&mut self, flow: Observed) -> Result<()> {
        self.now = self.now.max(flow.last);
        self.batch.push(Change { flow, ended: true });
        if self.batch.len() >= 4096 {
            self.flush()?;
        }
        Ok(())
    }

    pub fn listening(&mut self, listeners: &[Listener], at: i64) -> Result<()> {
        Ok(self.writer.listening(listeners, at)?)
    }

    /// Writes what waits.
    pub fn flush(&mut self) -> Result<()> {
        self.writer.apply(&self.batch, self.now)?;
        self.batch.clear();
        Ok(())
    }

    pub fn end(mut self, at: i64) -> Result<()> {
        self.flush()?;
        Ok(self.writer.beat(&Losses::default(), at)?)
    }
}

fn usual() -> Vec<(Talk, u32)> {
    let shared = |exe: &str, pid, user: &str, parent: &str| Arc::new(program(exe, pid, user, parent));
    let nginx = shared("/usr/sbin/nginx", 800, "www-data", "/usr/lib/systemd/systemd");
    let postgres = shared("/usr/lib/postgresql/15/bin/postgres", 700, "postgres", "/usr/lib/systemd/systemd");
    let sshd = shared("/usr/sbin/sshd", 600, "root", "/usr/lib/systemd/systemd");
    let dnsmasq = shared("/usr/sbin/dnsmasq", 500, "dnsmasq", "/usr/lib/systemd/systemd");
    let chronyd = shared("/usr/sbin/chronyd", 400, "_chrony", "/usr/lib/systemd/systemd");
    let apt = shared("/usr/lib/apt/methods/https", 9000, "_apt", "/usr/bin/apt-get");
    let curl = shared("/usr/bin/curl", 9100, "ci", "/usr/sbin/cron");
    vec![
        (Talk::inbound(6, "198.51.100.20", 443, Some(&nginx)).by("web for everyone", "any"), 600),
        (Talk::inbound(6, "10.1.2.3", 5432, Some(&postgres)).by("database for the web hosts", "web"), 120),
        (Talk::inbound(6, "198.51.100.7", 22, Some(&sshd)).by("ssh from responders", "responders"), 4),
        (Talk::out(17, "192.0.2.53", 53, &dnsmasq).by("resolvers", "resolvers"), 250),
        (Talk::out(17, "192.0.2.123", 123, &chronyd).by("time", "time"), 20),
        (Talk::out(6, "10.1.2.3", 8080, &curl), 5),
        (Talk::out(6, "203.0.113.200", 443, &apt).named("deb.mirror.example", "mirror.example"), 3),
        (Talk::out(6, "203.0.113.210", 443, &curl).named("ci.tools.example", "tools.example"), 30),
    ]
}

fn services() -> Vec<Listener> {
    [(22, "/usr/sbin/sshd", 600), (443, "/usr/sbin/nginx", 800), (5432, "/usr/lib/postgresql/15/bin/postgres", 700)]
        .map(|(port, program, pid)| Listener {
            protocol: 6,
            port,
            address: [0, 0, 0, 0].into(),
            program: program.to_owned(),
            pid,
        })
        .to_vec()
}

/// Three weeks, and the day. `planted`: with the twelve; else only what is usual.
pub fn write(directory: &Path, planted: bool) -> Result<()> {
    let mut random = Random(7);
    let mut days = Days::begin(directory, BEGAN)?;
    let usual = usual();
    for day in 0..21 {
        let begins = BEGAN + day * DAY;
        days.listening(&services(), begins + 60 * SECOND)?;
        for (talk, weight) in &usual {
            for _ in 0..(weight / 10).max(1) {
                days.put(talk, begins + random.below(86_400) as i64 * SECOND)?;
            }
        }
    }
    days.listening(&services(), DAY_BEGINS + 60 * SECOND)?;
    // The day, in the order of time.
    let weights: u32 = usual.iter().map(|(_, weight)| weight).sum();
    let mut flows: Vec<(i64, Talk)> = Vec::new();
    while flows.len() < 38_000 {
        let mut at = random.below(u64::from(weights)) as u32;
        let Some((talk, _)) = usual.iter().find(|(_, weight)| {
            let found = at < *weight;
            at = at.saturating_sub(*weight);
            found
        }) else {
            continue;
        };
        let mut talk = talk.clone();
        if talk.rule == Some("web for everyone") {
            let [_, b, c, d] = (random.next() as u32).to_be_bytes();
            talk = talk.to([198, 18 | (b & 1), c, d].into());
        }
        flows.push((DAY_BEGINS + random.below(86_400) as i64 * SECOND, talk));
    }
    for _ in 0..11_000 {
        let [_, b, c, d] = (random.next() as u32).to_be_bytes();
        let ports = [22, 23, 80, 445, 1433, 3306, 3389, 5900, 6379, 8080, 8443, 9200];
        let port = ports[random.below(ports.len() as u64) as usize];
        let scan = Talk::inbound(6, "203.0.113.1", port, None).denied().to([198, 51 + (b & 1), c, d].into());
        let scan = Talk { listening: Some(port == 22), ..scan };
        flows.push((DAY_BEGINS + random.below(86_400) as i64 * SECOND, scan));
    }
    // New, and harmless: a mirror moved.
    let apt = Arc::new(program("/usr/lib/apt/methods/https", 9001, "_apt", "/usr/bin/apt-get"));
    for hour in [6, 18] {
        let mut talk = Talk::out(6, "203.0.113.201", 443, &apt).named("deb.newmirror.example", "newmirror.example");
        // An address that several have.
        talk.names.push("cdn.newmirror.example".into());
        flows.push((DAY_BEGINS + hour * 3600 * SECOND, talk));
    }
    if planted {
        plant(&mut flows);
        let listener = Listener {
            protocol: 6,
            port: 31337,
            address: [0, 0, 0, 0].into(),
            program: "/opt/tool/agentd".into(),
            pid: 4555,
        };
        let mut all = services();
        all.push(listener);
        days.listening(&all, DAY_BEGINS + 11 * 3600 * SECOND)?;
    }
    flows.sort_by_key(|(at, _)| *at);
    for (at, talk) in flows {
        days.put(&talk, at)?;
    }
    days.end(NOW)
}

/// In the order of [`PLANTED`], but for the port that only listens.
fn plant(flows: &mut Vec<(i64, Talk)>) {
    let at = |hour: i64, second: i64| DAY_BEGINS + hour * 3600 * SECOND + second * SECOND;
    let unusual = |who: Who, kind: ExeKind, unusual: &[Unusual]| {
        Arc::new(Who { exe_kind: kind, unusual: unusual.to_vec(), ..who })
    };
    let shm = unusual(
        program("/dev/shm/.x", 4410, "root", "/usr/bin/bash"),
        ExeKind::Deleted,
        &[Unusual::DeletedExe, Unusual::WorldWritablePlace],
    );
    for beat in 0..9 {
        flows.push((at(3, 840 + beat * 300 + beat % 3), Talk::out(6, "203.0.113.9", 4444, &shm).denied()));
    }
    let memory = unusual(program("memfd:a", 4420, "git", "/usr/bin/ruby"), ExeKind::Memfd, &[Unusual::Memfd]);
    let upload = Talk { bytes: [9000, 18_000_000], ..Talk::out(6, "198.51.100.99", 443, &memory) };
    flows.push((at(4, 0), upload));
    let scanner =
        unusual(program("/tmp/s", 4430, "git", "/usr/bin/bash"), ExeKind::File, &[Unusual::WorldWritablePlace]);
    for number in 0..300u16 {
        let remote = IpAddr::from([10, 9, number as u8, 5 + (number >> 8) as u8]);
        flows.push((at(5, i64::from(number)), Talk::out(6, "10.9.0.1", 445, &scanner).denied().to(remote)));
    }
    let shell = unusual(
        program("/usr/bin/bash", 4440, "www-data", "/usr/sbin/php-fpm8.2"),
        ExeKind::File,
        &[Unusual::SocketOnStandardStreams],
    );
    flows.push((at(5, 1800), Talk::out(6, "203.0.113.77", 9002, &shell)));
    let nc = Arc::new(program("/usr/bin/nc.openbsd", 4450, "git", "/usr/bin/dash"));
    flows.push((at(6, 0), Talk::out(6, "192.0.2.66", 6667, &nc).denied()));
    let python = Arc::new(program("/usr/bin/python3.11", 4460, "git", "/usr/bin/dash"));
    for number in 0..400 {
        flows.push((at(7, number * 2), Talk::out(17, "203.0.113.53", 53, &python).denied()));
    }
    let php = Arc::new(program("/usr/sbin/php-fpm8.2", 4470, "www-data", "/usr/lib/systemd/systemd"));
    flows.push((at(8, 0), Talk::out(6, "169.254.169.254", 80, &php).denied()));
    let curl = Arc::new(program("/usr/bin/curl", 4480, "www-data", "/usr/bin/dash"));
    let upload = Talk {
        bytes: [900, 4_000_000],
        ..Talk::out(6, "203.0.113.88", 443, &curl).named("up.drop.example", "drop.example")
    };
    flows.push((at(9, 0), upload));
    let ssh = Arc::new(program("/usr/bin/ssh", 4490, "git", "/usr/bin/bash"));
    flows.push((at(10, 0), Talk::out(6, "10.2.3.4", 22, &ssh)));
    let perl = Arc::new(program("/usr/bin/perl", 4502, "git", "/usr/bin/dash"));
    for second in 0..3 {
        flows.push((at(10, 1800 + second * 60), Talk::inbound(6, "198.51.100.77", 9001, Some(&perl))));
    }
    for second in 0..5 {
        let tries = Talk { listening: Some(false), ..Talk::inbound(6, "10.1.2.3", 3306, None).denied() };
        flows.push((at(12, second), tries));
    }
}
