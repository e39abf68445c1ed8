use std::{collections::BTreeSet, fmt::Write as _, ops::ControlFlow};

use anyhow::Context;
use clap::Args;

use super::{
    Exit, Global, InstanceArgs,
    ack::{Chosen, resolve},
    explain,
    output::{Style, escape_line, json_line, print},
    time::now_us,
};
use crate::{
    daemon::report::thousands,
    record::{
        clock::timestamp,
        view::bytes,
        who::{FoundBy, Who},
    },
    review::{
        acks::{Ack, Acks},
        findings::Finding,
        group::Id,
        observed::{Fate, Observed},
        render,
        report::{self, Report, Since},
        words,
    },
    store::{self, GroupRow, Head, OfGroups, Reader, Span},
};

/// Say all that is known of one group: its flows, its process and who started it, names, first bytes, nearest rule
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard show a7f2")]
pub struct ShowArgs {
    /// Id, or its beginning, as `guard report` shows it
    #[arg(value_name = "ID")]
    pub id: String,
    /// How many of its flows, the newest first
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub flows: usize,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

/// One group with its flows.
struct Shown {
    report: Report,
    acks: Acks,
    chosen: Chosen,
    flows: Vec<Observed>,
    groups: Vec<GroupRow>,
    /// Of all flows, not only of those that are listed.
    all: OfGroups,
}

/// Processes, distinct first bytes and names that are written out; `--json` has all.
const PROCESSES: usize = 5;
const HEADS: usize = 3;
const NAMES: usize = 16;

fn read(instance: &InstanceArgs, id: &str, most: usize) -> anyhow::Result<Shown> {
    let directory = instance.state_dir();
    let now = now_us();
    let report = report::of_directory(&directory, Since::Everything, now)?;
    let reader = Reader::open(&directory.join(store::FILE))?.context("there is no store")?;
    reader.hold()?;
    let chosen = resolve(&report, &reader, id, false)?;
    let mut groups = reader.groups(i64::MIN)?;
    groups.retain(|row| chosen.members.contains(&row.id) || of_service(row, &report, &chosen));
    let mut flows = Vec::new();
    for row in &groups {
        reader.flows_of_group(row.number, Span::ALL, most.max(1), &mut |flow| {
            flows.push(flow);
            ControlFlow::Continue(())
        })?;
    }
    flows.sort_by_key(|flow| std::cmp::Reverse((flow.first, flow.flow_id)));
    flows.truncate(most.max(1));
    let all = reader.of_groups(&groups.iter().map(|row| row.number).collect::<Vec<_>>())?;
    Ok(Shown { report, acks: Acks::read(&directory)?, chosen, flows, groups, all })
}

/// A service stands for whoever comes to it.
fn of_service(row: &GroupRow, report: &Report, chosen: &Chosen) -> bool {
    let group = &row.group;
    !group.denied
        && group.direction == guard_common::Direction::Inbound
        && crate::review::findings::service_group(group.program.clone(), group.service).id() == chosen.id
        && report.finding(chosen.id).is_some_and(|finding| finding.services == 1)
}

/// The newest flow of a group, as `explain` reads it.
pub struct Asked {
    pub flow: String,
    pub unusual: bool,
}

pub fn flow_of(instance: &InstanceArgs, id: &str) -> anyhow::Result<Asked> {
    let shown = read(instance, id, 1)?;
    let flow = shown.flows.first().context("no flow of this group is kept")?;
    Ok(Asked { flow: flow.key.spoken(flow.direction), unusual: shown.is_unusual() })
}

pub fn run(args: &ShowArgs, global: &Global) -> anyhow::Result<Exit> {
    let shown = read(&args.instance, &args.id, args.flows)?;
    let explained = match shown.flows.first() {
        Some(flow) => {
            explain::by_running(&args.instance, &flow.key.spoken(flow.direction), !shown.is_unusual()).unwrap_or(None)
        }
        None => None,
    };
    if global.json {
        json_line(&shown.json(explained.as_ref().map(|explained| &explained.json)))?;
    } else {
        print(&shown.text(explained.as_ref().map(|explained| explained.text.as_str()), Style::stdout()))?;
    }
    Ok(Exit::Good)
}

impl Shown {
    fn finding(&self) -> Option<&Finding> {
        self.report.finding(self.chosen.id)
    }

    fn is_unusual(&self) -> bool {
        !self.chosen.unusual.is_empty() || self.all.processes.iter().any(|process| !process.who.unusual.is_empty())
    }

    fn text(&self, explained: Option<&str>, style: Style) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, explained, style);
        text
    }

    fn write(&self, text: &mut String, explained: Option<&str>, style: Style) -> std::fmt::Result {
        writeln!(text, "{}  {}", style.bold(&self.chosen.id.to_string()), escape_line(&self.chosen.what))?;
        if let Some(finding) = self.finding() {
            writeln!(text, "found    {}", finding.kind.title())?;
            for part in words::parts(finding) {
                writeln!(text, "         {}", escape_line(&part))?;
            }
            writeln!(text, "next     {}", finding.kind.next())?;
        }
        if self.groups.len() > 1 {
            writeln!(text, "groups   {} groups are shown as this one", self.groups.len())?;
            for row in self.groups.iter().take(10) {
                writeln!(
                    text,
                    "         {}  {} {}",
                    row.id,
                    row.group.service,
                    escape_line(&row.group.remote.to_string())
                )?;
            }
        }
        self.write_process(text)?;
        let names = &self.all.names;
        if !names.is_empty() {
            let shown: Vec<&str> = names.iter().take(NAMES).map(|name| &**name).collect();
            let more = more(names.len().saturating_sub(NAMES) as u64);
            writeln!(
                text,
                "asked as {}{more}   (labels of the DNS answers, no proof)",
                escape_line(&shown.join(", "))
            )?;
        }
        let [inbound, outbound] = self.all.bytes;
        writeln!(
            text,
            "flows    {}: {} out, {} in; the {} newest",
            thousands(self.all.flows),
            bytes(outbound),
            bytes(inbound),
            self.flows.len()
        )?;
        for flow in &self.flows {
            writeln!(text, "         {}", escape_line(&line(flow)))?;
        }
        for head in self.all.heads.iter().take(HEADS) {
            writeln!(text, "{}", head_line(head))?;
            for (at, chunk) in head.bytes.chunks(16).enumerate() {
                writeln!(text, "         {}", hex_line(at * 16, chunk))?;
            }
        }
        let heads = self.all.more_heads + self.all.heads.len().saturating_sub(HEADS) as u64;
        if heads > 0 {
            writeln!(text, "         and {} other first bytes: --json", thousands(heads))?;
        }
        match explained {
            Some(explained) => {
                writeln!(text, "policy   as it runs now:")?;
                explained.lines().try_for_each(|line| writeln!(text, "         {line}"))?;
            }
            None => writeln!(text, "policy   none runs here that could be asked")?,
        }
        for (ack, groups) in self.history() {
            let verb = if ack.acknowledged { "acknowledged" } else { "taken back" };
            let until = ack.until.map(|until| format!(" until {}", time(until))).unwrap_or_default();
            let key = ack.by.key.as_ref().map(|key| format!(", key {key}")).unwrap_or_default();
            let note = ack.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
            let of = match (groups, self.chosen.members.len()) {
                (_, 1) => String::new(),
                (some, all) => format!(" for {some} of {all} groups"),
            };
            let by = format!("{} ({}, uid {}{key}){of}{note}", ack.by.name, ack.by.by, ack.by.uid);
            writeln!(text, "history  {} {verb}{until} by {}", time(ack.at), escape_line(&by))?;
        }
        Ok(())
    }

    fn write_process(&self, text: &mut String) -> std::fmt::Result {
        for process in self.all.processes.iter().take(PROCESSES) {
            write_who(text, &process.who)?;
            if self.all.processes.len() > 1 {
                let when = words::span(process.first, process.last);
                writeln!(text, "         {} {when}", words::count(process.flows, "flow", "flows"))?;
            }
        }
        let processes = self.all.more_processes + self.all.processes.len().saturating_sub(PROCESSES) as u64;
        if processes > 0 {
            writeln!(text, "         and {}: --json", words::count(processes, "other process", "other processes"))?;
        }
        match (self.all.unknown, self.all.processes.is_empty()) {
            (0, false) => Ok(()),
            (_, true) => writeln!(text, "process  unknown"),
            (flows, false) => writeln!(text, "         unknown for {}", words::count(flows, "flow", "flows")),
        }
    }

    /// Every decision on any of its groups, the oldest first, and for how many of them it was made: one that was made on
    /// several at once is one.
    fn history(&self) -> Vec<(&Ack, usize)> {
        let members: BTreeSet<Id> = self.chosen.members.iter().copied().collect();
        let mut all: Vec<(&Ack, usize)> = Vec::new();
        let mut of_members: Vec<&Ack> = members.iter().flat_map(|member| self.acks.history(*member)).collect();
        of_members.sort_by_key(|ack| ack.at);
        for ack in of_members {
            let same = |other: &Ack| Ack { id: ack.id.clone(), ..other.clone() } == *ack;
            match all.iter_mut().rev().take_while(|(other, _)| other.at == ack.at).find(|(other, _)| same(other)) {
                Some((_, groups)) => *groups += 1,
                None => all.push((ack, 1)),
            }
        }
        all
    }

    fn json(&self, explained: Option<&serde_json::Value>) -> serde_json::Value {
        let members: BTreeSet<Id> = self.chosen.members.iter().copied().collect();
        let mut history: Vec<&Ack> = members.iter().flat_map(|member| self.acks.history(*member)).collect();
        history.sort_by_key(|ack| ack.at);
        let stamp = |us: i64| timestamp(i128::from(us) * 1000);
        let processes = self.all.processes.iter().map(|process| {
            serde_json::json!({
                "who": process.who, "flows": process.flows, "first": stamp(process.first), "last": stamp(process.last),
            })
        });
        let heads = self
            .all
            .heads
            .iter()
            .map(|head| serde_json::json!({"head": hex(&head.bytes), "flows": head.flows, "last": stamp(head.at)}));
        serde_json::json!({
            "id": self.chosen.id.to_string(),
            "what": self.chosen.what,
            "groups": self.groups.iter().map(|row| row.id.to_string()).collect::<Vec<_>>(),
            "finding": self.finding().map(|finding| render::json::one(&self.report, finding)),
            "all": {
                "flows": self.all.flows, "program_unknown": self.all.unknown,
                "packets_in": self.all.packets[0], "packets_out": self.all.packets[1],
                "bytes_in": self.all.bytes[0], "bytes_out": self.all.bytes[1],
            },
            "processes": processes.collect::<Vec<_>>(),
            "more_processes": self.all.more_processes,
            "names": self.all.names,
            "heads": heads.collect::<Vec<_>>(),
            "more_heads": self.all.more_heads,
            "flows": self.flows.iter().map(flow_json).collect::<Vec<_>>(),
            "policy": explained,
            "history": history,
        })
    }
}

fn write_who(text: &mut String, who: &Who) -> std::fmt::Result {
    let program = who.program().unwrap_or("unknown program");
    writeln!(
        text,
        "process  {}{}  pid {}  ({})",
        escape_line(program),
        words::exe_kind(who),
        who.pid,
        found_by(who.found_by)
    )?;
    if !who.args.is_empty() {
        let more = if who.args_cut { " …" } else { "" };
        let args: Vec<String> = who.args.iter().map(|arg| escape_line(arg)).collect();
        writeln!(text, "         called as: {}{more}", args.join(" "))?;
    }
    let mut facts = Vec::new();
    facts.extend(who.user.clone().or(who.uid.map(|uid| uid.to_string())).map(|user| format!("user {user}")));
    facts.extend(who.unit.as_ref().map(|unit| format!("unit {unit}")));
    facts.extend(
        who.container
            .as_ref()
            .map(|container| format!("container {} {}", container.name.as_deref().unwrap_or(""), container.id)),
    );
    facts.extend(who.netns.map(|netns| format!("network namespace {netns}")));
    if !facts.is_empty() {
        writeln!(text, "         {}", escape_line(&facts.join(", ")))?;
    }
    for (depth, parent) in who.parents.iter().enumerate() {
        let parent = format!("{}^ {} pid {}", "  ".repeat(depth), parent.exe, parent.pid);
        writeln!(text, "         {}", escape_line(&parent))?;
    }
    who.unusual.iter().try_for_each(|unusual| writeln!(text, "         UNUSUAL: it {}", unusual.sentence()))
}

fn more(count: u64) -> String {
    if count > 0 { format!(" and {} more", thousands(count)) } else { String::new() }
}

fn head_line(head: &Head) -> String {
    let of = match head.flows {
        1 => format!("a packet of {}", time(head.at)),
        many => format!("packets of {} flows, the last of {}", thousands(many), time(head.at)),
    };
    format!("bytes    the first {} of {of}", head.bytes.len())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One flow, for programs.
pub fn flow_json(flow: &Observed) -> serde_json::Value {
    serde_json::json!({
        "flow_id": flow.flow_id,
        "host": flow.host,
        "first": timestamp(i128::from(flow.first) * 1000),
        "last": timestamp(i128::from(flow.last) * 1000),
        "flow": flow.key.spoken(flow.direction),
        "community_id": flow.key.community_id(flow.direction),
        "local": flow.key.local(),
        "local_port": flow.key.local_port(),
        "remote": flow.key.remote(),
        "remote_port": flow.key.remote_port(),
        "fate": fate(flow.fate),
        "rule": flow.rule,
        "reason": &*flow.reason,
        "generation": flow.generation,
        "bytes_in": flow.bytes[0],
        "bytes_out": flow.bytes[1],
        "packets_in": flow.packets[0],
        "packets_out": flow.packets[1],
        "answered": flow.answered,
        "adopted": flow.adopted,
        "who": flow.who,
        "names": flow.names,
        "head": hex(&flow.head),
    })
}

/// One flow, for people.
pub fn line(flow: &Observed) -> String {
    let from = format!("{}:{}", flow.key.local(), flow.key.local_port());
    format!(
        "{}  {}  {}  at {from}  {} out, {} in{}{}",
        time(flow.first),
        fate(flow.fate),
        flow.key.spoken(flow.direction),
        bytes(flow.bytes[1]),
        bytes(flow.bytes[0]),
        if flow.answered { "" } else { ", unanswered" },
        if flow.adopted { ", older than guard" } else { "" },
    )
}

const fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::Allowed => "allowed",
        Fate::Denied => "denied",
        Fate::WouldDeny => "would be denied",
        Fate::Seen => "seen",
    }
}

const fn found_by(found: FoundBy) -> &'static str {
    match found {
        FoundBy::Unknown => "not found",
        FoundBy::Socket => "asked for it itself",
        FoundBy::Accept => "owns the socket",
        FoundBy::SockDiag => "looked up afterwards",
        FoundBy::Forwarded => "forwarded for it",
    }
}

fn time(unix_us: i64) -> String {
    super::output::utc(i128::from(unix_us) * 1000)
}

/// `0010  de ad be ef …  ....`
fn hex_line(at: usize, bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let text: String =
        bytes.iter().map(|&byte| if (0x20..0x7f).contains(&byte) { char::from(byte) } else { '.' }).collect();
    format!("{at:04x}  {:<47}  {text}", hex.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_as_hex_and_harmless_text() {
        assert_eq!(hex_line(16, b"a\x1b\xff~"), format!("0010  {:<47}  a..~", "61 1b ff 7e"));
    }
}
