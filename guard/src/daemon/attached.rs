//! The kernel's side of an instance, as the daemon and the commands use it.

use std::path::{Path, PathBuf};

use super::{engine::Engine, report::InterfaceLine, state_dir::StateDir};

/// What `run` asks of the kernel's side.
#[derive(Clone, Debug, Default)]
pub struct StartOptions {
    /// Patterns of interfaces.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub shield: bool,
    pub cgroup: Option<PathBuf>,
}

/// An instance that is attached.
pub enum Kernel {}

pub fn open(_instance: &str) -> anyhow::Result<Option<Kernel>> {
    anyhow::bail!("not in this build")
}

/// One that must be attached, with its state directory.
pub fn existing(instance: &str, state_dir: &Path) -> anyhow::Result<(StateDir, Kernel)> {
    let kernel = open(instance)?;
    let Some(kernel) = kernel else {
        anyhow::bail!("nothing of guard is attached here (instance {instance}); start it with: guard run POLICY");
    };
    Ok((StateDir::create(state_dir)?, kernel))
}

pub fn start(_instance: &str, _options: &StartOptions) -> anyhow::Result<Kernel> {
    anyhow::bail!("not in this build")
}
pub fn preview(_options: &StartOptions) -> anyhow::Result<Vec<InterfaceLine>> {
    anyhow::bail!("not in this build")
}
pub fn release(_instance: &str) -> anyhow::Result<bool> {
    anyhow::bail!("not in this build")
}
pub fn notices(_kernel: &Kernel) -> Vec<String> {
    Vec::new()
}
impl Engine for Kernel {
    fn next_generation(&self) -> anyhow::Result<u32> {
        match *self {}
    }
    fn publish(
        &mut self,
        _compiled: &crate::policy::compile::Compiled,
        _within: Option<std::time::Duration>,
    ) -> anyhow::Result<()> {
        match *self {}
    }
    fn know(&mut self, _compiled: &crate::policy::compile::Compiled) -> anyhow::Result<()> {
        match *self {}
    }
    fn confirm(&mut self) -> anyhow::Result<()> {
        match *self {}
    }
    fn roll_back(&mut self) -> anyhow::Result<()> {
        match *self {}
    }
    fn settle(&mut self) -> anyhow::Result<bool> {
        match *self {}
    }
    fn read_back(&self) -> anyhow::Result<super::engine::ReadBack> {
        match *self {}
    }
    fn interfaces(&self) -> anyhow::Result<Vec<InterfaceLine>> {
        match *self {}
    }
    fn refresh(&mut self) -> anyhow::Result<()> {
        match *self {}
    }
    fn flows(&self) -> anyhow::Result<Vec<(crate::record::flow::Key, guard_common::abi::Flow)>> {
        match *self {}
    }
    fn adopt(&mut self, _flows: &[(crate::record::flow::Key, guard_common::abi::Flow)]) -> anyhow::Result<()> {
        match *self {}
    }
    fn delete(&mut self, _keys: &[crate::record::flow::Key]) -> anyhow::Result<()> {
        match *self {}
    }
    fn now(&self) -> anyhow::Result<crate::record::sweep::Now> {
        match *self {}
    }
    fn events_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match *self {}
    }
    fn drain_events(&mut self, _most: usize, _each: &mut dyn FnMut(&guard_common::abi::Event)) -> usize {
        match *self {}
    }
}
