//! What the tests run inside the guarded cgroup: one system call of interest, and what it said.
//!
//! ```text
//! connect tcp|udp ADDRESS:PORT      connect
//! send ADDRESS:PORT                 an unconnected datagram
//! bypass INTERFACE 0|1 HEX          a packet socket with PACKET_QDISC_BYPASS, ten frames through it
//! xdp                               an AF_XDP socket, and its first option
//! hold tcp ADDRESS:PORT             says something and hears it, a line each time a line comes in, until the end
//! ```
//!
//! Prints `ok`, or the number of the error, and the milliseconds that the call took.

use std::{
    io::{self, BufRead},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use guard_tests::{echo::speaks, witness::packet_socket};

const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["connect", "tcp", to] => say(|| TcpStream::connect_timeout(&address(to), PATIENCE).map(drop)),
        ["connect", "udp", to] => say(|| bound(&address(to))?.connect(address(to))),
        ["send", to] => say(|| bound(&address(to))?.send_to(b"x", address(to)).map(drop)),
        ["bypass", interface, on, frame] => bypass(interface, on == "1", frame)?,
        ["xdp"] => say(xdp),
        ["hold", "tcp", to] => hold(address(to))?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "see the source for what may be asked")),
    }
    Ok(())
}

fn say(call: impl FnOnce() -> io::Result<()>) {
    let start = Instant::now();
    let result = call();
    let took = start.elapsed().as_millis();
    match result {
        Ok(()) => println!("ok {took}"),
        Err(error) => println!("{} {took} {error}", error.raw_os_error().unwrap_or(-1)),
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn bound(to: &SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
    UdpSocket::bind((any, 0))
}

fn hold(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    for line in io::stdin().lock().lines() {
        line?;
        say(|| speaks(&mut stream));
    }
    Ok(())
}

fn bypass(interface: &str, on: bool, frame: &str) -> io::Result<()> {
    let frame: Vec<u8> = (0..frame.len() / 2)
        .map(|at| u8::from_str_radix(&frame[2 * at..2 * at + 2], 16).map_err(io::Error::other))
        .collect::<io::Result<_>>()?;
    let socket = packet_socket(nix::net::if_::if_nametoindex(interface)?)?;
    say(|| set_option(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &i32::from(on).to_ne_bytes()));
    for _ in 0..10 {
        // SAFETY: the buffer is as long as said.
        unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    }
    Ok(())
}

/// XDP_UMEM_REG without a usable area: EINVAL or EFAULT from the kernel itself, EPERM from the seal. The socket alone
/// may be refused already.
fn xdp() -> io::Result<()> {
    const XDP_UMEM_REG: i32 = 4;
    // SAFETY: a plain system call; the descriptor is left to the process's end.
    let socket = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    set_option(socket, libc::SOL_XDP, XDP_UMEM_REG, &[0; 32])
}

fn set_option(socket: i32, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the value is as long as said.
    let set = unsafe { libc::setsockopt(socket, level, name, value.as_ptr().cast(), value.len() as libc::socklen_t) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
