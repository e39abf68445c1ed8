use std::io::{self, BufRead, IsTerminal};

use clap::Args;

use super::{ByArgs, Exit, Global, InstanceArgs, output};
use crate::{
    daemon::{
        attached, change, control,
        state_dir::{StateDir, StateError},
    },
    host::sock_diag::{self, SocketState},
    journal::{self, Event},
    lockdown::{mark, marker, service},
};

/// Take everything down: this host is open again
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  guard release\n  guard release --host db1        # out of a lockdown, without being asked"
)]
pub struct ReleaseArgs {
    /// Out of a lockdown: this host's name, to say that it is meant
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &ReleaseArgs, global: &Global) -> anyhow::Result<Exit> {
    let instance = &args.instance.instance;
    let state = match StateDir::open(&args.instance.state_dir()) {
        Ok(state) => Some(state),
        // What is pinned in the kernel can be taken down without it.
        Err(StateError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let copy = marker::path(&args.instance).filter(|copy| copy.exists());
    let lockdown = copy.is_some() || state.as_ref().is_some_and(|state| lockdown_holds(instance, state));
    if lockdown && let Some(refusal) = not_meant(args)? {
        if global.json {
            output::json_line(&serde_json::json!({ "released": false, "message": refusal }))?;
        } else {
            output::print(&output::escape(&refusal))?;
        }
        return Ok(Exit::No);
    }
    let lock = state.as_ref().map(StateDir::lock).transpose()?;
    let released = attached::release(instance)?;
    if let Some(state) = &state {
        state.forget()?;
        drop(lock);
        control::tell(&state.socket(), &control::Request::Released);
        if released || lockdown {
            let mut text = String::from("nothing is attached any more, everything passes");
            if lockdown {
                text.push_str("; the lockdown is over");
            }
            journal::record(state.path(), &args.by.entry(Event::Release, text));
        }
    }
    // Whatever became of the state directory. What stays there would lock this host down at its next start.
    if let Some(copy) = copy {
        marker::remove(&copy)?;
    }
    let text = match (released, lockdown) {
        (true, _) => "released: nothing of guard is attached any more, everything passes".to_owned(),
        (false, true) => "released: nothing of guard was attached; the lockdown that was kept here is over".to_owned(),
        (false, false) => format!("nothing of guard is attached here (instance {instance})"),
    };
    let text = match service::remove(&args.instance) {
        Some(Ok(said)) => format!("{text}; {said}"),
        Some(Err(said)) => format!("{text}; its unit stays: {said}"),
        None => text,
    };
    if global.json {
        output::json_line(&serde_json::json!({ "released": released, "message": text }))?;
    } else {
        output::print(&output::escape(&text))?;
    }
    Ok(Exit::Good)
}

/// What cannot be read must not keep anybody from taking guard down.
fn lockdown_holds(instance: &str, state: &StateDir) -> bool {
    let Ok(Some(mut engine)) = attached::open(instance) else {
        // After a reboot: what `guard run` would put in force again.
        return mark::kept(state).ok().flatten().is_some();
    };
    if let Ok(_lock) = state.lock() {
        // One that nobody confirmed in time is over.
        let _ = change::settle(&mut engine, state);
    }
    mark::holding(state).ok().flatten().is_some()
}

/// Of a lockdown: what opens is said, and the host's name asked for. `Some`: why nothing is done.
fn not_meant(args: &ReleaseArgs) -> anyhow::Result<Option<String>> {
    let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let opens = opens();
    let named = match &args.host {
        Some(name) => name.clone(),
        None if io::stdin().is_terminal() => {
            eprint!("{}", output::escape(&format!("{opens}\nTo open it, type this host's name: ")));
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line)?;
            line.trim().to_owned()
        }
        None => {
            return Ok(Some(format!(
                "{opens}\nnothing was changed: to open it, say --host {host} (guard restore keeps a policy)"
            )));
        }
    };
    Ok((named != host).then(|| format!("\"{named}\" is not this host, which is {host}; nothing was changed")))
}

/// In words.
fn opens() -> String {
    let mut ports: Vec<String> = sock_diag::sockets()
        .map(|sockets| sockets.all)
        .unwrap_or_default()
        .iter()
        .filter(|socket| !socket.local.ip().is_loopback())
        .filter_map(|socket| match (socket.protocol, socket.state) {
            (6, SocketState::Listen) => Some(format!("tcp/{}", socket.local.port())),
            (17, SocketState::Close) if socket.local.port() != 0 => Some(format!("udp/{}", socket.local.port())),
            _ => None,
        })
        .collect();
    ports.sort();
    ports.dedup();
    let listening =
        if ports.is_empty() { "nothing listens".to_owned() } else { format!("open to everybody: {}", ports.join(" ")) };
    format!("THIS ENDS THE LOCKDOWN: whatever runs here may reach anything, an intruder's programs too; {listening}")
}
