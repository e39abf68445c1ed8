//! What looks wrong about a process. A mark is a reason to look, not a verdict: an upgraded package leaves deleted
//! executables behind, too.

/// What the marks go by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen<'a> {
    pub exe: Option<&'a str>,
    /// Mode of the executable file, and of the directory that it lies in.
    pub exe_mode: Option<u32>,
    pub directory_mode: Option<u32>,
    pub argv0: Option<&'a str>,
    pub pid: u32,
    pub parent: u32,
    pub tty: u32,
    pub cgroup: Option<&'a str>,
    pub traced: bool,
    /// systemd runs this host, so that what runs in the background belongs to a unit.
    pub systemd: bool,
    /// Its parent is process 1 or a user's systemd.
    pub adopted: bool,
    pub stdin_is_inet_socket: bool,
    pub packet: bool,
    pub xdp: bool,
    pub raw: bool,
}

pub fn of_process(seen: &Seen<'_>) -> Vec<&'static str> {
    let mut marks = Vec::new();
    let mut mark = |on: bool, name| {
        if on {
            marks.push(name);
        }
    };
    let exe = seen.exe.unwrap_or_default();
    let memfd = exe.starts_with("/memfd:");
    mark(memfd, "exe_in_memory");
    mark(!memfd && exe.ends_with(" (deleted)"), "exe_deleted");
    mark(seen.exe_mode.is_some_and(|mode| mode & 0o002 != 0) && !memfd, "exe_writable_by_all");
    mark(
        in_open_place(exe) || seen.directory_mode.is_some_and(|mode| mode & 0o002 != 0),
        "exe_in_place_writable_by_all",
    );
    // Kernel threads have no executable, and process 2 for a parent.
    let bracketed = seen.argv0.is_some_and(|name| name.starts_with('[') && name.trim_end().ends_with(']'));
    mark(bracketed && seen.parent != 2 && seen.pid != 2, "poses_as_kernel_thread");
    mark(
        seen.systemd
            && seen.adopted
            && seen.tty == 0
            && seen.exe.is_some()
            && seen.pid != 1
            && !in_service(seen.cgroup),
        "in_background_without_unit",
    );
    mark(seen.traced, "traced");
    mark(seen.stdin_is_inet_socket, "standard_input_is_network_socket");
    mark(seen.packet, "packet_socket");
    mark(seen.xdp, "xdp_socket");
    mark(seen.raw, "raw_socket");
    marks
}

fn in_open_place(exe: &str) -> bool {
    ["/tmp/", "/var/tmp/", "/dev/shm/", "/dev/mqueue/", "/run/lock/"].iter().any(|place| exe.starts_with(place))
}

fn in_service(cgroup: Option<&str>) -> bool {
    let part = |part: &str| part.ends_with(".service") && !part.starts_with("user@");
    cgroup.is_some_and(|path| {
        path.split('/').any(part) || path.ends_with("/init.scope") || path.contains("/machine.slice/")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mark_has_its_cause() {
        let plain = Seen {
            exe: Some("/usr/sbin/cron"),
            exe_mode: Some(0o755),
            directory_mode: Some(0o755),
            argv0: Some("/usr/sbin/cron"),
            pid: 50,
            parent: 1,
            systemd: true,
            adopted: true,
            cgroup: Some("/system.slice/cron.service"),
            ..Seen::default()
        };
        let marks = |seen: Seen<'_>| of_process(&seen);
        assert_eq!(marks(plain), [""; 0]);
        assert_eq!(marks(Seen { exe: Some("/memfd:x (deleted)"), exe_mode: Some(0o777), ..plain }), ["exe_in_memory"]);
        assert_eq!(marks(Seen { exe: Some("/usr/bin/x (deleted)"), ..plain }), ["exe_deleted"]);
        assert_eq!(marks(Seen { exe: Some("/dev/shm/.x"), ..plain }), ["exe_in_place_writable_by_all"]);
        assert_eq!(marks(Seen { directory_mode: Some(0o1777), ..plain }), ["exe_in_place_writable_by_all"]);
        assert_eq!(marks(Seen { exe_mode: Some(0o757), ..plain }), ["exe_writable_by_all"]);
        assert_eq!(marks(Seen { argv0: Some("[kworker/0:1]"), ..plain }), ["poses_as_kernel_thread"]);
        let kernel = Seen { exe: None, argv0: None, parent: 2, cgroup: Some("/"), adopted: false, ..plain };
        assert_eq!(marks(kernel), [""; 0]);
        let session = Seen { cgroup: Some("/user.slice/user-0.slice/session-3.scope"), ..plain };
        assert_eq!(marks(session), ["in_background_without_unit"]);
        assert_eq!(marks(Seen { tty: 34816, ..session }), [""; 0]);
        assert_eq!(marks(Seen { adopted: false, ..session }), [""; 0]);
        assert_eq!(marks(Seen { systemd: false, ..session }), [""; 0]);
        let all = Seen { traced: true, stdin_is_inet_socket: true, packet: true, xdp: true, raw: true, ..plain };
        assert_eq!(marks(all).len(), 5);
    }
}
