//! For programs. Field names are stable; docs/review.md lists them.

use serde_json::{Value, json};

use crate::{
    record::clock::timestamp,
    review::{findings::Finding, report::Report, words},
};

fn time(unix_us: i64) -> String {
    timestamp(i128::from(unix_us) * 1000)
}

#[must_use]
pub fn render(report: &Report) -> Value {
    let coverage: Vec<Value> = report
        .coverage
        .iter()
        .map(|(host, coverage)| {
            json!({
                "host": host,
                "asked_seconds": coverage.asked / 1_000_000,
                "covered_seconds": coverage.covered / 1_000_000,
                "gaps": coverage.gaps.iter().map(|(from, to)| json!({"from": time(*from), "to": time(*to)})).collect::<Vec<_>>(),
                "lost": coverage.losses,
            })
        })
        .collect();
    let background: Vec<Value> = report
        .background
        .iter()
        .map(|line| {
            json!({
                "protocol": crate::record::flow::protocol_name(line.protocol),
                "port": line.port,
                "flows": line.flows,
                "packets": line.packets,
                "bytes": line.bytes,
                "not_stopped": line.passed,
                "addresses": line.addresses,
                "ports": line.ports,
                "at_least": line.at_least,
                "sentence": words::background(line),
            })
        })
        .collect();
    json!({
        "hosts": report.hosts,
        "since": report.span.map(|span| time(span.since)),
        "until": report.span.map(|span| time(span.until)),
        "last_review": report.reviewed.as_ref().map(|(at, by)| json!({"at": time(*at), "by": by})),
        "coverage": coverage,
        "counts": report.counts(),
        "newer_than": report.newer.map(time),
        "to_review": report.waiting().to_review,
        "learned": report.waiting().learned,
        "acknowledged": report.acknowledged,
        "findings": report.findings.iter().map(|finding| one(report, finding)).collect::<Vec<_>>(),
        "everyday": report.everyday.iter().map(|(service, program, count)| json!({
            "service": service.to_string(), "program": program, "new_networks": count,
        })).collect::<Vec<_>>(),
        "background": background,
        "alerts": report.alerts.iter().map(|(host, alert)| json!({
            "host": host, "at": time(alert.at), "over": alert.over.map(time), "kind": alert.kind, "target": alert.target,
            "hook": alert.hook, "severity": alert.severity, "what": alert.what, "by": alert.by,
            "repaired": alert.repaired, "packets": alert.packets, "sentence": words::alert(alert),
        })).collect::<Vec<_>>(),
        "notices": report.notices,
        "read": report.read,
    })
}

#[must_use]
pub fn one(report: &Report, finding: &Finding) -> Value {
    let facts = &finding.facts;
    let [allowed, denied, would, seen] = facts.fates;
    let regular = facts.rhythm.regular();
    json!({
        "id": finding.id().to_string(),
        "short": report.short(finding.id()),
        "kind": finding.kind,
        "direction": facts.group.direction.as_str(),
        "verdict": if finding.is_denied() { "deny" } else { "allow" },
        "flow": words::flow(finding),
        "program": facts.group.program,
        "who": facts.who,
        "pids": facts.pids,
        "remote_group": facts.group.remote.to_string(),
        "remote": facts.remote,
        "remotes": facts.remotes(),
        "more_remotes": facts.has_more_remotes(),
        "names": facts.names,
        "service": facts.group.service.to_string(),
        "services": finding.services,
        "remote_groups": finding.remote_groups,
        "flows": {"all": facts.flows, "allowed": allowed, "denied": denied, "would_be_denied": would, "seen": seen,
                  "answered": facts.answered},
        "first": time(facts.first),
        "last": time(facts.last),
        "first_ever": time(facts.first_ever),
        "bytes_in": facts.bytes[0],
        "bytes_out": facts.bytes[1],
        "packets_in": facts.packets[0],
        "packets_out": facts.packets[1],
        "every_seconds": regular.map(|(every, _)| every),
        "strays": regular.map(|(_, strays)| strays),
        "rule": facts.rule,
        "reason": &*facts.reason,
        "unusual": facts.unusual,
        "listening_since": finding.listener.as_ref().map(|row| time(row.fresh)),
        "sentence": words::parts(finding).join(" · "),
        "next": report.next(finding.kind),
        "groups": finding.members.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "older": finding.older,
        "hosts": finding.hosts,
        "of_hosts": report.hosts.len(),
        // Scores have their place; nothing is scored yet.
        "score": Value::Null,
    })
}
