//! Captures: pcap and pcapng, through libpcap.

use std::path::{Path, PathBuf};

use pcap::{Capture, Offline};

use super::link::LinkType;

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("cannot read the capture {}: {reason}", path.display())]
    Open { path: PathBuf, reason: pcap::Error },
    #[error("{}: frames of link type {name} cannot be read: Ethernet, Linux cooked, raw IP and loopback can", path.display())]
    LinkType { path: PathBuf, name: String },
    #[error("not a capture filter: {filter}: {reason}")]
    Filter { filter: String, reason: pcap::Error },
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
    broken: Option<pcap::Error>,
}

impl Reader {
    /// `-` is standard input.
    pub fn open(path: &Path, filter: Option<&str>) -> Result<Self, CaptureError> {
        let mut capture =
            Capture::from_file(path).map_err(|reason| CaptureError::Open { path: path.to_owned(), reason })?;
        let number = capture.get_datalink();
        let link = LinkType::new(number).ok_or_else(|| CaptureError::LinkType {
            path: path.to_owned(),
            name: number.get_name().unwrap_or_else(|_| number.0.to_string()),
        })?;
        if let Some(filter) = filter {
            capture
                .filter(filter, true)
                .map_err(|reason| CaptureError::Filter { filter: filter.to_owned(), reason })?;
        }
        let size = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len());
        Ok(Self { capture, link, size, broken: None })
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
    pub const fn broken(&self) -> Option<&pcap::Error> {
        self.broken.as_ref()
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
            Err(pcap::Error::NoMorePackets) => None,
            Err(error) => {
                self.broken = Some(error);
                None
            }
        }
    }
}
