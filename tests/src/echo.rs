//! Servers of our own that say everything back, and count what reached them: whether a packet passed is seen by whom
//! it was for.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::world::Inside;

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Echo {
    pub address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    reached: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Echo {
    /// Port 0: any.
    pub fn tcp(place: &Inside, address: IpAddr, port: u16) -> io::Result<Self> {
        let listener = place.run(|| TcpListener::bind((address, port)))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self::start(address, move |state| accept(&listener, state)))
    }

    pub fn udp(place: &Inside, address: IpAddr, port: u16) -> io::Result<Self> {
        let socket = place.run(|| UdpSocket::bind((address, port)))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let address = socket.local_addr()?;
        Ok(Self::start(address, move |state| answer(&socket, state)))
    }

    /// Connections accepted, or datagrams received.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.state.reached.load(Ordering::Relaxed)
    }

    fn start(address: SocketAddr, serve: impl FnOnce(&Arc<State>) + Send + 'static) -> Self {
        let state = Arc::new(State::default());
        let own = Arc::clone(&state);
        Self { address, state, thread: Some(thread::spawn(move || serve(&own))) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for stream in self.state.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    while !state.stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            wait_readable(listener);
            continue;
        };
        state.reached.fetch_add(1, Ordering::Relaxed);
        let (Ok(()), Ok(copy)) = (stream.set_nonblocking(false), stream.try_clone()) else { continue };
        state.open.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
        thread::spawn(move || echo(stream));
    }
}

/// A while, or until somebody connects.
fn wait_readable(listener: &TcpListener) {
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 20) };
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 16_384];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // The list of open streams holds a copy, so that dropping this one would not close it.
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

fn answer(socket: &UdpSocket, state: &Arc<State>) {
    let mut buffer = [0; 65_536];
    while !state.stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            state.reached.fetch_add(1, Ordering::Relaxed);
            // Whoever asked may be unreachable: that is what is tested.
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

/// Connects from inside `place`; `Err` with `TimedOut` where nothing answers within `limit`.
pub fn connect(place: &Inside, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let stream = place.run(|| TcpStream::connect_timeout(&to, limit))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Says something over an open connection, and whether it came back.
pub fn speaks(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"anybody there?")?;
    let mut back = [0; 14];
    stream.read_exact(&mut back)?;
    if &back == b"anybody there?" { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

/// A whole connection: opened, something said and heard.
pub fn tcp_reaches(place: &Inside, to: SocketAddr, limit: Duration) -> io::Result<()> {
    speaks(&mut connect(place, to, limit)?)
}

/// A datagram there and back, from a socket of its own.
pub fn udp_reaches(place: &Inside, to: SocketAddr, limit: Duration) -> io::Result<()> {
    let socket = udp_socket(place, to.is_ipv6(), limit)?;
    udp_speaks(&socket, to)
}

/// Bound to any port, not connected.
pub fn udp_socket(place: &Inside, ipv6: bool, limit: Duration) -> io::Result<UdpSocket> {
    let any: IpAddr = if ipv6 { [0u16; 8].into() } else { [0u8; 4].into() };
    let socket = place.run(|| UdpSocket::bind((any, 0)))?;
    socket.set_read_timeout(Some(limit))?;
    Ok(socket)
}

pub fn udp_speaks(socket: &UdpSocket, to: SocketAddr) -> io::Result<()> {
    socket.send_to(b"anybody there?", to)?;
    let mut back = [0; 64];
    let (length, from) = socket.recv_from(&mut back)?;
    if &back[..length] == b"anybody there?" && from == to { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}
