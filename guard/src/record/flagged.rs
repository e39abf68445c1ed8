//! `flagged.pcap` and `flagged-in.pcap`: the first bytes of each flagged flow's first packet, for tools that read captures.
//! What a denied flow tried never reaches another capture, since it is dropped before. What came in has a file of its own,
//! so that scans never push out what this host tried to send.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use guard_common::Direction;
use pcap::{Capture, Linktype, Packet, PacketHeader, Savefile};
use serde::{Deserialize, Serialize};

/// A file this long is rotated away; one rotated file is kept.
const FILE_BYTES: u64 = 16 << 20;
const FILE_HEADER: u64 = 24;
const PACKET_HEADER: u64 = 16;
/// Of a file with microseconds, in this machine's order.
const MAGIC: u32 = 0xa1b2_c3d4;
/// Raw IP: as files name it.
const LINKTYPE_RAW: u32 = 101;
/// As libpcap is asked for it on Linux (`DLT_RAW`); it translates.
const DLT_RAW: Linktype = Linktype(12);

#[derive(Debug, thiserror::Error)]
pub enum FlaggedError {
    #[error("cannot write {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Capture { path: PathBuf, source: pcap::Error },
}

/// Packets that were written, and that could not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlaggedCounts {
    pub written: u64,
    pub lost: u64,
}

/// One file for each direction.
pub struct Flagged {
    files: [File; 2],
}

impl Flagged {
    #[must_use]
    pub fn new(inbound: PathBuf, outbound: PathBuf) -> Self {
        Self { files: [inbound, outbound].map(File::new) }
    }

    #[must_use]
    pub fn counts(&self) -> FlaggedCounts {
        let [inbound, outbound] = &self.files;
        FlaggedCounts { written: inbound.written + outbound.written, lost: inbound.lost + outbound.lost }
    }

    /// `head`: a packet's beginning, from its IP header on; `length`: how long the whole is. What is no IP is left out.
    pub fn write(&mut self, direction: Direction, unix_ns: i128, head: &[u8], length: u32) {
        self.files[direction as usize].write(unix_ns, head, length);
    }

    /// What waits goes to the files.
    pub fn flush(&mut self) {
        self.files.iter_mut().for_each(File::flush);
    }
}

/// Writes one. What cannot be written is counted, and writing is tried again with the next packet.
struct File {
    path: PathBuf,
    limit: u64,
    file: Option<Savefile>,
    length: u64,
    written: u64,
    /// Of those, handed to the file since it was flushed: libpcap tells only then whether they went there.
    waiting: u64,
    lost: u64,
}

impl File {
    fn new(path: PathBuf) -> Self {
        Self { path, limit: FILE_BYTES, file: None, length: 0, written: 0, waiting: 0, lost: 0 }
    }

    fn write(&mut self, unix_ns: i128, head: &[u8], length: u32) {
        if !matches!(head.first().map(|byte| byte >> 4), Some(4 | 6)) {
            return;
        }
        match self.try_write(unix_ns, head, length) {
            Ok(()) => {
                self.written += 1;
                self.waiting += 1;
            }
            Err(_) => {
                self.lost += 1;
                self.flush();
                self.file = None;
            }
        }
    }

    fn flush(&mut self) {
        if let Some(file) = &mut self.file
            && file.flush().is_err()
        {
            // Opened again, it is cut to its last whole packet.
            self.file = None;
            self.written -= self.waiting;
            self.lost += self.waiting;
        }
        self.waiting = 0;
    }

    fn try_write(&mut self, unix_ns: i128, head: &[u8], length: u32) -> Result<(), FlaggedError> {
        let bytes = PACKET_HEADER + head.len() as u64;
        if self.file.is_none() {
            self.open()?;
        }
        if self.length > FILE_HEADER && self.length + bytes > self.limit {
            self.flush();
            self.file = None;
            let mut rotated = self.path.as_os_str().to_owned();
            rotated.push(".1");
            fs::rename(&self.path, rotated).map_err(self.failed())?;
            self.open()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let micros = unix_ns.div_euclid(1000);
        let ts = libc::timeval {
            tv_sec: i64::try_from(micros.div_euclid(1_000_000)).unwrap_or(0),
            tv_usec: i64::try_from(micros.rem_euclid(1_000_000)).unwrap_or(0),
        };
        let caplen = u32::try_from(head.len()).unwrap_or(u32::MAX);
        let header = PacketHeader { ts, caplen, len: length.max(caplen) };
        file.write(&Packet { header: &header, data: head });
        self.length += bytes;
        Ok(())
    }

    /// Goes on with the file that is there, without a last packet that was not finished. One that is none of ours is set
    /// aside.
    fn open(&mut self) -> Result<(), FlaggedError> {
        self.length = match sound_length(&self.path) {
            Ok(Some(length)) => length,
            Ok(None) => {
                let mut aside = self.path.as_os_str().to_owned();
                aside.push(".damaged");
                fs::rename(&self.path, aside).map_err(self.failed())?;
                0
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(self.failed()(error)),
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&self.path)
            .map_err(self.failed())?;
        file.set_len(self.length).map_err(self.failed())?;
        let failed = |source| FlaggedError::Capture { path: self.path.clone(), source };
        let capture = Capture::dead(DLT_RAW).map_err(failed)?;
        let savefile =
            if self.length == 0 { capture.savefile(&self.path) } else { capture.savefile_append(&self.path) };
        self.file = Some(savefile.map_err(failed)?);
        self.length = self.length.max(FILE_HEADER);
        Ok(())
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> FlaggedError {
        let path = self.path.clone();
        |source| FlaggedError::File { path, source }
    }
}

/// Up to the end of the last whole packet; 0: an empty file. `None`: no file of ours.
fn sound_length(path: &Path) -> io::Result<Option<u64>> {
    // At most a little more than is written before it is rotated.
    if fs::metadata(path)?.len() > 2 * FILE_BYTES {
        return Ok(None);
    }
    let bytes = fs::read(path)?;
    let word = |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
    if bytes.is_empty() {
        return Ok(Some(0));
    }
    if word(0) != Some(MAGIC) || word(20) != Some(LINKTYPE_RAW) {
        return Ok(None);
    }
    let mut at = FILE_HEADER as usize;
    while let Some(caplen) = word(at + 8) {
        let end = at + PACKET_HEADER as usize + caplen as usize;
        if end > bytes.len() {
            break;
        }
        at = end;
    }
    Ok(Some(at as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: [u8; 20] = [0x45, 0, 0, 60, 1, 2, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 203, 0, 113, 9];

    fn lengths(path: &Path) -> Vec<(u32, u32, i64)> {
        let mut capture = Capture::from_file(path).unwrap();
        assert_eq!(capture.get_datalink(), DLT_RAW);
        let mut found = Vec::new();
        while let Ok(packet) = capture.next_packet() {
            found.push((packet.header.caplen, packet.header.len, packet.header.ts.tv_sec));
        }
        found
    }

    #[test]
    fn others_can_read_it_and_a_restart_goes_on() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("flagged.pcap");
        let mut flagged = File::new(path.clone());
        flagged.write(1_767_323_045_678_901_234, &HEAD, 60);
        flagged.write(0, &[0x00, 1, 2], 3);
        drop(flagged);
        // A crash in the middle of a packet.
        let mut torn = fs::read(&path).unwrap();
        torn.extend([1; 21]);
        fs::write(&path, torn).unwrap();
        let mut flagged = File::new(path.clone());
        flagged.write(1_767_323_046_000_000_000, &HEAD, 60);
        flagged.flush();
        assert_eq!(lengths(&path), [(20, 60, 1_767_323_045), (20, 60, 1_767_323_046)]);
        assert_eq!((flagged.written, flagged.lost), (1, 0));
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn is_rotated_once_and_sets_aside_what_is_not_its_own() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("flagged.pcap");
        fs::write(&path, "not a capture").unwrap();
        let mut flagged = File { limit: FILE_HEADER + 3 * 36, ..File::new(path.clone()) };
        for second in 0..8 {
            flagged.write(second * 1_000_000_000, &HEAD, 60);
        }
        flagged.flush();
        assert_eq!(lengths(&path).iter().map(|packet| packet.2).collect::<Vec<_>>(), [6, 7]);
        let rotated = home.path().join("flagged.pcap.1");
        assert_eq!(lengths(&rotated).iter().map(|packet| packet.2).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(fs::read(home.path().join("flagged.pcap.damaged")).unwrap(), b"not a capture");
    }

    #[test]
    fn what_comes_in_does_not_push_out_what_goes_out() {
        let home = tempfile::tempdir().unwrap();
        let (inbound, outbound) = (home.path().join("in"), home.path().join("out"));
        let mut flagged = Flagged::new(inbound.clone(), outbound.clone());
        flagged.files[0].limit = FILE_HEADER + 2 * 36;
        flagged.write(Direction::Outbound, 0, &HEAD, 60);
        for _ in 0..100 {
            flagged.write(Direction::Inbound, 0, &HEAD, 60);
        }
        flagged.flush();
        assert_eq!((lengths(&inbound).len(), lengths(&outbound).len()), (2, 1));
        assert_eq!(flagged.counts(), FlaggedCounts { written: 101, lost: 0 });
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let home = tempfile::tempdir().unwrap();
        let missing = home.path().join("later");
        let mut flagged = File::new(missing.join("flagged.pcap"));
        flagged.write(0, &HEAD, 60);
        assert_eq!((flagged.written, flagged.lost), (0, 1));
        fs::create_dir(&missing).unwrap();
        flagged.write(0, &HEAD, 60);
        assert_eq!((flagged.written, flagged.lost), (1, 1));
    }
}
