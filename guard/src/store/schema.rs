//! The tables, and opening the file.

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::StoreError;

/// Format of the tables (`PRAGMA user_version`). A newer file is refused, an older one brought up to it.
pub const VERSION: i64 = 1;

/// "guar": which program's file this is (`PRAGMA application_id`).
const APPLICATION: i64 = 0x6775_6172;

/// Times are Unix time in microseconds. `texts`, `whos` and `groups` have the time of their last use, by which they are
/// forgotten. Directions, fates and flags are numbered in `write.rs`.
const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY) WITHOUT ROWID, STRICT;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, host TEXT NOT NULL, machine TEXT NOT NULL, boot TEXT NOT NULL,
    began INTEGER NOT NULL, last INTEGER NOT NULL,
    lost_events INTEGER NOT NULL DEFAULT 0, lost_packets INTEGER NOT NULL DEFAULT 0,
    lost_records INTEGER NOT NULL DEFAULT 0, lost_store INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE texts (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, last INTEGER NOT NULL) STRICT;
CREATE TABLE whos (id INTEGER PRIMARY KEY, hash INTEGER NOT NULL UNIQUE, json TEXT NOT NULL, last INTEGER NOT NULL) STRICT;
CREATE TABLE groups (
    id INTEGER PRIMARY KEY, hash INTEGER NOT NULL UNIQUE,
    program TEXT, direction INTEGER NOT NULL, remote_kind INTEGER NOT NULL, remote TEXT NOT NULL,
    protocol INTEGER NOT NULL, port INTEGER NOT NULL, denied INTEGER NOT NULL,
    first INTEGER NOT NULL, fresh INTEGER NOT NULL, last INTEGER NOT NULL
) STRICT;
CREATE TABLE flows (
    id INTEGER PRIMARY KEY, flow_id INTEGER NOT NULL, ended INTEGER NOT NULL, run INTEGER NOT NULL,
    grp INTEGER NOT NULL, who INTEGER, pid INTEGER, started INTEGER, parents BLOB,
    first INTEGER NOT NULL, last INTEGER NOT NULL, fate INTEGER NOT NULL, flags INTEGER NOT NULL,
    protocol INTEGER NOT NULL,
    remote BLOB NOT NULL, remote_port INTEGER NOT NULL, local BLOB NOT NULL, local_port INTEGER NOT NULL,
    scope INTEGER NOT NULL, interface INTEGER, rule INTEGER, reason INTEGER NOT NULL, generation INTEGER NOT NULL,
    packets_in INTEGER NOT NULL, packets_out INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
    names INTEGER
) STRICT;
CREATE UNIQUE INDEX flows_open ON flows (flow_id) WHERE ended = 0;
CREATE INDEX flows_group ON flows (grp);
CREATE INDEX flows_last ON flows (last);
CREATE TABLE heads (flow INTEGER PRIMARY KEY, head BLOB NOT NULL) STRICT;
CREATE TABLE unsolicited (
    slot INTEGER PRIMARY KEY, flow_id INTEGER NOT NULL, run INTEGER NOT NULL, time INTEGER NOT NULL,
    last INTEGER NOT NULL, fate INTEGER NOT NULL, flags INTEGER NOT NULL,
    remote BLOB NOT NULL, remote_port INTEGER NOT NULL, local BLOB NOT NULL, local_port INTEGER NOT NULL,
    protocol INTEGER NOT NULL, scope INTEGER NOT NULL, interface INTEGER, rule INTEGER, reason INTEGER NOT NULL,
    generation INTEGER NOT NULL, packets INTEGER NOT NULL, bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE background (
    hour INTEGER NOT NULL, protocol INTEGER NOT NULL, port INTEGER NOT NULL, fate INTEGER NOT NULL,
    flows INTEGER NOT NULL, packets INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (hour, protocol, port, fate)
) WITHOUT ROWID, STRICT;
CREATE TABLE listeners (
    protocol INTEGER NOT NULL, port INTEGER NOT NULL, address BLOB NOT NULL, program TEXT NOT NULL,
    first INTEGER NOT NULL, fresh INTEGER NOT NULL, last INTEGER NOT NULL, pid INTEGER NOT NULL,
    PRIMARY KEY (protocol, port, address, program)
) WITHOUT ROWID, STRICT;
";

/// For the writer: makes it where it is missing, only its owner's.
pub fn open_for_writing(path: &Path, now: i64) -> Result<Connection, StoreError> {
    // SQLite would make it as the umask says.
    let made = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
    drop(made);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let in_context = |source| told(path, source);
    let connection = Connection::open_with_flags(path, flags).map_err(in_context)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(in_context)?;
    distrust(&connection).map_err(in_context)?;
    let version = identify(&connection, path)?;
    if version == 0 {
        // Pages are given back a few at a time, so that a bound that was made smaller takes effect.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(in_context)?;
    }
    connection.pragma_update(None, "journal_mode", "WAL").map_err(in_context)?;
    // A crash of the machine costs the last moments, never the file.
    connection.pragma_update(None, "synchronous", "NORMAL").map_err(in_context)?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20).map_err(in_context)?;
    connection.pragma_update(None, "cache_size", -16_384).map_err(in_context)?;
    if version == 0 {
        connection
            .execute_batch(&format!(
                "BEGIN IMMEDIATE;{TABLES}INSERT INTO meta VALUES ('began', {now});
                 PRAGMA application_id = {APPLICATION};PRAGMA user_version = {VERSION};COMMIT;"
            ))
            .map_err(in_context)?;
    }
    connection.execute_batch(super::alerts::TABLE).map_err(in_context)?;
    connection.execute_batch(super::asked::TABLE).map_err(in_context)?;
    Ok(connection)
}

/// For a command. Root is not needed where the file's mode lets its reader read it.
pub fn open_for_reading(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let in_context = |source| told(path, source);
    let open = |immutable: bool| -> rusqlite::Result<Connection> {
        let connection = if immutable {
            Connection::open_with_flags(uri(path), flags | OpenFlags::SQLITE_OPEN_URI)?
        } else {
            Connection::open_with_flags(path, flags)?
        };
        connection.busy_timeout(Duration::from_secs(5))?;
        distrust(&connection)?;
        connection.pragma_update(None, "cache_size", -8192)?;
        // Opening reads nothing yet.
        connection.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
        Ok(connection)
    };
    // Where nobody writes there is no log beside it, and who cannot make one (in a directory of root's: READONLY) reads the
    // file as it is.
    let needs_a_log = |error: &rusqlite::Error| {
        matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
    };
    let connection = match open(false) {
        Err(error) if needs_a_log(&error) && !wal(path).exists() => open(true),
        opened => opened,
    }
    .map_err(in_context)?;
    match identify(&connection, path)? {
        0 => Err(StoreError::Foreign { path: path.to_owned() }),
        _ => Ok(connection),
    }
}

/// 0: new. Refuses what another program or a later guard wrote.
fn identify(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let in_context = |source| told(path, source);
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (version, application) =
        (pragma("user_version").map_err(in_context)?, pragma("application_id").map_err(in_context)?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0)).map_err(in_context)?;
    match (version, application) {
        (0, 0) if tables == 0 => Ok(0),
        (VERSION, APPLICATION) => Ok(version),
        (found, APPLICATION) => Err(StoreError::Version { path: path.to_owned(), found }),
        _ => Err(StoreError::Foreign { path: path.to_owned() }),
    }
}

/// The file may be anybody's by the time that it is read elsewhere: its schema must not run functions or lead SQLite
/// outside of a page.
fn distrust(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    connection.pragma_update(None, "cell_size_check", "ON")
}

/// An SQLite error with its file, damage told from the rest.
pub fn told(path: &Path, source: rusqlite::Error) -> StoreError {
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            StoreError::Damaged { path: path.to_owned(), detail: source.to_string() }
        }
        _ => StoreError::Sqlite { path: path.to_owned(), source },
    }
}

/// `immutable=1`: nobody writes it, so no lock and no log is needed.
fn uri(path: &Path) -> String {
    use std::{fmt::Write as _, os::unix::ffi::OsStrExt};
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(char::from(*byte)),
            byte => {
                // Writing to a String cannot fail.
                let _ = write!(uri, "%{byte:02x}");
            }
        }
    }
    uri.push_str("?immutable=1");
    uri
}

/// Its write-ahead log.
pub fn wal(path: &Path) -> std::path::PathBuf {
    beside(path, "-wal")
}

/// `store.db` and a suffix.
pub fn beside(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Moves a file that cannot be used out of the way, with its log. Returns its new name.
pub fn set_aside(path: &Path, unix_ns: i128) -> Result<std::path::PathBuf, StoreError> {
    let time: String =
        crate::record::clock::timestamp(unix_ns).chars().take(19).filter(char::is_ascii_alphanumeric).collect();
    let mut aside = beside(path, &format!(".damaged-{time}Z"));
    let mut number = 1;
    while aside.exists() {
        number += 1;
        aside = beside(path, &format!(".damaged-{time}Z-{number}"));
    }
    let io = |source| StoreError::Io { path: path.to_owned(), source };
    fs::rename(path, &aside).map_err(io)?;
    // With its log, which may hold what can still be read; the index of the log is made anew.
    let _ = fs::rename(wal(path), beside(&aside, "-wal"));
    let _ = fs::remove_file(beside(path, "-shm"));
    let _ = fs::set_permissions(&aside, fs::Permissions::from_mode(0o600));
    Ok(aside)
}
