use anyhow::{Context, bail};
use clap::Args;

use super::{
    ByArgs, Exit, Global, InstanceArgs,
    output::{escape_line, json_line, print},
    time::{now_us, time},
};
use crate::{
    daemon::state_dir::StateDir,
    journal::{self, Event},
    review::{
        acks::{Ack, Acks},
        findings::Finding,
        group::Id,
        report::{self, Report, Since},
        words,
    },
    store::{self, Reader},
};

/// Acknowledge groups: they are not reported again until their program, remote or service changes
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        guard ack a7f2 --note 'new package mirror, ticket 41'\n  \
        guard ack b310 c2d9 --until 7d")]
pub struct AckArgs {
    /// Ids, or their beginnings, as `guard report` shows them
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
    /// Only until then: a time, or 7d, 12h
    #[arg(long, value_name = "TIME", value_parser = until)]
    pub until: Option<i64>,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

/// Take an acknowledgement back
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard unack a7f2 --note 'the ticket was closed'")]
pub struct UnackArgs {
    /// Ids, or their beginnings
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

fn until(text: &str) -> Result<i64, String> {
    let at = time(text, 1)?;
    if at <= now_us() { Err("that is past".to_owned()) } else { Ok(at) }
}

pub fn run(args: &AckArgs, global: &Global) -> anyhow::Result<Exit> {
    let decision = Decision { acknowledged: true, by: &args.by, until: args.until };
    decide(&args.ids, &decision, &args.instance, global)
}

pub fn run_unack(args: &UnackArgs, global: &Global) -> anyhow::Result<Exit> {
    let decision = Decision { acknowledged: false, by: &args.by, until: None };
    decide(&args.ids, &decision, &args.instance, global)
}

struct Decision<'a> {
    acknowledged: bool,
    by: &'a ByArgs,
    until: Option<i64>,
}

fn decide(ids: &[String], decision: &Decision<'_>, instance: &InstanceArgs, global: &Global) -> anyhow::Result<Exit> {
    let state = StateDir::open(&instance.state_dir())?;
    let now = now_us();
    let report = report::of_directory(state.path(), Since::Everything, now)?;
    let reader = Reader::open(&state.path().join(store::FILE))?.context("there is no store")?;
    let event = if decision.acknowledged { Event::Ack } else { Event::Unack };
    let mut entry = decision.by.entry(event, "");
    let by = entry.by.clone().unwrap_or_default();
    let mut acks = Vec::new();
    let mut shown = Vec::new();
    // All or none: whoever mistypes one id does not have to find out what was done.
    for id in ids {
        // Taken back is all of it, what was acknowledged before, too.
        let chosen = resolve(&report, &reader, id, !decision.acknowledged)?;
        shown.push(chosen.what.clone());
        acks.extend(chosen.members.iter().map(|member| {
            Ack {
                until: decision.until,
                unusual: chosen.unusual.clone(),
                ..Ack::new(*member, decision.acknowledged, now, by.clone(), chosen.what.clone())
                    .noted(decision.by.note.as_deref())
            }
        }));
    }
    Acks::append(state.path(), &acks)?;
    entry.text = shown.join("; ");
    journal::record(state.path(), &entry.details(serde_json::json!({ "ids": ids, "until": decision.until })));
    let after = report::of_directory(state.path(), Since::Everything, now)?;
    if global.json {
        let waiting = after.waiting();
        json_line(&serde_json::json!({
            "written": acks, "to_review": waiting.to_review, "learned": waiting.learned,
        }))?;
    } else {
        let verb = if decision.acknowledged { "acknowledged" } else { "taken back" };
        let mut text: Vec<String> = shown.iter().map(|what| format!("{verb}: {}", escape_line(what))).collect();
        let left = words::waiting(after.waiting());
        text.push(format!("by {} ({}); left: {left}", escape_line(&by.name), escape_line(&by.by)));
        print(&text.join("\n"))?;
    }
    Ok(Exit::Good)
}

/// What an id that was typed stands for.
pub struct Chosen {
    pub id: Id,
    pub members: Vec<Id>,
    pub unusual: Vec<crate::record::who::Unusual>,
    pub what: String,
}

/// By what the report shows, else by what it would show if nothing were acknowledged (`whole`: by that alone), else by any
/// group that is known. Refuses what several begin with.
pub fn resolve(report: &Report, reader: &Reader, beginning: &str, whole: bool) -> anyhow::Result<Chosen> {
    if beginning.is_empty() || !beginning.chars().all(|c| c.is_ascii_hexdigit()) {
        bail!("\"{}\" is no id: ids are hex digits, as `guard report` shows them", escape_line(beginning));
    }
    let shown = if whole { Vec::new() } else { report.by_id(beginning) };
    let mut found: Vec<Chosen> = shown.into_iter().map(of_finding).collect();
    for finding in report.every_by_id(beginning) {
        if !found.iter().any(|chosen| chosen.id == finding.id()) {
            found.push(of_finding(finding));
        }
    }
    for row in reader.groups_by_id(beginning)? {
        if !found.iter().any(|chosen| chosen.id == row.id) {
            let program = row.group.program.as_deref().unwrap_or("unknown program");
            let what = format!("{} {} {} {program}", row.group.direction.as_str(), row.group.service, row.group.remote);
            found.push(Chosen { id: row.id, members: vec![row.id], unusual: Vec::new(), what });
        }
    }
    match found.len() {
        0 => bail!("no group's id begins with {beginning}: guard report --all lists them"),
        1 => Ok(found.remove(0)),
        _ => {
            let all: Vec<String> =
                found.iter().map(|chosen| format!("  {}  {}", chosen.id, escape_line(&chosen.what))).collect();
            bail!("several ids begin with {beginning}; write more of it:\n{}", all.join("\n"))
        }
    }
}

fn of_finding(finding: &Finding) -> Chosen {
    Chosen {
        id: finding.id(),
        members: finding.members.clone(),
        unusual: finding.facts.unusual.iter().copied().collect(),
        what: format!("{}  {}", words::flow(finding), words::program(&finding.facts)),
    }
}
