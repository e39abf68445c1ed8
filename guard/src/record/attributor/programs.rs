//! Which programs run, as the process programs tell it: what is known of a process that is gone before anybody looks.

use std::{fs, path::Path, sync::Arc};

use guard_common::abi::{ProcessEvent, ProcessHead, ProcessKind};

use crate::{
    host::{
        cgroup::{self, Place},
        identity::{Identities, split_arguments, to_ticks},
    },
    record::{
        recent::Recent,
        who::{ExeKind, PARENTS, Parent, Who},
    },
};

/// Processes that are remembered at least, the dead ones too. Whoever may execute programs fills it: with the longest path
/// and arguments each, it takes about 90 MB.
const PROCESSES: usize = 8_192;

/// One process, from its last exec or its fork.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Program {
    parent: u32,
    /// Boot-time nanoseconds of the event: what asked earlier was another program.
    since: u64,
    /// All but the parents and arguments.
    who: Who,
    /// NUL-terminated, in one piece and shared with its forks: 500 arguments of a letter would take 30 times their room.
    args: Arc<[u8]>,
}

#[derive(Debug)]
pub struct Programs {
    by_pid: Recent<u32, Program>,
    own_mount_ns: u64,
    own_netns: u64,
}

impl Programs {
    pub fn new(identities: &Identities) -> Self {
        Self {
            by_pid: Recent::new(PROCESSES),
            own_mount_ns: identities.own_mount_ns(),
            own_netns: identities.own_netns(),
        }
    }

    /// One event of the `PROCESSES` ring. True: the process is another program from now on.
    pub fn told(&mut self, bytes: &[u8], identities: &mut Identities) -> Option<u32> {
        let head: ProcessHead = read(bytes)?;
        let program = if head.kind == ProcessKind::Exec as u32 {
            self.executed(&read(bytes)?, identities)
        } else if head.kind == ProcessKind::Fork as u32 {
            self.forked(&head, identities)
        } else {
            return None;
        };
        self.by_pid.insert(head.pid, program);
        Some(head.pid)
    }

    fn executed(&self, event: &ProcessEvent, identities: &mut Identities) -> Program {
        let head = &event.head;
        let started = to_ticks(head.started);
        let args = Arc::from(&event.args[..(event.args_bytes as usize).min(event.args.len())]);
        // Most still live a moment after: then /proc has the path in full, and the control group.
        let lives = identities.stat(head.pid).is_some_and(|stat| stat.started == started);
        let seen = if lives { identities.exe_of(head.pid) } else { (None, ExeKind::File) };
        let (exe, exe_kind) = match seen {
            (Some(exe), kind) => (Some(exe), kind),
            _ => self.exe(event),
        };
        let place = lives.then(|| fs::read_to_string(format!("/proc/{}/cgroup", head.pid)).ok()).flatten();
        // One that is ending is in the root's already, and what is gone has none: then as it was at exec.
        let place = place.map(|text| cgroup::parse(&text)).filter(|place| *place != Place::default());
        let place = place.unwrap_or_else(|| cgroup::parse(&of_names(event)));
        let mut who = Who {
            pid: head.pid,
            started,
            comm: text(&head.comm),
            exe,
            exe_kind,
            args_cut: event.args_bytes as usize > event.args.len(),
            uid: Some(head.uid),
            user: identities.user(head.uid),
            unit: place.unit,
            container: place.container.map(|id| identities.describe_container(id)),
            netns: Some(u64::from(event.netns)).filter(|netns| *netns != 0 && *netns != self.own_netns),
            ..Who::default()
        };
        who.unusual = identities.unusual(&who, None);
        Program { parent: head.parent, since: head.time, who, args }
    }

    /// By what the kernel said at exec alone.
    fn exe(&self, event: &ProcessEvent) -> (Option<String>, ExeKind) {
        let (path, name) = (text(&event.path), text(&event.file_name));
        match (event.links, name.starts_with("memfd:")) {
            (0, true) => return (Some(format!("/{name}")), ExeKind::Memfd),
            (0, false) => return (Some(path), ExeKind::Deleted),
            _ => {}
        }
        let here = u64::from(event.mount_ns) == self.own_mount_ns;
        // As /proc would name it: links followed. In another mount namespace the path means something else there.
        let full = if here && Path::new(&path).is_absolute() { fs::canonicalize(&path).ok() } else { None };
        let full = full.map(|full| full.to_string_lossy().into_owned());
        (Some(full.unwrap_or(path)), ExeKind::File)
    }

    /// The same program as its parent's.
    fn forked(&mut self, head: &ProcessHead, identities: &mut Identities) -> Program {
        // One that is older than guard is read once.
        if self.by_pid.get(&head.parent).is_none()
            && let Some(mut who) = identities.read(head.parent)
        {
            let parent = who.parents.first().map_or(0, |parent| parent.pid);
            who.parents = Vec::new();
            let args = std::mem::take(&mut who.args);
            let args = args.iter().flat_map(|argument| argument.bytes().chain([0])).collect();
            self.by_pid.insert(head.parent, Program { parent, since: 0, who, args });
        }
        let Program { mut who, args, .. } = self.by_pid.get(&head.parent).cloned().unwrap_or_default();
        who.pid = head.pid;
        who.started = to_ticks(head.started);
        who.comm = text(&head.comm);
        who.uid = Some(head.uid);
        who.user = identities.user(head.uid);
        Program { parent: head.parent, since: head.time, who, args }
    }

    /// Who had this id at a time (boot-time nanoseconds). `found_by` is left to the caller.
    pub fn at(&mut self, pid: u32, time: u64, identities: &Identities) -> Option<Who> {
        let program = self.by_pid.get(&pid)?;
        // A number that was given to another since, or another program in the same process.
        if program.who.started > time || program.since > time {
            return None;
        }
        let mut who = program.who.clone();
        (who.args, _) = split_arguments(&program.args);
        let parent = program.parent;
        who.parents = self.parents(parent, identities);
        Some(who)
    }

    /// The chain, by what was told, then by /proc.
    pub fn parents(&mut self, first: u32, identities: &Identities) -> Vec<Parent> {
        let mut parents = Vec::new();
        let mut pid = first;
        while pid != 0 && parents.len() < PARENTS {
            let Some(program) = self.by_pid.get(&pid) else {
                parents.extend(identities.parents(pid));
                break;
            };
            let exe = program.who.exe.clone().unwrap_or_else(|| program.who.comm.clone());
            parents.push(Parent { pid, exe });
            if program.parent == pid {
                break;
            }
            pid = program.parent;
        }
        parents.truncate(PARENTS);
        parents
    }
}

/// The last parts of the control group's path, as `/proc/PID/cgroup` would have them.
fn of_names(event: &ProcessEvent) -> String {
    let [own, above] = event.cgroup.each_ref().map(|name| text(name));
    format!("0::/{above}/{own}")
}

/// Up to its NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A plain value from the beginning of `bytes`; `None` where they are too few.
fn read<T: Told>(bytes: &[u8]) -> Option<T> {
    // SAFETY: `T` is numbers only (see `Told`), so any bytes are one; as many are read as it is long, from any alignment.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// # Safety
///
/// Any bytes are a value.
unsafe trait Told: Copy {}
// SAFETY: integers and arrays of integers.
unsafe impl Told for ProcessHead {}
// SAFETY: as above.
unsafe impl Told for ProcessEvent {}

#[cfg(test)]
mod tests {
    use guard_common::abi::{
        PROCESS_ARGUMENT_BYTES, PROCESS_CGROUP_BYTES, PROCESS_CGROUP_LEVELS, PROCESS_FILE_NAME_BYTES,
        PROCESS_PATH_BYTES,
    };

    use super::*;

    fn put(to: &mut [u8], text: &[u8]) {
        to[..text.len()].copy_from_slice(text);
    }

    fn bytes<T: Told>(value: &T) -> Vec<u8> {
        // SAFETY: as long as the value, which is numbers without padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
    }

    fn head(kind: ProcessKind, pid: u32, parent: u32, time: u64) -> ProcessHead {
        let mut comm = [0; 16];
        put(&mut comm, b"worker");
        ProcessHead { kind: kind as u32, pid, parent, uid: 0, time, started: 7_123_456_789, comm }
    }

    /// Of a process that is not there.
    fn exec(path: &[u8], file_name: &[u8], links: u32, args: &[u8]) -> ProcessEvent {
        let mut event = ProcessEvent {
            head: head(ProcessKind::Exec, GONE, 1, 9_000_000_000),
            mount_ns: Identities::default().own_mount_ns() as u32,
            netns: 0,
            links,
            args_bytes: args.len() as u32,
            file_name: [0; PROCESS_FILE_NAME_BYTES],
            path: [0; PROCESS_PATH_BYTES],
            args: [0; PROCESS_ARGUMENT_BYTES],
            cgroup: [[0; PROCESS_CGROUP_BYTES]; PROCESS_CGROUP_LEVELS],
        };
        put(&mut event.file_name, file_name);
        put(&mut event.path, path);
        put(&mut event.args, &args[..args.len().min(PROCESS_ARGUMENT_BYTES)]);
        event
    }

    /// Beyond what a kernel gives (PID_MAX_LIMIT is 2^22).
    const GONE: u32 = 5_000_000;

    fn told(event: &ProcessEvent) -> Who {
        let mut identities = Identities::default();
        let mut programs = Programs::new(&identities);
        assert_eq!(programs.told(&bytes(event), &mut identities), Some(GONE));
        programs.at(GONE, 9_000_000_000, &identities).unwrap()
    }

    #[test]
    fn a_process_that_is_gone_is_named_with_its_path_arguments_and_parents() {
        let who = told(&exec(b"/bin/sh", b"dash", 1, b"sh\0-c\0\x1b[2J\xff\0"));
        assert_eq!(who.exe.as_deref(), fs::canonicalize("/bin/sh").unwrap().to_str(), "as /proc would name it");
        assert_eq!(who.args, ["sh", "-c", "\u{1b}[2J\u{fffd}"]);
        assert_eq!((who.uid, who.started, who.comm.as_str()), (Some(0), 7_120_000_000, "worker"));
        assert_eq!(who.parents[0].pid, 1);
        assert!(!who.args_cut && who.unusual.is_empty(), "{who:?}");
    }

    #[test]
    fn what_never_was_a_file_or_is_gone_is_told_by_its_links() {
        let who = told(&exec(b"/dev/fd/3", b"memfd:x", 0, b""));
        assert_eq!((who.exe.as_deref(), who.exe_kind), (Some("/memfd:x"), ExeKind::Memfd));
        let who = told(&exec(b"/opt/gone", b"gone", 0, b""));
        assert_eq!((who.exe.as_deref(), who.exe_kind), (Some("/opt/gone"), ExeKind::Deleted));
        // A file may be called so.
        let who = told(&exec(b"/opt/memfd:x", b"memfd:x", 1, b""));
        assert_eq!(who.exe_kind, ExeKind::File);
        let who = told(&exec(b"/dev/shm/x", b"x", 1, b""));
        assert_eq!(who.unusual, [crate::record::who::Unusual::WorldWritablePlace]);
    }

    #[test]
    fn the_container_of_a_process_that_is_gone_is_that_of_its_control_group() {
        let id = "0123456789abcdef".repeat(4);
        let of = |own: &str, above: &str| {
            let mut event = exec(b"/bin/sh", b"dash", 1, b"");
            put(&mut event.cgroup[0], own.as_bytes());
            put(&mut event.cgroup[1], above.as_bytes());
            let who = told(&event);
            (who.container.map(|container| container.id), who.unit)
        };
        assert_eq!(of(&id, "docker"), (Some(id.clone()), None));
        assert_eq!(of("container", &format!("libpod-{id}.scope")), (Some(id), None));
        assert_eq!(of("cron.service", "system.slice"), (None, Some("cron.service".to_owned())));
        assert_eq!(of("", ""), (None, None));
        assert_eq!(of(&"x".repeat(PROCESS_CGROUP_BYTES), ""), (None, None), "without an end");
    }

    #[test]
    fn lengths_that_lie_and_short_events_are_borne() {
        let mut event = exec(b"/bin/sh", b"dash", 1, b"a");
        event.args_bytes = u32::MAX;
        let who = told(&event);
        assert!(who.args_cut);
        let whole = bytes(&event);
        let mut identities = Identities::default();
        let mut programs = Programs::new(&identities);
        for length in 0..whole.len() {
            assert_eq!(programs.told(&whole[..length], &mut identities), None, "{length}");
        }
        let unknown = ProcessHead { kind: 77, ..head(ProcessKind::Fork, 5, 1, 1) };
        assert_eq!(programs.told(&bytes(&unknown), &mut identities), None);
    }

    #[test]
    fn a_fork_is_its_parents_program_and_a_later_exec_is_not_believed_of_earlier() {
        let mut identities = Identities::default();
        let mut programs = Programs::new(&identities);
        let fork = head(ProcessKind::Fork, GONE + 1, std::process::id(), 8_000_000_000);
        programs.told(&bytes(&fork), &mut identities);
        let who = programs.at(GONE + 1, 8_000_000_001, &identities).unwrap();
        assert_eq!(who.exe.as_deref(), std::env::current_exe().unwrap().to_str());
        assert_eq!((who.pid, who.parents[0].pid), (GONE + 1, std::process::id()));

        programs.told(&bytes(&exec(b"/bin/sh", b"dash", 1, b"")), &mut identities);
        assert!(programs.at(GONE, 9_000_000_000, &identities).is_some());
        assert_eq!(programs.at(GONE, 8_999_999_999, &identities), None);
    }
}
