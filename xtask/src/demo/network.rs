//! The hosts, and what runs on them.

use crate::lab::host::{Host, Server, ip, router, wait_for};
use crate::shell;
use anyhow::{Context as _, Result};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub struct Network {
    pub server: Host,
    pub responder: Host,
    pub client: Host,
    pub intruder: Host,
    _servers: Vec<Server>,
}

pub const DIR: &str = "/run/lab";
/// The provider's resolver: an address of the router.
pub const RESOLVER: &str = "192.0.2.53";
/// A package mirror: another one.
pub const MIRROR: &str = "203.0.113.80";

impl Network {
    pub fn make(cgroup: &Path) -> Result<Self> {
        router()?;
        let server = Host::make("server", "203.0.113.10", "2001:db8:113::10")?;
        let responder = Host::make("responder", "198.51.100.7", "2001:db8:17::7")?;
        let client = Host::make("client", "192.0.2.80", "2001:db8:2::80")?;
        let intruder = Host::make("intruder", "203.0.113.66", "2001:db8:66::66")?;
        let servers = start(&server, &intruder, cgroup)?;
        let network = Self { server, responder, client, intruder, _servers: servers };
        network.settle()?;
        Ok(network)
    }

    pub fn hosts(&self) -> [&Host; 4] {
        [&self.server, &self.responder, &self.client, &self.intruder]
    }

    /// Until every server answers on its own host.
    fn settle(&self) -> Result<()> {
        for (host, port) in [(&self.server, 22), (&self.server, 80), (&self.server, 443), (&self.intruder, 443)] {
            let address = SocketAddr::new(host.v4.parse()?, port);
            host.within(|| {
                wait_for(&format!("{} port {port}", host.name), || {
                    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
                })
            })??;
        }
        Ok(())
    }
}

fn start(server: &Host, intruder: &Host, cgroup: &Path) -> Result<Vec<Server>> {
    let keys = format!("{DIR}/keys");
    std::fs::create_dir(&keys)?;
    for name in ["host", "user"] {
        let file = format!("{keys}/{name}");
        shell::output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &file]))?;
    }
    let sshd = format!(
        "HostKey {keys}/host\nAuthorizedKeysFile {keys}/user.pub\nPidFile none\nUsePAM no\nStrictModes no\n\
         PermitRootLogin prohibit-password\nPrintMotd no\n"
    );
    std::fs::write(format!("{DIR}/sshd.conf"), sshd)?;
    std::fs::write(format!("{DIR}/index.html"), "a page of the web server\n")?;
    let everywhere = "listen 80; listen [::]:80; listen 443; listen [::]:443;";
    let mirror = format!("listen {MIRROR}:80;");
    for (name, listen) in [(server.name, everywhere), (intruder.name, everywhere), ("mirror", &mirror)] {
        let conf = format!(
            "daemon off; user root; worker_processes 1; pid {DIR}/{0}.nginx.pid; error_log /dev/null;\n\
             events {{ worker_connections 128; }}\n\
             http {{ access_log off; client_body_temp_path {DIR}/{0}.tmp; server {{ {listen} root {DIR}; }} }}\n",
            name
        );
        std::fs::write(format!("{DIR}/{name}.nginx.conf"), conf)?;
    }
    let nginx = |host: &Host| {
        let conf = format!("{DIR}/{}.nginx.conf", host.name);
        Server::start(guarded(host, cgroup, "nginx").args(["-e", "/dev/null", "-c", &conf]))
    };
    let dns =
        ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file="];
    // The provider's, on the router, and the intruder's, which answers whatever is asked: a tunnel's end.
    for address in [RESOLVER, MIRROR] {
        ip(&format!("addr add {address}/32 dev lo"))?;
    }
    let mut mirror = Command::new("nginx");
    mirror.args(["-e", "/dev/null", "-c", "/run/lab/mirror.nginx.conf"]);
    let mut resolver = Command::new("dnsmasq");
    resolver.args(dns).args(["--bind-interfaces", "--listen-address", RESOLVER, "--address=/www.example/192.0.2.80"]);
    let mut tunnel = intruder.command("dnsmasq");
    tunnel.args(dns).args(["--address=/#/203.0.113.66"]);
    let sshd = shell::find("sshd").context("sshd is missing")?;
    Ok(vec![
        Server::start(guarded(server, cgroup, &sshd.to_string_lossy()).args(["-D", "-e", "-f", "/run/lab/sshd.conf"]))?,
        nginx(server)?,
        nginx(intruder)?,
        Server::start(&mut mirror)?,
        Server::start(&mut resolver)?,
        Server::start(&mut tunnel)?,
    ])
}

/// A program on a host, as a process of the cgroup that guard guards (which judges only sockets of its own network
/// namespace, so that another host's processes may be in it too).
pub fn guarded(host: &Host, cgroup: &Path, program: &str) -> Command {
    let mut command = host.command("sh");
    command.args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec \"$@\""]).arg(cgroup).arg(program);
    command
}
