//! `cargo xtask newcomer`: what README.md says to type of the package, typed on a bare Debian 12 and a bare Debian 13. It is
//! taken from README.md itself, so that README.md and what is so cannot part.

mod package;
mod readme;
mod root;
mod session;

use crate::lab::sandbox;
use crate::{dist, packages, shell};
use anyhow::{Context as _, Result, bail, ensure};
pub use readme::Readme;
use root::Suite;
use std::path::PathBuf;
use std::time::Instant;

/// Type what README.md says on a bare Debian 12 and 13, with the package that `cargo xtask dist` made
#[derive(clap::Args)]
pub struct Args {
    /// Only this Debian
    #[arg(long, value_enum)]
    suite: Option<Suite>,
    /// Install nothing, even as root
    #[arg(long)]
    no_install: bool,
    /// Below this root, in a sandbox
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<bool> {
    if let Some(root) = &args.inside {
        let readme = Readme::read()?;
        let session = session::Session::begin(root, &dist::package_made()?, &readme)?;
        println!("  {} commands of README.md", package::follow(&session, &readme)?);
        return Ok(true);
    }
    if let Some(reason) = packages::ready(packages::NEWCOMER, !args.no_install && shell::is_root())? {
        bail!("{reason}");
    }
    dist::package_made().context("the package is made by: cargo xtask dist")?;
    for suite in args.suite.map_or(Suite::ALL.to_vec(), |suite| vec![suite]) {
        follow(suite)?;
    }
    Ok(true)
}

fn follow(suite: Suite) -> Result<()> {
    println!("Debian {}:", suite.version());
    let begun = Instant::now();
    let root = root::bare(suite)?;
    let good = sandbox::enter(&["newcomer".as_ref(), "--inside".as_ref(), root.as_os_str()])?;
    root::remove(&root)?;
    ensure!(good, "Debian {}: README.md and what is so have parted", suite.version());
    println!("  {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}
