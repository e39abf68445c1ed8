//! Writes the days of `guard_tests::day` into a directory: to look at a report by hand.

fn main() -> anyhow::Result<()> {
    let directory = std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("which directory?"))?;
    guard_tests::day::write(std::path::Path::new(&directory), true)
}
