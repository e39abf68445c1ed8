//! libvirt and Vagrant inside the namespaces of `lab::sandbox`: bridges, DHCP, machines and their files are made there,
//! and go with the first process there.

use super::image;
use crate::lab::host::ip;
use crate::{lab::sandbox, shell};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const QEMU: &str = r#"user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
"#;

const LIBVIRTD: &str = r#"auth_unix_rw = "none"
auth_unix_ro = "none"
"#;

pub struct Session {
    dir: PathBuf,
    logs: PathBuf,
    libvirtd: Child,
    deb: PathBuf,
    image: PathBuf,
}

impl Session {
    /// First thing inside. `dir`: made anew, for what is gone at the end; `logs`: for what stays.
    pub fn start(dir: &Path, logs: &Path, deb: &Path, image: &Path) -> Result<Self> {
        sandbox::settle()?;
        ip("link set lo up")?;
        // With this namespace's interfaces in it.
        shell::output(Command::new("mount").args(["-t", "sysfs", "sysfs", "/sys"]))?;
        for (name, at) in [("etc", "/etc/libvirt"), ("lib", "/var/lib/libvirt"), ("cache", "/var/cache/libvirt")] {
            let own = dir.join(name);
            std::fs::create_dir_all(&own)?;
            if name == "etc" {
                shell::output(Command::new("cp").arg("-a").arg(format!("{at}/.")).arg(&own))?;
                std::fs::write(own.join("qemu.conf"), QEMU)?;
                std::fs::write(own.join("libvirtd.conf"), LIBVIRTD)?;
                // Networks that start by themselves are not ours.
                let _ = std::fs::remove_dir_all(own.join("qemu"));
            }
            std::fs::create_dir_all(at)?;
            shell::output(Command::new("mount").arg("--bind").arg(&own).arg(at))?;
        }
        std::fs::create_dir_all("/var/lib/libvirt/images")?;
        let log = File::create(logs.join("libvirtd.log"))?;
        let libvirtd = Command::new(shell::find("libvirtd").context("libvirtd is missing")?)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start libvirtd")?;
        let session = Self {
            dir: dir.to_path_buf(),
            logs: logs.to_path_buf(),
            libvirtd,
            deb: deb.to_path_buf(),
            image: image.to_path_buf(),
        };
        let start = Instant::now();
        while session.virsh(&["version"]).is_err() {
            ensure!(start.elapsed() < Duration::from_secs(60), "libvirtd does not answer within 60 s");
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(session)
    }

    pub fn virsh(&self, args: &[&str]) -> Result<String> {
        shell::output(Command::new("virsh").args(["-c", "qemu:///system"]).args(args))
    }

    /// Its output, with its progress in percents, goes to the log of this name; here its end, where it fails.
    pub fn vagrant(&self, log: &str, args: &[&str], limit: Duration) -> Result<()> {
        let log = self.logs.join(format!("vagrant-{log}.log"));
        let mut command = Command::new("bash");
        command.args(["-c", "exec vagrant \"$@\" > \"$0\" 2>&1"]).arg(&log).args(args);
        command.current_dir(shell::root().join("tests/vagrant"));
        command.env("VAGRANT_HOME", self.dir.join("home")).env("VAGRANT_DOTFILE_PATH", self.dir.join("machines"));
        command.env("VAGRANT_CHECKPOINT_DISABLE", "1").env("VAGRANT_NO_COLOR", "1");
        command.env("GUARD_BOX_FILE", &self.image).env("GUARD_DEB", &self.deb).env("GUARD_CONSOLE", &self.logs);
        command.env_remove("GUARD_BOX");
        if std::env::var_os("GUARD_ACCEL").is_none() {
            // /dev/kvm may be there and still boot no ordinary guest (nested), so that it is used on request only.
            command.env("GUARD_ACCEL", "tcg");
        }
        let start = Instant::now();
        let ended = shell::run(&mut command, limit)?;
        println!("   vagrant {} ({:.0} s)", args.join(" "), start.elapsed().as_secs_f64());
        if !ended.good {
            let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
            let lines: Vec<&str> = text.lines().filter_map(|line| line.rsplit('\r').next()).collect();
            for line in lines.iter().rev().take(30).rev() {
                println!("   | {line}");
            }
            bail!("vagrant {}: {} ({})", args.join(" "), ended.how, log.display());
        }
        Ok(())
    }

    /// The victim's neighbours, as namespaces at the bridge of its private network.
    pub fn neighbours(&self) -> Result<()> {
        let info = self.virsh(&["net-info", "guard-lab"])?;
        let bridge = info.lines().find_map(|line| line.strip_prefix("Bridge:")).context("guard-lab has no bridge")?;
        let bridge = bridge.trim();
        for (name, address) in [("responder", "192.0.2.20"), ("intruder", "192.0.2.66")] {
            ip(&format!("netns add {name}"))?;
            ip(&format!("link add {name} type veth peer name eth1 netns {name}"))?;
            ip(&format!("link set {name} master {bridge} up"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} addr add {address}/24 dev eth1"))?;
            ip(&format!("-n {name} link set eth1 up"))?;
        }
        Ok(())
    }

    /// A scenario's script, with its log; true if all was as expected.
    pub fn scenario(&self, name: &str, limit: Duration) -> Result<bool> {
        let key = self.dir.join("key");
        std::fs::copy(image::key("vagrant")?, &key)?;
        // ssh takes no key that others can read.
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let mut command = Command::new(shell::root().join("tests/vagrant/scenario"));
        command.arg(name).env("GUARD_LAB", "namespaces").env("GUARD_KEY", &key);
        let mut both = Command::new("bash");
        both.args(["-c", "exec \"$@\" 2>&1", "bash"]).arg(command.get_program()).args(command.get_args());
        both.envs(command.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        let ended = shell::run(&mut both, limit)?;
        std::fs::write(self.logs.join(format!("{name}.log")), &ended.output)?;
        if !ended.good {
            println!("   {name}: {}; the victim's console says last:", ended.how);
            let console = std::fs::read(self.logs.join("victim.console")).unwrap_or_default();
            let text = String::from_utf8_lossy(&console).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            for line in lines.iter().rev().take(15).rev() {
                println!("   | {}", line.trim_end());
            }
        }
        Ok(ended.good)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What it has started goes with the namespace of processes.
        let _ = self.libvirtd.kill();
        let _ = self.libvirtd.wait();
    }
}

/// The names of all scenarios, in the order of their files.
pub fn scenarios() -> Result<Vec<String>> {
    let dir = shell::root().join("tests/vagrant/scenarios");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".sh").map(str::to_owned));
    }
    names.sort();
    if names.is_empty() {
        bail!("no scenarios below {}", dir.display());
    }
    Ok(names)
}
