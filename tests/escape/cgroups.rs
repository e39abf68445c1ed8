//! By a process that moved itself, or its sockets, to another control group: the socket layer and the seal's cgroup form
//! hold a control group, the wire holds the host.

use std::{
    fs,
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use guard_tests::frame::{UDP, ethernet, ip, udp};

use crate::{
    attempt::{Act, Attempt, Expected, name},
    mark::{Mark, at, intruder, server},
    sockets::{bypass, family, packet_send, send_to, syn},
    victim::socket,
};

#[derive(Clone, Copy)]
enum Move {
    /// To a control group beside guard's.
    Out,
    /// To a new one below guard's.
    Below,
    /// Out, and back in with a socket that was made outside.
    OutAndBack,
}

/// What is tried: makes its socket, calls back, sends.
type Try = fn(&Mark, IpAddr, &dyn Fn() -> Result<()>) -> Result<()>;

pub fn all() -> Vec<Attempt> {
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        for (what, way) in [
            ("moved out of the control group", Move::Out),
            ("moved to a control group below", Move::Below),
            ("moved out, made a socket, moved back", Move::OutAndBack),
        ] {
            let to: IpAddr = intruder(ipv6);
            let row = |kind: &str, act: Try| {
                let act = move |mark: &Mark| {
                    let home = own()?;
                    go(&home, way)?;
                    act(mark, to, &|| if matches!(way, Move::OutAndBack) { enter(&home) } else { Ok(()) })
                };
                Attempt::out(name(ipv6, &format!("{what}: {kind}")), Act::Inside(Box::new(act)))
            };
            all.push(row("udp", |mark, to, back| {
                let socket = socket(family(to.is_ipv6()), libc::SOCK_DGRAM, 0)?;
                back()?;
                send_to(&socket, mark.text().as_bytes(), (to, mark.port()).into())
            }));
            all.push(
                row("tcp", |mark, to, back| {
                    let socket = socket(family(to.is_ipv6()), libc::SOCK_STREAM, 0)?;
                    back()?;
                    syn(&socket, (to, mark.port()).into())
                })
                .sign(crate::mark::Sign::Port),
            );
            all.push(row("a packet socket", |mark, to, back| {
                let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
                back()?;
                frame(&socket, mark, to)
            }));
            let round = row("a packet socket with PACKET_QDISC_BYPASS", |mark, to, back| {
                let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
                bypass(&socket)?;
                back()?;
                frame(&socket, mark, to)
            });
            all.push(match way {
                Move::Below => round,
                // Here guard holds a part of the host; by default it is the root, which nothing is outside of.
                Move::Out | Move::OutAndBack => {
                    round.expect(Expected::Gap("made outside of --cgroup, where the seal does not reach; SECURITY.md"))
                }
            });
        }
    }
    all
}

fn frame(socket: &OwnedFd, mark: &Mark, to: IpAddr) -> Result<()> {
    let from = server(to.is_ipv6());
    let datagram = udp((from, mark.port()), (to, mark.port()), mark.text().as_bytes());
    let kind = if to.is_ipv6() { 0x86dd } else { 0x0800 };
    packet_send(socket, kind, &ethernet(at::ROUTER_MAC, at::SERVER_MAC, kind, &ip(from, to, UDP, &datagram)))
}

/// This process's control group, as a directory.
fn own() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let root = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .and_then(|line| line.split(' ').nth(1))
        .context("cgroup2 is not mounted")?;
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).context("not in a cgroup2")?;
    Ok(Path::new(root).join(path))
}

fn go(home: &Path, way: Move) -> Result<()> {
    let to = match way {
        Move::Out | Move::OutAndBack => home.parent().context("the root")?.join("outside"),
        Move::Below => {
            let below = home.join(format!("below-{}", std::process::id()));
            fs::create_dir(&below)?;
            below
        }
    };
    enter(&to)?;
    ensure!(own()? == to, "still in {}", own()?.display());
    Ok(())
}

fn enter(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| cgroup.display().to_string())
}
