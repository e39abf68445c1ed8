//! The run loop: events to records, a look at the tables from time to time, interfaces as they come and go, reloads,
//! and an end that loses nothing.
//!
//! It decides nothing that packets wait for. When it stops, is killed or starves, the kernel goes on.

use std::{io, sync::Arc, time::Duration};

use guard_common::Direction;
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    change::{self, Change},
    control::{ADDRESSES, Answer, DaemonStatus, Request, server},
    engine::Engine,
    kept, service_manager,
    state_dir::{Kept, Lock, StateDir},
    way_back::Within,
};
use crate::{
    host::{picture::Picture, watch::NetworkWatch},
    journal::{self, Entry, Event},
    lockdown::{afterwards, mark},
    policy::model::Policy,
    record::{
        clock::{Clock, boot_now, for_people, unix_now},
        flagged::Flagged,
        recorder::{Recorder, counts_as_flow},
        sweep::{Findings, Now, Sum},
    },
    store::{Losses, Recording},
};

/// Records wait no longer than this in memory.
const FLUSH: Duration = Duration::from_millis(500);
/// Between two looks at the flow tables, at least.
const SWEEP: Duration = Duration::from_secs(2);
/// A look at the tables may take at most this part of the time.
const SWEEP_SHARE: u32 = 50;
/// Between two looks at the clock and the deadline.
const TICK: Duration = Duration::from_millis(250);
/// Between two looks at the hooks.
const WATCH: Duration = Duration::from_secs(1);
/// Changes of the network are gathered for this long: they come in bursts.
const SETTLE: Duration = Duration::from_millis(20);
/// Events taken in one go, so that nothing else starves.
const EVENTS: usize = 1024;
/// The same, of programs that run and of name servers' answers: more than their rings hold.
const BESIDE: usize = 8192;
/// Between two looks at those, so that their rings do not fill while no flow begins.
const BESIDE_PAUSE: Duration = Duration::from_millis(50);

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// SIGTERM or Ctrl-C: the kernel still enforces.
    Signal,
    /// Somebody released the instance.
    Released,
}

/// What the loop runs with.
pub struct Daemon<'a> {
    pub engine: &'a mut dyn Engine,
    pub state: &'a StateDir,
    pub recorder: Recorder,
    pub lines: server::Lines,
    pub started: i64,
    /// Says something to whoever runs the daemon.
    pub say: &'a mut dyn FnMut(&str),
    baseline: Baseline,
    notices: Vec<String>,
    store: Option<Arc<Recording>>,
    sweeps: u32,
    /// Of the last look at the flow tables, not told yet.
    untold: Option<Untold>,
    /// Of the store, what was said.
    said: std::collections::HashSet<String>,
}

/// What a look found, and when; and how long it took so far.
struct Untold {
    findings: Findings,
    now: Now,
    spent: Duration,
}

/// Totals and flows when the loop began: what is lost after is counted against them.
#[derive(Clone, Copy, Debug, Default)]
struct Baseline {
    totals: Sum,
    flows: Sum,
}

impl<'a> Daemon<'a> {
    pub fn new(
        engine: &'a mut dyn Engine,
        state: &'a StateDir,
        mut recorder: Recorder,
        say: &'a mut dyn FnMut(&str),
    ) -> Self {
        let lines = server::Lines::default();
        let to_followers = lines.clone();
        recorder.follow(Box::new(move |record| {
            if to_followers.wanted()
                && let Ok(line) = serde_json::to_string(record)
            {
                to_followers.send(&line);
            }
        }));
        let started = i64::try_from(unix_now() / 1_000_000_000).unwrap_or(0);
        let mut daemon = Self {
            engine,
            state,
            recorder,
            lines,
            started,
            say,
            baseline: Baseline::default(),
            notices: Vec::new(),
            store: None,
            sweeps: 0,
            untold: None,
            said: Default::default(),
        };
        daemon.watch_processes();
        daemon
    }

    /// Keeps every flow in the record store, too.
    pub fn keep(&mut self, store: Recording) {
        let store = Arc::new(store);
        self.recorder.observe(Box::new(Arc::clone(&store)));
        self.store = Some(store);
    }

    /// Begins to see which programs run: before anybody is told that guard is ready.
    fn watch_processes(&mut self) {
        if let Err(error) = self.engine.watch_processes() {
            self.notice(format!(
                "which programs run is not told ({error:#}): one that ends before it is looked up is known by its name only"
            ));
        }
    }

    /// Names for the rules of a policy that is in force.
    pub fn know(&mut self, generation: u32, policy: &Policy) {
        self.recorder.names.insert_policy(generation, policy);
    }

    /// Runs until told to stop. Must be called inside a `LocalSet`.
    pub async fn run(&mut self, listener: tokio::net::UnixListener) -> anyhow::Result<Ended> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let events = self.engine.events_fd().try_clone_to_owned()?;
        // SAFETY: an OwnedFd keeps its one descriptor open until it is dropped.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }.map_err(io::Error::from)?;
        let network = NetworkWatch::new()?;
        // SAFETY: the watch owns its socket, never replaces it, and closes it only when it is dropped.
        let network =
            unsafe { AsyncFd::register_with_interest(network, Interest::READABLE) }.map_err(io::Error::from)?;
        let (sender, mut asked) = mpsc::channel(16);
        let server = tokio::task::spawn_local(server::serve(listener, sender, self.lines.clone()));

        let mut flush = interval(FLUSH);
        let mut tick = interval(TICK);
        let mut beside = interval(BESIDE_PAUSE);
        beside.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch_hooks = interval(WATCH);
        watch_hooks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.set_baseline();
        let mut next_sweep = Instant::now() + SWEEP;
        // What changed between the engine's first look and the watch is not missed.
        let mut refresh_at = Some(Instant::now());

        let ended = loop {
            tokio::select! {
                biased;
                _ = terminate.recv() => break Ended::Signal,
                _ = interrupt.recv() => break Ended::Signal,
                _ = hang_up.recv() => self.hang_up(),
                Some((request, answer)) = asked.recv() => {
                    let released = request == Request::Released;
                    if request == Request::Changed {
                        refresh_at.get_or_insert(Instant::now() + SETTLE);
                    }
                    // Whoever asked may be gone.
                    let _ = answer.send(self.answer(&request));
                    if released {
                        break Ended::Released;
                    }
                }
                ready = network.readable() => {
                    ready?.clear_ready();
                    if network.get_ref().drain() {
                        refresh_at.get_or_insert(Instant::now() + SETTLE);
                    }
                }
                () = at(refresh_at) => {
                    refresh_at = if self.refresh() { None } else { Some(Instant::now() + SETTLE) };
                }
                _ = tick.tick() => self.tick(),
                _ = beside.tick() => {
                    self.take_beside();
                    self.recorder.look_again(boot_now());
                }
                _ = watch_hooks.tick() => self.watch_hooks(),
                _ = flush.tick() => self.recorder.flush(),
                () = sleep_until(next_sweep), if self.untold.is_none() => {
                    self.sweep();
                    next_sweep = Instant::now() + SWEEP;
                }
                ready = events.readable() => {
                    let mut ready = ready?;
                    if self.take_events() < EVENTS {
                        ready.clear_ready();
                        // What came between the last read and the clearing rings no further bell.
                        self.take_events();
                    }
                }
                () = std::future::ready(()), if self.untold.is_some() => {
                    if let Some(spent) = self.tell() {
                        next_sweep = Instant::now() + SWEEP.max(spent * SWEEP_SHARE);
                    }
                }
            }
            // Whoever asks how things stand is answered in between, however much there is to do.
            tokio::task::yield_now().await;
        };
        // Answers that were given still have to leave.
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        server.abort();
        while self.take_events() == EVENTS {}
        self.tell_all();
        if ended == Ended::Signal {
            self.sweep();
            self.tell_all();
        }
        self.recorder.flush();
        self.recorder.sink.sync();
        Ok(ended)
    }

    fn take_events(&mut self) -> usize {
        let mut events = Vec::new();
        let taken = self.engine.drain_events(EVENTS, &mut |event| events.push(*event));
        // After the events: whatever ran, and was asked for, before a flow began is known by then.
        self.take_beside();
        for event in &events {
            self.recorder.event(event);
        }
        taken
    }

    /// Which programs run, and what name servers answered.
    fn take_beside(&mut self) {
        let recorder = &mut self.recorder;
        self.engine.drain_processes(BESIDE, &mut |event| recorder.attributor.told(event));
        self.engine.drain_answers(BESIDE, &mut |event| recorder.asked_as.told(event));
    }

    /// One look at the flow tables. What it finds is told by [`Daemon::tell`].
    fn sweep(&mut self) {
        let began = Instant::now();
        // Doorbells that wait are of flows that the tables are about to show.
        self.take_events();
        let looked = self.engine.now().and_then(|now| Ok((now, self.engine.flows()?)));
        let (now, held) = match looked {
            Ok(looked) => looked,
            Err(error) => return self.notice(format!("the flow tables could not be read: {error:#}")),
        };
        // And those of flows that began since, while the tables were read: they have the first bytes.
        self.take_events();
        let mut findings = self.recorder.tracker.look(held, &now);
        // From the end on, in the order in which they were found.
        findings.found.reverse();
        findings.grown.reverse();
        self.untold = Some(Untold { findings, now, spent: began.elapsed() });
    }

    /// Some of what the last look found. How long all of it took, once it is told.
    fn tell(&mut self) -> Option<Duration> {
        let began = Instant::now();
        let Untold { mut findings, now, spent } = self.untold.take()?;
        for found in findings.found.split_off(findings.found.len().saturating_sub(EVENTS)).iter().rev() {
            let owner = match found.flow.socket_cookie {
                0 => None,
                cookie => self.engine.owner(cookie),
            };
            self.recorder.found(found, &now, owner.as_ref());
        }
        for grown in findings.grown.split_off(findings.grown.len().saturating_sub(EVENTS)).iter().rev() {
            self.recorder.grown(grown, &now);
        }
        if !findings.found.is_empty() || !findings.grown.is_empty() {
            self.untold = Some(Untold { findings, now, spent: spent + began.elapsed() });
            return None;
        }
        if !findings.expired.is_empty()
            && let Err(error) = self.engine.delete(&findings.expired)
        {
            self.notice(format!("flows that are over could not be forgotten: {error:#}"));
        }
        self.tend_store();
        Some(spent + began.elapsed())
    }

    fn tell_all(&mut self) {
        while self.untold.is_some() {
            self.tell();
        }
    }

    /// `false`: a command changes what is attached just now, so look again.
    fn refresh(&mut self) -> bool {
        let Some(_lock) = self.lock_now() else { return false };
        // What a release took down is not put back.
        if self.state.in_force()
            && let Err(error) = self.engine.refresh()
        {
            self.notice(format!("interfaces could not be looked at: {error:#}"));
        }
        true
    }

    /// `None` while a command changes what is attached.
    fn lock_now(&mut self) -> Option<Lock> {
        self.state.lock_now().unwrap_or_else(|error| {
            self.notice(format!("what is attached could not be looked at: {error}"));
            None
        })
    }

    /// Somebody may have detached, unpinned or stood in front of what is ours.
    fn watch_hooks(&mut self) {
        let Some(_lock) = self.lock_now() else { return };
        if !self.state.in_force() {
            return;
        }
        match self.engine.repair() {
            Ok(repairs) => repairs.into_iter().for_each(|repair| {
                let time = for_people(unix_now());
                self.notice(format!("{repair} (seen {time})"));
            }),
            Err(error) => self.notice(format!("the hooks could not be looked at or put back: {error:#}")),
        }
    }

    fn tick(&mut self) {
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

    /// The same policy again, with its expiries turned into boot time by the clock as it is now.
    fn republish(&mut self) {
        let result = self.state.lock().map_err(anyhow::Error::from).and_then(|_lock| {
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
    fn hang_up(&mut self) {
        service_manager::reloading();
        if let Some(text) = self.hang_up_in_lockdown() {
            (self.say)(&text);
            return service_manager::ready(&text);
        }
        let result = self.state.lock().map_err(anyhow::Error::from).and_then(|_lock| {
            let manifest = self.state.manifest(Kept::Active)?;
            let Some(manifest) = manifest else { anyhow::bail!("no policy is in force") };
            let policy = change::audited(kept::read(&manifest.source)?, manifest.audit);
            let picture = Picture::read()?;
            let change = Change {
                policy: &policy,
                source: &manifest.source,
                audit: manifest.audit,
                exceptions: kept::exceptions(self.state)?,
                again: false,
                dry_run: false,
                cut_me: false,
                within: Within::Never,
                on_terminal: false,
                lockdown: None,
                restores: false,
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
    fn hang_up_in_lockdown(&self) -> Option<String> {
        let result = self.state.lock().map_err(anyhow::Error::from).and_then(|_lock| {
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
    fn look_again(&mut self) {
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

    fn answer(&mut self, request: &Request) -> Answer {
        match request {
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Changed => {
                self.look_again();
                Answer::Done
            }
            Request::AskedAs { addresses } => {
                let now = boot_now();
                let names = addresses.iter().take(ADDRESSES).map(|at| (*at, self.recorder.asked_as.names(*at, now)));
                Answer::AskedAs { names: names.filter(|(_, names)| !names.is_empty()).collect() }
            }
            Request::Released | Request::Follow => Answer::Done,
        }
    }

    fn status(&self) -> DaemonStatus {
        let lost = self.detail_lost();
        let store_notices = self.store.as_ref().map(|store| store.status().notices()).unwrap_or_default();
        DaemonStatus {
            answers: true,
            pid: std::process::id(),
            since: self.started,
            records: self.recorder.sink.counts().into(),
            who: self.recorder.named(),
            dns: self.recorder.asked_as.counts(),
            flagged: self.recorder.flagged.as_ref().map(Flagged::counts).unwrap_or_default(),
            store: self.store.as_ref().map(|store| store.status()),
            flows_held: self.recorder.tracker.held(),
            detail_lost_packets: lost.packets,
            detail_lost_bytes: lost.bytes,
            notices: self.notices.iter().cloned().chain(store_notices).collect(),
        }
    }

    /// What a report of the store says was lost; and what is amiss with the store is said at once.
    fn tend_store(&mut self) {
        /// Reading the counters back costs more than a sweep of few flows.
        const EVERY: u32 = 5;
        let Some(store) = self.store.clone() else { return };
        if self.sweeps.is_multiple_of(EVERY) {
            let lost = self.detail_lost();
            store.losses(Losses {
                packets: lost.packets.iter().sum(),
                records: self.recorder.sink.counts().lost,
                ..Losses::default()
            });
        }
        self.sweeps = self.sweeps.wrapping_add(1);
        let status = store.status();
        for path in status.set_aside {
            let text = format!("the record store was damaged: set aside as {}, a new one is begun", path.display());
            if self.said.insert(text.clone()) {
                (self.say)(&text);
            }
        }
        // Told once for as long as it lasts.
        match status.error {
            Some(error) if self.said.insert("store".to_owned()) => {
                (self.say)(&format!("the record store cannot be written now, enforcement goes on: {error}"));
            }
            None if self.said.remove("store") => (self.say)("the record store is written again"),
            _ => {}
        }
    }

    fn set_baseline(&mut self) {
        self.sweep();
        self.baseline = Baseline { totals: self.totals(), flows: self.recorder.tracker.sum() };
    }

    /// By the programs' counters, of packets that belong to flows.
    fn totals(&self) -> Sum {
        let mut sum = Sum::default();
        let Ok(read) = self.engine.read_back() else { return sum };
        for (reason, direction, _, counter) in &read.counters {
            if counts_as_flow(*reason) {
                let side = usize::from(*direction == Direction::Outbound);
                sum.packets[side] += counter.packets;
                sum.bytes[side] += counter.bytes;
            }
        }
        sum
    }

    /// What the totals have and no flow's record will: eviction took it.
    fn detail_lost(&self) -> Sum {
        let (totals, flows) = (self.totals(), self.recorder.tracker.sum());
        let mut lost = Sum::default();
        for side in 0..2 {
            let missing = |now: u64, then: u64, told: u64, told_then: u64| {
                now.saturating_sub(then).saturating_sub(told.saturating_sub(told_then))
            };
            lost.packets[side] = missing(
                totals.packets[side],
                self.baseline.totals.packets[side],
                flows.packets[side],
                self.baseline.flows.packets[side],
            );
            lost.bytes[side] = missing(
                totals.bytes[side],
                self.baseline.totals.bytes[side],
                flows.bytes[side],
                self.baseline.flows.bytes[side],
            );
        }
        lost
    }

    /// Said once, and shown by `status`.
    fn notice(&mut self, text: String) {
        const MOST: usize = 16;
        if self.notices.contains(&text) {
            return;
        }
        (self.say)(&text);
        if self.notices.len() == MOST {
            self.notices.remove(0);
        }
        self.notices.push(text);
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// One thread, and tasks that stay on it.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, future))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        daemon::{control, fake::FakeEngine},
        record::{
            flow::{Key, TCP},
            sink::{Limits, Sink},
            sweep::Tracker,
        },
    };

    /// Ends by a request, since signals would be the whole test process's.
    #[test]
    fn records_answers_and_ends() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::create(home.path()).unwrap();
        let mut engine = FakeEngine::default();
        let key = Key::new(TCP, "203.0.113.9".parse().unwrap(), 443, "192.0.2.1".parse().unwrap(), 40000, 0).unwrap();
        let flow = guard_common::abi::Flow { generation: 1, first_seen: 5, last_seen: 250_000, ..Default::default() };
        engine.flows.push((key, flow));
        let sink = Sink::open(state.records(), Limits::default());
        let recorder = Recorder::new(sink, Tracker::default(), Clock::read().unwrap());
        let mut said = Vec::new();
        let mut say = |text: &str| said.push(text.to_owned());
        let ended = block_on(async {
            let listener = server::bind(&state.socket()).unwrap();
            let socket = state.socket();
            let asker = std::thread::spawn(move || {
                let status = control::ask(&socket, &Request::Status).unwrap();
                let released = control::ask(&socket, &Request::Released).unwrap();
                (status, released)
            });
            let ended = Daemon::new(&mut engine, &state, recorder, &mut say).run(listener).await.unwrap();
            // The socket is served by this thread: the answer to the last question has to leave first.
            tokio::time::timeout(Duration::from_secs(5), tokio::task::spawn_blocking(move || asker.join().unwrap()))
                .await
                .map(|answers| (ended, answers.unwrap()))
                .unwrap()
        })
        .unwrap();
        let (ended, (status, released)) = ended;
        assert_eq!(ended, Ended::Released);
        let Some(Answer::Status(status)) = status else { panic!("no status") };
        assert_eq!((status.flows_held, status.pid), (1, std::process::id()));
        assert_eq!(released, Some(Answer::Done));
        let records = std::fs::read_to_string(state.records()).unwrap();
        assert_eq!(records.lines().count(), 1, "{records}");
        assert!(said.is_empty(), "{said:?}");
    }
}
