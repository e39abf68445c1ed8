//! The page for people: the answer first, then what runs out, then what is open, and last what nobody here can know.

use super::{Alert, Handover};
use crate::{
    daemon::report::{duration, thousands},
    record::clock::for_people,
    review::words::count,
    text::escape_line,
};

/// Of each list; `--json` has all.
const SHOWN: usize = 8;

impl Handover {
    /// One page. Everything that others chose is made harmless.
    #[must_use]
    pub fn render(&self) -> String {
        let mut page = Page::default();
        page.line(&format!("HANDOVER {}   {} by {}", self.host, time(self.at), self.by));
        if let Some(note) = &self.note {
            page.say("note", note);
        }
        page.say("state", &self.state);
        for problem in &self.problems {
            page.say("PROBLEM", problem);
        }
        if let (Some(policy), Some(sha256)) = (&self.policy, &self.policy_sha256) {
            let (sound, all) = (self.hooks_sound, self.hooks);
            let short = sha256.get(..8).unwrap_or(sha256);
            page.say(
                "policy",
                &format!("{policy} (sha256 {short}…), read back: {sound} of {all} hooks ours and first in line"),
            );
        }
        if let Some(lockdown) = &self.lockdown {
            page.say("locked", &format!("since {} by {}", time(lockdown.at), lockdown.by));
            let ports: Vec<String> = lockdown.ports.iter().map(|port| format!("tcp/{port}")).collect();
            let ways = match (lockdown.console, lockdown.ways.is_empty()) {
                (true, _) => "the console only".to_owned(),
                (_, true) => "none".to_owned(),
                _ => format!("{} at {}", lockdown.ways.join(", "), ports.join(", ")),
            };
            page.say("ways in", &format!("{ways}; DNS {}", if lockdown.dns { "OPEN" } else { "closed" }));
        }
        self.write_deadlines(&mut page);
        page.list("exceptions", "none", &self.exceptions, |exception| {
            let note = exception.note.as_ref().map(|note| format!(", \"{note}\"")).unwrap_or_default();
            let ends = exception.expires.map_or_else(
                || "until it is undone".to_owned(),
                |expires| format!("ends {} (in {})", time(expires), duration(expires - self.at)),
            );
            format!("{} {}   {ends}   {}{note}", exception.label(), exception.spoken(), exception.by)
        });
        page.list("alerts", "none", &self.alerts, spoken);
        match &self.open {
            Some(open) => page.list("to review", "nothing", open, |group| {
                format!("{}  {}  {}   {}", group.id, group.flow, group.program, group.summary.join(", "))
            }),
            None => page.say("to review", "nothing is recorded here"),
        }
        page.list("decided", "nothing", &self.acknowledged, |ack| {
            let note = ack.note.as_ref().map(|note| format!(": \"{note}\"")).unwrap_or_default();
            let until = ack.until.map(|until| format!(" until {}", time(until))).unwrap_or_default();
            format!("{}  {}   {} {}{until}{note}", ack.id, ack.what, ack.by, time(ack.at))
        });
        page.list("done", "nothing", &self.done, |done| {
            let note = done.note.as_ref().map(|note| format!(" (\"{note}\")")).unwrap_or_default();
            format!("{} {} {}: {}{note}", time(done.at), done.by, done.event, done.what)
        });
        page.list("unknown", "", &self.cannot_know, Clone::clone);
        page.say("next", &self.next());
        page.text
    }

    fn write_deadlines(&self, page: &mut Page) {
        page.list("deadlines", "none", &self.deadlines, |deadline| {
            let next = deadline.next.as_ref().map(|next| format!("; {next}")).unwrap_or_default();
            format!("{} (in {})  {}{next}", time(deadline.at), duration(deadline.at - self.at), deadline.what)
        });
    }

    /// In the order in which a tired person should go.
    fn next(&self) -> String {
        let suffix = &self.suffix;
        let mut next = Vec::new();
        if self.deadlines.iter().any(|deadline| deadline.next.is_some()) {
            next.push(format!("guard confirm{suffix}"));
        }
        next.push(format!("guard status{suffix}"));
        if self.open.as_ref().is_some_and(|open| !open.is_empty()) {
            next.push(format!("guard report{suffix}"));
        }
        next.push(format!("guard timeline{suffix}"));
        if self.lockdown.as_ref().is_some_and(|lockdown| lockdown.confirmed_at.is_some()) {
            next.push(format!("guard restore{suffix} (ends the lockdown)"));
        }
        next.join(" · ")
    }

    /// For those who decide and do not type: no addresses, no ids.
    #[must_use]
    pub fn brief(&self) -> String {
        let mut lines = vec![format!("{}, {}, by {}.", self.host, time(self.at), self.by), String::new()];
        lines.push(match (&self.lockdown, self.enforcing) {
            (Some(lockdown), true) => {
                let firm = match &lockdown.confirmed_by {
                    Some(by) => format!("confirmed by {by}"),
                    None => "NOT CONFIRMED YET: it undoes itself unless it is".to_owned(),
                };
                format!(
                    "The host is locked down since {} ({}), {firm}. {}",
                    time(lockdown.at),
                    duration(self.at - lockdown.at),
                    match (lockdown.console, lockdown.ways.len()) {
                        (true, _) => "It can be reached from its console only.".to_owned(),
                        (_, ways) => format!(
                            "It can be reached by {} for responders.",
                            count(ways as u64, "agreed way", "agreed ways")
                        ),
                    }
                )
            }
            (Some(_), false) => {
                "The host is meant to be locked down, and that DOES NOT HOLD completely now.".to_owned()
            }
            (None, true) => "The host's allow-list is enforced in both directions.".to_owned(),
            (None, false) => "The host's allow-list is NOT enforced completely now.".to_owned(),
        });
        if let Some(problem) = self.problems.first() {
            lines.push(format!("Reason: {problem}."));
        }
        lines.push(match (self.exceptions.len(), self.exceptions.iter().filter_map(|one| one.expires).min()) {
            (0, _) => "No temporary exception is open.".to_owned(),
            (many, ends) => {
                let next = ends.map(|ends| format!("; the next ends {}", time(ends))).unwrap_or_default();
                format!("{}{next}.", count(many as u64, "temporary exception is open", "temporary exceptions are open"))
            }
        });
        lines.push(match &self.open {
            None => "Nothing is recorded.".to_owned(),
            Some(open) => format!(
                "{} not looked at yet, {} decided.",
                count(open.len() as u64, "finding is", "findings are"),
                thousands(self.acknowledged.len() as u64)
            ),
        });
        lines.push(match (self.alerts.len(), self.gaps.len()) {
            (0, 0) => "Nobody was seen to tamper with the protection.".to_owned(),
            (alerts, gaps) => format!(
                "The protection raised {}{}.",
                count(alerts as u64, "alert", "alerts"),
                match gaps {
                    0 => String::new(),
                    gaps => format!("; traffic may have passed unjudged {}", count(gaps as u64, "time", "times")),
                }
            ),
        });
        lines.push(String::new());
        lines.push(
            "Not known: whether keys or passwords were stolen, and which data left before. Neither is undone by closing the \
             network."
                .to_owned(),
        );
        let mut text: String = lines.iter().map(|line| format!("{}\n", escape_line(line))).collect();
        if let Some(note) = &self.note {
            text.push_str(&format!("Note: {}\n", escape_line(note)));
        }
        text
    }
}

fn spoken(alert: &Alert) -> String {
    let by = alert.by.as_ref().map(|by| format!("; by {by}")).unwrap_or_default();
    format!("{} {}{by}", time(alert.at), alert.what)
}

fn time(seconds: i64) -> String {
    for_people(i128::from(seconds) * 1_000_000_000)
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, text: &str) {
        self.text.push_str(&escape_line(text));
        self.text.push('\n');
    }

    fn say(&mut self, what: &str, text: &str) {
        self.text.push_str(&format!("{what:<11} {}\n", escape_line(text)));
    }

    fn list<T>(&mut self, what: &str, none: &str, all: &[T], spoken: impl Fn(&T) -> String) {
        if all.is_empty() {
            return self.say(what, none);
        }
        for (number, one) in all.iter().take(SHOWN).enumerate() {
            self.say(if number == 0 { what } else { "" }, &spoken(one));
        }
        if all.len() > SHOWN {
            self.say("", &format!("and {} more (--json)", thousands((all.len() - SHOWN) as u64)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::{Deadline, Lockdown};

    fn page() -> Handover {
        Handover {
            host: "db1".to_owned(),
            at: 1_764_000_848,
            by: "kim".to_owned(),
            state: "LOCKED DOWN".to_owned(),
            enforcing: true,
            policy: Some("lockdown".to_owned()),
            policy_sha256: Some("5f".repeat(32)),
            hooks_sound: 7,
            hooks: 7,
            lockdown: Some(Lockdown {
                at: 1_764_000_000,
                by: "kim".to_owned(),
                confirmed_at: None,
                confirmed_by: None,
                ways: vec!["198.51.100.7/32".to_owned()],
                ports: vec![22],
                dns: false,
                console: false,
            }),
            deadlines: vec![Deadline {
                at: 1_764_000_900,
                what: "UNCONFIRMED".to_owned(),
                next: Some("guard confirm".to_owned()),
            }],
            alerts: (0..10)
                .map(|number| Alert { at: number, what: format!("alert {number}\u{1b}[2J"), by: None, repaired: true })
                .collect(),
            open: Some(Vec::new()),
            cannot_know: vec!["keys".to_owned()],
            ..Handover::default()
        }
    }

    #[test]
    fn the_page_says_state_deadlines_and_what_is_not_known_and_steers_no_terminal() {
        let text = page().render();
        assert!(text.starts_with("HANDOVER db1   2025-11-24 16:14:08Z by kim\nstate       LOCKED DOWN\n"), "{text}");
        assert!(text.contains("ways in     198.51.100.7/32 at tcp/22; DNS closed"), "{text}");
        assert!(text.contains("2025-11-24 16:15:00Z (in 52 s)  UNCONFIRMED; guard confirm"), "{text}");
        assert!(text.contains("alert 0\\u{1b}[2J") && text.contains("and 2 more"), "{text}");
        assert!(text.contains("unknown     keys") && text.contains("exceptions  none"), "{text}");
    }

    #[test]
    fn the_brief_page_names_no_address_and_says_what_is_not_confirmed() {
        let text = page().brief();
        assert!(text.contains("locked down since 2025-11-24 16:00:00Z (14 min), NOT CONFIRMED"), "{text}");
        assert!(!text.contains("198.51.100") && text.contains("1 agreed way") && text.contains("10 alerts"), "{text}");
        assert!(text.contains("keys or passwords"), "{text}");
        let mut failing = page();
        failing.enforcing = false;
        assert!(failing.brief().contains("DOES NOT HOLD"), "{}", failing.brief());
    }
}
