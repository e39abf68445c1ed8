//! `guard snapshot`: what an intruder has planted is in it and marked, what hangs holds nothing up, and the stream leaves
//! nothing behind.

use std::{
    fs::{self, File},
    io::Write,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use guard_tests::{
    guard::binary,
    new_world,
    process::{Ended, Process, run},
    raw_bpf, skip,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
    },
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

fn section(directory: &Path, name: &str) -> Vec<Value> {
    let bytes = fs::read(directory.join(format!("{name}.jsonl"))).unwrap();
    assert!(bytes.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n')), "{name} holds bytes that are not ASCII");
    let text = String::from_utf8(bytes).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn manifest(directory: &Path) -> Value {
    serde_json::from_slice(&fs::read(directory.join("manifest.json")).unwrap()).unwrap()
}

fn outcome(manifest: &Value, name: &str) -> Value {
    let sections = manifest["sections"].as_array().unwrap();
    sections.iter().find(|section| section["name"] == name).unwrap_or_else(|| panic!("no section {name}")).clone()
}

fn sums_are_right(directory: &Path) {
    let ended = run(Command::new("sha256sum").args(["-c", "manifest.sha256"]).current_dir(directory), LIMIT).unwrap();
    assert!(ended.good(), "{}", ended.text());
    let files = fs::read_dir(directory).unwrap().count();
    assert_eq!(ended.stdout.lines().count() + 1, files, "every file is in the manifest");
}

fn marked(line: &Value, mark: &str) -> bool {
    line["suspicious"].as_array().is_some_and(|marks| marks.iter().any(|one| one == mark))
}

#[test]
fn what_an_intruder_planted_is_there_and_marked() {
    let Some(world) = new_world("netns_snapshot planted") else { return };
    let server = &world.server;

    let memory = memfd_create("implant", MFdFlags::empty()).unwrap();
    File::from(memory.try_clone().unwrap()).write_all(&fs::read("/bin/sleep").unwrap()).unwrap();
    let in_memory = Process::spawn(server.command(format!("/proc/self/fd/{}", memory.as_raw_fd())).arg("300")).unwrap();

    let file = world.dir().join("x");
    fs::copy("/bin/sleep", &file).unwrap();
    let deleted = Process::spawn(server.command(&file).arg("300")).unwrap();
    // Only after the copy runs may it go.
    let deadline = Instant::now() + LIMIT;
    while fs::read_link(format!("/proc/{}/exe", deleted.pid())).ok().as_deref() != Some(file.as_path()) {
        assert!(Instant::now() < deadline, "the copy does not run");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::remove_file(&file).unwrap();

    let name = "\x1b[2Jevil\u{202e}\n";
    let hostile = Process::spawn(server.command("/bin/sleep").arg0(name).arg("300")).unwrap();

    let (packet, raw) = server.run(|| {
        let open = |family, kind, protocol| socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
        (
            open(AddressFamily::Packet, SockType::Raw, Some(SockProtocol::EthAll)),
            open(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp)),
        )
    });
    let listener = server.run(|| TcpListener::bind("0.0.0.0:4444").unwrap());
    let (caller, _accepted) = server.run(|| {
        let caller = TcpStream::connect("127.0.0.1:4444").unwrap();
        (caller, listener.accept().unwrap())
    });
    let shell =
        Process::spawn(server.command("/bin/sleep").arg("300").stdin(Stdio::from(OwnedFd::from(caller)))).unwrap();
    let _elsewhere = Process::spawn(world.router.command("/bin/sleep").arg("300")).unwrap();
    let unix = UnixListener::bind(world.dir().join("a b")).unwrap();

    let rules = "add table inet planted\nadd chain inet planted in { type filter hook input priority -300 ; }\n\
                 add rule inet planted in tcp dport 4444 counter accept\n";
    let ended = run(server.command("nft").arg(rules), LIMIT).unwrap();
    assert!(ended.good(), "{}", ended.text());
    let interface = server.interface_index("eth0");
    let program = raw_bpf::pass_in_front(server, interface, false).unwrap();

    let directory = world.dir().join("evidence");
    let ended = run(world.operator.command(binary().unwrap()).args(["snapshot", "-o"]).arg(&directory), LIMIT).unwrap();
    assert!(ended.good(), "{}", ended.text());
    sums_are_right(&directory);
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);

    let processes = section(&directory, "processes");
    let process = |pid: u32| processes.iter().find(|line| line["pid"] == pid).unwrap_or_else(|| panic!("no {pid}"));
    assert!(marked(process(in_memory.pid()), "exe_in_memory"), "{}", process(in_memory.pid()));
    assert_eq!(process(in_memory.pid())["exe"], "/memfd:implant (deleted)");
    assert!(marked(process(deleted.pid()), "exe_deleted"), "{}", process(deleted.pid()));
    assert_eq!(process(hostile.pid())["argv"], serde_json::json!([name, "300"]));
    assert!(!marked(process(hostile.pid()), "exe_in_memory"));
    assert!(marked(process(shell.pid()), "standard_input_is_network_socket"), "{}", process(shell.pid()));
    let me = process(std::process::id());
    assert!(marked(me, "packet_socket") && marked(me, "raw_socket"), "{me}");
    assert!(process(shell.pid())["parents"].as_array().unwrap().iter().any(|parent| parent["pid"] == me["pid"]));

    let sockets = section(&directory, "sockets");
    let held = |inode: &OwnedFd| {
        let inode = nix::sys::stat::fstat(inode).unwrap().st_ino;
        let found: Vec<_> = sockets.iter().filter(|line| line["inode"] == inode).collect();
        assert_eq!(found.len(), 1, "socket {inode}: {found:?}");
        assert!(found[0]["owners"].as_array().unwrap().iter().any(|owner| owner["pid"] == me["pid"]));
        found[0].clone()
    };
    assert!(marked(&held(&packet), "packet_socket") && marked(&held(&raw), "raw_socket"));
    let unix = held(&OwnedFd::from(unix));
    assert_eq!(unix["path"], world.dir().join("a b").to_str().unwrap());
    let namespace = held(&packet)["namespace"].clone();
    let listening = section(&directory, "listening");
    let port = listening.iter().find(|line| line["local"] == "0.0.0.0:4444").expect("the open port");
    assert_eq!((&port["protocol"], &port["namespace"]), (&"tcp".into(), &namespace));
    // Other namespaces too: the guarded host is not the only place on the machine.
    let all = section(&directory, "interfaces");
    assert!(all.iter().any(|line| line["name"] == "br0" && line["namespace"] != namespace));

    let nft = section(&directory, "nft");
    let rule = nft.iter().find(|line| line["what"] == "rule" && line["table"] == "planted").expect("the rule");
    assert_eq!(rule["namespace"], namespace);
    let expressions = rule["expressions"].as_array().unwrap();
    // Port 4444, as it stands in the packet; and the verdict: NF_ACCEPT.
    assert!(expressions.iter().any(|one| one["expression"] == "cmp" && one["data"]["value"] == "115c"), "{rule}");
    assert!(expressions.iter().any(|one| one["data"]["verdict"]["code"] == 1), "{rule}");
    assert!(rule["raw"].as_str().is_some_and(|raw| raw.len() > 100));

    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap();
    let id: u64 = info.lines().find_map(|line| line.strip_prefix("prog_id:")).unwrap().trim().parse().unwrap();
    let programs = section(&directory, "bpf_programs");
    let planted = programs.iter().find(|line| line["id"] == id).expect("the program");
    assert!(marked(planted, "network_program_not_guards") && planted["name"] == "somebody", "{planted}");
    let links = section(&directory, "bpf_links");
    assert!(
        links.iter().any(|line| line["program"] == id && line["interface"] == interface && marked(line, "not_guards"))
    );
    let hooks = section(&directory, "traffic_control");
    let hook = hooks.iter().find(|line| line["what"] == "tcx" && line["namespace"] == namespace).expect("the hook");
    assert_eq!((&hook["interface"], &hook["programs"]), (&interface.into(), &serde_json::json!([id])));

    // Evidence is never written over.
    let before = fs::read(directory.join("manifest.sha256")).unwrap();
    let again = run(Command::new(binary().unwrap()).args(["snapshot", "-o"]).arg(&directory), LIMIT).unwrap();
    assert_eq!(again.code(), Some(3), "{}", again.text());
    assert_eq!(fs::read(directory.join("manifest.sha256")).unwrap(), before);
}

#[test]
fn what_hangs_holds_nothing_up() {
    let place = tempfile::tempdir().unwrap();
    let proc = place.path().join("proc");
    let fifo = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for pid in ["7", "8"] {
        fs::create_dir_all(proc.join(pid)).unwrap();
    }
    // A process that does not answer, one that does after it, and a file of the kernel's that does not.
    fifo(&proc.join("7/stat"));
    fs::copy("/proc/self/stat", proc.join("8/stat")).unwrap();
    fs::copy("/proc/self/status", proc.join("8/status")).unwrap();
    fifo(&proc.join("modules"));
    let directory = place.path().join("evidence");
    let began = Instant::now();
    let ended = run(
        Command::new(binary().unwrap())
            .args(["snapshot", "--within", "3", "--proc"])
            .arg(&proc)
            .arg("-o")
            .arg(&directory),
        LIMIT,
    )
    .unwrap();
    let took = began.elapsed();
    assert_eq!(ended.code(), Some(1), "{}", ended.text());
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(ended.stdout.contains("NOT COMPLETE: modules"), "{}", ended.text());
    sums_are_right(&directory);
    let manifest = manifest(&directory);
    assert_eq!(outcome(&manifest, "modules")["outcome"], "timed_out");
    let processes = outcome(&manifest, "processes");
    assert_eq!(processes["outcome"], "partial", "{processes}");
    assert!(processes["notes"][0].as_str().unwrap().contains("process 7"), "{processes}");
    let found: Vec<_> = section(&directory, "processes").iter().map(|line| line["pid"].clone()).collect();
    assert_eq!(found, [8]);
    assert_eq!(outcome(&manifest, "startup")["outcome"], "complete");
}

#[test]
fn ten_thousand_processes_are_read_in_time() {
    let place = tempfile::tempdir().unwrap();
    let (stat, status) = (fs::read("/proc/self/stat").unwrap(), fs::read("/proc/self/status").unwrap());
    for pid in 1..=10_000 {
        let process = place.path().join(format!("proc/{pid}"));
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::write(process.join("stat"), &stat).unwrap();
        fs::write(process.join("status"), &status).unwrap();
        std::os::unix::fs::symlink("socket:[12345]", process.join("fd/3")).unwrap();
    }
    let directory = place.path().join("evidence");
    let ended = run(
        Command::new(binary().unwrap())
            .arg("snapshot")
            .arg("--proc")
            .arg(place.path().join("proc"))
            .arg("-o")
            .arg(&directory),
        LIMIT,
    )
    .unwrap();
    let processes = outcome(&manifest(&directory), "processes");
    assert_eq!(processes["lines"], 10_000, "{processes}\n{}", ended.text());
}

/// Every mount read-only, for this command alone.
fn read_only(command: &mut Command) -> &mut Command {
    let enter = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        // struct mount_attr: set MOUNT_ATTR_RDONLY.
        let attributes: [u64; 4] = [1, 0, 0, 0];
        // SAFETY: a path that ends in 0, and a structure of the size that is said.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                libc::AT_FDCWD,
                c"/".as_ptr(),
                libc::AT_RECURSIVE,
                attributes.as_ptr(),
                size_of_val(&attributes),
            )
        };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: system calls only; nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(enter) }
}

#[test]
fn the_stream_leaves_nothing_behind() {
    if !skip::is_root() {
        skip::skip("netns_snapshot stream", "a mount namespace needs root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let other = place.path().join("other");
    let ended =
        run(read_only(&mut Command::new(binary().unwrap())).args(["snapshot", "-o"]).arg(&other), LIMIT).unwrap();
    assert_eq!(ended.code(), Some(3), "nothing can be written there: {}", ended.text());
    assert!(ended.stderr.contains("Read-only"), "{}", ended.text());

    let archive = place.path().join("case.tar");
    let trace = place.path().join("trace");
    let traced = Path::new("/usr/bin/strace").exists();
    let mut command = if traced {
        let mut strace = Command::new("/usr/bin/strace");
        let calls = "trace=openat,open,creat,openat2,mkdir,mkdirat,unlink,unlinkat,rename,renameat,renameat2,link,linkat,\
                     symlink,symlinkat,mknod,mknodat,truncate,ftruncate,chmod,fchmod,fchmodat,chown,fchown,fchownat,execve";
        strace.args(["-f", "-qq", "-e", calls, "-e", "signal=none", "-o"]).arg(&trace).arg(binary().unwrap());
        strace
    } else {
        skip::skip("netns_snapshot strace", "strace is not installed");
        Command::new(binary().unwrap())
    };
    // strace opens its own log for writing, so that only the plain run below is under read-only mounts.
    let status = command
        .args(["snapshot", "-o", "-"])
        .stdin(Stdio::null())
        .stdout(File::create(&archive).unwrap())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    if traced {
        let calls = fs::read_to_string(&trace).unwrap();
        assert!(calls.lines().count() > 100, "{calls}");
        // Its own start is the one program that is run.
        assert_eq!(calls.lines().filter(|line| line.contains("execve(")).count(), 1, "{calls}");
        let changes: Vec<_> = calls
            .lines()
            .filter(|line| {
                let open = line.contains("open(") || line.contains("openat(") || line.contains("openat2(");
                let reads =
                    open && !["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| line.contains(flag));
                !(reads || line.contains("execve(") || line.contains("+++") || line.contains("resumed>"))
            })
            .collect();
        assert!(changes.is_empty(), "{changes:#?}");
    }

    let mut plain = Command::new(binary().unwrap());
    let status = read_only(&mut plain)
        .args(["snapshot", "-o", "-"])
        .stdin(Stdio::null())
        .stdout(File::create(&archive).unwrap())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    let unpacked = place.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let ended = run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&unpacked), LIMIT).unwrap();
    assert!(ended.good(), "{}", ended.text());
    let inside = fs::read_dir(&unpacked).unwrap().next().unwrap().unwrap().path();
    sums_are_right(&inside);
    assert!(section(&inside, "processes").len() > 1);
}

#[test]
fn without_privileges_it_says_what_it_could_not_see() {
    if !skip::is_root() {
        skip::skip("netns_snapshot unprivileged", "to become nobody needs root");
        return;
    }
    let place = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let program = place.path().join("guard");
    fs::copy(binary().unwrap(), &program).unwrap();
    let directory = place.path().join("own");
    fs::create_dir(&directory).unwrap();
    std::os::unix::fs::chown(&directory, Some(65534), Some(65534)).unwrap();
    let evidence = directory.join("evidence");
    let mut command = Command::new(&program);
    command.uid(65534).gid(65534).args(["snapshot", "-o"]).arg(&evidence);
    let ended: Ended = run(&mut command, LIMIT).unwrap();
    assert_eq!(ended.code(), Some(1), "{}", ended.text());
    let manifest = manifest(&evidence);
    assert_eq!(manifest["uid"], 65534);
    let programs = outcome(&manifest, "bpf_programs");
    assert_eq!(programs["outcome"], "failed", "{programs}");
    assert!(programs["error"].as_str().unwrap().contains("root"), "{programs}");
    let processes = outcome(&manifest, "processes");
    assert!(processes["notes"].to_string().contains("run as root"), "{processes}");
    let own = section(&evidence, "processes");
    assert!(own.iter().any(|line| line["exe"].as_str() == program.to_str()), "it sees itself");
    sums_are_right(&evidence);
}
