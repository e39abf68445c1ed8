//! Where an SSH server listens, or will: found by the sockets of those that run, and by what they are configured to.

use std::{collections::BTreeSet, fs, path::Path};

use super::{
    picture::Picture,
    processes::Process,
    sock_diag::{SocketState, Sockets},
};

/// Units that hold the port where sshd is started by its socket, and where they may be.
const SOCKET_UNITS: [&str; 2] = ["ssh.socket", "sshd.socket"];
const UNIT_PLACES: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "run/systemd/generator",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// By its program: `sshd-session` and `sshd-auth` are OpenSSH's since 9.8 and 10.0.
#[must_use]
pub fn is_server(process: &Process) -> bool {
    matches!(process.program(), Some("sshd" | "sshd-session" | "sshd-auth" | "dropbear"))
}

/// Ports at which one listens now.
#[must_use]
pub fn listening(picture: &Picture) -> Vec<u16> {
    let sockets: &Sockets = &picture.sockets;
    let ports: BTreeSet<u16> = sockets
        .all
        .iter()
        .filter(|socket| socket.protocol == 6 && socket.state == SocketState::Listen)
        .filter(|socket| {
            // systemd holds the port where sshd is started by its socket.
            socket.local.port() == 22 || picture.processes.holders(sockets.holder(socket)).any(is_server)
        })
        .map(|socket| socket.local.port())
        .collect();
    ports.into_iter().collect()
}

/// Ports at which one may listen later, by the configuration below `root`, which may be wider than what holds: nobody is
/// to be locked out. Port 22 is always among them.
#[must_use]
pub fn configured(root: &Path) -> BTreeSet<u16> {
    let mut ports = BTreeSet::from([22]);
    let mut config = vec![root.join("etc/ssh/sshd_config")];
    config.extend(listed(&root.join("etc/ssh/sshd_config.d")));
    for file in config {
        ports.extend(text(&file).lines().filter_map(sshd_port));
    }
    for place in UNIT_PLACES {
        for unit in SOCKET_UNITS {
            let unit = root.join(place).join(unit);
            let mut drop_ins = unit.clone().into_os_string();
            drop_ins.push(".d");
            for file in std::iter::once(unit).chain(listed(Path::new(&drop_ins))) {
                ports.extend(text(&file).lines().filter_map(stream_port));
            }
        }
    }
    ports
}

fn listed(directory: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What cannot be read names no port.
fn text(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}

/// `Port 2222`, `ListenAddress [::]:2222` (sshd_config(5)).
fn sshd_port(line: &str) -> Option<u16> {
    let line = line.split('#').next()?.trim();
    let (key, value) = line.split_once(|c: char| c.is_ascii_whitespace() || c == '=')?;
    let value = value.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '=').trim_matches('"');
    let value = value.split_ascii_whitespace().next()?.trim_matches('"');
    match key.to_ascii_lowercase().as_str() {
        "port" => value.parse().ok(),
        "listenaddress" => after_address(value),
        _ => None,
    }
}

/// `ListenStream=2222`, `ListenStream=[::]:2222` (systemd.socket(5)); not a path, nor VSOCK.
fn stream_port(line: &str) -> Option<u16> {
    let (key, value) = line.split_once('=')?;
    let value = value.trim();
    if key.trim() != "ListenStream" || value.starts_with("vsock") {
        return None;
    }
    value.parse().ok().or_else(|| after_address(value))
}

/// Of `address:port`, an IPv6 address in brackets.
fn after_address(text: &str) -> Option<u16> {
    let (address, port) = text.rsplit_once(':')?;
    let bare_ipv6 = address.contains(':') && !address.ends_with(']');
    (!bare_ipv6).then(|| port.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_that_is_configured_is_found() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(configured(root.path()), BTreeSet::from([22]));
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "etc/ssh/sshd_config",
            "#Port 23\n  port 2222 # ours\nListenAddress 192.0.2.1:2200\nListenAddress [2001:db8::1]:2201\n\
             ListenAddress 2001:db8::1234\nListenAddress ::\nPermitRootLogin no\n",
        );
        write("etc/ssh/sshd_config.d/50-site.conf", "Port=2202\nPort \"2203\"\n");
        write("usr/lib/systemd/system/ssh.socket", "[Socket]\nListenStream=22\nListenStream=/run/ssh.sock\n");
        write("etc/systemd/system/ssh.socket.d/port.conf", "[Socket]\nListenStream=\nListenStream = [::]:2204\n");
        write(
            "run/systemd/generator/ssh.socket.d/addresses.conf",
            "ListenStream=vsock::22\nListenStream=0.0.0.0:2205\n",
        );
        assert_eq!(configured(root.path()), BTreeSet::from([22, 2222, 2200, 2201, 2202, 2203, 2204, 2205]));
    }
}
