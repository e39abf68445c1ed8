//! One change of the policy in force, as `run`, `reload`, SIGHUP and a step of the clock make it: decide what the host
//! holds, refuse or go on, publish, read back, keep.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Duration,
};

use guard_common::{
    Reason,
    abi::{Flow, Slot, StateWord},
    decide::{NO_RULE, Outcome},
};
use serde::Serialize;

use super::{
    engine::{Engine, ReadBack},
    impact::{Candidate, Impact, assess},
    kept::last_exception,
    report::InterfaceLine,
    state_dir::{Kept, Manifest, StateDir, StateError},
    way_back::{CutsSession, Within, spare_session},
};
use crate::{
    host::{
        held::HeldFlow,
        picture::{Judged, Picture},
        session::Session,
    },
    journal::{self, Entry, Event},
    lockdown::mark::{Mark, Open, THIS_SESSION},
    policy::{
        compile::{Clocks, Compiled, compile},
        exceptions::{Exception, compose},
        model::{ContainerHost, Mode, Policy},
    },
    record::{
        clock::{Clock, boot_now, unix_now},
        flow::Key,
    },
    text::harmless,
};

/// What is to be put in force, and how.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    pub policy: &'a Policy,
    /// The file that it was read from.
    pub source: &'a Path,
    /// `--audit`: the policy's modes are audit already; remembered for the next reload.
    pub audit: bool,
    /// Temporary exceptions that hold over the policy ([`super::kept::exceptions`] are those of now).
    pub exceptions: Vec<Exception>,
    /// Where a copy of the policy and its files is kept; `None`: they are the person's own files.
    pub from: Option<Kept>,
    pub dry_run: bool,
    pub cut_me: bool,
    pub within: Within,
    /// A person sits at this command.
    pub on_terminal: bool,
    /// It is a lockdown.
    pub lockdown: Option<Mark>,
    /// After a reboot: it is put in force whether it can be written down or not.
    pub resumes: bool,
}

impl<'a> Change<'a> {
    /// For good, and sparing the session that asks.
    #[must_use]
    pub fn new(policy: &'a Policy, source: &'a Path) -> Self {
        Self {
            policy,
            source,
            audit: false,
            exceptions: Vec::new(),
            from: None,
            dry_run: false,
            cut_me: false,
            within: Within::Never,
            on_terminal: false,
            lockdown: None,
            resumes: false,
        }
    }

    /// The policy with its exceptions.
    #[must_use]
    pub fn composed(&self) -> Policy {
        compose(self.policy.clone(), &self.exceptions)
    }
}

/// What became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Changed {
    pub policy: String,
    pub policy_sha256: String,
    /// False for `--dry-run`.
    pub published: bool,
    pub generation: u32,
    /// Seconds until it is undone unless confirmed.
    pub confirm_within: Option<u64>,
    #[serde(flatten)]
    pub impact: Impact,
}

impl Changed {
    /// What a change would be that was only looked at.
    #[must_use]
    pub fn dry(policy: &Policy, generation: u32, impact: Impact) -> Self {
        Self {
            policy: policy.name.clone(),
            policy_sha256: hex(&policy.sha256),
            published: false,
            generation,
            confirm_within: None,
            impact,
        }
    }

    /// For people. `suffix`: what a pasted command needs to reach this instance.
    #[must_use]
    pub fn render(&self, suffix: &str, dry_run: bool) -> String {
        let mut text = self.impact.render(20);
        if dry_run {
            text.push_str("nothing was changed (--dry-run)\n");
            return text;
        }
        text.push_str(&format!("policy {} is in force, generation {}\n", harmless(&self.policy), self.generation));
        if let Some(seconds) = self.confirm_within {
            text.push_str(&format!(
                "UNDONE IN {seconds} s unless you log in AGAIN from another terminal and run: guard confirm{suffix}\n"
            ));
        }
        text
    }
}

/// The tables of a policy for the flows and interfaces of this moment.
pub struct Examined {
    pub compiled: Compiled,
    pub clocks: Clocks,
    pub held: Vec<HeldFlow>,
    pub session: Session,
    pub impact: Impact,
}

/// Both clocks, now.
#[must_use]
pub fn clocks() -> Clocks {
    Clocks { unix_ns: unix_now(), boot_ns: boot_now() }
}

/// Where a policy judges.
pub struct JudgedSet {
    guarded: HashSet<u32>,
    host_sides: HashSet<u32>,
}

impl JudgedSet {
    #[must_use]
    pub fn of(interfaces: &[InterfaceLine], policy: &Policy) -> Self {
        let indices =
            |which: &dyn Fn(&&InterfaceLine) -> bool| interfaces.iter().filter(which).map(|line| line.index).collect();
        let guards = policy.container_host == ContainerHost::Guard;
        Self {
            guarded: indices(&|line| line.guarded),
            host_sides: indices(&|line| guards && line.container_host.is_some()),
        }
    }

    /// Calls with what [`examine`] takes.
    pub fn with<T>(&self, call: impl FnOnce(Judged<'_>) -> T) -> T {
        call(Judged {
            guarded: &|index| self.guarded.contains(&index),
            host_side: &|index| self.host_sides.contains(&index),
        })
    }
}

/// Decides all that the host holds. Changes nothing. `tables`: flows already known.
pub fn examine(
    policy: &Policy,
    generation: u32,
    picture: &Picture,
    judged: Judged<'_>,
    tables: Vec<(Key, Flow)>,
) -> anyhow::Result<Examined> {
    let clocks = clocks();
    let compiled = compile(policy, clocks, generation)?;
    let held = picture.held(judged, tables);
    let session = picture.session(&held);
    let supposed = picture.supposed(&session, judged);
    let class = |index| {
        let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
        name.map_or(0, |name| compiled.interface_class(&name))
    };
    let candidate = Candidate { compiled: &compiled, policy, class: &class, now: clocks };
    let impact = assess(&candidate, held.iter().chain(&supposed), &session);
    Ok(Examined { compiled, clocks, held, session, impact })
}

/// The answer to a change was "no": it would cut the session that asks. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// What it would have been.
    pub changed: Box<Changed>,
    why: CutsSession,
}

/// Refuses what the change itself forbids: cutting the session that asks. `changed`: what it would be.
pub fn permit(change: &Change<'_>, changed: &Changed) -> anyhow::Result<()> {
    if change.cut_me {
        return Ok(());
    }
    if change.lockdown.is_some() {
        return Ok(spare_session(&changed.impact, "--no-keep-session")?);
    }
    spare_session(&changed.impact, "--cut-me").map_err(|why| Refused { changed: Box::new(changed.clone()), why }.into())
}

/// The whole change. The caller holds the state directory's lock. On any error before the flip nothing has changed.
pub fn change(
    engine: &mut dyn Engine,
    state: &StateDir,
    picture: &Picture,
    change: &Change<'_>,
) -> anyhow::Result<Changed> {
    settle(engine, state)?;
    let before = engine.read_back()?;
    if before.state.word.is_pending() && !change.dry_run {
        anyhow::bail!("a change is still unconfirmed: `guard confirm` or `guard rollback` first; nothing was changed");
    }
    let generation = engine.next_generation()?;
    let interfaces = engine.interfaces()?;
    let known = engine.flows()?;
    let judged = known.iter().filter(|(_, flow)| flow.generation != 0);
    let in_tables: HashSet<Key> = judged.map(|(key, _)| *key).collect();
    let policy = change.composed();
    let judged_at = JudgedSet::of(&interfaces, &policy);
    let mut examined = judged_at.with(|judged| examine(&policy, generation, picture, judged, known))?;
    // A damaged one keeps no policy from being put in force: after a reboot the host would stay open.
    let active = state.manifest(Kept::Active).unwrap_or_else(|error| {
        eprintln!("notice: what was in force before is not known: {}", harmless(&error.to_string()));
        None
    });
    let source = std::path::absolute(change.source)?;
    // The same policy again, with other exceptions or expiries, is still the lockdown.
    let still = active.as_ref().filter(|active| match change.from {
        Some(kept) => kept == Kept::Active,
        None => change.policy.lockdown && active.source == source,
    });
    let lockdown = change.lockdown.clone().or(still.and_then(|active| active.lockdown.clone()));
    let sessions = lockdown.as_ref().map(|mark| mark.sessions.clone()).unwrap_or_default();
    examined.impact.spare(&sessions);
    let sha256 = hex(&policy.sha256);
    let mut changed = Changed::dry(&policy, generation, examined.impact.clone());
    if change.dry_run {
        return Ok(changed);
    }
    permit(change, &changed)?;

    let files = change
        .policy
        .files
        .iter()
        .map(|file| std::path::absolute(file.as_path()))
        .collect::<Result<Vec<PathBuf>, _>>()?;
    let mut manifest =
        Manifest::new(change.policy.name.clone(), sha256, generation, source, change.audit, examined.clocks.unix_ns);
    manifest.last_exception =
        change.exceptions.iter().map(|exception| exception.number).max().unwrap_or(0).max(last_exception(state));
    if !change.exceptions.is_empty() {
        manifest.base_sha256 = Some(hex(&change.policy.sha256));
        manifest.exceptions.clone_from(&change.exceptions);
    }
    manifest.lockdown = lockdown;
    let enforces = change.policy.inbound == Mode::Enforce || change.policy.outbound == Mode::Enforce;
    let deadline = change.within.deadline(change.on_terminal, examined.session.is_remote(), enforces);
    manifest.unconfirmed = deadline.is_some();
    let prepare = || -> Result<(), StateError> {
        if change.lockdown.is_some() && !change.resumes && active.is_none_or(|active| active.lockdown.is_none()) {
            state.keep_for_afterwards()?;
        }
        match change.from {
            Some(kept) => state.prepare_from(kept, &manifest),
            None => state.prepare(&manifest, &files),
        }
    };
    let written = match prepare() {
        Err(error) if !change.resumes => return Err(error.into()),
        written => written,
    };

    // What began before guard, and was not judged yet: judged like any other from its next packet on.
    let now = engine.now()?;
    let adopted: Vec<(Key, Flow)> = examined
        .held
        .iter()
        .filter(|flow| !in_tables.contains(&flow.key))
        .map(|flow| (flow.key, flow.adopted(now.boot_ns, now.jiffies)))
        .collect();
    engine.adopt(&adopted)?;

    // What goes on without a rule: in the tables before the flip and after it.
    let rule = policy.rules.iter().position(|rule| rule.name.as_deref() == Some(THIS_SESSION));
    let goes_on = Outcome::new(Reason::RuleAllow, rule.and_then(|rule| u32::try_from(rule).ok()).unwrap_or(NO_RULE));
    let open = |flow: &&HeldFlow| {
        let is = |open: &Open| (open.protocol, (open.local, open.remote)) == (flow.key.protocol(), flow.ends());
        sessions.iter().any(is)
    };
    let open: Vec<Key> = examined.held.iter().filter(open).map(|flow| flow.key).collect();
    engine.hold(&open, generation, goes_on)?;
    engine.publish(&examined.compiled, deadline)?;
    engine.hold(&open, generation, goes_on)?;
    verify(&engine.read_back()?, &examined.compiled, deadline)?;
    match written.and_then(|()| state.promote(&manifest)) {
        Err(error) if change.resumes => {
            eprintln!("notice: in force, but not written down as such: {}", harmless(&error.to_string()));
        }
        promoted => promoted?,
    }
    changed.published = true;
    changed.confirm_within = deadline.map(|time| time.as_secs());
    Ok(changed)
}

/// Completes a rollback whose deadline has passed, in the kernel and in the state directory. True if there was one.
///
/// A deadline that somebody wrote into what was confirmed undoes nothing: the word is put back, and that is told.
pub fn settle(engine: &mut dyn Engine, state: &StateDir) -> anyhow::Result<bool> {
    if let Some(right) = forged_deadline(engine, state)? {
        engine.force(right)?;
        let text = "a deadline had been written into the kernel's state for a policy that was confirmed; put back";
        journal::record(state.path(), &Entry::new(Event::Alert, text));
        return Ok(false);
    }
    if !engine.settle()? {
        return Ok(false);
    }
    follow_rollback(engine, state)?;
    let kept = state.manifest(Kept::Active)?;
    let text = "the change was not confirmed in time: the kernel undid it at its deadline";
    journal::record(state.path(), &Entry::new(Event::Rollback, text).kept(kept.as_ref()));
    Ok(true)
}

/// The word that the state should have, where a deadline is pending that no change asked for: the policy that it would undo
/// is kept as confirmed.
pub fn forged_deadline(engine: &dyn Engine, state: &StateDir) -> anyhow::Result<Option<StateWord>> {
    let (kernel, _) = engine.state()?;
    let word = kernel.word;
    let Some(kept) = word.is_pending().then(|| state.manifest(Kept::Active).ok().flatten()).flatten() else {
        return Ok(None);
    };
    let generation = kernel.slots.get(usize::from(word.active().0)).map_or(0, |slot| slot.generation);
    let confirmed = !kept.unconfirmed && kept.generation == generation && word.active() != Slot::NONE;
    Ok(confirmed.then(|| StateWord::settled(word.active())))
}

/// Where the kernel has nothing of it (a reboot, a daemon that died in between): what nobody had confirmed is over.
/// `in_force`: the generation that the kernel judges by.
pub fn forget_unconfirmed(state: &StateDir, in_force: Option<u32>) -> Result<(), StateError> {
    while state.manifest(Kept::Active)?.is_some_and(|kept| kept.unconfirmed && Some(kept.generation) != in_force) {
        state.roll_back()?;
    }
    Ok(())
}

/// Confirms what waits for it. Its manifest is changed first (`write`), and put back where the kernel refuses. That it
/// cannot be written is returned and keeps nothing from being confirmed: the kernel would undo it.
pub fn confirm(
    engine: &mut dyn Engine,
    state: &StateDir,
    write: impl FnOnce(&mut Manifest),
) -> anyhow::Result<Option<StateError>> {
    let (before, mut unwritten) = match state.manifest(Kept::Active) {
        Ok(before) => (before, None),
        Err(error) => (None, Some(error)),
    };
    // Another than waits was never written down.
    let generation = in_force(&engine.read_back()?).map(|(_, generation)| generation);
    let before = before.filter(|before| Some(before.generation) == generation);
    if let Some(before) = &before {
        let mut manifest = Manifest { unconfirmed: false, ..before.clone() };
        write(&mut manifest);
        unwritten = state.rewrite(&manifest).err();
    }
    if let Err(refused) = engine.confirm() {
        if let Some(before) = &before {
            state.rewrite(before)?;
        }
        return Err(refused);
    }
    Ok(unwritten)
}

/// Brings the state directory after a rollback in step with the kernel.
pub fn follow_rollback(engine: &dyn Engine, state: &StateDir) -> anyhow::Result<()> {
    let generation = in_force(&engine.read_back()?).map_or(0, |(_, generation)| generation);
    let kept = |kept| -> anyhow::Result<Option<u32>> { Ok(state.manifest(kept)?.map(|manifest| manifest.generation)) };
    if kept(Kept::Active)? != Some(generation) && (generation == 0 || kept(Kept::Previous)? == Some(generation)) {
        state.roll_back()?;
    }
    Ok(())
}

/// The slot and generation that judge now; `None`: no policy.
#[must_use]
pub fn in_force(read: &ReadBack) -> Option<(Slot, u32)> {
    let slot = read.state.word.effective_slot(read.boot_ns);
    let info = read.state.slots.get(usize::from(slot.0))?;
    (slot != Slot::NONE && info.generation != 0).then_some((slot, info.generation))
}

/// The flip is believed only as far as it is read back.
fn verify(read: &ReadBack, compiled: &Compiled, deadline: Option<Duration>) -> anyhow::Result<()> {
    let Some((slot, generation)) = in_force(read) else {
        anyhow::bail!("read back after the change: the kernel has no policy in force");
    };
    if generation != compiled.generation {
        anyhow::bail!("read back after the change: generation {generation} is in force, not {}", compiled.generation);
    }
    if read.policies[usize::from(slot.0)] != Some(compiled.policy_sha256) {
        anyhow::bail!("read back after the change: the tables of generation {generation} are not this policy's");
    }
    if read.state.slots[usize::from(slot.0)].flags != compiled.flags {
        anyhow::bail!("read back after the change: generation {generation} has other flags than were published");
    }
    if deadline.is_some() != StateWord::is_pending(read.state.word) {
        anyhow::bail!("read back after the change: the deadline is not as it was asked for");
    }
    Ok(())
}

/// Names of a policy's rules, in the order of their numbers.
#[must_use]
pub fn labels(policy: &Policy) -> Vec<String> {
    policy.rules.iter().map(crate::policy::model::Rule::label).collect()
}

/// In which directions it drops: `[inbound, outbound]`.
#[must_use]
pub fn enforces(policy: &Policy) -> [bool; 2] {
    [policy.inbound == Mode::Enforce, policy.outbound == Mode::Enforce]
}

/// With `--audit`, whatever mode it names.
#[must_use]
pub fn audited(mut policy: Policy, audit: bool) -> Policy {
    if audit {
        policy.inbound = Mode::Audit;
        policy.outbound = Mode::Audit;
    }
    policy
}

/// Whether wall time was stepped since the policy in force was compiled: its expiries then hold at the wrong time.
#[must_use]
pub fn stepped(before: Clock, now: Clock) -> bool {
    now.stepped_since(before).abs() > 500_000_000
}

/// Lower case.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
