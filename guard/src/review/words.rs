//! Findings in words and numbers: the same in every form of a report. Not yet harmless: whoever shows them makes them so.

use guard_common::Direction;

use super::{
    facts::Facts,
    findings::{Finding, Kind},
    group::Remote,
    report::Waiting,
};
use crate::{
    daemon::report::{duration, thousands},
    record::{
        flow::protocol_name,
        view::bytes,
        who::{ExeKind, Who},
    },
    store::{Alert, BackgroundLine, Coverage, DAY_US},
};

const SECOND: i64 = 1_000_000;

/// `nothing to review`, `14 groups to review, 8 learned and never reviewed`.
#[must_use]
pub fn waiting(waiting: Waiting) -> String {
    let learned = format!("{} learned and never reviewed", thousands(waiting.learned as u64));
    match (waiting.to_review, waiting.learned) {
        (0, 0) => "nothing to review".to_owned(),
        (0, _) => format!("nothing new to review, {learned}"),
        (groups, 0) => format!("{} to review", count(groups as u64, "group", "groups")),
        (groups, _) => format!("{} to review, {learned}", count(groups as u64, "group", "groups")),
    }
}

/// `out tcp 203.0.113.9:4444`, `in tcp/9001 from 198.51.100.0/24`.
#[must_use]
pub fn flow(finding: &Finding) -> String {
    let Facts { group, remote, .. } = &finding.facts;
    let one = (finding.facts.remotes() == 1 && !finding.facts.has_more_remotes()).then_some(*remote).flatten();
    let service = match (finding.services, group.service.port) {
        (1, _) => group.service.to_string(),
        (many, _) => format!("{} on {} ports", protocol_name(group.service.protocol), thousands(many as u64)),
    };
    let named = finding.facts.names.first().map(|name| format!(" ({name})")).unwrap_or_default();
    let remote = match (&group.remote, one) {
        (_, Some(address)) => format!("{address}{named}"),
        (Remote::Many, _) if finding.remote_groups > 1 => {
            format!("{} networks", thousands(finding.remote_groups as u64))
        }
        (Remote::Network(network), _) => format!("{network}{named}"),
        (Remote::Zone(zone), _) => format!("*.{zone}"),
        (Remote::Group(name), _) if &**name == "any" => "anybody".to_owned(),
        (Remote::Group(name), _) => format!("\"{name}\""),
        (Remote::Many, _) => "many networks".to_owned(),
    };
    match (group.direction, &finding.listener) {
        (Direction::Outbound, _) => format!("out {service} to {remote}"),
        (Direction::Inbound, Some(row)) if finding.facts.flows == 0 => {
            format!("in {service} listens on {}", row.listener.address)
        }
        (Direction::Inbound, _) => format!("in {service} from {remote}"),
    }
}

/// `/dev/shm/.x (deleted) pid 4410 (root) < bash < sshd`; `unknown program`.
#[must_use]
pub fn program(facts: &Facts) -> String {
    program_parts(facts).concat()
}

/// The same in parts, the most important first: what has no room is left out from the end.
#[must_use]
pub fn program_parts(facts: &Facts) -> Vec<String> {
    let Some(who) = &facts.who else {
        return vec![facts.group.program.as_deref().unwrap_or("unknown program").to_owned()];
    };
    let mut parts = vec![format!("{}{}", own_name(who), exe_kind(who))];
    match facts.pids.as_slice() {
        [] => {}
        [pid] => parts.push(format!(" pid {pid}")),
        [.., last] => parts.push(format!(" pid {last} and others")),
    }
    if let Some(user) = &who.user {
        parts.push(format!(" ({user})"));
    } else if let Some(uid) = who.uid {
        parts.push(format!(" (uid {uid})"));
    }
    if let Some(container) = &who.container {
        let name = container.name.as_deref().unwrap_or_else(|| container.id.get(..12).unwrap_or(&container.id));
        parts.push(format!(" in container {name}"));
    }
    for parent in who.parents.iter().take(3) {
        parts.push(format!(" < {}", parent.exe.rsplit('/').next().unwrap_or(&parent.exe)));
    }
    if let (None, Some(unit)) = (&who.container, &who.unit) {
        parts.push(format!(" [{unit}]"));
    }
    parts
}

/// Without its container, which has a part of its own: the container's id would be all that there is room for.
fn own_name(who: &Who) -> &str {
    let known = who.exe.is_some() || !who.comm.is_empty();
    who.program().filter(|_| known).unwrap_or("unknown program")
}

#[must_use]
pub fn exe_kind(who: &Who) -> &'static str {
    match who.exe_kind {
        ExeKind::File => "",
        ExeKind::Deleted => " (deleted)",
        ExeKind::Memfd => " (memfd)",
        ExeKind::Overlay => " (in a container's overlay)",
    }
}

/// The numbers, as parts of a sentence: what became of the flows, when, how regular, how much, and why it is here.
#[must_use]
pub fn parts(finding: &Finding) -> Vec<String> {
    let facts = &finding.facts;
    let mut parts = numbers(finding, &span(facts.first, facts.last));
    for unusual in &facts.unusual {
        parts.push(format!("the program {}", unusual.sentence()));
    }
    parts.extend(why(finding));
    parts.extend(shared(facts));
    parts.extend(finding.older.then(|| OLDER.to_owned()));
    parts
}

/// Where `guard report --since last-review` shows what waits for longer.
const OLDER: &str = "older";

/// Every name of an address that has several: any of them may be whom it was about.
fn shared(facts: &Facts) -> Option<String> {
    let names: Vec<&str> = facts.names.iter().map(|name| &**name).collect();
    (names.len() > 1).then(|| format!("asked as {}", names.join(", ")))
}

/// The same where there is little room: what the heading says already is left out, and the year.
#[must_use]
pub fn brief(finding: &Finding) -> Vec<String> {
    let facts = &finding.facts;
    let when = span(facts.first, facts.last)
        .split(" to ")
        .map(|time| time.get(5..).unwrap_or(time))
        .collect::<Vec<_>>()
        .join(" to ");
    let mut parts = numbers(finding, &when);
    if !facts.unusual.is_empty() {
        let unusual: Vec<&str> = facts.unusual.iter().map(|unusual| unusual.brief()).collect();
        parts.insert(1.min(parts.len()), unusual.join(", "));
    }
    parts.extend(facts.rule.is_some().then(|| why(finding)).flatten());
    parts.extend(shared(facts));
    parts.extend(finding.older.then(|| OLDER.to_owned()));
    parts
}

/// Of what was learned only what one line does not hold.
#[must_use]
pub fn brief_learned(finding: &Finding) -> Vec<String> {
    shared(&finding.facts).into_iter().collect()
}

fn numbers(finding: &Finding, when: &str) -> Vec<String> {
    let facts = &finding.facts;
    if facts.flows == 0 {
        let since = finding.listener.as_ref().map_or(facts.first, |row| row.fresh);
        return vec![format!("listens since {}, nobody came", minute(since))];
    }
    let mut parts = vec![format!("{} {when}", fates(facts))];
    if let Some((every, strays)) = facts.rhythm.regular() {
        parts.push(format!("every {} ± {:.0} %", seconds(every), (strays * 100.0).ceil()));
    }
    parts.push(match facts.group.direction {
        Direction::Outbound => format!("{} out, {} in", bytes(facts.bytes[1]), bytes(facts.bytes[0])),
        Direction::Inbound => format!("{} in, {} out", bytes(facts.bytes[0]), bytes(facts.bytes[1])),
    });
    if facts.answered == 0 && !finding.is_denied() {
        parts.push("never answered".to_owned());
    }
    if facts.remotes() > 1 {
        let more = if facts.has_more_remotes() { "at least " } else { "" };
        parts.push(format!("{more}{} addresses", facts.remotes()));
    }
    parts
}

fn why(finding: &Finding) -> Option<String> {
    let facts = &finding.facts;
    Some(match (finding.kind, &facts.rule) {
        (_, Some(rule)) if facts.group.denied => format!("denied by \"{rule}\""),
        (_, None) if facts.group.denied => match &*facts.reason {
            "not_listed" => "no rule lists it".to_owned(),
            reason => reason.to_owned(),
        },
        (Kind::OutboundFirstSeen | Kind::InboundFirstSeen | Kind::NewService, rule) => {
            let by = rule.as_ref().map(|rule| format!("allowed by \"{rule}\", ")).unwrap_or_default();
            format!("{by}not seen in the 14 days before")
        }
        (_, Some(rule)) => format!("allowed by \"{rule}\""),
        (_, None) => return None,
    })
}

/// `9 flows denied`, `3 flows allowed, 2 denied`.
fn fates(facts: &Facts) -> String {
    let [allowed, denied, would, seen] = facts.fates;
    let mut words = Vec::new();
    for (count, word) in [(denied, "denied"), (would, "would be denied"), (allowed, "allowed"), (seen, "seen")] {
        if count > 0 {
            words.push(format!("{} {word}", thousands(count)));
        }
    }
    let flows = if facts.flows == 1 { "flow" } else { "flows" };
    match words.as_slice() {
        [one] => one.replacen(' ', &format!(" {flows} "), 1),
        several => format!("{} {flows}: {}", thousands(facts.flows), several.join(", ")),
    }
}

/// `2026-11-24 03:14-04:02Z`, `2026-11-22 03:14Z to 2026-11-24 04:02Z`.
#[must_use]
pub fn span(first: i64, last: i64) -> String {
    let (a, b) = (minute(first), minute(last));
    if a == b {
        return a;
    }
    match (a.split_once(' '), b.split_once(' ')) {
        (Some((day, from)), Some((same, to))) if day == same => {
            format!("{day} {}-{to}", from.trim_end_matches('Z'))
        }
        _ => format!("{a} to {b}"),
    }
}

/// `2026-11-24 03:14Z`.
#[must_use]
pub fn minute(unix_us: i64) -> String {
    jiff::Timestamp::from_microsecond(unix_us)
        .map_or_else(|_| "?".to_owned(), |time| time.strftime("%Y-%m-%d %H:%MZ").to_string())
}

fn seconds(value: f64) -> String {
    if value < 7200.0 { format!("{value:.0} s") } else { duration(value as i64) }
}

/// `coverage 100 %, lost 0`.
#[must_use]
pub fn coverage(coverage: &Coverage) -> Vec<String> {
    let mut lines = Vec::new();
    let percent =
        if coverage.asked <= 0 { 100.0 } else { (coverage.covered as f64 / coverage.asked as f64 * 100.0).min(100.0) };
    // 100 only where nothing is missing.
    let gap: i64 = coverage.gaps.iter().map(|(from, to)| to - from).sum();
    let percent = if gap > 0 { format!("{:.1}", percent.min(99.9)) } else { format!("{:.0}", percent.ceil()) };
    let losses = &coverage.losses;
    let lost = losses.packets + losses.store + losses.records;
    lines.push(format!("coverage {percent} %, lost {}", thousands(lost)));
    for (from, to) in coverage.gaps.iter().rev().take(3) {
        lines.push(format!("guard did not run {} ({})", span(*from, *to), duration((to - from) / SECOND)));
    }
    if coverage.gaps.len() > 3 {
        lines.push(format!("and {} earlier gaps", coverage.gaps.len() - 3));
    }
    if losses.any() {
        lines.push(format!(
            "lost: {} packets whose flow was evicted, {} records, {} changes of the store",
            thousands(losses.packets),
            thousands(losses.records),
            thousands(losses.store)
        ));
    }
    lines
}

/// `inbound to closed tcp ports: 41,203 probes, 9,120 addresses, 12 ports`.
#[must_use]
pub fn background(line: &BackgroundLine) -> String {
    let protocol = protocol_name(line.protocol);
    let least = if line.at_least { "at least " } else { "" };
    let addresses = format!("{least}{}", count(line.addresses, "address", "addresses"));
    let passed = match line.passed {
        0 => String::new(),
        passed if passed == line.flows => ", none of them stopped".to_owned(),
        passed => format!(", {} of them not stopped (audit)", thousands(passed)),
    };
    // While observing nobody denies anything.
    let what = if line.passed == line.flows { "unanswered" } else { "denied" };
    match line.port {
        Some(port) => {
            let tries = count(line.flows, "try", "tries");
            format!("inbound {what} at open {protocol}/{port}: {tries}, {addresses}{passed}")
        }
        None => {
            let (probes, ports) = (count(line.flows, "probe", "probes"), count(line.ports, "port", "ports"));
            format!("inbound to closed {protocol} ports: {probes}, {addresses}, {ports}{passed}")
        }
    }
}

/// `2026-11-24 05:20Z the tcx ingress program was detached on eth0; put back after 44 ms, about 14 packets unjudged; by …`.
#[must_use]
pub fn alert(alert: &Alert) -> String {
    let lasts = matches!(alert.severity, 1) && alert.over.is_none();
    let how = match (alert.over, alert.repaired) {
        (Some(over), repaired) => {
            let word = if repaired { "put back" } else { "over" };
            format!("; {word} after {}", moment(over - alert.at))
        }
        (None, true) => "; put back".to_owned(),
        (None, false) if lasts => "; STILL SO".to_owned(),
        (None, false) => String::new(),
    };
    let packets = alert.packets.map(|packets| format!(", about {} unjudged", count(packets, "packet", "packets")));
    let by = alert.by.as_ref().map(|by| format!("; by {by}")).unwrap_or_default();
    format!("{} {}{how}{}{by}", minute(alert.at), alert.what, packets.unwrap_or_default())
}

fn moment(us: i64) -> String {
    if us < SECOND { format!("{} ms", us.max(0) / 1000) } else { duration(us / SECOND) }
}

/// `1 flow`, `41,203 flows`.
#[must_use]
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(number), if number == 1 { one } else { many })
}

/// `3 d 4 h`, of microseconds.
#[must_use]
pub fn long(us: i64) -> String {
    if us < DAY_US { duration(us / SECOND) } else { format!("{} d", us / DAY_US) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::who::{Container, FoundBy};

    #[test]
    fn a_program_of_which_only_the_container_is_known_has_no_name() {
        let container = Some(Container { id: "0123456789abcdef".repeat(4), ..Container::default() });
        let gone = Who { found_by: FoundBy::Forwarded, container, ..Who::default() };
        assert_eq!(own_name(&gone), "unknown program");
        let exe = Some("/usr/bin/curl".to_owned());
        assert_eq!(own_name(&Who { exe, ..gone.clone() }), "/usr/bin/curl");
        assert_eq!(own_name(&Who { comm: "curl".to_owned(), ..gone }), "curl");
    }
}
