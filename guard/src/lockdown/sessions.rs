//! Logins over SSH, as far as sockets and processes tell: who sits behind a connection, on which terminal, since when.

use std::collections::HashMap;

use crate::host::{
    processes::{Process, Processes},
    ssh,
};

/// Clock ticks of `/proc/PID/stat` to boot-time nanoseconds: USER_HZ is 100 wherever guard runs.
const NS_PER_TICK: u64 = 10_000_000;

/// What runs behind one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Boot-time nanoseconds at which the process that holds the connection began.
    pub since_ns: u64,
    /// Of whatever was started for the person: the shell, the command. `None`: nobody has logged in (yet).
    pub uid: Option<u32>,
    /// It has a terminal.
    pub terminal: bool,
    /// All processes behind the connection, the holders first.
    pub pids: Vec<u32>,
}

/// Children by their parents: asked for each of many connections.
pub struct Family<'a> {
    processes: &'a Processes,
    children: HashMap<u32, Vec<u32>>,
}

impl<'a> Family<'a> {
    #[must_use]
    pub fn of(processes: &'a Processes) -> Self {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for process in processes.iter() {
            children.entry(process.parent).or_default().push(process.pid);
        }
        children.values_mut().for_each(|pids| pids.sort_unstable());
        Self { processes, children }
    }

    /// Behind the socket with this inode. `None`: no process is seen to hold it.
    #[must_use]
    pub fn behind(&self, inode: u32) -> Option<Behind> {
        let holders: Vec<&Process> = self.processes.holders(inode).collect();
        // Privileges are dropped in children: the first of them is the session's beginning.
        let since_ns = holders.iter().map(|process| process.start).min()?.saturating_mul(NS_PER_TICK);
        let mut behind = Behind { since_ns, ..Behind::default() };
        let mut todo: Vec<u32> = holders.iter().map(|process| process.pid).collect();
        let mut at = 0;
        while let Some(&pid) = todo.get(at) {
            at += 1;
            for child in self.children.get(&pid).into_iter().flatten() {
                if !todo.contains(child) {
                    todo.push(*child);
                }
            }
        }
        for pid in &todo {
            let Some(process) = self.processes.get(*pid) else { continue };
            if ssh::is_server(process) {
                continue;
            }
            behind.uid.get_or_insert(process.uid);
            behind.terminal |= process.tty != 0;
        }
        behind.pids = todo;
        Some(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, program: &str, tty: u32, sockets: &[u32]) -> Process {
        Process {
            pid,
            parent,
            uid: if program == "bash" { 1000 } else { 0 },
            exe: Some(format!("/usr/sbin/{program}").into()),
            start: u64::from(pid),
            tty,
            sockets: sockets.to_vec(),
            ..Process::default()
        }
    }

    #[test]
    fn a_login_is_what_was_started_for_a_person() {
        let processes = Processes::from_list(vec![
            process(1, 0, "sshd", 0, &[]),
            process(10, 1, "sshd", 0, &[7]),
            process(11, 10, "sshd", 0, &[7]),
            process(12, 11, "bash", 34816, &[]),
            process(20, 1, "sshd", 0, &[8]),
        ]);
        let family = Family::of(&processes);
        let behind = family.behind(7).unwrap();
        assert_eq!((behind.since_ns, behind.uid, behind.terminal), (100_000_000, Some(1000), true));
        assert_eq!(behind.pids, [10, 11, 12]);
        // The connection is there, and nobody has logged in.
        assert_eq!(family.behind(8).unwrap().uid, None);
        assert_eq!(family.behind(9), None);
    }
}
