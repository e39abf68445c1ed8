//! What was recorded, kept for review: `store.db` in the state directory, an SQLite database.
//!
//! One thread of the daemon writes ([`Recording`]); any number of commands read meanwhile ([`Reader`]; write-ahead
//! log). Nothing that packets wait for ever waits for it: a full queue, a full disk and a damaged file cost records, which
//! are counted and told.
//!
//! What is wide and repeats (programs, groups, names of rules) is kept once and referred to by number, so that a flow
//! takes about a hundred bytes. Unsolicited inbound goes round in a ring of its own: scans push out nothing but scans.

mod alerts;
mod asked;
mod background;
mod intern;
mod listening;
mod read;
mod recording;
mod schema;
#[cfg(test)]
mod tests;
mod write;

use std::{io, path::PathBuf};

pub use alerts::Alert;
pub use asked::Name;
pub use background::{Background, BackgroundLine};
pub use listening::{Listener, listeners_now};
pub use read::{Coverage, Flows, GroupRow, Head, ListenerRow, OfGroups, Process, Reader, Run, Span};
pub use recording::{Losses, Recording, StoreStatus};
pub use schema::VERSION;
pub use write::{Begun, Limits, Writer};

/// Its name in the state directory.
pub const FILE: &str = "store.db";

/// How far back a group must have been seen not to be new again: 14 days, in microseconds.
pub const MEMORY_US: i64 = 14 * DAY_US;
/// What is seen first in this long after the store began is *learned*, and not to be trusted: 7 days.
pub const LEARNING_US: i64 = 7 * DAY_US;
/// Remotes that one program, service, direction and fate may have as groups of their own; more are one.
pub(crate) const MANY: u32 = 4096;
/// Groups in all.
pub(crate) const MOST_GROUPS: usize = 200_000;
pub(crate) const DAY_US: i64 = 86_400_000_000;

/// One change of one flow, as it stands now.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub flow: crate::review::observed::Observed,
    /// Nothing follows for this flow.
    pub ended: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path} is of format {found}; this guard knows {VERSION}: use the guard that wrote it, or move it away")]
    Version { path: PathBuf, found: i64 },
    #[error("{path} is no record store of guard: move it away")]
    Foreign { path: PathBuf },
    #[error("{path} is damaged ({detail}); guard run sets it aside and begins a new one")]
    Damaged { path: PathBuf, detail: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Sqlite { path: PathBuf, source: rusqlite::Error },
}

impl StoreError {
    /// Whether the file itself is unusable, so that waiting does not help.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Foreign { .. })
    }
}
