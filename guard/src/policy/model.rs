//! A policy that has been checked: every name resolved, every set flattened. What the compiler, `explain`, the referee
//! of the tests and `status` read.

use std::{path::PathBuf, sync::Arc};

use guard_common::{Direction, Verdict};
use serde::Serialize;

/// One policy, with all that it includes.
#[derive(Clone, Debug)]
pub struct Policy {
    pub name: String,
    /// SHA-256 over all its files (includes and lists too), in the order in which they were read.
    pub sha256: [u8; 32],
    /// Every file that it was read from, the first being the policy itself.
    pub files: Vec<Arc<PathBuf>>,
    pub inbound: Mode,
    pub outbound: Mode,
    /// Of both directions, in file order (an include's rules stand before those of the file that includes it).
    /// The position is the rule's number, in tables, counters and records.
    pub rules: Vec<Rule>,
    pub essentials: Essentials,
    /// `lockdown: true`: an inbound flow that began before guard needs a remote that a rule names. An implant's session may
    /// sit on a port that is open to `any`.
    pub lockdown: bool,
    /// `on_deny: { outbound: … }`: what those behind this host are told when their packet is denied on its way out.
    pub on_deny: Refusal,
    /// What passes between this host and the containers and VMs on its bridges.
    pub container_host: ContainerHost,
    pub tests: Vec<Test>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Decide and record exactly as `Enforce` does, and drop nothing.
    Audit,
    Enforce,
}

/// What becomes of a denied packet of a container, or of another machine behind this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody is told: the program waits until its time is out.
    Drop,
    /// A TCP reset, else an ICMP error: the program fails at once.
    #[default]
    Reject,
}

/// Whether what passes between the members of a bridge and this host itself is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerHost {
    /// As what crosses a guarded interface.
    Guard,
    /// By nobody: a host and its containers talk as they like.
    #[default]
    Ignore,
}

impl ContainerHost {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Ignore => "ignore",
        }
    }
}

/// Where something stands: 1-based line and column (columns count characters); line 0: in no file (a temporary exception).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<PathBuf>,
    pub line: u32,
    pub column: u32,
}

impl Place {
    /// `policy.yaml:12`; of a temporary exception, which stands in no file, what it is.
    #[must_use]
    pub fn spoken(&self) -> String {
        spoken_place(&self.file.display().to_string(), self.line)
    }
}

/// [`Place::spoken`], where a file has another name for people.
#[must_use]
pub fn spoken_place(file: &str, line: u32) -> String {
    if line == 0 { "temporary exception".to_owned() } else { format!("{file}:{line}") }
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub direction: Direction,
    pub action: Verdict,
    pub name: Option<String>,
    /// Position within its direction's list in its own file: `outbound[2]`.
    pub position: usize,
    pub place: Place,
    pub remote: Remote,
    /// Sorted, disjoint, merged. Never empty.
    pub services: Vec<ServiceRange>,
    /// As written, for people: `ssh`, `tcp/8000-8999`.
    pub services_text: Vec<String>,
    /// A name or a pattern with `*` and `?`; of several, with commas between them, one must match.
    pub interface: Option<String>,
    pub local: Option<Arc<AddressSet>>,
    /// Unix time in nanoseconds; from then on the rule does not match.
    pub expires: Option<i128>,
    pub comment: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Remote {
    /// As written, for people: `any`, `responders`, `192.0.2.0/24`.
    pub text: Vec<String>,
    /// Shared between rules that name the same groups: the compiler treats equal pointers as one set.
    pub set: Arc<AddressSet>,
    /// False only for `any`.
    pub named: bool,
}

/// Addresses of both families: inclusive ranges, sorted, disjoint, not adjacent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AddressSet {
    pub v4: Vec<(u32, u32)>,
    pub v6: Vec<(u128, u128)>,
}

/// Words of [`guard_common::decide::Word::Service`]: protocol << 16 | port, or ICMP type << 8 | code. Inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceRange {
    pub first: u32,
    pub last: u32,
}

/// Essential traffic that is on (SECURITY.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Essentials {
    pub loopback: bool,
    pub arp: bool,
    pub eapol: bool,
    pub lacp: bool,
    pub stp: bool,
    pub lldp: bool,
    pub macsec: bool,
    pub pppoe: bool,
    pub neighbour_discovery: bool,
    pub mld: bool,
    pub dhcp: bool,
    pub dhcpv6: bool,
    pub icmp_errors: bool,
}

impl Default for Essentials {
    fn default() -> Self {
        Self {
            loopback: true,
            arp: true,
            eapol: true,
            lacp: true,
            stp: true,
            lldp: false,
            macsec: true,
            pppoe: true,
            neighbour_discovery: true,
            mld: true,
            dhcp: true,
            dhcpv6: true,
            icmp_errors: true,
        }
    }
}

/// A flow as people write it, read: the question that `explain`, `tests:` and the referee ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowQuery {
    pub direction: Direction,
    pub remote: std::net::IpAddr,
    pub remote_port: Option<u16>,
    pub local: Option<std::net::IpAddr>,
    /// [`ServiceRange`]'s word.
    pub service: u32,
    pub interface: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Test {
    pub flow: FlowQuery,
    /// As written.
    pub text: String,
    pub expect: Verdict,
    pub rule: Option<String>,
    pub place: Place,
}

impl Rule {
    /// Its name, or `outbound[2]`.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => format!("{}[{}]", self.direction.as_str(), self.position),
        }
    }
}
