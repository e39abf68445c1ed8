//! Two hosts and a cable: what a filter on one of them leaves of packets and connections a second.

use super::table::{self, Series};
use super::{nftables, raw, traffic};
use crate::lab::host::{self, Host, Server, ip};
use crate::lab::sandbox;
use crate::shell;
use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::time::Duration;

/// The allow-list: what both filters hold.
pub struct Addresses {
    pub cidrs: Vec<String>,
}

const CIDRS: u32 = 10_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Filter {
    None,
    Guard,
    Nftables { track: bool },
}

const FILTERS: [(Filter, &str); 4] = [
    (Filter::None, "no filter"),
    (Filter::Guard, "guard"),
    (Filter::Nftables { track: false }, "nftables, set"),
    (Filter::Nftables { track: true }, "nftables, ct and set"),
];

pub fn measure(runs: usize, cgroup: &Path) -> Result<()> {
    sandbox::settle()?;
    let (client, server) = cable()?;
    let addresses = Addresses::make()?;
    let mut packets = series("packets/s");
    let mut connections = series("conn/s");
    // Every filter in every round, so that what the machine does meanwhile meets all of them.
    for _ in 0..runs {
        for (number, (filter, name)) in FILTERS.iter().enumerate() {
            let guard = up(*filter, &server, &addresses, cgroup).with_context(|| (*name).to_owned())?;
            packets[number].runs.push(traffic::datagrams(&client, &server).with_context(|| (*name).to_owned())?);
            connections[number].runs.push(traffic::connections(&client, &server).with_context(|| (*name).to_owned())?);
            down(*filter, &server, guard)?;
        }
    }
    let title = |what: &str| format!("{what}, one host to another, {CIDRS} CIDRs allowed");
    table::print(&title("small UDP packets"), &packets);
    table::print(&title("short TCP connections"), &connections);
    table::keep(&raw().join("pair-packets.json"), &packets)?;
    table::keep(&raw().join("pair-connections.json"), &connections)
}

fn series(unit: &'static str) -> Vec<Series> {
    FILTERS.iter().map(|(_, name)| Series { name: (*name).to_owned(), unit, runs: Vec::new() }).collect()
}

/// Without a router between, which would cost more than any filter.
fn cable() -> Result<(Host, Host)> {
    let client = Host { name: "client", v4: "192.0.2.80", v6: "2001:db8::80" };
    let server = Host { name: "server", v4: "192.0.2.10", v6: "2001:db8::10" };
    for host in [&client, &server] {
        ip(&format!("netns add {}", host.name))?;
    }
    ip("link add eth0 netns client type veth peer name eth0 netns server")?;
    for host in [&client, &server] {
        for args in ["link set lo up", "link set eth0 up", &format!("addr add {}/24 dev eth0", host.v4)] {
            ip(&format!("-n {} {args}", host.name))?;
        }
    }
    Ok((client, server))
}

impl Addresses {
    /// Disjoint /28s of a private range, which nothing here sends to, and the client's network.
    fn make() -> Result<Self> {
        let mut cidrs = vec!["192.0.2.64/26".to_owned()];
        cidrs.extend((0..CIDRS - 1).map(|number| {
            let address = 10 << 24 | number << 5;
            format!("{}/28", std::net::Ipv4Addr::from(address))
        }));
        std::fs::write("/run/lab/list.txt", cidrs.join("\n") + "\n")?;
        let port = traffic::PORT;
        let policy = format!(
            "version: 1\nname: bench\nmode: enforce\ngroups:\n  allowed: {{ file: list.txt }}\n\
             inbound:\n  - name: load\n    from: allowed\n    services: [tcp/{port}, udp/{port}]\noutbound: []\n"
        );
        std::fs::write("/run/lab/policy.yaml", policy)?;
        Ok(Self { cidrs })
    }
}

const LOG: &str = "/run/lab/guard.log";

fn up(filter: Filter, server: &Host, addresses: &Addresses, cgroup: &Path) -> Result<Option<Server>> {
    match filter {
        Filter::None => Ok(None),
        Filter::Nftables { track } => nftables::load(server, addresses, track).map(|()| None),
        Filter::Guard => {
            std::fs::write(LOG, "")?;
            let mut command = guard(server);
            command.args(["run", "/run/lab/policy.yaml", "--cgroup"]).arg(cgroup).args(INSTANCE);
            let daemon = Server::start_to(&mut command, Path::new(LOG))?;
            let said = || std::fs::read_to_string(LOG).unwrap_or_default();
            host::wait_for("guard run", || said().contains("ready"))
                .with_context(|| format!("guard said:\n{}", said()))?;
            Ok(Some(daemon))
        }
    }
}

fn down(filter: Filter, server: &Host, daemon: Option<Server>) -> Result<()> {
    match filter {
        Filter::None => {}
        Filter::Nftables { .. } => {
            ensure!(nftables::hits(server)? > 1000, "the rules were not in the way: they counted nothing");
            nftables::unload(server)?;
        }
        Filter::Guard => {
            let status = guard_says(server, &["status", "--json"])?;
            let status: serde_json::Value = serde_json::from_str(&status).context("guard status --json")?;
            ensure!(status["enforcing"] == true, "guard was not in the way: {status}");
            guard_says(server, &["release"])?;
        }
    }
    drop(daemon);
    Ok(())
}

const INSTANCE: [&str; 4] = ["--instance", "bench", "--state-dir", "/run/lab/state"];

fn guard(server: &Host) -> std::process::Command {
    server.command(&shell::target().join("release/guard").to_string_lossy())
}

fn guard_says(server: &Host, args: &[&str]) -> Result<String> {
    Ok(host::ask(guard(server).args(args).args(INSTANCE), "", Duration::from_secs(10))?.1)
}
