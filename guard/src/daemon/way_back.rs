//! Never without a way back: when a change needs to be confirmed, and when it is refused.

use std::{fmt::Write, time::Duration};

use super::impact::Impact;
use crate::text::harmless;

/// How long a change from a remote terminal waits for `guard confirm`.
pub const DEFAULT_WITHIN: Duration = Duration::from_secs(120);
/// The shortest that a person can meet: `confirm` is refused in the last second.
const SHORTEST: Duration = Duration::from_secs(5);
/// The state word holds milliseconds since boot in 48 bits; nobody waits that long.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// What `--confirm-within` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Within {
    /// Left out: by the terminal.
    #[default]
    ByTerminal,
    Never,
    For(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no time to confirm within: write 90s, 2m, 1h (5 s to 7 days), or none")]
pub struct WithinError(String);

impl std::str::FromStr for Within {
    type Err = WithinError;

    fn from_str(text: &str) -> Result<Self, WithinError> {
        let error = || WithinError(text.to_owned());
        if text == "none" {
            return Ok(Self::Never);
        }
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let scale = match unit {
            "" | "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(error()),
        };
        let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).ok_or_else(error)?;
        let time = Duration::from_secs(seconds);
        if (SHORTEST..=LONGEST).contains(&time) { Ok(Self::For(time)) } else { Err(error()) }
    }
}

impl Within {
    /// The deadline of a change. Left out, a person at a remote terminal gets one, a unit or a script none.
    #[must_use]
    pub fn deadline(self, on_terminal: bool, remote_session: bool, enforces: bool) -> Option<Duration> {
        match self {
            Self::For(time) => Some(time),
            Self::Never => None,
            Self::ByTerminal if on_terminal && remote_session && enforces => Some(DEFAULT_WITHIN),
            Self::ByTerminal => None,
        }
    }
}

/// A refusal that says which session would be lost, the rule that came nearest, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct CutsSession(pub String);

/// `Err` if this terminal's own session would be cut. `flag`: what lets that happen.
pub fn spare_session(impact: &Impact, flag: &str) -> Result<(), CutsSession> {
    if !impact.cuts_session() {
        return Ok(());
    }
    let mut text = String::from("refused: this would cut the connection that you sit on; nothing was changed");
    for line in impact.session.iter().filter(|line| line.would_be_cut) {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n  session  {}  ({} pid {}, found by {})",
            line.flow,
            harmless(&line.program),
            line.pid,
            line.found.replace('_', " ")
        );
        let ends = (line.local, line.remote);
        if let Some(cut) = impact.would_cut.iter().find(|cut| cut.session && cut.ends() == ends) {
            let _ = write!(text, "\n  nearest  {}", cut.because());
        }
    }
    let _ = write!(text, "\n  do       list it in the policy, or say {flag} if you have another way in");
    Err(CutsSession(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!("90s".parse(), Ok(Within::For(Duration::from_secs(90))));
        assert_eq!("2m".parse(), Ok(Within::For(Duration::from_secs(120))));
        assert_eq!("30".parse(), Ok(Within::For(Duration::from_secs(30))));
        assert_eq!("none".parse(), Ok(Within::Never));
        for bad in ["", "s", "1s", "8d", "2 m", "-5s", "99999999999999999999s", "5y"] {
            assert!(bad.parse::<Within>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_person_at_a_remote_terminal_gets_a_deadline_unasked() {
        assert_eq!(Within::ByTerminal.deadline(true, true, true), Some(DEFAULT_WITHIN));
        assert_eq!(Within::ByTerminal.deadline(false, true, true), None);
        assert_eq!(Within::ByTerminal.deadline(true, false, true), None);
        assert_eq!(Within::ByTerminal.deadline(true, true, false), None);
        assert_eq!(Within::Never.deadline(true, true, true), None);
        let asked = Duration::from_secs(30);
        assert_eq!(Within::For(asked).deadline(false, false, false), Some(asked));
    }
}
