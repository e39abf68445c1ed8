//! What listens inside: every kind of socket that may hear something, each of which says so, and answers.

use std::{
    io::Write,
    mem::zeroed,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::Result;
use nix::sys::socket::SockaddrStorage;

/// Where somebody listens, for TCP and UDP; in no rule.
pub const PORT: u16 = 6001;

/// Protocols without ports for which a raw socket is open.
pub const RAW: &[u8] = &[4, 33, 41, 46, 47, 50, 88, 89, 94, 97, 103, 108, 112, 115, 132, 136, 137, 143, 253];

/// Prints `got TEXT` for every mark that arrives, until it is killed.
pub fn run() -> Result<()> {
    let udp = UdpSocket::bind(("0.0.0.0", PORT))?;
    let udp_v6 = socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
    option(udp_v6.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1i32)?;
    nix::sys::socket::bind(udp_v6.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from(([0u16; 8], PORT))))?;
    for group in [[224, 0, 0, 251], [239, 1, 1, 1]] {
        udp_v4_join(&udp, group.into())?;
    }
    let tcp = TcpListener::bind(("::", PORT))?;
    let mut raw = Vec::new();
    for &protocol in RAW {
        for family in [libc::AF_INET, libc::AF_INET6] {
            raw.push(socket(family, libc::SOCK_RAW, protocol.into())?);
        }
    }
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            std::thread::spawn(move || answer_tcp(stream));
        }
    });
    println!("ready");
    let mut polls: Vec<libc::pollfd> = [udp.as_raw_fd(), udp_v6.as_raw_fd()]
        .into_iter()
        .chain(raw.iter().map(AsRawFd::as_raw_fd))
        .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 })
        .collect();
    let mut buffer = vec![0; 70_000];
    loop {
        // SAFETY: the array is ours and as long as said.
        if unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) } < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        for poll in polls.iter().filter(|poll| poll.revents & libc::POLLIN != 0) {
            hear(poll.fd, &mut buffer);
        }
    }
}

/// Takes what there is, says it, and sends it back.
fn hear(fd: i32, buffer: &mut [u8]) {
    // SAFETY: address and buffer are ours, and as long as said.
    unsafe {
        let mut from: libc::sockaddr_storage = zeroed();
        let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        let got = libc::recvfrom(
            fd,
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            (&raw mut from).cast(),
            &raw mut length,
        );
        let Ok(got) = usize::try_from(got) else { return };
        say(&buffer[..got]);
        // Refused or not: who asked may be unreachable.
        libc::sendto(fd, buffer.as_ptr().cast(), got, libc::MSG_DONTWAIT, (&raw const from).cast(), length);
    }
}

fn answer_tcp(mut stream: std::net::TcpStream) {
    use std::io::Read;
    let mut buffer = [0; 2048];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        say(&buffer[..length]);
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn say(bytes: &[u8]) {
    for window in bytes.windows(14) {
        if window.starts_with(b"e5ca:") && window.ends_with(b":pe") {
            println!("got {}", String::from_utf8_lossy(window));
        }
    }
}

fn udp_v4_join(socket: &UdpSocket, group: std::net::Ipv4Addr) -> Result<()> {
    // By name of an address: on the interface that has it.
    let request = libc::ip_mreq {
        imr_multiaddr: libc::in_addr { s_addr: u32::from(group).to_be() },
        imr_interface: libc::in_addr { s_addr: u32::from(crate::mark::at::SERVER_V4).to_be() },
    };
    option(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &request)
}

pub fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: a plain system call; the descriptor is ours.
    unsafe {
        let fd = libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol);
        anyhow::ensure!(fd >= 0, "socket({family}, {kind}, {protocol}): {}", std::io::Error::last_os_error());
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

pub fn option<T>(fd: i32, level: i32, name: i32, value: &T) -> Result<()> {
    // SAFETY: the value is as long as said.
    let set =
        unsafe { libc::setsockopt(fd, level, name, (&raw const *value).cast(), size_of::<T>() as libc::socklen_t) };
    anyhow::ensure!(set == 0, "setsockopt({level}, {name}): {}", std::io::Error::last_os_error());
    Ok(())
}
