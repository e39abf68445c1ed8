//! Captures: pcap and pcapng, also in gzip, through libpcap.

use std::path::{Path, PathBuf};

use pcap::{Capture, Offline};

use super::{
    link::LinkType,
    pipe::{Failure, Pipe},
};

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("cannot read the capture {}: {reason}", path.display())]
    Open { path: PathBuf, reason: String },
    #[error("{}: frames of link type {name} cannot be read: Ethernet, Linux cooked, raw IP and loopback can; tcpdump -i any \
         takes them as Linux cooked", path.display())]
    LinkType { path: PathBuf, name: String },
    #[error("not a capture filter (pcap-filter(7)): {filter}: {reason}")]
    Filter { filter: String, reason: String },
}

/// One packet as it was captured.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Unix time in nanoseconds.
    pub time: i128,
    /// On the wire; `data` may be shorter.
    pub length: u32,
    pub data: &'a [u8],
}

/// A capture that is read from its beginning, once.
pub struct Reader {
    capture: Capture<Offline>,
    link: LinkType,
    /// Of the file, where it is one.
    size: Option<u64>,
    /// How the file broke off.
    broken: Option<String>,
    /// Of what unpacks it.
    failure: Failure,
}

impl Reader {
    /// `-` is standard input.
    pub fn open(path: &Path, filter: Option<&str>) -> Result<Self, CaptureError> {
        let failed = |reason: String| CaptureError::Open { path: path.to_owned(), reason };
        if path.as_os_str() == "-" {
            return Self::of(path, path, Failure::default(), filter);
        }
        match Pipe::unpacking(path).map_err(|error| failed(error.to_string()))? {
            Some(pipe) => Self::of(path, &pipe.path(), pipe.failure(), filter),
            None => Self::of(path, path, Failure::default(), filter),
        }
    }

    /// Of a stream that is called `path`.
    pub fn piped(path: &Path, pipe: &Pipe, filter: Option<&str>) -> Result<Self, CaptureError> {
        Self::of(path, &pipe.path(), pipe.failure(), filter)
    }

    fn of(path: &Path, from: &Path, failure: Failure, filter: Option<&str>) -> Result<Self, CaptureError> {
        let mut capture = Capture::from_file(from)
            .map_err(|reason| CaptureError::Open { path: path.to_owned(), reason: unreadable(&reason) })?;
        let number = capture.get_datalink();
        let link = LinkType::new(number).ok_or_else(|| CaptureError::LinkType {
            path: path.to_owned(),
            name: number.get_name().unwrap_or_else(|_| number.0.to_string()),
        })?;
        if let Some(filter) = filter {
            capture
                .filter(filter, true)
                .map_err(|reason| CaptureError::Filter { filter: filter.to_owned(), reason: said(&reason) })?;
        }
        let size = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len());
        Ok(Self { capture, link, size, broken: None, failure })
    }

    #[must_use]
    pub const fn link(&self) -> LinkType {
        self.link
    }

    #[must_use]
    pub const fn size(&self) -> Option<u64> {
        self.size
    }

    /// Why reading ended before the end, where it did: what came before is good.
    #[must_use]
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// The next packet; `None` at the end, and from the first packet on that cannot be read: libpcap would go on behind it.
    pub fn next_frame(&mut self) -> Option<Frame<'_>> {
        if self.broken.is_some() {
            return None;
        }
        match self.capture.next_packet() {
            Ok(packet) => {
                let time = packet.header.ts;
                Some(Frame {
                    time: i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_usec) * 1000,
                    length: packet.header.len.max(packet.header.caplen),
                    data: packet.data,
                })
            }
            Err(pcap::Error::NoMorePackets) => {
                self.broken = self.failure.get();
                None
            }
            Err(error) => {
                self.broken = Some(self.failure.get().unwrap_or_else(|| broken(&error)));
                None
            }
        }
    }
}

fn said(error: &pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Why it cannot be opened, and what to do.
fn unreadable(error: &pcap::Error) -> String {
    let said = said(error);
    if said.contains("file header bytes") {
        format!("it is empty, or breaks off in its first bytes ({said})")
    } else if said.contains("unknown file format") {
        "it is neither pcap nor pcapng, plain or in gzip; of flows that other tools wrote down: guard replay POLICY \
         --flows FILE"
            .to_owned()
    } else {
        said
    }
}

fn broken(error: &pcap::Error) -> String {
    let said = said(error);
    if said.contains("of the first interface") {
        format!(
            "{said}: interfaces of different kinds in one file cannot be read; take one at a time out of it (tshark -r \
             FILE -Y frame.interface_id==0 -w ONE), or capture with tcpdump -i any"
        )
    } else {
        said
    }
}
