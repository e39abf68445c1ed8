//! What a policy would do to the flows that the host holds now: said before it is enforced.

use std::net::{IpAddr, SocketAddr};

use guard_common::{Direction, Reason, Verdict, decide::Node};
use serde::Serialize;

use crate::{
    host::{
        held::{self, HeldFlow},
        session::{Carrier, Session},
    },
    policy::model::{Mode, Policy},
    record::flow::protocol_name,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// `socket`, `conntrack` or `table`.
    pub known_from: &'static str,
    /// It carries the terminal that asks.
    pub session: bool,
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
    pub nodes: &'a [Node],
    pub policy: &'a Policy,
    /// An interface's class in these tables, by its index.
    pub class: &'a dyn Fn(u32) -> u32,
    /// Boot-time nanoseconds.
    pub now: u64,
}

/// Decides every held flow, and the session's carriers even where no list has them (on an interface that is not guarded
/// they cannot be cut).
#[must_use]
pub fn assess(candidate: &Candidate<'_>, held: &[HeldFlow], session: &Session) -> Impact {
    let mut impact = Impact::default();
    let enforces = |direction| match direction {
        Direction::Inbound => candidate.policy.inbound == Mode::Enforce,
        Direction::Outbound => candidate.policy.outbound == Mode::Enforce,
    };
    let mut cut_sessions: Vec<(SocketAddr, SocketAddr)> = Vec::new();
    for flow in held {
        let decision = held::decide(candidate.nodes, flow, candidate.class, candidate.now);
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
        impact.would_cut.push(Cut {
            flow: flow.key.spoken(flow.direction),
            direction: flow.direction.as_str(),
            protocol: protocol_name(flow.key.protocol()),
            remote: flow.key.remote(),
            remote_port: flow.key.remote_port(),
            local: flow.key.local(),
            local_port: flow.key.local_port(),
            reason: decision.outcome.reason().as_str(),
            rule: rule.map(|rule| rule.label()),
            program: flow.program.as_ref().map(|(_, program)| program.clone()),
            pid: flow.program.as_ref().map(|(pid, _)| *pid),
            known_from: flow.source.as_str(),
            session: carrier.is_some(),
        });
    }
    impact.would_cut.sort_by_key(|cut| !cut.session);
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

fn spoken(carrier: &Carrier) -> String {
    let text = carrier.to_string();
    text.split_once(" (").map_or(text.clone(), |(flow, _)| flow.to_owned())
}

impl Impact {
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

    use guard_common::decide::{Descriptor, Header, Target};

    use super::*;
    use crate::{
        host::{held::Source, session::Found},
        policy::model::Essentials,
        record::flow::{Key, TCP},
    };

    /// Tables that deny everything.
    fn deny_all() -> Vec<Node> {
        let mut nodes = vec![Node::default(); Header::FIRST_FREE as usize];
        for node in &mut nodes[1..] {
            // No value is inside: first > last.
            node.0[Descriptor::FIRST] = 1;
            node.0[Descriptor::BELOW] = Target::NOT_LISTED.0;
            node.0[Descriptor::ABOVE] = Target::NOT_LISTED.0;
        }
        nodes
    }

    fn policy(inbound: Mode) -> Policy {
        Policy {
            name: "none".to_owned(),
            sha256: [0; 32],
            files: vec![Arc::new("policy.yaml".into())],
            inbound,
            outbound: Mode::Audit,
            rules: Vec::new(),
            essentials: Essentials::default(),
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
            source: Source::Socket,
            program: Some((10, "sshd".to_owned())),
        }
    }

    fn session() -> Session {
        Session {
            carriers: vec![Carrier {
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
        let (nodes, policy) = (deny_all(), policy(inbound));
        let candidate = Candidate { nodes: &nodes, policy: &policy, class: &|_| 0, now: 0 };
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
    fn audit_cuts_nothing() {
        let impact = assessed(Mode::Audit, &[held(Direction::Inbound, 4000, 22)]);
        assert!(!impact.cuts_session());
        assert_eq!((impact.would_cut.len(), impact.would_deny), (0, 1));
    }
}
