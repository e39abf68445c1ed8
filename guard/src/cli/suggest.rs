use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use super::{
    Exit, Global, InstanceArgs, check,
    output::{escape, escape_line, json_line, print, write_new},
    source::{self, FromArgs},
    time::{now_us, past},
};
use crate::{
    policy::{self, Loaded},
    review::{
        judged::Judge,
        suggest::{Learner, SuggestError, Suggestion, Widest, patch, suggest, timers},
    },
};

/// Propose a policy from what was seen, each rule with its evidence, and say what it leaves out
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    guard suggest -o policy.yaml                        # from this host's own records\n  \
    guard suggest --since 7d --max-rules 20\n  \
    guard suggest --from capture.pcapng conn.log --local 192.0.2.10 -o policy.yaml\n  \
    guard suggest policy.yaml > more.diff               # what policy.yaml lacks; then: patch -p1 < more.diff\n\n\
    It learns from flows that were answered, also from those that a policy in audit mode would deny. It writes audit mode, \
    and never over a file that is there. Exit code 1 when there is nothing to suggest.")]
pub struct SuggestArgs {
    /// Write a diff to this policy instead of a new one: only what it does not list
    #[arg(value_name = "POLICY")]
    pub policy: Option<PathBuf>,
    #[command(flatten)]
    pub from: FromArgs,
    /// Only what was seen since then: a time (2026-01-02T03:04Z) or an age (12h, 7d)
    #[arg(long, value_name = "TIME", value_parser = past)]
    pub since: Option<i64>,
    /// Most rules; the least seen are left out, and named
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub max_rules: usize,
    /// Sum addresses up to networks no wider than this: /24, or /24,/56 with IPv6's [default: each address, or a network
    /// that was seen whole]
    #[arg(long, value_name = "/N")]
    pub widest: Option<Widest>,
    /// Write here (a new file) instead of to standard output; list files go beside it
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Look for timers and cron jobs below this directory
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &SuggestArgs, global: &Global) -> anyhow::Result<Exit> {
    if let Some(output) = &args.output
        && output.symlink_metadata().is_ok()
    {
        bail!("{} is there already; nothing is written over: name another file", output.display());
    }
    let known = match &args.policy {
        None => None,
        Some(path) => match policy::load(path) {
            Ok(loaded) => Some((path, loaded)),
            Err(found) => return Ok(check::refuse(&found, global)?),
        },
    };
    let judge = known.as_ref().map(|(_, loaded)| Judge::new(&loaded.policy, now_us())).transpose()?;
    let mut learner = Learner::new(judge);
    let read = source::flows(&args.from, args.since, &args.instance, &mut |flow| learner.see(&flow))?;
    let watched = timers::Watched::without(learner.first, learner.last, &read.gaps(learner.first, learner.last)?);
    let not_fired = match &args.root {
        Some(root) => timers::not_fired(root, &watched),
        None if read.is_own() => timers::not_fired(Path::new("/"), &watched),
        None => timers::NotFired::elsewhere(),
    };
    let named = known.as_ref().map(|(path, _)| path.as_path()).or(args.output.as_deref());
    let stem = named.and_then(Path::file_stem).and_then(|stem| stem.to_str()).unwrap_or("suggested");
    let stem: String = stem.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect();
    let mut taken = known.as_ref().map(|(path, loaded)| taken(path, loaded)).unwrap_or_default();
    // Nothing is written over, and no diff makes a file that is there.
    taken.extend(listed(named, &stem));
    let suggestion = suggest(learner, args.max_rules, args.widest.unwrap_or_default(), &stem, &taken, not_fired);
    if !global.json {
        read.tell();
    }
    let written = match &known {
        Some((path, _)) => diff(path, &suggestion)?,
        None => {
            let text = suggestion.policy(&stem);
            suggestion.check(&text)?;
            text
        }
    };
    if suggestion.rules.is_empty() {
        if global.json {
            json_line(&json(&suggestion, "", &read))?;
        } else {
            eprintln!("nothing to suggest: {} flows were seen, and nothing of them asks for a rule", suggestion.flows);
            tell(&suggestion);
        }
        return Ok(Exit::No);
    }
    let lists = known.is_none() && !suggestion.lists.is_empty();
    match &args.output {
        Some(output) => {
            let folder = output.parent().unwrap_or(Path::new(""));
            if lists {
                for (file, nets) in suggestion.lists.values() {
                    write_new(&folder.join(file), &crate::review::suggest::list_text(nets))?;
                }
            }
            write_new(output, &written)?;
        }
        None if lists && !global.json => {
            bail!(
                "a rule has so many addresses that they need a file of their own: say where with --output FILE, or sum them up with --widest /24"
            );
        }
        None if !global.json => print(&written)?,
        None => {}
    }
    if global.json {
        json_line(&json(&suggestion, &written, &read))?;
    } else {
        if known.is_some() {
            tell(&suggestion);
        }
        if let Some(output) = &args.output {
            let name = escape_line(&output.display().to_string());
            eprintln!(
                "written to {name}: {} rules from {} flows. Read it, then: guard check {name}",
                suggestion.rules.len(),
                suggestion.flows
            );
        }
    }
    Ok(if read.is_broken() { Exit::CouldNot } else { Exit::Good })
}

/// What a policy's own comments would say, where a diff is written.
fn tell(suggestion: &Suggestion) {
    suggestion.said().iter().for_each(|line| eprintln!("{line}"));
    let left_out = suggestion.left_out_lines();
    if !left_out.is_empty() {
        eprintln!("Left out:");
        left_out.iter().for_each(|line| eprintln!("  {line}"));
    }
}

fn diff(path: &Path, suggestion: &Suggestion) -> anyhow::Result<String> {
    if suggestion.rules.is_empty() {
        return Ok(String::new());
    }
    let old = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // As `git apply` and `patch -p1` want it: below the directory that one stands in.
    let shown = path.display().to_string();
    let shown = if path.is_absolute() {
        path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or(shown)
    } else {
        shown.trim_start_matches("./").to_owned()
    };
    let (new, diff) = patch(&old, &escape_line(&shown), suggestion)?;
    // Beside the policy, so that what it includes is found.
    if let Err(SuggestError::Invalid(found)) = suggestion.check_beside(path, &new) {
        bail!(
            "with these rules the policy would not pass guard check; add them by hand:\n{}\n{}",
            escape(&found),
            escape(&diff)
        );
    }
    Ok(diff)
}

/// Groups whose list files lie there already, from an earlier time.
fn listed(beside: Option<&Path>, stem: &str) -> BTreeSet<String> {
    let folder = beside.and_then(Path::parent).filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let group = |name: String| Some(name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".txt")?.to_owned());
    let names =
        fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(group).collect()
}

/// Names that the policy uses.
fn taken(path: &Path, loaded: &Loaded) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = loaded.policy.rules.iter().filter_map(|rule| rule.name.clone()).collect();
    // Groups are gone after validation: whatever stands before a colon may be one.
    for line in fs::read_to_string(path).unwrap_or_default().lines() {
        names.extend(line.split_once(':').map(|(key, _)| key.trim().to_owned()));
    }
    names
}

fn json(suggestion: &Suggestion, text: &str, read: &source::Read) -> serde_json::Value {
    let stamp = |us: i64| crate::record::clock::timestamp(i128::from(us) * 1000);
    let rules: Vec<serde_json::Value> = suggestion
        .rules
        .iter()
        .zip(&suggestion.names)
        .map(|(rule, name)| {
            json!({
                "name": name,
                "direction": rule.direction.as_str(),
                "services": crate::review::suggest::services_text(&rule.services),
                "remotes": rule.remotes.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "public": rule.is_public(),
                "addresses": rule.addresses.len(),
                "will_rot": rule.rotting(),
                "names": rule.names.keys().map(|name| &**name).collect::<Vec<_>>(),
                "programs": rule.evidence.programs.iter().map(|name| &**name).collect::<Vec<_>>(),
                "flows": rule.evidence.flows,
                "bytes": rule.evidence.bytes,
                "first": stamp(rule.evidence.first),
                "last": stamp(rule.evidence.last),
            })
        })
        .collect();
    let left_out: Vec<serde_json::Value> = suggestion
        .left_out
        .iter()
        .map(|(why, direction, service, remote, evidence)| {
            json!({
                "why": why,
                "direction": direction.as_str(),
                "service": crate::review::suggest::service_text(*service),
                "remote": (!remote.is_unspecified()).then(|| remote.to_string()),
                "flows": evidence.flows,
                "bytes": evidence.bytes,
                "programs": evidence.programs.iter().map(|name| &**name).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "flows": suggestion.flows,
        "allowed_already": suggestion.allowed,
        "first": stamp(suggestion.first),
        "last": stamp(suggestion.last),
        "rules": rules,
        "left_out": left_out,
        "not_fired": suggestion.not_fired,
        "lists": suggestion.lists.values().map(|(file, nets)| (file.clone(), json!(nets.iter().map(ToString::to_string).collect::<Vec<_>>()))).collect::<serde_json::Map<_, _>>(),
        "read": read.json(),
        "text": text,
    })
}
