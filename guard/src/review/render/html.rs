//! One page that needs nothing else: no script, no request, no server. Light and dark, from a phone's width up, and all of
//! it by keyboard, since it is made of links and `<details>` alone.
//!
//! What came from outside is made harmless and then escaped by [`escape`], everywhere; the page forbids scripts and
//! requests by its own policy, should something slip through.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{
    daemon::report::thousands,
    review::{
        facts::BARS,
        findings::{Finding, Kind},
        report::Report,
        words,
    },
    store::Span,
    text::escape_line,
};

const STYLE: &str = include_str!("page.css");
/// Programs and remotes in the picture of who talks to whom; the rest is in the lists.
const NODES: usize = 14;

#[must_use]
pub fn render(report: &Report) -> String {
    let mut page = String::with_capacity(64 << 10);
    // Writing to a String cannot fail.
    let _ = write_page(report, &mut page);
    page
}

fn write_page(report: &Report, page: &mut String) -> std::fmt::Result {
    let title = match report.hosts.as_slice() {
        [host] => escape(host),
        hosts => format!("{} hosts", hosts.len()),
    };
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>guard report: {title}</title>\n<style>{STYLE}</style></head>\n<body>\n\
         <a class=\"skip\" href=\"#findings\">To the findings</a>\n"
    )?;
    write_head(report, &title, page)?;
    if !report.findings.is_empty() {
        write_timeline(report, page)?;
        write_talkers(report, page)?;
    }
    writeln!(page, "<main id=\"findings\">")?;
    for kind in Kind::ALL {
        write_section(report, kind, page)?;
    }
    write_background(report, page)?;
    write!(page, "</main>\n</body></html>\n")
}

fn write_head(report: &Report, title: &str, page: &mut String) -> std::fmt::Result {
    let counts = report.counts();
    let mut what = words::waiting(report.waiting());
    what[..1].make_ascii_uppercase();
    writeln!(page, "<header><h1>{what}</h1>\n<p class=\"sub\">{title}")?;
    if let Some(span) = report.span {
        write!(page, " · {}", words::span(span.since, span.until))?;
    }
    if let Some((at, by)) = &report.reviewed {
        let newer = if report.newer.is_some() { " (coverage, alerts and background: since then)" } else { "" };
        write!(page, " · last review {} by {}{newer}", words::minute(*at), escape(by))?;
    }
    writeln!(page, "</p>\n<ul class=\"counts\">")?;
    let denied = counts.denied_flows + counts.would_be_denied_flows;
    writeln!(
        page,
        "<li class=\"deny\"><b>{}</b> flows denied, in {} groups</li>\
         <li class=\"allow\"><b>{}</b> flows allowed, in {} groups</li><li><b>{}</b> acknowledged</li>",
        thousands(denied),
        counts.denied_groups,
        thousands(counts.allowed_flows),
        counts.allowed_groups,
        thousands(report.acknowledged as u64)
    )?;
    if counts.would_be_denied_flows > 0 {
        writeln!(page, "<li><b>{}</b> of them not stopped: audit</li>", thousands(counts.would_be_denied_flows))?;
    }
    writeln!(page, "</ul>\n<ul class=\"coverage\">")?;
    for (host, coverage) in &report.coverage {
        let parts: Vec<String> = words::coverage(coverage).iter().map(|part| escape(part)).collect();
        let name = if report.hosts.len() > 1 { format!("{}: ", escape(host)) } else { String::new() };
        writeln!(page, "<li>{name}{}</li>", parts.join("; "))?;
    }
    for file in &report.read {
        writeln!(page, "<li>read: {}</li>", escape(&file.to_string()))?;
    }
    for notice in &report.notices {
        writeln!(page, "<li class=\"notice\">notice: {}</li>", escape(notice))?;
    }
    for (host, alert) in &report.alerts {
        writeln!(page, "<li class=\"notice\">alert: {}: {}</li>", escape(host), escape(&words::alert(alert)))?;
    }
    writeln!(page, "</ul>\n<nav><ul>")?;
    for kind in Kind::ALL {
        let number = report.of_kind(kind).count();
        if number > 0 {
            writeln!(page, "<li><a href=\"#{kind:?}\">{} <span>{number}</span></a></li>", kind.title())?;
        }
    }
    writeln!(page, "</ul></nav></header>")
}

fn write_section(report: &Report, kind: Kind, page: &mut String) -> std::fmt::Result {
    let findings: Vec<&Finding> = report.of_kind(kind).collect();
    if findings.is_empty() {
        return Ok(());
    }
    writeln!(
        page,
        "<section id=\"{kind:?}\"><h2>{} <span>{}</span></h2>\n<p class=\"next\">{}</p>",
        kind.title(),
        findings.len(),
        escape(report.next(kind))
    )?;
    for finding in findings {
        let facts = &finding.facts;
        let class = if finding.is_denied() { "deny" } else { "allow" };
        let verdict = if finding.is_denied() { "denied" } else { "allowed" };
        writeln!(
            page,
            "<details class=\"{class}\"{}><summary><code class=\"id\">{}</code> <b>{}</b> <i>{verdict}</i>\
             <span class=\"program\">{}</span></summary>\n<p>{}</p>\n<dl>",
            if kind == Kind::Learned { "" } else { " open" },
            report.short(finding.id()),
            escape(&words::flow(finding)),
            escape(&words::program(facts)),
            words::parts(finding).iter().map(|part| escape(part)).collect::<Vec<_>>().join(" · "),
        )?;
        let mut row = |name: &str, value: &str| writeln!(page, "<dt>{name}</dt><dd>{}</dd>", escape(value));
        row("id", &finding.id().to_string())?;
        if let Some(who) = &facts.who
            && !who.args.is_empty()
        {
            row("called as", &who.args.join(" "))?;
        }
        row("first ever", &words::minute(facts.first_ever))?;
        if !facts.names.is_empty() {
            row("asked as", &facts.names.join(", "))?;
        }
        if report.hosts.len() > 1 {
            row("hosts", &super::text::seen_on(finding, report.hosts.len()))?;
        }
        writeln!(page, "</dl></details>")?;
    }
    writeln!(page, "</section>")
}

fn write_background(report: &Report, page: &mut String) -> std::fmt::Result {
    if report.background.is_empty() && report.everyday.is_empty() {
        return Ok(());
    }
    writeln!(page, "<section id=\"background\"><h2>background</h2><ul>")?;
    for line in &report.background {
        writeln!(page, "<li>{}</li>", escape(&words::background(line)))?;
    }
    for (service, program, count) in &report.everyday {
        let program = program.as_deref().map(|program| format!(" ({program})")).unwrap_or_default();
        let text =
            format!("inbound {service}{program}: {} new networks, of a service that is known", thousands(*count));
        writeln!(page, "<li>{}</li>", escape(&text))?;
    }
    writeln!(page, "</ul></section>")
}

/// Bars of flows, denied above allowed. Heights are by the root, so that one flow beside thousands is seen.
fn write_timeline(report: &Report, page: &mut String) -> std::fmt::Result {
    const HEIGHT: f64 = 80.0;
    const WIDTH: f64 = 960.0;
    let mut bars = [[0u64; 2]; BARS];
    for finding in report.findings.iter().filter(|finding| finding.kind != Kind::Learned) {
        for (bar, flows) in bars.iter_mut().zip(finding.facts.timeline) {
            bar[usize::from(!finding.is_denied())] += u64::from(flows);
        }
    }
    let most = bars.iter().map(|bar| root(bar[0]) + root(bar[1])).fold(1.0, f64::max);
    let span = report.span.unwrap_or(Span { since: 0, until: 1 });
    writeln!(
        page,
        "<figure><figcaption>When: flows of what is below, denied (hatched) above allowed. Heights by the square root.\
         </figcaption>\n<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"timeline of flows\">\
         <defs><pattern id=\"hatch\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\">\
         <path d=\"M0 4 4 0\" class=\"hatch\"/></pattern></defs>",
        HEIGHT + 20.0
    )?;
    let width = WIDTH / BARS as f64;
    for (at, [denied, allowed]) in bars.iter().enumerate() {
        let x = at as f64 * width;
        let (low, high) = (root(*allowed) / most * HEIGHT, root(*denied) / most * HEIGHT);
        let step = (span.until - span.since) / BARS as i64;
        let from = span.since + step * at as i64;
        write!(page, "<g><title>{}: {denied} denied, {allowed} allowed</title>", words::span(from, from + step))?;
        let mut bar = |class: &str, top: f64, height: f64| match height > 0.0 {
            true => write!(
                page,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
                x + 1.0,
                width - 2.0
            ),
            false => Ok(()),
        };
        bar("allow", HEIGHT - low, low)?;
        bar("deny", HEIGHT - low - high, high)?;
        bar("hatched", HEIGHT - low - high, high)?;
        writeln!(page, "</g>")?;
    }
    writeln!(
        page,
        "<path class=\"axis\" d=\"M0 {HEIGHT}H{WIDTH}\"/><text x=\"0\" y=\"{0}\">{1}</text>\
         <text x=\"{WIDTH}\" y=\"{0}\" text-anchor=\"end\">{2}</text></svg></figure>",
        HEIGHT + 16.0,
        words::minute(span.since),
        words::minute(span.until)
    )
}

fn root(flows: u64) -> f64 {
    (flows as f64).sqrt()
}

/// Programs at the left, whom they talk to at the right; dashed where denied.
fn write_talkers(report: &Report, page: &mut String) -> std::fmt::Result {
    const ROW: f64 = 26.0;
    let mut edges: BTreeMap<(String, String), (u64, bool, bool)> = BTreeMap::new();
    let (mut left, mut right): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut left_out = 0;
    for finding in report.findings.iter().filter(|finding| finding.facts.flows > 0) {
        let program = finding.facts.group.program.as_deref().unwrap_or("unknown program").to_owned();
        let remote = words::flow(finding);
        let known = |list: &[String], name: &String| list.contains(name) || list.len() < NODES;
        if !known(&left, &program) || !known(&right, &remote) {
            left_out += 1;
            continue;
        }
        if !left.contains(&program) {
            left.push(program.clone());
        }
        if !right.contains(&remote) {
            right.push(remote.clone());
        }
        let edge =
            edges.entry((program, remote)).or_insert((0, finding.is_denied(), !finding.facts.unusual.is_empty()));
        edge.0 += finding.facts.flows;
    }
    let height = left.len().max(right.len()) as f64 * ROW + 10.0;
    let more = if left_out > 0 { format!(" {left_out} more are in the lists.") } else { String::new() };
    writeln!(
        page,
        "<figure class=\"wide\"><figcaption>Who talks to whom; dashed where denied.{more}</figcaption>\n<div tabindex=\"0\">\
         <svg class=\"talk\" viewBox=\"0 0 960 {height:.0}\" role=\"img\" aria-label=\"who talks to whom\">"
    )?;
    let y = |list: &[String], name: &str| {
        let at = list.iter().position(|other| other == name).unwrap_or(0);
        (at as f64 + 0.5) * (height / list.len().max(1) as f64)
    };
    for ((program, remote), (flows, denied, _)) in &edges {
        let (from, to) = (y(&left, program), y(&right, remote));
        let class = if *denied { "deny" } else { "allow" };
        let wide = 1.0 + (*flows as f64).log10().max(0.0);
        writeln!(
            page,
            "<path class=\"edge {class}\" stroke-width=\"{wide:.1}\" d=\"M336 {from:.0}C450 {from:.0} 460 {to:.0} 574 {to:.0}\">\
             <title>{} {}: {flows} flows</title></path>",
            escape(program),
            escape(remote)
        )?;
    }
    for name in &left {
        writeln!(
            page,
            "<text x=\"328\" y=\"{:.0}\" text-anchor=\"end\">{}</text>",
            y(&left, name) + 4.0,
            escape(&shortened(name, 46))
        )?;
    }
    for name in &right {
        writeln!(page, "<text x=\"582\" y=\"{:.0}\">{}</text>", y(&right, name) + 4.0, escape(&shortened(name, 54)))?;
    }
    writeln!(page, "</svg></div></figure>")
}

/// Cut in the middle: the ends tell most.
fn shortened(text: &str, most: usize) -> String {
    let text: Vec<char> = text.chars().collect();
    if text.len() <= most {
        return text.into_iter().collect();
    }
    let (head, tail) = (most / 2 - 1, most - most / 2);
    text[..head].iter().chain(&['…']).chain(&text[text.len() - tail..]).collect()
}

/// Harmless, and text wherever it stands: between tags and in a quoted attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in escape_line(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_place() {
        assert_eq!(escape("<b a='\"&\u{202e}\n"), "&lt;b a=&#39;&quot;&amp;\\u{202e}\\n");
        assert_eq!(shortened("abcdefghij", 6), "ab…hij");
    }
}
