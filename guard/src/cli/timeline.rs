use std::fmt::Write as _;

use clap::Args;

use super::{Exit, Global, InstanceArgs, output, time::past};
use crate::{
    daemon::state_dir::{StateDir, StateError},
    host::person::Person,
    journal::{self, Entry, Timeline},
};

/// Who did what when, what guard noticed, and what guard itself left on this host
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  guard timeline\n  guard timeline --since 12h\n  guard timeline --json > timeline.jsonl"
)]
pub struct TimelineArgs {
    /// Only from then on: a time in UTC, or an age (90min, 12h, 7d)
    #[arg(long, value_name = "TIME", value_parser = past)]
    pub since: Option<i64>,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &TimelineArgs, global: &Global) -> anyhow::Result<Exit> {
    let timeline = match StateDir::open(&args.instance.state_dir()) {
        Ok(state) => journal::read(state.path(), args.since)?,
        Err(StateError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Timeline::default(),
        Err(error) => return Err(error.into()),
    };
    if global.json {
        timeline.entries.iter().try_for_each(output::json_line)?;
        if timeline.damaged > 0 {
            output::json_line(&serde_json::json!({ "damaged_lines": timeline.damaged }))?;
        }
    } else {
        output::print(&render(&timeline))?;
    }
    Ok(Exit::Good)
}

fn render(timeline: &Timeline) -> String {
    let mut text: String = timeline.entries.iter().map(render_entry).collect();
    if timeline.entries.is_empty() {
        text.push_str("nothing is in the timeline\n");
    }
    if timeline.damaged > 0 {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} lines are damaged and were skipped (guard timeline --json counts them)",
            timeline.damaged
        );
    }
    text
}

/// Its first line, then what belongs to it.
fn render_entry(entry: &Entry) -> String {
    let time = output::utc(i128::from(entry.at) * 1000);
    let by = entry.by.as_ref().map_or_else(|| "guard".to_owned(), Person::spoken);
    let line = |text: &str| output::escape_line(text);
    let mut text = format!("{time}  {:<9} {}  {}\n", entry.event.as_str(), line(&by), line(&entry.text));
    // Writing to a String cannot fail.
    let mut more = |what: &str| {
        let _ = writeln!(text, "                      {what}");
    };
    if let Some(policy) = &entry.policy {
        let sha256 = line(policy.sha256.get(..8).unwrap_or(&policy.sha256));
        more(&format!("policy {} (sha256 {sha256}…, generation {})", line(&policy.name), policy.generation));
    }
    if entry.cut_flows > 0 {
        more(&format!("cut {} flows", entry.cut_flows));
        const SHOWN: usize = 5;
        for cut in entry.cut.iter().take(SHOWN) {
            let program = match (&cut.program, cut.pid) {
                (Some(program), Some(pid)) => format!("  {program} pid {pid}"),
                _ => String::new(),
            };
            more(&format!("  {}{}", line(&cut.flow), line(&program)));
        }
        if entry.cut_flows > SHOWN {
            more("  and more (--json)");
        }
    }
    if let Some(note) = &entry.note {
        more(&format!("note: {}", line(note)));
    }
    if let Some(footprint) = &entry.footprint {
        more(&line(&footprint.spoken()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{CutFlow, Event};

    #[test]
    fn an_entry_is_said_with_who_and_why_and_steers_no_terminal() {
        let person = Person { name: "kim\u{1b}[2J".to_owned(), by: "sudo".to_owned(), ..Person::default() };
        let mut entry = Entry::new(Event::Reload, "another policy\nwas put in force").by(person);
        entry = entry.noted(Some("ticket 41")).policy("web", &"5f".repeat(32), 7);
        entry.cut_flows = 7;
        entry.cut =
            vec![
                CutFlow { flow: "out tcp 203.0.113.9:4444".to_owned(), program: Some("nc".to_owned()), pid: Some(12) };
                7
            ];
        let text = render(&Timeline { entries: vec![entry], damaged: 2 });
        assert!(text.contains("reload    kim\\u{1b}[2J (sudo)  another policy\\nwas put in force"), "{text}");
        assert!(text.contains("policy web (sha256 5f5f5f5f…, generation 7)"), "{text}");
        assert!(text.contains("cut 7 flows") && text.contains("nc pid 12") && text.contains("and more"), "{text}");
        assert!(text.contains("note: ticket 41") && text.contains("2 lines are damaged"), "{text}");
    }
}
