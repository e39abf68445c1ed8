//! Verdict, reason and rule in one word.

use crate::{Reason, Verdict};

/// Rule number of "no rule".
pub const NO_RULE: u32 = 0x00ff_ffff;

/// Bits 0-23: the deciding rule's number ([`NO_RULE`]: none); 24-31: the [`Reason`], which implies the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Outcome(pub u32);

impl Default for Outcome {
    fn default() -> Self {
        Self::without_rule(Reason::NotListed)
    }
}

impl Outcome {
    #[must_use]
    pub const fn new(reason: Reason, rule: u32) -> Self {
        Self((reason as u32) << 24 | (rule & NO_RULE))
    }

    #[must_use]
    pub const fn without_rule(reason: Reason) -> Self {
        Self::new(reason, NO_RULE)
    }

    /// A number that no reason has (a map that was tampered with) reads as a fault, which denies.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match Reason::from_u8((self.0 >> 24) as u8) {
            Some(reason) => reason,
            None => Reason::TableFault,
        }
    }

    #[must_use]
    pub const fn verdict(self) -> Verdict {
        self.reason().verdict()
    }

    #[must_use]
    pub const fn rule(self) -> Option<u32> {
        if self.0 & NO_RULE == NO_RULE { None } else { Some(self.0 & NO_RULE) }
    }
}
