//! What makes the policy in force a lockdown: kept beside it, so that it comes and goes with it.

use std::net::SocketAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::daemon::state_dir::{Kept, Manifest, StateDir, StateError};

/// Name of the rule that stands for [`Mark::sessions`]: it has expired before it began, so that it lets nobody in.
pub const THIS_SESSION: &str = "--this-session-only";

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
    /// Sessions that go on though no rule lets them in (`--this-session-only`): nobody may begin another from there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<Open>,
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

/// A session that was open at the flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// IP protocol number.
    pub protocol: u8,
    pub local: SocketAddr,
    pub remote: SocketAddr,
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

    /// Of what holds when nobody confirms: the way in is open to any source. Whoever ordered it has confirmed it.
    #[must_use]
    pub fn on_timeout(&self) -> Self {
        Self {
            ways: any(),
            sessions: Vec::new(),
            dns: false,
            console: false,
            confirmed: Some(Confirmed { at: self.at, by: format!("{} by --on-timeout ssh-only", self.by) }),
            ..self.clone()
        }
    }

    /// Whether `held` is this very lockdown, confirmed; what `--on-timeout` leaves of it when nobody confirms is not.
    #[must_use]
    pub fn is_confirmed_as(&self, held: &Self) -> bool {
        held.confirmed.is_some() && held.at_boot_ns == self.at_boot_ns && held.ways == self.ways
    }

    /// As it comes back after a reboot, which no session outlives.
    #[must_use]
    pub fn rebooted(mut self) -> Self {
        self.sessions.clear();
        self
    }

    /// The way in is open to any source.
    #[must_use]
    pub fn open_to_any(&self) -> bool {
        self.ways.iter().any(|way| way.prefix_len() == 0)
    }

    #[must_use]
    pub fn single_way_in(&self) -> bool {
        !self.console && !self.open_to_any() && self.ways.len() < 2
    }
}

/// Any source.
#[must_use]
pub fn any() -> Vec<IpNet> {
    vec![Ipv4Net::default().into(), Ipv6Net::default().into()]
}

/// The lockdown that holds, by the policy that is kept as in force.
pub fn holding(state: &StateDir) -> Result<Option<(Manifest, Mark)>, StateError> {
    let manifest = state.manifest(Kept::Active)?;
    Ok(manifest.and_then(|manifest| manifest.lockdown.clone().map(|mark| (manifest, mark))))
}

/// What a reboot would bring back, or has to: a lockdown that was still unconfirmed when the machine went down is over.
pub fn kept(state: &StateDir) -> Result<Option<(Manifest, Mark)>, StateError> {
    let manifest = match state.manifest(Kept::Active)? {
        Some(manifest) if manifest.unconfirmed => state.manifest(Kept::Previous)?,
        manifest => manifest,
    };
    Ok(manifest.and_then(|manifest| manifest.lockdown.clone().map(|mark| (manifest, mark))))
}

impl Confirmed {
    #[must_use]
    pub fn now(by: impl Into<String>) -> Self {
        let at = i64::try_from(crate::record::clock::unix_now() / 1_000_000_000).unwrap_or(0);
        Self { at, by: by.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_timeout_leaves_is_no_confirmation() {
        let at = |ns: &str| Mark {
            at_boot_ns: ns.to_owned(),
            ways: vec!["192.0.2.7/32".parse().unwrap()],
            ..Mark::default()
        };
        let mark = at("7");
        let confirmed = |mark: Mark| Mark { confirmed: Some(Confirmed::default()), ..mark };
        assert!(mark.is_confirmed_as(&confirmed(mark.clone())));
        assert!(!mark.is_confirmed_as(&mark));
        assert!(!mark.is_confirmed_as(&mark.on_timeout()));
        assert!(!mark.is_confirmed_as(&confirmed(at("8"))), "another lockdown");
    }
}
