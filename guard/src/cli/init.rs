use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use guard_common::Direction;

use super::{
    Exit, Global,
    output::{escape_line, json_line, print, write_new},
};
use crate::{
    host::{
        picture::Picture,
        sock_diag::{Socket, SocketState},
    },
    policy,
    review::init::{Files, Listening, Profile, Running, first, is_running_host},
};

/// Write a first policy, in audit mode: a shipped one, filled in from what this host says
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sudo guard init --profile web -o policy.yaml\n  \
    guard init --profile gitlab --root /mnt/image      # of a host that does not run\n\n\
    It reads this session, resolv.conf, systemd-resolved, chrony or timesyncd, apt's sources, gitlab.rb and the listening \
    sockets; each line names its source, and what was not found is listed. Nothing is written over.")]
pub struct InitArgs {
    /// What kind of host it is
    #[arg(long, value_enum, default_value = "web")]
    pub profile: Profile,
    /// Write here (a new file) instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Read the files below this directory; nobody is asked for names, and nothing runs there
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
}

pub fn run(args: &InitArgs, global: &Global) -> anyhow::Result<Exit> {
    if let Some(output) = &args.output
        && output.symlink_metadata().is_ok()
    {
        bail!("{} is there already; nothing is written over: name another file", output.display());
    }
    if !args.root.is_dir() {
        bail!("{} is not a directory", args.root.display());
    }
    let running = if is_running_host(&args.root) { running()? } else { Running::default() };
    let files = Files::new(&args.root, !is_running_host(&args.root));
    let first = first(args.profile, &files, &running);
    let name = args.output.as_deref().and_then(Path::file_stem).and_then(|stem| stem.to_str()).unwrap_or("policy");
    let text = first.policy(name);
    if let Err(found) = policy::load_str("policy.yaml", &text) {
        bail!(
            "the policy that was made of it does not pass guard check; this is a fault of guard's:\n{}",
            found.render(false)
        );
    }
    if let Some(output) = &args.output {
        write_new(output, &text)?;
    }
    if global.json {
        let mut value = serde_json::to_value(&first)?;
        value["text"] = text.into();
        json_line(&value)?;
        return Ok(Exit::Good);
    }
    match &args.output {
        None => print(&text)?,
        Some(output) => {
            let name = escape_line(&output.display().to_string());
            eprintln!("written to {name}, from guard's own {}. Read it, then: guard check {name}", first.from);
            for line in &first.not_found {
                eprintln!("not found  {}", escape_line(line));
            }
        }
    }
    Ok(Exit::Good)
}

/// This session, and what listens past loopback.
fn running() -> anyhow::Result<Running> {
    let picture = Picture::read()?;
    let session = picture.session(&[]);
    let inbound = session.carriers.iter().filter(|carrier| carrier.direction == Direction::Inbound);
    let listens = |socket: &&Socket| match socket.protocol {
        6 | 132 => socket.state == SocketState::Listen,
        // A client's unconnected UDP socket has an ephemeral port.
        _ => socket.state == SocketState::Close && socket.local.port() < 32768 && socket.remote.port() == 0,
    };
    let listening = picture
        .sockets
        .all
        .iter()
        .filter(listens)
        .filter(|socket| !socket.local.ip().is_loopback() && socket.local.port() != 0)
        .map(|socket| {
            let holder = picture.processes.holders(picture.sockets.holder(socket)).next();
            Listening {
                protocol: socket.protocol,
                port: socket.local.port(),
                program: holder.map(|process| {
                    process.exe.as_ref().map_or_else(|| process.comm.clone(), |exe| exe.display().to_string())
                }),
            }
        })
        .collect();
    Ok(Running {
        session: inbound.map(|carrier| (carrier.remote.ip(), carrier.protocol, carrier.local.port())).collect(),
        listening: Some(listening),
    })
}
