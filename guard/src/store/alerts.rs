//! What the watch told: one row an alert, from its beginning to its end.

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::Span;

/// In a table of its own, which a store from before has not: made when it is opened for writing.
pub const TABLE: &str = "
CREATE TABLE IF NOT EXISTS alerts (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, over INTEGER, kind TEXT NOT NULL, target TEXT NOT NULL, hook TEXT NOT NULL,
    severity INTEGER NOT NULL, what TEXT NOT NULL, who TEXT, repaired INTEGER NOT NULL, packets INTEGER
) STRICT;
";

/// So many are kept, the newest.
const MOST: i64 = 10_000;

/// One alert. Field names are stable; times are Unix time in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    pub at: i64,
    /// When it was over; left out: it lasts, or is of a kind that does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<i64>,
    /// As in records.
    pub kind: String,
    pub target: String,
    pub hook: String,
    /// 1 is the gravest.
    pub severity: u8,
    pub what: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    pub repaired: bool,
    /// About how many packets passed unjudged meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
}

/// One that is over ends the row of its beginning.
pub fn put(db: &Connection, alert: &Alert) -> rusqlite::Result<()> {
    let Alert { at, over, kind, target, hook, severity, what, by, repaired, packets } = alert;
    let packets = packets.map(u64::cast_signed);
    if over.is_some() {
        let ended = db
            .prepare_cached(
                "UPDATE alerts SET over = ?1, repaired = ?2, packets = ?3 WHERE id =
                 (SELECT max(id) FROM alerts WHERE over IS NULL AND kind = ?4 AND target = ?5 AND hook = ?6)",
            )?
            .execute(params![over, repaired, packets, kind, target, hook])?;
        if ended > 0 {
            return Ok(());
        }
    }
    db.prepare_cached(
        "INSERT INTO alerts (at, over, kind, target, hook, severity, what, who, repaired, packets)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![at, over, kind, target, hook, severity, what, by, repaired, packets])?;
    db.prepare_cached("DELETE FROM alerts WHERE id <= (SELECT max(id) FROM alerts) - ?1")?.execute([MOST])?;
    Ok(())
}

pub fn forget(db: &Connection, oldest: i64) -> rusqlite::Result<()> {
    db.execute("DELETE FROM alerts WHERE at < ?1", [oldest])?;
    Ok(())
}

/// Of a span, the newest first. A store from before alerts were kept has none.
pub fn read(db: &Connection, span: Span) -> rusqlite::Result<Vec<Alert>> {
    let there: i64 =
        db.query_row("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'alerts'", [], |row| {
            row.get(0)
        })?;
    if there == 0 {
        return Ok(Vec::new());
    }
    let mut rows = db.prepare(
        "SELECT at, over, kind, target, hook, severity, what, who, repaired, packets FROM alerts
         WHERE at <= ?2 AND coalesce(over, at) >= ?1 ORDER BY id DESC",
    )?;
    rows.query_map([span.since, span.until], |row| {
        Ok(Alert {
            at: row.get(0)?,
            over: row.get(1)?,
            kind: row.get(2)?,
            target: row.get(3)?,
            hook: row.get(4)?,
            severity: row.get(5)?,
            what: row.get(6)?,
            by: row.get(7)?,
            repaired: row.get(8)?,
            packets: row.get::<_, Option<i64>>(9)?.map(i64::cast_unsigned),
        })
    })?
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_one_row_from_its_beginning_to_its_end() {
        let db = Connection::open_in_memory().unwrap();
        assert!(read(&db, Span::ALL).unwrap().is_empty(), "a store from before");
        db.execute_batch(TABLE).unwrap();
        let begun =
            Alert { at: 5, kind: "hook_detached".into(), target: "eth0".into(), severity: 1, ..Alert::default() };
        put(&db, &begun).unwrap();
        put(&db, &Alert { at: 6, kind: "packet_socket".into(), severity: 3, ..Alert::default() }).unwrap();
        put(&db, &Alert { over: Some(9), repaired: true, packets: Some(14), ..begun.clone() }).unwrap();
        let all = read(&db, Span::ALL).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[1].at, all[1].over, all[1].repaired, all[1].packets), (5, Some(9), true, Some(14)));
        assert_eq!(read(&db, Span { since: 10, until: 20 }).unwrap(), []);
        assert_eq!(read(&db, Span { since: 8, until: 20 }).unwrap().len(), 1, "it lasted until then");
        forget(&db, 6).unwrap();
        assert_eq!(read(&db, Span::ALL).unwrap().len(), 1);
    }
}
