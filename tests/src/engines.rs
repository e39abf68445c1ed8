//! Docker and Podman from Debian's packages, on a world's server: what they write and run is in namespaces of their own, and
//! goes with them. Of the machine they see the network, the files and the control groups that the world has.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    agent::{self, Said},
    process::{Ended, Process, run},
    world::{Inside, World},
};

/// An engine's answer; a machine under load is no failure.
const PATIENCE: Duration = Duration::from_secs(60);

pub const IMAGE: &str = "guard-test:1";

/// In the world's mount namespace, so that guard sees these files, too: nothing is written to the machine's own.
const FILES: &str = "set -e
mount -t tmpfs -o mode=755,size=64m run /run
mount -t tmpfs -o mode=755,size=1g lib /var/lib
mkdir -p /run/lock /var/lib/etc/up /var/lib/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/var/lib/etc/up,workdir=/var/lib/etc/work etc /etc
";

/// In the engines' own: one hierarchy of control groups, and no sysctl but the network's, which is the namespace's.
const OWN: &str = "set -e
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /var/tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
for part in kernel vm fs; do
  mount --bind /proc/sys/$part /proc/sys/$part
  mount -o remount,bind,ro /proc/sys/$part
done
exec tini -s -- sh -c 'echo ready; exec sleep infinity'
";

/// Where engines and containers run: a PID namespace, so that all of it ends with the test, however that ends.
#[derive(Debug)]
pub struct Machine {
    server: Inside,
    _holder: Process,
    /// Of the first process inside.
    pid: u32,
    /// Of guarded processes, as the engines name it.
    pub cgroup: String,
    archive: PathBuf,
}

/// What this machine lacks for them, if it does.
#[must_use]
pub fn missing(world: &World) -> Option<String> {
    let programs = ["dockerd", "podman", "runc", "tini", "strip", "setpriv"];
    let found = |program: &&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
        dirs.map(|dir| dir.join(program)).any(|file| file.is_file())
    };
    if let Some(program) = programs.iter().find(|program| !found(program)) {
        return Some(format!("{program} is not installed"));
    }
    if !fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("\toverlay\n")) {
        return Some("this kernel has no overlay file system".to_owned());
    }
    let rule = ["OUTPUT", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "RETURN"];
    let works = ["-A", "-D"].iter().all(|verb| {
        let mut iptables = world.operator.command("iptables");
        run(iptables.args(["-t", "nat", verb]).args(rule), PATIENCE).is_ok_and(|ended| ended.good())
    });
    (!works).then(|| "this kernel cannot do what the engines ask of iptables".to_owned())
}

impl Machine {
    pub fn start(world: &World) -> Result<Self> {
        let made = run(world.operator.command("sh").args(["-c", FILES]), PATIENCE)?;
        ensure!(made.good(), "{}", made.text());
        let server = (**world.server).clone();
        let mut command = server.command("setpriv");
        // Its parent's death is its own; then that of all inside.
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        let mut holder = Process::spawn(command.args(["sh", "-c", OWN]))?;
        holder.wait_line(PATIENCE, |line| line == "ready")?;
        let pid = child_of(holder.pid()).context("the engines' namespace has no process")?;
        let cgroup = world.cgroup().strip_prefix(crate::world::cgroup::root()?)?;
        let cgroup = format!("/{}", cgroup.display());
        let archive = image(world.dir())?;
        Ok(Self { server, _holder: holder, pid, cgroup, archive })
    }

    /// A command inside, in the guarded cgroup.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.server.command("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--pid", "--", program]).env("HOME", "/run");
        command
    }

    /// One that must succeed.
    pub fn tell(&self, arguments: &[&str]) -> Result<Ended> {
        let ended = run(self.command(arguments[0]).args(&arguments[1..]), PATIENCE)?;
        ensure!(ended.good(), "{}: {}", arguments.join(" "), ended.text());
        Ok(ended)
    }
}

fn child_of(parent: u32) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let of = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        (of == parent).then_some(pid)
    })
}

/// A root file system with busybox and the tests' agent, as an archive.
fn image(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("image");
    for part in ["bin", "tmp", "etc"] {
        fs::create_dir_all(root.join(part))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("the package busybox-static is not installed")?;
    for name in ["sh", "cat", "sleep", "nslookup"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    let agent = agent::binary()?;
    // Most of it is for debuggers.
    let stripped = run(Command::new("strip").arg("-o").arg(root.join("bin/agent")).arg(&agent), PATIENCE)?;
    ensure!(stripped.good(), "{}", stripped.text());
    let linked = run(Command::new("ldd").arg(&agent), PATIENCE)?;
    for library in linked.stdout.split_whitespace().filter(|word| word.starts_with('/')) {
        let inside = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().context("a library without a directory")?)?;
        fs::copy(library, inside)?;
    }
    let archive = dir.join("image.tar");
    let packed = run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."), PATIENCE)?;
    ensure!(packed.good(), "{}", packed.text());
    Ok(archive)
}

/// The first process of a PID namespace takes no notice of SIGTERM that it does not handle, and is waited for.
const KILLED: [&str; 2] = ["--stop-signal", "KILL"];

/// Either of the two.
pub trait Engine {
    fn machine(&self) -> &Machine;

    /// The client's command with what every call of it needs.
    fn client(&self) -> Vec<String>;

    /// What `run` needs beside.
    fn for_run(&self) -> Vec<String>;

    fn ask(&self, arguments: &[&str]) -> Result<Ended> {
        let client = self.client();
        let mut command = self.machine().command(&client[0]);
        run(command.args(&client[1..]).args(arguments).env("DOCKER_BUILDKIT", "0"), PATIENCE)
    }

    /// A command that must succeed; what it printed.
    fn tell(&self, arguments: &[&str]) -> Result<String> {
        let ended = self.ask(arguments)?;
        ensure!(ended.good(), "{} {}: {}", self.client()[0], arguments.join(" "), ended.text());
        Ok(ended.stdout)
    }

    fn import(&self) -> Result<()> {
        let archive = self.machine().archive.to_string_lossy().into_owned();
        self.tell(&["import", &archive, IMAGE]).map(drop)
    }

    /// A container that goes on, by its id.
    fn start(&self, name: &str, options: &[&str], command: &[&str]) -> Result<String> {
        let for_run = self.for_run();
        let for_run: Vec<&str> = for_run.iter().map(String::as_str).collect();
        let parts = [&["run", "--detach", "--name", name], &for_run[..], options, &[IMAGE], command];
        Ok(self.tell(&parts.concat())?.trim().to_owned())
    }

    /// What the agent says in a container that runs.
    fn agent_in(&self, container: &str, arguments: &[&str]) -> Result<Said> {
        let said = self.tell(&[&["exec", container, "/bin/agent"], arguments].concat())?;
        Said::parse(said.lines().next().unwrap_or_default())
    }

    /// And in one of its own, that is gone afterwards.
    fn agent(&self, options: &[&str], arguments: &[&str]) -> Result<Said> {
        let for_run = self.for_run();
        let for_run: Vec<&str> = for_run.iter().map(String::as_str).collect();
        let parts = [&["run", "--rm"], &for_run[..], options, &[IMAGE, "/bin/agent"], arguments];
        let said = self.tell(&parts.concat())?;
        Said::parse(said.lines().next().unwrap_or_default())
    }
}

#[derive(Debug)]
pub struct Docker<'a> {
    machine: &'a Machine,
    daemon: Option<Process>,
}

impl<'a> Docker<'a> {
    pub fn start(machine: &'a Machine, flags: &[&str]) -> Result<Self> {
        let mut docker = Self { machine, daemon: None };
        docker.run(flags)?;
        docker.import()?;
        Ok(docker)
    }

    /// The daemon; also once more, after [`Docker::stop`].
    pub fn run(&mut self, flags: &[&str]) -> Result<()> {
        let mut command = self.machine.command("dockerd");
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent"]);
        command.arg(format!("{}/docker", self.machine.cgroup)).args(flags);
        let daemon = Process::spawn(&mut command)?;
        let deadline = Instant::now() + PATIENCE;
        while !self.ask(&["version"])?.good() {
            if Instant::now() > deadline {
                bail!("dockerd does not answer:\n{}", daemon.output());
            }
            thread::sleep(Duration::from_millis(100));
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    pub fn stop(&mut self) -> Result<()> {
        let daemon = self.daemon.take().context("dockerd does not run")?;
        self.machine.tell(&["sh", "-c", "kill -TERM $(cat /run/docker.pid)"])?;
        daemon.finish(PATIENCE).map(drop)
    }
}

impl Engine for Docker<'_> {
    fn machine(&self) -> &Machine {
        self.machine
    }

    fn client(&self) -> Vec<String> {
        vec!["docker".to_owned()]
    }

    fn for_run(&self) -> Vec<String> {
        KILLED.map(str::to_owned).to_vec()
    }
}

#[derive(Debug)]
pub struct Podman<'a> {
    machine: &'a Machine,
    storage: &'static str,
}

impl<'a> Podman<'a> {
    pub fn start(machine: &'a Machine, storage: &'static str) -> Result<Self> {
        let podman = Self { machine, storage };
        podman.import()?;
        Ok(podman)
    }
}

impl Engine for Podman<'_> {
    fn machine(&self) -> &Machine {
        self.machine
    }

    fn client(&self) -> Vec<String> {
        let words = ["podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "file"];
        words.into_iter().chain(["--storage-driver", self.storage]).map(str::to_owned).collect()
    }

    fn for_run(&self) -> Vec<String> {
        let parent = format!("{}/podman", self.machine.cgroup);
        // A limit needs a controller, which the hierarchy of version 2 has only where version 1 is not used.
        KILLED.into_iter().chain(["--pids-limit", "-1", "--cgroup-parent", &parent]).map(str::to_owned).collect()
    }
}
