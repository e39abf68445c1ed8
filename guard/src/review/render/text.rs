//! For a terminal, 80 columns: the answer first, then what to do, then detail.

use crate::{
    cli::output::Style,
    daemon::report::thousands,
    review::{
        findings::{Finding, Kind},
        report::Report,
        words,
    },
    text::escape_line,
};

const WIDTH: usize = 80;
/// Findings of one kind that are shown unless all are asked for.
const SHOWN: usize = 20;
/// Of those that were learned: the list is long in the first weeks, and less urgent.
const LEARNED_SHOWN: usize = 8;
/// No-break space: [`wrap`] takes it for a letter, and writes a space.
const TOGETHER: &str = "\u{a0}";
/// A finding's numbers stand under it.
const INDENT: &str = "      ";

/// `suffix`: what a pasted command needs to reach the same guard.
#[must_use]
pub fn render(report: &Report, suffix: &str, all: bool, style: Style) -> String {
    let mut lines = Vec::new();
    head(report, style, &mut lines);
    if !report.findings.is_empty() {
        lines.push(String::new());
    }
    for kind in Kind::ALL {
        section(report, kind, all, style, &mut lines);
    }
    let everyday = report.everyday.iter().map(|(service, program, count)| {
        let program = program.as_deref().map(|program| format!(" ({program})")).unwrap_or_default();
        format!("inbound {service}{program}: {} new networks, of a service that is known", thousands(*count))
    });
    let background: Vec<String> = report.background.iter().map(words::background).chain(everyday).collect();
    if !background.is_empty() {
        lines.push(String::new());
        for text in &background {
            wrap("background  ", "            ", &escape_line(text), &mut lines);
        }
    }
    if !report.findings.is_empty() {
        lines.push(String::new());
        let next = match report.is_of_others() {
            true => "the same command with --show ID · a policy from it: guard suggest --from …".to_owned(),
            false => format!("guard show ID{suffix} · guard ack ID --note WHY{suffix}"),
        };
        wrap("next  ", INDENT, &next, &mut lines);
    }
    lines.push(String::new());
    lines.join("\n")
}

fn head(report: &Report, style: Style, lines: &mut Vec<String>) {
    let counts = report.counts();
    let waiting = words::waiting(report.waiting());
    let count = if report.findings.is_empty() { style.good(&waiting) } else { style.warning(&waiting) };
    let since = report.span.map(|span| format!(" since {}", words::minute(span.since))).unwrap_or_default();
    let hosts = match report.hosts.len() {
        0 | 1 => String::new(),
        many => format!(" on {many} hosts"),
    };
    // Colour takes no place.
    if waiting.chars().count() + hosts.len() + since.len() <= WIDTH {
        lines.push(format!("{count}{hosts}{since}"));
    } else {
        lines.push(count);
        lines.push(format!(" {hosts}{since}"));
    }
    let groups_of = |flows: u64, groups: usize| {
        let flows = words::count(flows, "flow", "flows");
        format!("{flows} in {}", words::count(groups as u64, "group", "groups"))
    };
    let mut totals = format!(
        "denied {} · {} {}",
        groups_of(counts.denied_flows + counts.would_be_denied_flows, counts.denied_groups),
        // Nobody has decided on them.
        if report.is_of_others() { "seen" } else { "allowed" },
        groups_of(counts.allowed_flows, counts.allowed_groups),
    );
    if counts.would_be_denied_flows > 0 {
        totals.push_str(&format!(" · {} not stopped: audit", thousands(counts.would_be_denied_flows)));
    }
    if report.acknowledged > 0 {
        totals.push_str(&format!(" · {} acknowledged", thousands(report.acknowledged as u64)));
    }
    wrap("", "  ", &totals, lines);
    for (host, coverage) in &report.coverage {
        let mut parts = words::coverage(coverage).into_iter();
        let name = if report.hosts.len() > 1 { format!("{}: ", escape_line(host)) } else { String::new() };
        let first = format!("{name}{}", parts.next().unwrap_or_default());
        // Of many hosts only those are told that are not whole.
        if report.hosts.len() <= 1 || parts.len() > 0 {
            lines.push(first);
        }
        parts.for_each(|part| wrap("  ", "  ", &part, lines));
    }
    if let Some((at, by)) = &report.reviewed {
        lines.push(format!("last review {} by {}", words::minute(*at), escape_line(by)));
        if report.newer.is_some() {
            let older = report.findings.iter().filter(|finding| finding.older).count() as u64;
            let text = format!(
                "older: {} of which nothing was seen since. Coverage, alerts and background are of the time since then",
                words::count(older, "group", "groups")
            );
            wrap(INDENT, INDENT, &text, lines);
        }
    }
    for file in &report.read {
        wrap("read  ", INDENT, &escape_line(&file.to_string()), lines);
    }
    for notice in &report.notices {
        wrap("notice  ", "        ", &escape_line(notice), lines);
    }
    const ALERTS: usize = 8;
    if !report.alerts.is_empty() {
        let count = words::count(report.alerts.len() as u64, "alert", "alerts");
        lines.push(format!("{}  what was done to guard, or past it: guard timeline", style.error(&count)));
    }
    for (host, alert) in report.alerts.iter().take(ALERTS) {
        let name = if report.hosts.len() > 1 { format!("{}: ", escape_line(host)) } else { String::new() };
        wrap("  ", INDENT, &format!("{name}{}", escape_line(&words::alert(alert))), lines);
    }
    if report.alerts.len() > ALERTS {
        lines.push(format!("{INDENT}and {} more: --json", thousands((report.alerts.len() - ALERTS) as u64)));
    }
}

fn section(report: &Report, kind: Kind, all: bool, style: Style, lines: &mut Vec<String>) {
    let findings: Vec<&Finding> = report.of_kind(kind).collect();
    if findings.is_empty() {
        return;
    }
    let title = format!("{} ({})", kind.title().to_uppercase(), thousands(findings.len() as u64));
    lines.push(format!("{}  {}", style.bold(&title), style.faint(report.next(kind))));
    let most = match (all, kind) {
        (true, _) => usize::MAX,
        (_, Kind::Learned) if !report.is_of_others() => LEARNED_SHOWN,
        _ => SHOWN,
    };
    for finding in findings.iter().take(most) {
        one(report, finding, style, lines);
    }
    if findings.len() > most {
        lines.push(format!("{INDENT}and {} more: --all", thousands((findings.len() - most) as u64)));
    }
}

fn one(report: &Report, finding: &Finding, style: Style, lines: &mut Vec<String>) {
    let short = report.short(finding.id());
    let mut line = format!("{short:<4}  {} ", escape_line(&words::flow(finding)));
    // The network does not know programs.
    let unknown = finding.facts.who.is_none() && finding.facts.group.program.is_none();
    let parts = if unknown && report.is_of_others() { Vec::new() } else { words::program_parts(&finding.facts) };
    for (number, part) in parts.iter().enumerate() {
        let part = escape_line(part);
        // `guard show` has room for the rest.
        if number > 0 && line.chars().count() + part.chars().count() > WIDTH {
            break;
        }
        line.push_str(if number == 0 { " " } else { "" });
        line.push_str(&part);
    }
    let mut wrapped = Vec::new();
    wrap("", INDENT, &line, &mut wrapped);
    // Colour adds; it takes no place.
    wrapped[0] = wrapped[0].replacen(&short, &style.bold(&short), 1);
    lines.append(&mut wrapped);
    let short_of = finding.kind == Kind::Learned && finding.facts.flows > 0 && report.hosts.len() <= 1;
    let mut parts = match short_of && !report.is_of_others() {
        true => words::brief_learned(finding),
        false => words::brief(finding),
    };
    if report.hosts.len() > 1 {
        parts.push(seen_on(finding, report.hosts.len()));
    }
    if parts.is_empty() {
        return;
    }
    // Short parts are not torn apart.
    let parts: Vec<String> = parts
        .into_iter()
        .map(|part| if part.chars().count() <= 32 { part.replace(' ', TOGETHER) } else { part })
        .map(|part| escape_line(&part))
        .collect();
    wrap(INDENT, INDENT, &parts.join(" · "), lines);
}

/// `seen on 1 of 20 hosts (db1)`.
#[must_use]
pub fn seen_on(finding: &Finding, of: usize) -> String {
    const NAMED: usize = 3;
    let mut names: Vec<&str> = finding.hosts.iter().take(NAMED).map(|host| &**host).collect();
    if finding.hosts.len() > NAMED {
        names.push("…");
    }
    format!("seen on {} of {of} hosts ({})", finding.hosts.len(), names.join(", "))
}

/// Breaks at spaces; a word that is too long stands alone, cut where it must be.
fn wrap(first: &str, rest: &str, text: &str, lines: &mut Vec<String>) {
    let from = lines.len();
    let mut line = first.to_owned();
    let mut width = first.chars().count();
    let mut empty = true;
    // Two spaces part columns.
    for word in text.split_inclusive(' ') {
        let bare = word.trim_end_matches(' ');
        let length = bare.chars().count();
        if width + length > WIDTH && !empty {
            lines.push(std::mem::replace(&mut line, rest.to_owned()).trim_end().to_owned());
            width = rest.chars().count();
        }
        let mut bare = bare.to_owned();
        while width + bare.chars().count() > WIDTH {
            let room = WIDTH - width;
            let cut = bare.char_indices().nth(room).map_or(bare.len(), |(at, _)| at);
            line.push_str(&bare[..cut]);
            lines.push(std::mem::replace(&mut line, rest.to_owned()));
            width = rest.chars().count();
            bare = bare[cut..].to_owned();
        }
        line.push_str(&bare);
        width += bare.chars().count();
        if word.ends_with(' ') {
            line.push(' ');
            width += 1;
        }
        empty = false;
    }
    lines.push(line.trim_end().to_owned());
    lines[from..].iter_mut().for_each(|line| *line = line.replace(TOGETHER, " "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_80() {
        let mut lines = Vec::new();
        wrap("a  ", "   ", &format!("{} {} end", "x".repeat(50), "y".repeat(100)), &mut lines);
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:?}");
        assert_eq!(lines.len(), 3);
        assert!(lines[2].ends_with(" end"));
    }
}
