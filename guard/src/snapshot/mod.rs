//! The volatile state of a host, as evidence: what runs, who talks to whom, what is loaded into the kernel.
//!
//! Read-only, and no program of the host is run. Every section has a thread of its own that writes lines to a buffer;
//! one that fails, or hangs (a dead file server, a process stuck in the kernel), keeps what it has got so far, says what
//! became of it, and holds nobody else up.
//!
//! Lines are JSON in pure ASCII: whatever a process, file or rule is named, it steers no terminal and comes back exactly.

mod bpf;
mod decode;
mod kernel;
mod lines;
mod marks;
mod network;
mod nft;
mod processes;
mod shared;
mod sockets;
mod startup;
mod writer;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

pub use self::writer::{Manifest, WriteError, Writer, name_of_now};
use self::{
    lines::Lines,
    processes::Table,
    shared::Shared,
    sockets::{Index, Socket},
};

/// What to read.
#[derive(Clone, Debug)]
pub struct Options {
    /// The proc file system: `/proc`, or another mount of it.
    pub proc: PathBuf,
    /// How long a section may wait for another one.
    pub within: Duration,
}

/// What sections know of each other.
struct Context {
    proc: PathBuf,
    until: Instant,
    users: HashMap<u32, String>,
    processes: Shared<Table>,
    sockets: Shared<Index>,
    socket_list: Shared<Vec<Socket>>,
}

impl Context {
    fn user(&self, uid: u32) -> Option<&str> {
        self.users.get(&uid).map(String::as_str)
    }
}

type Read = fn(&Context, &Lines) -> Result<(), String>;

const SECTIONS: &[(&str, Read)] = &[
    ("processes", processes::section),
    ("sockets", sockets::section),
    ("listening", sockets::listening),
    ("interfaces", network::interfaces),
    ("addresses", network::addresses),
    ("routes", network::routes),
    ("rules", network::rules),
    ("neighbours", network::neighbours),
    ("traffic_control", network::traffic_control),
    ("nft", nft::section),
    ("bpf_programs", bpf::programs),
    ("bpf_maps", bpf::maps),
    ("bpf_links", bpf::links),
    ("bpf_cgroups", bpf::cgroups),
    ("modules", kernel::modules),
    ("kernel", kernel::kernel),
    ("mounts", kernel::mounts),
    ("sessions", kernel::sessions),
    ("startup", startup::section),
];

/// What became of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Complete,
    /// It ended, but could not see or hold everything: its notes say what.
    Partial,
    Failed,
    /// It had not ended when the snapshot was closed; its lines so far are there.
    TimedOut,
}

/// One section's lines.
#[derive(Clone, Debug)]
pub struct Section {
    pub name: &'static str,
    pub outcome: Outcome,
    pub error: Option<String>,
    pub notes: Vec<String>,
    /// JSON lines.
    pub bytes: Vec<u8>,
    pub lines: usize,
    /// How many lines have marks.
    pub suspicious: usize,
    pub took: Duration,
}

/// A snapshot that is being taken.
pub struct Running {
    started: Instant,
    ended: mpsc::Receiver<(usize, Result<(), String>, Duration)>,
    /// Sections that have not been handed out yet.
    waiting: HashMap<usize, Lines>,
}

/// Begins to read all sections.
#[must_use]
pub fn start(options: &Options) -> Running {
    let started = Instant::now();
    let context = Arc::new(Context {
        proc: options.proc.clone(),
        until: started + options.within,
        users: processes::users(),
        processes: Shared::default(),
        sockets: Shared::default(),
        socket_list: Shared::default(),
    });
    let (tell, ended) = mpsc::channel();
    let mut waiting = HashMap::new();
    for (number, (name, read)) in SECTIONS.iter().enumerate() {
        let lines = Lines::default();
        waiting.insert(number, lines.clone());
        let (context, tell_it) = (Arc::clone(&context), tell.clone());
        let spawned = thread::Builder::new().name((*name).to_owned()).spawn(move || {
            let began = Instant::now();
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&context, &lines)))
                .unwrap_or_else(|_| Err("guard made a mistake here; please report it".to_owned()));
            // Nobody listens any more where the snapshot was closed without it.
            let _ = tell_it.send((number, result, began.elapsed()));
        });
        if let Err(error) = spawned {
            let _ = tell.send((number, Err(format!("no thread could be made: {error}")), Duration::ZERO));
        }
    }
    Running { started, ended, waiting }
}

impl Running {
    /// The next section that ends before `until`; `None`: none does, or all have.
    pub fn next(&mut self, until: Instant) -> Option<Section> {
        if self.waiting.is_empty() {
            return None;
        }
        let (number, result, took) = self.ended.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?;
        let lines = self.waiting.remove(&number)?;
        let name = SECTIONS.get(number)?.0;
        Some(lines.close(name, Some(result), took))
    }

    /// Every section has been handed out.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What has not ended, with what it has got so far.
    pub fn rest(&mut self) -> Vec<Section> {
        let took = self.started.elapsed();
        let mut rest: Vec<_> = self.waiting.drain().collect();
        rest.sort_unstable_by_key(|(number, _)| *number);
        rest.into_iter().map(|(number, lines)| lines.close(SECTIONS[number].0, None, took)).collect()
    }
}
