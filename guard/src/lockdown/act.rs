//! A lockdown put in force, step by step: attached, published with a deadline that the kernel holds, proven from inside.
//! Whatever fails on the way is undone, and said.

use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    base, destroy,
    mark::{self, Confirmed, Mark},
    marker,
    prepare::Prepared,
    selftest::{self, Proof},
};
use crate::{
    cli::InstanceArgs,
    daemon::{
        attached::{self, Kernel, StartOptions},
        change::{self, Change, Changed, Examined},
        engine::Engine,
        kept,
        round::{self, Round},
        state_dir::{Kept, Manifest, StateDir, StateError},
        way_back::Within,
    },
    host::{direct, person::Person, picture::Picture},
    journal::{self, Entry, Event, Footprint},
    policy::{self, exceptions::Action, model::Policy},
    record::clock::{boot_now, unix_now},
};

/// How long what is not to be undone by itself waits for its own proof.
const PROOF: Duration = Duration::from_secs(60);

/// What becomes of the host when nobody confirms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnTimeout {
    /// What was in force before; nothing, if nothing was
    #[default]
    Previous,
    /// The way in opens to any source, all else stays cut
    SshOnly,
}

/// How to go about it.
pub struct Order<'a> {
    pub instance: &'a InstanceArgs,
    pub state: &'a StateDir,
    pub options: &'a StartOptions,
    pub prepared: &'a Prepared,
    /// `--policy`.
    pub file: Option<&'a Path>,
    /// `None`: it stays as soon as it is proven.
    pub within: Option<Duration>,
    pub on_timeout: OnTimeout,
    pub keep_session: bool,
    pub person: &'a Person,
    pub note: Option<&'a str>,
}

/// A lockdown that holds.
pub struct Done {
    pub kernel: Kernel,
    pub changed: Changed,
    pub policy: Policy,
    pub proof: Proof,
    pub mark: Mark,
    /// Sockets that went round the wire layer, and what became of each.
    pub round: Vec<Round>,
}

/// Enforcement failed: what failed, and what holds after it was undone.
#[derive(Debug, thiserror::Error)]
#[error("ENFORCEMENT FAILED: {why}\n{now}")]
pub struct Failed {
    pub why: String,
    pub now: String,
}

/// What was there when the command came.
struct Before {
    /// Nothing was attached.
    fresh: bool,
    /// Something is kept as in force: also after a reboot, with nothing attached yet.
    kept: bool,
    /// A lockdown.
    lockdown: bool,
    /// What the kernel judged by.
    generation: Option<u32>,
}

fn generation(kernel: &Kernel) -> anyhow::Result<Option<u32>> {
    Ok(change::in_force(&kernel.read_back()?).map(|(_, generation)| generation))
}

/// Everything up to the proof, and without a deadline the confirmation. The host is contained when this returns.
pub fn act(order: &Order<'_>) -> anyhow::Result<Done> {
    let state = order.state;
    let lock = state.lock()?;
    let fresh = attached::open_for_start(&order.instance.instance)?.is_none();
    if fresh {
        change::forget_unconfirmed(state, None).unwrap_or_else(|error| unknown(&error));
    }
    let mut kernel = attached::start(&order.instance.instance, order.options)?;
    change::settle(&mut kernel, state)?;
    anyhow::ensure!(
        !kernel.read_back()?.state.word.is_pending(),
        "a change is still unconfirmed: `guard confirm` or `guard rollback` first"
    );
    let lockdown = mark::holding(state).unwrap_or_else(|error| {
        unknown(&error);
        None
    });
    let before =
        Before { fresh, kept: state.in_force(), lockdown: lockdown.is_some(), generation: generation(&kernel)? };
    let mut mark = mark(order);
    let (mut changed, policy) = match put(order, &mut kernel, &mark) {
        Ok(put) => put,
        Err(error) => {
            let now = undone(order, kernel, &before);
            return Err(error.context(format!("not locked down; {now}")));
        }
    };
    let failed = |kernel: Kernel, why: String| -> anyhow::Error {
        let now = undone(order, kernel, &before);
        let entry = Entry::new(Event::Lockdown, format!("refused by its own proof: {why}; {now}"));
        journal::record(state.path(), &entry.by(order.person.clone()));
        Failed { why, now }.into()
    };
    let proof = match prove(&kernel, &policy, changed.generation) {
        Ok(proof) if proof.holds() => proof,
        Ok(proof) => return Err(failed(kernel, proof.failed.join("; "))),
        Err(error) => return Err(failed(kernel, format!("it could not be proven: {error:#}"))),
    };
    // Nothing but this cuts them, so it waits for no confirmation.
    let carriers: Vec<u32> = order.prepared.choices.ways.iter().map(|way| way.pid).collect();
    let cgroup = &kernel.settings().cgroup;
    let round = round::see_to(state, cgroup, &direct::find(), Some((&mark, &carriers)));
    let mut text = "locked down, not confirmed yet";
    if order.within.is_none() {
        // Under the same lock, and before anything is said: nothing that comes later undoes it.
        let confirmed = Confirmed::now(order.person.name.clone());
        if let Err(error) = confirm(order.instance, &mut kernel, state, &confirmed) {
            return Err(failed(kernel, format!("it could not be confirmed: {error:#}")));
        }
        changed.confirm_within = None;
        mark.confirmed = Some(confirmed);
        text = "locked down, and it stays (--confirm-within none)";
    }
    // With ssh-only, what a failure would have returned to.
    if let Err(error) = state.forget_before() {
        eprintln!("notice: {}", crate::text::escape_line(&error.to_string()));
    }
    let mut entry = Entry::new(Event::Lockdown, text).by(order.person.clone()).noted(order.note).changed(&changed);
    entry.footprint = Some(Footprint::of(&kernel, state.path()));
    journal::record(state.path(), &entry);
    drop(lock);
    Ok(Done { kernel, changed, policy, proof, mark, round })
}

/// A damaged state directory must not be what keeps a host open.
fn unknown(error: &StateError) {
    eprintln!("notice: what was in force before is not known: {}", crate::text::escape_line(&error.to_string()));
}

/// Confirms a lockdown: in the manifest, in the kernel, in the second copy. The caller holds the lock.
pub fn confirm(
    instance: &InstanceArgs,
    kernel: &mut Kernel,
    state: &StateDir,
    confirmed: &Confirmed,
) -> anyhow::Result<()> {
    let write = |manifest: &mut Manifest| {
        if let Some(mark) = &mut manifest.lockdown {
            mark.confirmed = Some(confirmed.clone());
        }
    };
    if let Some(error) = change::confirm(kernel, state, write)? {
        eprintln!(
            "notice: CONFIRMED, but that could not be written down, and a reboot would open this host: {}",
            crate::text::escape_line(&error.to_string())
        );
    }
    keep_second_copy(instance, state, Some(confirmed));
    Ok(())
}

fn put(order: &Order<'_>, kernel: &mut Kernel, mark: &Mark) -> anyhow::Result<(Changed, Policy)> {
    let state = order.state;
    if order.on_timeout == OnTimeout::SshOnly && order.within.is_some() {
        state.keep_before()?;
        let path = write(state, "lockdown-ssh-only.yaml", &base::ssh_only(&order.prepared.choices))?;
        let open = read(&path)?;
        publish(kernel, order, &open, &path, Within::Never, &mark.on_timeout())?;
    }
    let path = match (order.file, &order.prepared.text) {
        (Some(file), _) => file.to_owned(),
        (None, text) => write(state, &format!("{}.yaml", base::NAME), text.as_deref().unwrap_or_default())?,
    };
    let policy = read(&path)?;
    publish(kernel, order, &policy, &path, Within::For(order.within.unwrap_or(PROOF)), mark)
}

fn publish(
    kernel: &mut Kernel,
    order: &Order<'_>,
    policy: &Policy,
    source: &Path,
    within: Within,
    mark: &Mark,
) -> anyhow::Result<(Changed, Policy)> {
    // Whatever was let through for a while before is not meant now; what was cut stays cut.
    let exceptions = kept::exceptions(order.state).unwrap_or_default();
    let change = Change {
        exceptions: exceptions.into_iter().filter(|exception| exception.action == Action::Deny).collect(),
        cut_me: !order.keep_session,
        within,
        lockdown: Some(mark.clone()),
        ..Change::new(policy, source)
    };
    // Read only now: the programs track since before, so no flow falls between.
    let changed = change::change(kernel, order.state, &Picture::read()?, &change)?;
    Ok((changed, change.composed()))
}

fn mark(order: &Order<'_>) -> Mark {
    let choices = &order.prepared.choices;
    let plan = &order.prepared.plan;
    let listed = choices.ways.iter().filter(|way| way.inbound && !choices.this_session_only);
    let mut ways: Vec<ipnet::IpNet> = listed.map(|way| way.range).collect();
    ways.extend(choices.allow_from.iter().map(|allow| allow.net));
    if let Some(rule) = order.prepared.policy.rules.iter().find(|rule| rule.name.as_deref() == Some("responders.txt")) {
        ways.extend(policy::effective::networks(&rule.remote.set));
    }
    ways.sort_unstable();
    ways.dedup();
    let services = choices.ways.iter().filter(|way| way.inbound).map(|way| way.service.as_str());
    let mut ports: Vec<u16> = services
        .chain(choices.ssh.iter().map(String::as_str))
        .filter_map(|service| service.strip_prefix("tcp/")?.parse().ok())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    Mark {
        by: order.person.name.clone(),
        at: now_seconds(),
        at_boot_ns: boot_now().to_string(),
        ways,
        sessions: plan.sessions.clone(),
        ports,
        dns: !plan.dns.is_empty(),
        console: plan.console,
        destroyed: false,
        confirmed: None,
    }
}

fn prove(kernel: &Kernel, policy: &Policy, generation: u32) -> anyhow::Result<Proof> {
    let clocks = change::clocks();
    let compiled = policy::compile::compile(policy, clocks, generation)?;
    let examined =
        Examined { compiled, clocks, held: Vec::new(), session: Default::default(), impact: Default::default() };
    selftest::run(kernel, policy, &examined)
}

/// What holds after it was undone, or that it could not be.
fn undone(order: &Order<'_>, kernel: Kernel, before: &Before) -> String {
    undo(order, kernel, before).unwrap_or_else(|error| format!("AND COULD NOT BE UNDONE: {error:#}"))
}

/// Back to what was before, from whichever step. The caller holds the lock.
fn undo(order: &Order<'_>, mut kernel: Kernel, before: &Before) -> anyhow::Result<String> {
    let state = order.state;
    if kernel.read_back()?.state.word.is_pending() {
        kernel.roll_back()?;
        change::follow_rollback(&kernel, state)?;
    }
    // With --on-timeout ssh-only a policy lies between.
    let between = generation(&kernel)? != before.generation;
    if before.fresh {
        drop(kernel);
        attached::release(&order.instance.instance)?;
        if before.kept && between {
            state.put_back_before()?;
        } else if !before.kept {
            state.forget()?;
        }
        let mut text = String::from("nothing of guard is attached any more; this host is open as it was before");
        if before.kept {
            text.push_str(" (what was kept from before a reboot still is: `guard run` puts it in force)");
        }
        return Ok(text);
    }
    if between {
        let Some((manifest, policy)) = kept::base(state, Kept::Before)? else {
            return Ok("the way in alone stays open, to any source (lockdown-ssh-only); nothing was in force before: \
                       `guard release` opens this host"
                .to_owned());
        };
        let change = Change {
            audit: manifest.audit,
            exceptions: kept::holding(&manifest, now_seconds()),
            from: Some(Kept::Before),
            cut_me: true,
            lockdown: manifest.lockdown.clone(),
            ..Change::new(&policy, &manifest.source)
        };
        change::change(&mut kernel, state, &Picture::read()?, &change)
            .map_err(|error| error.context("the way in alone stays open, to any source (lockdown-ssh-only)"))?;
        state.forget_before()?;
    }
    Ok(match (before.lockdown, before.kept) {
        (true, _) => "the lockdown from before goes on",
        (false, true) => "the policy from before is in force again",
        (false, false) => "no policy is in force, as before: everything passes",
    }
    .to_owned())
}

/// The second copy, for a state directory that is lost: written while a confirmed lockdown is in force, else gone. That it
/// cannot be written is said, and undoes nothing. `confirmed`: just now, though the manifest may not have it.
pub fn keep_second_copy(instance: &InstanceArgs, state: &StateDir, confirmed: Option<&Confirmed>) {
    let Some(path) = marker::path(instance) else { return };
    let kept = || -> anyhow::Result<()> {
        let Some((_, mut mark)) = mark::holding(state)? else { return Ok(marker::remove(&path)?) };
        mark.confirmed = mark.confirmed.or_else(|| confirmed.cloned());
        if mark.confirmed.is_some()
            && let Some((_, policy)) = kept::base(state, Kept::Active)?
        {
            marker::write(&path, &mark, &policy)?;
        }
        Ok(())
    };
    if let Err(error) = kept() {
        eprintln!("notice: the second copy of the lockdown: {}", crate::text::escape_line(&format!("{error:#}")));
    }
}

/// Ends the sockets of what is denied, and those that were chosen. Each is in the timeline before it goes.
pub fn destroy(
    kernel: &Kernel,
    state: &StateDir,
    policy: &Policy,
    chosen: &[u64],
    only_chosen: bool,
) -> anyhow::Result<(Vec<destroy::Destroyed>, Vec<String>)> {
    let clocks = change::clocks();
    let read = kernel.read_back()?;
    let generation = change::in_force(&read).map_or(0, |(_, generation)| generation);
    let compiled = policy::compile::compile(policy, clocks, generation)?;
    let examined =
        Examined { compiled, clocks, held: Vec::new(), session: Default::default(), impact: Default::default() };
    let guarded: std::collections::HashSet<u32> =
        kernel.interfaces()?.iter().filter(|line| line.guarded).map(|line| line.index).collect();
    let flows = Engine::flows(kernel)?;
    let sessions = mark::holding(state)?.map(|(_, mark)| mark.sessions).unwrap_or_default();
    let judge = destroy::Judge {
        policy,
        examined: &examined,
        flows: &flows,
        guarded: &|index| guarded.contains(&index),
        chosen,
        spared: &sessions,
    };
    let (mut doomed, problems) = destroy::find(&judge, &kernel.settings().cgroup);
    if only_chosen {
        for doomed in &mut doomed {
            doomed.sockets.retain(|(_, socket)| chosen.contains(&socket.cookie));
        }
    }
    let entries: Vec<Entry> = doomed
        .iter()
        .flat_map(|doomed| &doomed.sockets)
        .map(|(destroyed, _)| {
            Entry::new(Event::Lockdown, format!("ends the socket of {}", destroy::spoken(destroyed)))
                .details(serde_json::to_value(destroyed).unwrap_or_default())
        })
        .collect();
    if !entries.is_empty()
        && let Err(error) = journal::append(state.path(), &entries)
    {
        eprintln!("notice: these sockets are not in the timeline: {}", crate::text::escape_line(&error.to_string()));
    }
    Ok((doomed.into_iter().flat_map(destroy::Doomed::destroy).collect(), problems))
}

fn now_seconds() -> i64 {
    i64::try_from(unix_now() / 1_000_000_000).unwrap_or(0)
}

fn read(path: &Path) -> anyhow::Result<Policy> {
    kept::read(path)
}

/// In the state directory, in place of an older one.
pub fn write(state: &StateDir, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = state.path().join(name);
    let draft = state.path().join(format!("{name}.new"));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&draft, &path)?;
    Ok(path)
}
