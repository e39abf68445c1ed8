use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;

use super::{ByArgs, Exit, Global, InstanceArgs, output};
use crate::{
    daemon::{
        attached::{self, Kernel},
        change, control,
        engine::Engine,
        kept,
        state_dir::{Kept, Manifest, StateDir},
    },
    host::{person::Person, picture::Picture},
    journal::{self, Event},
    lockdown::{
        act, logins,
        mark::{self, Confirmed, Mark},
        service,
    },
};

/// Keep a change that would otherwise be undone at its deadline
///
/// Of a lockdown it first looks for a login begun since, by the way that is kept, and for a second way in; then it ends
/// the sockets of what was cut.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  guard confirm\n  guard confirm --one-way-in      # of a lockdown, knowing that there is no second one"
)]
pub struct ConfirmArgs {
    /// Of a lockdown: one way in is enough
    #[arg(long)]
    pub one_way_in: bool,
    /// Of a lockdown: confirm though nobody has logged in since
    #[arg(long)]
    pub no_new_login: bool,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &ConfirmArgs, global: &Global) -> anyhow::Result<Exit> {
    let (state, mut engine) = attached::existing(&args.instance.instance, &args.instance.state_dir())?;
    let mut lock = state.lock()?;
    if change::settle(&mut engine, &state)? {
        control::tell(&state.socket(), &control::Request::Changed);
        return say(global, false, "too late: the time to confirm is over, and the change was undone");
    }
    if !engine.read_back()?.state.word.is_pending() {
        return say(global, false, "nothing waits to be confirmed");
    }
    let lockdown = mark::holding(&state)?.filter(|(_, mark)| mark.confirmed.is_none());
    if let Some((_, mark)) = &lockdown {
        // A person may think as long as the deadline lets them; others are not held up.
        drop(lock);
        if let Some(doubt) = doubts(args, mark)? {
            return say(global, false, &doubt);
        }
        lock = state.lock()?;
        let same = |now: &Option<(Manifest, Mark)>| {
            let now = now.as_ref().map(|(_, now)| (&now.at_boot_ns, now.at));
            now == Some((&mark.at_boot_ns, mark.at))
        };
        if change::settle(&mut engine, &state)? || !same(&mark::holding(&state)?) {
            control::tell(&state.socket(), &control::Request::Changed);
            return say(global, false, "not confirmed: what was asked about does not hold any more; see guard status");
        }
    }
    let person = Person::now(args.by.named.as_deref());
    if lockdown.is_some() {
        act::confirm(&args.instance, &mut engine, &state, &Confirmed::now(person.name.clone()))?;
    } else {
        if let Some(error) = change::confirm(&mut engine, &state, |_| ())? {
            eprintln!(
                "notice: confirmed, but that could not be written down, and a reboot would return to what was before: {}",
                output::escape_line(&error.to_string())
            );
        }
        act::keep_second_copy(&args.instance, &state, None);
    }
    // A manifest that cannot be read only leaves the policy's name out.
    let kept = state.manifest(Kept::Active).ok().flatten();
    let text = if lockdown.is_some() { "the lockdown stays" } else { "the change stays" };
    journal::record(state.path(), &args.by.entry(Event::Confirm, text).kept(kept.as_ref()));
    drop(lock);
    control::tell(&state.socket(), &control::Request::Changed);
    let Some((_, mark)) = lockdown else {
        return say(global, true, "confirmed: the change stays until you make another");
    };
    let mut text = format!("CONFIRMED by {}: locked down until `guard restore`", output::escape_line(&person.name));
    if !mark.destroyed {
        match end_sockets(&engine, &state) {
            Ok(said) => text.push_str(&said),
            Err(error) => text.push_str(&format!("\nsockets of what is cut could not be ended: {error:#}")),
        }
    }
    match service::keep(&args.instance, &state) {
        Some(Ok(said)) => text.push_str(&format!("\n{said}")),
        Some(Err(said)) => text.push_str(&format!("\nnotice: {said}")),
        None => {}
    }
    say(global, true, &text)
}

fn end_sockets(engine: &Kernel, state: &StateDir) -> anyhow::Result<String> {
    let Some((_, policy)) = kept::load(state, Kept::Active)? else { return Ok(String::new()) };
    let (ended, problems) = act::destroy(engine, state, &policy, &[], false)?;
    let failed = ended.iter().filter(|socket| socket.error.is_some()).count();
    let mut text = format!("\nsockets of what is cut were ended: {}, each is in the timeline", ended.len() - failed);
    for socket in ended.iter().filter_map(|socket| Some((socket, socket.error.as_ref()?))) {
        text.push_str(&format!("\n  not ended: {}: {}", socket.0.flow, socket.1));
    }
    for problem in problems {
        text.push_str(&format!("\n  not looked at: {problem}"));
    }
    Ok(text)
}

const ONE_WAY_IN: (&str, &str) = (
    "there is one way in only: if that place is lost, so is this host. `guard rollback` and a lockdown with --allow-from add \
     a second, or `guard allow` once this is confirmed",
    "--one-way-in",
);

/// What speaks against it and was not answered by a flag; a person at a terminal is asked.
fn doubts(args: &ConfirmArgs, mark: &Mark) -> anyhow::Result<Option<String>> {
    let mut doubts = Vec::new();
    // Where nobody may come in, nobody can have.
    let closed = mark.console || mark.ways.is_empty();
    if !args.no_new_login && !closed && logins::since(mark, &Picture::read()?).is_none() {
        doubts.push((
            "nobody has logged in since the lockdown by the way that it keeps. That this session goes on does not prove that \
             the next can be opened: try one first (ssh -o ControlPath=none …)",
            "--no-new-login",
        ));
    }
    if !args.one_way_in && !mark.sessions.is_empty() && mark.ways.is_empty() {
        doubts.push((
            "only the sessions that are open now go on (--this-session-only): when yours ends, nobody comes in any more. Before \
             that, let yourself in: `guard allow` once this is confirmed",
            "--one-way-in",
        ));
    } else if !args.one_way_in && mark.single_way_in() {
        doubts.push(ONE_WAY_IN);
    }
    let asks = io::stdin().is_terminal() && io::stderr().is_terminal();
    for (doubt, flag) in doubts {
        if !asks {
            return Ok(Some(format!("not confirmed: {doubt}; or confirm with {flag}")));
        }
        if !ask(&format!("{doubt}.\nConfirm all the same? [y/N] "))? {
            return Ok(Some(format!("not confirmed; {flag} answers this")));
        }
    }
    Ok(None)
}

/// Asks on standard error; only `y` and `yes` are yes.
pub fn ask(question: &str) -> io::Result<bool> {
    Ok(matches!(answer(question)?.to_lowercase().as_str(), "y" | "yes"))
}

/// The same, for any answer: a line, without blanks around it.
pub fn answer(question: &str) -> io::Result<String> {
    let mut err = io::stderr();
    write!(err, "{}", output::escape(question))?;
    err.flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

fn say(global: &Global, confirmed: bool, text: &str) -> anyhow::Result<Exit> {
    if global.json {
        output::json_line(&serde_json::json!({ "confirmed": confirmed, "message": text }))?;
    } else {
        output::print(&output::escape(text))?;
    }
    Ok(if confirmed { Exit::Good } else { Exit::No })
}
