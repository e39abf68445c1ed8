//! What remotes were asked as: names by address, so that a new daemon knows what the one before it knew.

use std::{net::IpAddr, sync::Arc};

use rusqlite::{Connection, params};

use super::{MEMORY_US, read};

/// In a table of its own, which a store from before has not: made when it is opened for writing.
pub const TABLE: &str = "
CREATE TABLE IF NOT EXISTS asked (
    address BLOB NOT NULL, name TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (address, name)
) WITHOUT ROWID, STRICT;
CREATE INDEX IF NOT EXISTS asked_at ON asked (at);
";

/// So many are kept, those that were asked for last.
const MOST: i64 = 65_536;

/// An address, what it was asked as, and when that was answered last (Unix time in microseconds).
pub type Name = (IpAddr, Arc<str>, i64);

pub fn put(db: &Connection, names: &[Name], now: i64) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(
        "INSERT INTO asked VALUES (?1, ?2, ?3) ON CONFLICT (address, name) DO UPDATE SET at = max(at, excluded.at)",
    )?;
    for (address, name, at) in names {
        let bytes: &[u8] = match address {
            IpAddr::V4(address) => &address.octets(),
            IpAddr::V6(address) => &address.octets(),
        };
        statement.execute(params![bytes, name, at])?;
    }
    forget(db, now)
}

/// What is older than a label is good for, and what is beyond the bound.
pub fn forget(db: &Connection, now: i64) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM asked WHERE at < ?1")?.execute([now.saturating_sub(MEMORY_US)])?;
    let count: i64 = db.prepare_cached("SELECT count(*) FROM asked")?.query_row([], |row| row.get(0))?;
    if count > MOST {
        db.prepare_cached(
            "DELETE FROM asked WHERE (address, name) IN (SELECT address, name FROM asked ORDER BY at LIMIT ?1)",
        )?
        .execute([count - MOST])?;
    }
    Ok(())
}

/// The oldest first. A store from before names were kept has none.
pub fn all(db: &Connection) -> rusqlite::Result<Vec<Name>> {
    let there: i64 =
        db.query_row("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'asked'", [], |row| {
            row.get(0)
        })?;
    if there == 0 {
        return Ok(Vec::new());
    }
    let mut statement = db.prepare("SELECT address, name, at FROM asked ORDER BY at LIMIT ?1")?;
    let mut rows = statement.query([MOST])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        if let Some(address) = read::address(row.get_ref(0)?) {
            found.push((address, row.get::<_, Box<str>>(1)?.into(), row.get(2)?));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_within_their_bounds() {
        let db = Connection::open_in_memory().unwrap();
        assert!(all(&db).unwrap().is_empty(), "a store from before");
        db.execute_batch(TABLE).unwrap();
        let name = |address: &str, name: &str, at| -> Name { (address.parse().unwrap(), name.into(), at) };
        let day = super::super::DAY_US;
        put(&db, &[name("192.0.2.1", "b.example", day), name("2001:db8::1", "a.example", 2 * day)], 2 * day).unwrap();
        put(&db, &[name("192.0.2.1", "b.example", 3 * day), name("192.0.2.1", "c.example", 1)], 3 * day).unwrap();
        let wanted = [
            name("192.0.2.1", "c.example", 1),
            name("2001:db8::1", "a.example", 2 * day),
            name("192.0.2.1", "b.example", 3 * day),
        ];
        assert_eq!(all(&db).unwrap(), wanted);
        // An answer that comes late makes nothing older.
        put(&db, &[name("192.0.2.1", "b.example", day)], 15 * day).unwrap();
        assert_eq!(all(&db).unwrap(), wanted[1..], "14 days");
        let many: Vec<Name> = (0..MOST + 10)
            .map(|number| name("198.51.100.1", &format!("n{number}.example"), 16 * day + number))
            .collect();
        put(&db, &many, 16 * day).unwrap();
        let kept = all(&db).unwrap();
        assert_eq!(kept.len() as i64, MOST);
        assert_eq!((&kept[0].1, kept.last().unwrap().2), (&"n10.example".into(), 16 * day + MOST + 9));
    }
}
