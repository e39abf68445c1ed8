//! The command line: one file a command, each with its arguments and its handler.
//!
//! A handler prints its answer and returns an [`Exit`]; an error that it returns is printed here and means
//! [`Exit::CouldNot`], but for a change that was refused for the sake of the session that asks: that is a "no".

pub mod ack;
pub mod allow;
pub mod check;
pub mod completions;
pub mod confirm;
pub mod doctor;
pub mod explain;
pub mod export;
pub mod flows;
pub mod handover;
pub mod init;
pub mod lockdown;
pub mod man;
pub mod note;
pub mod observe;
pub mod output;
pub mod record;
pub mod release;
pub mod reload;
pub mod replay;
pub mod replay_flows;
pub mod report;
pub mod restore;
pub mod review;
pub mod rollback;
pub mod run;
pub mod show;
pub mod snapshot;
pub mod source;
pub mod status;
pub mod suggest;
pub mod test;
pub mod time;
pub mod timeline;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::LazyLock,
};

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{
    daemon::{change::Refused, state_dir::DEFAULT_ROOT},
    host::person::Person,
    journal::{Entry, Event},
    kernel::{KernelError, check_instance_name},
    object::OBJECT_SHA256,
};

/// What a command has to say to whoever called it, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Good = 0,
    /// The answer is "no": invalid, denied, a test failed, not enforcing.
    No = 1,
    /// Wrong usage.
    Usage = 2,
    /// It could not be done.
    CouldNot = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Build and programs: what a bug report must name.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!("{} (build {})\neBPF object sha256 {OBJECT_SHA256}", env!("CARGO_PKG_VERSION"), env!("GUARD_BUILD"))
});

/// Allow-lists for what enters and leaves this host, enforced in the kernel; what is not listed is denied and recorded.
#[derive(Debug, Parser)]
#[command(
    name = "guard",
    version = VERSION.as_str(),
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 good · 1 the answer is \"no\" · 2 wrong usage · 3 it could not be done\n\
                  Start here: guard check policy.yaml · guard run policy.yaml --audit · guard status"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Accepted by every command.
#[derive(Clone, Copy, Debug, Args)]
pub struct Global {
    /// Print JSON (one object, or one a line) instead of text
    #[arg(long, global = true)]
    pub json: bool,
}

/// Which guard: accepted by every command that talks to a running one.
#[derive(Clone, Debug, Args)]
pub struct InstanceArgs {
    /// Name of the instance; several can run on one machine, each in its own network namespace
    #[arg(long, value_name = "NAME", default_value = "default", env = "GUARD_INSTANCE", value_parser = instance_name)]
    pub instance: String,
    /// Where its state lies [default: /var/lib/guard/NAME]
    #[arg(long, value_name = "DIR", env = "GUARD_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

impl InstanceArgs {
    /// The state directory: as given, else the instance's own under the default root.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_ROOT).join(&self.instance))
    }
}

impl InstanceArgs {
    /// What a command that is pasted needs, to reach the same guard.
    #[must_use]
    pub fn suffix(&self) -> String {
        let mut suffix = String::new();
        if self.instance != "default" {
            suffix.push_str(&format!(" --instance {}", self.instance));
        }
        if let Some(state) = &self.state_dir {
            suffix.push_str(&format!(" --state-dir {}", state.display()));
        }
        suffix
    }
}

/// For the timeline.
#[derive(Clone, Debug, Default, Args)]
pub struct ByArgs {
    /// Why, for the timeline
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// Who decides, where the host cannot know
    #[arg(long = "as", value_name = "NAME")]
    pub named: Option<String>,
}

impl ByArgs {
    /// An entry of the timeline by whoever runs this command.
    #[must_use]
    pub fn entry(&self, event: Event, text: impl Into<String>) -> Entry {
        Entry::new(event, text).by(Person::now(self.named.as_deref())).noted(self.note.as_deref())
    }
}

fn instance_name(name: &str) -> Result<String, KernelError> {
    check_instance_name(name)?;
    Ok(name.to_owned())
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Check(check::CheckArgs),
    Explain(explain::ExplainArgs),
    Export(export::ExportArgs),
    Test(test::TestArgs),
    Replay(replay::ReplayArgs),
    Suggest(suggest::SuggestArgs),
    Init(init::InitArgs),
    Observe(observe::ObserveArgs),
    Run(run::RunArgs),
    Lockdown(lockdown::LockdownArgs),
    Reload(reload::ReloadArgs),
    Confirm(confirm::ConfirmArgs),
    Rollback(rollback::RollbackArgs),
    Status(status::StatusArgs),
    Flows(flows::FlowsArgs),
    Report(report::ReportArgs),
    Review(review::ReviewArgs),
    Show(show::ShowArgs),
    Ack(ack::AckArgs),
    Unack(ack::UnackArgs),
    Allow(allow::AllowArgs),
    Deny(allow::DenyArgs),
    Note(note::NoteArgs),
    Timeline(timeline::TimelineArgs),
    Handover(handover::HandoverArgs),
    Restore(restore::RestoreArgs),
    Record(record::RecordArgs),
    Release(release::ReleaseArgs),
    Snapshot(snapshot::SnapshotArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

/// Runs the command of this process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    crate::kernel::introduce_here();
    run_with(std::env::args_os()).into()
}

fn run_with(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Good };
            // Nothing is left to do where even this cannot be printed.
            let _ = error.print();
            return exit;
        }
    };
    let json = cli.global.json;
    match dispatch(cli) {
        Ok(exit) => exit,
        Err(error) if is_broken_pipe(&error) => Exit::Good,
        Err(error) => {
            let text = output::escape(&output::chain(&error));
            let _ = writeln!(io::stderr(), "{} {text}", output::Style::stderr().error("error:"));
            let Some(refused) = error.downcast_ref::<Refused>() else { return Exit::CouldNot };
            if json {
                // Standard error has said it already.
                let _ = output::json_line(&refused.changed);
            }
            Exit::No
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let global = &cli.global;
    match cli.command {
        Command::Check(args) => check::run(&args, global),
        Command::Explain(args) => explain::run(&args, global),
        Command::Export(args) => export::run(&args, global),
        Command::Test(args) => test::run(&args, global),
        Command::Replay(args) => replay::run(&args, global),
        Command::Suggest(args) => suggest::run(&args, global),
        Command::Init(args) => init::run(&args, global),
        Command::Observe(args) => observe::run(&args, global),
        Command::Run(args) => run::run(&args, global),
        Command::Lockdown(args) => lockdown::run(&args, global),
        Command::Reload(args) => reload::run(&args, global),
        Command::Confirm(args) => confirm::run(&args, global),
        Command::Rollback(args) => rollback::run(&args, global),
        Command::Status(args) => status::run(&args, global),
        Command::Flows(args) => flows::run(&args, global),
        Command::Report(args) => report::run(&args, global),
        Command::Review(args) => review::run(&args, global),
        Command::Show(args) => show::run(&args, global),
        Command::Ack(args) => ack::run(&args, global),
        Command::Unack(args) => ack::run_unack(&args, global),
        Command::Allow(args) => allow::run(&args, global),
        Command::Deny(args) => allow::run_deny(&args, global),
        Command::Note(args) => note::run(&args, global),
        Command::Timeline(args) => timeline::run(&args, global),
        Command::Handover(args) => handover::run(&args, global),
        Command::Restore(args) => restore::run(&args, global),
        Command::Record(args) => record::run(&args, global),
        Command::Release(args) => release::run(&args, global),
        Command::Snapshot(args) => snapshot::run(&args, global),
        Command::Doctor(args) => doctor::run(&args, global),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// A reader that has seen enough (`guard flows | head`) is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

/// The whole command line, for completions and man pages.
fn command() -> clap::Command {
    Cli::command()
}

/// What a command says whose part this build leaves out.
#[derive(Debug, thiserror::Error)]
#[error("`guard {command}` is not available in this build")]
pub struct NotAvailable {
    pub command: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(arguments: &[&str]) -> Exit {
        run_with(arguments.iter().map(OsString::from))
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_command_teaches_by_an_example() {
        for sub in command().get_subcommands() {
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("guard {}", sub.get_name())), "{} has no example", sub.get_name());
        }
    }

    #[test]
    fn wrong_usage_is_2_and_help_is_0() {
        assert_eq!(exit(&["guard", "no-such-command"]), Exit::Usage);
        assert_eq!(exit(&["guard", "check"]), Exit::Usage);
        assert_eq!(exit(&["guard", "status", "--instance", "../up"]), Exit::Usage);
        assert_eq!(exit(&["guard", "status", "--instance", "web.1"]), Exit::Usage);
        assert_eq!(exit(&["guard", "--help"]), Exit::Good);
        assert_eq!(exit(&["guard", "--version"]), Exit::Good);
    }

    #[test]
    fn the_version_names_the_object() {
        assert!(VERSION.contains(OBJECT_SHA256));
    }
}
