//! Boot time (what the programs stamp) and wall time (what people read).

use std::io;

use jiff::Timestamp;

/// Nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`), as the programs have them.
#[must_use]
pub fn boot_now() -> u64 {
    read(libc::CLOCK_BOOTTIME).unwrap_or(0) as u64
}

/// Unix time in nanoseconds.
#[must_use]
pub fn unix_now() -> i128 {
    read(libc::CLOCK_REALTIME).unwrap_or(0)
}

/// How far wall time is ahead of boot time, at one moment. A clock step makes it another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Unix time at boot, in nanoseconds.
    boot: i128,
}

impl Clock {
    /// Reads both clocks. The pair whose readings lie closest together of a few counts.
    pub fn read() -> io::Result<Self> {
        let mut best: Option<(i128, i128)> = None;
        for _ in 0..3 {
            let before = read(libc::CLOCK_BOOTTIME)?;
            let unix = read(libc::CLOCK_REALTIME)?;
            let after = read(libc::CLOCK_BOOTTIME)?;
            let width = after - before;
            if best.is_none_or(|(narrowest, _)| width < narrowest) {
                best = Some((width, unix - (before + after) / 2));
            }
        }
        Ok(Self { boot: best.map_or(0, |(_, boot)| boot) })
    }

    #[must_use]
    pub const fn at_boot(boot: i128) -> Self {
        Self { boot }
    }

    #[must_use]
    pub fn unix_ns(self, boot_ns: u64) -> i128 {
        self.boot + i128::from(boot_ns)
    }

    /// By how much wall time was stepped between two readings, in nanoseconds.
    #[must_use]
    pub fn stepped_since(self, earlier: Self) -> i128 {
        self.boot - earlier.boot
    }

    /// As records have it: `2026-01-02T03:04:05.678901+0000`.
    #[must_use]
    pub fn timestamp(self, boot_ns: u64) -> String {
        timestamp(self.unix_ns(boot_ns))
    }
}

/// Suricata's form, in UTC, with microseconds.
#[must_use]
pub fn timestamp(unix_ns: i128) -> String {
    match Timestamp::from_nanosecond(unix_ns) {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%S%.6f+0000").to_string(),
        // Beyond the year 9999: only a broken clock gets here.
        Err(_) => "1970-01-01T00:00:00.000000+0000".to_owned(),
    }
}

/// For people: `2026-01-02 03:04:05Z`.
#[must_use]
pub fn for_people(unix_ns: i128) -> String {
    Timestamp::from_nanosecond(unix_ns)
        .map_or_else(|_| "?".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

fn read(clock: libc::clockid_t) -> io::Result<i128> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec into a place that outlives the call.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_as_suricata_writes_it() {
        // date -u -d '2026-01-02 03:04:05' +%s
        assert_eq!(timestamp(1_767_323_045_678_901_234), "2026-01-02T03:04:05.678901+0000");
        assert_eq!(timestamp(1_767_323_045_000_000_000), "2026-01-02T03:04:05.000000+0000");
        assert_eq!(for_people(1_767_323_045_678_901_234), "2026-01-02 03:04:05Z");
        assert_eq!(timestamp(i128::MAX), "1970-01-01T00:00:00.000000+0000");
    }

    #[test]
    fn boot_time_becomes_wall_time() {
        let clock = Clock::read().unwrap();
        assert!((clock.unix_ns(boot_now()) - unix_now()).abs() < 50_000_000);
        assert!(clock.stepped_since(Clock::read().unwrap()).abs() < 50_000_000);
        assert_eq!(Clock::at_boot(1_767_323_045_000_000_000).timestamp(678_901_000), "2026-01-02T03:04:05.678901+0000");
    }
}
