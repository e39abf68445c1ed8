//! Runs as the only program of a virtual machine (`cargo xtask vm load`): the committed object on this kernel. Each
//! result is one line on the serial console that begins with `guard-vm: `.

use std::process::ExitCode;

use anyhow::Result;
use guard_tests::bpf::{OBJECT, Programs};

fn main() -> ExitCode {
    let mut good = true;
    for (name, check) in [("load", load as fn() -> Result<()>)] {
        match check() {
            Ok(()) => println!("guard-vm: passed {name}"),
            Err(error) => {
                good = false;
                println!("guard-vm: FAILED {name}: {error:#}");
            }
        }
    }
    println!("guard-vm: end");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every program passes this kernel's verifier.
fn load() -> Result<()> {
    // Before 5.11 maps count against the limit of locked memory.
    nix::sys::resource::setrlimit(
        nix::sys::resource::Resource::RLIMIT_MEMLOCK,
        nix::sys::resource::RLIM_INFINITY,
        nix::sys::resource::RLIM_INFINITY,
    )?;
    let programs = Programs::load(OBJECT, |_| {})?;
    for (name, count) in programs.verified_instructions()? {
        match count {
            0 => println!("guard-vm: insns {name:<18} not told by this kernel"),
            count => println!("guard-vm: insns {name:<18} {count}"),
        }
    }
    Ok(())
}
