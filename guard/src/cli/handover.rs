use clap::Args;

use super::{
    ByArgs, Exit, Global, InstanceArgs, output, status,
    time::{now_us, past},
};
use crate::{
    daemon::state_dir::StateDir,
    handover::{Sources, handover},
    host::person::Person,
    journal::{self, Event, Timeline},
    review::{
        acks::Acks,
        report::{self, ReportError, Since},
    },
};

/// What the next shift has to know: one page
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    guard handover\n  \
    guard handover --as kim --note 'lee takes over' > page.txt\n  \
    guard handover --brief        # for those who decide: no addresses\n\n\
    With --as or --note, that the shift was handed over is written into the timeline. Exit code 1 while something does\n\
    not hold.")]
pub struct HandoverArgs {
    /// A few sentences for management
    #[arg(long)]
    pub brief: bool,
    /// Alerts, and what was done, from then on: a time in UTC, or an age (12h, 7d) [default: since the lockdown, else 24h]
    #[arg(long, value_name = "TIME", value_parser = past)]
    pub since: Option<i64>,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &HandoverArgs, global: &Global) -> anyhow::Result<Exit> {
    const DAY: i64 = 86_400;
    let status = status::read(&args.instance)?;
    let directory = args.instance.state_dir();
    let since = match (args.since, &status.lockdown) {
        (Some(since), _) => since.div_euclid(1_000_000),
        (None, Some(mark)) => mark.at,
        (None, None) => status.read_at - DAY,
    };
    // What cannot be read is said on the page: whoever takes over needs the rest of it all the more.
    let mut unread = Vec::new();
    let review = match report::of_directory(&directory, Since::Everything, now_us()) {
        Ok(review) => Some(review),
        Err(ReportError::NoStore { .. }) => None,
        Err(error) => {
            unread.push(format!("the record store cannot be read: {error}"));
            None
        }
    };
    let acks = Acks::read(&directory).unwrap_or_else(|error| {
        unread.push(format!("what was decided cannot be read: {error}"));
        Acks::default()
    });
    let timeline = journal::read(&directory, None).unwrap_or_else(|error| {
        unread.push(format!("the timeline cannot be read: {error}"));
        Timeline::default()
    });
    if timeline.damaged > 0 {
        unread.push(format!("{} lines of the timeline are damaged", timeline.damaged));
    }
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let page = handover(&Sources {
        host: host.unwrap_or_else(|| "this host".to_owned()),
        by: Person::now(args.by.named.as_deref()).name,
        note: args.by.note.clone(),
        status: &status,
        review: review.as_ref(),
        acks: &acks,
        timeline: &timeline.entries,
        unread,
        since,
        suffix: args.instance.suffix(),
    });
    if args.by.named.is_some() || args.by.note.is_some() {
        let state = StateDir::open(&directory)?;
        journal::record(state.path(), &args.by.entry(Event::Handover, "the shift was handed over"));
    }
    if global.json && args.brief {
        output::json_line(&serde_json::json!({ "brief": page.brief() }))?;
    } else if global.json {
        output::json_line(&page)?;
    } else if args.brief {
        output::print(&page.brief())?;
    } else {
        output::print(&page.render())?;
    }
    Ok(if status.does_what_it_says() { Exit::Good } else { Exit::No })
}
