//! The project's own tool, run as `cargo xtask`: builds the eBPF object, runs every check and test there is, the demo
//! and the measurements.
//!
//! It depends on none of the other crates, so that it still builds when the committed eBPF object is older than its
//! sources and `guard` refuses to: it is the way out of that state.

mod apt;
mod bench;
mod capture;
mod demo;
mod dist;
mod ebpf;
mod lab;
mod newcomer;
mod packages;
mod shell;
mod test;
mod vagrant;
mod vm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Build, test, show and measure guard")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Bench(bench::Args),
    Demo(demo::Args),
    Dist(dist::Args),
    Ebpf(ebpf::Args),
    Newcomer(newcomer::Args),
    /// Run every check and test there is; installs what is missing when root
    Test(test::Args),
    /// The committed object on Debian's 5.10, 6.1 and 6.12 kernels, in virtual machines
    Vm(vm::Args),
    /// The box, and the scenarios in real machines
    Vagrant(vagrant::Args),
}

/// As for `guard`: 0 good, 1 the answer is "no", 3 could not do it (clap itself: 2).
fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Bench(args) => bench::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Dist(args) => dist::run(&args),
        Task::Ebpf(args) => ebpf::run(&args).map(|()| true),
        Task::Newcomer(args) => newcomer::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Vagrant(args) => vagrant::run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(3)
        }
    }
}
