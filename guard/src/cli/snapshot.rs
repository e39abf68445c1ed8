use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;

use super::{Exit, Global, output};
use crate::{
    daemon::state_dir::DEFAULT_ROOT,
    snapshot::{self, Manifest, Options, Outcome, Running, WriteError, Writer},
};

/// Write down the volatile state of this host: processes, sockets, network, kernel
///
/// Read-only; runs no program of the host. One file of JSON lines a section, `manifest.json`, and `manifest.sha256`
/// (sha256sum -c). It holds command lines, which may hold secrets. As root it sees everything; without, it says what it
/// could not see.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  guard snapshot -o /media/case-17/db1\n  \
                        ssh host sudo guard snapshot -o - > db1.tar     # writes nothing on that host")]
pub struct SnapshotArgs {
    /// A directory that does not exist yet, or `-`: a tar stream to standard output
    /// [default: /var/lib/guard/evidence/TIME]
    #[arg(long, short, value_name = "DIR|-")]
    pub output: Option<PathBuf>,
    /// How many seconds it may take; what has not ended by then is marked, with what it has so far
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    pub within: f64,
    /// Another place where the proc file system is mounted (a container's view of its host)
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub proc: PathBuf,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds, from 0.1 to 3600".to_owned()),
    }
}

pub fn run(args: &SnapshotArgs, global: &Global) -> anyhow::Result<Exit> {
    let stream = args.output.as_deref() == Some(Path::new("-"));
    anyhow::ensure!(
        !(stream && io::stdout().is_terminal()),
        "a tar stream is nothing for a terminal: send it to a file or through ssh (guard snapshot -o - > case.tar)"
    );
    anyhow::ensure!(!(stream && global.json), "-o - and --json both want standard output: leave --json out");
    let within = Duration::from_secs_f64(args.within);
    let until = Instant::now() + within;
    let mut running = snapshot::start(&Options { proc: args.proc.clone(), within });
    let (manifest, place) = if stream {
        (write(Writer::tar(io::stdout().lock()), &mut running, until)?, None)
    } else {
        let place = args
            .output
            .clone()
            .unwrap_or_else(|| Path::new(DEFAULT_ROOT).join("evidence").join(snapshot::name_of_now()));
        (write(Writer::directory(&place)?, &mut running, until)?, Some(place))
    };
    if global.json {
        output::json_line(&serde_json::json!({ "directory": place, "manifest": manifest }))?;
    } else {
        let text = output::escape(&summary(&manifest, place.as_deref()));
        // Standard output is the stream's.
        if stream { io::stderr().write_all(text.as_bytes())? } else { output::print(&text)? }
    }
    let whole = manifest.sections.iter().all(|section| matches!(section.outcome, Outcome::Complete | Outcome::Partial));
    Ok(if whole { Exit::Good } else { Exit::No })
}

fn write<W: Write>(mut writer: Writer<W>, running: &mut Running, until: Instant) -> Result<Manifest, WriteError> {
    while let Some(section) = running.next(until) {
        writer.section(&section)?;
    }
    for section in running.rest() {
        writer.section(&section)?;
    }
    writer.finish()
}

fn summary(manifest: &Manifest, place: Option<&Path>) -> String {
    let bytes: usize = manifest.sections.iter().map(|section| section.bytes).sum();
    let place = place.map_or_else(|| "the tar stream".to_owned(), |place| place.display().to_string());
    let mut text = format!(
        "state saved: {} sections, {:.1} MB, {place} (manifest.sha256)\n",
        manifest.sections.len(),
        bytes as f64 / 1e6
    );
    let marked: Vec<_> = manifest
        .sections
        .iter()
        .filter(|section| section.suspicious > 0)
        .map(|section| format!("{} in {}", section.suspicious, section.file))
        .collect();
    if !marked.is_empty() {
        text.push_str(&format!("worth a look: {}\n", marked.join(", ")));
    }
    for section in &manifest.sections {
        match section.outcome {
            Outcome::Complete => {}
            Outcome::Partial => {
                for note in &section.notes {
                    text.push_str(&format!("note: {}: {note}\n", section.name));
                }
            }
            Outcome::Failed => {
                text.push_str(&format!("NOT READ: {}: {}\n", section.name, section.error.as_deref().unwrap_or("?")));
            }
            Outcome::TimedOut => text.push_str(&format!("NOT COMPLETE: {}: did not end in time\n", section.name)),
        }
    }
    text
}
