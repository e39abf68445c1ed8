//! The tests' own program (`src/bin/guard-test-agent.rs`), run in the guarded cgroup.

use std::{env, io, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{process::run, world::Inside};

/// What a system call said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// 0: it succeeded.
    pub errno: i32,
    pub took: Duration,
}

impl Said {
    #[must_use]
    pub fn refused(&self) -> bool {
        self.errno == libc::EPERM
    }

    #[must_use]
    pub fn good(&self) -> bool {
        self.errno == 0
    }

    /// Of one line that the agent printed.
    pub fn parse(line: &str) -> Result<Self> {
        let mut words = line.split(' ');
        let errno = match words.next() {
            Some("ok") => 0,
            Some(number) => number.parse().with_context(|| line.to_owned())?,
            None => 0,
        };
        let took = words.next().and_then(|word| word.parse().ok()).with_context(|| line.to_owned())?;
        Ok(Self { errno, took: Duration::from_millis(took) })
    }
}

/// The agent with its arguments, at a place.
pub fn command(place: &Inside, arguments: &[&str]) -> io::Result<Command> {
    let mut command = place.command(binary()?);
    command.args(arguments);
    Ok(command)
}

/// Runs it to its end; what its call said.
pub fn ask(place: &Inside, arguments: &[&str]) -> Result<Said> {
    let ended = run(&mut command(place, arguments)?, Duration::from_secs(20))?;
    ensure!(ended.good(), "agent {}: {}", arguments.join(" "), ended.text());
    Said::parse(ended.stdout.lines().next().unwrap_or_default())
}

/// Cargo builds it with this package's tests, beside their directory.
pub fn binary() -> io::Result<PathBuf> {
    let own = env::current_exe()?;
    // In a virtual machine both lie in one directory.
    let beside = own.with_file_name("guard-test-agent");
    if beside.exists() {
        return Ok(beside);
    }
    let dir = own.ancestors().nth(2).ok_or_else(|| io::Error::other("a test program without a directory"))?;
    Ok(dir.join("guard-test-agent"))
}
