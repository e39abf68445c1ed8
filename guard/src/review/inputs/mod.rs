//! What others recorded, as [`Observed`]: captures, Zeek's conn.log, Suricata's eve.json, AWS VPC flow logs, and guard's
//! own `flows.jsonl`.
//!
//! Everything is read as a stream. A line that cannot be read is counted, and the first one's place is kept; nothing in a
//! file makes this panic or grow without bound.

mod capture;
mod eve;
mod flow_logs;
mod lines;
mod place;
mod raw;
mod zeek;

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use flate2::read::MultiGzDecoder;
use ipnet::IpNet;
use serde::Serialize;

pub use raw::REFUSED;

use super::observed::Observed;
use crate::replay::{
    capture::{CaptureError, Reader},
    pipe::{GZIP, Pipe},
};
use lines::Lines;
use place::Placer;

/// How much of a file is looked at to find out what it is.
const SNIFFED: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("cannot read {}: {reason}", path.display())]
    Read { path: PathBuf, reason: io::Error },
    #[error(
        "{}: neither a capture (pcap, pcapng) nor a log that is known here: Zeek's conn.log (TSV or JSON), Suricata's \
         eve.json, guard's flows.jsonl, AWS VPC flow logs",
        path.display()
    )]
    Unknown { path: PathBuf },
    #[error("{}: is compressed in a way that is not known here (gzip is); unpack it first, or pipe it: zstdcat FILE | guard … --from -", path.display())]
    Compressed { path: PathBuf },
    #[error("{}: Zeek's {found} log: only conn.log tells of flows", path.display())]
    OtherZeekLog { path: PathBuf, found: String },
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("the built-in policy cannot be used: {0}")]
    BuiltIn(String),
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Capture,
    ZeekTsv,
    ZeekJson,
    Eve,
    FlowLogs,
}

impl Format {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::ZeekTsv => "Zeek conn.log (TSV)",
            Self::ZeekJson => "Zeek conn.log (JSON)",
            Self::Eve => "EVE",
            Self::FlowLogs => "AWS VPC flow logs",
        }
    }

    /// By the first bytes.
    fn of(start: &[u8]) -> Option<Self> {
        const PCAP: [[u8; 4]; 5] = [
            [0xa1, 0xb2, 0xc3, 0xd4],
            [0xd4, 0xc3, 0xb2, 0xa1],
            [0xa1, 0xb2, 0x3c, 0x4d],
            [0x4d, 0x3c, 0xb2, 0xa1],
            [0x0a, 0x0d, 0x0d, 0x0a],
        ];
        if PCAP.iter().any(|magic| start.starts_with(magic)) {
            return Some(Self::Capture);
        }
        let mut lines = start.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        lines.find_map(Self::of_line)
    }

    fn of_line(line: &[u8]) -> Option<Self> {
        if line.starts_with(b"#separator") || line.starts_with(b"#fields") || line.starts_with(b"#set_separator") {
            return Some(Self::ZeekTsv);
        }
        if line.starts_with(b"{") {
            let has = |part: &[u8]| line.windows(part.len()).any(|window| window == part);
            return match () {
                () if has(b"\"event_type\"") => Some(Self::Eve),
                () if has(b"\"id.orig_h\"") => Some(Self::ZeekJson),
                () => None,
            };
        }
        flow_logs::looks_like(line).then_some(Self::FlowLogs)
    }
}

/// Not gzip, which is unpacked: zstd, xz, bzip2.
const COMPRESSED: [&[u8]; 3] = [&[0x28, 0xb5, 0x2f, 0xfd], &[0xfd, b'7', b'z', b'X', b'Z'], b"BZh"];

/// How to read.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Our addresses; none: found out, and said.
    pub local: &'a [IpNet],
    /// pcap-filter(7), for captures.
    pub filter: Option<&'a str>,
    /// Told now and then how many bytes of the file are read.
    pub progress: Option<&'a dyn Fn(u64)>,
}

/// A line that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bad {
    /// 1-based.
    pub line: u64,
    pub why: String,
}

/// What was read. Field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub file: String,
    pub format: Format,
    /// Lines, or packets of a capture.
    pub read: u64,
    pub flows: u64,
    /// Lines that could not be read.
    pub bad: u64,
    pub first_bad: Option<Bad>,
    /// Records of other things than flows, and flows of which too little is told (no ICMP type, say).
    pub other: u64,
    /// Neither end is ours.
    pub foreign: u64,
    /// Both ends are ours.
    pub both_local: u64,
    /// How it was told which end is ours.
    pub local: String,
    /// Flows that were told in parts to keep memory bounded, or whose end is missing.
    pub in_parts: u64,
    /// Why the file ended before its end.
    pub broken: Option<String>,
}

impl Summary {
    fn new(path: &Path, format: Format) -> Self {
        Self {
            file: path.display().to_string(),
            format,
            read: 0,
            flows: 0,
            bad: 0,
            first_bad: None,
            other: 0,
            foreign: 0,
            both_local: 0,
            local: String::new(),
            in_parts: 0,
            broken: None,
        }
    }

    pub(self) fn bad_line(&mut self, line: u64, why: impl Into<String>) {
        self.bad += 1;
        if self.first_bad.is_none() {
            self.first_bad = Some(Bad { line, why: why.into() });
        }
    }
}

/// For people; names of files come from outside.
impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.format == Format::Capture { "packets" } else { "lines" };
        write!(
            out,
            "{}: {}, {} {what}, {} flows; ours: {}",
            self.file,
            self.format.as_str(),
            self.read,
            self.flows,
            self.local
        )?;
        for (count, what) in [
            (self.foreign, "of other hosts left out (--local says who is ours)"),
            (self.both_local, "between addresses of ours left out"),
            (self.other, "records that tell of no flow"),
            (self.in_parts, "flows told in parts"),
        ] {
            if count > 0 {
                write!(out, "; {count} {what}")?;
            }
        }
        if let Some(bad) = &self.first_bad {
            write!(out, "; {} lines cannot be read, the first is line {}: {}", self.bad, bad.line, bad.why)?;
        }
        if let Some(broken) = &self.broken {
            write!(out, "; it breaks off: {broken}")?;
        }
        Ok(())
    }
}

/// Reads a file (`-`: standard input), and hands every flow to `sink`, about in the order of the file. What it is, and
/// whether it is compressed (gzip), is told by its first bytes.
pub fn read(path: &Path, options: Options<'_>, sink: &mut dyn FnMut(Observed)) -> Result<Summary, InputError> {
    let failed = |reason| InputError::Read { path: path.to_owned(), reason };
    let file = if path.as_os_str() == "-" { None } else { Some(File::open(path).map_err(failed)?) };
    let is_plain_file = file.as_ref().and_then(|file| file.metadata().ok()).is_some_and(|metadata| metadata.is_file());
    let seen = Arc::new(AtomicU64::new(0));
    let stream: Box<dyn Read + Send> = match file {
        Some(file) => Box::new(file),
        None => Box::new(io::stdin()),
    };
    let (start, whole) = sniffed(Counted { inner: stream, seen: Arc::clone(&seen) }).map_err(failed)?;
    let unpack = start.starts_with(&GZIP);
    let (start, whole): (_, Box<dyn Read + Send>) = match unpack {
        true => {
            let (start, whole) = sniffed(MultiGzDecoder::new(whole)).map_err(failed)?;
            (start, Box::new(whole))
        }
        false => (start, Box::new(whole)),
    };
    match Format::of(&start) {
        Some(Format::Capture) if is_plain_file && !unpack => {
            capture::read(path, Reader::open(path, options.filter)?, options, sink)
        }
        Some(Format::Capture) => {
            let pipe = Pipe::of(whole).map_err(failed)?;
            capture::read(path, Reader::piped(path, &pipe, options.filter)?, options, sink)
        }
        _ => read_from(path, BufReader::with_capacity(256 << 10, whole), &seen, options, sink),
    }
}

/// The first bytes, and the whole.
fn sniffed<R: Read + Send + 'static>(mut stream: R) -> io::Result<(Vec<u8>, impl Read + Send + 'static)> {
    let mut start = vec![0; SNIFFED];
    let length = fill(&mut stream, &mut start)?;
    start.truncate(length);
    Ok((start.clone(), io::Cursor::new(start).chain(stream)))
}

/// Counts what is read of the file itself: how far reading has come.
struct Counted<R> {
    inner: R,
    seen: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.seen.fetch_add(read as u64, Relaxed);
        Ok(read)
    }
}

fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The same of anything that is no capture.
pub fn read_from(
    path: &Path,
    mut reader: impl BufRead,
    seen: &AtomicU64,
    options: Options<'_>,
    sink: &mut dyn FnMut(Observed),
) -> Result<Summary, InputError> {
    let failed = |reason| InputError::Read { path: path.to_owned(), reason };
    let start = reader.fill_buf().map_err(failed)?;
    if COMPRESSED.iter().any(|magic| start.starts_with(magic)) {
        return Err(InputError::Compressed { path: path.to_owned() });
    }
    if start.is_empty() {
        // Nothing was recorded: no flow, and no error.
        let mut summary = Summary::new(path, Format::Eve);
        summary.local = "nothing to tell it by".to_owned();
        return Ok(summary);
    }
    let format = match Format::of(start) {
        Some(format) if format != Format::Capture => format,
        _ => return Err(InputError::Unknown { path: path.to_owned() }),
    };
    let mut summary = Summary::new(path, format);
    let mut lines = Lines::new(reader);
    let mut told = 0u32;
    let mut sink = |flow| {
        told = told.wrapping_add(1);
        if told & 0xfff == 0
            && let Some(progress) = options.progress
        {
            progress(seen.load(Relaxed));
        }
        sink(flow);
    };
    let mut placer = Placer::new(options.local, &mut sink);
    let end = match format {
        Format::ZeekTsv => zeek::tsv(path, &mut lines, &mut summary, &mut placer)?,
        Format::ZeekJson => zeek::json(&mut lines, &mut summary, &mut placer),
        Format::Eve => eve::read(&mut lines, &mut summary, &mut placer),
        Format::FlowLogs => flow_logs::read(&mut lines, &mut summary, &mut placer),
        Format::Capture => None,
    };
    placer.finish(&mut summary);
    summary.broken = end.map(|error| error.to_string());
    Ok(summary)
}

#[cfg(test)]
mod tests;
