//! The daemon's socket, `control.sock` in the state directory: one JSON object a line, both ways. Only root (whoever
//! owns the state directory) can connect.
//!
//! Commands change the kernel's state themselves, under the state directory's lock, so that they work without a
//! daemon; they tell it here, so that it names the new rules and knows the new deadline.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    record::{asked::AnswerCounts, flagged::FlaggedCounts, recorder::NamedCounts, sink::SinkCounts},
    store::StoreStatus,
};

/// What may be asked of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// What only the daemon knows.
    Status,
    /// The policy in force is another one: look again.
    Changed,
    /// What these addresses were asked as, at most [`ADDRESSES`].
    AskedAs { addresses: Vec<IpAddr> },
    /// guard was released: end.
    Released,
    /// Records from now on, one a line, until either side closes.
    Follow,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Done,
    Status(Box<DaemonStatus>),
    /// Of those that have names, in no particular order.
    AskedAs {
        names: Vec<(IpAddr, Vec<Arc<str>>)>,
    },
    Error {
        message: String,
    },
}

/// What only the daemon knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// `false`: it runs, and did not answer in time. What follows is not known then.
    #[serde(default = "answers")]
    pub answers: bool,
    pub pid: u32,
    /// Unix time in seconds.
    pub since: i64,
    pub records: RecordCounts,
    /// Flows since it began, by whether it is known whose they are.
    #[serde(default)]
    pub who: NamedCounts,
    /// Answers of name servers.
    #[serde(default)]
    pub dns: AnswerCounts,
    /// First bytes that were written to `flagged.pcap`, and that could not be.
    #[serde(default)]
    pub flagged: FlaggedCounts,
    /// Of the record store; `None` where none is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreStatus>,
    /// Flows that it knows now.
    pub flows_held: usize,
    /// Packets and bytes that are in the totals and in no flow's record: eviction took the detail. `[inbound, outbound]`.
    pub detail_lost_packets: [u64; 2],
    pub detail_lost_bytes: [u64; 2],
    /// Why enforcement does not hold now, as far as only the daemon can tell: each in a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// What it noticed, in words.
    pub notices: Vec<String>,
}

/// Of one that is older than this field.
const fn answers() -> bool {
    true
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordCounts {
    pub written: u64,
    pub lost: u64,
    pub error: Option<String>,
}

impl From<&SinkCounts> for RecordCounts {
    fn from(counts: &SinkCounts) -> Self {
        Self { written: counts.written, lost: counts.lost, error: counts.error.clone() }
    }
}

/// So that an answer, with as many names as an address may have, is a line that is read.
pub const ADDRESSES: usize = 150;

/// A daemon that does not answer in this time is treated as one that is not there.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest line that is read from a peer.
const MAX_LINE: u64 = 1 << 20;

/// Asks the daemon; `None`: there is none.
pub fn ask(socket: &Path, request: &Request) -> io::Result<Option<Answer>> {
    let Some(stream) = connect(socket)? else { return Ok(None) };
    send(&stream, request)?;
    let mut line = String::new();
    io::Read::take(BufReader::new(&stream), MAX_LINE).read_line(&mut line)?;
    serde_json::from_str(&line).map(Some).map_err(io::Error::from)
}

/// Tells the daemon, if one is there. What it is told is in the kernel and the state directory already, so that one
/// that cannot be reached finds it there when it looks.
pub fn tell(socket: &Path, request: &Request) {
    let _ = ask(socket, request);
}

/// Records as they are written, each one line of JSON; `None`: there is no daemon.
pub fn follow(socket: &Path) -> io::Result<Option<impl Iterator<Item = io::Result<String>> + use<>>> {
    let Some(stream) = connect(socket)? else { return Ok(None) };
    send(&stream, &Request::Follow)?;
    stream.set_read_timeout(None)?;
    Ok(Some(BufReader::new(stream).lines()))
}

fn connect(socket: &Path) -> io::Result<Option<UnixStream>> {
    let stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Some(stream))
}

fn send(mut stream: &UnixStream, request: &Request) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// The daemon's side.
pub mod server {
    use std::{cell::RefCell, fs, io, os::unix::fs::PermissionsExt, path::Path, rc::Rc};

    use tokio::{
        io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
        net::{UnixListener, UnixStream},
        sync::{broadcast, mpsc, oneshot},
    };

    use super::{Answer, MAX_LINE, Request};

    /// A request, and where its answer goes.
    pub type Asked = (Request, oneshot::Sender<Answer>);

    /// Lines for whoever follows. One who reads too slowly is told how many it missed.
    #[derive(Clone)]
    pub struct Lines(broadcast::Sender<std::sync::Arc<str>>);

    /// How many lines wait for a slow reader.
    const BACKLOG: usize = 4096;

    /// Binds the socket, in place of one that a dead daemon left (the caller holds the daemon's lock).
    pub fn bind(path: &Path) -> io::Result<UnixListener> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    impl Default for Lines {
        fn default() -> Self {
            Self(broadcast::channel(BACKLOG).0)
        }
    }

    impl Lines {
        pub fn send(&self, line: &str) {
            if self.0.receiver_count() > 0 {
                // No receiver is left: nobody follows any more.
                let _ = self.0.send(line.into());
            }
        }

        #[must_use]
        pub fn wanted(&self) -> bool {
            self.0.receiver_count() > 0
        }
    }

    /// Serves until the run loop ends. Runs on the daemon's one thread.
    pub async fn serve(listener: UnixListener, asked: mpsc::Sender<Asked>, lines: Lines) {
        let connections = Rc::new(RefCell::new(0u32));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, say: what is open goes on, new ones wait.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            if *connections.borrow() >= 64 {
                continue;
            }
            *connections.borrow_mut() += 1;
            let (asked, lines, count) = (asked.clone(), lines.clone(), Rc::clone(&connections));
            tokio::task::spawn_local(async move {
                // A peer that breaks off is its own affair.
                let _ = converse(stream, asked, lines).await;
                *count.borrow_mut() -= 1;
            });
        }
    }

    async fn converse(stream: UnixStream, asked: mpsc::Sender<Asked>, lines: Lines) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        loop {
            let mut line = String::new();
            if (&mut read).take(MAX_LINE).read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let answer = match serde_json::from_str::<Request>(&line) {
                Ok(Request::Follow) => return stream_lines(&mut write, lines).await,
                Ok(request) => {
                    let (answer, answered) = oneshot::channel();
                    if asked.send((request, answer)).await.is_err() {
                        return Ok(());
                    }
                    answered.await.unwrap_or(Answer::Error { message: "the daemon is stopping".to_owned() })
                }
                Err(error) => Answer::Error { message: error.to_string() },
            };
            let mut text = serde_json::to_vec(&answer)?;
            text.push(b'\n');
            write.write_all(&text).await?;
        }
    }

    async fn stream_lines(write: &mut (impl AsyncWriteExt + Unpin), lines: Lines) -> io::Result<()> {
        let mut receiver = lines.0.subscribe();
        drop(lines);
        loop {
            match receiver.recv().await {
                Ok(line) => {
                    write.write_all(line.as_bytes()).await?;
                    write.write_all(b"\n").await?;
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    write.write_all(format!("{{\"missed\":{missed}}}\n").as_bytes()).await?;
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn without_a_daemon_there_is_no_answer() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(ask(&home.path().join("control.sock"), &Request::Status).unwrap(), None);
        drop(std::os::unix::net::UnixListener::bind(home.path().join("dead.sock")).unwrap());
        assert_eq!(ask(&home.path().join("dead.sock"), &Request::Status).unwrap(), None);
    }

    #[test]
    fn asks_and_follows() {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("control.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let listener = server::bind(&socket).unwrap();
            let lines = server::Lines::default();
            let (sender, mut receiver) = mpsc::channel(1);
            tokio::task::spawn_local(server::serve(listener, sender, lines.clone()));
            tokio::task::spawn_local(async move {
                while let Some((request, answer)) = receiver.recv().await {
                    assert_eq!(request, Request::Changed);
                    answer.send(Answer::Done).unwrap();
                }
            });
            let path = socket.clone();
            let asked = tokio::task::spawn_blocking(move || ask(&path, &Request::Changed).unwrap()).await.unwrap();
            assert_eq!(asked, Some(Answer::Done));
            let path = socket.clone();
            let follower =
                tokio::task::spawn_blocking(move || follow(&path).unwrap().unwrap().next().unwrap().unwrap());
            while !lines.wanted() {
                tokio::task::yield_now().await;
            }
            lines.send("{}");
            assert_eq!(follower.await.unwrap(), "{}");
        });
    }
}
