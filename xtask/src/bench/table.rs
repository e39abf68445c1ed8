//! Medians in columns for people, every run in JSON for whoever doubts them.

use anyhow::{Context as _, Result};
use std::path::Path;

/// One thing measured in one way.
pub struct Series {
    pub name: String,
    pub unit: &'static str,
    pub runs: Vec<f64>,
}

impl Series {
    /// Of an odd number the middle one; of an even number the lower of the two.
    pub fn median(&self) -> f64 {
        let mut sorted = self.runs.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
    }

    /// Lowest and highest, as parts of the median: how far to trust it.
    fn spread(&self) -> (f64, f64) {
        let median = self.median();
        let (low, high) =
            self.runs.iter().fold((f64::MAX, f64::MIN), |(low, high), &run| (low.min(run), high.max(run)));
        (low / median, high / median)
    }
}

/// The first one is what the others are compared with.
pub fn print(title: &str, all: &[Series]) {
    println!("{title}");
    let Some(base) = all.first().map(Series::median) else { return };
    for series in all {
        let (median, (low, high)) = (series.median(), series.spread());
        println!(
            "  {:<30} {:>12.0} {:<5} {:>6.1} %   (runs {:.2}-{:.2} of the median)",
            series.name,
            median,
            series.unit,
            100.0 * median / base,
            low,
            high
        );
    }
}

pub fn keep(path: &Path, all: &[Series]) -> Result<()> {
    let list: Vec<_> = all
        .iter()
        .map(|series| {
            serde_json::json!({ "name": series.name, "unit": series.unit, "median": series.median(), "runs": series.runs })
        })
        .collect();
    std::fs::write(path, serde_json::to_string_pretty(&list)?).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let of = |runs: &[f64]| Series { name: String::new(), unit: "", runs: runs.to_vec() }.median();
        assert!((of(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((of(&[4.0, 1.0, 2.0, 3.0]) - 2.0).abs() < 1e-9);
        assert!(of(&[]).is_nan());
    }
}
