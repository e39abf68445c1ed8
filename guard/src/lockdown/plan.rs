//! What a lockdown will do, on one screen, before it does anything.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Write as _},
    net::IpAddr,
};

use serde::Serialize;

use super::{
    base::Allow,
    harm::Harm,
    mark::Open,
    offers::Offer,
    packages::{Intact, Owner},
    way_in::{Other, WayIn},
};
use crate::{
    daemon::impact::{Cut, Impact},
    host::{
        direct::Direct,
        identity::{Identities, is_interpreter},
    },
    record::{
        clock::{Clock, for_people},
        who::{ExeKind, Unusual},
    },
    text::escape_line,
};

/// All of it. Field names are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub host: String,
    pub way_in: WayIn,
    /// Users of the sessions in `way_in`, by number.
    #[serde(skip)]
    pub users: HashMap<u32, String>,
    #[serde(skip)]
    pub clock: Clock,
    /// Sessions from the way in's own place that are to be cut: their processes.
    pub cut_sessions: Vec<u32>,
    pub allow_from: Vec<Allow>,
    pub allow_to: Vec<Allow>,
    /// What goes on without a rule that would let others in (`--this-session-only`); else empty.
    pub sessions: Vec<Open>,
    /// Addresses of the list file of responders; `None`: there is none.
    pub responders: Option<usize>,
    /// Only the console is left.
    pub console: bool,
    pub single_way_in: bool,
    pub offered: Vec<Offer>,
    pub kept: Vec<Offer>,
    /// Resolvers that stay open.
    pub dns: Vec<IpAddr>,
    pub serve: Vec<String>,
    pub interfaces: Vec<String>,
    pub impact: Impact,
    pub worth_a_look: Vec<Suspect>,
    /// Sockets that go round the wire layer now.
    pub round: Vec<GoesRound>,
    pub careful: Vec<Harm>,
    /// What passes, a line a rule.
    pub passes: Vec<String>,
    /// As `check --effective` prints it.
    pub policy: String,
    pub policy_sha256: String,
}

/// A socket that goes round the wire layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GoesRound {
    /// `AF_XDP socket of xdp-tool 4410`.
    pub socket: String,
    pub pids: Vec<u32>,
    /// Its processes are ended: it cannot be told anything. Else it is told to use the qdisc.
    pub ends_process: bool,
}

impl From<&Direct> for GoesRound {
    fn from(socket: &Direct) -> Self {
        Self {
            socket: socket.spoken(),
            pids: socket.holders.iter().map(|holder| holder.pid).collect(),
            ends_process: socket.xdp,
        }
    }
}

/// A flow that would be cut, of a process that looks wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suspect {
    pub flow: String,
    pub pid: u32,
    pub exe: String,
    pub exe_kind: ExeKind,
    pub user: Option<String>,
    /// When the process started: boot-time nanoseconds.
    pub started_ns: u64,
    pub unusual: Vec<Unusual>,
}

/// Of the flows that would be cut, those that deserve a look.
#[must_use]
pub fn suspects(cuts: &[Cut], identities: &mut Identities) -> Vec<Suspect> {
    let mut known: HashMap<u32, Option<Suspect>> = HashMap::new();
    let mut found = Vec::new();
    for cut in cuts.iter().filter(|cut| !cut.session) {
        let Some(pid) = cut.pid else { continue };
        let suspect = known.entry(pid).or_insert_with(|| suspect(pid, identities)).clone();
        found.extend(suspect.map(|suspect| Suspect { flow: cut.flow.clone(), ..suspect }));
    }
    found
}

fn suspect(pid: u32, identities: &mut Identities) -> Option<Suspect> {
    let who = identities.read(pid)?;
    let exe = who.exe.clone().unwrap_or_else(|| who.comm.clone());
    let mut unusual = who.unusual.clone();
    let interpreter = is_interpreter(&exe);
    if interpreter && !identities.standard_sockets(pid).is_empty() {
        unusual.push(Unusual::SocketOnStandardStreams);
    }
    // A shell or interpreter that talks to the network outside of any service.
    let loose = interpreter && who.unit.as_deref().is_none_or(|unit| !unit.ends_with(".service"));
    (!unusual.is_empty() || loose).then(|| Suspect {
        flow: String::new(),
        pid,
        exe,
        exe_kind: who.exe_kind,
        user: who.user.or_else(|| who.uid.map(|uid| uid.to_string())),
        started_ns: who.started,
        unusual,
    })
}

/// Lines of flows on the screen; all are in `--json`.
const MOST: usize = 12;

impl Plan {
    /// For people.
    #[must_use]
    pub fn render(&self, suffix: &str) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, suffix);
        crate::text::escape(&text)
    }

    fn write(&self, text: &mut String, suffix: &str) -> fmt::Result {
        writeln!(text, "LOCK DOWN {}?", escape_line(&self.host))?;
        self.write_way_in(text)?;
        self.write_offers(text)?;
        let mut label = "Policy";
        for line in &self.passes {
            writeln!(text, "{label:<10}{line}")?;
            label = "";
        }
        self.write_closed(text)?;
        self.write_cut(text, suffix)?;
        for round in &self.round {
            let fate = match round.ends_process {
                true => "ITS PROCESS IS ENDED at once; no rollback brings it back",
                false => "told to use the qdisc, where guard sees it",
            };
            writeln!(text, "{:<10}goes round: {} -> {fate}", "", escape_line(&round.socket))?;
        }
        let mut label = "Careful";
        for harm in &self.careful {
            let mark = if harm.grave { "! " } else { "" };
            writeln!(text, "{label:<10}{mark}{}", harm.what)?;
            if !harm.fix.is_empty() {
                writeln!(text, "{:<10}  -> {}", "", harm.fix)?;
            }
            label = "";
        }
        writeln!(text, "{:<10}undo stolen keys, or bring back data already sent", "Cannot")
    }

    fn write_way_in(&self, text: &mut String) -> fmt::Result {
        let mut label = "Way in";
        for way in &self.way_in.ways {
            let what = match (way.inbound, way.found) {
                (true, "tunnel") => "carries your session".to_owned(),
                (true, found) => {
                    format!("your {} {}, found through {}", escape_line(&way.program), way.pid, spoken(found))
                }
                (false, _) => format!("{} {} carries your session", escape_line(&way.program), way.pid),
            };
            let direction = if way.inbound { "" } else { "to " };
            let range = if self.sessions.is_empty() { shown(&way.range) } else { way.remote.ip().to_string() };
            writeln!(text, "{label:<10}{direction}{range} {} ({what})", way.service)?;
            label = "";
            if self.sessions.is_empty() && shown(&way.range) != way.remote.ip().to_string() {
                writeln!(
                    text,
                    "{:<10}  you come from {}: the whole /64 may come in (--exact: only it)",
                    "",
                    way.remote.ip()
                )?;
            }
        }
        if !self.sessions.is_empty() {
            writeln!(
                text,
                "{:<10}  THIS SESSION ONLY: nobody can log in from there any more, you neither. Before you leave, let \
                 yourself in: guard allow",
                ""
            )?;
        }
        for allow in &self.allow_from {
            let service = allow.service.as_deref().unwrap_or("the way in's service");
            writeln!(text, "{label:<10}{} {service} (--allow-from)", shown(&allow.net))?;
            label = "";
        }
        if let Some(count) = self.responders {
            writeln!(text, "{label:<10}{count} addresses of responders.txt")?;
            label = "";
        }
        if self.console {
            writeln!(text, "{label:<10}the console, nothing over the network (--console)")?;
        }
        if !self.way_in.others.is_empty() {
            let count = self.way_in.others.len();
            let sessions = if count == 1 { "1 other session" } else { &format!("{count} other sessions") };
            writeln!(text, "{:<10}{sessions} from the same place (a bastion? NAT?):", "")?;
            for other in &self.way_in.others {
                let fate = if self.cut_sessions.contains(&other.pid) { "CUT" } else { "keep" };
                writeln!(text, "{:<10}  {} -> {fate}", "", self.session(other))?;
            }
        }
        for forward in &self.way_in.forwards {
            writeln!(text, "{:<10}a port forward in your session: {forward}", "")?;
        }
        if self.single_way_in {
            let ways = if self.sessions.is_empty() { "only one way in" } else { "at most one way in besides" };
            writeln!(text, "{:<10}{ways}: add --allow-from ADDRESS, or confirm by --one-way-in", "")?;
        }
        Ok(())
    }

    /// `sshd 3300 root since 2026-11-24 02:41:10Z from 198.51.100.7:4000`.
    #[must_use]
    pub fn session(&self, other: &Other) -> String {
        let user = match other.uid {
            Some(uid) => self.users.get(&uid).cloned().unwrap_or_else(|| format!("user {uid}")),
            None => "nobody logged in".to_owned(),
        };
        let terminal = if other.terminal { "" } else { ", no terminal" };
        format!(
            "{} {} {} since {} from {}{terminal}",
            escape_line(&other.program),
            other.pid,
            escape_line(&user),
            for_people(self.clock.unix_ns(other.since_ns)),
            other.remote
        )
    }

    fn write_offers(&self, text: &mut String) -> fmt::Result {
        for (label, offers) in [("Kept", &self.kept), ("Offered", &self.offered)] {
            let mut label = label;
            for offer in offers {
                let peers: Vec<String> = offer
                    .outbound
                    .iter()
                    .map(|(service, remotes)| format!("to {} {service}", list(remotes)))
                    .chain(offer.inbound.iter().map(|(service, remotes)| format!("from {} {service}", list(remotes))))
                    .collect();
                writeln!(
                    text,
                    "{label:<10}{:<18} {}   {}",
                    escape_line(&offer.name),
                    peers.join(", "),
                    package(offer)
                )?;
                label = "";
                for other in &offer.left_out {
                    let exe = escape_line(&other.exe.display().to_string());
                    writeln!(
                        text,
                        "{label:<10}  NOT KEPT: {exe} pid {} is in its unit, and not of its package",
                        other.pid
                    )?;
                }
            }
            if label.is_empty() && offers == &self.offered {
                writeln!(text, "{:<10}  cut unless kept: --keep NAME", "")?;
            }
        }
        if !self.serve.is_empty() {
            writeln!(
                text,
                "{:<10}{} for everybody: A WEB SHELL BEHIND THESE PORTS STILL ANSWERS; sessions of now are cut",
                "Served",
                self.serve.join(", ")
            )?;
        }
        for allow in &self.allow_to {
            let service = allow.service.as_deref().unwrap_or("any service");
            writeln!(text, "{:<10}out to {} {service} (--allow-to)", "Listed", shown(&allow.net))?;
        }
        Ok(())
    }

    fn write_closed(&self, text: &mut String) -> fmt::Result {
        let mut closed: Vec<String> = Vec::new();
        if self.dns.is_empty() {
            closed.push("DNS (look-ups fail at once)".to_owned());
        }
        closed.extend(["NTP", "package mirrors", "cloud metadata"].map(str::to_owned));
        let mut clients: BTreeMap<(String, u16), usize> = BTreeMap::new();
        for cut in self.impact.would_cut.iter().filter(|cut| cut.direction == "inbound") {
            *clients.entry((cut.protocol.to_lowercase(), cut.local_port)).or_default() += 1;
        }
        for ((protocol, port), count) in clients {
            let clients = if count == 1 { "1 client".to_owned() } else { format!("{count} clients") };
            closed.push(format!("{clients} on {protocol}/{port}"));
        }
        writeln!(text, "{:<10}{}", "Closed", closed.join(" · "))?;
        if !self.dns.is_empty() {
            writeln!(
                text,
                "{:<10}DNS to {}: A POSSIBLE TUNNEL, a resolver passes questions on",
                "Open",
                list(&self.dns)
            )?;
        }
        Ok(())
    }

    fn write_cut(&self, text: &mut String, suffix: &str) -> fmt::Result {
        let cuts = &self.impact.would_cut;
        let flows = if cuts.len() == 1 { "1 flow".to_owned() } else { format!("{} flows", cuts.len()) };
        let looks = match self.worth_a_look.len() {
            0 => String::new(),
            count => format!(", {count} worth a look:"),
        };
        writeln!(text, "{:<10}{flows}{looks}", "Cut now")?;
        for suspect in self.worth_a_look.iter().take(MOST) {
            let kind = match suspect.exe_kind {
                ExeKind::Deleted => " (deleted)",
                ExeKind::Memfd => " (in memory)",
                ExeKind::File | ExeKind::Overlay => "",
            };
            writeln!(
                text,
                "{:<10}{:<32} {}{kind} pid {} {}, since {}",
                "",
                suspect.flow,
                escape_line(&suspect.exe),
                suspect.pid,
                escape_line(suspect.user.as_deref().unwrap_or("?")),
                for_people(self.clock.unix_ns(suspect.started_ns)),
            )?;
        }
        // The rest by program.
        let mut rest: BTreeMap<String, usize> = BTreeMap::new();
        for cut in cuts {
            if self.worth_a_look.iter().any(|suspect| suspect.flow == cut.flow && Some(suspect.pid) == cut.pid) {
                continue;
            }
            *rest.entry(cut.program.clone().unwrap_or_else(|| "of no process that is seen".to_owned())).or_default() +=
                1;
        }
        if !rest.is_empty() {
            let mut by: Vec<(String, usize)> = rest.into_iter().collect();
            by.sort_by_key(|(program, count)| (std::cmp::Reverse(*count), program.clone()));
            let shown: Vec<String> =
                by.iter().take(6).map(|(program, count)| format!("{} {count}", escape_line(program))).collect();
            let more = if by.len() > 6 { " …" } else { "" };
            writeln!(
                text,
                "{:<10}the rest by program: {}{more}   (guard lockdown --dry-run --json{suffix} lists all)",
                "",
                shown.join(", ")
            )?;
        }
        Ok(())
    }
}

fn spoken(found: &str) -> &'static str {
    match found {
        "multiplexer" => "its terminal multiplexer",
        "ssh_connection" => "SSH_CONNECTION, which is established",
        "mosh" => "mosh and its peers",
        "chosen" => "your answer",
        "mosh_login" => "mosh and where it was started from",
        _ => "this command's parents",
    }
}

fn shown(net: &ipnet::IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

fn list(addresses: &[IpAddr]) -> String {
    let shown: Vec<String> = addresses.iter().take(3).map(ToString::to_string).collect();
    let more = if addresses.len() > 3 { format!(" and {} more", addresses.len() - 3) } else { String::new() };
    shown.join(", ") + &more
}

fn package(offer: &Offer) -> String {
    match &offer.owner {
        Some(Owner { package, intact: Intact::Yes }) => format!("package {package} intact"),
        Some(Owner { package, intact: Intact::No }) => format!("CHANGED since package {package} brought it"),
        Some(Owner { package, intact: Intact::Unknown }) => format!("of package {package}, no checksum"),
        None => format!("{}, OF NO PACKAGE", escape_line(&offer.exe.display().to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lockdown::way_in::Way;

    fn plan() -> Plan {
        Plan {
            host: "db1".to_owned(),
            way_in: WayIn {
                ways: vec![Way {
                    inbound: true,
                    remote: "[2001:db8:17::7]:4000".parse().unwrap(),
                    local: "[2001:db8:2::1]:22".parse().unwrap(),
                    range: "2001:db8:17::/64".parse().unwrap(),
                    service: "tcp/22".to_owned(),
                    pid: 3121,
                    program: "sshd".to_owned(),
                    found: "ancestor",
                    cookie: 0,
                }],
                others: vec![Other {
                    remote: "[2001:db8:17::8]:4001".parse().unwrap(),
                    local: "[2001:db8:2::1]:22".parse().unwrap(),
                    pid: 3300,
                    program: "sshd".to_owned(),
                    uid: Some(0),
                    terminal: true,
                    since_ns: 0,
                    cookie: 0,
                }],
                ..WayIn::default()
            },
            users: HashMap::from([(0, "root".to_owned())]),
            clock: Clock::at_boot(1_767_323_045_000_000_000),
            cut_sessions: vec![3300],
            allow_from: Vec::new(),
            allow_to: Vec::new(),
            responders: None,
            console: false,
            sessions: Vec::new(),
            single_way_in: true,
            offered: Vec::new(),
            kept: Vec::new(),
            dns: Vec::new(),
            serve: vec!["tcp/443".to_owned()],
            interfaces: vec!["eth0".to_owned()],
            impact: Impact::default(),
            worth_a_look: vec![Suspect {
                flow: "out tcp 203.0.113.9:4444".to_owned(),
                pid: 4410,
                exe: "/dev/shm/\u{1b}[2J".to_owned(),
                exe_kind: ExeKind::Deleted,
                user: Some("root".to_owned()),
                started_ns: 0,
                unusual: vec![Unusual::DeletedExe],
            }],
            round: vec![GoesRound {
                socket: "AF_XDP socket of x 4411".to_owned(),
                pids: vec![4411],
                ends_process: true,
            }],
            careful: vec![Harm {
                code: "nfs",
                grave: true,
                what: "/ is on NFS".to_owned(),
                fix: "--allow-to X".to_owned(),
            }],
            passes: vec!["in  198.51.100.9  tcp/22   (--allow-from 1)".to_owned()],
            policy: String::new(),
            policy_sha256: String::new(),
        }
    }

    #[test]
    fn one_screen_says_what_stays_what_goes_and_what_it_costs() {
        let text = plan().render("");
        for part in [
            "LOCK DOWN db1?",
            "2001:db8:17::/64 tcp/22 (your sshd 3121",
            "you come from 2001:db8:17::7",
            "sshd 3300 root since 2026-01-02 03:04:05Z from [2001:db8:17::8]:4001 -> CUT",
            "only one way in",
            "Policy    in  198.51.100.9  tcp/22   (--allow-from 1)",
            "tcp/443 for everybody: A WEB SHELL",
            "DNS (look-ups fail at once)",
            "(deleted) pid 4410 root",
            "goes round: AF_XDP socket of x 4411 -> ITS PROCESS IS ENDED",
            "! / is on NFS\n            -> --allow-to X",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "nothing steers the terminal");
    }
}
