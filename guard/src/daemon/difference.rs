//! What the watch may find, and what becomes of it: an alert when it begins, a gap when it is over.

use serde::{Deserialize, Serialize};

/// Names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A hook of ours is detached, or replaced.
    HookDetached,
    /// Ours is there, and its pin is not: it would end with the daemon.
    PinGone,
    /// Another program stands before ours.
    ForeignInFront,
    /// Another program stands at a hook that guard uses.
    ForeignProgram,
    /// What guard told the programs is not what they are told now.
    MapsChanged,
    /// The kernel has another policy in force than was put there.
    StateChanged,
    /// A packet or AF_XDP socket was opened.
    PacketSocket,
    /// An interface sent more than the wire layer judged.
    WentRound,
    /// Somebody loaded a BPF program of a kind that can change what passes.
    ProgramLoaded,
    /// An interface appeared, went, or is judged otherwise.
    InterfaceChanged,
    /// More of a kind came than are told one by one.
    Many,
    /// A socket went round the wire layer, or does.
    GoesRound,
    /// Records cannot be written, or were damaged. Enforcement goes on.
    RecordsLost,
    /// The seal of `bpf(2)` refused what somebody tried.
    BpfRefused,
}

impl Kind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HookDetached => "hook_detached",
            Self::PinGone => "pin_gone",
            Self::ForeignInFront => "foreign_in_front",
            Self::ForeignProgram => "foreign_program",
            Self::MapsChanged => "maps_changed",
            Self::StateChanged => "state_changed",
            Self::PacketSocket => "packet_socket",
            Self::WentRound => "went_round",
            Self::ProgramLoaded => "program_loaded",
            Self::InterfaceChanged => "interface_changed",
            Self::Many => "many",
            Self::GoesRound => "goes_round",
            Self::RecordsLost => "records_lost",
            Self::BpfRefused => "bpf_refused",
        }
    }

    /// As Suricata numbers a signature: stable, one a kind.
    #[must_use]
    pub const fn signature(self) -> u32 {
        7_000_001 + self as u32
    }

    /// Suricata's: 1 is the gravest.
    #[must_use]
    pub const fn severity(self) -> u8 {
        match self {
            Self::PacketSocket | Self::ForeignProgram | Self::InterfaceChanged => 3,
            Self::PinGone | Self::ProgramLoaded | Self::Many | Self::RecordsLost | Self::BpfRefused => 2,
            _ => 1,
        }
    }

    /// Whether enforcement does not hold as long as it lasts.
    #[must_use]
    pub const fn opens(self) -> bool {
        self.lasts() && !matches!(self, Self::PinGone | Self::RecordsLost)
    }

    /// Whether it lasts until it is repaired or gone; the others are told once.
    #[must_use]
    pub const fn lasts(self) -> bool {
        !matches!(
            self,
            Self::PacketSocket
                | Self::ForeignProgram
                | Self::ProgramLoaded
                | Self::InterfaceChanged
                | Self::Many
                | Self::BpfRefused
        )
    }

    /// For people, in the signature.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::HookDetached => "a program of guard's was detached",
            Self::PinGone => "a pin of guard's was removed",
            Self::ForeignInFront => "another program stands before guard's",
            Self::ForeignProgram => "a program of somebody else's at guard's hooks",
            Self::MapsChanged => "guard's maps were changed",
            Self::StateChanged => "another policy is in force than was put there",
            Self::PacketSocket => "a packet or AF_XDP socket was opened",
            Self::WentRound => "an interface sends what guard's programs do not see",
            Self::ProgramLoaded => "a BPF program of somebody else's was loaded",
            Self::InterfaceChanged => "an interface appeared, went, or is judged otherwise",
            Self::BpfRefused => "a bpf() call, or the removal of a pin, was refused",
            Self::Many => "more alerts of a kind than are told one by one",
            Self::GoesRound => "a socket goes round guard's programs",
            Self::RecordsLost => "records cannot be written, or were damaged",
        }
    }
}

/// One difference, as one look found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub kind: Kind,
    /// The interface, cgroup, map or socket: with the kind and the hook it says which difference this is.
    pub target: String,
    /// `tcx ingress`; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hook: String,
    /// In a sentence.
    pub what: String,
    /// Who did it, or who holds it, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// It was put back before this was told.
    pub repaired: bool,
}

impl Difference {
    #[must_use]
    pub fn new(kind: Kind, target: impl Into<String>, what: impl Into<String>) -> Self {
        Self { kind, target: target.into(), hook: String::new(), what: what.into(), by: None, repaired: false }
    }

    #[must_use]
    pub fn repaired(mut self) -> Self {
        self.repaired = true;
        self
    }

    #[must_use]
    pub fn by(mut self, by: impl Into<String>) -> Self {
        self.by = Some(by.into());
        self
    }

    /// Which difference it is, over many looks.
    #[must_use]
    pub fn key(&self) -> (Kind, String, String) {
        (self.kind, self.target.clone(), self.hook.clone())
    }
}

/// A BPF program that somebody else loaded, and which process it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedProgram {
    pub id: u32,
    /// Type, name and user.
    pub what: String,
    /// Which process, as it was when this was heard of; `None`: not known.
    pub by: Option<String>,
}

/// Packets counted twice: by the interfaces, and by the wire layer. Of all guarded interfaces together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Which interfaces, by index.
    pub interfaces: Vec<u32>,
    pub names: Vec<String>,
    /// What left by them, as they count; in wire packets.
    pub sent: u64,
    /// What waits in their queues, or was dropped there.
    pub queued: u64,
    pub received: u64,
    /// What the wire layer let out, and saw come in.
    pub judged_out: u64,
    pub judged_in: u64,
}

/// How long packets may have passed unjudged, written with the end of a difference. Field names are stable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The interface or cgroup.
    pub on: String,
    /// Unix time in microseconds: when all was last seen to be well, and when it was again.
    pub from: i64,
    pub to: i64,
    pub why: String,
    /// About how many packets were not judged; `None`: cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}
