//! SCTP associations by the one-to-one form of its sockets (RFC 6458, section 4), which is used as TCP's.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::Duration,
};

use guard_tests::{echo::speaks, world::Inside};

/// Says everything back, until the program ends.
pub fn echo(place: &Inside, port: u16) -> io::Result<()> {
    let socket = socket(place)?;
    let address = address(Ipv4Addr::UNSPECIFIED, port);
    // SAFETY: an address of the length that is said, on a socket that is ours.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) };
    // SAFETY: as above.
    if bound < 0 || unsafe { libc::listen(socket.as_raw_fd(), 16) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let listener = TcpListener::from(socket);
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let mut copy = stream.try_clone()?;
                io::copy(&mut stream, &mut copy)
            });
        }
    });
    Ok(())
}

/// A whole association: opened, something said and heard.
pub fn reaches(place: &Inside, to: SocketAddr, limit: Duration) -> io::Result<()> {
    let IpAddr::V4(host) = to.ip() else { return Err(io::ErrorKind::Unsupported.into()) };
    let mut stream = TcpStream::from(socket(place)?);
    // Connecting waits as long as sending may.
    stream.set_write_timeout(Some(limit))?;
    stream.set_read_timeout(Some(limit))?;
    let address = address(host, to.port());
    // SAFETY: as above.
    if unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), LENGTH) } < 0 {
        return Err(io::Error::last_os_error());
    }
    speaks(&mut stream)
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;

fn socket(place: &Inside) -> io::Result<OwnedFd> {
    place.run(|| {
        // SAFETY: a plain system call, which gives a descriptor that is ours.
        unsafe {
            let raw = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP);
            if raw < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(raw)) }
        }
    })
}

fn address(host: Ipv4Addr, port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(host).to_be() },
        sin_zero: [0; 8],
    }
}
