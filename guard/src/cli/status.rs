use clap::Args;

use super::{Exit, Global, InstanceArgs, output};
use crate::{
    daemon::{
        attached,
        control::{self, Answer, DaemonStatus, Request},
        difference::Gap,
        engine::Engine,
        gather::{self, Sources},
        kept,
        report::Report,
        round,
        state_dir::{Kept, StateDir},
    },
    journal::{self, Event},
    record::clock::{Clock, unix_now},
    review::report::{self, Since, Waiting},
};

/// Say what the kernel enforces, read back from it
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard status")]
pub struct StatusArgs {
    /// Every hook, interface, reason and rule
    #[arg(long, short)]
    pub verbose: bool,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &StatusArgs, global: &Global) -> anyhow::Result<Exit> {
    let mut report = read(&args.instance)?;
    let (waiting, alerts) = recorded(&args.instance).unzip();
    report.alerts = alerts;
    report.to_review = waiting.map(|waiting| waiting.to_review);
    report.learned = waiting.map(|waiting| waiting.learned);
    if global.json {
        output::json_line(&report)?;
    } else {
        output::print(&report.render(args.verbose))?;
    }
    Ok(if report.does_what_it_says() { Exit::Good } else { Exit::No })
}

/// How many findings wait, and what the watch told in the last day; `None` where there is no store, or it is too large to be
/// summed up while somebody waits.
fn recorded(args: &InstanceArgs) -> Option<(Waiting, usize)> {
    const QUICK_BYTES: u64 = 128 << 20;
    const DAY: i64 = 86_400_000_000;
    let directory = args.state_dir();
    let size = std::fs::metadata(directory.join(crate::store::FILE)).ok()?.len();
    if size > QUICK_BYTES {
        return None;
    }
    let now = i64::try_from(unix_now() / 1000).unwrap_or(0);
    let report = report::of_directory(&directory, Since::Everything, now).ok()?;
    let alerts = report.alerts.iter().filter(|(_, alert)| alert.over.unwrap_or(alert.at) >= now - DAY).count();
    Some((report.waiting(), alerts))
}

/// All that is known, but for what waits for a review.
pub(super) fn read(args: &InstanceArgs) -> anyhow::Result<Report> {
    let engine = attached::open(&args.instance)?;
    let other_firewalls = attached::others(engine.as_ref());
    let Some(engine) = engine else {
        return Ok(gather::not_attached(&args.instance, other_firewalls, unix_now()));
    };
    // The kernel enforces with or without a state directory; without one rules have no names.
    let state = StateDir::open(&args.state_dir()).ok();
    let daemon = state.as_ref().and_then(ask);
    let flows = engine.flows()?;
    let mut read = engine.read_back()?;
    read.missing.extend(round::unsure(engine.settings()));
    let which = state.as_ref().map_or(Kept::Active, |state| kept::in_force(state, &read));
    let manifest = state.as_ref().and_then(|state| state.manifest(which).ok().flatten());
    let policy = state.as_ref().and_then(|state| kept::load(state, which).ok().flatten());
    Ok(gather::report(Sources {
        instance: &args.instance,
        suffix: args.suffix(),
        read: &read,
        interfaces: engine.interfaces()?,
        flows: &flows,
        manifest: manifest.as_ref(),
        policy: policy.as_ref().map(|(_, policy)| policy),
        daemon,
        other_firewalls,
        gaps: state.as_ref().map(gaps).unwrap_or_default(),
        clock: Clock::read()?,
    }))
}

/// When packets may have passed unjudged in the last day, from the timeline. One that cannot be read says nothing.
fn gaps(state: &StateDir) -> Vec<Gap> {
    const DAY: i64 = 86_400_000_000;
    let now = i64::try_from(unix_now() / 1000).unwrap_or(0);
    let timeline = journal::read(state.path(), Some(now - DAY)).unwrap_or_default();
    let repaired = timeline.entries.into_iter().filter(|entry| entry.event == Event::Repaired);
    repaired.filter_map(|mut entry| serde_json::from_value(entry.details["gap"].take()).ok()).collect()
}

/// What only the daemon knows; `None` if none runs. One that runs and does not answer is there all the same.
fn ask(state: &StateDir) -> Option<DaemonStatus> {
    if !state.daemon_runs().unwrap_or(false) {
        return None;
    }
    match control::ask(&state.socket(), &Request::Status) {
        Ok(Some(Answer::Status(status))) => Some(*status),
        _ => Some(DaemonStatus {
            notices: vec!["the daemon runs, and does not answer now: it may be busy".to_owned()],
            ..DaemonStatus::default()
        }),
    }
}
