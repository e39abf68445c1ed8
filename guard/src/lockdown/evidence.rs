//! The volatile state, saved before anything changes. It holds nothing up: after its time containment goes ahead, and the
//! rest follows.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::snapshot::{self, Manifest, Options, Running, WriteError, Writer};

/// How long the rest may take after the flip.
const REST: Duration = Duration::from_secs(60);

/// A snapshot that is being written.
pub struct Evidence {
    place: PathBuf,
    writer: Writer<io::Sink>,
    running: Running,
    sections: usize,
    bytes: usize,
}

impl Evidence {
    /// `place` must not be there yet.
    pub fn begin(place: &Path, within: Duration) -> Result<Self, WriteError> {
        let writer = Writer::directory(place)?;
        // Sections may wait for one another as long as the whole may take.
        let running = snapshot::start(&Options { proc: "/proc".into(), within: within + REST });
        Ok(Self { place: place.to_owned(), writer, running, sections: 0, bytes: 0 })
    }

    /// Takes what ends in this time; whether that was all.
    pub fn take(&mut self, within: Duration) -> Result<bool, WriteError> {
        let until = Instant::now() + within;
        while let Some(section) = self.running.next(until) {
            self.writer.section(&section)?;
            self.sections += 1;
            self.bytes += section.bytes.len();
        }
        Ok(self.running.is_done())
    }

    /// The rest, and the manifest.
    pub fn finish(mut self) -> Result<Manifest, WriteError> {
        self.take(REST)?;
        for section in self.running.rest() {
            self.writer.section(&section)?;
        }
        self.writer.finish()
    }

    #[must_use]
    pub fn spoken(&self) -> String {
        format!(
            "{} sections, {:.1} MB, {} (sha256 manifest)",
            self.sections,
            self.bytes as f64 / 1e6,
            self.place.display()
        )
    }
}
