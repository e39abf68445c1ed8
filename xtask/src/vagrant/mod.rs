//! `cargo xtask vagrant`: real machines with a real init, under Vagrant and libvirt, and the scenarios of `tests/vagrant` in
//! them. All of it runs in namespaces of its own, and is gone when it ends.

mod image;
mod session;

use crate::{dist, lab::sandbox, packages, shell};
use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;
use session::Session;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Build the box (Debian 12, for libvirt) into target/vagrant
    Box {
        /// Without Docker: half the size
        #[arg(long)]
        small: bool,
    },
    /// Run the scenarios of tests/vagrant/scenarios in machines that are gone afterwards; logs in target/vagrant/logs
    Test {
        /// All, unless some are named: container, first-contact, lockdown, lockout, package, reboot, shift
        scenarios: Vec<String>,
        /// Install nothing, even as root
        #[arg(long)]
        no_install: bool,
        /// Already in the sandbox, with what it needs in this folder
        #[arg(long, hide = true)]
        inside: Option<PathBuf>,
    },
}

/// What a scenario may take, on a machine that is busy with other things as well.
const LIMIT: Duration = Duration::from_secs(1200);

pub fn run(args: &Args) -> Result<bool> {
    match &args.task {
        Task::Box { small } => image::build(!small).map(|_| true),
        Task::Test { scenarios, inside: Some(dir), .. } => inside(scenarios, dir),
        Task::Test { scenarios, no_install, .. } => {
            if let Some(reason) = packages::ready(packages::VAGRANT, !no_install && shell::is_root())? {
                bail!("{reason}");
            }
            let answers = test(&chosen(scenarios)?)?;
            for answer in &answers {
                println!("{:<16} {}", answer.scenario, answer.spoken());
            }
            Ok(answers.iter().all(|answer| matches!(answer.ended, Ended::Passed)))
        }
    }
}

pub struct Answer {
    pub scenario: String,
    pub ended: Ended,
}

pub enum Ended {
    Passed,
    Failed,
    /// The machines could not be had, and why.
    NotRun(String),
}

impl Answer {
    fn spoken(&self) -> String {
        match &self.ended {
            Ended::Passed => "passed".into(),
            Ended::Failed => "FAILED".into(),
            Ended::NotRun(why) => format!("NOT RUN: {why}"),
        }
    }
}

fn chosen(wanted: &[String]) -> Result<Vec<String>> {
    let known = session::scenarios()?;
    for name in wanted {
        ensure!(known.contains(name), "no scenario is called {name} (known: {})", known.join(", "));
    }
    Ok(if wanted.is_empty() { known } else { wanted.to_vec() })
}

/// Builds what is needed, and runs the scenarios in a sandbox. An error is one of ours; what the machine here lacks makes
/// scenarios that are not run.
pub fn test(scenarios: &[String]) -> Result<Vec<Answer>> {
    let top = shell::target().join("vagrant");
    std::fs::create_dir_all(&top)?;
    let logs = logs();
    if logs.exists() {
        std::fs::remove_dir_all(&logs)?;
    }
    std::fs::create_dir_all(&logs)?;
    let dir = tempfile::Builder::new().prefix("run-").tempdir_in(&top)?;
    // The build of the package may replace the program that runs.
    let own = dir.path().join("xtask");
    std::fs::copy(shell::own_program()?, &own)?;
    shell::keep_own_program(own);
    package(&dir.path().join("guard.deb"))?;
    if let Err(error) = image::ready(want_containers(scenarios)) {
        return Ok(answers(scenarios, &format!("no box: {error:#}"), &logs));
    }
    let start = Instant::now();
    let mut args: Vec<OsString> = ["vagrant", "test", "--inside"].map(OsString::from).into();
    args.push(dir.path().into());
    args.extend(scenarios.iter().map(OsString::from));
    let ended = sandbox::enter(&args);
    println!("   in all {:.0} s; logs in {}", start.elapsed().as_secs_f64(), logs.display());
    let cannot = std::fs::read_to_string(logs.join("cannot")).ok();
    let why = match (cannot, ended) {
        (Some(cannot), _) => cannot,
        (None, Err(error)) => format!("{error:#}"),
        (None, Ok(_)) => "the run ended before it".into(),
    };
    Ok(answers(scenarios, &why, &logs))
}

fn want_containers(scenarios: &[String]) -> bool {
    scenarios.iter().any(|name| name == "container")
}

fn answers(scenarios: &[String], why_not: &str, logs: &Path) -> Vec<Answer> {
    let text = std::fs::read_to_string(logs.join("result")).unwrap_or_default();
    let ended = |name: &str| match text.lines().find_map(|line| line.strip_suffix(name)?.strip_suffix(' ')) {
        Some("passed") => Ended::Passed,
        Some(_) => Ended::Failed,
        None => Ended::NotRun(why_not.to_owned()),
    };
    scenarios.iter().map(|name| Answer { scenario: name.clone(), ended: ended(name) }).collect()
}

fn logs() -> PathBuf {
    shell::target().join("vagrant/logs")
}

/// Guard's package, of the binary that the tests use (or `GUARD_BIN`): without its debug information, which would be most
/// of it.
fn package(deb: &Path) -> Result<()> {
    let binary = match std::env::var_os("GUARD_BIN") {
        Some(binary) => binary.into(),
        None => {
            // As the tests are built, so that nothing is built twice.
            let build = ["build", "--workspace", "--bins", "--locked", "--quiet"];
            let built = shell::run(shell::cargo().args(build), Duration::from_secs(1800))?;
            ensure!(built.good, "guard does not build ({})", built.how);
            shell::target().join("debug/guard")
        }
    };
    let stripped = tempfile::NamedTempFile::new_in(shell::target().join("vagrant"))?.into_temp_path();
    shell::output(Command::new("strip").arg("-o").arg(&stripped).arg(binary))?;
    dist::quick_package(&stripped, deb)
}

/// In the sandbox.
fn inside(scenarios: &[String], dir: &Path) -> Result<bool> {
    ensure!(sandbox::inside().is_some(), "not called by this program");
    // The sandbox waits for signals and has blocked them; what runs here ends by them.
    SigSet::all().thread_unblock()?;
    if std::process::id() == 1 {
        return reap();
    }
    let logs = logs();
    let done = scenes(scenarios, dir, &logs);
    if let Err(error) = &done {
        std::fs::write(logs.join("cannot"), format!("{error:#}"))?;
    }
    done
}

/// An error is that of the machines.
fn scenes(scenarios: &[String], dir: &Path, logs: &Path) -> Result<bool> {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let image = image::ready(want_containers(scenarios))?;
    let session = Session::start(dir, logs, &dir.join("guard.deb"), &image)?;
    session.vagrant("up", &["up", "victim", "--provider", "libvirt"], minutes(12))?;
    session.neighbours()?;
    session.vagrant("save", &["snapshot", "save", "victim", "fresh"], minutes(3))?;
    let (mut result, mut good) = (String::new(), true);
    for (index, name) in scenarios.iter().enumerate() {
        if index > 0 {
            let restore = ["snapshot", "restore", "--no-provision", "victim", "fresh"];
            session.vagrant(&format!("restore-{name}"), &restore, minutes(5))?;
        }
        let start = Instant::now();
        let passed = session.scenario(name, LIMIT)?;
        println!("   {name}: {} ({:.0} s)", if passed { "passed" } else { "FAILED" }, start.elapsed().as_secs_f64());
        result += &format!("{} {name}\n", if passed { "passed" } else { "FAILED" });
        good &= passed;
        std::fs::write(logs.join("result"), &result)?;
    }
    Ok(good)
}

/// The first process in a namespace gets its orphans. libvirt waits for the QEMU that it asked what it can do to be gone, and
/// one that nobody has reaped is not.
fn reap() -> Result<bool> {
    let child = Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).spawn()?;
    let child = Pid::from_raw(i32::try_from(child.id())?);
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Ok(code == 0),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => bail!("ended by {signal}"),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_without_a_result_was_not_run() {
        let logs = tempfile::tempdir().unwrap();
        std::fs::write(logs.path().join("result"), "passed lockdown\nFAILED reboot\n").unwrap();
        let wanted = ["lockdown", "reboot", "package"].map(str::to_owned);
        let spoken: Vec<String> = answers(&wanted, "no box", logs.path()).iter().map(Answer::spoken).collect();
        assert_eq!(spoken, ["passed", "FAILED", "NOT RUN: no box"]);
    }

    #[test]
    fn every_scenario_says_what_it_is_and_what_it_expects() {
        for name in session::scenarios().unwrap() {
            let path = shell::root().join(format!("tests/vagrant/scenarios/{name}.sh"));
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("# ")), "{name}: what it is");
            assert!(text.contains("# Expected"), "{name}: what it expects");
            shell::output(Command::new("bash").arg("-n").arg(&path)).unwrap();
        }
    }
}
