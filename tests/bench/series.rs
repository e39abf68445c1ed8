//! One thing measured several times.

use serde::Serialize;

#[derive(Serialize)]
pub struct Series {
    pub name: String,
    pub unit: &'static str,
    pub runs: Vec<f64>,
}

impl Series {
    pub fn of(name: impl Into<String>, unit: &'static str) -> Self {
        Self { name: name.into(), unit, runs: Vec::new() }
    }

    /// The middle one, the lower of two.
    pub fn median(&self) -> f64 {
        let mut sorted = self.runs.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
    }
}
