//! A person who types over a real session: a key every 50 ms, each echoed by the far side before it counts.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Between two keys.
pub const EVERY: Duration = Duration::from_millis(50);

/// Types until it is dropped or finished.
#[derive(Debug)]
pub struct Keystrokes {
    child: Child,
    stop: Arc<AtomicBool>,
    sent: Arc<Mutex<Vec<Instant>>>,
    heard: Arc<Mutex<Vec<Instant>>>,
    /// Keys that were typed while the session was still being opened.
    opening: usize,
    threads: Vec<JoinHandle<()>>,
}

/// What came back.
#[derive(Clone, Copy, Debug)]
pub struct Typed {
    pub keys: usize,
    pub echoed: usize,
    /// From a key to its echo, the longest since the session stands.
    pub slowest: Duration,
}

impl Keystrokes {
    /// `command` logs in and echoes lines (`cat`).
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("the session")?;
        let (mut keyboard, screen) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        let (stop, sent, heard) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default());
        let (own_stop, own_sent) = (Arc::clone(&stop), Arc::clone(&sent));
        let types = thread::spawn(move || {
            let begin = Instant::now();
            for number in 0.. {
                if own_stop.load(Ordering::Relaxed) {
                    break;
                }
                thread::sleep((begin + EVERY * number).saturating_duration_since(Instant::now()));
                push(&own_sent);
                if keyboard.write_all(b"k\n").is_err() {
                    break;
                }
            }
        });
        let own_heard = Arc::clone(&heard);
        let reads = thread::spawn(move || {
            for line in BufReader::new(screen).lines() {
                if line.is_err() {
                    break;
                }
                push(&own_heard);
            }
        });
        let mut keys = Self { child, stop, sent, heard, opening: 0, threads: vec![types, reads] };
        let deadline = Instant::now() + Duration::from_secs(30);
        while keys.so_far().echoed < 10 {
            anyhow::ensure!(Instant::now() < deadline, "the session does not echo");
            thread::sleep(EVERY);
        }
        keys.opening = keys.so_far().keys;
        Ok(keys)
    }

    /// Of the keys whose echo has come.
    #[must_use]
    pub fn so_far(&self) -> Typed {
        let (sent, heard) = (lock(&self.sent), lock(&self.heard));
        // Lines come back in the order in which they were typed.
        let slowest =
            sent.iter().zip(heard.iter()).skip(self.opening).map(|(sent, heard)| heard.duration_since(*sent)).max();
        Typed { keys: sent.len(), echoed: heard.len(), slowest: slowest.unwrap_or_default() }
    }

    /// Stops typing, and waits for the last echoes.
    #[must_use]
    pub fn finish(self) -> Typed {
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let typed = self.so_far();
            if (typed.echoed >= typed.keys && typed.keys > 0) || Instant::now() > deadline {
                return typed;
            }
            thread::sleep(EVERY);
        }
    }
}

impl Drop for Keystrokes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It may have ended; its pipes end its threads.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn push(times: &Mutex<Vec<Instant>>) {
    lock(times).push(Instant::now());
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
