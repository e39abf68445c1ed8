use std::{os::unix::process::CommandExt, process::Command};

use super::*;

/// A child that sleeps, and ends with the test.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn start(exe: &Path) -> Self {
        Self(Command::new(exe).arg("60").spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that is in no place where everybody writes, as a checkout below /tmp is.
fn elsewhere() -> tempfile::TempDir {
    [env!("CARGO_MANIFEST_DIR"), "/var/lib", "/run", "/root"]
        .into_iter()
        .filter(|place| !in_writable_place(&Path::new(place).join("x/x"), None))
        .find_map(|place| tempfile::tempdir_in(place).ok())
        .expect("a folder to write to")
}

fn sleep_copied_to(directory: &Path) -> PathBuf {
    let path = directory.join("sl\u{e9}ep");
    fs::copy(fs::canonicalize("/bin/sleep").unwrap(), &path).unwrap();
    path
}

#[test]
fn names_this_process() {
    let who = Identities::default().read(std::process::id()).unwrap();
    assert_eq!(who.exe.as_deref(), std::env::current_exe().unwrap().to_str());
    assert_eq!(who.exe_kind, ExeKind::File);
    assert_eq!(who.args[0], std::env::args().next().unwrap());
    assert_eq!(who.uid, Some(nix::unistd::getuid().as_raw()));
    assert!(!who.parents.is_empty() && who.started > 0 && who.netns.is_none(), "{who:?}");
    assert_eq!(Identities::default().read(u32::MAX >> 2), None);
}

#[test]
fn a_program_whose_file_is_gone_or_lies_where_everybody_writes_is_unusual() {
    let home = elsewhere();
    let exe = sleep_copied_to(home.path());
    let mut identities = Identities::default();
    let sleeper = Sleeper::start(&exe);
    let who = identities.read(sleeper.0.id()).unwrap();
    assert_eq!((who.exe.as_deref(), &who.unusual[..]), (exe.to_str(), &[][..]));

    fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let who = identities.read(sleeper.0.id()).unwrap();
    assert_eq!(who.unusual, [Unusual::WorldWritablePlace]);
    fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();

    fs::remove_file(&exe).unwrap();
    let who = identities.read(sleeper.0.id()).unwrap();
    assert_eq!((who.exe.as_deref(), who.exe_kind), (exe.to_str(), ExeKind::Deleted));
    assert_eq!(who.unusual, [Unusual::DeletedExe]);
}

#[test]
fn a_name_may_end_as_if_it_were_deleted() {
    let home = elsewhere();
    let exe = home.path().join("x (deleted)");
    fs::copy(fs::canonicalize("/bin/sleep").unwrap(), &exe).unwrap();
    let sleeper = Sleeper::start(&exe);
    let who = Identities::default().read(sleeper.0.id()).unwrap();
    assert_eq!((who.exe.as_deref(), who.exe_kind), (exe.to_str(), ExeKind::File));
}

#[test]
fn from_memory_and_from_shared_memory() {
    use std::io::Write;
    let name = c"kworker\x1b[2J";
    let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::empty()).unwrap();
    let mut file = fs::File::from(fd);
    file.write_all(&fs::read(fs::canonicalize("/bin/sleep").unwrap()).unwrap()).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)));
    let sleeper = Sleeper::start(&path);
    let who = Identities::default().read(sleeper.0.id()).unwrap();
    assert_eq!((who.exe_kind, &who.unusual[..]), (ExeKind::Memfd, &[Unusual::Memfd][..]), "{who:?}");
    assert_eq!(who.exe.as_deref(), Some("/memfd:kworker\u{1b}[2J"));

    let home = tempfile::tempdir_in("/dev/shm").unwrap();
    let sleeper = Sleeper::start(&sleep_copied_to(home.path()));
    assert_eq!(Identities::default().read(sleeper.0.id()).unwrap().unusual, [Unusual::WorldWritablePlace]);
}

#[test]
fn arguments_are_bounded_and_may_be_anything() {
    let long = "a".repeat(100_000);
    let mut command = Command::new("/bin/sh");
    command.arg0("\u{1b}]0;x\u{7}").args(["-c", "read x", &long]).stdin(std::process::Stdio::piped());
    let sleeper = Sleeper(command.spawn().unwrap());
    // The parent of a vfork goes on a moment before the new program's arguments stand.
    let read = || Identities::default().read(sleeper.0.id()).filter(|who| !who.args.is_empty());
    let who = std::iter::repeat_with(read).take(1_000_000).flatten().next().unwrap();
    assert_eq!(who.args[0], "\u{1b}]0;x\u{7}");
    assert!(who.args_cut && who.args.iter().map(String::len).sum::<usize>() <= ARGUMENT_BYTES);
    assert_eq!(split_arguments(b"a\0\xff\0\0"), (vec!["a".to_owned(), "\u{fffd}".to_owned(), String::new()], false));
    assert_eq!(split_arguments(b""), (vec![], false));
}

#[test]
fn a_comm_may_hold_brackets() {
    let stat = b"12 (a) R 1 (b)) S 7 12 12 34816 12 0 0 0 0 0 0 0 0 0 20 0 1 0 9876 0";
    let found = parse_stat(stat).unwrap();
    assert_eq!((found.comm.as_str(), found.parent, found.started), ("a) R 1 (b)", 7, 98_760_000_000));
    assert_eq!(parse_stat(&stat[..20]), None);
}

#[test]
fn users_are_those_of_the_file() {
    let names = parse_passwd(b"root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\nbroken\nweb:x:33:33::/:/x\n");
    assert_eq!(names, HashMap::from([(0, "root".to_owned()), (33, "web".to_owned())]));
}

#[test]
fn interpreters_with_their_versions() {
    for name in ["/usr/bin/python3.11", "bash", "/bin/sh", "perl5.36.0", "/usr/bin/lua5.4"] {
        assert!(is_interpreter(name), "{name}");
    }
    for name in ["/usr/sbin/nginx", "curl", "ssh", "sshd", ""] {
        assert!(!is_interpreter(name), "{name}");
    }
}
