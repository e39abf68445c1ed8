//! A stream as a file: libpcap reads nothing else.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use flate2::read::MultiGzDecoder;

/// First bytes of what gzip made (RFC 1952).
pub const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The end of a pipe that a thread fills.
#[derive(Debug)]
pub struct Pipe {
    end: OwnedFd,
    failure: Failure,
}

/// Why the stream ended before its end. libpcap tells it only where that is within a packet.
#[derive(Clone, Debug, Default)]
pub struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.lock().map_or(None, |why| why.clone())
    }
}

impl Pipe {
    /// The thread ends with the stream, or with whoever reads it.
    pub fn of(mut stream: Box<dyn Read + Send>) -> io::Result<Self> {
        let (end, into) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let failure = Failure::default();
        let told = failure.clone();
        std::thread::Builder::new().name("guard-unpack".to_owned()).spawn(move || {
            let mut into = File::from(into);
            if let Err(error) = io::copy(&mut stream, &mut into)
                && error.kind() != io::ErrorKind::BrokenPipe
                && let Ok(mut why) = told.0.lock()
            {
                *why = Some(error.to_string());
            }
            // Only now does the reader see the end.
            drop(into);
        })?;
        Ok(Self { end, failure })
    }

    /// Of a file that gzip made; `None` if it is none.
    pub fn unpacking(path: &Path) -> io::Result<Option<Self>> {
        if !path.metadata()?.is_file() {
            return Ok(None);
        }
        let mut start = [0; 2];
        match File::open(path)?.read_exact(&mut start) {
            Ok(()) if start == GZIP => Ok(Some(Self::of(Box::new(MultiGzDecoder::new(File::open(path)?)))?)),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            _ => Ok(None),
        }
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.end.as_raw_fd()).into()
    }

    #[must_use]
    pub fn failure(&self) -> Failure {
        self.failure.clone()
    }
}
