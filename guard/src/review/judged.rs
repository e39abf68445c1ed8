//! What a policy would have done with a flow that was recorded: the kernel's own decision, asked with the flow's ends, at
//! the time when it began.

use guard_common::{
    Reason,
    decide::{Question, Subject, decide},
};

use super::observed::Observed;
use crate::{
    policy::{
        answer::settled_before,
        compile::{Clocks, CompileError, Compiled, compile},
        model::{FlowQuery, Policy},
    },
    record::flow::has_ports,
};

/// The first flow, on the boot-time clock: as `replay` has it.
const START_NS: u64 = 3_600_000_000_000;

/// A policy, asked about recorded flows.
pub struct Judge<'a> {
    pub policy: &'a Policy,
    compiled: Compiled,
    first_us: i64,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    pub reason: Reason,
    /// Position in [`Policy::rules`].
    pub rule: Option<usize>,
}

impl<'a> Judge<'a> {
    /// `first_us`: about when the flows begin, in Unix microseconds. What had expired by then is not asked any more.
    pub fn new(policy: &'a Policy, first_us: i64) -> Result<Self, CompileError> {
        let clocks = Clocks { unix_ns: i128::from(first_us) * 1000, boot_ns: START_NS };
        Ok(Self { policy, compiled: compile(policy, clocks, 1)?, first_us })
    }

    #[must_use]
    pub fn judge(&self, flow: &Observed) -> Judged {
        let query = query(flow);
        if let Some(reason) = settled_before(self.policy, &query) {
            return Judged { reason, rule: None };
        }
        let asked = self.compiled.question(&query);
        let Subject { interface, local } = asked.subject;
        // As the kernel, which always knows both.
        let subject = Subject { interface: interface.or(Some(0)), local: local.or(Some(0)) };
        let since = u64::try_from(flow.first.saturating_sub(self.first_us)).unwrap_or(0).saturating_mul(1000);
        let now = START_NS.saturating_add(since);
        let outcome = decide(self.compiled.nodes.as_slice(), &Question { subject, ..asked }, || now).outcome;
        Judged { reason: outcome.reason(), rule: outcome.rule().map(|rule| rule as usize) }
    }
}

/// The flow as a question.
#[must_use]
pub fn query(flow: &Observed) -> FlowQuery {
    let protocol = flow.key.protocol();
    FlowQuery {
        direction: flow.direction,
        remote: flow.key.remote(),
        remote_port: has_ports(protocol).then(|| flow.key.remote_port()),
        local: Some(flow.key.local()),
        service: word(flow),
        interface: flow.interface.as_deref().map(str::to_owned),
    }
}

/// [`crate::policy::model::ServiceRange`]'s word of what was asked for.
#[must_use]
pub fn word(flow: &Observed) -> u32 {
    let protocol = flow.key.protocol();
    let low = if has_ports(protocol) || flow.key.is_icmp() { flow.key.service(flow.direction) } else { 0 };
    u32::from(protocol) << 16 | u32::from(low)
}
