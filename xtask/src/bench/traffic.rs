//! Load between two hosts, from one thread each: bounded in time, and only between namespaces of our own.

use crate::lab::host::Host;
use anyhow::{Context as _, Result};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub const PORT: u16 = 5000;
const TIME: Duration = Duration::from_millis(700);

/// Datagrams of 18 bytes (a frame of 60) that arrive, a second.
pub fn datagrams(from: &Host, to: &Host) -> Result<f64> {
    let address = SocketAddr::new(to.v4.parse()?, PORT);
    let receiver = to.within(|| UdpSocket::bind(address))??;
    receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
    let sender = from.within(|| UdpSocket::bind((from.v4, 0)))??;
    sender.connect(address)?;
    let (arrived, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if receiver.recv(&mut buffer).is_ok() {
                    arrived.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let start = Instant::now();
        let data = [0; 18];
        let mut result = Ok(());
        while start.elapsed() < TIME {
            for _ in 0..64 {
                match sender.send(&data) {
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => {}
                    Err(error) => result = Err(error).context("sending a datagram"),
                }
            }
            if result.is_err() {
                break;
            }
        }
        let rate = arrived.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        result.map(|()| rate)
    })
}

/// Connections a second, one after the other, each with one byte there and one back. The server closes first, so that
/// the client does not run out of ports.
pub fn connections(from: &Host, to: &Host) -> Result<f64> {
    let address = SocketAddr::new(to.v4.parse()?, PORT);
    let listener = to.within(|| TcpListener::bind(address))??;
    listener.set_nonblocking(false)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<()> {
            let mut byte = [0];
            while !stop.load(Ordering::Relaxed) {
                let (mut stream, _) = listener.accept()?;
                if matches!(stream.read(&mut byte), Ok(1)) {
                    stream.write_all(&byte)?;
                }
            }
            Ok(())
        });
        let client = from.within(|| -> Result<f64> {
            let start = Instant::now();
            let (mut done, mut byte) = (0_u64, [0]);
            while start.elapsed() < TIME {
                let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                // Until the server has closed.
                anyhow::ensure!(stream.read(&mut byte)? == 0, "a byte too many");
                done += 1;
            }
            Ok(done as f64 / start.elapsed().as_secs_f64())
        });
        stop.store(true, Ordering::Relaxed);
        // One more, so that the server sees that it is over; where it fails, the server has failed before.
        let _ = from.within(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)));
        let served = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        client?.and_then(|rate| served.map(|()| rate))
    })
}
