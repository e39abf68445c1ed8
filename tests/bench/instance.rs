//! A whole instance in a namespace of its own: start, publish with all that is read back, adoption, release.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use guard::kernel::{Instance, Options, Place, Selection, release};
use guard_tests::random;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{
    series::Series,
    tables::{milliseconds, policies},
};

pub fn measure(runs: usize) -> Result<Vec<Series>> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let bpffs = tempfile::tempdir()?;
    let cgroup = Cgroup::new()?;
    for arguments in ["link add g0 type veth peer name g1", "link set g0 up", "link set g1 up"] {
        ensure!(std::process::Command::new("ip").args(arguments.split(' ')).status()?.success(), "ip {arguments}");
    }
    let place = Place { instance: "bench".to_owned(), bpffs: Some(bpffs.path().to_owned()) };
    let options = Options {
        selection: Selection { include: vec!["g0".to_owned()], ..Selection::default() },
        cgroup: Some(cgroup.0.clone()),
        ..Options::default()
    };
    let mut start = Series::of("start to tracking".to_owned(), "ms");
    let mut adopt = Series::of("adoption".to_owned(), "ms");
    let mut end = Series::of("release".to_owned(), "ms");
    let mut all = Vec::new();
    println!("a whole instance, ms (medians of {runs})\n");
    for (name, write) in policies() {
        let directory = tempfile::tempdir()?;
        write(directory.path())?;
        let loaded = guard::policy::load(&directory.path().join("policy.yaml"))
            .map_err(|_| anyhow::anyhow!("{name} is not valid"))?;
        let mut publish = Series::of(format!("publish {name}"), "ms");
        for _ in 0..runs {
            let began = Instant::now();
            let (mut instance, _) = Instance::start(&place, &options)?;
            start.runs.push(milliseconds(began));
            let compiled = random::compiled(&loaded.policy, instance.next_generation())?;
            let began = Instant::now();
            instance.publish(&compiled, None)?;
            publish.runs.push(milliseconds(began));
            drop(instance);
            let began = Instant::now();
            let instance = Instance::start(&place, &options)?.0;
            adopt.runs.push(milliseconds(began));
            drop(instance);
            let began = Instant::now();
            release(&place)?;
            end.runs.push(milliseconds(began));
        }
        println!("{:<50} {:>9.1}", publish.name, publish.median());
        all.push(publish);
    }
    for series in [start, adopt, end] {
        println!("{:<50} {:>9.1}", series.name, series.median());
        all.push(series);
    }
    println!();
    nix::mount::umount2(bpffs.path(), nix::mount::MntFlags::MNT_DETACH)?;
    Ok(all)
}

struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Result<Self> {
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        let root = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
            .and_then(|line| line.split(' ').nth(1))
            .context("cgroup2 is not mounted")?;
        let path = PathBuf::from(root).join(format!("guard-bench-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
