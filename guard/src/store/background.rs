//! Unsolicited inbound: sums by hour, protocol and service, and a ring of the newest flows.

use rusqlite::{Connection, params};

use super::intern::fate_number;
use crate::review::observed::Observed;

const HOUR_US: i64 = 3_600_000_000;

/// What came from strangers and was not let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Background {
    pub lines: Vec<BackgroundLine>,
}

/// One protocol; and one service, where something listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackgroundLine {
    pub protocol: u8,
    /// `None`: ports where nothing listens, or of which that is not known.
    pub port: Option<u16>,
    pub flows: u64,
    pub packets: u64,
    pub bytes: u64,
    /// Would have been denied: audit mode.
    pub passed: u64,
    pub addresses: u64,
    pub ports: u64,
    /// Addresses and ports are of the newest flows only: there were more than are kept.
    pub at_least: bool,
}

/// The port that the sums are kept by; -1 where nothing listens.
fn port(flow: &Observed) -> i64 {
    if flow.listening == Some(true) { i64::from(flow.key.service(flow.direction)) } else { -1 }
}

/// The sum that a flow counts in, from its first change to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    hour: i64,
    protocol: u8,
    port: i64,
    fate: i64,
}

impl Sum {
    pub fn of(flow: &Observed) -> Self {
        Self {
            hour: flow.last.div_euclid(HOUR_US),
            protocol: flow.key.protocol(),
            port: port(flow),
            fate: fate_number(flow.fate),
        }
    }

    /// Adds; less than nothing takes back.
    pub fn add(&self, db: &Connection, flows: i64, packets: i64, bytes: i64) -> rusqlite::Result<()> {
        let Self { hour, protocol, port, fate } = self;
        db.prepare_cached(
            "INSERT INTO background VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT DO UPDATE SET flows = flows + excluded.flows, packets = packets + excluded.packets,
             bytes = bytes + excluded.bytes",
        )?
        .execute(params![hour, protocol, port, fate, flows, packets, bytes])?;
        if flows < 0 {
            db.prepare_cached(
                "DELETE FROM background WHERE hour = ?1 AND protocol = ?2 AND port = ?3 AND fate = ?4 AND flows <= 0",
            )?
            .execute(params![hour, protocol, port, fate])?;
        }
        Ok(())
    }
}

/// After the newest. Slots above a bound that was lowered are given back.
pub fn next_slot(db: &Connection, slots: u32) -> rusqlite::Result<i64> {
    db.execute("DELETE FROM unsolicited WHERE slot >= ?1", [slots])?;
    db.query_row(
        "SELECT coalesce((SELECT slot + 1 FROM unsolicited ORDER BY time DESC, slot DESC LIMIT 1), 0)",
        [],
        |row| row.get(0),
    )
}

pub fn forget(db: &Connection, oldest: i64) -> rusqlite::Result<()> {
    db.execute("DELETE FROM background WHERE hour < ?1", [oldest.div_euclid(HOUR_US)])?;
    db.execute("DELETE FROM unsolicited WHERE last < ?1", [oldest])?;
    Ok(())
}

/// Sums since the hour that holds `since`.
pub fn read(db: &Connection, since: i64, until: i64) -> rusqlite::Result<Background> {
    let mut rows = db.prepare(
        "SELECT protocol, port, sum(flows), sum(packets), sum(bytes), sum(iif(fate <> 1, flows, 0)) FROM background
         WHERE hour >= ?1 AND hour <= ?2 GROUP BY protocol, port ORDER BY protocol, port",
    )?;
    let mut lines = rows
        .query_map([since.div_euclid(HOUR_US), until.div_euclid(HOUR_US)], |row| {
            let port: i64 = row.get(1)?;
            let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
            Ok(BackgroundLine {
                protocol: row.get(0)?,
                port: u16::try_from(port).ok(),
                flows: number(2)?,
                packets: number(3)?,
                bytes: number(4)?,
                passed: number(5)?,
                addresses: 0,
                ports: 0,
                at_least: false,
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    for line in &mut lines {
        let (addresses, ports, kept): (i64, i64, i64) = db.query_row(
            "SELECT count(DISTINCT remote), count(DISTINCT local_port), count(*) FROM unsolicited
             WHERE protocol = ?1 AND last >= ?2 AND last <= ?3
             AND CASE WHEN ?4 < 0 THEN flags & 8 = 0 ELSE flags & 8 <> 0 AND local_port = ?4 END",
            params![line.protocol, since.div_euclid(HOUR_US) * HOUR_US, until, line.port.map_or(-1, i64::from)],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        (line.addresses, line.ports) = (addresses.cast_unsigned(), ports.cast_unsigned());
        line.at_least = kept.cast_unsigned() < line.flows;
    }
    Ok(Background { lines })
}
