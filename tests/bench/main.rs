//! `cargo xtask bench` runs this, built for release: `guard-bench PART --runs N --raw FILE`.

mod decision;
mod empty;
mod instance;
mod packets;
mod replay;
mod review;
mod series;
mod tables;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let part = arguments.next().context("which part?")?;
    let (mut runs, mut raw) = (5, None);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--runs" => runs = value.parse()?,
            "--raw" => raw = Some(PathBuf::from(value)),
            _ => bail!("{name} is not known"),
        }
    }
    let all = match part.as_str() {
        "decision" => decision::measure(runs)?,
        "packets" => packets::measure(runs)?,
        "instance" => instance::measure(runs)?,
        "replay" => replay::measure(runs)?,
        "review" => review::measure(runs)?,
        "policy" => tables::measure(runs)?,
        _ => bail!("no part is called {part}"),
    };
    if let Some(raw) = raw {
        std::fs::write(&raw, serde_json::to_string_pretty(&all)?).with_context(|| raw.display().to_string())?;
    }
    Ok(())
}
