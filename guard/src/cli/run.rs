use std::path::PathBuf;

use clap::Args;

use super::{ByArgs, Exit, Global, InstanceArgs, output};
use crate::{
    daemon::{
        attached::{self, Kernel, StartOptions},
        change::{self, Change, Changed, audited},
        control::server,
        engine::Engine,
        kept,
        run_loop::{Daemon, Ended, block_on},
        service_manager,
        state_dir::{Kept, StateDir},
        way_back::Within,
    },
    host::picture::{Picture, on_terminal},
    journal::{self, Entry, Event, Footprint},
    lockdown::{act, afterwards, mark, marker},
    policy::{
        effective::hex,
        exceptions::{Exception, compose},
        model::Policy,
    },
    record::{
        clock::Clock,
        flagged::Flagged,
        recorder::{Recorder, begun_before},
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
}

/// Put a policy in force on this host, then record until told to stop
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    guard run policy.yaml --audit          # decide and record, drop nothing\n  \
    guard run policy.yaml --dry-run        # what would be cut\n  \
    guard run policy.yaml                  # from a remote terminal: undone unless you `guard confirm` within 2 min\n\n\
    Ending the command ends the recording; the kernel still enforces until `guard release`.")]
pub struct RunArgs {
    #[arg(value_name = "POLICY")]
    pub policy: PathBuf,
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
    let policy = match kept::read_for(&args.policy, global)? {
        Ok(policy) => audited(policy, args.audit),
        Err(exit) => return Ok(exit),
    };
    let change = Change {
        policy: &policy,
        source: &args.policy,
        audit: args.audit,
        exceptions: Vec::new(),
        again: false,
        dry_run: args.dry_run,
        cut_me: args.cut_me,
        within: args.confirm_within.unwrap_or_default(),
        on_terminal: on_terminal(),
        lockdown: None,
        restores: false,
    };
    if args.dry_run {
        return dry_run(args, &change, global);
    }

    let state = StateDir::create(&args.instance.state_dir())?;
    if let Some(exit) = in_lockdown(args, &change, &state, global)? {
        return Ok(exit);
    }
    let Some(_daemon_lock) = state.lock_daemon()? else {
        anyhow::bail!("a daemon runs already with {}; `guard reload` changes its policy", state.path().display());
    };
    let (mut kernel, put) = put_in_force(&args.instance.instance, &options(args), &change, &state)?;
    write_down(args, &kernel, &state, &put);
    for line in attached::notices(&kernel)? {
        eprintln!("notice: {}", output::escape_line(&line));
    }
    let ended = record(&mut kernel, &state, &put, &args.instance, global)?;
    if ended == Ended::Signal {
        journal::record(state.path(), &Entry::new(Event::Stopped, "recording ended by a signal; the kernel goes on"));
        let how = if is_observing(&hex(&policy.sha256)) {
            "The kernel goes on letting everything pass, under"
        } else if enforces_anything(&policy) {
            "The kernel still enforces"
        } else {
            "The kernel still audits"
        };
        let suffix = args.instance.suffix();
        output::print(&format!(
            "Recording ended. {how} policy {}: `guard run` takes the recording up again, `guard release{suffix}` takes guard down.",
            output::escape_line(&policy.name)
        ))?;
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
    let ended = record(&mut kernel, &state, &put, instance, global)?;
    if ended == Ended::Signal {
        journal::record(state.path(), &Entry::new(Event::Stopped, "recording ended by a signal; the kernel goes on"));
    }
    Ok(Exit::Good)
}

/// While a lockdown holds, what `run` names is only kept for afterwards. After a reboot the lockdown is put in force again.
fn in_lockdown(args: &RunArgs, change: &Change<'_>, state: &StateDir, global: &Global) -> anyhow::Result<Option<Exit>> {
    let mut kernel = attached::open(&args.instance.instance)?;
    let attached = kernel.is_some();
    if let Some(kernel) = &mut kernel {
        let _lock = state.lock()?;
        change::settle(kernel, state)?;
    }
    drop(kernel);
    let holding = match mark::holding(state) {
        // What the kernel has stays as it is.
        Err(error) if attached => return Err(error.into()),
        Err(error) => {
            eprintln!("notice: what was in force is not known: {}", output::escape_line(&error.to_string()));
            return recovered(args, change, state, global);
        }
        Ok(holding) => holding,
    };
    let Some((manifest, mark)) = holding else {
        if attached || state.in_force() {
            return Ok(None);
        }
        return recovered(args, change, state, global);
    };
    if !attached && mark.confirmed.is_none() {
        // Nobody confirmed it before the machine went down.
        let _lock = state.lock()?;
        state.roll_back()?;
        return Ok(None);
    }
    if manifest.source != std::path::absolute(change.source)? {
        afterwards::keep(state, change.policy, change.source, change.audit)?;
        output::print(
            "a lockdown holds: this policy is kept for afterwards (guard restore), the lockdown is recorded",
        )?;
    }
    if attached {
        return record_only(&args.instance, global).map(Some);
    }
    let Some((manifest, policy)) = kept::base(state, Kept::Active)? else { return Ok(None) };
    let change = Change {
        policy: &policy,
        source: &manifest.source,
        audit: false,
        exceptions: Vec::new(),
        again: true,
        dry_run: false,
        cut_me: true,
        within: Within::Never,
        on_terminal: false,
        lockdown: Some(mark),
        restores: false,
    };
    let options = StartOptions { shield: true, ports: true, ..options(args) };
    let Some(_daemon_lock) = state.lock_daemon()? else {
        anyhow::bail!("a daemon runs already with {}", state.path().display());
    };
    let (mut kernel, put) = put_in_force(&args.instance.instance, &options, &change, state)?;
    write_down(args, &kernel, state, &put);
    record(&mut kernel, state, &put, &args.instance, global)?;
    Ok(Some(Exit::Good))
}

/// The state directory has nothing, and the second copy says that this host was locked down: it is, again.
fn recovered(args: &RunArgs, change: &Change<'_>, state: &StateDir, global: &Global) -> anyhow::Result<Option<Exit>> {
    let Some(path) = marker::path(&args.instance) else { return Ok(None) };
    let Some(recovery) = marker::read(&path)? else { return Ok(None) };
    let source = act::write(state, "lockdown.yaml", &recovery.policy)?;
    let policy = kept::read(&source)?;
    let lockdown = Change {
        policy: &policy,
        source: &source,
        audit: false,
        exceptions: Vec::new(),
        again: false,
        dry_run: false,
        cut_me: true,
        within: Within::Never,
        on_terminal: false,
        lockdown: Some(recovery.mark),
        restores: false,
    };
    let options = StartOptions { shield: true, ports: true, ..options(args) };
    let Some(_daemon_lock) = state.lock_daemon()? else {
        anyhow::bail!("a daemon runs already with {}", state.path().display());
    };
    let (mut kernel, put) = put_in_force(&args.instance.instance, &options, &lockdown, state)?;
    afterwards::keep(state, change.policy, change.source, change.audit)?;
    output::print(&format!(
        "LOCKED DOWN, by the second copy ({}): the state directory has nothing of it. This policy is kept for afterwards",
        path.display()
    ))?;
    write_down(args, &kernel, state, &put);
    record(&mut kernel, state, &put, &args.instance, global)?;
    Ok(Some(Exit::Good))
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
        ports: false,
    }
}

fn dry_run(args: &RunArgs, change: &Change<'_>, global: &Global) -> anyhow::Result<Exit> {
    let instance = &args.instance.instance;
    let (generation, guarded, tables) = match attached::open(instance)? {
        Some(kernel) => {
            let engine: &dyn Engine = &kernel;
            (engine.next_generation()?, engine.interfaces()?, engine.flows()?)
        }
        None => (1, attached::preview(&options(args))?, Vec::new()),
    };
    let guarded: std::collections::HashSet<u32> =
        guarded.iter().filter(|line| line.guarded).map(|line| line.index).collect();
    let picture = Picture::read()?;
    let mut change = change.clone();
    if let Ok(state) = StateDir::open(&args.instance.state_dir()) {
        change.exceptions = carried_over(change.policy, &state);
    }
    let change = &change;
    let policy = change.composed();
    let examined = change::examine(&policy, generation, &picture, &|index| guarded.contains(&index), tables)?;
    let cuts_session = examined.impact.cuts_session() && !change.cut_me;
    let refusal = change::permit(change, &examined).err();
    let changed = Changed::dry(&policy, generation, examined.impact);
    if global.json {
        output::json_line(&changed)?;
    } else {
        output::print(&changed.render("", true))?;
        if let Some(refusal) = refusal {
            output::print(&refusal.to_string())?;
        }
    }
    Ok(if cuts_session { Exit::No } else { Exit::Good })
}

/// Attaches, or adopts what is attached, and puts the policy in force. A first start that fails is taken down again.
fn put_in_force(
    instance: &str,
    options: &StartOptions,
    change: &Change<'_>,
    state: &StateDir,
) -> anyhow::Result<(Kernel, Put)> {
    let _lock = state.lock()?;
    let change = &Change { exceptions: carried_over(change.policy, state), ..change.clone() };
    let fresh = attached::open_for_start(instance)?.is_none();
    if fresh {
        // A refusal should find nothing attached yet.
        let guarded: std::collections::HashSet<u32> =
            attached::preview(options)?.iter().filter(|line| line.guarded).map(|line| line.index).collect();
        let examined =
            change::examine(&change.composed(), 1, &Picture::read()?, &|index| guarded.contains(&index), Vec::new())?;
        change::permit(change, &examined)?;
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
