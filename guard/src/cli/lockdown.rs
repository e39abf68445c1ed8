mod args;

use std::{
    io::{self, IsTerminal},
    path::Path,
    time::{Duration, Instant},
};

pub use self::args::LockdownArgs;
use super::{
    Exit, Global, check,
    confirm::{answer, ask},
    output,
    run::{self},
};
use crate::{
    daemon::{
        attached::{self},
        change, control,
        engine::Engine,
        round::Done,
        state_dir::{DEFAULT_ROOT, StateDir},
        way_back::Within,
    },
    host::person::Person,
    kernel::cgroup_root,
    lockdown::{
        act::{self, OnTimeout, Order},
        countdown::{self, Outcome},
        destroy::Destroyed,
        detach,
        evidence::Evidence,
        listed, mark,
        packages::Intact,
        plan::Plan,
        prepare::{Found, Guarded, MOST_CANDIDATES, PrepareError, Prepared, Refusal, prepare},
        service,
    },
    record::clock::Clock,
    snapshot,
};

pub fn run(args: &LockdownArgs, global: &Global) -> anyhow::Result<Exit> {
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "a lockdown needs root: sudo guard lockdown");
    let guarded = guarded(args)?;
    let mut found = Found::read(args.exact, &guarded)?;
    let mut first = prepare(&found, &args.wishes(), &guarded);
    if let Err(PrepareError::Refused(Refusal::NoWayIn(text))) = &first
        && !args.yes
        && !args.no_keep_session
        && can_ask(global)
        && let Some(number) = choice(text, found.way_in.candidates.len().min(MOST_CANDIDATES))?
    {
        found.way_in.choose(&found.picture, number, args.exact);
        first = prepare(&found, &args.wishes(), &guarded);
    }
    let prepared = match first {
        Ok(prepared) => prepared,
        Err(error) => return refused(error, global),
    };
    let shown = show(&prepared.plan, args, global);
    if args.dry_run || !args.yes {
        shown?;
    }
    if args.dry_run {
        if !global.json {
            output::print(&format!("\n{}\nnothing was changed (--dry-run)\n", prepared.plan.policy))?;
        }
        return Ok(Exit::Good);
    }
    let prepared = if args.yes {
        prepared
    } else {
        anyhow::ensure!(
            can_ask(global),
            "nobody can be asked here: look at it with --dry-run, then say --yes; nothing was changed"
        );
        match questions(&found, args, &guarded, prepared)? {
            Some(prepared) => prepared,
            None => {
                output::print("nothing was changed")?;
                return Ok(Exit::No);
            }
        }
    };
    enforce(args, &prepared, global)
}

fn can_ask(global: &Global) -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal() && !global.json
}

/// Which of the sessions that were named is the person's own, counted from 0. `None`: none, or nobody says.
fn choice(named: &str, sessions: usize) -> io::Result<Option<usize>> {
    if sessions == 0 {
        return Ok(None);
    }
    let answer = answer(&format!("{named}\nWhich of these is yours? [1-{sessions}, else none] "))?;
    Ok(answer.parse().ok().filter(|number| (1..=sessions).contains(number)).map(|number| number - 1))
}

fn show(plan: &Plan, args: &LockdownArgs, global: &Global) -> io::Result<()> {
    if global.json {
        output::json_line(&serde_json::json!({ "event": "plan", "plan": plan }))
    } else {
        output::print(&plan.render(&args.instance.suffix()))
    }
}

/// Each thing that is a person's choice, one by one. `None`: not now.
fn questions(
    found: &Found,
    args: &LockdownArgs,
    guarded: &Guarded,
    first: Prepared,
) -> anyhow::Result<Option<Prepared>> {
    let mut wishes = args.wishes();
    let mut changed = false;
    for other in
        first.plan.way_in.others.iter().filter(|other| !wishes.cut.contains(&other.pid)).cloned().collect::<Vec<_>>()
    {
        let again = if args.this_session_only { "" } else { " (its owner can come again from there)" };
        if ask(&format!("Cut {}?{again} [y/N] ", first.plan.session(&other)))? {
            wishes.cut.push(other.pid);
            changed = true;
        }
    }
    for offer in &first.plan.offered {
        let changed_package = matches!(&offer.owner, Some(owner) if owner.intact == Intact::No);
        if !changed_package && ask(&format!("Keep {}? [y/N] ", offer.name))? {
            wishes.keep.push(offer.name.clone());
            changed = true;
        }
    }
    let prepared = if changed {
        let again = prepare(found, &wishes, guarded).map_err(|error| match error {
            PrepareError::Refused(refusal) => refusal.into(),
            PrepareError::Policy(found) => anyhow::anyhow!("{}", found.render(false)),
            PrepareError::Other(error) => error,
        })?;
        output::print(&again.plan.render(&args.instance.suffix()))?;
        again
    } else {
        first
    };
    let back = match args.confirm_within {
        Within::Never => "It stays until you end it.".to_owned(),
        within => format!("It opens again by itself after {} s unless you confirm.", seconds_of(within)),
    };
    Ok(ask(&format!("Lock down now? {back}  [y/N] "))?.then_some(prepared))
}

fn seconds_of(within: Within) -> u64 {
    within.deadline(true, true, true).map_or(0, |time| time.as_secs())
}

/// What was done, line by line as it is done.
struct Said<'a> {
    global: &'a Global,
}

impl Said<'_> {
    /// Whoever reads it may be gone: that stops nothing.
    fn line(&self, good: bool, what: &str, text: &str, began: Option<Instant>) {
        if self.global.json {
            return;
        }
        let took = began.map(|began| format!("   {:.1} s", began.elapsed().as_secs_f64())).unwrap_or_default();
        let mark = if good { "✔" } else { "✘" };
        let _ = output::print(&format!(" {mark} {what:<20} {}{took}", output::escape_line(text)));
    }
}

fn enforce(args: &LockdownArgs, prepared: &Prepared, global: &Global) -> anyhow::Result<Exit> {
    let said = Said { global };
    let state = StateDir::create(&args.instance.state_dir())?;
    // Before anything changes. It must never be what keeps a host open.
    let mut evidence = match begin_evidence(args) {
        Ok(evidence) => evidence,
        Err(error) => {
            said.line(false, "state NOT saved", &error.to_string(), None);
            None
        }
    };
    let began = Instant::now();
    if let Some(running) = &mut evidence {
        let all = running.take(Duration::from_secs_f64(args.snapshot_within));
        match all {
            Ok(true) => said.line(true, "state saved", &running.spoken(), Some(began)),
            Ok(false) => {
                said.line(true, "state saved in part", &format!("{}; the rest follows", running.spoken()), Some(began))
            }
            Err(error) => {
                said.line(false, "state NOT saved", &error.to_string(), None);
                evidence = None;
            }
        }
    }
    let person = Person::now(args.by.named.as_deref());
    let began = Instant::now();
    let options = args.options();
    let order = Order {
        instance: &args.instance,
        state: &state,
        options: &options,
        prepared,
        file: args.policy.as_deref(),
        within: args.confirm_within.deadline(true, true, true),
        on_timeout: args.on_timeout,
        keep_session: !args.no_keep_session,
        person: &person,
        note: args.by.note.as_deref(),
    };
    let mut done = match act::act(&order) {
        Ok(done) => done,
        Err(error) => {
            if let Some(failed) = error.downcast_ref::<act::Failed>() {
                if global.json {
                    let _ = output::json_line(
                        &serde_json::json!({ "event": "failed", "why": failed.why, "now": failed.now }),
                    );
                }
                let text = output::escape(&failed.to_string());
                eprintln!("{}", output::Style::stderr().error(&text));
                return Ok(Exit::CouldNot);
            }
            return Err(error);
        }
    };
    let contained = began.elapsed();
    // It holds. From here on nothing that goes wrong ends the command before it has said so.
    let interfaces = done.kernel.interfaces().unwrap_or_default().iter().filter(|line| line.guarded).count();
    said.line(true, "enforcing", &format!("{}, IPv4 and IPv6", counted(interfaces, "interface")), Some(began));
    said.line(true, "proven from inside", &done.proof.passed.join(" · "), None);
    for note in &done.proof.notes {
        said.line(true, "not tried", note, None);
    }
    for round in &done.round {
        let good = round.done != Done::Left;
        said.line(good, if good { "cut" } else { "NOT CUT" }, &round.spoken(), None);
    }
    let cut = cut_now(args, prepared, &mut done, &state, &said).unwrap_or_else(|error| {
        said.line(false, "NOT cut", &format!("{error:#}; what is not allowed drops all the same"), None);
        Vec::new()
    });
    let runs = state.daemon_runs().unwrap_or(false);
    let foreground = args.foreground && !runs;
    if runs && args.foreground {
        said.line(true, "recording", "a daemon records already: --foreground has nothing to do", None);
    }
    let recording = if runs {
        control::tell(&state.socket(), &control::Request::Changed);
        None
    } else if foreground {
        None
    } else {
        match detach::start(&args.instance.instance, &state) {
            Ok(pid) => Some(pid),
            Err(error) => {
                said.line(false, "NOT RECORDING", &format!("{error}; enforcement goes on"), None);
                None
            }
        }
    };
    // A person's own policy says nothing of what should answer now.
    let silent = if args.policy.is_some() { Vec::new() } else { listed::silent(&prepared.choices) };
    for silent in &silent {
        said.line(false, "does not answer", &format!("{silent} (it is listed; the lockdown holds)"), None);
    }
    let clock = Clock::read().unwrap_or(Clock::at_boot(0));
    let until_ns = done.kernel.word().deadline_ms().map(|ms| clock.unix_ns(ms * 1_000_000));
    let until = until_ns.map(output::utc);
    let _ = if global.json {
        output::json_line(&serde_json::json!({
            "event": "contained", "until": until, "until_unix_ms": until_ns.map(|ns| (ns / 1_000_000) as i64),
            "contained_ms": contained.as_millis() as u64,
            "generation": done.changed.generation, "policy_sha256": done.changed.policy_sha256, "proof": done.proof,
            "would_cut": done.changed.impact.would_cut.len(), "ended": cut, "round": done.round, "silent": silent, "recording": recording,
        }))
    } else {
        output::print(&contained_text(args, until.as_deref()))
    };
    // Whatever was not read yet.
    if let Some(evidence) = evidence
        && let Err(error) = evidence.finish()
    {
        said.line(false, "state NOT saved", &error.to_string(), None);
    }
    if foreground {
        drop(done);
        return run::record_only(&args.instance, global);
    }
    if args.confirm_within == Within::Never {
        match service::keep(&args.instance, &state) {
            Some(Ok(kept)) => said.line(true, "kept", &kept, None),
            Some(Err(error)) => said.line(false, "not kept", &error, None),
            None => {}
        }
        return Ok(Exit::Good);
    }
    outcome(args, &mut done, &state, global)
}

fn begin_evidence(args: &LockdownArgs) -> Result<Option<Evidence>, snapshot::WriteError> {
    let place = match &args.evidence {
        Some(none) if none.as_os_str() == "none" => return Ok(None),
        Some(place) => place.clone(),
        None => Path::new(DEFAULT_ROOT).join("evidence").join(snapshot::name_of_now()),
    };
    Evidence::begin(&place, Duration::from_secs_f64(args.snapshot_within)).map(Some)
}

/// What does not wait for the confirmation.
fn cut_now(
    args: &LockdownArgs,
    prepared: &Prepared,
    done: &mut act::Done,
    state: &StateDir,
    said: &Said<'_>,
) -> anyhow::Result<Vec<Destroyed>> {
    let flows = done.changed.impact.would_cut.len();
    // As answered, not as the command line has it.
    let plan = &prepared.plan;
    let others = plan.way_in.others.iter().filter(|other| plan.cut_sessions.contains(&other.pid));
    let chosen: Vec<u64> = others.map(|other| other.cookie).collect();
    if !args.destroy_now && chosen.is_empty() {
        said.line(
            true,
            "cut",
            &format!("{} drop; their sockets are ended when you confirm", counted(flows, "flow")),
            None,
        );
        return Ok(Vec::new());
    }
    let (ended, problems) = act::destroy(&done.kernel, state, &done.policy, &chosen, !args.destroy_now)?;
    let failed = ended.iter().filter(|socket| socket.error.is_some()).count();
    said.line(
        true,
        "cut",
        &format!("{} drop; {} ended", counted(flows, "flow"), counted(ended.len() - failed, "socket")),
        None,
    );
    for socket in &ended {
        if let Some(error) = &socket.error {
            said.line(false, "not ended", &format!("{}: {error}", socket.flow), None);
        }
    }
    for problem in problems {
        said.line(false, "not looked at", &problem, None);
    }
    if args.destroy_now {
        let _lock = state.lock()?;
        if let Some((mut manifest, mut mark)) = mark::holding(state)? {
            mark.destroyed = true;
            manifest.lockdown = Some(mark);
            state.rewrite(&manifest)?;
        }
    }
    Ok(ended)
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn contained_text(args: &LockdownArgs, until: Option<&str>) -> String {
    let suffix = args.instance.suffix();
    match until {
        None => format!("CONTAINED, and stays so.\nnext  guard status{suffix} · guard restore{suffix}\n"),
        Some(until) => {
            let opens = match args.on_timeout {
                OnTimeout::Previous => "then opens unless confirmed",
                OnTimeout::SshOnly => "then the way in opens to any source unless confirmed",
            };
            format!(
                "CONTAINED UNTIL {until}, {opens}.\nThis session survived. Log in AGAIN from another terminal \
                 (ssh -o ControlPath=none …), then:  sudo guard confirm{suffix}\nback  guard rollback{suffix}\n"
            )
        }
    }
}

fn outcome(args: &LockdownArgs, done: &mut act::Done, state: &StateDir, global: &Global) -> anyhow::Result<Exit> {
    let suffix = args.instance.suffix();
    let (event, text, exit) =
        match countdown::wait(&mut done.kernel, state, done.changed.generation, &done.mark, args.wall)? {
            Outcome::Confirmed => {
                ("confirmed", format!("CONFIRMED. next  guard status{suffix} · guard restore{suffix}"), Exit::Good)
            }
            Outcome::RolledBack => {
                let read = done.kernel.read_back()?;
                let now = match change::in_force(&read) {
                    Some((_, generation)) => format!("generation {generation} is in force again"),
                    None => {
                        format!("no policy is in force, everything passes (guard release{suffix} takes the hooks away)")
                    }
                };
                ("rolled_back", format!("NOT CONFIRMED: undone; {now}"), Exit::No)
            }
        };
    // Nobody may read it any more; the exit code still says how it ended.
    let _ = if global.json {
        output::json_line(&serde_json::json!({ "event": event, "message": text }))
    } else {
        output::print(&text)
    };
    Ok(exit)
}

/// Of an instance that runs, what it has; and what would be guarded.
fn guarded(args: &LockdownArgs) -> anyhow::Result<Guarded> {
    let (generation, lines, tables, cgroup) = match attached::open(&args.instance.instance)? {
        Some(kernel) => {
            let engine: &dyn Engine = &kernel;
            let mut lines = engine.interfaces()?;
            // What it does not guard yet, and the lockdown will (ports of containers, say).
            let more = attached::preview(&args.options())?.into_iter();
            lines.extend(more.filter(|line| line.guarded));
            lines.sort_by_key(|line| (line.index, !line.guarded));
            lines.dedup_by_key(|line| line.index);
            (engine.next_generation()?, lines, engine.flows()?, Some(kernel.settings().cgroup.clone()))
        }
        None => {
            let options = args.options();
            let cgroup = options.cgroup.clone().or_else(cgroup_root);
            (1, attached::preview(&options)?, Vec::new(), cgroup)
        }
    };
    let guarded = || lines.iter().filter(|line| line.guarded);
    Ok(Guarded {
        indices: guarded().map(|line| line.index).collect(),
        names: guarded().map(|line| line.name.clone()).collect(),
        tables,
        generation,
        cgroup,
    })
}

/// Nothing was changed: said as whoever asked can use it.
fn refused(error: PrepareError, global: &Global) -> anyhow::Result<Exit> {
    match error {
        PrepareError::Refused(refusal) => {
            if global.json {
                output::json_line(&serde_json::json!({ "event": "refused", "message": refusal.to_string() }))?;
            } else {
                let text = output::escape(&refusal.to_string());
                eprintln!("{} {text}", output::Style::stderr().error("error:"));
            }
            Ok(Exit::CouldNot)
        }
        PrepareError::Policy(found) => Ok(check::refuse(&found, global)?),
        PrepareError::Other(error) => Err(error),
    }
}
