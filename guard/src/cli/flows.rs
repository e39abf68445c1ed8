use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use clap::Args;

use super::{Exit, Global, InstanceArgs, output};
use crate::{
    daemon::{
        attached,
        control::{self, Answer, Request},
        kept,
        state_dir::Kept,
    },
    record::{
        clock::Clock,
        recorder::RuleNames,
        view::{FlowLine, render_record},
    },
};

/// List the flows that the kernel holds, or follow them as they come
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard flows --follow")]
pub struct FlowsArgs {
    /// Print records as they come, until interrupted
    #[arg(long)]
    pub follow: bool,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &FlowsArgs, global: &Global) -> anyhow::Result<Exit> {
    let (state, engine) = attached::existing(&args.instance.instance, &args.instance.state_dir())?;
    if args.follow {
        let lines = control::follow(&state.socket())?;
        let Some(lines) = lines else {
            anyhow::bail!("no daemon runs, so nothing is recorded; `guard flows` lists what the kernel holds");
        };
        for line in lines {
            let line = line?;
            output::print(&if global.json { line } else { render_record(&line) })?;
        }
        return Ok(Exit::Good);
    }

    let mut names = RuleNames::default();
    for which in [Kept::Previous, Kept::Active] {
        // Without the kept policy flows have rule numbers instead of names.
        if let Ok(Some((manifest, policy))) = kept::load(&state, which) {
            names.insert_policy(manifest.generation, &policy);
        }
    }
    let (clock, now) = (Clock::read()?, engine.now()?);
    let mut flows = engine.flows()?;
    flows.sort_unstable_by_key(|(_, flow)| std::cmp::Reverse(flow.last_seen));
    let mut text = String::new();
    let asked_as = asked_as(&state.socket(), flows.iter().map(|(key, _)| key.remote()));
    for (key, flow) in &flows {
        let mut line = FlowLine::new(key, flow, &names, clock, &now);
        line.names = asked_as.get(&key.remote()).cloned().unwrap_or_default();
        if global.json {
            output::json_line(&line)?;
        } else {
            text.push_str(&line.render());
            text.push('\n');
        }
    }
    if !global.json {
        if flows.is_empty() {
            text.push_str("no flow is held\n");
        }
        output::print(&text)?;
    }
    Ok(Exit::Good)
}

/// What the daemon knows of remotes; without one, or with one that is too busy, flows have addresses alone.
fn asked_as(socket: &Path, remotes: impl Iterator<Item = IpAddr>) -> HashMap<IpAddr, Vec<Arc<str>>> {
    let remotes: BTreeSet<IpAddr> = remotes.collect();
    let remotes: Vec<IpAddr> = remotes.into_iter().collect();
    let mut found = HashMap::new();
    for addresses in remotes.chunks(control::ADDRESSES) {
        let request = Request::AskedAs { addresses: addresses.to_vec() };
        let Ok(Some(Answer::AskedAs { names })) = control::ask(socket, &request) else { break };
        found.extend(names);
    }
    found
}
