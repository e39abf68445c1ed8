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
                 PermitRootLogin yes\nPasswordAuthentication no\nUseDNS no\nPrintMotd no\nLogLevel VERBOSE\n\
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
