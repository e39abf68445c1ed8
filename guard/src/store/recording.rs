//! The thread that writes, and the queue in front of it. Whoever hands in a flow never waits.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Alert, Begun, Change, Limits, Name, StoreError, Writer, listeners_now, schema};
use crate::{
    record::{clock::unix_now, eve::Moment, observer::Observer},
    review::observed::Observed,
};

/// Changes that may wait.
const QUEUE: usize = 32_768;
/// Changes in one transaction.
const BATCH: usize = 4096;
/// A change waits no longer than this before it is written.
const FLUSH: Duration = Duration::from_millis(500);
/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(10);
/// Between two looks at what listens.
const LISTEN: Duration = Duration::from_secs(5);
/// Between two tries to open what could not be opened.
const RETRY: Duration = Duration::from_secs(5);
/// Alerts that wait; of more, as many as nobody can read, the oldest are lost.
const ALERTS: usize = 1024;

/// What was lost on the way to a record, since guard began to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Doorbells; such flows are recorded later, from the tables.
    pub events: u64,
    /// Packets whose flow was evicted before it was looked at.
    pub packets: u64,
    /// Lines of `flows.jsonl`.
    pub records: u64,
    /// Changes that did not reach the store.
    pub store: u64,
}

impl Losses {
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.packets += other.packets;
        self.records += other.records;
        self.store += other.store;
    }

    /// Whether a flow can be missing.
    #[must_use]
    pub const fn any(&self) -> bool {
        self.packets != 0 || self.records != 0 || self.store != 0
    }
}

/// How it stands with the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Changes that are written.
    pub written: u64,
    /// Changes that came faster than they could be written.
    pub overflow: u64,
    /// Changes that could not be written.
    pub lost: u64,
    /// Why not, now; `None` once it works again.
    pub error: Option<String>,
    /// Files that were damaged and are set aside.
    pub set_aside: Vec<PathBuf>,
}

/// A store that is being written. Dropping it writes what waits.
pub struct Recording {
    queue: Option<SyncSender<Change>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    written: AtomicU64,
    overflow: AtomicU64,
    lost: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    error: Option<String>,
    set_aside: Vec<PathBuf>,
    losses: Losses,
    /// That wait to be written.
    alerts: Vec<Alert>,
    names: Vec<Name>,
}

impl Shared {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        // A panic elsewhere leaves nothing half done here.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recording {
    /// Begins. That the store cannot be opened now is counted and told by [`Self::status`]; it is tried again.
    #[must_use]
    pub fn start(path: &Path, limits: Limits, begun: Begun) -> Self {
        let (queue, waiting) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let mut worker = Worker {
            path: path.to_owned(),
            limits,
            begun,
            writer: None,
            tried: None,
            shared: Arc::clone(&shared),
            look_at_listeners: true,
        };
        let thread = thread::Builder::new().name("guard-store".to_owned()).spawn(move || worker.run(&waiting));
        let thread = match thread {
            Ok(thread) => Some(thread),
            Err(error) => {
                shared.told().error = Some(format!("the store's thread cannot be started: {error}"));
                None
            }
        };
        Self { queue: Some(queue), shared, thread }
    }

    /// Hands in how a flow stands now: when it begins, when it is cut, when it is looked at, and, with `ended`, for the
    /// last time. The same flow (by its id) is one row. Never waits.
    pub fn flow(&self, flow: Observed, ended: bool) {
        let Some(queue) = &self.queue else { return };
        match queue.try_send(Change { flow, ended }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.shared.overflow.fetch_add(1, Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => {
                self.shared.lost.fetch_add(1, Relaxed);
            }
        }
    }

    /// Hands in an alert, as it begins or as it is over. Never waits.
    pub fn alert(&self, alert: Alert) {
        let mut told = self.shared.told();
        if told.alerts.len() < ALERTS {
            told.alerts.push(alert);
        } else {
            self.shared.lost.fetch_add(1, Relaxed);
        }
    }

    /// Hands in what remotes were asked as. Never waits.
    pub fn names(&self, names: Vec<Name>) {
        /// More than are asked for in the time between two writes; they are labels, and come again.
        const MOST: usize = 65_536;
        let mut told = self.shared.told();
        let room = MOST.saturating_sub(told.names.len());
        told.names.extend(names.into_iter().take(room));
    }

    /// What else was lost, so that a report can say it.
    pub fn losses(&self, losses: Losses) {
        self.shared.told().losses = losses;
    }

    #[must_use]
    pub fn status(&self) -> StoreStatus {
        let told = self.shared.told();
        StoreStatus {
            written: self.shared.written.load(Relaxed),
            overflow: self.shared.overflow.load(Relaxed),
            lost: self.shared.lost.load(Relaxed),
            error: told.error.clone(),
            set_aside: told.set_aside.clone(),
        }
    }
}

impl Observer for Arc<Recording> {
    fn observed(&mut self, flow: &Observed, moment: Moment) {
        self.flow(flow.clone(), moment == Moment::End);
    }
}

impl StoreStatus {
    /// What a person has to know, in sentences.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let mut notices: Vec<String> = self
            .set_aside
            .iter()
            .map(|path| format!("the record store was damaged: set aside as {}, a new one is begun", path.display()))
            .collect();
        match &self.error {
            Some(error) => {
                notices.push(format!("the record store cannot be written now ({} changes lost): {error}", self.lost));
            }
            None if self.lost > 0 => {
                notices.push(format!("{} changes could not be written to the record store; it works again", self.lost));
            }
            None => {}
        }
        if self.overflow > 0 {
            notices.push(format!("{} changes came faster than the record store could be written", self.overflow));
        }
        notices
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to say that was not counted.
            let _ = thread.join();
        }
    }
}

struct Worker {
    path: PathBuf,
    limits: Limits,
    begun: Begun,
    writer: Option<Writer>,
    tried: Option<Instant>,
    shared: Arc<Shared>,
    look_at_listeners: bool,
}

impl Worker {
    fn run(&mut self, waiting: &Receiver<Change>) {
        self.ensure_open();
        let mut batch: Vec<Change> = Vec::new();
        let (mut next_beat, mut next_listen) = (Instant::now(), Instant::now());
        loop {
            let open = gather(waiting, &mut batch);
            if !batch.is_empty() {
                self.write(&batch);
                batch.clear();
            }
            self.tell_alerts();
            self.tell_names();
            if !open {
                self.beat();
                return;
            }
            let now = Instant::now();
            if now >= next_listen && self.look_at_listeners {
                self.listen();
                // A host with very many sockets is looked at less often.
                next_listen = Instant::now() + LISTEN.max(now.elapsed() * 50);
            }
            if now >= next_beat {
                self.beat();
                next_beat = now + BEAT;
            }
        }
    }

    fn write(&mut self, batch: &[Change]) {
        self.ensure_open();
        let count = batch.len() as u64;
        let Some(writer) = &mut self.writer else {
            self.shared.lost.fetch_add(count, Relaxed);
            return;
        };
        match writer.apply(batch, now_us()) {
            Ok(()) => {
                self.shared.written.fetch_add(count, Relaxed);
                self.shared.told().error = None;
                if let Err(error) = writer.forget(now_us(), false) {
                    self.failed(&error);
                }
            }
            Err(error) => {
                let damaged = error.is_damage();
                self.failed(&error);
                // What was to be written when the damage was found goes into the new store.
                let again = damaged && self.writer.as_mut().is_some_and(|writer| writer.apply(batch, now_us()).is_ok());
                let counter = if again { &self.shared.written } else { &self.shared.lost };
                counter.fetch_add(count, Relaxed);
            }
        }
    }

    fn tell_alerts(&mut self) {
        let alerts = std::mem::take(&mut self.shared.told().alerts);
        if alerts.is_empty() {
            return;
        }
        self.ensure_open();
        let written = match &mut self.writer {
            Some(writer) => writer.alerts(&alerts),
            None => {
                let mut told = self.shared.told();
                let newer = std::mem::replace(&mut told.alerts, alerts);
                told.alerts.extend(newer);
                return;
            }
        };
        if let Err(error) = written {
            // That the disk is full is itself one of them: they wait until there is room.
            let mut told = self.shared.told();
            let newer = std::mem::replace(&mut told.alerts, alerts);
            told.alerts.extend(newer);
            let beyond = told.alerts.len().saturating_sub(ALERTS);
            told.alerts.drain(..beyond);
            drop(told);
            self.shared.lost.fetch_add(beyond as u64, Relaxed);
            self.failed(&error);
        }
    }

    fn tell_names(&mut self) {
        let names = std::mem::take(&mut self.shared.told().names);
        if names.is_empty() {
            return;
        }
        self.ensure_open();
        if let Some(writer) = &mut self.writer
            && let Err(error) = writer.names(&names, now_us())
        {
            self.failed(&error);
        }
    }

    fn beat(&mut self) {
        self.ensure_open();
        let mut losses = self.shared.told().losses;
        losses.store = self.shared.lost.load(Relaxed) + self.shared.overflow.load(Relaxed);
        let Some(writer) = &mut self.writer else { return };
        if let Err(error) = writer.beat(&losses, now_us()).and_then(|()| writer.forget(now_us(), true)) {
            self.failed(&error);
        }
    }

    fn listen(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        match listeners_now() {
            Ok(listeners) => {
                if let Err(error) = writer.listening(&listeners, now_us()) {
                    self.failed(&error);
                }
            }
            Err(error) => tracing::debug!("what listens could not be looked at: {error:#}"),
        }
    }

    /// Counted, told, and, where the file is beyond use, begun anew.
    fn failed(&mut self, error: &StoreError) {
        /// A disk that damages one new store after another is not filled with them.
        const MOST_SET_ASIDE: usize = 3;
        self.shared.told().error = Some(error.to_string());
        if !error.is_damage() || self.shared.told().set_aside.len() >= MOST_SET_ASIDE {
            return;
        }
        self.writer = None;
        match schema::set_aside(&self.path, unix_now()) {
            Ok(aside) => {
                self.shared.told().set_aside.push(aside);
                self.tried = None;
                self.ensure_open();
            }
            Err(error) => self.shared.told().error = Some(error.to_string()),
        }
    }

    fn ensure_open(&mut self) {
        if self.writer.as_ref().is_some_and(|writer| writer.is_in_place())
            || self.tried.is_some_and(|tried| tried.elapsed() < RETRY)
        {
            return;
        }
        self.tried = Some(Instant::now());
        // Somebody has moved or removed it: what is written must be found where it is looked for.
        self.writer = None;
        let begun = Begun { at: if self.begun.at == 0 { now_us() } else { self.begun.at }, ..self.begun.clone() };
        match Writer::open(&self.path, self.limits, &begun) {
            Ok(writer) => {
                self.writer = Some(writer);
                self.shared.told().error = None;
                // A store that is opened again later covers from then on.
                self.begun.at = 0;
            }
            Err(error) => self.failed(&error),
        }
    }
}

/// Waits for a first change, then takes what comes until the batch is full or its time is over. `false`: nothing comes
/// any more.
fn gather(waiting: &Receiver<Change>, batch: &mut Vec<Change>) -> bool {
    match waiting.recv_timeout(FLUSH) {
        Ok(change) => batch.push(change),
        Err(RecvTimeoutError::Timeout) => return true,
        Err(RecvTimeoutError::Disconnected) => return false,
    }
    let until = Instant::now() + FLUSH;
    while batch.len() < BATCH {
        match waiting.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(change) => batch.push(change),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    true
}

fn now_us() -> i64 {
    i64::try_from(unix_now() / 1000).unwrap_or(0)
}
