//! Bounds of what can be compiled, and the refusal past them.

use crate::policy::model::Place;

/// Rules in a policy, of both directions.
pub const MAX_RULES: usize = 1 << 20;
/// Address ranges that the rules name, after sets that are equal are counted once.
pub const MAX_RANGES: usize = 1 << 23;
/// Sum over all address classes of the sets that contain them: what overlapping lists cost.
pub const MAX_CLASS_CELLS: usize = 1 << 25;
/// Sum over all address classes and their services of the rules looked at.
pub const MAX_ROW_STEPS: usize = 1 << 26;
/// 64-byte nodes of a generation (512 MiB).
pub const MAX_NODES: usize = 1 << 23;
/// Classes of interfaces: combinations of patterns that some name can match.
pub const MAX_INTERFACE_CLASSES: usize = 1 << 12;
/// Steps in which one flow's outcome changes with time.
pub const MAX_TIME_STEPS: usize = guard_common::decide::Timed::MAX_STEPS as usize;

/// A bound of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    #[error("more than {MAX_RULES} rules")]
    Rules,
    #[error("more than {MAX_RANGES} address ranges")]
    Ranges,
    #[error("address lists that overlap in too many ways (more than {MAX_CLASS_CELLS} class members)")]
    Classes,
    #[error("too many rules for the same addresses (more than {MAX_ROW_STEPS} steps to lay them out)")]
    Rows,
    #[error("tables of more than {MAX_NODES} nodes of 64 bytes")]
    Nodes,
    #[error("interface patterns that overlap in more than {MAX_INTERFACE_CLASSES} ways")]
    Interfaces,
    #[error("an outcome that changes more than {MAX_TIME_STEPS} times as rules expire")]
    TimeSteps,
}

impl Limit {
    /// What to do about it.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::Rules => "give rules that share a service one group of remotes",
            Self::Ranges => "use wider prefixes, or fewer lists",
            Self::Classes => "merge the lists that overlap into one group, or use fewer of them",
            Self::Rows => "merge rules for the same remotes into one with a list of services",
            Self::Nodes => "use wider prefixes, or merge rules that differ only in their remotes",
            Self::Interfaces => "use fewer or plainer interface patterns",
            Self::TimeSteps => "let rules for the same flows expire at the same time",
        }
    }
}

/// A policy that the tables cannot hold, with the rule that makes the difference: all rules before it would compile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{}:{}: with rule \"{label}\" the policy needs {limit}; {}", .place.file.display(), .place.line, .place.column, .limit.help())]
pub struct CompileError {
    pub limit: Limit,
    /// Position in the policy's rules.
    pub rule: usize,
    /// [`crate::policy::model::Rule::label`].
    pub label: String,
    pub place: Place,
}
