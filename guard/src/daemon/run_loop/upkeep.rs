//! What changes below or beside the daemon: interfaces, hooks, the clock, the deadline, the policy's file.

use super::Daemon;
use crate::{
    daemon::{
        change::{self, Change},
        kept, service_manager,
        state_dir::{Kept, Lock},
    },
    host::picture::Picture,
    journal::{self, Entry, Event},
    lockdown::{afterwards, mark},
    record::clock::{Clock, for_people, unix_now},
};

impl Daemon<'_> {
    /// `false`: a command changes what is attached just now, so look again.
    pub(super) fn refresh(&mut self) -> bool {
        let Some(_lock) = self.lock_now() else { return false };
        // What a release took down is not put back.
        if !self.state.in_force() {
            return true;
        }
        match self.engine.refresh() {
            Ok(gaps) => gaps.into_iter().for_each(|gap| {
                let time = for_people(unix_now());
                self.notice(format!("{gap} (seen {time})"));
            }),
            Err(error) => self.notice(format!("interfaces could not be looked at: {error:#}")),
        }
        self.look_at_interface_set();
        true
    }

    /// `None` while a command changes what is attached.
    pub(super) fn lock_now(&mut self) -> Option<Lock> {
        self.state.lock_now().unwrap_or_else(|error| {
            self.notice(format!("what is attached could not be looked at: {error}"));
            None
        })
    }

    pub(super) fn tick(&mut self) {
        // A deadline that nobody asked for is told, and undoes nothing.
        if change::forged_deadline(self.engine, self.state).is_ok_and(|forged| forged.is_some()) {
            self.look_at_all();
        }
        // The kernel's tables and the state directory change together; who holds the lock settles it, or the next tick.
        if let Some(lock) = self.lock_now() {
            let settled = change::settle(self.engine, self.state);
            drop(lock);
            match settled {
                Ok(false) => {}
                Ok(true) => {
                    (self.say)("the change was not confirmed in time: undone");
                    self.look_again();
                }
                Err(error) => self.notice(format!("a rollback could not be completed: {error:#}")),
            }
        }
        match Clock::read() {
            Ok(clock) if change::stepped(self.recorder.clock, clock) => {
                let seconds = clock.stepped_since(self.recorder.clock) as f64 / 1e9;
                self.recorder.clock = clock;
                (self.say)(&format!("the clock was stepped by {seconds:+.1} s: expiry is computed anew"));
                self.republish();
            }
            Ok(_) => {}
            Err(error) => self.notice(format!("the clock could not be read: {error}")),
        }
    }

    /// Every few seconds: the kernel tells nobody of the older iptables' rules, and does not say which of the newer matter.
    pub(super) fn follow_translation(&mut self) {
        let Some(_lock) = self.lock_now() else { return };
        if !self.state.in_force() {
            return;
        }
        let rules = "rules of nftables or iptables that change where this host's own packets go";
        match self.engine.follow_translation() {
            Ok(None) => {}
            Ok(Some(true)) => {
                (self.say)(&format!("{rules} have come: the socket layer leaves every verdict to the wire"))
            }
            Ok(Some(false)) => (self.say)(&format!("{rules} are gone: the socket layer tells programs at once again")),
            Err(error) => self.notice(format!("{rules} came or went, and the programs could not be told: {error:#}")),
        }
    }

    /// The same policy again, with its expiries turned into boot time by the clock as it is now.
    pub(super) fn republish(&mut self) {
        let result = self.state.lock_briefly().map_err(anyhow::Error::from).and_then(|_lock| {
            let kept = kept::load(self.state, Kept::Active)?;
            let Some((manifest, policy)) = kept else { return Ok(None) };
            if self.engine.read_back()?.state.word.is_pending() {
                anyhow::bail!("a change is unconfirmed");
            }
            let generation = self.engine.next_generation()?;
            let compiled = crate::policy::compile::compile(&policy, change::clocks(), generation)?;
            self.engine.publish(&compiled, None)?;
            self.state.set_generation(&manifest, generation)?;
            Ok(Some((generation, policy)))
        });
        match result {
            Ok(Some((generation, policy))) => self.know(generation, &policy),
            Ok(None) => {}
            Err(error) => self.notice(format!("after a step of the clock, expiry holds at the old times: {error:#}")),
        }
    }

    /// SIGHUP: the file that runs now, read again. On any error the old policy stays.
    pub(super) fn hang_up(&mut self) {
        service_manager::reloading();
        if let Some(text) = self.hang_up_in_lockdown() {
            (self.say)(&text);
            return service_manager::ready(&text);
        }
        let result = self.state.lock_briefly().map_err(anyhow::Error::from).and_then(|_lock| {
            let manifest = self.state.manifest(Kept::Active)?;
            let Some(manifest) = manifest else { anyhow::bail!("no policy is in force") };
            let policy = change::audited(kept::read(&manifest.source)?, manifest.audit);
            let picture = Picture::read()?;
            let change = Change {
                audit: manifest.audit,
                exceptions: kept::exceptions(self.state)?,
                ..Change::new(&policy, &manifest.source)
            };
            let changed = change::change(self.engine, self.state, &picture, &change)?;
            Ok((changed, change.composed()))
        });
        match result {
            Ok((changed, policy)) => {
                self.know(changed.generation, &policy);
                let entry = Entry::new(Event::Reload, "SIGHUP: the policy's file was read again").changed(&changed);
                journal::record(self.state.path(), &entry);
                let text = format!(
                    "reloaded: policy {}, generation {}, {} flows cut",
                    changed.policy,
                    changed.generation,
                    changed.impact.would_cut.len()
                );
                (self.say)(&text);
                service_manager::ready(&text);
            }
            Err(error) => {
                let text = format!("not reloaded, the old policy stays: {error:#}");
                (self.say)(&text);
                service_manager::ready(&text);
            }
        }
    }

    /// The file that holds afterwards, read again; the lockdown stays as it is. `None`: none holds.
    pub(super) fn hang_up_in_lockdown(&self) -> Option<String> {
        let result = self.state.lock_briefly().map_err(anyhow::Error::from).and_then(|_lock| {
            if mark::holding(self.state)?.is_none() {
                return Ok(None);
            }
            let Some(manifest) = self.state.manifest(Kept::Afterwards)? else {
                return Ok(Some(
                    "a lockdown holds, and nothing was in force before it: nothing is reloaded".to_owned(),
                ));
            };
            let policy = change::audited(kept::read(&manifest.source)?, manifest.audit);
            afterwards::keep(self.state, &policy, &manifest.source, manifest.audit)?;
            Ok(Some(format!("a lockdown holds: policy {} is kept for afterwards, the lockdown goes on", policy.name)))
        });
        match result {
            Ok(text) => text,
            Err(error) => Some(format!("not reloaded, a lockdown holds: {error:#}")),
        }
    }

    /// Whatever is in force now: another process may have changed it.
    pub(super) fn look_again(&mut self) {
        let known = kept::load(self.state, Kept::Active).and_then(|kept| {
            let Some((manifest, policy)) = kept else { return Ok(()) };
            self.know(manifest.generation, &policy);
            let compiled = crate::policy::compile::compile(&policy, change::clocks(), manifest.generation)?;
            self.engine.know(&compiled)
        });
        if let Err(error) = known {
            self.notice(format!("the policy in force could not be read: {error:#}"));
        }
    }
}
