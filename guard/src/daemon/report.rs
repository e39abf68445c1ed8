//! What `status` says: read back from the kernel, never what was meant.

mod screen;

use serde::Serialize;

use super::{control::DaemonStatus, difference::Gap};
use crate::{
    host::firewalls::OtherFirewall,
    kernel::Feature,
    lockdown::mark::Mark,
    policy::{exceptions::Exception, model::ContainerHost},
};

pub use screen::{duration, thousands};

/// Everything that is known of an instance. Field names are stable.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub instance: String,
    /// What a pasted command needs to reach it.
    #[serde(skip)]
    pub suffix: String,
    /// `enforce`, `audit`, `mixed`; `tracking` where no policy is in force; `none` where guard is not attached.
    pub mode: &'static str,
    pub mode_inbound: &'static str,
    pub mode_outbound: &'static str,
    /// Every hook that this kernel offers is ours, first in line and unchanged, and both directions drop.
    pub enforcing: bool,
    pub enforcing_inbound: bool,
    pub enforcing_outbound: bool,
    /// Of the generation that judges now; 0: none.
    pub generation: u32,
    pub policy: Option<String>,
    /// Hex, as the kernel's tables carry it.
    pub policy_sha256: Option<String>,
    /// With exceptions: hex, of the policy's own files alone.
    pub policy_base_sha256: Option<String>,
    pub policy_source: Option<String>,
    /// Temporary exceptions that hold over the policy now.
    pub exceptions: Vec<Exception>,
    /// Unix time in seconds since which this generation holds.
    pub since: Option<i64>,
    /// Whether what passes between this host and the containers and VMs on its bridges is judged; `None`: no policy.
    pub container_host: Option<ContainerHost>,
    pub deadline: Option<Deadline>,
    /// A lockdown holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lockdown: Option<Mark>,
    pub hooks: Vec<Hook>,
    pub interfaces: Vec<InterfaceLine>,
    pub reasons: Vec<ReasonLine>,
    pub rules: Vec<RuleLine>,
    pub flows: FlowCounts,
    pub rejected: Rejected,
    pub lost: Lost,
    pub daemon: Option<DaemonStatus>,
    /// Groups that nobody has acknowledged, but for those that were learned; `None` where that is not known.
    pub to_review: Option<usize>,
    /// Groups that were learned, and nobody has acknowledged; `None` where that is not known.
    pub learned: Option<usize>,
    /// What the watch told in the last day; `None` where that is not known.
    pub alerts: Option<usize>,
    /// Why `enforcing` is false though the mode enforces: each in a sentence.
    pub problems: Vec<String>,
    /// When packets may have passed unjudged, in the last day; the newest last.
    pub gaps: Vec<Gap>,
    /// What this kernel lacks, and what is lost by that.
    pub missing: Vec<String>,
    /// What guard uses where a kernel has it, and whether this one does.
    pub features: Vec<Feature>,
    pub other_firewalls: Vec<OtherFirewall>,
    /// Unix time in seconds of this reading.
    pub read_at: i64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Deadline {
    /// Unix time in seconds.
    pub at: i64,
    pub seconds_left: u64,
    /// What holds after it: a generation; 0: no policy.
    pub then_generation: u32,
}

#[derive(Clone, Debug, Serialize)]
pub struct Hook {
    /// `wire`, `shield`, `socket`, `seal`, `backstop`.
    pub layer: String,
    /// `tcx ingress`, `cgroup connect4`…
    pub hook: String,
    /// The interface or cgroup that it is attached to.
    pub target: String,
    pub attached: bool,
    pub ours: bool,
    pub first: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct InterfaceLine {
    pub name: String,
    pub index: u32,
    pub guarded: bool,
    /// Why it is guarded, or why not.
    pub why: String,
    /// Containers or VMs are behind it: whether what passes there between them and this host is judged; `None` elsewhere.
    pub container_host: Option<ContainerHost>,
}

/// What containers, and others behind this host, were told of denied packets (`on_deny`); counts of packets.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rejected {
    /// TCP resets.
    pub resets: u64,
    /// ICMP errors, administratively prohibited.
    pub prohibited: u64,
    /// Held back: too many in a second, or no answer could be made of the packet.
    pub withheld: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct ReasonLine {
    pub reason: &'static str,
    pub verdict: &'static str,
    pub direction: &'static str,
    /// False: passed, be it allowed or denied in audit mode.
    pub dropped: bool,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct RuleLine {
    pub rule: String,
    pub direction: &'static str,
    pub action: &'static str,
    /// `policy.yaml:12`.
    pub place: String,
    /// Flows that it decided in this generation.
    pub flows: u64,
    /// Unix time in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
    /// A temporary exception's.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exception: bool,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct FlowCounts {
    pub held: u64,
    pub allowed: u64,
    pub denied: u64,
    /// Of each family in each table; beyond it the one that is longest silent goes.
    pub room: u32,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Lost {
    /// Ring buffer full; such flows are recorded later, from the tables.
    pub events: u64,
    /// Events of packets without a flow, held back (one a second and reason).
    pub suppressed: u64,
    /// Processes that could not be noted.
    pub owners: u64,
    /// Programs that ran, and answers of name servers, that were not told: their rings were full.
    pub processes: u64,
    pub answers: u64,
    /// Records that could not be written to disk.
    pub records: u64,
}

impl Report {
    /// Exit code 1 where it is false.
    #[must_use]
    pub fn does_what_it_says(&self) -> bool {
        self.problems.is_empty() && self.mode != "none"
    }
}
