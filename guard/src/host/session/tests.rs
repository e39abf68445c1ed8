use std::collections::HashSet;

use super::*;

const CLIENT: &str = "198.51.100.7:4000";
const SERVER: &str = "192.0.2.1:22";

fn process(pid: u32, parent: u32, program: &str, sockets: &[u32]) -> Process {
    Process {
        pid,
        parent,
        comm: program.to_owned(),
        exe: Some(format!("/usr/bin/{program}").into()),
        sockets: sockets.to_vec(),
        ..Process::default()
    }
}

struct Scene {
    processes: Vec<Process>,
    sockets: Vec<Socket>,
    unix_peers: HashMap<u32, u32>,
    held: Vec<HeldFlow>,
}

impl Scene {
    fn session(&self, pid: u32, ssh_connection: Option<&str>) -> Session {
        let own: HashSet<IpAddr> = ["192.0.2.1".parse().unwrap()].into();
        let processes = Processes::from_list(self.processes.clone());
        let sockets = Sockets { all: self.sockets.clone(), ..Sockets::default() };
        let host = Host {
            processes: &processes,
            sockets: &sockets,
            unix_peers: &self.unix_peers,
            own: &own,
            held: &self.held,
            ssh_connection: &|pid| (pid == 20).then(|| "198.51.100.7 4000 192.0.2.1 22".to_owned()),
        };
        find(&host, pid, ssh_connection)
    }
}

/// sshd (1) → sshd session (10) → bash (11) → sudo (12) → guard (13).
fn ssh() -> Scene {
    Scene {
        processes: vec![
            process(1, 0, "sshd", &[100]),
            process(10, 1, "sshd", &[101]),
            process(11, 10, "bash", &[]),
            process(12, 11, "sudo", &[]),
            process(13, 12, "guard", &[]),
        ],
        sockets: vec![Socket::tcp("0.0.0.0:22", "0.0.0.0:0", 100), Socket::tcp(SERVER, CLIENT, 101)],
        unix_peers: HashMap::new(),
        held: Vec::new(),
    }
}

#[test]
fn through_sudo_to_the_ssh_server() {
    let session = ssh().session(13, None);
    assert_eq!(session.carriers.len(), 1);
    let carrier = &session.carriers[0];
    assert_eq!((carrier.pid, carrier.direction, carrier.found), (10, Direction::Inbound, Found::Ancestor));
    assert_eq!(carrier.remote, CLIENT.parse().unwrap());
    assert_eq!(carrier.to_string(), "in tcp 198.51.100.7 -> 22 (sshd 10)");
    assert!(session.carried_by(carrier.local, carrier.remote).is_some());
}

#[test]
fn the_console_has_none() {
    let mut scene = ssh();
    scene.processes[2].parent = 0;
    assert!(!scene.session(13, None).is_remote());
}

#[test]
fn a_port_forward_of_the_session_is_not_the_session() {
    let mut scene = ssh();
    scene.processes[1].sockets.push(102);
    scene.sockets.push(Socket::tcp("192.0.2.1:50000", "203.0.113.9:443", 102));
    let session = scene.session(13, None);
    assert_eq!(session.carriers.len(), 1);
    assert_eq!(session.carriers[0].remote, CLIENT.parse().unwrap());
}

#[test]
fn under_tmux_by_the_attached_client() {
    let mut scene = ssh();
    // The session runs `tmux attach` (20); the shell (31) belongs to the server (30), a child of init.
    scene.processes.extend([
        process(20, 11, "tmux", &[501]),
        process(30, 1000, "tmux", &[502]),
        process(31, 30, "bash", &[]),
        process(32, 31, "guard", &[]),
    ]);
    scene.unix_peers = HashMap::from([(501, 502), (502, 501)]);
    let session = scene.session(32, None);
    assert_eq!(session.carriers.len(), 1);
    assert_eq!(session.carriers[0].found, Found::Multiplexer);
    assert_eq!(session.carriers[0].pid, 10);
}

#[test]
fn under_screen_by_its_terminal() {
    let mut scene = ssh();
    let mut client = process(20, 11, "screen", &[]);
    client.tty = 34816;
    let mut server = process(30, 1000, "screen", &[]);
    server.terminals = vec![34816];
    scene.processes.extend([client, server, process(31, 30, "guard", &[])]);
    let session = scene.session(31, None);
    assert_eq!(session.carriers.len(), 1);
    assert_eq!(session.carriers[0].found, Found::Multiplexer);
}

#[test]
fn the_environment_counts_only_if_it_is_true_now() {
    let mut scene = ssh();
    scene.processes[2].parent = 0;
    let carriers = scene.session(13, Some("198.51.100.7 4000 192.0.2.1 22")).carriers;
    assert_eq!(carriers.len(), 1);
    assert_eq!(carriers[0].found, Found::SshConnection);
    assert!(!scene.session(13, Some("198.51.100.7 4001 192.0.2.1 22")).is_remote());
    assert!(!scene.session(13, Some("nonsense")).is_remote());
    scene.processes[1].exe = Some("/tmp/.x".into());
    assert!(!scene.session(13, Some("198.51.100.7 4000 192.0.2.1 22")).is_remote());
}

#[test]
fn under_mosh_by_its_peers_else_by_its_login() {
    let mut scene = ssh();
    // mosh-server (20) left the session that started it, and has a shell (21) of its own.
    scene.processes.extend([process(20, 1000, "mosh-server", &[600]), process(21, 20, "bash", &[])]);
    let mut udp = Socket::tcp("192.0.2.1:60001", "0.0.0.0:0", 600);
    (udp.protocol, udp.state) = (UDP, SocketState::Close);
    scene.sockets.push(udp);
    let carriers = scene.session(21, None).carriers;
    assert_eq!(carriers.len(), 1);
    assert_eq!((carriers[0].found, carriers[0].remote), (Found::MoshLogin, "198.51.100.7:0".parse().unwrap()));
    assert_eq!(carriers[0].to_string(), "in udp 198.51.100.7 -> 60001 (mosh-server 20)");

    // The client has roamed.
    let ends = ("203.0.113.77:5000".parse().unwrap(), "192.0.2.1:60001".parse().unwrap());
    scene.held.push(HeldFlow {
        key: crate::host::held::key(UDP, ends.0, ends.1, 0).unwrap(),
        direction: Direction::Inbound,
        interface: None,
        tcp: guard_common::abi::TcpState::None,
        answered: true,
        cookie: 600,
        adopted: true,
        source: crate::host::held::Source::Conntrack,
        program: None,
    });
    let carriers = scene.session(21, None).carriers;
    assert_eq!(carriers.len(), 1);
    assert_eq!((carriers[0].found, carriers[0].remote), (Found::Mosh, ends.0));
    // Any other program with such a socket is none.
    scene.processes[5].exe = Some("/usr/sbin/named".into());
    assert!(!scene.session(21, None).is_remote());
}

#[test]
fn a_tunnel_is_followed_to_the_outside() {
    let mut scene = ssh();
    // The session comes in over loopback, from an agent (40) that dialled out.
    scene.sockets[1] = Socket::tcp("127.0.0.1:22", "127.0.0.1:4000", 101);
    scene.sockets.push(Socket::tcp("127.0.0.1:4000", "127.0.0.1:22", 401));
    scene.sockets.push(Socket::tcp("192.0.2.1:50001", "203.0.113.9:443", 402));
    scene.processes.push(process(40, 1, "agent", &[401, 402]));
    let session = scene.session(13, None);
    assert_eq!(session.carriers.len(), 1);
    assert_eq!(session.carriers[0].found, Found::Tunnel);
    assert_eq!(session.carriers[0].direction, Direction::Outbound);
    assert_eq!(session.carriers[0].remote, "203.0.113.9:443".parse().unwrap());
}
