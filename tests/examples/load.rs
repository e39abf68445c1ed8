//! Loads each program of an object: `cargo run -p guard-tests --example load -- OBJECT [PROGRAM]`. Prints what the verifier
//! processed, or the end of what it says.

use anyhow::{Context, Result};
use guard_tests::bpf::{Programs, load_program};

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("OBJECT is missing")?;
    let bytes = std::fs::read(path)?;
    let mut loaded = Programs::load_maps(&bytes, |_| {})?;
    let only = std::env::args().nth(2);
    for (name, program) in loaded.ebpf.programs_mut() {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        match load_program(program) {
            Ok(()) => println!("{name:16} {:?}", program.info()?.verified_instruction_count()),
            Err(error) => {
                let text = format!("{error:?}");
                let lines: Vec<&str> = text.lines().collect();
                println!("{name:16} refused:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
        }
    }
    Ok(())
}
