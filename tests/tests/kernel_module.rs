//! guard's own side of the kernel, used as the daemon uses it: start, adoption, publish, deadline, repair, release. Each
//! test in a network and mount namespace of its own, with a bpffs and a cgroup of its own.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use guard::{
    daemon::engine::Engine,
    kernel::{HookStatus, Instance, KernelError, Options, Place, Selection, release},
    policy::{
        compile::{Clocks, Compiled, compile},
        model::{AddressSet, ContainerHost, Essentials, Mode, Place as Written, Policy, Remote, Rule, ServiceRange},
    },
    record::flow::Key,
};
use guard_common::{
    Direction, Verdict,
    abi::{Flow, Slot, StateWord},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// A network and mount namespace for this thread, with a veth pair, a bpffs and a cgroup.
struct Host {
    bpffs: tempfile::TempDir,
    cgroup: PathBuf,
}

impl Host {
    /// `None`: not root, and said so.
    fn new() -> Result<Option<Self>> {
        if !guard_tests::skip::is_root() {
            guard_tests::skip::skip("kernel_module", "needs root");
            return Ok(None);
        }
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let bpffs = tempfile::tempdir()?;
        let root = fs::read_to_string("/proc/mounts")?
            .lines()
            .find_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let path = fields.next()?;
                (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
            })
            .context("cgroup2 is not mounted")?;
        let thread = nix::unistd::gettid();
        let cgroup = root.join(format!("guard-test-kernel-{}-{thread}", std::process::id()));
        fs::create_dir(&cgroup)?;
        let host = Self { bpffs, cgroup };
        ip("link set lo up")?;
        ip("link add g0 type veth peer name g1")?;
        ip("addr add 192.0.2.1/24 dev g0")?;
        ip("link set g0 up")?;
        ip("link set g1 up")?;
        Ok(Some(host))
    }

    fn place(&self) -> Place {
        Place { instance: "test".to_owned(), bpffs: Some(self.bpffs.path().to_owned()) }
    }

    fn options(&self) -> Options {
        Options {
            selection: Selection { include: vec!["g0".to_owned()], ..Selection::default() },
            cgroup: Some(self.cgroup.clone()),
            flows: 1024,
            ..Options::default()
        }
    }

    fn start(&self) -> Result<Instance> {
        let (instance, there) = Instance::start(&self.place(), &self.options())?;
        ensure!(!there);
        Ok(instance)
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.bpffs.path().join("guard/test").join(name)
    }

    /// A child in the cgroup that connects; the error it got.
    fn connect(&self, to: &str) -> Result<Option<i32>> {
        let to: SocketAddr = to.parse()?;
        let before = own_cgroup()?;
        fs::write(self.cgroup.join("cgroup.procs"), std::process::id().to_string())?;
        let result = TcpStream::connect_timeout(&to, Duration::from_millis(50));
        fs::write(before.join("cgroup.procs"), std::process::id().to_string())?;
        Ok(result.err().and_then(|error| match error.kind() {
            ErrorKind::TimedOut => None,
            _ => error.raw_os_error(),
        }))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.bpffs.path(), nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// Processes move between cgroups as a whole: the tests that connect do so one after another.
static CONNECTS: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn own_cgroup() -> Result<PathBuf> {
    let root = fs::read_to_string("/proc/mounts")?
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .and_then(|line| line.split(' ').nth(1).map(PathBuf::from))
        .context("cgroup2 is not mounted")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    Ok(root.join(own.lines().find_map(|line| line.strip_prefix("0::/")).context("not in a cgroup2")?))
}

fn ip(arguments: &str) -> Result<()> {
    ensure!(Command::new("ip").args(arguments.split(' ')).status()?.success(), "ip {arguments}");
    Ok(())
}

fn bpf(command: libc::c_long, words: [u64; 4]) -> io::Result<i32> {
    // SAFETY: the attribute is as long as stated; a pointer in it is to a string that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(&words)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn pinned(path: &Path) -> Result<OwnedFd> {
    let path = std::ffi::CString::new(path.to_str().context("a path")?)?;
    let fd = bpf(7, [path.as_ptr() as u64, 0, 0, 0])?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_LINK_DETACH`, as root on this host could.
fn detach(pin: &Path) -> Result<()> {
    let link = pinned(pin)?;
    bpf(34, [link.as_raw_fd() as u64, 0, 0, 0])?;
    Ok(())
}

fn policy(mode: Mode, port: u16, interface: Option<&str>) -> Policy {
    let file = Arc::new(PathBuf::from("policy.yaml"));
    let service = 6 << 16 | u32::from(port);
    let everything = AddressSet { v4: vec![(0, u32::MAX)], v6: vec![(0, u128::MAX)] };
    let rule = Rule {
        direction: Direction::Outbound,
        action: Verdict::Allow,
        name: Some("web".to_owned()),
        position: 0,
        place: Written { file: file.clone(), line: 1, column: 1 },
        remote: Remote { text: vec!["any".to_owned()], set: Arc::new(everything), named: false },
        services: vec![ServiceRange { first: service, last: service }],
        services_text: vec![format!("tcp/{port}")],
        interface: interface.map(str::to_owned),
        local: None,
        expires: None,
        comment: None,
    };
    let mut sha256 = [0; 32];
    sha256[..2].copy_from_slice(&port.to_be_bytes());
    Policy {
        name: "test".to_owned(),
        sha256,
        files: vec![file],
        inbound: mode,
        outbound: mode,
        rules: vec![rule],
        essentials: Essentials::default(),
        lockdown: false,
        on_deny: Default::default(),
        container_host: Default::default(),
        tests: Vec::new(),
    }
}

fn compiled(instance: &Instance, policy: &Policy) -> Result<Compiled> {
    Ok(compile(policy, Clocks { unix_ns: 0, boot_ns: 0 }, instance.next_generation())?)
}

fn unsound(instance: &Instance) -> Result<Vec<HookStatus>> {
    Ok(instance.hooks()?.into_iter().filter(|hook| !hook.sound()).collect())
}

fn in_force(instance: &Instance) -> Result<(u32, StateWord)> {
    let read = instance.read_back()?;
    let slot = read.state.word.effective_slot(read.boot_ns);
    Ok((read.state.slots[usize::from(slot.0)].generation, read.state.word))
}

const EPERM: Option<i32> = Some(libc::EPERM);

#[test]
fn an_instance_lives_in_the_kernel() -> Result<()> {
    let Some(host) = Host::new()? else { return Ok(()) };
    let _one_at_a_time = CONNECTS.lock();
    let began = Instant::now();
    let mut instance = host.start()?;
    println!("start to tracking: {:?}", began.elapsed());
    ensure!(unsound(&instance)?.is_empty(), "{:?}", unsound(&instance)?);
    ensure!(instance.hooks()?.len() >= 9, "{:?}", instance.hooks()?);
    ensure!(host.connect("192.0.2.9:80")? != EPERM, "no policy yet");

    // A policy that is not confirmed, with nobody there at its deadline.
    let first = compiled(&instance, &policy(Mode::Enforce, 443, None))?;
    let began = Instant::now();
    instance.publish(&first, Some(Duration::from_millis(1500)))?;
    println!("publish: {:?}", began.elapsed());
    ensure!(in_force(&instance)?.0 == 1);
    ensure!(host.connect("192.0.2.9:80")? == EPERM && host.connect("192.0.2.9:443")? != EPERM);
    let second = compiled(&instance, &policy(Mode::Enforce, 80, None))?;
    ensure!(matches!(instance.publish(&second, None), Err(KernelError::Pending { .. })));
    drop(instance);
    sleep(Duration::from_millis(600));
    let mut instance = Instance::open(&host.place())?;
    ensure!(matches!(instance.confirm(), Err(KernelError::TooLate)), "the last second");
    drop(instance);
    sleep(Duration::from_millis(1000));
    ensure!(host.connect("192.0.2.9:80")? != EPERM, "the kernel has undone it by itself");
    let mut instance = Instance::open(&host.place())?;
    ensure!(in_force(&instance)?.0 == 0);
    ensure!(instance.settle() && !instance.settle());
    ensure!(in_force(&instance)?.1 == StateWord::TRACKING);

    // Confirmed; then another one, rolled back.
    let third = compiled(&instance, &policy(Mode::Enforce, 443, None))?;
    ensure!(third.generation == 2);
    instance.publish(&third, Some(Duration::from_secs(60)))?;
    instance.confirm()?;
    ensure!(matches!(instance.confirm(), Err(KernelError::NotPending)));
    let fourth = compiled(&instance, &policy(Mode::Enforce, 80, None))?;
    instance.publish(&fourth, Some(Duration::from_secs(60)))?;
    ensure!(host.connect("192.0.2.9:443")? == EPERM && host.connect("192.0.2.9:80")? != EPERM);
    instance.roll_back()?;
    ensure!(in_force(&instance)?.0 == 2);
    ensure!(host.connect("192.0.2.9:80")? == EPERM && host.connect("192.0.2.9:443")? != EPERM);
    ensure!(
        matches!(instance.publish(&fourth, None), Err(KernelError::Generation { .. })),
        "compiled for an older number"
    );

    // Many more, each in force at once, and each slot used again.
    for port in 1000..1010 {
        let next = compiled(&instance, &policy(Mode::Enforce, port, None))?;
        instance.publish(&next, None)?;
        let (allowed, denied) = (format!("192.0.2.9:{port}"), format!("192.0.2.9:{}", port - 1));
        ensure!(host.connect(&allowed)? != EPERM && host.connect(&denied)? == EPERM);
        let slot = in_force(&instance)?.1.active();
        let header = instance.tables(slot)?.context("no tables")?;
        ensure!(header.policy_sha256 == next.policy_sha256 && header.rules == 1);
    }

    // The daemon dies; another one takes over, and nothing changes.
    let generation = in_force(&instance)?.0;
    drop(instance);
    ensure!(host.connect("192.0.2.9:80")? == EPERM);
    let began = Instant::now();
    let (instance, there) = Instance::start(&host.place(), &host.options())?;
    println!("adoption: {:?}", began.elapsed());
    ensure!(there && in_force(&instance)?.0 == generation && unsound(&instance)?.is_empty());
    let (inner, _) = Instance::start(&host.place(), &Options { shield: true, ..host.options() })?;
    ensure!(unsound(&inner)?.is_empty(), "programs replaced in place: {:?}", unsound(&inner)?);
    // With the shield, and without it again.
    let shields = inner.hooks()?.iter().filter(|hook| hook.layer == "shield").count();
    ensure!(shields == usize::from(host.pin("programs/shield").exists()), "{:?}", inner.hooks()?);
    drop((instance, inner));
    let (instance, _) = Instance::start(&host.place(), &host.options())?;
    ensure!(unsound(&instance)?.is_empty() && instance.hooks()?.iter().all(|hook| hook.layer != "shield"));
    ensure!(in_force(&instance)?.0 == generation);
    drop(instance);

    let began = Instant::now();
    release(&host.place())?;
    println!("release: {:?}", began.elapsed());
    ensure!(matches!(release(&host.place()), Err(KernelError::NotRunning(_))));
    ensure!(host.connect("192.0.2.9:80")? != EPERM && !host.pin("").exists());
    Ok(())
}

#[test]
fn each_hook_that_is_detached_is_noticed_and_put_back() -> Result<()> {
    let Some(host) = Host::new()? else { return Ok(()) };
    let mut instance = host.start()?;
    let links: Vec<PathBuf> = fs::read_dir(host.pin("links"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    ensure!(links.len() == instance.hooks()?.len(), "{links:?}");
    for link in &links {
        detach(link)?;
        let broken = unsound(&instance)?;
        ensure!(broken.len() == 1 && !broken[0].attached, "{}: {broken:?}", link.display());
        let done = instance.repair()?;
        ensure!(done.len() == 1 && done[0].what.contains("detached"), "{done:?}");
        ensure!(unsound(&instance)?.is_empty() && instance.repair()?.is_empty(), "{:?}", unsound(&instance)?);
    }
    for link in &links {
        fs::remove_file(link)?;
        let broken = unsound(&instance)?;
        ensure!(broken.len() == 1 && broken[0].attached && broken[0].problem.is_some(), "{broken:?}");
        instance.repair()?;
        ensure!(unsound(&instance)?.is_empty() && link.exists());
    }
    fs::remove_file(host.pin("programs/connect4"))?;
    ensure!(instance.repair()?.len() == 1 && host.pin("programs/connect4").exists());

    // Another program in front: ours goes in front again, and the link that was there goes.
    let clock = pinned(&host.pin("programs/clock"))?;
    let index = nix::net::if_::if_nametoindex("g0")?;
    let foreign = bpf(28, [clock.as_raw_fd() as u64 | u64::from(index) << 32, 46 | 8 << 32, 0, 0])?;
    // SAFETY: the kernel has just given it to us.
    let _foreign = unsafe { OwnedFd::from_raw_fd(foreign) };
    let broken = unsound(&instance)?;
    ensure!(broken.len() == 1 && broken[0].attached && !broken[0].first, "{broken:?}");
    ensure!(broken[0].problem.as_deref().is_some_and(|problem| problem.contains("clock")), "{broken:?}");
    ensure!(instance.other_programs()?.len() == 1);
    ensure!(instance.repair()?.len() == 1);
    ensure!(unsound(&instance)?.is_empty(), "{:?}", unsound(&instance)?);
    let (again, _) = Instance::start(&host.place(), &host.options())?;
    ensure!(unsound(&again)?.is_empty());

    // What stands beside ours is told too.
    ensure!(Command::new("tc").args("qdisc add dev g0 clsact".split(' ')).status()?.success());
    let clock = host.pin("programs/clock");
    let filter = format!("filter add dev g0 egress prio 7 bpf da pinned {}", clock.display());
    ensure!(Command::new("tc").args(filter.split(' ')).status()?.success(), "tc {filter}");
    ensure!(again.other_programs()?.iter().any(|other| other.kind == "clsact"), "{:?}", again.other_programs()?);
    ensure!(unsound(&again)?.is_empty());
    Ok(())
}

#[test]
fn clsact_where_there_is_no_tcx() -> Result<()> {
    let Some(host) = Host::new()? else { return Ok(()) };
    let options = Options { clsact: true, ..host.options() };
    let (instance, _) = Instance::start(&host.place(), &options)?;
    ensure!(unsound(&instance)?.is_empty(), "{:?}", unsound(&instance)?);
    let wire = |instance: &Instance| -> Result<usize> {
        Ok(instance.hooks()?.iter().filter(|hook| hook.hook.starts_with("clsact") && hook.sound()).count())
    };
    ensure!(wire(&instance)? == 2);
    drop(instance);
    let (mut instance, there) = Instance::start(&host.place(), &options)?;
    ensure!(there && wire(&instance)? == 2, "filters outlive the process, and are not doubled");
    let filters = |direction: &str| -> Result<String> {
        let output = Command::new("tc").args(["filter", "show", "dev", "g0", direction]).output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    ensure!(filters("egress")?.matches("handle").count() == 1, "{}", filters("egress")?);
    ensure!(Command::new("tc").args("filter del dev g0 egress".split(' ')).status()?.success());
    ensure!(wire(&instance)? == 1);
    ensure!(instance.repair()?.len() == 1 && wire(&instance)? == 2);
    drop(instance);
    // Another daemon with other programs replaces the filters in place.
    let (mut instance, _) = Instance::start(&host.place(), &Options { shield: true, ..options })?;
    ensure!(unsound(&instance)?.is_empty() && filters("egress")?.matches("handle").count() == 1);

    // The host's side of a bridge has filters as long as a policy asks for it.
    ip("link add br7 type bridge")?;
    let on_bridge = || -> Result<usize> {
        let mut count = 0;
        for direction in ["ingress", "egress"] {
            let output = Command::new("tc").args(["filter", "show", "dev", "br7", direction]).output()?;
            count += String::from_utf8(output.stdout)?.matches("handle").count();
        }
        Ok(count)
    };
    let guards = Policy { container_host: ContainerHost::Guard, ..policy(Mode::Enforce, 80, None) };
    let publish = |instance: &mut Instance, policy: &Policy| -> Result<()> {
        let compiled = compiled(instance, policy)?;
        instance.publish(&compiled, None)?;
        Ok(instance.look_at_interfaces()?)
    };
    for _ in 0..2 {
        publish(&mut instance, &guards)?;
        // And a veth that is not named: two of each, and the uplink's.
        ensure!(on_bridge()? == 2 && wire(&instance)? == 6, "{:?}", instance.hooks()?);
        ensure!(Command::new("tc").args("filter del dev br7 ingress".split(' ')).status()?.success());
        ensure!(instance.repair()?.len() == 1 && wire(&instance)? == 6 && on_bridge()? == 2);
        publish(&mut instance, &policy(Mode::Enforce, 81, None))?;
        ensure!(on_bridge()? == 0 && wire(&instance)? == 2, "{:?}", instance.hooks()?);
    }
    publish(&mut instance, &guards)?;
    drop(instance);
    release(&host.place())?;
    ensure!(filters("ingress")?.is_empty() && filters("egress")?.is_empty() && on_bridge()? == 0);
    Ok(())
}

#[test]
fn interfaces_come_and_go() -> Result<()> {
    let Some(host) = Host::new()? else { return Ok(()) };
    let options = Options { selection: Selection::default(), ..host.options() };
    ip("link add br0 type bridge")?;
    ip("link set br0 up")?;
    ip("addr add 198.51.100.1/24 dev br0")?;
    let (mut instance, _) = Instance::start(&host.place(), &options)?;
    let guarded = |instance: &Instance| -> Result<Vec<String>> {
        let mut names: Vec<String> =
            instance.interfaces()?.into_iter().filter(|line| line.guarded).map(|line| line.name).collect();
        names.sort();
        Ok(names)
    };
    ensure!(guarded(&instance)? == ["g0", "g1"], "{:?}", instance.interfaces()?);
    let named = compiled(&instance, &policy(Mode::Enforce, 443, Some("h*")))?;
    instance.publish(&named, None)?;

    // A container's port is not guarded; another veth is, when it comes up.
    ip("link add c0 type veth peer name c1")?;
    ip("link add h0 type veth peer name h1")?;
    instance.look_at_interfaces()?;
    ensure!(guarded(&instance)? == ["g0", "g1"], "down: not decided");
    ip("link set c0 master br0")?;
    ip("link set c1 master br0")?;
    for name in ["c0", "c1", "h0", "h1"] {
        ip(&format!("link set {name} up"))?;
    }
    // Another process, which has not compiled the policy, knows the class all the same.
    let mut other = Instance::open(&host.place())?;
    other.look_at_interfaces()?;
    ensure!(guarded(&instance)? == ["g0", "g1", "h0", "h1"], "{:?}", instance.interfaces()?);
    ensure!(unsound(&instance)?.is_empty());
    let class = |name: &str| -> Result<u32> {
        let map = pinned(&host.pin("maps/INTERFACES"))?;
        let index = nix::net::if_::if_nametoindex(name)?;
        let mut value = [0_u32; 4];
        let words = [map.as_raw_fd() as u64, &raw const index as u64, &raw mut value as u64, 0];
        bpf(1, words)?;
        let slot = in_force(&instance)?.1.active();
        Ok(value[1 + usize::from(slot.0)])
    };
    ensure!(class("h0")? == named.interface_class("h0") && class("h0")? != 0 && class("g0")? == 0);

    // A device without Ethernet header has programs of its own.
    ip("tuntap add dev t0 mode tun")?;
    ip("link set t0 up")?;
    instance.look_at_interfaces()?;
    ensure!(guarded(&instance)? == ["g0", "g1", "h0", "h1", "t0"] && unsound(&instance)?.is_empty());
    ensure!(host.pin("programs/wire_ingress_l3").exists());
    ip("link del t0")?;
    instance.look_at_interfaces()?;
    ensure!(guarded(&instance)? == ["g0", "g1", "h0", "h1"] && unsound(&instance)?.is_empty());

    // What was guarded stays so as a port, and in another namespace.
    ip("link set g1 master br0")?;
    let holder = Command::new("unshare").args(["--net", "sleep", "20"]).spawn()?;
    let moved = scopeguard(holder);
    sleep(Duration::from_millis(200));
    ip(&format!("link set h1 netns {}", moved.0.id()))?;
    instance.look_at_interfaces()?;
    ensure!(guarded(&instance)? == ["g0", "g1", "h0"]);
    ensure!(unsound(&instance)?.is_empty(), "{:?}", unsound(&instance)?);
    ensure!(instance.hooks()?.iter().any(|hook| hook.target.contains("another network namespace")));
    drop(moved);
    sleep(Duration::from_millis(300));
    ip("link del h0").or_else(|_| anyhow::Ok(()))?;
    instance.look_at_interfaces()?;
    ensure!(guarded(&instance)? == ["g0", "g1"]);
    ensure!(
        instance.hooks()?.iter().all(|hook| hook.sound() && !hook.target.contains("another")),
        "{:?}",
        instance.hooks()?
    );

    // Patterns, changed when it is taken over.
    let selection = Selection { exclude: vec!["g1".to_owned()], ..Selection::default() };
    let (instance, _) = Instance::start(&host.place(), &Options { selection, ..options })?;
    ensure!(guarded(&instance)? == ["g0"] && unsound(&instance)?.is_empty());
    Ok(())
}

/// Ends a child when it goes out of scope.
struct Child(std::process::Child);

fn scopeguard(child: std::process::Child) -> Child {
    Child(child)
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn flows_and_clocks() -> Result<()> {
    let Some(host) = Host::new()? else { return Ok(()) };
    let mut instance = host.start()?;
    let key = |last: u8| -> Result<Key> {
        let (remote, local): (IpAddr, IpAddr) = ([198, 51, 100, last].into(), [192, 0, 2, 1].into());
        Key::new(6, remote, 443, local, 40_000, 0).context("one family")
    };
    let six = Key::new(17, "2001:db8::1".parse()?, 53, "2001:db8::2".parse()?, 40_000, 0).context("one family")?;
    let answered = Flow { flags: Flow::ADOPTED | Flow::ANSWERED, ..Flow::default() };
    let fresh = Flow { flags: Flow::ADOPTED, ..Flow::default() };
    ensure!(instance.adopt_flows(&[(key(1)?, answered), (key(2)?, fresh), (six, answered)])? == 3);
    ensure!(instance.adopt_flows(&[(key(1)?, fresh), (six, fresh)])? == 0, "what is there stays");
    // What the host itself sends (neighbour discovery) may be there too.
    let held = |instance: &Instance| -> Result<Vec<Key>> {
        let of_the_test = |key: &Key| key.remote_port() == 443 || *key == six;
        Ok(instance.flows()?.into_iter().map(|(key, _)| key).filter(of_the_test).collect())
    };
    ensure!(held(&instance)?.len() == 3);
    // The last has begun again since it was looked at.
    instance.delete_flows(&[(key(1)?, 0), (six, 0), (key(2)?, 7)])?;
    ensure!(held(&instance)? == [key(2)?]);
    let many: Vec<(Key, Flow)> = (0..255).map(|last| Ok((key(last)?, answered))).collect::<Result<_>>()?;
    instance.adopt_flows(&many)?;
    ensure!(instance.flows()?.len() >= 250, "{}", instance.flows()?.len());

    let before = instance.now()?;
    sleep(Duration::from_millis(200));
    let after = instance.now()?;
    let jiffies = (after.jiffies - before.jiffies) as f64;
    let expected = (after.boot_ns - before.boot_ns) as f64 / 1e9 * f64::from(after.hz);
    // A busy machine counts late.
    ensure!(
        (jiffies - expected).abs() <= 2.0 + expected / 10.0,
        "{jiffies} jiffies, expected {expected} at {} a second",
        after.hz
    );
    ensure!(instance.drain_events(100, |_| {})? == 0);
    ensure!(instance.memory()? > 0);
    ensure!(instance.tables(Slot(0))?.is_none());
    Ok(())
}

#[test]
fn what_is_not_ours_is_refused() -> Result<()> {
    let Some(host) = Host::new()? else { return Ok(()) };
    ensure!(matches!(Instance::open(&host.place()), Err(KernelError::NotRunning(_))));
    let bad = Place { instance: "../x".to_owned(), ..host.place() };
    ensure!(matches!(Instance::open(&bad), Err(KernelError::InstanceName(_))));
    let no_cgroup = Options { cgroup: Some("/nowhere".into()), ..host.options() };
    ensure!(Instance::start(&host.place(), &no_cgroup).is_err());

    // A start that fails midway leaves nothing.
    let file = host.cgroup.join("cgroup.procs");
    let not_a_cgroup = Options { cgroup: Some(file), ..host.options() };
    let error = Instance::start(&host.place(), &not_a_cgroup).err().context("it started")?;
    ensure!(matches!(error, KernelError::StartUndone { .. }), "{error}");
    ensure!(!host.pin("").exists());

    let instance = host.start()?;
    let state = pinned(&host.pin("maps/STATE"))?;
    let mut read = instance.read_back()?.state;
    read.abi += 1;
    let zero = 0_u32;
    bpf(2, [state.as_raw_fd() as u64, &raw const zero as u64, &raw const read as u64, 0])?;
    drop(instance);
    ensure!(matches!(Instance::open(&host.place()), Err(KernelError::ForeignAbi { .. })));
    release(&host.place())?;

    let instance = host.start()?;
    drop(instance);
    unshare(CloneFlags::CLONE_NEWNET)?;
    ensure!(matches!(Instance::open(&host.place()), Err(KernelError::OtherNamespace(_))));
    release(&host.place())?;

    fs::create_dir(host.pin("")).context("the instance's directory")?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(host.pin(""), mode)?;
    ensure!(matches!(Instance::open(&host.place()), Err(KernelError::Unsafe { .. })));
    Ok(())
}
