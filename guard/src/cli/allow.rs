//! `guard allow` and `guard deny`: temporary exceptions over the policy in force.

use std::net::ToSocketAddrs;

use anyhow::{Context, bail};
use clap::Args;
use guard_common::Direction;
use ipnet::IpNet;

use super::{ByArgs, Exit, Global, InstanceArgs, output, time::time};
use crate::{
    daemon::{
        attached,
        change::{self, Change, Changed},
        control, kept,
        report::duration,
        state_dir::{Kept, Manifest, StateDir},
    },
    host::picture::{Picture, on_terminal},
    journal::{self, Event},
    policy::{
        exceptions::{Action, Exception, Host, Wanted, compose, overruled},
        flow_query::BadFlow,
        model::{Mode, Policy},
    },
    record::clock::unix_now,
    text::harmless,
};

/// How long an allowed exception lasts unless said, in seconds.
const LASTS: i64 = 2 * 3600;
/// What is to hold for longer belongs into the policy.
const LONGEST: i64 = 30 * 86_400;
/// Exceptions that hold at once.
const MOST: usize = 64;
/// Of a host that is named.
const MOST_ADDRESSES: usize = 16;

/// Allow one more thing for a while, over the policy in force
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    guard allow 'in tcp 198.51.100.9 -> 22' --note 'second responder'\n  \
    guard allow 'out tcp mirror.example.org:443' --for 30min    # the name is resolved once, now\n  \
    guard allow --list\n  \
    guard allow --undo 2\n\n\
    Never written into the policy's file; kept over a reload, a restart and a reboot until it expires. Refused where a\n\
    deny of the policy would win.")]
pub struct AllowArgs {
    /// What to allow, as `guard explain` takes it; the remote may be a network or a host's name, and never everybody
    #[arg(value_name = "FLOW", num_args = 0..)]
    pub what: Vec<String>,
    /// How long: 30min, 2h, or until a time in UTC [default: 2h]
    #[arg(long = "for", value_name = "TIME", value_parser = end)]
    pub until: Option<i64>,
    #[command(flatten)]
    pub common: ExceptionArgs,
}

/// Cut a remote now, whatever the policy says
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    guard deny 203.0.113.77 --note 'scans us'\n  \
    guard deny 203.0.113.0/24 --for 12h\n  \
    guard deny 'out tcp 203.0.113.9:443'\n  \
    guard deny --undo 3\n\n\
    Refused where it would cut the connection that you sit on.")]
pub struct DenyArgs {
    /// An address, a network or a host's name: all traffic to and from it; or a flow as `guard explain` takes it
    #[arg(value_name = "REMOTE", num_args = 0..)]
    pub what: Vec<String>,
    /// How long: 30min, 2h, or until a time in UTC [default: until it is undone]
    #[arg(long = "for", value_name = "TIME", value_parser = end)]
    pub until: Option<i64>,
    #[command(flatten)]
    pub common: ExceptionArgs,
}

#[derive(Debug, Args)]
pub struct ExceptionArgs {
    /// List the exceptions that hold
    #[arg(long, conflicts_with_all = ["what", "until", "undo"])]
    pub list: bool,
    /// End one, by its number
    #[arg(long, value_name = "N", value_parser = number, conflicts_with_all = ["what", "until"])]
    pub undo: Option<u32>,
    /// Show what would be cut, and stop there
    #[arg(long)]
    pub dry_run: bool,
    /// Go on even if this terminal's own connection would be cut
    #[arg(long)]
    pub cut_me: bool,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

/// Unix time in seconds.
fn end(text: &str) -> Result<i64, String> {
    let now = seconds();
    let end = time(text, 1)? / 1_000_000;
    match end - now {
        ..=0 => Err("that is past".to_owned()),
        left if left > LONGEST => Err("more than 30 days: write it into the policy".to_owned()),
        _ => Ok(end),
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.trim_start_matches('#').parse().map_err(|_| "write its number, as --list shows it".to_owned())
}

fn seconds() -> i64 {
    i64::try_from(unix_now() / 1_000_000_000).unwrap_or(0)
}

pub fn run(args: &AllowArgs, global: &Global) -> anyhow::Result<Exit> {
    let until = Some(args.until.unwrap_or_else(|| seconds() + LASTS));
    except(Action::Allow, &args.what, until, &args.common, global)
}

pub fn run_deny(args: &DenyArgs, global: &Global) -> anyhow::Result<Exit> {
    except(Action::Deny, &args.what, args.until, &args.common, global)
}

fn except(
    action: Action,
    what: &[String],
    until: Option<i64>,
    args: &ExceptionArgs,
    global: &Global,
) -> anyhow::Result<Exit> {
    if args.list {
        return list(args, global);
    }
    if let Some(number) = args.undo {
        return undo(number, args, global);
    }
    let text = what.join(" ");
    let begins_flow = matches!(text.split_whitespace().next(), Some("in" | "out" | "inbound" | "outbound"));
    let wanted = match action {
        Action::Deny if !begins_flow => Wanted::remote(&text),
        _ => Wanted::flow(&text),
    };
    let made = wanted.map_err(anyhow::Error::from).and_then(|wanted| {
        let nets = addresses(&wanted.host)?;
        Ok(wanted.exception(action, &nets)?)
    });
    let exception = match made {
        Ok(exception) => exception,
        Err(error) => return refuse(&error),
    };
    add(Exception { expires: until, ..exception }, args, global)
}

/// What was written cannot be used: wrong usage, with what would be right.
fn refuse(error: &anyhow::Error) -> anyhow::Result<Exit> {
    let style = output::Style::stderr();
    eprintln!("{} {}", style.error("error:"), output::escape_line(&output::chain(error)));
    if let Some(bad) = error.downcast_ref::<BadFlow>() {
        eprintln!("  {}", output::escape_line(&bad.help));
    }
    Ok(Exit::Usage)
}

/// A name is resolved here and now, once.
fn addresses(host: &Host) -> anyhow::Result<Vec<IpNet>> {
    let name = match host {
        Host::Net(net) => return Ok(vec![*net]),
        Host::Name(name) => name,
    };
    let found = (name.as_str(), 0)
        .to_socket_addrs()
        .with_context(|| format!("{name} cannot be resolved here (is DNS closed?): write its address"))?;
    let mut nets: Vec<IpNet> = found.map(|socket| socket.ip().to_canonical().into()).collect();
    nets.sort_unstable();
    nets.dedup();
    if nets.is_empty() {
        bail!("{name} has no address");
    }
    if nets.len() > MOST_ADDRESSES {
        bail!("{name} has {} addresses, more than {MOST_ADDRESSES}: name a network that holds them", nets.len());
    }
    Ok(nets)
}

/// What holds now: the policy's kept copy and its exceptions.
fn in_force(state: &StateDir) -> anyhow::Result<(Manifest, Policy)> {
    kept::base(state, Kept::Active)?
        .context("no policy is in force here, so there is nothing to make an exception from")
}

fn add(mut exception: Exception, args: &ExceptionArgs, global: &Global) -> anyhow::Result<Exit> {
    let (state, mut engine) = attached::existing(&args.instance.instance, &args.instance.state_dir())?;
    let _lock = state.lock()?;
    change::settle(&mut engine, &state)?;
    let (manifest, base) = in_force(&state)?;
    let mut entry = args.by.entry(event(exception.action), "");
    exception.number = kept::last_exception(&state) + 1;
    exception.made = seconds();
    exception.by = entry.by.as_ref().map(|person| person.name.chars().take(64).collect()).unwrap_or_default();
    exception.note = args.by.note.as_ref().map(|note| note.chars().take(256).collect());
    let mut exceptions = kept::holding(&manifest, seconds());
    if exceptions.len() >= MOST {
        bail!("{MOST} exceptions hold already: end some (--list, --undo), or write them into the policy");
    }
    if exception.action == Action::Allow
        && let Some(rule) = overruled(&compose(base.clone(), &exceptions), &exception, unix_now())
    {
        bail!(
            "refused: \"{}\" ({}) denies it, and a deny wins; nothing was changed\n  do    change the policy, or name \
             less than that rule does",
            rule.label(),
            rule.place.spoken()
        );
    }
    // Where the policy only audits, a deny is recorded and drops nothing: to be told "denied" would be a lie.
    let denies: Vec<Direction> = match exception.action {
        Action::Deny => exception.rules().iter().map(|rule| rule.direction).collect(),
        Action::Allow => Vec::new(),
    };
    let open: Vec<&str> = denies
        .iter()
        .filter(|direction| match direction {
            Direction::Inbound => base.inbound == Mode::Audit,
            Direction::Outbound => base.outbound == Mode::Audit,
        })
        .map(|direction| direction.as_str())
        .collect();
    if !denies.is_empty() && open.len() == denies.len() {
        bail!(
            "refused: policy {} only audits {}, so a deny would drop nothing; nothing was changed\n  do    enforce a \
             policy first (guard reload), or contain this host (guard lockdown)",
            base.name,
            open.join(" and ")
        );
    }
    exceptions.push(exception.clone());
    let changed = publish(&mut engine, &state, &manifest, &base, exceptions, args)?;
    if changed.published {
        entry.text = said(&exception);
        journal::record(state.path(), &entry.changed(&changed).details(serde_json::to_value(&exception)?));
        control::tell(&state.socket(), &control::Request::Changed);
    }
    let mut text = format!("{}\n", sentence(&exception, args));
    for direction in &open {
        text.push_str(&format!("NOT DROPPED {direction}: the policy only audits there\n"));
    }
    answer(Some(&exception), &changed, &open, &text, args, global)
}

fn undo(number: u32, args: &ExceptionArgs, global: &Global) -> anyhow::Result<Exit> {
    let (state, mut engine) = attached::existing(&args.instance.instance, &args.instance.state_dir())?;
    let _lock = state.lock()?;
    change::settle(&mut engine, &state)?;
    let (manifest, base) = in_force(&state)?;
    let mut exceptions = kept::holding(&manifest, seconds());
    let Some(at) = exceptions.iter().position(|exception| exception.number == number) else {
        bail!("no exception #{number} holds: guard allow --list{} lists them", args.instance.suffix());
    };
    let ended = exceptions.remove(at);
    let changed = publish(&mut engine, &state, &manifest, &base, exceptions, args)?;
    if changed.published {
        let entry = args.by.entry(Event::Undo, format!("{} ended: {}", ended.label(), ended.spoken()));
        journal::record(state.path(), &entry.changed(&changed).details(serde_json::to_value(&ended)?));
        control::tell(&state.socket(), &control::Request::Changed);
    }
    let text = format!("{} ended: {}\n", ended.label(), harmless(&ended.spoken()));
    answer(Some(&ended), &changed, &[], &text, args, global)
}

/// The policy as it is kept, with other exceptions, as a generation of its own.
fn publish(
    engine: &mut attached::Kernel,
    state: &StateDir,
    manifest: &Manifest,
    base: &Policy,
    exceptions: Vec<Exception>,
    args: &ExceptionArgs,
) -> anyhow::Result<Changed> {
    let change = Change {
        audit: manifest.audit,
        exceptions,
        from: Some(Kept::Active),
        dry_run: args.dry_run,
        cut_me: args.cut_me,
        // For good: a deny that cuts this session is refused, and an allow cuts nothing.
        on_terminal: on_terminal(),
        ..Change::new(base, &manifest.source)
    };
    change::change(engine, state, &Picture::read()?, &change)
}

fn answer(
    exception: Option<&Exception>,
    changed: &Changed,
    not_dropped: &[&str],
    text: &str,
    args: &ExceptionArgs,
    global: &Global,
) -> anyhow::Result<Exit> {
    if global.json {
        output::json_line(&serde_json::json!({
            "exception": exception, "changed": changed, "not_dropped": not_dropped
        }))?;
    } else {
        let mut all = String::new();
        if !changed.impact.would_cut.is_empty() || args.dry_run {
            all.push_str(&changed.impact.render(20));
        }
        if args.dry_run {
            all.push_str("nothing was changed (--dry-run)\n");
        } else {
            all.push_str(text);
        }
        output::print(&output::escape(&all))?;
    }
    Ok(if args.dry_run && changed.impact.cuts_session() && !args.cut_me { Exit::No } else { Exit::Good })
}

const fn event(action: Action) -> Event {
    match action {
        Action::Allow => Event::Allow,
        Action::Deny => Event::Deny,
    }
}

fn said(exception: &Exception) -> String {
    let until = exception.expires.map_or_else(
        || "until it is undone".to_owned(),
        |expires| format!("until {}", output::utc(i128::from(expires) * 1_000_000_000)),
    );
    format!("{} {until}: {}", exception.label(), exception.spoken())
}

fn sentence(exception: &Exception, args: &ExceptionArgs) -> String {
    let (what, word) = match exception.action {
        Action::Allow => ("allowed", "allow"),
        Action::Deny => ("denied", "deny"),
    };
    let until = exception.expires.map_or_else(
        || "until it is undone".to_owned(),
        |expires| {
            let left = duration(expires - exception.made);
            format!("until {} ({left})", output::utc(i128::from(expires) * 1_000_000_000))
        },
    );
    format!(
        "{what} {until}: {}   ({}, {}); undo: guard {word} --undo {}{}",
        harmless(&exception.spoken()),
        exception.label(),
        harmless(&exception.by),
        exception.number,
        args.instance.suffix()
    )
}

fn list(args: &ExceptionArgs, global: &Global) -> anyhow::Result<Exit> {
    let state = StateDir::open(&args.instance.state_dir())?;
    let manifest = state.manifest(Kept::Active)?.context("no policy is in force here")?;
    let exceptions = kept::holding(&manifest, seconds());
    if global.json {
        output::json_line(&exceptions)?;
    } else {
        let lines: Vec<String> = exceptions.iter().map(|exception| line(exception, seconds())).collect();
        output::print(&if lines.is_empty() { "no exception holds".to_owned() } else { lines.join("\n") })?;
    }
    Ok(Exit::Good)
}

/// `allow #2  in tcp/22 from 198.51.100.9   ends in 41 min   lee, "second responder"`.
#[must_use]
pub fn line(exception: &Exception, now: i64) -> String {
    let ends = exception
        .expires
        .map_or_else(|| "until undone".to_owned(), |expires| format!("ends in {}", duration(expires - now)));
    let note = exception.note.as_ref().map(|note| format!(", \"{note}\"")).unwrap_or_default();
    harmless(&format!("{:<9} {}   {ends}   {}{note}", exception.label(), exception.spoken(), exception.by))
}
