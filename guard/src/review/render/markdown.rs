//! For a ticket or a wiki. Everything that came from outside stands in code, where nothing is markup.

use crate::{
    daemon::report::thousands,
    review::{
        findings::{Finding, Kind},
        report::Report,
        words,
    },
    text::escape_line,
};

#[must_use]
pub fn render(report: &Report) -> String {
    let counts = report.counts();
    let mut text = format!("# guard report: {}\n\n", words::waiting(report.waiting()));
    let hosts: Vec<String> = report.hosts.iter().map(|host| code(host)).collect();
    let span = report.span.map(|span| words::span(span.since, span.until)).unwrap_or_default();
    text.push_str(&format!("- hosts: {}\n- period: {span}\n", hosts.join(", ")));
    text.push_str(&format!(
        "- denied: {} flows in {} groups; would be denied: {} flows; allowed: {} flows in {} groups; acknowledged: {}\n",
        thousands(counts.denied_flows),
        counts.denied_groups,
        thousands(counts.would_be_denied_flows),
        thousands(counts.allowed_flows),
        counts.allowed_groups,
        report.acknowledged
    ));
    for (host, coverage) in &report.coverage {
        text.push_str(&format!("- {}: {}\n", code(host), words::coverage(coverage).join("; ")));
    }
    if let Some((at, by)) = &report.reviewed {
        let newer = if report.newer.is_some() { "; coverage, alerts and background are of the time since" } else { "" };
        text.push_str(&format!("- last review: {} by {}{newer}\n", words::minute(*at), code(by)));
    }
    for file in &report.read {
        text.push_str(&format!("- read: {}\n", code(&file.to_string())));
    }
    for notice in &report.notices {
        text.push_str(&format!("- notice: {}\n", code(notice)));
    }
    if !report.alerts.is_empty() {
        text.push_str(&format!("\n## Alerts ({})\n\n", report.alerts.len()));
    }
    for (host, alert) in &report.alerts {
        text.push_str(&format!("- {}: {}\n", code(host), code(&words::alert(alert))));
    }
    for kind in Kind::ALL {
        let findings: Vec<&Finding> = report.of_kind(kind).collect();
        if findings.is_empty() {
            continue;
        }
        let mut title = kind.title().to_owned();
        title[..1].make_ascii_uppercase();
        text.push_str(&format!("\n## {title} ({})\n\nNext: {}\n\n", findings.len(), report.next(kind)));
        for finding in findings {
            let mut parts = words::parts(finding).join(" · ");
            if report.hosts.len() > 1 {
                parts.push_str(&format!(" · {}", super::text::seen_on(finding, report.hosts.len())));
            }
            text.push_str(&format!(
                "- **{}** {} by {}\n  {}\n",
                report.short(finding.id()),
                code(&words::flow(finding)),
                code(&words::program(&finding.facts)),
                code(&parts)
            ));
        }
    }
    if !report.background.is_empty() {
        text.push_str("\n## Background\n\n");
        for line in &report.background {
            text.push_str(&format!("- {}\n", words::background(line)));
        }
    }
    text
}

/// In backticks, more of them than it holds in a row.
fn code(text: &str) -> String {
    let text = escape_line(text);
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    if text.starts_with('`') || text.ends_with('`') {
        format!("{fence} {text} {fence}")
    } else {
        format!("{fence}{text}{fence}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_cannot_be_left() {
        assert_eq!(code("a`b"), "``a`b``");
        assert_eq!(code("`"), "`` ` ``");
        assert_eq!(code("x\ny\u{1b}"), "`x\\ny\\u{1b}`");
    }
}
