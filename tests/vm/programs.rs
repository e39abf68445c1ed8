//! The committed object by itself: through this kernel's verifier, within its budget.

use std::time::Instant;

use anyhow::Result;
use guard_tests::{
    bpf::{OBJECT, Programs},
    budget,
};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

/// Every program passes this kernel's verifier.
pub fn load() -> Result<()> {
    // Before 5.11 maps count against the limit of locked memory.
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
    let start = Instant::now();
    let programs = Programs::load(OBJECT, |_| {})?;
    println!("guard-vm: seconds loaded {:.2}", start.elapsed().as_secs_f64());
    let counts = programs.verified_instructions()?;
    tell(&counts);
    budget::check(&counts)
}

/// One line for each program, for the table.
pub fn tell(counts: &[(String, u32)]) {
    for (name, count) in counts {
        match count {
            0 => println!("guard-vm: insns {name:<18} not told by this kernel"),
            count => println!("guard-vm: insns {name:<18} {count}"),
        }
    }
}
