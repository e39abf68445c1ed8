//! One entry of the timeline.

use serde::{Deserialize, Serialize};

use super::Footprint;
use crate::{
    daemon::{change::Changed, impact::Impact, state_dir::Manifest},
    host::person::Person,
    record::clock::{timestamp, unix_now},
};

/// Longest text and note of an entry, in bytes.
const TEXT_BYTES: usize = 2048;
/// So many of the flows that a change cut are written down; their number always is.
const MOST_CUT: usize = 64;

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A policy was put in force by `guard run`, or taken over as it was.
    Run,
    /// The recording daemon ended; the kernel goes on.
    Stopped,
    Reload,
    Confirm,
    Rollback,
    Release,
    Ack,
    Unack,
    Note,
    /// A temporary exception, until it expires or is undone.
    Allow,
    Deny,
    Undo,
    /// The watch found a difference.
    Alert,
    /// A difference is over: repaired, or gone by itself.
    Repaired,
    Lockdown,
    Restore,
    /// A page for the next shift was written.
    Handover,
    /// Of a later guard.
    #[default]
    #[serde(other)]
    Other,
}

impl Event {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Stopped => "stopped",
            Self::Reload => "reload",
            Self::Confirm => "confirm",
            Self::Rollback => "rollback",
            Self::Release => "release",
            Self::Ack => "ack",
            Self::Unack => "unack",
            Self::Note => "note",
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Undo => "undo",
            Self::Alert => "alert",
            Self::Repaired => "repaired",
            Self::Lockdown => "lockdown",
            Self::Restore => "restore",
            Self::Handover => "handover",
            Self::Other => "other",
        }
    }
}

/// Field names are stable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// As other records have it, in UTC.
    pub timestamp: String,
    /// The same as Unix time in microseconds.
    pub at: i64,
    pub event: Event,
    /// Left out: guard itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Person>,
    /// What happened, in a sentence.
    pub text: String,
    /// In force from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRef>,
    /// Flows that it cut, the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cut: Vec<CutFlow>,
    /// How many they were.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cut_flows: usize,
    /// Why, as the person wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What guard has on this host from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footprint: Option<Footprint>,
    /// Whatever else belongs to the event.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub details: serde_json::Value,
}

/// A policy, as the kernel and the state directory know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRef {
    pub name: String,
    /// Hex.
    pub sha256: String,
    pub generation: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutFlow {
    /// As `explain` reads it.
    pub flow: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Entry {
    /// Of this moment.
    #[must_use]
    pub fn new(event: Event, text: impl Into<String>) -> Self {
        let now = unix_now();
        Self {
            timestamp: timestamp(now),
            at: i64::try_from(now / 1000).unwrap_or(0),
            event,
            text: text.into(),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn by(mut self, person: Person) -> Self {
        self.by = Some(person);
        self
    }

    #[must_use]
    pub fn noted(mut self, note: Option<&str>) -> Self {
        self.note = note.map(str::to_owned);
        self
    }

    #[must_use]
    pub fn policy(mut self, name: &str, sha256: &str, generation: u32) -> Self {
        self.policy = Some(PolicyRef { name: name.to_owned(), sha256: sha256.to_owned(), generation });
        self
    }

    /// What is kept in the state directory as in force.
    #[must_use]
    pub fn kept(self, manifest: Option<&Manifest>) -> Self {
        match manifest {
            Some(manifest) => self.policy(&manifest.name, &manifest.sha256, manifest.generation),
            None => self,
        }
    }

    #[must_use]
    pub fn cuts(mut self, impact: &Impact) -> Self {
        self.cut_flows = impact.would_cut.len();
        self.cut = impact
            .would_cut
            .iter()
            .take(MOST_CUT)
            .map(|cut| CutFlow { flow: cut.flow.clone(), program: cut.program.clone(), pid: cut.pid })
            .collect();
        self
    }

    /// A change that was made.
    #[must_use]
    pub fn changed(self, changed: &Changed) -> Self {
        self.policy(&changed.policy, &changed.policy_sha256, changed.generation).cuts(&changed.impact)
    }

    #[must_use]
    pub fn details(mut self, details: serde_json::Value) -> Self {
        self.details = details;
        self
    }

    /// As long as a line may be, whatever others put into it.
    pub(super) fn bounded(&self) -> Self {
        let mut entry = self.clone();
        cut_to(&mut entry.text, TEXT_BYTES);
        if let Some(note) = &mut entry.note {
            cut_to(note, TEXT_BYTES);
        }
        if let Some(person) = &mut entry.by {
            cut_to(&mut person.name, 256);
        }
        entry.cut.truncate(MOST_CUT);
        for cut in &mut entry.cut {
            cut_to(&mut cut.flow, 256);
            if let Some(program) = &mut cut.program {
                cut_to(program, 256);
            }
        }
        if entry.details.to_string().len() > 4 * TEXT_BYTES {
            entry.details = serde_json::Value::from("too long to be kept");
        }
        entry
    }
}

fn cut_to(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        let end = (0..=bytes).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}
