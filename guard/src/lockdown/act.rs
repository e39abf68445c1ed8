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
    mark::{self, Mark},
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
        state_dir::{Kept, StateDir},
        way_back::Within,
    },
    host::{person::Person, picture::Picture},
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
    pub instance: &'a str,
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
    /// Nothing was attached before.
    pub fresh: bool,
}

/// Enforcement failed: what failed, and that everything was undone.
#[derive(Debug, thiserror::Error)]
#[error("ENFORCEMENT FAILED, and was undone: {why}\n{now}")]
pub struct Failed {
    pub why: String,
    pub now: String,
}

/// Everything up to the proof. The host is contained when this returns.
pub fn act(order: &Order<'_>) -> anyhow::Result<Done> {
    let state = order.state;
    let lock = state.lock()?;
    let fresh = attached::open_for_start(order.instance)?.is_none();
    let mut kernel = attached::start(order.instance, order.options)?;
    let mut put = || -> anyhow::Result<(Changed, Policy, Mark)> {
        change::settle(&mut kernel, state)?;
        anyhow::ensure!(
            !kernel.read_back()?.state.word.is_pending(),
            "a change is still unconfirmed: `guard confirm` or `guard rollback` first"
        );
        let mark = mark(order);
        if order.on_timeout == OnTimeout::SshOnly && order.within.is_some() {
            let path = write(state, "lockdown-ssh-only.yaml", &base::ssh_only(&order.prepared.choices))?;
            let open = read(&path)?;
            publish(&mut kernel, order, &open, &path, Within::Never, &mark)?;
        }
        let path = match (order.file, &order.prepared.text) {
            (Some(file), _) => file.to_owned(),
            (None, text) => write(state, &format!("{}.yaml", base::NAME), text.as_deref().unwrap_or_default())?,
        };
        let policy = read(&path)?;
        let within = Within::For(order.within.unwrap_or(PROOF));
        let (changed, policy) = publish(&mut kernel, order, &policy, &path, within, &mark)?;
        Ok((changed, policy, mark))
    };
    let (changed, policy, mark) = match put() {
        Ok(put) => put,
        Err(error) if fresh => {
            drop(kernel);
            attached::release(order.instance)?;
            state.forget()?;
            return Err(error.context("not locked down; what was attached was taken down again, so nothing is guarded"));
        }
        Err(error) => return Err(error.context("not locked down; what was in force stays")),
    };
    let proof = prove(&kernel, &policy, changed.generation);
    let proof = match proof {
        Ok(proof) if proof.holds() => proof,
        failed => {
            let why = match failed {
                Ok(proof) => proof.failed.join("; "),
                Err(error) => format!("it could not be proven: {error:#}"),
            };
            let now = undo(order, kernel, fresh).unwrap_or_else(|error| format!("AND COULD NOT BE UNDONE: {error:#}"));
            let entry = Entry::new(Event::Lockdown, format!("refused by its own proof: {why}; {now}"));
            journal::record(state.path(), &entry.by(order.person.clone()));
            return Err(Failed { why, now }.into());
        }
    };
    let mut entry = Entry::new(Event::Lockdown, "locked down, not confirmed yet")
        .by(order.person.clone())
        .noted(order.note)
        .changed(&changed);
    entry.footprint = Some(Footprint::of(&kernel, state.path()));
    journal::record(state.path(), &entry);
    drop(lock);
    Ok(Done { kernel, changed, policy, proof, mark, fresh })
}

fn publish(
    kernel: &mut Kernel,
    order: &Order<'_>,
    policy: &Policy,
    source: &Path,
    within: Within,
    mark: &Mark,
) -> anyhow::Result<(Changed, Policy)> {
    let change = Change {
        policy,
        source,
        audit: false,
        // Whatever was let through for a while before is not meant now; what was cut stays cut.
        exceptions: kept::exceptions(order.state)?
            .into_iter()
            .filter(|exception| exception.action == Action::Deny)
            .collect(),
        again: false,
        dry_run: false,
        cut_me: !order.keep_session,
        within,
        on_terminal: false,
        lockdown: Some(mark.clone()),
        restores: false,
    };
    // Read only now: the programs track since before, so no flow falls between.
    let changed = change::change(kernel, order.state, &Picture::read()?, &change)?;
    Ok((changed, change.composed()))
}

fn mark(order: &Order<'_>) -> Mark {
    let choices = &order.prepared.choices;
    let plan = &order.prepared.plan;
    let mut ways: Vec<ipnet::IpNet> = choices.ways.iter().filter(|way| way.inbound).map(|way| way.range).collect();
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

/// What was before. The caller holds the lock.
fn undo(order: &Order<'_>, mut kernel: Kernel, fresh: bool) -> anyhow::Result<String> {
    let state = order.state;
    kernel.roll_back()?;
    change::follow_rollback(&kernel, state)?;
    if fresh {
        drop(kernel);
        attached::release(order.instance)?;
        state.forget()?;
        return Ok("nothing of guard is attached any more; this host is open as it was before".to_owned());
    }
    // With --on-timeout ssh-only a policy lies between.
    if state.manifest(Kept::Active)?.is_some_and(|manifest| manifest.lockdown.is_some())
        && let Some((manifest, policy)) = kept::base(state, Kept::Afterwards)?
    {
        let change = Change {
            policy: &policy,
            source: &manifest.source,
            audit: manifest.audit,
            exceptions: kept::holding(&manifest, now_seconds()),
            again: false,
            dry_run: false,
            cut_me: true,
            within: Within::Never,
            on_terminal: false,
            lockdown: None,
            restores: true,
        };
        change::change(&mut kernel, state, &Picture::read()?, &change)?;
    }
    Ok("the policy from before is in force again".to_owned())
}

/// The second copy, for a state directory that is lost: written while a confirmed lockdown is in force, else gone. That it
/// cannot be written is said, and undoes nothing.
pub fn keep_second_copy(instance: &InstanceArgs, state: &StateDir) {
    let Some(path) = marker::path(instance) else { return };
    let kept = || -> anyhow::Result<()> {
        match mark::holding(state)? {
            Some((_, mark)) if mark.confirmed.is_some() => {
                let Some((_, policy)) = kept::base(state, Kept::Active)? else { return Ok(()) };
                Ok(marker::write(&path, &mark, &policy)?)
            }
            Some(_) => Ok(()),
            None => Ok(marker::remove(&path)?),
        }
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
    let judge = destroy::Judge {
        policy,
        examined: &examined,
        flows: &flows,
        guarded: &|index| guarded.contains(&index),
        chosen,
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
