//! Child processes that never outlive their test, with what they printed kept.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Killed on drop.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    lines: Arc<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    /// Of standard output and of standard error, in the order in which they came; false: standard output.
    all: Mutex<(Vec<(bool, String)>, u8)>,
    more: Condvar,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    #[must_use]
    pub fn good(&self) -> bool {
        self.status.success()
    }

    /// Exit code; `None` where a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Both outputs, for a message.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}{}", self.status, self.stdout, self.stderr)
    }
}

/// Runs a command to its end, which is an error only where it cannot start or takes longer than `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Result<Ended> {
    Process::spawn(command)?.finish(limit)
}

impl Process {
    /// Starts it with both outputs piped. Its standard input is as the command says.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let mut what = command.get_program().to_string_lossy().into_owned();
        for argument in command.get_args() {
            what = what + " " + &argument.to_string_lossy();
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context(what.clone())?;
        let lines = Arc::new(Lines::default());
        read(child.stdout.take(), false, &lines);
        read(child.stderr.take(), true, &lines);
        Ok(Self { what, child, lines })
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits until a line that `wanted` accepts was printed, on either output; the line.
    pub fn wait_line(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + limit;
        let lines = Arc::clone(&self.lines);
        let mut all = lock(&lines.all);
        loop {
            if let Some((_, line)) = all.0.iter().find(|(_, line)| wanted(line)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Both outputs closed: nothing more will come.
            if left.is_zero() || all.1 == 2 {
                drop(all);
                bail!("{}: the awaited line did not come\n{}", self.what, self.output());
            }
            all = lines.more.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All that it printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        let all = lock(&self.lines.all);
        all.0.iter().fold(String::new(), |text, (_, line)| text + line + "\n")
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).with_context(|| format!("{signal} to {}", self.what))
    }

    /// What it has used of a processor so far, in the kernel and outside (proc(5): `utime` and `stime`).
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        // USER_HZ, which is 100 on every architecture that this runs on.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end, and for all of its output.
    pub fn finish(mut self, limit: Duration) -> Result<Ended> {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("{} did not end within {limit:?}\n{}", self.what, self.output());
            }
            thread::sleep(Duration::from_millis(5));
        };
        // A grandchild may hold the pipes: its output is not waited for forever.
        let mut all = lock(&self.lines.all);
        while all.1 < 2 {
            let (guard, timed_out) =
                self.lines.more.wait_timeout(all, Duration::from_secs(5)).unwrap_or_else(PoisonError::into_inner);
            all = guard;
            if timed_out.timed_out() {
                break;
            }
        }
        let pick = |stream: bool| {
            all.0.iter().filter(|(of, _)| *of == stream).fold(String::new(), |text, (_, line)| text + line + "\n")
        };
        Ok(Ended { status, stdout: pick(false), stderr: pick(true) })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Default for Ended {
    fn default() -> Self {
        Self { status: ExitStatus::from_raw(0), stdout: String::new(), stderr: String::new() }
    }
}

fn read(stream: Option<impl Read + Send + 'static>, which: bool, lines: &Arc<Lines>) {
    let lines = Arc::clone(lines);
    thread::spawn(move || {
        if let Some(stream) = stream {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                lock(&lines.all).0.push((which, text));
                lines.more.notify_all();
                line.clear();
            }
        }
        lock(&lines.all).1 += 1;
        lines.more.notify_all();
    });
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
