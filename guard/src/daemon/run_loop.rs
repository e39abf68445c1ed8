//! The run loop: events to records, a look at the tables from time to time, interfaces as they come and go, reloads,
//! and an end that loses nothing.
//!
//! It decides nothing that packets wait for. When it stops, is killed or starves, the kernel goes on.

mod recording;
mod upkeep;
mod watching;

use std::{collections::BTreeMap, io, path::Path, sync::Arc, time::Duration};

use guard_common::abi::StateWord;
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::recording::{EVENTS, Unwritten};
use super::{
    control::{ADDRESSES, Answer, DaemonStatus, Request, server},
    difference::Difference,
    engine::Engine,
    state_dir::StateDir,
    watch::Watch,
};
use crate::{
    host::{direct, watch::NetworkWatch},
    policy::model::Policy,
    record::{
        clock::{boot_now, unix_now},
        flagged::Flagged,
        recorder::Recorder,
        sweep::{Findings, Now, Sum},
    },
    store::{Reader, Recording},
};

/// Records wait no longer than this in memory.
const FLUSH: Duration = Duration::from_millis(500);
/// Between two looks at the flow tables, at least.
const SWEEP: Duration = Duration::from_secs(2);
/// A look at the tables may take at most this part of the time.
const SWEEP_SHARE: u32 = 50;
/// Between two looks at the clock and the deadline.
const TICK: Duration = Duration::from_millis(250);
/// Between two looks at all that is watched, and at what costs microseconds.
const WATCH: Duration = Duration::from_secs(1);
const GLANCE: Duration = Duration::from_millis(50);
/// Between two looks at other firewalls' rules: a dump or two of netlink.
const TRANSLATION: Duration = Duration::from_secs(5);
/// Changes of the network are gathered for this long: they come in bursts.
const SETTLE: Duration = Duration::from_millis(20);
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
    watch: Watch,
    /// Packet and AF_XDP sockets by their holders, and what of them still goes round the wire.
    direct: direct::Looks,
    round: Vec<Difference>,
    /// The state's word when all of it was well.
    word: Option<StateWord>,
    /// Of the change that waits for its confirmation: its generation, and the word as it was seen first.
    pending: Option<(u32, StateWord)>,
    notices: Vec<String>,
    store: Option<Arc<Recording>>,
    sweeps: u32,
    /// Of the last look at the flow tables, not told yet.
    untold: Option<Untold>,
    /// Files of records, by name.
    unwritten: BTreeMap<&'static str, Unwritten>,
    /// Damaged stores that were told of.
    set_aside: usize,
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
            watch: Watch::default(),
            direct: direct::Looks::default(),
            round: Vec::new(),
            word: None,
            pending: None,
            notices: Vec::new(),
            store: None,
            sweeps: 0,
            untold: None,
            unwritten: BTreeMap::new(),
            set_aside: 0,
        };
        daemon.watch_processes();
        daemon
    }

    /// What the daemon before this one knew of names. That none can be read costs labels.
    pub fn remember(&mut self, path: &Path) {
        let asked_as = match Reader::open(path) {
            Ok(Some(reader)) => reader.asked_as(),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let boot = i128::from(boot_now()) - unix_now();
        match asked_as {
            Ok(names) => {
                for (address, name, at) in names {
                    let at = i64::try_from(i128::from(at) * 1000 + boot).unwrap_or(i64::MIN / 2);
                    self.recorder.asked_as.remember(address, &name, at);
                }
            }
            Err(error) => tracing::debug!("what remotes were asked as is not known from before: {error}"),
        }
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

    /// Names for the rules of a policy that is in force, and whom it lets this host ask for names.
    pub fn know(&mut self, generation: u32, policy: &Policy) {
        self.recorder.asked_as.resolvers.of_policy(policy);
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
        let mut watch = interval(WATCH);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut translation = interval(TRANSLATION);
        translation.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut glance = interval(GLANCE);
        glance.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                _ = watch.tick() => self.look_at_all(),
                _ = translation.tick() => self.follow_translation(),
                _ = glance.tick() => self.glance(),
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
        self.keep_names();
        self.recorder.flush();
        self.recorder.sink.sync();
        Ok(ended)
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
            problems: self.watch.problems().collect(),
            notices: self.notices.iter().cloned().chain(store_notices).collect(),
        }
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
            clock::Clock,
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
