//! From what was asked for and what this host is, to a policy and a plan. Nothing is changed.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use guard_common::{Verdict, abi::Flow};

use super::{
    base::{self, Allow, Choices},
    harm::{self, Facts},
    mark::Open,
    offers::{self, KeepError, Offer},
    packages::Packages,
    plan::{self, GoesRound, Plan},
    way_in::WayIn,
};
use crate::{
    daemon::{
        change::{self, Examined},
        round,
    },
    host::{
        direct::{self, Direct},
        identity::Identities,
        picture::{Judged, Picture},
        sock_diag::SocketState,
    },
    policy::{
        self,
        answer::answer,
        diagnostics::Diagnostics,
        effective,
        model::{FlowQuery, Mode, Policy},
        services,
    },
    record::{clock::Clock, flow::Key},
};

/// Where a site keeps the addresses of those who may come in.
pub const RESPONDERS: &str = "/etc/guard/responders.txt";

/// Sessions at the SSH port that are named, and may be chosen.
pub const MOST_CANDIDATES: usize = 10;

/// What the command line asks for.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    pub allow_from: Vec<Allow>,
    pub allow_to: Vec<Allow>,
    pub keep: Vec<String>,
    pub serve: Vec<String>,
    pub dns: bool,
    /// A whole policy in the place of the built one.
    pub policy: Option<PathBuf>,
    pub no_keep_session: bool,
    pub console: bool,
    pub exact: bool,
    /// Nobody else may come in from where the way in comes from.
    pub this_session_only: bool,
    /// `None`: [`RESPONDERS`], where it is there.
    pub responders: Option<PathBuf>,
    /// Sessions from the way in's own place that are to be cut, by process.
    pub cut: Vec<u32>,
}

/// Why a lockdown is refused before anything was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    NoWayIn(String),
    #[error(
        "your session ({session}) comes over {interface} ({kind}), and what carries {interface} cannot be seen{ports}: its \
         packets would be cut, and you with them\n  do  name its other end: --allow-from ADDRESS:udp/PORT if it dials in, \
         --allow-to ADDRESS:udp/PORT if this host dials out; or --no-keep-session"
    )]
    Tunnel { interface: String, kind: String, session: String, ports: String },
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error("--dns: no resolver outside this host is named in /etc/resolv.conf; name one: --allow-to ADDRESS:dns")]
    NoResolver,
    #[error("--serve {service}: {help}")]
    Serve { service: String, help: String },
    #[error("{0} only audits in some direction, and a lockdown drops in both: write `mode: enforce`")]
    Audits(String),
    #[error(
        "--this-session-only: no connection that carries this terminal was found that could go on by itself{0}; nothing was \
         changed\n  do  leave it out"
    )]
    NoSession(&'static str),
    #[error("--cut {0}: no other session from the way in's place has this process")]
    NoSuchSession(u32),
}

/// The policy could not be made, or is wrong.
#[derive(Debug)]
pub enum PrepareError {
    Refused(Refusal),
    /// Of `--policy`, or of a list file.
    Policy(Box<Diagnostics>),
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for PrepareError {
    fn from(error: E) -> Self {
        match error.into().downcast::<Refusal>() {
            Ok(refusal) => Self::Refused(refusal),
            Err(error) => Self::Other(error),
        }
    }
}

/// What is guarded, and what guard's tables hold already.
pub struct Guarded {
    pub indices: HashSet<u32>,
    pub names: Vec<String>,
    pub tables: Vec<(Key, Flow)>,
    pub generation: u32,
    /// Whose sockets are held; `None`: this machine has no cgroup2.
    pub cgroup: Option<PathBuf>,
}

/// A lockdown that can be shown and done.
pub struct Prepared {
    pub choices: Choices,
    /// YAML; `None`: the policy is a file of the person's own.
    pub text: Option<String>,
    pub policy: Policy,
    pub examined: Examined,
    pub plan: Plan,
}

/// Who is here and what could stay: read once, for the questions that are asked of a person.
pub struct Found {
    pub picture: Picture,
    pub way_in: WayIn,
    pub offers: Vec<Offer>,
    /// Sockets that go round the wire layer.
    pub round: Vec<Direct>,
    packages: Packages,
}

impl Found {
    pub fn read(exact: bool, guarded: &Guarded) -> anyhow::Result<Self> {
        let picture = Picture::read()?;
        let held = picture.held(Judged::guarded(&|index| guarded.indices.contains(&index)), guarded.tables.clone());
        let packages = Packages::default();
        Ok(Self {
            way_in: WayIn::find(&picture, &held, exact),
            offers: offers::find(&picture, &packages),
            round: guarded.cgroup.as_deref().map(round_of).unwrap_or_default(),
            picture,
            packages,
        })
    }
}

fn round_of(cgroup: &Path) -> Vec<Direct> {
    round::ours(cgroup, &direct::find()).into_iter().cloned().collect()
}

/// Refuses, or makes the policy and says what it does. `kept` are offers that the person took, beside `--keep`.
pub fn prepare(found: &Found, wishes: &Wishes, guarded: &Guarded) -> Result<Prepared, PrepareError> {
    let choices = choose(found, wishes)?;
    let (text, loaded) = match &wishes.policy {
        Some(path) => (None, policy::load(path)),
        None => {
            let text = base::text(&choices);
            let loaded = policy::load_str(&format!("{}.yaml", base::NAME), &text);
            (Some(text), loaded)
        }
    };
    let policy = loaded.map_err(|found| PrepareError::Policy(Box::new(found)))?.policy;
    if (policy.inbound, policy.outbound) != (Mode::Enforce, Mode::Enforce) {
        return Err(PrepareError::Refused(Refusal::Audits(policy.name)));
    }
    let mut examined = change::examine(
        &policy,
        guarded.generation,
        &found.picture,
        Judged::guarded(&|index| guarded.indices.contains(&index)),
        guarded.tables.clone(),
    )?;
    examined.impact.spare(&open(&found.way_in, wishes));
    let plan = make_plan(found, wishes, guarded, &choices, &policy, &examined)?;
    Ok(Prepared { choices, text, policy, examined, plan })
}

fn choose(found: &Found, wishes: &Wishes) -> Result<Choices, Refusal> {
    let ways = if wishes.no_keep_session { Vec::new() } else { found.way_in.ways.clone() };
    let named = !wishes.allow_from.is_empty() || wishes.console || wishes.policy.is_some();
    if ways.is_empty() && !named {
        return Err(Refusal::NoWayIn(no_way_in(found, wishes)));
    }
    if wishes.this_session_only {
        if !ways.iter().any(|way| way.inbound) {
            return Err(Refusal::NoSession(""));
        }
        // mosh moves from port to port, and has none that is known before it has spoken.
        if ways.iter().any(|way| way.inbound && way.found.starts_with("mosh")) {
            return Err(Refusal::NoSession(" (mosh's peer moves)"));
        }
    }
    let carrier_named = wishes.allow_from.iter().chain(&wishes.allow_to).any(|allow| allow.service.is_some());
    if let Some(tunnel) = &found.way_in.unknown_tunnel
        && !wishes.no_keep_session
        && !carrier_named
        && wishes.policy.is_none()
    {
        return Err(Refusal::Tunnel {
            interface: tunnel.interface.clone(),
            kind: tunnel.kind.clone(),
            session: tunnel.session.to_string(),
            ports: match tunnel.ports.as_slice() {
                [] => String::new(),
                ports => {
                    let ports: Vec<String> = ports.iter().map(|port| format!("udp/{port}")).collect();
                    format!(" (who speaks with its {} is not known)", ports.join(", "))
                }
            },
        });
    }
    for service in &wishes.serve {
        match services::parse(service) {
            Ok(services::Word::Ranges(_)) => {}
            Ok(services::Word::Name) => {
                let help = "name a port: tcp/443".to_owned();
                return Err(Refusal::Serve { service: service.clone(), help });
            }
            Err(bad) => {
                return Err(Refusal::Serve {
                    service: service.clone(),
                    help: format!("{}: {}", bad.message, bad.help),
                });
            }
        }
    }
    for pid in &wishes.cut {
        if !found.way_in.others.iter().any(|other| other.pid == *pid) {
            return Err(Refusal::NoSuchSession(*pid));
        }
    }
    let dns = if wishes.dns { base::resolvers(&|path: &Path| fs::read_to_string(path).ok()) } else { Vec::new() };
    if wishes.dns && dns.is_empty() {
        return Err(Refusal::NoResolver);
    }
    let keep = wishes
        .keep
        .iter()
        .map(|name| offers::named(name, &found.offers, &found.picture, &found.packages))
        .collect::<Result<Vec<Offer>, KeepError>>()?;
    let responders = match &wishes.responders {
        Some(path) => Some(path.clone()),
        None => Some(PathBuf::from(RESPONDERS)).filter(|path| path.exists()),
    };
    Ok(Choices {
        ways,
        allow_from: wishes.allow_from.clone(),
        allow_to: wishes.allow_to.clone(),
        ssh: found.way_in.ssh.clone(),
        dns,
        serve: wishes.serve.clone(),
        keep,
        this_session_only: wishes.this_session_only,
        responders: responders.map(|path| std::path::absolute(&path).unwrap_or(path)),
    })
}

/// What goes on without a rule: the way in, and who else comes from there and is not to be cut.
#[must_use]
pub fn open(way_in: &WayIn, wishes: &Wishes) -> Vec<Open> {
    if !wishes.this_session_only {
        return Vec::new();
    }
    let protocol = |service: &str| if service.starts_with("udp/") { 17 } else { 6 };
    let ways = way_in.ways.iter().filter(|way| way.inbound);
    let ways = ways.map(|way| Open { protocol: protocol(&way.service), local: way.local, remote: way.remote });
    let others = way_in.others.iter().filter(|other| !wishes.cut.contains(&other.pid));
    ways.chain(others.map(|other| Open { protocol: 6, local: other.local, remote: other.remote })).collect()
}

fn no_way_in(found: &Found, wishes: &Wishes) -> String {
    let mut text = if wishes.no_keep_session {
        String::from("refused: without your session nobody could come in; nothing was changed")
    } else {
        String::from("refused: no connection that carries this terminal was found; nothing was changed")
    };
    let clock = Clock::read().unwrap_or(Clock::at_boot(0));
    let mut identities = Identities::default();
    for (number, candidate) in (1..).zip(found.way_in.candidates.iter().take(MOST_CANDIDATES)) {
        let user = candidate.uid.map_or_else(
            || "nobody logged in".to_owned(),
            |uid| identities.user(uid).unwrap_or_else(|| format!("user {uid}")),
        );
        let terminal = if candidate.terminal { "with a terminal" } else { "no terminal" };
        text.push_str(&format!(
            "\n  at the SSH port  {number}. {}  {} {} {user}, {terminal}, since {}",
            candidate.remote.ip(),
            candidate.program,
            candidate.pid,
            crate::record::clock::for_people(clock.unix_ns(candidate.since_ns))
        ));
    }
    if found.way_in.git_sessions > 0 {
        text.push_str(&format!("\n  and {} sessions of git over SSH", found.way_in.git_sessions));
    }
    text.push_str("\n  do  name who may come in: --allow-from ADDRESS (repeatable), or --console if you sit at it");
    text
}

fn make_plan(
    found: &Found,
    wishes: &Wishes,
    guarded: &Guarded,
    choices: &Choices,
    policy: &Policy,
    examined: &Examined,
) -> anyhow::Result<Plan> {
    let mut identities = Identities::default();
    let users: HashMap<u32, String> = found
        .way_in
        .others
        .iter()
        .filter_map(|other| other.uid)
        .filter_map(|uid| Some((uid, identities.user(uid)?)))
        .collect();
    let responders = policy.rules.iter().find(|rule| rule.name.as_deref() == Some("responders.txt"));
    let responders = responders.map(|rule| effective::networks(&rule.remote.set).count());
    let ranges = choices.ways.iter().filter(|way| way.inbound && !choices.this_session_only).map(|way| way.range);
    let mut ranges: Vec<ipnet::IpNet> = ranges.chain(choices.allow_from.iter().map(|allow| allow.net)).collect();
    ranges.sort_unstable();
    ranges.dedup();
    let single = wishes.policy.is_none() && !wishes.console && ranges.len() + responders.unwrap_or(0) < 2;
    let programs = found.picture.processes.iter().filter_map(|process| {
        let unit = crate::host::cgroup::parse(&format!("0::{}", process.cgroup.as_deref().unwrap_or("/"))).unit;
        Some((process.program()?.to_owned(), unit))
    });
    let established = found.picture.sockets.all.iter().filter(|socket| socket.state == SocketState::Established);
    let established = established.filter(|socket| socket.protocol == 6).map(|socket| socket.remote).collect();
    let facts = Facts::read(programs.collect(), established);
    let allowed = |to: std::net::SocketAddr| {
        let query = FlowQuery {
            direction: guard_common::Direction::Outbound,
            remote: to.ip(),
            remote_port: None,
            local: None,
            service: 6 << 16 | u32::from(to.port()),
            interface: None,
        };
        answer(policy, &examined.compiled, &query, examined.clocks).explanation.verdict == Verdict::Allow
    };
    let way_in = WayIn { ways: choices.ways.clone(), ..found.way_in.clone() };
    Ok(Plan {
        host: nix::unistd::gethostname().map_or_else(|_| "this host".to_owned(), |name| name.to_string_lossy().into()),
        way_in,
        users,
        clock: Clock::read()?,
        cut_sessions: wishes.cut.clone(),
        allow_from: wishes.allow_from.clone(),
        allow_to: wishes.allow_to.clone(),
        responders,
        console: wishes.console,
        sessions: open(&found.way_in, wishes),
        single_way_in: single,
        offered: found
            .offers
            .iter()
            .filter(|offer| !choices.keep.iter().any(|kept| kept.name == offer.name))
            .cloned()
            .collect(),
        kept: choices.keep.clone(),
        dns: choices.dns.clone(),
        serve: choices.serve.clone(),
        interfaces: guarded.names.clone(),
        worth_a_look: plan::suspects(&examined.impact.would_cut, &mut identities),
        impact: examined.impact.clone(),
        round: found.round.iter().map(GoesRound::from).collect(),
        careful: harm::vpn(&choices.ways).into_iter().chain(harm::find(&facts, &allowed)).collect(),
        passes: effective::short(policy),
        policy: effective::yaml(policy),
        policy_sha256: effective::hex(&policy.sha256),
    })
}
