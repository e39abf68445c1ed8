//! `guard status` as people read it: the answer first, then what to do, then detail.

use std::fmt::Write;

use super::Report;
use crate::{
    daemon::{control::DaemonStatus, difference::Gap},
    lockdown::mark::Mark,
    policy::model::ContainerHost,
    record::clock::for_people,
    review::is_observing,
    text::harmless,
};

impl Report {
    /// For people. `verbose` lists every rule and reason.
    #[must_use]
    pub fn render(&self, verbose: bool) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, verbose);
        text
    }

    fn write(&self, text: &mut String, verbose: bool) -> std::fmt::Result {
        self.write_headline(text)?;
        for problem in &self.problems {
            writeln!(text, "  PROBLEM     {problem}")?;
        }
        if let Some(deadline) = &self.deadline {
            let then = match deadline.then_generation {
                0 => "no policy".to_owned(),
                generation => format!("generation {generation}"),
            };
            writeln!(
                text,
                "  UNCONFIRMED back to {then} at {} ({} s left) unless: guard confirm{}",
                for_people(i128::from(deadline.at) * 1_000_000_000),
                deadline.seconds_left,
                self.suffix,
            )?;
        }
        self.write_policy(text)?;
        self.write_exceptions(text)?;
        if self.lockdown.as_ref().is_some_and(|mark| mark.confirmed.is_some()) {
            writeln!(text, "  next        guard restore{}", self.suffix)?;
        }
        self.write_hooks(text, verbose)?;
        self.write_traffic(text, verbose)?;
        if let Some(groups) = self.to_review {
            let groups_word = if groups == 1 { "group" } else { "groups" };
            let learned = self.learned.unwrap_or(0);
            let next = if groups + learned == 0 { String::new() } else { format!(" (guard report{})", self.suffix) };
            let learned = match learned {
                0 => String::new(),
                many => format!(", {} learned and never reviewed", thousands(many as u64)),
            };
            writeln!(text, "  to review   {} {groups_word}{learned}{next}", thousands(groups as u64))?;
        }
        if let Some(alerts) = self.alerts.filter(|alerts| *alerts > 0) {
            let word = if alerts == 1 { "alert" } else { "alerts" };
            writeln!(
                text,
                "  alerts      {} {word} in the last day (guard report{})",
                thousands(alerts as u64),
                self.suffix
            )?;
        }
        match &self.daemon {
            Some(daemon) => {
                if daemon.answers {
                    writeln!(
                        text,
                        "  recording   daemon {}, {} records written      who unknown {} of {} flows",
                        daemon.pid,
                        daemon.records.written,
                        thousands(daemon.who.unknown),
                        thousands(daemon.who.unknown + daemon.who.named),
                    )?;
                }
                self.write_detail_lost(text, daemon)?;
                self.write_labels_lost(text, daemon)?;
                for notice in &daemon.notices {
                    writeln!(text, "  notice      {notice}")?;
                }
                if let Some(error) = &daemon.records.error {
                    writeln!(text, "  notice      records cannot be written now: {error}")?;
                }
            }
            None if self.mode == "none" => {}
            None => writeln!(
                text,
                "  notice      no daemon: nothing is recorded; the kernel goes on by itself (guard run takes over)"
            )?,
        }
        for missing in &self.missing {
            writeln!(text, "  notice      {missing}")?;
        }
        if verbose {
            for feature in &self.features {
                // What the notices above say is not said again.
                let said = self.missing.iter().any(|missing| missing.starts_with(&format!("no {}:", feature.name)));
                let lost = if feature.found || said { String::new() } else { format!("  {}", feature.lost_without) };
                let found = if feature.found { "yes" } else { "no" };
                writeln!(text, "  feature     {:<21} {found}{lost}", feature.name)?;
            }
        }
        if !self.other_firewalls.is_empty() {
            let tables: Vec<String> =
                self.other_firewalls.iter().map(|other| format!("{} {}", other.kind, harmless(&other.table))).collect();
            writeln!(text, "  notice      other firewalls here, which have to allow too: {}", tables.join(", "))?;
        }
        Ok(())
    }

    /// What flows had counted that were pushed out of the tables before it was recorded: a line only where there is any.
    fn write_detail_lost(&self, text: &mut String, daemon: &DaemonStatus) -> std::fmt::Result {
        let packets: u64 = daemon.detail_lost_packets.iter().sum();
        if packets == 0 {
            return Ok(());
        }
        let [inbound, outbound] = daemon.detail_lost_bytes.map(thousands);
        writeln!(
            text,
            "  notice      in the totals and in no flow's record: {} packets ({inbound} B in, {outbound} B out); their flows \
             were pushed out of tables with room for {} each (guard run --flows)",
            thousands(packets),
            thousands(self.flows.room.into()),
        )
    }

    /// What names of programs and remotes, and first bytes, are missing: a line only where there are.
    fn write_labels_lost(&self, text: &mut String, daemon: &DaemonStatus) -> std::fmt::Result {
        let lost = [
            (self.lost.processes, "programs that ran"),
            (self.lost.answers + daemon.dns.too_many, "answers of name servers"),
            (daemon.flagged.lost, "first bytes of flagged flows"),
        ];
        let lost: Vec<String> =
            lost.iter().filter(|(count, _)| *count > 0).map(|(n, what)| format!("{} {what}", thousands(*n))).collect();
        if lost.is_empty() {
            return Ok(());
        }
        writeln!(text, "  notice      came too fast, or could not be written, and are missing: {}", lost.join(", "))
    }

    /// The built-in policy of `guard observe` is in force.
    fn observes(&self) -> bool {
        self.policy_base_sha256.as_ref().or(self.policy_sha256.as_ref()).is_some_and(|sha256| is_observing(sha256))
    }

    /// What holds; after trouble, that too.
    fn write_headline(&self, text: &mut String) -> std::fmt::Result {
        match self.gaps.last() {
            Some(gap) if self.enforcing && self.lockdown.is_none() => {
                writeln!(text, "ENFORCING again; {}", spoken(gap))?;
            }
            Some(gap) if self.enforcing => writeln!(text, "{}\n  again       {}", self.state(), spoken(gap))?,
            _ => writeln!(text, "{}", self.state())?,
        }
        const SHOWN: usize = 3;
        let told = usize::from(self.enforcing);
        for gap in self.gaps.iter().rev().skip(told).take(SHOWN) {
            writeln!(text, "  before      {}", spoken(gap))?;
        }
        if self.gaps.len() > SHOWN + told {
            writeln!(text, "  before      {} more (guard timeline{})", self.gaps.len() - SHOWN - told, self.suffix)?;
        }
        Ok(())
    }

    /// What holds, in a line.
    #[must_use]
    pub fn state(&self) -> String {
        if let Some(mark) = &self.lockdown {
            return self.lockdown_headline(mark);
        }
        let what = match (self.mode, self.enforcing_inbound, self.enforcing_outbound) {
            ("none", ..) => return format!("NOT GUARDED   nothing of guard is attached (instance {})", self.instance),
            ("audit", ..) if self.observes() => "OBSERVING: no policy; everything passes and is recorded",
            ("tracking", ..) => "TRACKING, no policy in force: everything passes",
            ("audit", ..) => "AUDIT in and out: recorded, nothing is dropped",
            (_, true, true) => "ENFORCING in and out",
            ("mixed", true, false) => "ENFORCING in, AUDIT out",
            ("mixed", false, true) => "AUDIT in, ENFORCING out",
            ("mixed", ..) => "NOT ENFORCING as the policy says",
            (_, true, false) => "NOT ENFORCING out; in holds",
            (_, false, true) => "NOT ENFORCING in; out holds",
            (_, false, false) => "NOT ENFORCING",
        };
        what.to_owned()
    }

    fn lockdown_headline(&self, mark: &Mark) -> String {
        let since = |at: i64| for_people(i128::from(at) * 1_000_000_000);
        let who = match &mark.confirmed {
            Some(confirmed) => format!("confirmed {} by {}", since(confirmed.at), harmless(&confirmed.by)),
            None => format!("NOT CONFIRMED, since {} by {}", since(mark.at), harmless(&mark.by)),
        };
        let what = if self.enforcing { "LOCKED DOWN" } else { "LOCKED DOWN, BUT NOT ENFORCING" };
        let dns = if mark.dns { "DNS OPEN" } else { "DNS closed" };
        let ways = match (mark.console, mark.ways.len()) {
            (true, _) => "console only".to_owned(),
            _ if mark.open_to_any() => "the way in open to any source".to_owned(),
            (false, 0) if !mark.sessions.is_empty() => "no way in but what is open".to_owned(),
            (false, 1) => "1 way in".to_owned(),
            (false, count) => format!("{count} ways in"),
        };
        format!("{what}, {who}    {dns}    {ways}")
    }

    fn write_policy(&self, text: &mut String) -> std::fmt::Result {
        let (Some(policy), Some(sha256)) = (&self.policy, &self.policy_sha256) else { return Ok(()) };
        let short = match (sha256.get(..4), sha256.get(sha256.len().saturating_sub(4)..)) {
            (Some(first), Some(last)) if sha256.len() > 8 => format!("{first}…{last}"),
            _ => sha256.clone(),
        };
        write!(text, "  policy      {} (sha256 {short}, generation {}", harmless(policy), self.generation)?;
        if let Some(since) = self.since {
            let seconds = self.read_at.saturating_sub(since);
            write!(text, ", since {}, {}", for_people(i128::from(since) * 1_000_000_000), duration(seconds))?;
        }
        writeln!(text, ")")
    }

    fn write_exceptions(&self, text: &mut String) -> std::fmt::Result {
        for exception in &self.exceptions {
            let ends = exception.expires.map_or_else(
                || "holds until it is undone".to_owned(),
                |expires| format!("ends in {}", duration(expires - self.read_at)),
            );
            let note = exception.note.as_ref().map(|note| format!(", \"{note}\"")).unwrap_or_default();
            let what = format!("{} ({}, {}{note})", exception.spoken(), exception.label(), exception.by);
            writeln!(text, "  exception   {ends}: {}", harmless(&what))?;
        }
        Ok(())
    }

    fn write_hooks(&self, text: &mut String, verbose: bool) -> std::fmt::Result {
        if self.hooks.is_empty() {
            return Ok(());
        }
        let sound = self.hooks.iter().filter(|hook| hook.attached && hook.ours && hook.first).count();
        writeln!(text, "  read back   {} of {} hooks ours and first in line, just now", sound, self.hooks.len())?;
        for hook in &self.hooks {
            if verbose || hook.problem.is_some() {
                let state = hook.problem.as_deref().unwrap_or("ours, first");
                writeln!(
                    text,
                    "    {:<9} {:<18} {:<16} {}",
                    hook.layer,
                    hook.hook,
                    harmless(&hook.target),
                    harmless(state)
                )?;
            }
        }
        for interface in &self.interfaces {
            let (state, why) = match (interface.guarded, interface.container_host) {
                (true, _) => ("guarded", interface.why.clone()),
                (false, None) => ("NOT judged", interface.why.clone()),
                (false, Some(ContainerHost::Ignore)) => {
                    ("NOT judged", "containers with this host and with each other (container_host: ignore)".to_owned())
                }
                (false, Some(ContainerHost::Guard)) => {
                    ("judged", "containers with this host (container_host: guard); NOT with each other".to_owned())
                }
            };
            if verbose || !interface.guarded {
                writeln!(text, "  interface   {:<12} {state}: {why}", harmless(&interface.name))?;
            }
        }
        let guarded: Vec<String> =
            self.interfaces.iter().filter(|line| line.guarded).map(|line| harmless(&line.name)).collect();
        if !verbose && !guarded.is_empty() {
            writeln!(text, "  guarded     {}", guarded.join(" "))?;
        }
        Ok(())
    }

    fn write_traffic(&self, text: &mut String, verbose: bool) -> std::fmt::Result {
        if self.mode == "none" {
            return Ok(());
        }
        let sum = |verdict: &str, dropped: bool| -> u64 {
            self.reasons.iter().filter(|r| r.verdict == verdict && r.dropped == dropped).map(|r| r.packets).sum()
        };
        let would = match sum("deny", false) {
            0 => String::new(),
            count => format!(", would deny {} (audit)", thousands(count)),
        };
        writeln!(
            text,
            "  packets     allowed {}, denied {}{would}      flows held {}      lost events {}, records {}",
            thousands(sum("allow", false)),
            thousands(sum("deny", true)),
            thousands(self.flows.held),
            self.lost.events,
            self.lost.records,
        )?;
        let rejected = &self.rejected;
        if rejected.resets + rejected.prohibited + rejected.withheld > 0 {
            let held = match rejected.withheld {
                0 => String::new(),
                count => format!("; {} not answered: too many, or too large", thousands(count)),
            };
            let (resets, errors) = (thousands(rejected.resets), thousands(rejected.prohibited));
            writeln!(text, "  on_deny     containers told at once: {resets} by TCP reset, {errors} by ICMP{held}")?;
        }
        if verbose {
            for line in &self.reasons {
                let dropped = if line.dropped { "dropped" } else { "passed" };
                writeln!(
                    text,
                    "    {:<8} {:<20} {:<7} {:>14} packets {:>18} bytes",
                    line.direction,
                    line.reason,
                    dropped,
                    thousands(line.packets),
                    thousands(line.bytes)
                )?;
            }
        }
        for rule in &self.rules {
            if verbose {
                writeln!(
                    text,
                    "    {:<8} {:<5} {:>8} flows  {}  {}",
                    rule.direction,
                    rule.action,
                    thousands(rule.flows),
                    harmless(&rule.rule),
                    harmless(&rule.place)
                )?;
            }
            if let Some(expires) = rule.expires.filter(|_| !rule.exception) {
                let left = expires - self.read_at;
                if (0..86_400).contains(&left) {
                    writeln!(text, "  notice      \"{}\" ends in {}", harmless(&rule.rule), duration(left))?;
                }
            }
        }
        Ok(())
    }
}

/// `GAP on eth1 from … to …: …, about 14 packets unjudged, by: unknown`.
fn spoken(gap: &Gap) -> String {
    let at = |us: i64| for_people(i128::from(us) * 1000);
    let packets =
        gap.packets.map(|packets| format!(", about {} packets unjudged", thousands(packets))).unwrap_or_default();
    let by = gap.by.as_deref().unwrap_or("unknown");
    harmless(&format!("GAP on {} from {} to {}: {}{packets}, by: {by}", gap.on, at(gap.from), at(gap.to), gap.why))
}

/// `1,234,567`.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `41 s`, `5 min`, `2 h 5 min`, `3 d 4 h`.
#[must_use]
pub fn duration(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min", s / 60),
        s @ 3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Deadline, Hook, ReasonLine},
        *,
    };
    use crate::kernel::Feature;

    fn enforcing() -> Report {
        Report {
            instance: "default".to_owned(),
            mode: "enforce",
            mode_inbound: "enforce",
            mode_outbound: "enforce",
            enforcing: true,
            enforcing_inbound: true,
            enforcing_outbound: true,
            generation: 7,
            policy: Some("gitlab".to_owned()),
            policy_sha256: Some(format!("5f0c{}91ab", "0".repeat(56))),
            since: Some(1_764_000_848),
            read_at: 1_764_000_848 + 7_500,
            hooks: vec![Hook {
                layer: "wire".to_owned(),
                hook: "tcx ingress".to_owned(),
                target: "eth0".to_owned(),
                attached: true,
                ours: true,
                first: true,
                problem: None,
            }],
            reasons: vec![ReasonLine {
                reason: "not_listed",
                verdict: "deny",
                direction: "outbound",
                dropped: true,
                packets: 1234,
                bytes: 5,
            }],
            ..Report::default()
        }
    }

    #[test]
    fn the_answer_comes_first() {
        let text = enforcing().render(false);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("ENFORCING in and out"));
        assert!(
            text.contains("gitlab (sha256 5f0c…91ab, generation 7, since 2025-11-24 16:14:08Z, 2 h 5 min)"),
            "{text}"
        );
        assert!(text.contains("1 of 1 hooks ours and first in line"), "{text}");
        assert!(text.contains("denied 1,234"), "{text}");
        assert!(text.contains("no daemon"), "{text}");
        assert!(enforcing().does_what_it_says());
    }

    #[test]
    fn what_eviction_took_has_a_line() {
        let daemon = |packets| DaemonStatus { detail_lost_packets: packets, ..DaemonStatus::default() };
        let text = Report { daemon: Some(daemon([0, 0])), ..enforcing() }.render(false);
        assert!(!text.contains("no flow's record"), "{text}");
        let text = Report { daemon: Some(daemon([1200, 34])), ..enforcing() }.render(false);
        assert!(text.contains("in the totals and in no flow's record: 1,234 packets"), "{text}");
    }

    #[test]
    fn features_are_a_table_for_who_asks_for_more() {
        let feature = |name, found| Feature { name, found, required: false, lost_without: "something is lost" };
        let mut report = enforcing();
        report.features = vec![feature("tcx", true), feature("coarse_clock", false), feature("native_xdp", false)];
        report.missing = vec!["no coarse_clock: something is lost".to_owned()];
        assert!(!report.render(false).contains("feature"));
        let text = report.render(true);
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("  feature ")).map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                "  feature     tcx                   yes",
                "  feature     coarse_clock          no",
                "  feature     native_xdp            no  something is lost",
            ]
        );
    }

    #[test]
    fn trouble_comes_before_all_else() {
        let mut report = enforcing();
        report.enforcing = false;
        report.enforcing_inbound = false;
        report.problems = vec!["wire tcx ingress on eth0: detached".to_owned()];
        let text = report.render(false);
        assert!(
            text.starts_with("NOT ENFORCING in; out holds\n  PROBLEM     wire tcx ingress on eth0: detached\n"),
            "{text}"
        );
        assert!(!report.does_what_it_says());
    }

    #[test]
    fn nothing_attached_is_not_good() {
        let report = Report { mode: "none", instance: "default".to_owned(), ..Report::default() };
        assert!(report.render(false).starts_with("NOT GUARDED"));
        assert!(!report.does_what_it_says());
    }

    #[test]
    fn a_deadline_is_told_with_what_to_do() {
        let mut report = enforcing();
        report.suffix = " --instance t1".to_owned();
        report.deadline = Some(Deadline { at: 1_764_000_848, seconds_left: 90, then_generation: 0 });
        assert!(
            report.render(false).contains(
                "UNCONFIRMED back to no policy at 2025-11-24 16:14:08Z (90 s left) unless: guard confirm --instance t1"
            ),
            "{}",
            report.render(false)
        );
    }

    #[test]
    fn names_cannot_speak_to_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\u{202e}"), "a\u{fffd}[2Jb\u{fffd}");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(duration(41), "41 s");
        assert_eq!(duration(90_000), "1 d 1 h");
    }
}
