//! The `guard` binary, run in a world's server as an operator would.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    agent,
    process::{Ended, Process, run},
    world::{Inside, World},
};

/// Longest that any command may take; a machine under load is no failure. `GUARD_PATIENCE`: in seconds, for an emulated one.
fn patience() -> Duration {
    let seconds = env::var("GUARD_PATIENCE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

/// What a record may take to be written.
const RECORDED: Duration = Duration::from_secs(15);

/// One instance in one world. Released on drop, whatever state it is in.
#[derive(Debug)]
pub struct Guard {
    place: Inside,
    instance: String,
    state_dir: PathBuf,
    cgroup: PathBuf,
    /// The file that was given to `run`, and that [`Guard::reload`] writes anew.
    policy: PathBuf,
    daemon: Option<Process>,
}

/// Where the binary is: `GUARD_BIN`, else beside this test program.
///
/// Cargo does not build one package's programs for another's tests: `cargo build -p guard` does.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("GUARD_BIN") {
        return Ok(path.into());
    }
    let own = env::current_exe()?;
    let path = own.ancestors().nth(2).context("a test program without a directory")?.join("guard");
    ensure!(path.exists(), "{} is not there: cargo build -p guard", path.display());
    Ok(path)
}

impl Guard {
    /// Puts a policy in force and waits until `run` says that it is ready.
    pub fn start(world: &World, policy: &str) -> Result<Self> {
        Self::start_with(world, policy, &[])
    }

    /// The same, with further arguments for `run`.
    pub fn start_with(world: &World, policy: &str, arguments: &[&str]) -> Result<Self> {
        let mut guard = Self::prepare(world, policy)?;
        guard.run(arguments)?;
        Ok(guard)
    }

    /// Everything but the start.
    pub fn prepare(world: &World, policy: &str) -> Result<Self> {
        let guard = Self {
            place: world.operator.clone(),
            instance: world.name().to_owned(),
            state_dir: world.dir().join("state"),
            cgroup: world.cgroup().to_owned(),
            policy: world.dir().join("policy.yaml"),
            daemon: None,
        };
        guard.write_policy(policy)?;
        Ok(guard)
    }

    /// `guard run`, up to its ready line: also a restart, after the daemon was killed.
    pub fn run(&mut self, arguments: &[&str]) -> Result<()> {
        let mut command = self.run_command(arguments)?;
        let mut daemon = Process::spawn(&mut command)?;
        // Not any "already".
        daemon.wait_line(patience(), |line| line.contains("is ready") || line.contains("\"ready\""))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// `guard run` with everything that this instance needs, not started yet.
    pub fn run_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command("run")?;
        command.arg("--cgroup").arg(&self.cgroup).args(arguments).arg(&self.policy);
        Ok(command)
    }

    /// `guard NAME --instance ... --state-dir ...`.
    pub fn command(&self, name: &str) -> Result<Command> {
        let mut command = self.place.command(binary()?);
        // What the machine is set to is not what is tested.
        command.env_remove("GUARD_INSTANCE").env_remove("GUARD_STATE_DIR").env("NO_COLOR", "1");
        command.arg(name).args(["--instance", &self.instance, "--state-dir"]).arg(&self.state_dir);
        Ok(command)
    }

    /// A command to its end.
    pub fn ask(&self, name: &str, arguments: &[&str]) -> Result<Ended> {
        run(self.command(name)?.args(arguments), patience())
    }

    /// A command that must succeed.
    pub fn tell(&self, name: &str, arguments: &[&str]) -> Result<Ended> {
        let ended = self.ask(name, arguments)?;
        ensure!(ended.good(), "guard {name} {}: {}", arguments.join(" "), ended.text());
        Ok(ended)
    }

    /// `guard status --json`, whatever its exit code.
    pub fn status(&self) -> Result<Value> {
        let ended = self.ask("status", &["--json"])?;
        serde_json::from_str(&ended.stdout).with_context(|| format!("guard status --json: {}", ended.text()))
    }

    /// Asks for the status until `wanted` likes it, for what the daemon needs a moment to notice.
    pub fn status_until(&self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("status does not become what it should: {status:#}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// `guard explain FLOW --json`, of the policy that is running.
    pub fn explain(&self, flow: &str) -> Result<Value> {
        let ended = self.ask("explain", &["--json", flow])?;
        serde_json::from_str(&ended.stdout).with_context(|| format!("guard explain {flow}: {}", ended.text()))
    }

    /// Writes another policy in place of the file and reloads it.
    pub fn reload(&self, policy: &str, arguments: &[&str]) -> Result<Ended> {
        self.write_policy(policy)?;
        let path = self.policy.to_string_lossy().into_owned();
        self.ask("reload", &[arguments, &[&path]].concat())
    }

    pub fn write_policy(&self, policy: &str) -> Result<()> {
        crate::servers::private_file(&self.policy, policy)
    }

    pub fn release(&self) -> Result<Ended> {
        self.tell("release", &[])
    }

    /// All records so far, oldest first.
    pub fn records(&self) -> Result<Vec<Value>> {
        let path = self.state_dir.join("flows.jsonl");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        // A last line without its end is being written.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// Records that contain a text, those in files that were rotated too, in no particular order.
    pub fn all_records_with(&self, part: &str) -> Result<Vec<Value>> {
        use std::{io::BufRead as _, os::unix::fs::MetadataExt as _};
        let path = self.state_dir.join("flows.jsonl");
        let mut files = BTreeMap::new();
        // From the newest on: one that is rotated meanwhile is met twice, and none is missed.
        for number in 0..=8 {
            let name = if number == 0 { path.clone() } else { path.with_extension(format!("jsonl.{number}")) };
            match fs::File::open(&name) {
                Ok(file) => drop(files.insert(file.metadata()?.ino(), file)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| name.display().to_string()),
            }
        }
        let mut records = Vec::new();
        for file in files.into_values() {
            for line in std::io::BufReader::with_capacity(1 << 20, file).lines() {
                let line = line?;
                // A last line without its end is being written.
                if line.contains(part) && line.ends_with('}') {
                    records.push(serde_json::from_str(&line).with_context(|| line.clone())?);
                }
            }
        }
        Ok(records)
    }

    /// Records that `wanted` accepts, as soon as there is one.
    pub fn wait_records(&self, wanted: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let deadline = Instant::now() + RECORDED;
        loop {
            let records: Vec<Value> = self.records()?.into_iter().filter(|record| wanted(record)).collect();
            if !records.is_empty() {
                return Ok(records);
            }
            if Instant::now() > deadline {
                let all: Vec<String> = self.records()?.iter().map(ToString::to_string).collect();
                bail!("the awaited record did not come; these did:\n{}", all.join("\n"));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL to the daemon.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("no daemon")?.kill()
    }

    /// A signal to the daemon.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon().context("no daemon")?.signal(signal)
    }

    /// Asks the daemon to stop, and waits for its end.
    pub fn stop(&mut self) -> Result<Ended> {
        let daemon = self.daemon.take().context("no daemon")?;
        daemon.signal(Signal::SIGTERM)?;
        daemon.finish(patience())
    }

    /// What a reboot leaves: nothing in the kernel, no process, and the state directory.
    pub fn reboot(&mut self) -> Result<()> {
        // The daemon would put back what is taken away.
        if let Some(pid) = self.status()?["daemon"]["pid"].as_i64() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
            // What it holds goes with it, a moment later.
            self.status_until(patience(), |status| status["daemon"].is_null())?;
        }
        self.daemon = None;
        let pins = format!("/sys/fs/bpf/guard/{}", self.instance);
        let gone = agent::ask(&self.place, &["bpf", "forget", &pins])?;
        ensure!(gone.good(), "{gone:?}");
        ensure!(self.status()?["mode"] == "none", "as after a reboot");
        Ok(())
    }

    #[must_use]
    pub fn daemon(&self) -> Option<&Process> {
        self.daemon.as_ref()
    }

    /// Where it runs.
    #[must_use]
    pub const fn inside(&self) -> &Inside {
        &self.place
    }

    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    #[must_use]
    pub fn policy(&self) -> &Path {
        &self.policy
    }

    /// Whether the seal stands at kernel functions (`fmod_ret`), beside its cgroup form.
    pub fn sealed_at_functions(&self) -> Result<bool> {
        let status = self.status()?;
        let hooks = status["hooks"].as_array().context("status has no hooks")?;
        Ok(hooks.iter().any(|hook| hook["hook"].as_str().is_some_and(|name| name.starts_with("fmod_ret"))))
    }

    /// Packets that were counted under a reason, in a direction; dropped or passed.
    pub fn packets(&self, reason: &str, direction: &str, dropped: bool) -> Result<u64> {
        let status = self.status()?;
        let lines = status["reasons"].as_array().context("status has no reasons")?;
        Ok(lines
            .iter()
            .filter(|l| l["reason"] == reason && l["direction"] == direction && l["dropped"] == dropped)
            .filter_map(|line| line["packets"].as_u64())
            .sum())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A stopped daemon would not answer.
        if let Some(daemon) = &self.daemon {
            let _ = daemon.signal(Signal::SIGCONT);
        }
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Err(error) = self.ask("release", &["--host", &host]) {
            eprintln!("guard release: {error:#}");
        }
        if thread::panicking() {
            let said = self.daemon.as_ref().map(Process::output).unwrap_or_default();
            let records = fs::read_to_string(self.state_dir.join("flows.jsonl")).unwrap_or_default();
            let last: Vec<&str> = records.lines().rev().take(20).collect();
            eprintln!("-- guard said:\n{said}-- its last records, newest first:\n{}", last.join("\n"));
        }
    }
}
