mod resume;

use std::{io, path::PathBuf};

use clap::Args;

use self::resume::Resumed;
use super::{ByArgs, Exit, Global, InstanceArgs, output};
use crate::{
    daemon::{
        attached::{self, Kernel, StartOptions},
        change::{self, Change, Changed, JudgedSet, audited},
        control::server,
        engine::Engine,
        kept, round,
        run_loop::{Daemon, Ended, block_on},
        service_manager,
        state_dir::{Kept, StateDir},
        way_back::Within,
    },
    host::picture::{Picture, on_terminal},
    journal::{self, Entry, Event, Footprint},
    policy::{
        effective::hex,
        exceptions::{Exception, compose},
        model::Policy,
    },
    record::{
        begun_before::begun_before,
        clock::Clock,
        flagged::Flagged,
        recorder::Recorder,
        sink::{Limits, Sink},
        sweep::Tracker,
    },
    review::is_observing,
    store::{self, Begun, Recording},
};

/// What is guarded.
#[derive(Clone, Debug, Args)]
pub struct PlaceArgs {
    /// Guard interfaces whose name matches (repeatable; `*` and `?`) instead of those where frames leave this host
    #[arg(long, value_name = "PATTERN")]
    pub interface: Vec<String>,
    /// Leave out interfaces whose name matches (repeatable)
    #[arg(long, value_name = "PATTERN")]
    pub not_interface: Vec<String>,
    /// Guard the sockets of this control group and those below it [default: the root of cgroup2]
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Room for so many flows of each family in each of the kernel's tables (established, denied; half of it each for the
    /// unanswered of a direction); 65,536 take about 70 MiB of the kernel's memory. Takes effect where nothing is attached yet
    /// [default: 65536]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=16_777_216))]
    pub flows: Option<u32>,
}

/// Put a policy in force on this host, then record until told to stop
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    guard run policy.yaml --audit          # decide and record, drop nothing\n  \
    guard run policy.yaml --dry-run        # what would be cut\n  \
    guard run policy.yaml                  # from a remote terminal: undone unless you `guard confirm` within 2 min\n  \
    guard run --resume policy.yaml         # what was in force before a reboot; as a unit starts it\n\n\
    Ending the command ends the recording; the kernel still enforces until `guard release`.")]
pub struct RunArgs {
    #[arg(value_name = "POLICY")]
    pub policy: PathBuf,
    /// Put in force again what was in force before a restart or a reboot; POLICY, where nothing was
    ///
    /// What is kept counts with its exceptions, whatever became of POLICY since: `guard reload POLICY` changes it. A
    /// change that nobody had confirmed when the machine went down is over, and what held before it comes back. Without
    /// this, only a lockdown comes back by itself.
    #[arg(long)]
    pub resume: bool,
    /// Decide and record as ever, but drop nothing, whatever mode the policy names
    #[arg(long)]
    pub audit: bool,
    /// Also drop denied inbound packets before packet sockets see them (XDP)
    #[arg(long)]
    pub shield: bool,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Show what would be cut, and stop there
    #[arg(long)]
    pub dry_run: bool,
    /// Go on even if this terminal's own connection would be cut
    #[arg(long)]
    pub cut_me: bool,
    /// Undo the change unless `guard confirm` comes in this time (`90s`, `2m`; `none`) [default: 2m from a remote
    /// terminal, none else]
    #[arg(long, value_name = "TIME")]
    pub confirm_within: Option<Within>,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &RunArgs, global: &Global) -> anyhow::Result<Exit> {
    if args.dry_run {
        return match read_policy(args, global)? {
            Ok(policy) => dry_run(args, &asked(args, &policy), global),
            Err(exit) => Ok(exit),
        };
    }
    let state = StateDir::create(&args.instance.state_dir())?;
    // What is kept comes first: POLICY may be missing or wrong.
    let lock = state.lock()?;
    let lock = match resume::resume(args, &state, lock, global)? {
        Resumed::Ended(exit) => return Ok(exit),
        Resumed::Nothing(lock) => lock,
    };
    let policy = match read_policy(args, global)? {
        Ok(policy) => policy,
        Err(exit) => return Ok(exit),
    };
    let Some(_daemon_lock) = state.lock_daemon()? else {
        anyhow::bail!("a daemon runs already with {}; `guard reload` changes its policy", state.path().display());
    };
    let (mut kernel, put) = put_in_force(&args.instance.instance, &options(args), &asked(args, &policy), &state)?;
    drop(lock);
    begin(args, &mut kernel, &state, &put, global)
}

fn read_policy(args: &RunArgs, global: &Global) -> io::Result<Result<Policy, Exit>> {
    Ok(kept::read_for(&args.policy, global)?.map(|policy| audited(policy, args.audit)))
}

fn asked<'a>(args: &'a RunArgs, policy: &'a Policy) -> Change<'a> {
    Change {
        audit: args.audit,
        dry_run: args.dry_run,
        cut_me: args.cut_me,
        within: args.confirm_within.unwrap_or_default(),
        on_terminal: on_terminal(),
        ..Change::new(policy, &args.policy)
    }
}

/// Records what was put in force until told to stop.
fn begin(args: &RunArgs, kernel: &mut Kernel, state: &StateDir, put: &Put, global: &Global) -> anyhow::Result<Exit> {
    write_down(args, kernel, state, put);
    bring_back(kernel, state);
    for line in attached::notices(kernel)? {
        eprintln!("notice: {}", output::escape_line(&line));
    }
    let ended = record(kernel, state, put, &args.instance, global)?;
    say_ended(ended, state, put, &args.instance, global)
}

/// What goes round the wire by sockets that are older than the seal.
fn bring_back(kernel: &Kernel, state: &StateDir) {
    for round in round::see_to_now(kernel, state) {
        eprintln!("notice: {}", output::escape_line(&round.spoken()));
    }
}

/// What holds from now on, and how to end that.
fn say_ended(
    ended: Ended,
    state: &StateDir,
    put: &Put,
    instance: &InstanceArgs,
    global: &Global,
) -> anyhow::Result<Exit> {
    let text = match ended {
        Ended::Signal => {
            journal::record(
                state.path(),
                &Entry::new(Event::Stopped, "recording ended by a signal; the kernel goes on"),
            );
            let how = if is_observing(&hex(&put.policy.sha256)) {
                "The kernel goes on letting everything pass, under"
            } else if enforces_anything(&put.policy) {
                "The kernel still enforces"
            } else {
                "The kernel still audits"
            };
            let (name, suffix) = (&put.policy.name, instance.suffix());
            format!(
                "Recording ended. {how} policy {name}: `guard record{suffix}` takes the recording up again, `guard \
                 release{suffix}` takes guard down."
            )
        }
        Ended::Released if global.json => "Recording ended: guard was released.".to_owned(),
        Ended::Released => return Ok(Exit::Good),
    };
    if global.json {
        output::json_line(&serde_json::json!({ "event": "ended", "policy": put.policy.name, "message": text }))?;
    } else {
        output::print(&output::escape_line(&text))?;
    }
    Ok(Exit::Good)
}

/// Takes the recording up of whatever is in force, and changes nothing.
pub fn record_only(instance: &InstanceArgs, global: &Global) -> anyhow::Result<Exit> {
    let (state, mut kernel) = attached::existing(&instance.instance, &instance.state_dir())?;
    let Some(_daemon_lock) = state.lock_daemon()? else {
        anyhow::bail!("a daemon runs already with {}", state.path().display());
    };
    let kept = {
        let _lock = state.lock()?;
        change::settle(&mut kernel, &state)?;
        kept::load(&state, Kept::Active)?
    };
    let Some((manifest, policy)) = kept else {
        anyhow::bail!("no policy is in force, so nothing is judged: guard run, or guard observe");
    };
    let put = Put { policy, generation: manifest.generation, changed: None, fresh: false };
    bring_back(&kernel, &state);
    let ended = record(&mut kernel, &state, &put, instance, global)?;
    say_ended(ended, &state, &put, instance, global)
}

/// For the timeline, with what guard has on this host from now on.
fn write_down(args: &RunArgs, kernel: &Kernel, state: &StateDir, put: &Put) {
    let text = match (&put.changed, put.fresh) {
        (None, _) => "recording begins; the policy in force was taken over as it was",
        (Some(_), true) => "guard started",
        (Some(_), false) => "guard was attached already; this policy took the place of the one in force",
    };
    let mut entry = args.by.entry(Event::Run, text);
    entry = match &put.changed {
        Some(changed) => entry.changed(changed),
        None => entry.policy(&put.policy.name, &hex(&put.policy.sha256), put.generation),
    };
    entry.footprint = Some(Footprint::of(kernel, state.path()));
    journal::record(state.path(), &entry);
}

/// What was put in force, or found there.
struct Put {
    /// With the exceptions that hold over it.
    policy: Policy,
    generation: u32,
    /// `None`: this very policy was in force already.
    changed: Option<Changed>,
    /// Nothing was attached before.
    fresh: bool,
}

fn options(args: &RunArgs) -> StartOptions {
    StartOptions {
        include: args.place.interface.clone(),
        exclude: args.place.not_interface.clone(),
        shield: args.shield,
        cgroup: args.place.cgroup.clone(),
        flows: args.place.flows,
        ports: false,
    }
}

fn dry_run(args: &RunArgs, change: &Change<'_>, global: &Global) -> anyhow::Result<Exit> {
    let instance = &args.instance.instance;
    let (generation, interfaces, tables) = match attached::open(instance)? {
        Some(kernel) => {
            let engine: &dyn Engine = &kernel;
            (engine.next_generation()?, engine.interfaces()?, engine.flows()?)
        }
        None => (1, attached::preview(&options(args))?, Vec::new()),
    };
    let picture = Picture::read()?;
    let mut change = change.clone();
    if let Ok(state) = StateDir::open(&args.instance.state_dir()) {
        change.exceptions = carried_over(change.policy, &state);
    }
    let change = &change;
    let policy = change.composed();
    let examined = JudgedSet::of(&interfaces, &policy)
        .with(|judged| change::examine(&policy, generation, &picture, judged, tables))?;
    let changed = Changed::dry(&policy, generation, examined.impact);
    let refusal = change::permit(change, &changed).err();
    if global.json {
        output::json_line(&changed)?;
    } else {
        output::print(&changed.render("", true))?;
        if let Some(refusal) = &refusal {
            output::print(&refusal.to_string())?;
        }
    }
    Ok(if refusal.is_some() { Exit::No } else { Exit::Good })
}

/// Attaches, or adopts what is attached, and puts the policy in force. A first start that fails is taken down again. The
/// caller holds the lock.
fn put_in_force(
    instance: &str,
    options: &StartOptions,
    change: &Change<'_>,
    state: &StateDir,
) -> anyhow::Result<(Kernel, Put)> {
    let change = &Change { exceptions: carried_over(change.policy, state), ..change.clone() };
    let fresh = attached::open_for_start(instance)?.is_none();
    if fresh {
        // A refusal should find nothing attached yet.
        let policy = change.composed();
        let picture = Picture::read()?;
        let examined = JudgedSet::of(&attached::preview(options)?, &policy)
            .with(|judged| change::examine(&policy, 1, &picture, judged, Vec::new()))?;
        change::permit(change, &Changed::dry(&policy, 1, examined.impact))?;
    }
    let mut kernel = attached::start(instance, options)?;
    let put = publish(&mut kernel, change, state, fresh);
    match put {
        Ok(put) => Ok((kernel, put)),
        Err(error) if fresh => {
            drop(kernel);
            attached::release(instance)?;
            Err(error.context("not started; what was attached was taken down again, so nothing is guarded"))
        }
        Err(error) => Err(error.context("the policy that was in force stays")),
    }
}

/// The exceptions that hold now, as before a restart or a reboot. What cannot be read keeps no policy from being put in
/// force, and is said.
fn carried_over(policy: &Policy, state: &StateDir) -> Vec<Exception> {
    if is_observing(&hex(&policy.sha256)) {
        return Vec::new();
    }
    kept::exceptions(state).unwrap_or_else(|error| {
        eprintln!(
            "notice: temporary exceptions (guard allow, guard deny) are lost: {}",
            output::escape_line(&error.to_string())
        );
        Vec::new()
    })
}

fn publish(kernel: &mut Kernel, change: &Change<'_>, state: &StateDir, fresh: bool) -> anyhow::Result<Put> {
    change::settle(kernel, state)?;
    if let Some((generation, policy)) = in_force_already(kernel, change, state)? {
        return Ok(Put { policy, generation, changed: None, fresh });
    }
    // Read only now: the programs track since before, so no flow falls between.
    let changed = change::change(kernel, state, &Picture::read()?, change)?;
    Ok(Put { policy: change.composed(), generation: changed.generation, changed: Some(changed), fresh })
}

/// The generation in force, if it is this very policy, in these modes, with its expiries by the clock as it is now; and
/// the policy with its exceptions, those that have expired since too.
fn in_force_already(kernel: &Kernel, change: &Change<'_>, state: &StateDir) -> anyhow::Result<Option<(u32, Policy)>> {
    let read = kernel.read_back()?;
    let Some((slot, generation)) = change::in_force(&read) else { return Ok(None) };
    let Some(manifest) = state.manifest(Kept::Active)? else { return Ok(None) };
    let policy = compose(change.policy.clone(), &manifest.exceptions);
    let same = read.policies[usize::from(slot.0)] == Some(policy.sha256)
        && manifest.generation == generation
        && manifest.audit == change.audit
        && manifest.source == std::path::absolute(change.source)?
        && !change::stepped(manifest.clock(), Clock::read()?);
    Ok(same.then_some((generation, policy)))
}

fn record(
    kernel: &mut Kernel,
    state: &StateDir,
    put: &Put,
    instance: &InstanceArgs,
    global: &Global,
) -> anyhow::Result<Ended> {
    let sink = Sink::open(state.records(), Limits::default());
    // Flows that a former daemon has recorded are still in the tables.
    let begun = if put.fresh { Default::default() } else { begun_before(&state.records()).unwrap_or_default() };
    let mut recorder = Recorder::new(sink, Tracker::new(begun), Clock::read()?);
    let [inbound, outbound] = state.flagged();
    recorder.flagged = Some(Flagged::new(inbound, outbound));
    let policy = &put.policy;
    let ready = ready(kernel, policy, put, instance)?;
    let json = global.json;
    let mut say = |text: &str| {
        if json {
            // Nobody reads any more: the recording goes on.
            let _ = output::json_line(&serde_json::json!({ "event": "notice", "message": text }));
        } else {
            eprintln!("{} {}", output::utc(crate::record::clock::unix_now()), output::escape(text));
        }
    };
    block_on(async {
        let listener = server::bind(&state.socket())?;
        let mut daemon = Daemon::new(kernel, state, recorder, &mut say);
        daemon.know(put.generation, policy);
        daemon.remember(&state.store());
        daemon.keep(Recording::start(&state.store(), store::Limits::default(), Begun::here()));
        let text = render_ready(&ready, policy, put, instance);
        if global.json {
            output::json_line(&ready)?
        } else {
            output::print(&text)?
        }
        service_manager::ready(text.lines().last().unwrap_or_default());
        let ended = daemon.run(listener).await;
        service_manager::stopping();
        ended
    })?
}

/// What is known when guard is ready. Field names are stable.
#[derive(Debug, serde::Serialize)]
struct Ready {
    event: &'static str,
    instance: String,
    policy: String,
    policy_sha256: String,
    generation: u32,
    inbound: &'static str,
    outbound: &'static str,
    interfaces: Vec<String>,
    adopted: bool,
    confirm_within: Option<u64>,
    would_cut: usize,
}

fn ready(kernel: &Kernel, policy: &Policy, put: &Put, instance: &InstanceArgs) -> anyhow::Result<Ready> {
    let mode = |enforces| if enforces { "enforce" } else { "audit" };
    let [inbound, outbound] = change::enforces(policy);
    Ok(Ready {
        event: "ready",
        instance: instance.instance.clone(),
        policy: policy.name.clone(),
        policy_sha256: change::hex(&policy.sha256),
        generation: put.generation,
        inbound: mode(inbound),
        outbound: mode(outbound),
        interfaces: kernel.interfaces()?.into_iter().filter(|line| line.guarded).map(|line| line.name).collect(),
        adopted: !put.fresh,
        confirm_within: put.changed.as_ref().and_then(|changed| changed.confirm_within),
        would_cut: put.changed.as_ref().map_or(0, |changed| changed.impact.would_cut.len()),
    })
}

fn render_ready(ready: &Ready, policy: &Policy, put: &Put, instance: &InstanceArgs) -> String {
    let [inbound, outbound] = change::enforces(policy);
    let what = match (inbound, outbound) {
        (true, true) => "ENFORCING in and out",
        (true, false) => "ENFORCING in, AUDIT out",
        (false, true) => "AUDIT in, ENFORCING out",
        (false, false) if is_observing(&hex(&policy.sha256)) => {
            "OBSERVING: no policy; everything passes and is recorded"
        }
        (false, false) => "AUDIT in and out: nothing is dropped",
    };
    let mut text = String::new();
    if let Some(changed) = &put.changed {
        text.push_str(&output::escape(&changed.impact.render(20)));
    }
    if let Some(seconds) = ready.confirm_within {
        text.push_str(&format!(
            "UNDONE IN {seconds} s unless you log in AGAIN from another terminal and run: guard confirm{}\n",
            instance.suffix()
        ));
    }
    text.push_str(&format!(
        "guard is ready: {what}, policy {} (generation {}), on {}{}\n",
        output::escape_line(&ready.policy),
        ready.generation,
        if ready.interfaces.is_empty() { "no interface yet".to_owned() } else { ready.interfaces.join(" ") },
        if put.changed.is_none() { ", taken over as it was" } else { "" },
    ));
    text
}

fn enforces_anything(policy: &Policy) -> bool {
    change::enforces(policy).contains(&true)
}
