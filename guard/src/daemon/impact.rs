//! What a policy would do to the flows that the host holds now: said before it is enforced.

use std::net::{IpAddr, SocketAddr};

use guard_common::{Direction, Reason, Verdict, decide::Outcome};
use serde::Serialize;

use crate::{
    host::{
        held::{self, HeldFlow},
        session::{Carrier, Session},
    },
    lockdown::mark::Open,
    policy::{
        answer::why_not,
        compile::{Clocks, Compiled},
        model::{FlowQuery, Mode, Policy, Rule, spoken_place},
        nearest::explain,
    },
    record::flow::protocol_name,
    text::harmless,
};

/// All flows that would be cut, and how many would stay.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Impact {
    pub would_cut: Vec<Cut>,
    pub would_keep: usize,
    /// Denied by the policy, in a direction that only audits.
    pub would_deny: usize,
    /// What carries this terminal.
    pub session: Vec<SessionLine>,
}

/// One flow that would be cut.
#[derive(Clone, Debug, Serialize)]
pub struct Cut {
    /// As `explain` reads it.
    pub flow: String,
    pub direction: &'static str,
    pub protocol: String,
    pub remote: IpAddr,
    pub remote_port: u16,
    pub local: IpAddr,
    pub local_port: u16,
    pub reason: &'static str,
    pub rule: Option<String>,
    /// Where that rule stands.
    pub at: Option<RulePlace>,
    /// The allow that fails on the least, where no rule lists the flow. Left out (null) beyond [`EXPLAINED`].
    pub nearest: Option<NearestRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// `socket`, `conntrack` or `table`.
    pub known_from: &'static str,
    /// It carries the terminal that asks.
    pub session: bool,
}

/// Where a rule stands; the same fields as in `explain --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RulePlace {
    pub rule: String,
    pub file: String,
    pub line: u32,
    pub column: u32,
}

impl RulePlace {
    fn new(rule: &Rule) -> Self {
        Self {
            rule: rule.label(),
            file: rule.place.file.display().to_string(),
            line: rule.place.line,
            column: rule.place.column,
        }
    }
}

/// A rule that does not match, and every condition that fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NearestRule {
    pub at: RulePlace,
    pub failed: Vec<Failed>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    pub condition: &'static str,
    pub why: String,
}

/// What carries this terminal, and how that was found.
#[derive(Clone, Debug, Serialize)]
pub struct SessionLine {
    pub flow: String,
    pub remote: SocketAddr,
    pub local: SocketAddr,
    pub program: String,
    pub pid: u32,
    pub found: &'static str,
    pub would_be_cut: bool,
}

/// The tables that would decide, and the policy that they were made from.
pub struct Candidate<'a> {
    pub compiled: &'a Compiled,
    pub policy: &'a Policy,
    /// An interface's class in these tables, by its index.
    pub class: &'a dyn Fn(u32) -> u32,
    pub now: Clocks,
}

/// Looking for the nearest rule goes through all rules: so many looks at a rule are taken in all, this terminal's flows
/// first. Thousands of flows and rules must not keep a change waiting.
const EXPLAINED: usize = 500_000;

/// Decides every held flow, and the session's carriers even where no list has them (on an interface that is not guarded
/// they cannot be cut).
#[must_use]
pub fn assess<'a>(
    candidate: &Candidate<'_>,
    held: impl IntoIterator<Item = &'a HeldFlow>,
    session: &Session,
) -> Impact {
    let mut impact = Impact::default();
    let enforces = |direction| match direction {
        Direction::Inbound => candidate.policy.inbound == Mode::Enforce,
        Direction::Outbound => candidate.policy.outbound == Mode::Enforce,
    };
    let mut cut: Vec<&HeldFlow> = Vec::new();
    let mut cut_sessions: Vec<(SocketAddr, SocketAddr)> = Vec::new();
    for flow in held {
        let mut decision = held::decide(&candidate.compiled.nodes, flow, candidate.class, candidate.now.boot_ns);
        // As `judge::ask` does.
        if candidate.policy.lockdown
            && flow.adopted
            && flow.direction == Direction::Inbound
            && decision.outcome.verdict() == Verdict::Allow
            && !decision.named
        {
            decision.outcome = Outcome::without_rule(Reason::UnnamedRemote);
        }
        if decision.outcome.verdict() == Verdict::Allow {
            impact.would_keep += 1;
            continue;
        }
        if !enforces(flow.direction) {
            impact.would_deny += 1;
            continue;
        }
        let (local, remote) = flow.ends();
        let carrier = session.carried_by(local, remote);
        if carrier.is_some() {
            cut_sessions.push((local, remote));
        }
        let rule = decision.outcome.rule().and_then(|rule| candidate.policy.rules.get(rule as usize));
        cut.push(flow);
        impact.would_cut.push(Cut {
            flow: flow.key.spoken(flow.direction),
            direction: flow.direction.as_str(),
            protocol: protocol_name(flow.key.protocol()),
            remote: flow.key.remote(),
            remote_port: flow.key.remote_port(),
            local: flow.key.local(),
            local_port: flow.key.local_port(),
            reason: decision.outcome.reason().as_str(),
            rule: rule.map(Rule::label),
            at: rule.map(RulePlace::new),
            nearest: None,
            program: flow.program.as_ref().map(|(_, program)| program.clone()),
            pid: flow.program.as_ref().map(|(pid, _)| *pid),
            known_from: flow.source.as_str(),
            session: carrier.is_some(),
        });
    }
    let mut both: Vec<(Cut, &HeldFlow)> = impact.would_cut.into_iter().zip(cut).collect();
    both.sort_by_key(|(cut, _)| !cut.session);
    let explained = EXPLAINED / candidate.policy.rules.len().max(1);
    for (cut, flow) in both.iter_mut().filter(|(cut, _)| cut.rule.is_none()).take(explained) {
        cut.nearest = candidate.nearest(flow);
    }
    impact.would_cut = both.into_iter().map(|(cut, _)| cut).collect();
    impact.session = session
        .carriers
        .iter()
        .map(|carrier| SessionLine {
            flow: spoken(carrier),
            remote: carrier.remote,
            local: carrier.local,
            program: carrier.program.clone(),
            pid: carrier.pid,
            found: carrier.found.as_str(),
            would_be_cut: cut_sessions.contains(&(carrier.local, carrier.remote)),
        })
        .collect();
    impact
}

impl Candidate<'_> {
    fn nearest(&self, flow: &HeldFlow) -> Option<NearestRule> {
        let query = query(flow);
        let nearest = explain(self.policy, self.compiled, &query, self.now).nearest?;
        let rule = self.policy.rules.get(nearest.rule)?;
        let failed = |condition: &crate::policy::nearest::Condition| Failed {
            condition: condition.as_str(),
            why: why_not(rule, &query, *condition),
        };
        Some(NearestRule { at: RulePlace::new(rule), failed: nearest.failed.iter().map(failed).collect() })
    }
}

/// A held flow, as `explain` asks.
fn query(flow: &HeldFlow) -> FlowQuery {
    let remote_port = match flow.direction {
        Direction::Inbound if !flow.key.is_icmp() => Some(flow.key.remote_port()),
        _ => None,
    };
    FlowQuery {
        direction: flow.direction,
        remote: flow.key.remote(),
        remote_port,
        local: Some(flow.key.local()),
        service: u32::from(flow.key.protocol()) << 16 | u32::from(flow.key.service(flow.direction)),
        interface: flow
            .interface
            .and_then(|index| nix::net::if_::if_indextoname(index).ok())
            .and_then(|name| name.into_string().ok()),
    }
}

impl Cut {
    /// Ours, then theirs.
    #[must_use]
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        (SocketAddr::new(self.local, self.local_port), SocketAddr::new(self.remote, self.remote_port))
    }

    /// The rule that decides, or came nearest, in words.
    #[must_use]
    pub fn because(&self) -> String {
        let at = |place: &RulePlace| {
            format!("\"{}\" ({})", harmless(&place.rule), harmless(&spoken_place(&place.file, place.line)))
        };
        match (&self.at, &self.nearest) {
            (Some(place), _) => format!("{} denies it", at(place)),
            (None, Some(nearest)) => {
                let failed: Vec<&str> = nearest.failed.iter().map(|failed| failed.condition).collect();
                format!("{} fails on {}", at(&nearest.at), failed.join(" and "))
            }
            (None, None) => format!("no rule allows anything {}", self.direction),
        }
    }
}

fn spoken(carrier: &Carrier) -> String {
    let text = carrier.to_string();
    text.split_once(" (").map_or(text.clone(), |(flow, _)| flow.to_owned())
}

impl Impact {
    /// These go on whatever the rules say ([`Mark::sessions`](crate::lockdown::mark::Mark::sessions)).
    pub fn spare(&mut self, sessions: &[Open]) {
        let spared = |ends: (SocketAddr, SocketAddr)| sessions.iter().any(|open| (open.local, open.remote) == ends);
        let before = self.would_cut.len();
        self.would_cut.retain(|cut| !spared(cut.ends()));
        self.would_keep += before - self.would_cut.len();
        for line in &mut self.session {
            line.would_be_cut &= !spared((line.local, line.remote));
        }
    }

    /// Whether this terminal would be lost.
    #[must_use]
    pub fn cuts_session(&self) -> bool {
        self.session.iter().any(|line| line.would_be_cut)
    }

    /// For people: at most `most` lines of flows.
    #[must_use]
    pub fn render(&self, most: usize) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        let would_deny = match self.would_deny {
            0 => String::new(),
            count => format!(", {count} denied but only audited"),
        };
        // Writing to a String cannot fail.
        let _ = match self.would_cut.len() {
            0 => writeln!(text, "Cuts no flow that this host holds now; keeps {}{would_deny}", self.would_keep),
            count => writeln!(text, "Cuts {}, keeps {}{would_deny}:", flows(count), self.would_keep),
        };
        for cut in self.would_cut.iter().take(most) {
            let program = match (&cut.program, cut.pid) {
                (Some(program), Some(pid)) => format!("{program} pid {pid}"),
                _ => match cut.known_from {
                    "conntrack" => "forwarded".to_owned(),
                    _ => "unknown process".to_owned(),
                },
            };
            let why = match &cut.rule {
                Some(rule) => format!("denied by \"{rule}\""),
                None => why(cut.reason).to_owned(),
            };
            let session = if cut.session { "  <- THIS TERMINAL" } else { "" };
            let _ = writeln!(text, "  {:<38} {program:<28} {why}{session}", cut.flow);
        }
        if self.would_cut.len() > most {
            let _ = writeln!(text, "  and {} more (--json lists all)", self.would_cut.len() - most);
        }
        text
    }
}

fn why(reason: &str) -> &'static str {
    Reason::ALL.iter().find(|known| known.as_str() == reason).map_or("", |known| known.why())
}

fn flows(count: usize) -> String {
    if count == 1 { "1 flow".to_owned() } else { format!("{count} flows") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        host::{held::Source, session::Found},
        policy::{compile::compile, load_str, model::Essentials},
        record::flow::{Key, TCP},
    };

    fn policy(inbound: Mode) -> Policy {
        Policy {
            name: "none".to_owned(),
            sha256: [0; 32],
            files: vec![Arc::new("policy.yaml".into())],
            inbound,
            outbound: Mode::Audit,
            rules: Vec::new(),
            essentials: Essentials::default(),
            lockdown: false,
            on_deny: Default::default(),
            container_host: Default::default(),
            tests: Vec::new(),
        }
    }

    fn held(direction: Direction, remote_port: u16, local_port: u16) -> HeldFlow {
        HeldFlow {
            key: Key::new(
                TCP,
                "198.51.100.7".parse().unwrap(),
                remote_port,
                "192.0.2.1".parse().unwrap(),
                local_port,
                0,
            )
            .unwrap(),
            direction,
            interface: Some(7),
            tcp: guard_common::abi::TcpState::Established,
            answered: true,
            cookie: 0,
            adopted: true,
            source: Source::Socket,
            program: Some((10, "sshd".to_owned())),
        }
    }

    fn session() -> Session {
        Session {
            carriers: vec![Carrier {
                protocol: TCP,
                local: "192.0.2.1:22".parse().unwrap(),
                remote: "198.51.100.7:4000".parse().unwrap(),
                direction: Direction::Inbound,
                cookie: 0,
                pid: 10,
                program: "sshd".to_owned(),
                found: Found::Ancestor,
            }],
        }
    }

    fn assessed(inbound: Mode, flows: &[HeldFlow]) -> Impact {
        assessed_by(&policy(inbound), flows)
    }

    fn assessed_by(policy: &Policy, flows: &[HeldFlow]) -> Impact {
        let now = Clocks { unix_ns: 0, boot_ns: 0 };
        let compiled = compile(policy, now, 1).unwrap();
        let candidate = Candidate { compiled: &compiled, policy, class: &|_| 0, now };
        assess(&candidate, flows, &session())
    }

    #[test]
    fn the_session_comes_first_and_is_named() {
        let flows =
            [held(Direction::Inbound, 9, 443), held(Direction::Inbound, 4000, 22), held(Direction::Outbound, 443, 9)];
        let impact = assessed(Mode::Enforce, &flows);
        assert_eq!((impact.would_cut.len(), impact.would_deny, impact.would_keep), (2, 1, 0));
        assert!(impact.cuts_session());
        assert_eq!(impact.would_cut[0].flow, "in tcp 198.51.100.7 -> 22");
        assert_eq!(impact.session[0].flow, "in tcp 198.51.100.7 -> 22");
        let text = impact.render(1);
        assert!(text.starts_with("Cuts 2 flows, keeps 0, 1 denied but only audited:\n"), "{text}");
        assert!(text.contains("sshd pid 10"), "{text}");
        assert!(text.contains("no rule lists it  <- THIS TERMINAL"), "{text}");
        assert!(text.ends_with("and 1 more (--json lists all)\n"), "{text}");
    }

    #[test]
    fn each_cut_says_which_rule_decides_or_came_nearest() {
        let text = "version: 1\nname: near\nmode: enforce\ninbound:\n  \
                    - { name: ssh, from: 198.51.100.8, services: ssh }\noutbound:\n  \
                    - { name: no web, action: deny, to: any, services: https }\n";
        let policy = load_str("near.yaml", text).unwrap().policy;
        let impact = assessed_by(&policy, &[held(Direction::Inbound, 4000, 22), held(Direction::Outbound, 443, 9)]);
        let json = serde_json::to_value(&impact).unwrap();
        let nearest = &json["would_cut"][0]["nearest"];
        assert_eq!((&nearest["at"]["rule"], &nearest["at"]["line"]), (&"ssh".into(), &5.into()), "{json:#}");
        assert_eq!(nearest["failed"][0]["condition"], "remote");
        assert_eq!(nearest["failed"][0]["why"], "remote 198.51.100.7 is not in 198.51.100.8");
        assert_eq!(impact.would_cut[0].because(), "\"ssh\" (near.yaml:5) fails on remote");
        assert_eq!(json["would_cut"][1]["at"]["line"], 7);
        assert!(json["would_cut"][1]["nearest"].is_null());
        assert_eq!(impact.would_cut[1].because(), "\"no web\" (near.yaml:7) denies it");
    }

    #[test]
    fn audit_cuts_nothing() {
        let impact = assessed(Mode::Audit, &[held(Direction::Inbound, 4000, 22)]);
        assert!(!impact.cuts_session());
        assert_eq!((impact.would_cut.len(), impact.would_deny), (0, 1));
    }
}
