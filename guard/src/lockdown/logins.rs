//! Whether somebody has logged in since the flip: a session that survived does not prove that the next can be opened.

use std::{fs, net::IpAddr};

use ipnet::IpNet;

use super::{
    mark::Mark,
    sessions::{Behind, Family},
};
use crate::host::{picture::Picture, sock_diag::SocketState};

/// `/proc/PID/stat` counts in ticks, rounded down.
const TICK_NS: u64 = 10_000_000;

/// A login that came in after the lockdown, by the way that it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub remote: IpAddr,
    /// `None`: known by utmp alone.
    pub behind: Option<Behind>,
}

/// The first that is found.
#[must_use]
pub fn since(mark: &Mark, picture: &Picture) -> Option<Login> {
    by_sockets(mark, picture).or_else(|| by_utmp(mark, &fs::read("/run/utmp").unwrap_or_default()))
}

fn kept(ways: &[IpNet], address: IpAddr) -> bool {
    ways.iter().any(|way| way.contains(&address))
}

fn by_sockets(mark: &Mark, picture: &Picture) -> Option<Login> {
    let family = Family::of(&picture.processes);
    picture
        .sockets
        .all
        .iter()
        .filter(|socket| socket.protocol == 6 && socket.state == SocketState::Established)
        .filter(|socket| mark.ports.contains(&socket.local.port()) && kept(&mark.ways, socket.remote.ip()))
        .find_map(|socket| {
            let behind = family.behind(picture.sockets.holder(socket))?;
            // A connection at which nobody has logged in is no login.
            let new = behind.uid.is_some() && behind.since_ns >= mark.at_boot_ns().next_multiple_of(TICK_NS);
            new.then(|| Login { remote: socket.remote.ip(), behind: Some(behind) })
        })
}

/// `struct utmp` of glibc on x86_64 (utmp(5)).
fn by_utmp(mark: &Mark, utmp: &[u8]) -> Option<Login> {
    const SIZE: usize = 384;
    const USER_PROCESS: i16 = 7;
    utmp.as_chunks::<SIZE>().0.iter().find_map(|record| {
        let since = i32::from_le_bytes([record[340], record[341], record[342], record[343]]);
        let host = record[76..332].split(|byte| *byte == 0).next()?;
        let remote: IpAddr = std::str::from_utf8(host).ok()?.parse().ok()?;
        let new = i16::from_le_bytes([record[0], record[1]]) == USER_PROCESS && i64::from(since) > mark.at;
        (new && kept(&mark.ways, remote)).then_some(Login { remote, behind: None })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::host::{
        conntrack,
        processes::{Process, Processes},
        sock_diag::{Socket, Sockets},
    };

    fn mark() -> Mark {
        Mark {
            at: 1000,
            at_boot_ns: "5000000001".to_owned(),
            ways: vec!["198.51.100.0/24".parse().unwrap()],
            ports: vec![22],
            ..Mark::default()
        }
    }

    /// A connection to port `port` whose holder began at `ticks`, with a shell below it or not.
    fn picture(remote: &str, port: u16, ticks: u64, shell: bool) -> Picture {
        let process = |pid, parent, program: &str, sockets: Vec<u32>| Process {
            pid,
            parent,
            exe: Some(format!("/usr/bin/{program}").into()),
            start: ticks,
            sockets,
            ..Process::default()
        };
        let mut processes = vec![process(10, 1, "sshd", vec![7])];
        if shell {
            processes.push(process(11, 10, "bash", Vec::new()));
        }
        let socket = Socket {
            protocol: 6,
            state: SocketState::Established,
            local: format!("192.0.2.1:{port}").parse().unwrap(),
            remote: format!("{remote}:4000").parse().unwrap(),
            interface: 0,
            cookie: 7,
            inode: 7,
            uid: 0,
        };
        Picture {
            sockets: Sockets { all: vec![socket], ..Sockets::default() },
            processes: Processes::from_list(processes),
            tracked: Vec::new(),
            conntrack: conntrack::Source::Absent,
            own: HashSet::new(),
            unix_peers: HashMap::new(),
        }
    }

    #[test]
    fn only_a_login_of_after_the_flip_by_a_way_that_is_kept() {
        assert!(by_sockets(&mark(), &picture("198.51.100.7", 22, 501, true)).is_some());
        for (remote, port, ticks, shell) in [
            ("198.51.100.7", 22, 500, true),
            ("198.51.100.7", 22, 501, false),
            ("198.51.100.7", 23, 501, true),
            ("203.0.113.9", 22, 501, true),
        ] {
            let found = by_sockets(&mark(), &picture(remote, port, ticks, shell));
            assert_eq!(found, None, "{remote} {port} {ticks} {shell}");
        }
    }

    #[test]
    fn utmp_tells_of_it_too() {
        let record = |at: i32, host: &str, kind: u8| {
            let mut record = vec![0_u8; 384];
            record[0] = kind;
            record[76..76 + host.len()].copy_from_slice(host.as_bytes());
            record[340..344].copy_from_slice(&at.to_le_bytes());
            record
        };
        assert!(by_utmp(&mark(), &record(1001, "198.51.100.7", 7)).is_some());
        for other in [record(1000, "198.51.100.7", 7), record(1001, "203.0.113.9", 7), record(1001, "198.51.100.7", 8)]
        {
            assert_eq!(by_utmp(&mark(), &other), None);
        }
        assert_eq!(by_utmp(&mark(), &[7; 100]), None);
    }
}
