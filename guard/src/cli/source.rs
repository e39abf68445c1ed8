//! Where recorded flows come from: files of any kind that is known, or this host's own store.

use std::{
    cell::Cell,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anyhow::bail;
use clap::Args;
use ipnet::IpNet;

use super::{InstanceArgs, output::escape_line};
use crate::{
    record::sink::Limits,
    review::{
        inputs::{self, Options, Summary},
        observed::Observed,
    },
    store::{self, Reader, Span},
};

/// `--from` and what goes with it.
#[derive(Clone, Debug, Args)]
pub struct FromArgs {
    /// Captures (pcap, pcapng), Zeek's conn.log, Suricata's eve.json, guard's flows.jsonl, AWS VPC flow logs, each also
    /// in gzip; `-` reads standard input
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub from: Vec<PathBuf>,
    /// Our addresses, of what is read from files (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = super::replay::network)]
    pub local: Vec<IpNet>,
}

/// What was read.
#[derive(Debug)]
pub enum Read {
    Files(Vec<Summary>),
    /// This host's own records.
    Store(PathBuf),
    /// This host's own `flows.jsonl`, and those rotated before it.
    Records(Vec<Summary>),
}

impl Read {
    #[must_use]
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Records(_))
    }

    /// Some of it could not be read.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        matches!(self, Self::Files(files) | Self::Records(files) if files.iter().any(|file| file.broken.is_some()))
    }

    /// When this guard did not run between two times, as far as that is known: only a store tells it.
    pub fn gaps(&self, since: i64, until: i64) -> anyhow::Result<Vec<(i64, i64)>> {
        let Self::Store(path) = self else { return Ok(Vec::new()) };
        let Some(reader) = Reader::open(path)? else { return Ok(Vec::new()) };
        Ok(reader.coverage(Span { since, until }).gaps)
    }

    /// On standard error: what was read, how it was told who is ours, what is bad.
    pub fn tell(&self) {
        match self {
            Self::Files(files) | Self::Records(files) => {
                files.iter().for_each(|file| eprintln!("read  {}", escape_line(&file.to_string())))
            }
            Self::Store(path) => eprintln!("read  {}", escape_line(&path.display().to_string())),
        }
    }

    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        match self {
            Self::Files(files) | Self::Records(files) => serde_json::json!({ "files": files }),
            Self::Store(path) => serde_json::json!({ "store": path.display().to_string() }),
        }
    }
}

/// Hands every flow to `each`: of the files, where some are named, else of the store from `since` on (Unix
/// microseconds).
pub fn flows(
    from: &FromArgs,
    since: Option<i64>,
    instance: &InstanceArgs,
    each: &mut dyn FnMut(Observed),
) -> anyhow::Result<Read> {
    if !from.from.is_empty() {
        return of_files(&from.from, &from.local, None, since, each).map(Read::Files);
    }
    let directory = instance.state_dir();
    let path = directory.join(store::FILE);
    let Some(reader) = Reader::open(&path)? else {
        let files = own_records(&directory);
        if files.is_empty() {
            bail!(
                "there are no records of this host in {}: run `guard observe` or `guard run` first, or name files with \
                 --from",
                directory.display()
            );
        }
        return of_files(&files, &from.local, None, since, each).map(Read::Records);
    };
    reader.hold()?;
    let span = Span { since: since.unwrap_or(Span::ALL.since), until: Span::ALL.until };
    let mut put = |flow| {
        each(flow);
        ControlFlow::Continue(())
    };
    reader.flows(span, &mut put)?;
    reader.unsolicited(span, &mut put)?;
    Ok(Read::Store(path))
}

/// `flows.jsonl` and what was rotated, the oldest first. A flow whose records stand in two of them counts twice.
fn own_records(directory: &Path) -> Vec<PathBuf> {
    let rotated = (1..=Limits::default().files).rev().map(|number| directory.join(format!("flows.jsonl.{number}")));
    rotated.chain([directory.join("flows.jsonl")]).filter(|path| path.is_file()).collect()
}

/// Of files alone, in the order in which they are named.
pub fn of_files(
    files: &[PathBuf],
    local: &[IpNet],
    filter: Option<&str>,
    since: Option<i64>,
    each: &mut dyn FnMut(Observed),
) -> anyhow::Result<Vec<Summary>> {
    let bar = super::replay::progress(size_of(files));
    let done = Cell::new(0);
    let told = |read: u64| bar.set_position(done.get() + read);
    let options = Options { local, filter, progress: Some(&told) };
    let mut put = |flow: Observed| {
        if since.is_none_or(|since| flow.last >= since) {
            each(flow);
        }
    };
    let mut read = Vec::new();
    for path in files {
        read.push(inputs::read(path, options, &mut put)?);
        done.set(done.get() + path.metadata().map_or(0, |metadata| metadata.len()));
    }
    bar.finish_and_clear();
    Ok(read)
}

/// All together, for a progress bar; `None` where one is no file.
fn size_of(files: &[PathBuf]) -> Option<u64> {
    files
        .iter()
        .map(|path| path.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len()))
        .sum()
}
