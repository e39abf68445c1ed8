//! What the tests run inside the guarded cgroup: one system call of interest, and what it said.
//!
//! ```text
//! connect tcp|udp ADDRESS:PORT      connect
//! send ADDRESS:PORT                 an unconnected datagram
//! bypass WAY INTERFACE 0|1 HEX      a packet socket with PACKET_QDISC_BYPASS, ten frames through it
//! bypasses INTERFACE HEX            a packet socket that goes round the qdisc; for each line that comes in its option is
//!                                   set to that value (`send`: left as it is), and a frame sent
//! xdp WAY                           an AF_XDP socket, and its first option
//! xdp-send INTERFACE HEX            a frame by an AF_XDP socket
//! xdp-sends INTERFACE HEX           a frame by one for each line of its input
//! bpf WORDS…                        one call of bpf(2) (`guard_tests::other_bpf`)
//! priority WAY                      an option that nobody minds
//! serve PORT                        says back whatever comes over TCP, in IPv6 and IPv4, until it is killed
//! hold tcp ADDRESS:PORT             says something and hears it, a line each time a line comes in, until the end
//! ```
//!
//! WAY is `native`, `int80` or `uring` (`guard_tests::ways`). Prints `ok`, or the number of the error, and the milliseconds that the call took.

use std::{
    io::{self, BufRead},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use guard_tests::{echo::speaks, ways::Way, witness::packet_socket};

const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["connect", "tcp", to] => say(|| TcpStream::connect_timeout(&address(to), PATIENCE).map(drop)),
        ["connect", "udp", to] => say(|| bound(&address(to))?.connect(address(to))),
        ["send", to] => say(|| bound(&address(to))?.send_to(b"x", address(to)).map(drop)),
        ["bypass", way, interface, on, frame] => bypass(by(way)?, interface, on == "1", &bytes(frame)?)?,
        ["bypasses", interface, frame] => bypasses(interface, &bytes(frame)?)?,
        ["xdp", way] => xdp(by(way)?),
        ["xdp-send", interface, frame] => {
            let (index, frame) = (nix::net::if_::if_nametoindex(interface)?, bytes(frame)?);
            say(|| guard_tests::af_xdp::send(index, &frame));
        }
        ["xdp-sends", interface, frame] => {
            let (index, frame) = (nix::net::if_::if_nametoindex(interface)?, bytes(frame)?);
            let sender = guard_tests::af_xdp::Sender::new(index, &frame)?;
            say(|| Ok(()));
            for line in io::stdin().lock().lines() {
                line?;
                say(|| sender.send());
            }
        }
        ["bpf", ref words @ ..] => say(|| guard_tests::other_bpf::call(words)),
        ["priority", way] => priority(by(way)?)?,
        ["serve", port] => serve(port.parse().map_err(io::Error::other)?)?,
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

fn serve(port: u16) -> io::Result<()> {
    let unspecified: [IpAddr; 2] = [[0u16; 8].into(), [0u8; 4].into()];
    let listener = TcpListener::bind(&unspecified.map(|any| SocketAddr::new(any, port))[..])?;
    println!("serves {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || -> io::Result<u64> {
            let mut back = stream.try_clone()?;
            io::copy(&mut stream, &mut back)
        });
    }
    Ok(())
}

fn by(word: &str) -> io::Result<Way> {
    Way::parse(word).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "native, int80 or uring"))
}

fn bytes(hex: &str) -> io::Result<Vec<u8>> {
    let byte = |at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).map_err(io::Error::other);
    (0..hex.len() / 2).map(byte).collect()
}

fn set_bypass(way: Way, socket: &OwnedFd, on: bool) -> io::Result<()> {
    way.set_option(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &i32::from(on).to_ne_bytes())
}

fn send(socket: &OwnedFd, frame: &[u8]) {
    // SAFETY: the buffer is as long as said.
    unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
}

fn bypass(way: Way, interface: &str, on: bool, frame: &[u8]) -> io::Result<()> {
    let socket = packet_socket(nix::net::if_::if_nametoindex(interface)?)?;
    say(|| set_bypass(way, &socket, on));
    for _ in 0..10 {
        send(&socket, frame);
    }
    Ok(())
}

fn bypasses(interface: &str, frame: &[u8]) -> io::Result<()> {
    let socket = packet_socket(nix::net::if_::if_nametoindex(interface)?)?;
    say(|| set_bypass(Way::Native, &socket, true));
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line != "send" {
            say(|| set_bypass(Way::Native, &socket, line == "1"));
        }
        send(&socket, frame);
    }
    Ok(())
}

/// XDP_UMEM_REG without a usable area: EINVAL or EFAULT from the kernel itself, EPERM from the seal. The socket alone
/// may be refused already; a second line says so.
fn xdp(way: Way) {
    const XDP_UMEM_REG: i32 = 4;
    let mut made = false;
    say(|| {
        // Left to the process's end.
        let socket = way.socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0)?;
        made = true;
        way.set_option(socket, libc::SOL_XDP, XDP_UMEM_REG, &[0; 32])
    });
    println!("{}", if made { "made" } else { "not made" });
}

fn priority(way: Way) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    say(|| way.set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PRIORITY, &3_i32.to_ne_bytes()));
    Ok(())
}
