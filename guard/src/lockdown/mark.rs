//! What makes the policy in force a lockdown: kept beside it, so that it comes and goes with it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    daemon::state_dir::{Kept, Manifest, StateDir, StateError},
    host::person::Person,
};

/// Field names are stable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Who locked down.
    pub by: String,
    /// Unix time in seconds.
    pub at: i64,
    /// Boot-time nanoseconds of the flip, as text: JSON numbers are not exact that far.
    pub at_boot_ns: String,
    /// From where one may come in.
    pub ways: Vec<IpNet>,
    /// At which TCP ports.
    pub ports: Vec<u16>,
    /// Resolvers may be asked.
    pub dns: bool,
    /// Nobody comes in over the network.
    pub console: bool,
    /// Sockets of what is cut were destroyed at once.
    pub destroyed: bool,
    /// Left out: not confirmed yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Confirmed>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// Unix time in seconds.
    pub at: i64,
    pub by: String,
}

impl Mark {
    #[must_use]
    pub fn at_boot_ns(&self) -> u64 {
        self.at_boot_ns.parse().unwrap_or(0)
    }

    #[must_use]
    pub fn single_way_in(&self) -> bool {
        !self.console && self.ways.len() < 2
    }
}

/// The lockdown that holds, by the policy that is kept as in force.
pub fn holding(state: &StateDir) -> Result<Option<(Manifest, Mark)>, StateError> {
    let manifest = state.manifest(Kept::Active)?;
    Ok(manifest.and_then(|manifest| manifest.lockdown.clone().map(|mark| (manifest, mark))))
}

/// Written once the kernel has it.
pub fn confirm(state: &StateDir, person: &Person) -> Result<(), StateError> {
    let Some((mut manifest, mut mark)) = holding(state)? else { return Ok(()) };
    let at = i64::try_from(crate::record::clock::unix_now() / 1_000_000_000).unwrap_or(0);
    mark.confirmed = Some(Confirmed { at, by: person.name.clone() });
    manifest.lockdown = Some(mark);
    state.rewrite(&manifest)
}
