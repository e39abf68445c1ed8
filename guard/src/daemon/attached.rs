//! The kernel's side of an instance, as the daemon and the commands use it.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{engine::Engine, report::InterfaceLine, round, state_dir::StateDir};
use crate::{
    host::firewalls::{self, OtherFirewall},
    kernel::{self, KernelError, Options, Place, Selection},
    policy::model::ContainerHost,
};

/// An instance that is attached.
pub type Kernel = kernel::Instance;

/// What `run` asks of the kernel's side.
#[derive(Clone, Debug, Default)]
pub struct StartOptions {
    /// Patterns of interfaces.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub shield: bool,
    pub cgroup: Option<PathBuf>,
    /// Entries of each flow table.
    pub flows: Option<u32>,
    /// Ports of containers and VMs that appear from now on, too (lockdown).
    pub ports: bool,
}

impl StartOptions {
    fn selection(&self) -> Selection {
        Selection { include: self.include.clone(), exclude: self.exclude.clone(), ports: self.ports }
    }
}

fn place(instance: &str) -> Place {
    Place { instance: instance.to_owned(), bpffs: None }
}

/// How long another process may take to start.
const START: Duration = Duration::from_secs(10);

/// How long it may take to make the maps.
const MAPS: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// `None`: nothing is attached. Where another process is just starting it, that is waited for.
pub fn open(instance: &str) -> Result<Option<Kernel>, KernelError> {
    let began = Instant::now();
    loop {
        match Kernel::open(&place(instance)) {
            Ok(kernel) => return Ok(Some(kernel)),
            Err(KernelError::NotRunning(_)) => return Ok(None),
            Err(error) if is_unfinished(&error) && began.elapsed() < START => thread::sleep(PAUSE),
            // Its maps are still being made, or something is amiss there.
            Err(KernelError::Damaged { .. }) if began.elapsed() < MAPS => thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
}

/// As [`open`], for whoever holds the lock that a start takes: what is found half made was left by one that was killed.
/// No policy can be in force there, so it is taken down.
pub fn open_for_start(instance: &str) -> Result<Option<Kernel>, KernelError> {
    match Kernel::open(&place(instance)) {
        Ok(kernel) => Ok(Some(kernel)),
        Err(KernelError::NotRunning(_)) => Ok(None),
        Err(error) if is_unfinished(&error) => release(instance).map(|_| None),
        Err(error) => Err(error),
    }
}

/// The ABI's number is written when all maps are there.
fn is_unfinished(error: &KernelError) -> bool {
    matches!(error, KernelError::ForeignAbi { found: 0, .. })
}

/// One that must be attached, with its state directory.
pub fn existing(instance: &str, state_dir: &Path) -> anyhow::Result<(StateDir, Kernel)> {
    let kernel = open(instance)?.ok_or_else(|| KernelError::NotRunning(instance.to_owned()))?;
    Ok((StateDir::create(state_dir)?, kernel))
}

/// Attaches, or adopts what is attached.
pub fn start(instance: &str, options: &StartOptions) -> Result<Kernel, KernelError> {
    let default = Options::default();
    let asked = Options {
        selection: options.selection(),
        shield: options.shield,
        cgroup: options.cgroup.clone(),
        flows: options.flows.unwrap_or(default.flows),
        ..default
    };
    let (kernel, _) = Kernel::start(&place(instance), &asked)?;
    let room = kernel.settings().flows;
    if options.flows.is_some_and(|flows| flows != room) {
        eprintln!(
            "notice: the flow tables that are there keep their room for {room} flows: guard release changes that"
        );
    }
    Ok(kernel)
}

/// What would be guarded, were it started now. Attaches nothing.
pub fn preview(options: &StartOptions) -> Result<Vec<InterfaceLine>, KernelError> {
    let (decided, sides) = kernel::preview(&options.selection())?;
    let lines = decided.into_iter().map(|(device, why)| InterfaceLine {
        guarded: why.guarded(),
        container_host: sides.contains(&device.index).then_some(ContainerHost::Ignore),
        name: device.name,
        index: device.index,
        why: why.as_str().to_owned(),
    });
    Ok(lines.collect())
}

/// Takes everything down; false if nothing was attached.
pub fn release(instance: &str) -> Result<bool, KernelError> {
    match kernel::release(&place(instance)) {
        Ok(()) => Ok(true),
        Err(KernelError::NotRunning(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What this kernel lacks, and what is lost by that.
pub fn notices(kernel: &Kernel) -> anyhow::Result<Vec<String>> {
    let mut notices = kernel.read_back()?.missing;
    notices.extend(round::unsure(kernel.settings()));
    Ok(notices)
}

/// Other firewalls, and other programs at guard's hooks.
#[must_use]
pub fn others(kernel: Option<&Kernel>) -> Vec<OtherFirewall> {
    let mut others = firewalls::others();
    // This list informs, and decides nothing.
    others.extend(kernel.and_then(|kernel| kernel.other_programs().ok()).unwrap_or_default());
    others
}
