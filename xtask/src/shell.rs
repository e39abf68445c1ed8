//! Running other programs: with a time limit, their output passed on as it comes and kept for counting.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The workspace's root, wherever the tool is called from.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Cargo's target directory for this run.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Cargo as it was called, so that the toolchain stays the same.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Where a program is, looked for in PATH and in the system's own directories.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// How a program ended.
pub struct Ended {
    pub good: bool,
    /// "exit status: 1", or that the time was up.
    pub how: String,
    /// Standard output, also when it was passed on.
    pub output: String,
}

/// Runs to the end or to the limit; standard output is passed on line by line and kept, standard error passed on. The
/// program gets a process group of its own, which is ended as a whole when time is up.
pub fn run(command: &mut Command, limit: Duration) -> Result<Ended> {
    let name = command.get_program().to_string_lossy().into_owned();
    // SAFETY: between fork and exec this makes one system call, which is async-signal-safe, and allocates nothing.
    unsafe {
        // Its own process group keeps the terminal's Ctrl-C from it: it must go when we do.
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?));
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let pipe = child.stdout.take().context("no pipe for standard output")?;
    let reader = std::thread::spawn(move || {
        let mut kept = String::new();
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            let text = String::from_utf8_lossy(&line);
            let mut out = std::io::stdout().lock();
            // A closed standard output must not stop the run: its result is in the exit code too.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            kept.push_str(&text);
            line.clear();
        }
        kept
    });
    let start = Instant::now();
    let mut late = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            late = true;
            // ESRCH only says that it ended in this moment.
            let _ = killpg(group, Signal::SIGTERM);
            std::thread::sleep(Duration::from_secs(3));
            let _ = killpg(group, Signal::SIGKILL);
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // A process that the program left behind may hold the pipe: the group is ended, so that this cannot hang.
    if !late {
        let grace = Instant::now();
        while !reader.is_finished() && grace.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
        if !reader.is_finished() {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
    let output = reader.join().map_err(|_| anyhow::anyhow!("the reader of {name}'s output panicked"))?;
    let how = if late { format!("ended by us after {} s", limit.as_secs()) } else { status.to_string() };
    Ok(Ended { good: status.success() && !late, how, output })
}

/// Standard output of a short program that must succeed.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if !out.status.success() {
        bail!("{name}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

static OWN: OnceLock<PathBuf> = OnceLock::new();

/// A copy of this program, for those that call it again: a build may replace the one that runs.
pub fn keep_own_program(copy: PathBuf) {
    // The first one is as good.
    let _ = OWN.set(copy);
}

/// This program, to be called again.
pub fn own_program() -> std::io::Result<PathBuf> {
    OWN.get().map_or_else(std::env::current_exe, |copy| Ok(copy.clone()))
}
