//! What makes a confirmed lockdown outlive a reboot and the responder's session, where systemd runs: the binary at a place
//! that only root can write and systemd may execute, a unit that starts it before the network is up, and the recording
//! handed over to that unit. Nothing here decides what passes: what goes wrong is said.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::detach;
use crate::{
    cli::InstanceArgs,
    daemon::{
        control::{self, Answer, Request},
        state_dir::{DEFAULT_ROOT, StateDir},
    },
};

/// The Debian package's own, which is tried in its confines.
const UNIT: &str = include_str!("../../../packaging/guard.service");
const PACKAGED: [&str; 2] = ["/usr/lib/systemd/system/guard.service", "/lib/systemd/system/guard.service"];
/// First line of a unit that a lockdown has written.
const OURS: &str = "# Written by `guard lockdown`; `guard release` removes it.\n";
const UNITS: &str = "/etc/systemd/system";
/// Tried in this order: `sbin` is where SELinux lets a service be executed from, the last is where /usr is read-only.
const BINARIES: [&str; 2] = ["/usr/local/sbin", "/var/lib/guard/bin"];
const PATIENCE: Duration = Duration::from_secs(30);

/// As `sd_booted(3)` has it.
#[must_use]
pub fn runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Keeps what is in force over a reboot: one line for people, or what is to be done by hand. `None`: an instance with a
/// state directory of its own, which is tried out.
#[must_use]
pub fn keep(instance: &InstanceArgs, state: &StateDir) -> Option<Result<String, String>> {
    if instance.state_dir.is_some() {
        return None;
    }
    let name = unit_name(&instance.instance);
    let binary = match binary() {
        Ok(binary) => binary,
        Err(error) => return Some(Err(format!("NOT KEPT over a reboot: the binary could not be copied: {error}"))),
    };
    let by_hand = format!("{} run --resume /etc/guard/policy.yaml", binary.display());
    if !runs() {
        return Some(Err(format!(
            "no systemd here: let this host start, before its network is up:  {by_hand}{}",
            instance.suffix()
        )));
    }
    let kept = || -> Result<String, String> {
        let packaged = instance.instance == "default" && PACKAGED.iter().any(|unit| Path::new(unit).exists());
        let unit = Path::new(UNITS).join(&name);
        if !packaged {
            write_unit(&unit, &text(&instance.instance, &binary))?;
            systemctl(&["daemon-reload"])?;
        }
        systemctl(&["enable", &name])?;
        hand_over(instance, state, &name)
    };
    Some(match kept() {
        Ok(recording) => Ok(format!("{name} enforces from the next start on ({}); {recording}", binary.display())),
        Err(error) => Err(format!("{name}: {error}\n  do    let this host start:  {by_hand}{}", instance.suffix())),
    })
}

/// Takes away what [`keep`] has written; the binary stays, since it may be the only one. `Some`: what was done.
#[must_use]
pub fn remove(instance: &InstanceArgs) -> Option<Result<String, String>> {
    let name = unit_name(&instance.instance);
    let unit = Path::new(UNITS).join(&name);
    if instance.state_dir.is_some() || !is_ours(&unit) {
        return None;
    }
    let removed = || -> Result<String, String> {
        let disabled = if runs() { systemctl(&["disable", &name]) } else { Ok(()) };
        fs::remove_file(&unit).map_err(|error| format!("cannot remove {}: {error}", unit.display()))?;
        disabled?;
        if runs() {
            systemctl(&["daemon-reload"])?;
        }
        Ok(format!("{} is removed", unit.display()))
    };
    Some(removed())
}

fn unit_name(instance: &str) -> String {
    if instance == "default" { "guard.service".to_owned() } else { format!("guard-{instance}.service") }
}

fn text(instance: &str, binary: &Path) -> String {
    let mut text = UNIT.replace("/usr/bin/guard", &binary.display().to_string());
    if instance != "default" {
        text = text
            .replace("/etc/guard/recovery", &format!("/etc/guard/recovery-{instance}"))
            .replace("/var/lib/guard/default/", &format!("{DEFAULT_ROOT}/{instance}/"))
            .replace("[Service]\n", &format!("[Service]\nEnvironment=GUARD_INSTANCE={instance}\n"));
    }
    format!("{OURS}{text}")
}

fn is_ours(unit: &Path) -> bool {
    fs::read_to_string(unit).is_ok_and(|text| text.starts_with(OURS))
}

fn write_unit(unit: &Path, text: &str) -> Result<(), String> {
    if unit.exists() && !is_ours(unit) {
        // Somebody's own: it is enabled as it is.
        return Ok(());
    }
    put(unit, 0o644, &mut text.as_bytes()).map_err(|error| format!("cannot write {}: {error}", unit.display()))
}

/// This very program, where only root can change it: itself, if it is there already, else a copy.
fn binary() -> Result<PathBuf, String> {
    let own = fs::read_link("/proc/self/exe").map_err(|error| error.to_string())?;
    if own.starts_with("/usr") && only_roots(&own) {
        return Ok(own);
    }
    let mut errors = Vec::new();
    for directory in BINARIES {
        let path = Path::new(directory).join("guard");
        match copy(&path) {
            Ok(()) => return Ok(path),
            Err(error) => errors.push(format!("{}: {error}", path.display())),
        }
    }
    Err(errors.join("; "))
}

/// Nobody else can write it or a directory above it.
fn only_roots(path: &Path) -> bool {
    path.ancestors().all(|part| fs::metadata(part).is_ok_and(|part| part.uid() == 0 && part.mode() & 0o022 == 0))
}

fn copy(path: &Path) -> io::Result<()> {
    let mut own = File::open("/proc/self/exe")?;
    if same(&mut own, path)? {
        return Ok(());
    }
    own.rewind()?;
    put(path, 0o755, &mut own)?;
    if only_roots(path) {
        return Ok(());
    }
    Err(io::Error::other("others than root can write there"))
}

fn same(own: &mut File, path: &Path) -> io::Result<bool> {
    let Ok(other) = fs::read(path) else { return Ok(false) };
    let mut bytes = Vec::with_capacity(other.len());
    own.read_to_end(&mut bytes)?;
    Ok(bytes == other && only_roots(path))
}

fn put(path: &Path, mode: u32, from: &mut dyn Read) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let draft = directory.join(name);
    // What an earlier run left, or somebody laid there.
    let _ = fs::remove_file(&draft);
    let mut write = || -> io::Result<()> {
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&draft)?;
        io::copy(from, &mut file)?;
        file.flush()?;
        // Whatever the umask.
        fs::set_permissions(&draft, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(directory)?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&draft);
    })
}

/// The recording that the lockdown began by itself goes over to the unit. Meanwhile the kernel goes on, and what begins
/// stays in its tables.
fn hand_over(instance: &InstanceArgs, state: &StateDir, name: &str) -> Result<String, String> {
    let recording = |pid: u32| -> bool {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|word| word == b"record")
    };
    match running(state) {
        Some(pid) if !recording(pid) => return Ok(format!("process {pid} goes on recording")),
        Some(pid) => {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
            let until = Instant::now() + PATIENCE;
            while state.daemon_runs().unwrap_or(false) && Instant::now() < until {
                thread::sleep(Duration::from_millis(20));
            }
        }
        None => {}
    }
    let started = systemctl(&["start", name]);
    let until = Instant::now() + if started.is_ok() { PATIENCE } else { Duration::ZERO };
    loop {
        if running(state).is_some() {
            return Ok("it records".to_owned());
        }
        if Instant::now() >= until {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let why = started.err().unwrap_or_else(|| "it does not record".to_owned());
    let again = match detach::start(&instance.instance, state) {
        Ok(pid) => format!("process {pid} records instead"),
        Err(error) => format!("NOT RECORDING: {error}"),
    };
    Ok(format!("it could not be started now ({why}); {again}"))
}

fn running(state: &StateDir) -> Option<u32> {
    match control::ask(&state.socket(), &Request::Status) {
        Ok(Some(Answer::Status(status))) => Some(status.pid),
        _ => None,
    }
}

/// One that hangs holds up nobody.
fn systemctl(arguments: &[&str]) -> Result<(), String> {
    let what = || format!("systemctl {}", arguments.join(" "));
    let mut command = Command::new("systemctl");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", what()))?;
    let until = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                let mut said = String::new();
                // What it says is short.
                if let Some(stderr) = child.stderr.take() {
                    let _ = stderr.take(1000).read_to_string(&mut said);
                }
                return Err(format!("{}: {status} {}", what(), said.trim()));
            }
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(10)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{} does not end", what()));
            }
            Err(error) => return Err(format!("{}: {error}", what())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_starts_the_copy_for_its_instance() {
        let unit = text("default", Path::new("/usr/local/sbin/guard"));
        for line in [
            "ExecStart=/usr/local/sbin/guard run --resume /etc/guard/policy.yaml",
            "ExecReload=/usr/local/sbin/guard reload",
            "ConditionPathExists=|/etc/guard/recovery",
            "Before=network-pre.target sysinit.target shutdown.target",
        ] {
            assert!(unit.lines().any(|of| of == line), "{line}\n{unit}");
        }
        let unit = text("second", Path::new("/usr/local/sbin/guard"));
        for line in [
            "Environment=GUARD_INSTANCE=second",
            "ConditionPathExists=|/etc/guard/recovery-second",
            "ConditionPathExists=|/var/lib/guard/second/active",
        ] {
            assert!(unit.lines().any(|of| of == line), "{line}\n{unit}");
        }
    }

    #[test]
    fn a_file_is_put_whole_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/guard");
        put(&path, 0o755, &mut &b"one"[..]).unwrap();
        put(&path, 0o755, &mut &b"two"[..]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(home.path().join("a")).unwrap().count(), 1);
        // Below what everybody can write it is not believed.
        assert!(!only_roots(&path));
    }
}
