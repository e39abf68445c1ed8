//! Real servers, each configured from nothing into the world's directory, and killed with its handle.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    process::{Process, run},
    unpacked,
    world::Inside,
};

const START: Duration = Duration::from_secs(10);

/// OpenSSH, with keys of its own; root may log in with [`Sshd::client`].
#[derive(Debug)]
pub struct Sshd {
    pub process: Process,
    pub key: PathBuf,
    pub port: u16,
}

impl Sshd {
    /// Listens on every address.
    pub fn start(place: &Inside, dir: &Path, port: u16) -> Result<Self> {
        let dir = dir.join(format!("sshd-{port}"));
        fs::create_dir(&dir)?;
        let (host_key, key) = (dir.join("host_key"), dir.join("key"));
        for path in [&host_key, &key] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path);
            let made = run(&mut command, START)?;
            ensure!(made.good(), "ssh-keygen: {}", made.text());
        }
        let authorized = dir.join("authorized_keys");
        fs::copy(key.with_extension("pub"), &authorized)?;
        let config = dir.join("sshd_config");
        fs::write(
            &config,
            format!(
                "Port {port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
                 PermitRootLogin yes\nExposeAuthInfo yes\nPasswordAuthentication no\nUseDNS no\nPrintMotd no\nLogLevel VERBOSE\n\
                 MaxStartups 100\n",
                host_key.display(),
                authorized.display()
            ),
        )?;
        // Where Debian's sshd drops its privileges; its service makes it at boot.
        fs::create_dir_all("/run/sshd")?;
        let mut process = Process::spawn(place.command("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(&config))?;
        process.wait_line(START, |line| line.contains("Server listening"))?;
        Ok(Self { process, key, port })
    }

    /// `ssh` from `place` to `address`, without a word of its own: the remote command is the caller's to add.
    #[must_use]
    pub fn client(&self, place: &Inside, address: IpAddr) -> Command {
        let mut command = place.command("ssh");
        command.args(["-F", "none", "-q", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=5", "-o", "ControlPath=none", "-i"]);
        command.arg(&self.key).args(["-p", &self.port.to_string(), "-l", "root"]).arg(address.to_string());
        command
    }
}

/// Answers every request with `guard-test`.
pub fn nginx(place: &Inside, dir: &Path, port: u16) -> Result<Process> {
    let dir = dir.join(format!("nginx-{port}"));
    fs::create_dir(&dir)?;
    let root = dir.display();
    let config = dir.join("nginx.conf");
    fs::write(
        &config,
        format!(
            "daemon off; master_process off; pid {root}/pid; error_log stderr notice;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n  access_log off; keepalive_timeout 60s;\n\
             client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
             uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
             server {{ listen {port}; listen [::]:{port}; return 200 \"guard-test\\n\"; }}\n}}\n"
        ),
    )?;
    let mut process = Process::spawn(place.command("nginx").arg("-p").arg(&dir).arg("-c").arg(&config))?;
    process.wait_line(START, |line| line.contains("start") || line.contains("using the"))?;
    wait_listening(place, port)?;
    Ok(process)
}

/// Answers for every name under `test` with 192.0.2.99 and 2001:db8:2::99; `extra` goes onto its command line (DHCP).
pub fn dnsmasq(place: &Inside, dir: &Path, extra: &[&str]) -> Result<Process> {
    let pid = dir.join("dnsmasq.pid");
    let mut command = place.command("dnsmasq");
    command.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--log-facility=-", "--user=root"]);
    command.args(["--conf-file=/dev/null", "--address=/test/192.0.2.99", "--address=/test/2001:db8:2::99"]);
    command.arg(format!("--pid-file={}", pid.display())).args(extra);
    let mut process = Process::spawn(&mut command)?;
    process.wait_line(START, |line| line.contains("started"))?;
    Ok(process)
}

/// PostgreSQL on every address, with a new cluster; everybody may log in as `postgres`.
pub fn postgres(place: &Inside, dir: &Path, port: u16) -> Result<Process> {
    const PREPARED: Duration = Duration::from_secs(60);
    let bin = fs::read_dir("/usr/lib/postgresql")
        .context("the package postgresql is not installed")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path().join("bin")))
        .find(|bin| bin.join("postgres").exists())
        .context("the package postgresql is not installed")?;
    let data = dir.join(format!("postgres-{port}"));
    fs::create_dir(&data)?;
    let user = nix::unistd::User::from_name("postgres")?.context("there is no user postgres")?;
    std::os::unix::fs::chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    // The world's directory is root's alone.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
    let as_postgres = |program: &str| {
        let mut command = place.command("setpriv");
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(bin.join(program));
        command.arg("-D").arg(&data);
        command
    };
    let mut initdb = as_postgres("initdb");
    let made = run(initdb.args(["--no-sync", "--auth=trust", "--locale=C", "--encoding=UTF8"]), PREPARED)?;
    ensure!(made.good(), "initdb: {}", made.text());
    fs::write(data.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")?;
    let mut server = as_postgres("postgres");
    server.args(["-h", "0.0.0.0,::", "-p", &port.to_string(), "-c", "fsync=off", "-c", "unix_socket_directories="]);
    let mut process = Process::spawn(&mut server)?;
    process.wait_line(PREPARED, |line| line.contains("ready to accept connections"))?;
    Ok(process)
}

/// The same program where only root can write, as it would be installed: where it was unpacked may be anybody's, and a
/// program there is unusual. In the world's mount namespace, over a folder that the system leaves to its administrator.
fn as_installed(place: &Inside, program: &Path) -> Result<PathBuf> {
    if !program.to_string_lossy().contains("/unpacked/") {
        return Ok(program.to_owned());
    }
    let script = "set -e; [ -e /mnt/.world ] || { mount -t tmpfs -o mode=755 none /mnt; touch /mnt/.world; }; \
                  cp -n \"$0\" /mnt/";
    let ended = run(place.command("sh").args(["-c", script]).arg(program), START)?;
    ensure!(ended.good(), "{}: {}", program.display(), ended.text());
    Ok(Path::new("/mnt").join(program.file_name().unwrap_or_default()))
}

/// Programs that are [`unpacked`] where the system has them not: package and path.
pub const CHRONY: (&str, &str) = ("chrony", "usr/sbin/chronyd");
pub const CRON: (&str, &str) = ("cron", "usr/sbin/cron");

/// chrony, which leaves the machine's clock alone (`-x`); `lines` are its configuration.
pub fn chronyd(place: &Inside, dir: &Path, name: &str, lines: &str) -> Result<Process> {
    let program = as_installed(place, &unpacked::program(CHRONY.0, CHRONY.1)?)?;
    let dir = dir.join(name);
    fs::create_dir(&dir)?;
    let config = dir.join("chrony.conf");
    let pid = dir.join("pid");
    fs::write(&config, format!("{lines}\ncmdport 0\nbindcmdaddress /\npidfile {}\n", pid.display()))?;
    let mut process = Process::spawn(place.command(program).args(["-d", "-x", "-u", "root", "-f"]).arg(&config))?;
    process.wait_line(START, |line| line.contains("starting"))?;
    Ok(process)
}

/// cron with one job, which it runs when it starts; spool, tables and pid file are its own.
pub fn cron(place: &Inside, dir: &Path, job: &str) -> Result<Process> {
    let program = as_installed(place, &unpacked::program(CRON.0, CRON.1)?)?;
    let table = dir.join("crontab");
    fs::write(&table, format!("SHELL=/bin/sh\nPATH=/usr/bin:/bin\n@reboot root {job}\n"))?;
    fs::set_permissions(&table, fs::Permissions::from_mode(0o600))?;
    // In a mount namespace of its own, with a copy of /etc: what the machine's cron has is neither read nor written, and no
    // file or folder is made where the machine would keep it.
    let etc = dir.join("cron-etc");
    fs::create_dir(&etc)?;
    let script = "set -e; mount -t tmpfs -o mode=755 none \"$2\"; cp -a /etc/. \"$2\"; mount --bind \"$2\" /etc; \
                  rm -rf /etc/cron*; mkdir -m 755 /etc/cron.d; cp -p \"$1\" /etc/crontab; \
                  mount -t tmpfs none /run; mount -t tmpfs -o mode=755 none /var/spool; \
                  mkdir -p -m 1730 /var/spool/cron/crontabs; exec \"$0\" -f";
    let mut command = place.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(program).arg(table).arg(etc);
    Process::spawn(&mut command)
}

/// The body of a web page, by curl.
pub fn curl(place: &Inside, address: IpAddr, port: u16, limit: Duration) -> Result<String> {
    let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    let seconds = limit.as_secs_f64().to_string();
    let mut command = place.command("curl");
    command.args(["-sS", "--noproxy", "*", "--max-time", &seconds, &format!("http://{host}:{port}/")]);
    let ended = run(&mut command, limit + START)?;
    ensure!(ended.good(), "curl: {}", ended.text());
    Ok(ended.stdout)
}

/// A file that only its owner may read and write.
pub fn private_file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

/// Over loopback, which guard never judges.
fn wait_listening(place: &Inside, port: u16) -> Result<()> {
    let deadline = std::time::Instant::now() + START;
    loop {
        match crate::echo::connect(place, ([127, 0, 0, 1], port).into(), Duration::from_secs(1)) {
            Ok(_) => return Ok(()),
            Err(error) if std::time::Instant::now() > deadline => return Err(error).context("nginx does not listen"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
