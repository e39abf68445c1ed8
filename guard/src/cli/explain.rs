use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use guard_common::{Reason, Verdict};
use serde::Serialize;

use super::{
    Exit, Global, InstanceArgs,
    check::{refuse, show},
    output::{Style, escape_line, json_line, print, utc},
};
use crate::{
    daemon::state_dir::{Kept, StateDir},
    policy::{
        answer::{Answer, answer, beside_the_rules, line_to_paste, why_not},
        compile::compile,
        diagnostics::Diagnostics,
        effective::hex,
        exceptions::{Exception, compose},
        model::{FlowQuery, Mode, Place, Policy, spoken_place},
        nearest::Condition,
        ready::{Ready, ready},
    },
};

/// Say what a policy does with a flow, and why
#[derive(Debug, Args)]
#[command(
    override_usage = "guard explain [OPTIONS] [POLICY] FLOW",
    after_help = "Examples:\n  \
        guard explain policy.yaml 'out tcp 203.0.113.9:443'\n  \
        guard explain policy.yaml 'in udp 198.51.100.7 -> 53'\n  \
        guard explain 'out icmp 203.0.113.9 echo-request'        # the policy that is running\n  \
        guard explain policy.yaml 'out tcp [2001:db8::9]:443'\n  \
        guard explain policy.yaml 'in tcp 198.51.100.7 -> 203.0.113.5:22 on eth1'\n  \
        guard explain a7f2                                       # a group of guard report\n\n\
        Exit code 1 when the flow is denied."
)]
pub struct ExplainArgs {
    /// The policy (left out: the one that is running), then the flow, or the id of a reported group
    #[arg(value_name = "POLICY FLOW", required = true, num_args = 1..)]
    pub what: Vec<String>,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

/// Where a rule stands.
#[derive(Serialize)]
struct RuleJson {
    rule: String,
    file: String,
    line: u32,
    column: u32,
}

pub fn run(args: &ExplainArgs, global: &Global) -> anyhow::Result<Exit> {
    let (path, mut text) = split(&args.what);
    let mut wanted = true;
    if is_id(&text) {
        let asked = super::show::flow_of(&args.instance, &text)?;
        (text, wanted) = (asked.flow, !asked.unusual);
    }
    let flow: FlowQuery = match text.parse() {
        Ok(flow) => flow,
        Err(bad) => {
            let bad: crate::policy::flow_query::BadFlow = bad;
            eprintln!(
                "{} {}\n  {}",
                Style::stderr().error("error:"),
                escape_line(&bad.message),
                escape_line(&bad.help)
            );
            return Ok(Exit::Usage);
        }
    };
    let source = match path {
        Some(path) => Source { path: PathBuf::from(path), copied_below: None, audit: false, exceptions: Vec::new() },
        None => running(&args.instance)?,
    };
    let told = match tell(&source, &flow, &text, wanted)? {
        Ok(told) => told,
        // One that runs was good when it was put in force.
        Err(found) if source.copied_below.is_some() => {
            refuse(&found, global)?;
            return Ok(Exit::CouldNot);
        }
        Err(found) => return Ok(refuse(&found, global)?),
    };
    if global.json {
        json_line(&told.json)?
    } else {
        print(&told.text)?
    }
    Ok(if told.verdict == Verdict::Allow { Exit::Good } else { Exit::No })
}

/// A group's id, or its beginning, in the place of a flow.
fn is_id(text: &str) -> bool {
    (4..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// An answer in both forms.
pub struct Explained {
    pub text: String,
    pub json: serde_json::Value,
    pub verdict: Verdict,
}

/// What the running policy says of a flow; `None` where none runs. `wanted`: whether to show the line that would list it.
pub fn by_running(instance: &InstanceArgs, text: &str, wanted: bool) -> anyhow::Result<Option<Explained>> {
    let Ok(source) = running(instance) else { return Ok(None) };
    let Ok(flow) = text.parse::<FlowQuery>() else { return Ok(None) };
    match tell(&source, &flow, text, wanted)? {
        Ok(told) => Ok(Some(told)),
        Err(found) => {
            show(&found, true)?;
            bail!("the policy cannot be used: {found}")
        }
    }
}

/// `Err`: the policy is not valid, which nobody has been told yet.
fn tell(source: &Source, flow: &FlowQuery, text: &str, wanted: bool) -> anyhow::Result<Result<Explained, Diagnostics>> {
    let mut ready = match ready(&source.path) {
        Ok(ready) => ready,
        Err(found) => return Ok(Err(found)),
    };
    if !source.exceptions.is_empty() {
        ready.loaded.policy = compose(ready.loaded.policy, &source.exceptions);
        ready.compiled = compile(&ready.loaded.policy, ready.now, 0)?;
    }
    let policy = &ready.loaded.policy;
    let answer = answer(policy, &ready.compiled, flow, ready.now);
    let told = Told { source, policy, ready: &ready, answer: &answer, flow, text, wanted };
    Ok(Ok(Explained { text: told.text(), json: told.json(), verdict: answer.explanation.verdict }))
}

/// Policy and flow. A flow that was not quoted is several words.
fn split(words: &[String]) -> (Option<&str>, String) {
    let begins_flow = |word: &str| {
        let first = word.split_whitespace().next().unwrap_or("");
        ["in", "out", "inbound", "outbound"].iter().any(|way| first.eq_ignore_ascii_case(way))
    };
    match words {
        [policy, flow @ ..] if !flow.is_empty() && !begins_flow(policy) => (Some(policy), flow.join(" ")),
        flow => (None, flow.join(" ")),
    }
}

/// The policy's file, and, where it is the copy that a running guard keeps, what its name has in front.
struct Source {
    path: PathBuf,
    copied_below: Option<PathBuf>,
    /// Runs in audit mode, whatever its file says.
    audit: bool,
    /// Over it.
    exceptions: Vec<Exception>,
}

/// The policy that the instance runs, from the copy in its state directory.
fn running(instance: &InstanceArgs) -> anyhow::Result<Source> {
    let directory = instance.state_dir();
    let none = || {
        format!(
            "no policy is running here (instance {}); name a POLICY before the flow, or start one: guard run POLICY",
            instance.instance
        )
    };
    if !directory.try_exists().unwrap_or(true) {
        bail!(none());
    }
    let state = StateDir::open(&directory).with_context(none)?;
    let manifest = state.manifest(Kept::Active)?.with_context(none)?;
    Ok(Source {
        path: state.policy_file(Kept::Active, &manifest),
        copied_below: Some(state.files(Kept::Active)),
        audit: manifest.audit,
        exceptions: manifest.exceptions,
    })
}

impl Source {
    /// A file's name as the person knows it.
    fn name(&self, file: &Path) -> String {
        let original = self.copied_below.as_ref().and_then(|below| file.strip_prefix(below).ok());
        let name = original.map_or_else(|| file.to_owned(), |relative| Path::new("/").join(relative));
        escape_line(&name.display().to_string())
    }
}

struct Told<'a> {
    source: &'a Source,
    policy: &'a Policy,
    ready: &'a Ready,
    answer: &'a Answer,
    flow: &'a FlowQuery,
    text: &'a str,
    /// False: nobody should let this flow out, so no line that would.
    wanted: bool,
}

impl Told<'_> {
    fn at(&self, place: &Place) -> String {
        spoken_place(&self.source.name(&place.file), place.line)
    }

    fn mode(&self) -> Mode {
        match self.flow.direction {
            _ if self.source.audit => Mode::Audit,
            guard_common::Direction::Inbound => self.policy.inbound,
            guard_common::Direction::Outbound => self.policy.outbound,
        }
    }

    /// Unix time until which the answer holds.
    fn until(&self) -> Option<i128> {
        let until = self.answer.explanation.until;
        let ahead = i128::from(until) - i128::from(self.ready.now.boot_ns);
        (until != u64::MAX).then(|| self.ready.now.unix_ns + ahead)
    }

    fn text(&self) -> String {
        let style = Style::stdout();
        let explanation = &self.answer.explanation;
        let mut lines = Vec::new();
        lines.push(format!("{}  {}", style.verdict(explanation.verdict), escape_line(self.text)));
        match explanation.rule.and_then(|number| self.policy.rules.get(number)) {
            Some(rule) => lines.push(format!(
                "why      {}: \"{}\"{}",
                explanation.reason.why(),
                escape_line(&rule.label()),
                match rule.place.line {
                    0 => ", a temporary exception".to_owned(),
                    _ => format!(" at {}", self.at(&rule.place)),
                }
            )),
            None => lines.push(format!("why      {} ({})", explanation.reason.why(), explanation.reason.as_str())),
        }
        // Who made an exception and why; of a rule that stands in a file, the file says it.
        let exception = explanation.rule.and_then(|number| self.policy.rules.get(number)).filter(|r| r.place.line == 0);
        if let Some(comment) = exception.and_then(|rule| rule.comment.as_ref()) {
            lines.push(format!("by       {}", escape_line(comment)));
        }
        if let Some(number) = explanation.overruled {
            let rule = &self.policy.rules[number];
            lines.push(format!(
                "but      \"{}\" at {} would allow it: a deny wins",
                escape_line(&rule.label()),
                self.at(&rule.place)
            ));
        }
        if let Some(nearest) = &explanation.nearest {
            let rule = &self.policy.rules[nearest.rule];
            let failed: Vec<String> = nearest.failed.iter().map(|c| why_not(rule, self.flow, *c)).collect();
            lines.push(format!("nearest  \"{}\" at {}", escape_line(&rule.label()), self.at(&rule.place)));
            lines.push(format!("         {}", escape_line(&failed.join("; "))));
        }
        if let Some(assumed) = &self.answer.assumed {
            let mut only = Vec::new();
            if self.flow.interface.is_none() {
                only.extend(assumed.interface.as_ref().map(|name| format!("on an interface such as {name}")));
            }
            if self.flow.local.is_none() {
                only.extend(assumed.local.map(|local| format!("at our address {local}")));
            }
            lines.push(format!("only     {}; elsewhere it may be denied", escape_line(&only.join(", "))));
        } else if !explanation.depends_on.is_empty() {
            let on: Vec<&str> = explanation.depends_on.iter().map(|c| c.as_str()).collect();
            lines.push(format!(
                "note     it may differ by {}: name it in the flow (`on eth1`, `-> ADDRESS:PORT`)",
                on.join(" and ")
            ));
        }
        if let Some(until) = self.until() {
            lines.push(format!("until    {}", utc(until)));
        }
        if let Some(note) = beside_the_rules(&self.policy.essentials, self.flow) {
            lines.push(format!("note     {note}"));
        }
        if explanation.verdict == Verdict::Deny && self.mode() == Mode::Audit {
            lines.push(format!("mode     audit: {} is recorded as denied, and passes", self.flow.direction.as_str()));
        }
        let under = if explanation.reason == Reason::NotListed {
            format!("under {}, to allow it", self.flow.direction.as_str())
        } else {
            "under tests, to keep it so".to_owned()
        };
        // No file is to say what holds for a while only.
        if exception.is_some() {
            return lines.join("\n");
        }
        if !self.wanted {
            lines.push("paste    nothing: the program is unusual as such; find out what it is first".to_owned());
            return lines.join("\n");
        }
        lines.push(format!("paste    {}   # {under}", line_to_paste(self.policy, self.answer, self.text, self.flow)));
        lines.join("\n")
    }

    fn json(&self) -> serde_json::Value {
        let explanation = &self.answer.explanation;
        let rule = |number: usize| {
            let rule = self.policy.rules.get(number)?;
            let place = &rule.place;
            Some(RuleJson {
                rule: rule.label(),
                file: self.source.name(&place.file),
                line: place.line,
                column: place.column,
            })
        };
        let nearest = explanation.nearest.as_ref().map(|nearest| {
            let failed: Vec<serde_json::Value> = nearest
                .failed
                .iter()
                .map(|condition| {
                    let why = why_not(&self.policy.rules[nearest.rule], self.flow, *condition);
                    serde_json::json!({ "condition": condition.as_str(), "why": why })
                })
                .collect();
            serde_json::json!({ "at": rule(nearest.rule), "failed": failed })
        });
        let decided = explanation.rule.and_then(rule);
        serde_json::json!({
            "verdict": explanation.verdict.as_str(),
            "rule": decided.as_ref().map(|at| at.rule.clone()),
            "reason": explanation.reason.as_str(),
            "comment": explanation.rule.and_then(|number| self.policy.rules.get(number)?.comment.clone()),
            "why": explanation.reason.why(),
            "at": decided,
            "nearest": nearest,
            "overruled": explanation.overruled.and_then(rule),
            "depends_on": explanation.depends_on.iter().map(|c: &Condition| c.as_str()).collect::<Vec<_>>(),
            "assumed": self.answer.assumed.as_ref().map(|flow| serde_json::json!({
                "interface": flow.interface,
                "local": flow.local,
            })),
            "until": self.until().map(crate::record::clock::timestamp),
            "note": beside_the_rules(&self.policy.essentials, self.flow),
            "mode": if self.mode() == Mode::Enforce { "enforce" } else { "audit" },
            "direction": self.flow.direction.as_str(),
            "flow": self.text,
            "paste": self.wanted.then(|| line_to_paste(self.policy, self.answer, self.text, self.flow)),
            "policy": self.policy.name,
            "policy_sha256": hex(&self.policy.sha256),
        })
    }
}
