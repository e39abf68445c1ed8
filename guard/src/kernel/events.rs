//! The ring buffer: the doorbell. Only one process may take events, the daemon.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{Map, MapData, RingBuf};
use guard_common::abi::Event;

use super::{Instance, KernelError};

impl Instance {
    /// Readable when events wait.
    #[must_use]
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Takes at most `most` events that wait; how many there were.
    pub fn drain_events(&mut self, most: usize, mut each: impl FnMut(&Event)) -> Result<usize, KernelError> {
        let ring = match &mut self.ring {
            Some(ring) => ring,
            None => {
                let path = self.pins.map("EVENTS");
                let failed = |message: String| KernelError::Load { what: "cannot open EVENTS".to_owned(), message };
                let map = MapData::from_pin(&path).map_err(|error| failed(error.to_string()))?;
                let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(|error| failed(error.to_string()))?;
                self.ring.insert(ring)
            }
        };
        let mut taken = 0;
        while taken < most
            && let Some(item) = ring.next()
        {
            taken += 1;
            if let Some(event) = event_from(&item) {
                each(&event);
            }
        }
        Ok(taken)
    }
}

/// `None`: another version's, which an adopted map of this ABI never holds.
fn event_from(bytes: &[u8]) -> Option<Event> {
    // SAFETY: an Event is numbers only, so any bytes are one; as many are read as it is long, from any alignment.
    (bytes.len() >= size_of::<Event>()).then(|| unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}
