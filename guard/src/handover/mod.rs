//! `guard handover`: one page for whoever takes over the shift. Put together of what `status`, `report` and the timeline
//! say, and of what no program on this host can know.

mod page;

use serde::Serialize;

use crate::{
    daemon::{difference::Gap, report::Report as Status},
    journal::{Entry, Event},
    policy::exceptions::Exception,
    review::{
        acks::{Ack, Acks},
        group::Id,
        report::Report as Review,
        words,
    },
};

/// Field names are stable. Times are Unix time in seconds unless they say otherwise.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Handover {
    pub host: String,
    pub at: i64,
    /// Who hands over, as `--as` or the host says.
    pub by: String,
    pub note: Option<String>,
    /// What `guard status` says in its first line.
    pub state: String,
    pub enforcing: bool,
    /// Why not, or what else does not hold.
    pub problems: Vec<String>,
    pub policy: Option<String>,
    pub policy_sha256: Option<String>,
    pub lockdown: Option<Lockdown>,
    /// Hooks that are ours and first in line, and all that are to be.
    pub hooks_sound: usize,
    pub hooks: usize,
    /// What ends, or is undone, and when: the next first.
    pub deadlines: Vec<Deadline>,
    pub exceptions: Vec<Exception>,
    /// What the watch told since the lockdown, or in the last day; the newest first.
    pub alerts: Vec<Alert>,
    /// When packets may have passed unjudged, in the same time.
    pub gaps: Vec<Gap>,
    /// Not acknowledged; `None`: nothing is recorded here.
    pub open: Option<Vec<Group>>,
    pub acknowledged: Vec<Acknowledged>,
    /// What people did and noted in this time, the newest first.
    pub done: Vec<Done>,
    /// Each in a sentence.
    pub cannot_know: Vec<String>,
    /// What a pasted command needs to reach this guard.
    #[serde(skip)]
    pub suffix: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Lockdown {
    pub at: i64,
    pub by: String,
    pub confirmed_at: Option<i64>,
    pub confirmed_by: Option<String>,
    /// From where one may come in, and at which TCP ports.
    pub ways: Vec<String>,
    pub ports: Vec<u16>,
    pub dns: bool,
    pub console: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deadline {
    pub at: i64,
    pub what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alert {
    pub at: i64,
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// It was put back.
    pub repaired: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub id: String,
    /// What is uncommon about it.
    pub kind: crate::review::findings::Kind,
    pub flow: String,
    pub program: String,
    pub summary: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Acknowledged {
    pub id: String,
    pub what: String,
    pub at: i64,
    pub by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// From then on it is reported again; left out: until the group changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Done {
    pub at: i64,
    pub event: &'static str,
    pub by: String,
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// All that a page is made of.
pub struct Sources<'a> {
    pub host: String,
    pub by: String,
    pub note: Option<String>,
    pub status: &'a Status,
    /// `None`: nothing is recorded here.
    pub review: Option<&'a Review>,
    pub acks: &'a Acks,
    /// The oldest first.
    pub timeline: &'a [Entry],
    /// What of these could not be read, each in a sentence.
    pub unread: Vec<String>,
    /// Unix time in seconds, from which on alerts and what was done are told.
    pub since: i64,
    pub suffix: String,
}

const MICRO: i64 = 1_000_000;

#[must_use]
pub fn handover(sources: &Sources<'_>) -> Handover {
    let status = sources.status;
    let entries = || sources.timeline.iter().rev().filter(|entry| entry.at >= sources.since * MICRO);
    let sound = status.hooks.iter().filter(|hook| hook.attached && hook.ours && hook.first).count();
    let of_people = |entry: &&Entry| entry.by.is_some();
    Handover {
        host: sources.host.clone(),
        at: status.read_at,
        by: sources.by.clone(),
        note: sources.note.clone(),
        state: status.state(),
        enforcing: status.enforcing,
        problems: status.problems.iter().chain(&sources.unread).cloned().collect(),
        policy: status.policy.clone(),
        policy_sha256: status.policy_sha256.clone(),
        lockdown: status.lockdown.as_ref().map(|mark| Lockdown {
            at: mark.at,
            by: mark.by.clone(),
            confirmed_at: mark.confirmed.as_ref().map(|confirmed| confirmed.at),
            confirmed_by: mark.confirmed.as_ref().map(|confirmed| confirmed.by.clone()),
            ways: mark.ways.iter().map(ToString::to_string).collect(),
            ports: mark.ports.clone(),
            dns: mark.dns,
            console: mark.console,
        }),
        hooks_sound: sound,
        hooks: status.hooks.len(),
        deadlines: deadlines(sources),
        exceptions: status.exceptions.clone(),
        alerts: entries().filter_map(alert).collect(),
        gaps: status.gaps.iter().filter(|gap| gap.to >= sources.since * MICRO).cloned().collect(),
        open: sources.review.map(open),
        acknowledged: acknowledged(sources),
        done: entries()
            .filter(of_people)
            .map(|entry| Done {
                at: entry.at.div_euclid(MICRO),
                event: entry.event.as_str(),
                by: entry.by.as_ref().map(|person| person.name.clone()).unwrap_or_default(),
                what: entry.text.clone(),
                note: entry.note.clone(),
            })
            .collect(),
        cannot_know: cannot_know(sources),
        suffix: sources.suffix.clone(),
    }
}

fn deadlines(sources: &Sources<'_>) -> Vec<Deadline> {
    let status = sources.status;
    let suffix = &sources.suffix;
    let mut deadlines = Vec::new();
    if let Some(deadline) = &status.deadline {
        let back = match deadline.then_generation {
            0 => "no policy at all: this host is open then".to_owned(),
            generation => format!("generation {generation}, what held before"),
        };
        deadlines.push(Deadline {
            at: deadline.at,
            what: format!("UNCONFIRMED: back to {back}"),
            next: Some(format!("log in anew, then: guard confirm{suffix}")),
        });
    }
    deadlines.extend(status.exceptions.iter().filter_map(|exception| {
        Some(Deadline {
            at: exception.expires?,
            what: format!("{} ends: {}", exception.label(), exception.spoken()),
            next: None,
        })
    }));
    deadlines.extend(status.rules.iter().filter(|rule| !rule.exception).filter_map(|rule| {
        Some(Deadline { at: rule.expires?, what: format!("rule \"{}\" ends ({})", rule.rule, rule.place), next: None })
    }));
    let now = status.read_at * MICRO;
    deadlines.extend(sources.acks.all_holding(now).filter_map(|ack| {
        Some(Deadline {
            at: ack.until?.div_euclid(MICRO),
            what: format!("{} is reported again: {}", short(&ack.id), ack.what),
            next: None,
        })
    }));
    deadlines.sort_by_key(|deadline| deadline.at);
    deadlines
}

fn alert(entry: &Entry) -> Option<Alert> {
    let what = match entry.event {
        // What was repaired at once is told with its end.
        Event::Alert if entry.details["repaired"] == true => return None,
        Event::Alert | Event::Repaired => entry.text.clone(),
        _ => return None,
    };
    let by = entry.details["gap"]["by"].as_str().or(entry.details["by"].as_str());
    Some(Alert {
        at: entry.at.div_euclid(MICRO),
        // The text of an alert ends with who, already.
        by: by.map(str::to_owned).filter(|by| !what.contains(by.as_str())),
        what,
        repaired: entry.event == Event::Repaired,
    })
}

fn open(review: &Review) -> Vec<Group> {
    let group = |finding: &crate::review::findings::Finding| Group {
        id: review.short(finding.id()),
        kind: finding.kind,
        flow: words::flow(finding),
        program: words::program(&finding.facts),
        summary: words::brief(finding),
    };
    review.findings.iter().map(group).collect()
}

fn acknowledged(sources: &Sources<'_>) -> Vec<Acknowledged> {
    let mut acks: Vec<&Ack> = sources.acks.all_holding(sources.status.read_at * MICRO).collect();
    acks.sort_by_key(|ack| std::cmp::Reverse(ack.at));
    acks.into_iter()
        .map(|ack| Acknowledged {
            id: sources
                .review
                .zip(u64::from_str_radix(&ack.id, 16).ok().map(Id))
                .map_or_else(|| short(&ack.id).to_owned(), |(review, id)| review.short(id)),
            what: ack.what.clone(),
            at: ack.at.div_euclid(MICRO),
            by: ack.by.name.clone(),
            note: ack.note.clone(),
            until: ack.until.map(|until| until.div_euclid(MICRO)),
        })
        .collect()
}

fn short(id: &str) -> &str {
    id.get(..crate::review::group::SHORT).unwrap_or(id)
}

/// What nobody may take this page for.
fn cannot_know(sources: &Sources<'_>) -> Vec<String> {
    let status = sources.status;
    let mut all = vec![
        "whether keys, passwords and tokens that were on this host are in other hands: cutting the network takes none \
         back; change them from another machine"
            .to_owned(),
    ];
    let began = sources.review.and_then(|review| review.coverage.first().map(|_| review.span)).flatten();
    all.push(match began {
        Some(span) => format!(
            "what left before guard recorded anything ({}), and what was in the flows that were allowed since: guard counts \
             bytes, it does not read them",
            words::minute(span.since)
        ),
        None => "what left: nothing is recorded here".to_owned(),
    });
    for gap in &status.gaps {
        let packets =
            gap.packets.map_or_else(|| "packets".to_owned(), |packets| words::count(packets, "packet", "packets"));
        all.push(format!("what passed unjudged {} on {}: about {packets}", words::span(gap.from, gap.to), gap.on));
    }
    if let Some(review) = sources.review {
        for (_, coverage) in &review.coverage {
            // Where all is covered there is one line, that says so.
            all.extend(words::coverage(coverage).into_iter().skip(1));
        }
    }
    if status.daemon.is_none() && status.mode != "none" {
        all.push(
            "what happens now: the kernel enforces, and no daemon records or watches (guard run takes over)".to_owned(),
        );
    }
    all.push(
        "what whoever was root here changed below guard (kernel, firmware, disks), or says to the hypervisor: an image, \
         taken from outside, can tell"
            .to_owned(),
    );
    all.extend(
        status.missing.iter().map(|missing| format!("what this kernel does not let guard see or hold: {missing}")),
    );
    all
}
