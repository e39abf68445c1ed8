//! Connections and associations with both ends in hand, so that either side may speak first.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    flows::{Flow, PASSES, Protocol},
    world::{Inside, World},
};

/// The server's end and the remote's end of one flow that was begun as the flow says.
#[derive(Debug)]
pub enum Session {
    /// The listener stays: it is by its port that a host knows who began a connection.
    Tcp {
        server: TcpStream,
        remote: TcpStream,
        _listener: TcpListener,
    },
    Udp {
        server: UdpSocket,
        remote: UdpSocket,
        ends: (SocketAddr, SocketAddr),
    },
}

impl Session {
    /// Begins it, and says something both ways. Who asks by UDP connects its socket; who is asked does not, as servers do.
    pub fn begin(world: &World, flow: &Flow) -> io::Result<Self> {
        let asked = flow.asked(world);
        let asker = if flow.inbound { flow.remote_address(world) } else { flow.local_address(world) };
        let (server, remote): (&Inside, &Inside) = (&world.server, flow.place(world));
        let (asked_place, asker_place) = if flow.inbound { (server, remote) } else { (remote, server) };
        let mut session = match flow.protocol {
            Protocol::Tcp => {
                let listener = asked_place.run(|| TcpListener::bind(asked))?;
                let asking = asker_place.run(|| TcpStream::connect_timeout(&asked, PASSES))?;
                let (accepted, _) = listener.accept()?;
                asking.set_nodelay(true)?;
                accepted.set_nodelay(true)?;
                let (server, remote) = if flow.inbound { (accepted, asking) } else { (asking, accepted) };
                Self::Tcp { server, remote, _listener: listener }
            }
            Protocol::Udp => {
                let asked_socket = asked_place.run(|| UdpSocket::bind(asked))?;
                let asker_socket = asker_place.run(|| UdpSocket::bind((asker, 0)))?;
                asker_socket.connect(asked)?;
                let asker = asker_socket.local_addr()?;
                if flow.inbound {
                    Self::Udp { server: asked_socket, remote: asker_socket, ends: (asked, asker) }
                } else {
                    Self::Udp { server: asker_socket, remote: asked_socket, ends: (asker, asked) }
                }
            }
            Protocol::Ping => return Err(io::Error::new(ErrorKind::Unsupported, "a ping has no session")),
        };
        let asker_is_server = !flow.inbound;
        session.speaks(asker_is_server, PASSES)?;
        session.speaks(!asker_is_server, PASSES)?;
        Ok(session)
    }

    /// Something said by one side arrives at the other within `limit`.
    pub fn speaks(&mut self, from_server: bool, limit: Duration) -> io::Result<()> {
        const WORDS: &[u8; 5] = b"still";
        let mut heard = [0; 5];
        match self {
            Self::Tcp { server, remote, .. } => {
                let (from, to) = if from_server { (server, remote) } else { (remote, server) };
                to.set_read_timeout(Some(limit))?;
                from.write_all(WORDS)?;
                to.read_exact(&mut heard)?;
            }
            Self::Udp { server, remote, ends } => {
                let (from, to, address) = if from_server { (server, remote, ends.1) } else { (remote, server, ends.0) };
                to.set_read_timeout(Some(limit))?;
                from.send_to(WORDS, address)?;
                to.recv(&mut heard)?;
            }
        }
        if &heard == WORDS { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
    }

    /// The asker's port.
    pub fn asker(&self, flow: &Flow) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp { server, remote, .. } => if flow.inbound { remote } else { server }.local_addr(),
            Self::Udp { server, remote, .. } => if flow.inbound { remote } else { server }.local_addr(),
        }
    }

    /// Keeps speaking both ways, as fast as answers come (but at most every 2 ms), until told to stop.
    #[must_use]
    pub fn keep_speaking(mut self) -> Speaking {
        let state = Arc::new(State::default());
        let own = Arc::clone(&state);
        let thread = thread::spawn(move || {
            while !own.stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                for from_server in [true, false] {
                    self.speaks(from_server, PASSES)?;
                    own.said.fetch_add(1, Ordering::Relaxed);
                    own.slowest.fetch_max(start.elapsed().as_millis() as u64, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
        Speaking { state, thread: Some(thread) }
    }
}

/// A session that speaks in the background.
#[derive(Debug)]
pub struct Speaking {
    state: Arc<State>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    said: AtomicU64,
    slowest: AtomicU64,
}

impl Speaking {
    /// How often something was said and heard so far.
    #[must_use]
    pub fn said(&self) -> u64 {
        self.state.said.load(Ordering::Relaxed)
    }

    /// Milliseconds of the slowest exchange: 200 and more is a retransmission, so a lost packet.
    #[must_use]
    pub fn slowest(&self) -> u64 {
        self.state.slowest.load(Ordering::Relaxed)
    }

    /// Stops it; the error that ended it before, if one did.
    pub fn finish(mut self) -> io::Result<()> {
        self.state.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(io::Error::other("the session's thread panicked")),
        }
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its result is asked for by `finish`.
            let _ = thread.join();
        }
    }
}
