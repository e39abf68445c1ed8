//! What it takes to compile: `cargo run --release -p guard-tests --example compile_ms`.
//!
//! Milliseconds (least and median of five), megabytes of tables, and what they are made of, a line for each shape and
//! size; the peak of resident memory since the start at the end of each line, which only grows.

use anyhow::Result;
use guard_tests::sizes::{Shape, measure};

fn main() -> Result<()> {
    println!(
        "{:<20} {:>9} {:>9} {:>9} {:>9} {:>10} {:>9} {:>9} {:>9}",
        "shape", "entries", "least ms", "median", "MB", "intervals", "classes", "rows", "peak MB"
    );
    for shape in Shape::ALL {
        for entries in [10, 1_000, 100_000, 1_000_000] {
            if entries == 1_000_000 && matches!(shape, Shape::HostAndPort | Shape::HostAndPortV6) {
                continue;
            }
            let policy = shape.policy(entries);
            let measured = measure(&policy, 5)?;
            let size = measured.size;
            println!(
                "{:<20} {entries:>9} {:>9.2} {:>9.2} {:>9.1} {:>10} {:>9} {:>9} {:>9.0}",
                shape.as_str(),
                measured.least,
                measured.median,
                size.bytes as f64 / 1e6,
                size.intervals,
                size.classes,
                size.rows,
                peak_megabytes()?,
            );
        }
    }
    Ok(())
}

/// VmHWM, in units of 1,024 KiB.
fn peak_megabytes() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
