//! The stage: the world, who watches it from outside, who listens inside, and what goes on meanwhile.

use std::{
    collections::HashMap,
    io::Write,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    process::{ChildStdin, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use guard_tests::{
    echo::{Echo, speaks},
    process::Process,
    witness::{Witness, send_frame},
    world::{Inside, Namespace, World},
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use crate::{
    attempt::{Act, Attempt, Direction},
    mark::{Mark, intruder, responder, server},
};

/// The responder's port in the session that stands open towards the server's port 80.
pub const HELD_PORT: u16 = 40_080;

const PATIENCE: Duration = Duration::from_secs(30);
/// What may still be under way after the last attempt: packets, and who hears them.
const SETTLES: Duration = Duration::from_millis(800);

pub struct Scene<'a> {
    pub world: &'a World,
    /// What left the server: by its link, and by its second one.
    witnesses: Vec<Witness>,
    victim: Process,
    held: HashMap<usize, (Process, ChildStdin)>,
    _echoes: Vec<Echo>,
    sessions: Vec<TcpStream>,
    /// On a bridge of the server.
    pub container: Namespace,
    /// From the intruder to what listens inside; both families.
    pub shells: Vec<TcpStream>,
}

/// How one attempt went in one phase.
#[derive(Debug)]
pub struct Outcome {
    pub did: Result<()>,
    pub seen: bool,
}

impl<'a> Scene<'a> {
    pub fn set(world: &'a World, attempts: &[Attempt]) -> Result<Self> {
        let witnesses = vec![Witness::start(&world.router, World::WIRE)?, Witness::start(&world.client, "eth1")?];
        let container = crate::containers::place(world)?;
        let mut echoes = Vec::new();
        for ipv6 in [false, true] {
            echoes.push(Echo::tcp(&world.server, server(ipv6), 80)?);
            for (place, address) in [(&world.responder, responder(ipv6)), (&world.intruder, intruder(ipv6))] {
                echoes.push(Echo::tcp(place, address, 443)?);
                echoes.push(Echo::tcp(place, address, 9001)?);
                echoes.push(Echo::udp(place, address, 9001)?);
            }
            let router: IpAddr = if ipv6 { World::ROUTER_V6.into() } else { World::ROUTER_V4.into() };
            echoes.push(Echo::udp(&world.router, router, 53)?);
        }
        let mut sessions = Vec::new();
        for ipv6 in [false, true] {
            // One in, one out: both are listed.
            let from = SocketAddr::new(responder(ipv6), HELD_PORT);
            sessions.push(connect_from(&world.responder, from, SocketAddr::new(server(ipv6), 80))?);
            sessions.push(guard_tests::echo::connect(&world.server, (responder(ipv6), 443).into(), PATIENCE)?);
        }
        let mut victim = Process::spawn(own(&world.server)?.arg("--victim"))?;
        victim.wait_line(PATIENCE, |line| line == "ready")?;
        let shells = [false, true]
            .into_iter()
            .map(|ipv6| {
                guard_tests::echo::connect(&world.intruder, (server(ipv6), crate::victim::PORT).into(), PATIENCE)
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        let mut scene =
            Self { world, witnesses, victim, held: HashMap::new(), _echoes: echoes, sessions, container, shells };
        for (number, attempt) in attempts.iter().enumerate() {
            if matches!(attempt.act, Act::Held(_)) {
                let mut command = own(&world.server)?;
                command.args(["--held", &number.to_string()]).stdin(Stdio::piped());
                let mut process = Process::spawn(&mut command)?;
                process.wait_line(PATIENCE, |line| line == "ready").with_context(|| attempt.name.clone())?;
                let stdin = process.stdin().context("no input")?;
                scene.held.insert(number, (process, stdin));
            }
        }
        Ok(scene)
    }

    /// Does every attempt, one after the other, and then looks at what came of them. `wanted`: of which names.
    pub fn phase(
        &mut self,
        attempts: &[Attempt],
        phase: u8,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Option<Outcome>>> {
        let mut done = Vec::new();
        for (number, attempt) in attempts.iter().enumerate() {
            let mark = Mark { phase, number: u16::try_from(number)? };
            done.push(wanted(&attempt.name).then(|| self.act(number, attempt, &mark)));
        }
        thread::sleep(SETTLES);
        for witness in &self.witnesses {
            ensure!(witness.lost()? == 0, "a witness lost frames: it proves nothing");
        }
        let heard = self.victim.output();
        Ok(done
            .into_iter()
            .zip(attempts.iter().enumerate())
            .map(|(did, (number, attempt))| {
                let mark = Mark { phase, number: number as u16 };
                let heard = attempt.direction == Direction::In && heard.contains(&mark.text());
                did.map(|did| Outcome { did, seen: heard || self.left(attempt, &mark) })
            })
            .collect())
    }

    /// Whether a frame with the attempt's sign left the server.
    fn left(&self, attempt: &Attempt, mark: &Mark) -> bool {
        let is_on = |frame: &[u8]| attempt.sign.is_on(mark, frame);
        self.witnesses.iter().any(|witness| !witness.frames(|seen| !seen.outgoing && is_on(&seen.frame)).is_empty())
    }

    pub fn forget(&self) {
        self.witnesses.iter().for_each(Witness::forget);
    }

    /// The sessions that are open all the time: each says something, and hears it.
    pub fn sessions_speak(&mut self) -> Result<()> {
        for session in &mut self.sessions {
            let peer = session.peer_addr()?;
            speaks(session).with_context(|| peer.to_string())?;
        }
        Ok(())
    }

    fn act(&mut self, number: usize, attempt: &Attempt, mark: &Mark) -> Result<()> {
        let number_text = number.to_string();
        match &attempt.act {
            Act::Inside(_) | Act::FramesOut(_) => {
                let mut command = own(&self.world.server)?;
                command.args(["--inside", &number_text, &mark.phase.to_string()]);
                good(&guard_tests::process::run(&mut command, PATIENCE)?)
            }
            Act::Script(script) => {
                let own = std::env::current_exe()?;
                let script = script
                    .replace("{text}", &mark.text())
                    .replace("{port}", &mark.port().to_string())
                    .replace("{self}", &own.to_string_lossy());
                let mut command = self.world.server.command("sh");
                command.args(["-ec", &script]);
                good(&guard_tests::process::run(&mut command, PATIENCE)?)
            }
            Act::Held(_) => {
                let (process, stdin) = self.held.get_mut(&number).context("not held")?;
                writeln!(stdin, "{}", mark.phase)?;
                let done = format!("done {}", mark.phase);
                let said = process.wait_line(PATIENCE, |line| line.starts_with(&done))?;
                ensure!(said == done, "{said}");
                Ok(())
            }
            Act::Outside(act) => act(self, mark),
            Act::FramesIn(frames) => {
                for frame in frames(mark) {
                    send_frame(&self.world.router, World::WIRE, &frame)?;
                }
                Ok(())
            }
        }
    }
}

fn good(ended: &guard_tests::process::Ended) -> Result<()> {
    ensure!(ended.good(), "{}", ended.text().trim());
    Ok(())
}

/// This program, to be run there in another of its parts.
pub fn own(place: &Inside) -> Result<std::process::Command> {
    Ok(place.command(std::env::current_exe()?))
}

/// A TCP connection from a port of our choice.
pub fn connect_from(place: &Inside, from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let family = if from.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    place.run(|| -> Result<TcpStream> {
        let fd: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
        let stream = TcpStream::from(fd);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}
