//! The probe object: the real parts of the programs, asked many questions in one run.

use anyhow::Result;
use guard_common::{
    Direction,
    decide::{Decision, Outcome, Question, Subject},
};

use crate::bpf::{PROBE, Programs, lookup_batch, update, update_batch};

/// Mirror of the probe's element.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Probe {
    remote: [u32; 4],
    service: u32,
    interface: u32,
    local: u32,
    direction: u8,
    ipv6: u8,
    slot: u8,
    needs_context: u8,
    outcome: u32,
    named: u32,
    until: u64,
}

/// Elements of the probe's circle.
pub const CIRCLE: usize = 1 << 16;

const UNKNOWN: u32 = u32::MAX;

impl Probe {
    #[must_use]
    pub fn ask(question: &Question, slot: u8) -> Self {
        Self {
            remote: question.remote,
            service: question.service,
            interface: question.subject.interface.unwrap_or(UNKNOWN),
            local: question.subject.local.unwrap_or(UNKNOWN),
            direction: question.direction as u8,
            ipv6: question.ipv6.into(),
            slot,
            ..Self::default()
        }
    }

    #[must_use]
    pub fn question(&self) -> Question {
        let known = |class: u32| (class != UNKNOWN).then_some(class);
        Question {
            direction: Direction::from_u8(self.direction),
            ipv6: self.ipv6 != 0,
            remote: self.remote,
            service: self.service,
            subject: Subject { interface: known(self.interface), local: known(self.local) },
        }
    }

    #[must_use]
    pub fn answer(&self) -> Decision {
        Decision {
            outcome: Outcome(self.outcome),
            until: self.until,
            needs_context: self.needs_context != 0,
            named: self.named != 0,
        }
    }
}

/// The loaded probe.
pub struct Prober(pub Programs);

impl Prober {
    pub fn load() -> Result<Self> {
        Ok(Self(Programs::load(PROBE, |_| {})?))
    }

    /// Asks the kernel all questions, at most [`CIRCLE`].
    pub fn ask(&mut self, questions: &[Probe]) -> Result<Vec<Probe>> {
        self.put(questions)?;
        let result = self.0.run("probe_decide", &[0; 64], None, questions.len() as u32)?;
        anyhow::ensure!(result.return_value == 0, "probe_decide gave {}", result.return_value);
        let mut answers = vec![Probe::default(); questions.len()];
        lookup_batch(self.0.map("PROBE")?, questions.len() as u32, &mut answers)?;
        Ok(answers)
    }

    /// Fills the circle from its start, and begins there.
    pub fn put(&self, questions: &[Probe]) -> Result<()> {
        update_batch(self.0.map("PROBE")?, questions)?;
        update(self.0.map("RUNS")?, &0_u32, &0_u64)
    }

    /// Nanoseconds a run of a program over the whole circle: the least of several.
    pub fn nanoseconds(&mut self, program: &str, runs: usize) -> Result<Vec<u64>> {
        let mut times = Vec::new();
        for _ in 0..runs {
            update(self.0.map("RUNS")?, &0_u32, &0_u64)?;
            times.push(self.0.run(program, &[0; 64], None, CIRCLE as u32)?.duration.as_nanos() as u64);
        }
        times.sort_unstable();
        Ok(times)
    }
}
