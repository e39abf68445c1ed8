//! What listens on this host, and since when.

use std::net::IpAddr;

use rusqlite::{Connection, params};

use super::write::octets;
use crate::host::{processes::Processes, sock_diag};

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listener {
    pub protocol: u8,
    pub port: u16,
    pub address: IpAddr,
    /// Its executable, or its name; empty if unknown.
    pub program: String,
    pub pid: u32,
}

/// Looks now. What listens on loopback only is left out: nobody outside can reach it.
pub fn listeners_now() -> anyhow::Result<Vec<Listener>> {
    let sockets = sock_diag::sockets()?;
    let processes = Processes::read()?;
    let listeners = sockets.listeners();
    let ephemeral = ephemeral_ports();
    let mut found: Vec<Listener> = sockets
        .all
        .iter()
        .filter(|socket| listeners.contains(&(socket.protocol, socket.local)) && socket.remote.port() == 0)
        .filter(|socket| !socket.local.ip().to_canonical().is_loopback() && socket.local.port() != 0)
        // A UDP client waits for its answer just as a server waits to be asked.
        .filter(|socket| socket.protocol == 6 || !ephemeral.contains(&socket.local.port()))
        .map(|socket| {
            let holder = processes.holders(sockets.holder(socket)).next();
            let program = holder.map_or_else(String::new, |process| match &process.exe {
                Some(exe) => exe.to_string_lossy().into_owned(),
                None => process.comm.clone(),
            });
            Listener {
                protocol: socket.protocol,
                port: socket.local.port(),
                address: socket.local.ip().to_canonical(),
                program,
                pid: holder.map_or(0, |process| process.pid),
            }
        })
        .collect();
    found.sort_unstable();
    found.dedup_by(|a, b| (a.protocol, a.port, a.address, &a.program) == (b.protocol, b.port, b.address, &b.program));
    Ok(found)
}

/// Ports that the kernel gives to those who ask for any.
fn ephemeral_ports() -> std::ops::RangeInclusive<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = range.split_whitespace().filter_map(|end| end.parse().ok());
    ends.next().unwrap_or(32768)..=ends.next().unwrap_or(60999)
}

pub fn put(db: &Connection, listeners: &[Listener], now: i64, memory: i64) -> rusqlite::Result<()> {
    let mut put = db.prepare_cached(
        "INSERT INTO listeners VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?5, ?6)
         ON CONFLICT DO UPDATE SET fresh = iif(excluded.last - last > ?7, excluded.last, fresh), last = excluded.last,
         pid = excluded.pid",
    )?;
    for listener in listeners {
        put.execute(params![
            listener.protocol,
            listener.port,
            octets(listener.address).as_slice(),
            listener.program,
            now,
            listener.pid,
            memory,
        ])?;
    }
    Ok(())
}

pub fn forget(db: &Connection, oldest: i64) -> rusqlite::Result<()> {
    // Whoever opens ports without end fills nothing: the newest are kept.
    const MOST: i64 = 10_000;
    db.execute("DELETE FROM listeners WHERE last < ?1", [oldest])?;
    db.execute(
        "DELETE FROM listeners WHERE last < (SELECT last FROM listeners ORDER BY last DESC LIMIT 1 OFFSET ?1)",
        [MOST],
    )?;
    Ok(())
}
