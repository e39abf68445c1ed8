//! Puts together what `status` says: the kernel's answers, the policy that is kept, what the daemon knows.

use guard_common::{
    Direction, Verdict,
    abi::{Flow, Lost, Slot, SlotFlags},
};

use super::{
    change::{hex, in_force},
    control::DaemonStatus,
    difference::Gap,
    engine::ReadBack,
    report::{self, Deadline, FlowCounts, InterfaceLine, ReasonLine, Report, RuleLine},
    state_dir::Manifest,
};
use crate::{
    host::firewalls::OtherFirewall,
    policy::model::{ContainerHost, Policy, Rule},
    record::{clock::Clock, flow::Key},
    text::harmless,
};

/// All that a report is made of.
pub struct Sources<'a> {
    pub instance: &'a str,
    /// What a pasted command needs to reach it.
    pub suffix: String,
    pub read: &'a ReadBack,
    pub interfaces: Vec<InterfaceLine>,
    pub flows: &'a [(Key, Flow)],
    /// What the state directory has of the policy in force.
    pub manifest: Option<&'a Manifest>,
    /// The kept copy, if its hash is the manifest's.
    pub policy: Option<&'a Policy>,
    pub daemon: Option<DaemonStatus>,
    pub other_firewalls: Vec<OtherFirewall>,
    /// Of the last day.
    pub gaps: Vec<Gap>,
    pub clock: Clock,
}

/// What a host says where guard is not attached.
#[must_use]
pub fn not_attached(instance: &str, other_firewalls: Vec<OtherFirewall>, unix_ns: i128) -> Report {
    Report {
        instance: instance.to_owned(),
        mode: "none",
        mode_inbound: "none",
        mode_outbound: "none",
        other_firewalls,
        read_at: seconds(unix_ns),
        ..Report::default()
    }
}

#[must_use]
pub fn report(sources: Sources<'_>) -> Report {
    let read = sources.read;
    let force = in_force(read);
    let flags = force.map_or(SlotFlags(0), |(slot, _)| read.state.slots[usize::from(slot.0)].flags);
    let sha256 = force.and_then(|(slot, _)| read.policies.get(usize::from(slot.0)).copied().flatten()).map(|s| hex(&s));
    let generation = force.map_or(0, |(_, generation)| generation);

    let mut problems = hook_problems(read);
    // What is kept names the rules; it must be the policy that the kernel has.
    let kept = sources.manifest.filter(|manifest| force.is_some() && Some(&manifest.sha256) == sha256.as_ref());
    if force.is_some() && sha256.is_none() {
        problems.push("the tables of the policy in force cannot be read back".to_owned());
    }
    if force.is_some() && kept.is_none() {
        problems.push(
            "the state directory does not hold the policy that the kernel enforces; rules have no names here"
                .to_owned(),
        );
    }

    let watched: &[String] = sources.daemon.as_ref().map_or(&[], |daemon| &daemon.problems);
    for problem in watched.iter().filter(|_| force.is_some()) {
        // The hooks say the same, read back just now.
        if !problems.iter().any(|known| known.contains(problem.as_str())) {
            problems.push(problem.clone());
        }
    }
    let watch_sound = watched.is_empty();
    let hooks_sound = |direction: Option<Direction>| {
        !read.hooks.is_empty()
            && read
                .hooks
                .iter()
                .filter(|hook| direction.is_none_or(|direction| concerns(hook, direction)))
                .all(|hook| hook.attached && hook.ours && hook.first && hook.problem.is_none())
    };
    let wire = |direction: Direction| {
        let word = if direction == Direction::Inbound { "ingress" } else { "egress" };
        read.hooks.iter().any(|hook| hook.layer == "wire" && hook.hook.contains(word))
    };
    let enforcing =
        |direction| force.is_some() && flags.enforces(direction) && wire(direction) && hooks_sound(Some(direction));
    let (inbound, outbound) = (enforcing(Direction::Inbound), enforcing(Direction::Outbound));
    if force.is_some() && flags.has(SlotFlags::CONTAINER_HOST) {
        let open = sources.interfaces.iter().filter(|line| line.container_host == Some(ContainerHost::Ignore));
        problems.extend(open.map(|line| {
            format!("{}: what passes there between containers and this host is not judged yet", harmless(&line.name))
        }));
    }
    if force.is_some() && !sources.interfaces.iter().any(|interface| interface.guarded) {
        problems.push("no interface is guarded: nothing that crosses this host's links is judged".to_owned());
    }

    let allowed = sources.flows.iter().filter(|(_, flow)| flow.outcome.verdict() == Verdict::Allow).count() as u64;
    let held = sources.flows.len() as u64;
    Report {
        instance: sources.instance.to_owned(),
        suffix: sources.suffix,
        mode: mode(force.is_some(), flags),
        mode_inbound: mode_of(force.is_some(), flags, Direction::Inbound),
        mode_outbound: mode_of(force.is_some(), flags, Direction::Outbound),
        enforcing: inbound && outbound && hooks_sound(None) && watch_sound,
        enforcing_inbound: inbound,
        enforcing_outbound: outbound,
        generation,
        policy: kept.map(|manifest| manifest.name.clone()),
        policy_sha256: sha256,
        policy_source: kept.map(|manifest| manifest.source.display().to_string()),
        since: kept.map(|manifest| seconds(manifest.published_ns())),
        container_host: force.map(|_| match flags.has(SlotFlags::CONTAINER_HOST) {
            true => ContainerHost::Guard,
            false => ContainerHost::Ignore,
        }),
        deadline: deadline(read, sources.clock),
        lockdown: kept.and_then(|manifest| manifest.lockdown.clone()),
        hooks: read.hooks.clone(),
        interfaces: sources.interfaces,
        reasons: reasons(read),
        exceptions: kept
            .map(|manifest| super::kept::holding(manifest, seconds(sources.clock.unix_ns(read.boot_ns))))
            .unwrap_or_default(),
        policy_base_sha256: kept.and_then(|manifest| manifest.base_sha256.clone()),
        rules: kept.and(sources.policy).map(|policy| rules(&policy.rules, &read.rule_flows)).unwrap_or_default(),
        flows: FlowCounts { held, allowed, denied: held - allowed, room: read.flows_room },
        rejected: report::Rejected {
            resets: read.rejects.resets,
            prohibited: read.rejects.prohibited,
            withheld: read.rejects.withheld,
        },
        lost: report::Lost {
            events: read.lost[Lost::Events as usize],
            suppressed: read.lost[Lost::Suppressed as usize],
            owners: read.lost[Lost::Owners as usize],
            processes: read.lost[Lost::Processes as usize],
            answers: read.lost[Lost::Answers as usize],
            records: sources.daemon.as_ref().map_or(0, |daemon| daemon.records.lost),
        },
        daemon: sources.daemon,
        gaps: sources.gaps,
        to_review: None,
        learned: None,
        alerts: None,
        problems,
        missing: read.missing.clone(),
        features: read.features.clone(),
        other_firewalls: sources.other_firewalls,
        read_at: seconds(sources.clock.unix_ns(read.boot_ns)),
    }
}

fn hook_problems(read: &ReadBack) -> Vec<String> {
    read.hooks
        .iter()
        .filter_map(|hook| {
            let what = match (&hook.problem, hook.attached, hook.ours, hook.first) {
                (Some(problem), ..) => problem.as_str(),
                (None, false, ..) => "not attached",
                (None, _, false, _) => "attached, but not by this guard",
                (None, _, _, false) => "another program stands before it",
                _ => return None,
            };
            Some(format!("{} {} on {}: {what}", hook.layer, hook.hook, hook.target))
        })
        .collect()
}

/// Whether a hook matters for packets of a direction; those that name none matter for both.
fn concerns(hook: &report::Hook, direction: Direction) -> bool {
    let inbound_only = hook.hook.contains("ingress") || hook.layer == "shield";
    let outbound_only = hook.hook.contains("egress") || hook.layer == "socket" || hook.layer == "seal";
    match direction {
        Direction::Inbound => !outbound_only,
        Direction::Outbound => !inbound_only,
    }
}

fn mode(in_force: bool, flags: SlotFlags) -> &'static str {
    if !in_force {
        return "tracking";
    }
    match (flags.enforces(Direction::Inbound), flags.enforces(Direction::Outbound)) {
        (true, true) => "enforce",
        (false, false) => "audit",
        _ => "mixed",
    }
}

fn mode_of(in_force: bool, flags: SlotFlags, direction: Direction) -> &'static str {
    match (in_force, flags.enforces(direction)) {
        (false, _) => "tracking",
        (true, true) => "enforce",
        (true, false) => "audit",
    }
}

fn deadline(read: &ReadBack, clock: Clock) -> Option<Deadline> {
    let word = read.state.word;
    let at_ms = word.deadline_ms()?;
    // Once it has passed, what is said is what holds: the change is undone.
    let left = at_ms.checked_sub(read.boot_ns / 1_000_000).filter(|left| *left > 0)?;
    let then = word.previous();
    let then_generation = if then == Slot::NONE {
        0
    } else {
        read.state.slots.get(usize::from(then.0)).map_or(0, |info| info.generation)
    };
    Some(Deadline {
        at: seconds(clock.unix_ns(at_ms.saturating_mul(1_000_000))),
        seconds_left: left.div_ceil(1000),
        then_generation,
    })
}

fn reasons(read: &ReadBack) -> Vec<ReasonLine> {
    let mut lines: Vec<ReasonLine> = read
        .counters
        .iter()
        .filter(|(.., counter)| counter.packets != 0)
        .map(|(reason, direction, dropped, counter)| ReasonLine {
            reason: reason.as_str(),
            verdict: reason.verdict().as_str(),
            direction: direction.as_str(),
            dropped: *dropped,
            packets: counter.packets,
            bytes: counter.bytes,
        })
        .collect();
    lines.sort_by_key(|line| (line.direction, std::cmp::Reverse(line.packets)));
    lines
}

fn rules(rules: &[Rule], flows: &[u64]) -> Vec<RuleLine> {
    rules
        .iter()
        .enumerate()
        .map(|(number, rule)| RuleLine {
            rule: rule.label(),
            direction: rule.direction.as_str(),
            action: rule.action.as_str(),
            place: rule.place.spoken(),
            flows: flows.get(number).copied().unwrap_or(0),
            expires: rule.expires.map(seconds),
            exception: rule.place.line == 0,
        })
        .collect()
}

fn seconds(unix_ns: i128) -> i64 {
    i64::try_from(unix_ns.div_euclid(1_000_000_000)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use guard_common::{
        Reason,
        abi::{Counter, SlotInfo, State, StateWord},
    };

    use super::*;
    use crate::daemon::report::Hook;

    fn hook(layer: &str, name: &str) -> Hook {
        Hook {
            layer: layer.to_owned(),
            hook: name.to_owned(),
            target: "eth0".to_owned(),
            attached: true,
            ours: true,
            first: true,
            problem: None,
        }
    }

    fn read(flags: u32) -> ReadBack {
        let mut state = State { word: StateWord::settled(Slot(1)), ..State::default() };
        state.slots[1] = SlotInfo { generation: 7, flags: SlotFlags(flags) };
        ReadBack {
            state,
            policies: [None, Some([0xab; 32]), None],
            hooks: vec![hook("wire", "tcx ingress"), hook("wire", "tcx egress"), hook("socket", "connect4")],
            counters: vec![
                (Reason::NotListed, Direction::Inbound, true, Counter { packets: 3, bytes: 200 }),
                (Reason::Arp, Direction::Inbound, false, Counter::default()),
            ],
            boot_ns: 5_000_000_000,
            ..ReadBack::default()
        }
    }

    fn reported(read: &ReadBack) -> Report {
        let manifest = Manifest::new("web".to_owned(), "ab".repeat(32), 7, "/etc/guard/web.yaml".into(), false, 0);
        report(Sources {
            instance: "default",
            suffix: String::new(),
            read,
            interfaces: vec![InterfaceLine {
                name: "eth0".to_owned(),
                index: 2,
                guarded: true,
                why: String::new(),
                container_host: None,
            }],
            flows: &[],
            manifest: Some(&manifest),
            policy: None,
            daemon: None,
            other_firewalls: Vec::new(),
            gaps: Vec::new(),
            clock: Clock::at_boot(0),
        })
    }

    const BOTH: u32 = SlotFlags::ENFORCE_INBOUND | SlotFlags::ENFORCE_OUTBOUND;

    #[test]
    fn enforcing_is_what_was_read_back() {
        let report = reported(&read(BOTH));
        assert!(report.enforcing && report.enforcing_inbound && report.enforcing_outbound);
        assert_eq!((report.mode, report.generation, report.policy.as_deref()), ("enforce", 7, Some("web")));
        assert_eq!(report.reasons.len(), 1);
        assert!(report.does_what_it_says(), "{:?}", report.problems);
    }

    #[test]
    fn each_hook_that_is_not_sound_turns_it_false() {
        for number in 0..3 {
            let mut read = read(BOTH);
            read.hooks[number].attached = false;
            let report = reported(&read);
            assert!(!report.enforcing, "hook {number}");
            assert!(!report.does_what_it_says());
            assert_eq!((report.enforcing_inbound, report.enforcing_outbound), (number != 0, number == 0));
        }
        let mut read = read(BOTH);
        read.hooks[1].first = false;
        assert!(reported(&read).problems[0].contains("another program stands before it"));
        read.hooks.clear();
        assert!(!reported(&read).enforcing);
    }

    #[test]
    fn audit_does_what_it_says_and_enforces_nothing() {
        let report = reported(&read(SlotFlags::ENFORCE_INBOUND));
        assert_eq!((report.mode, report.mode_inbound, report.mode_outbound), ("mixed", "enforce", "audit"));
        assert!(!report.enforcing && report.enforcing_inbound && !report.enforcing_outbound);
        assert!(report.does_what_it_says());
    }

    #[test]
    fn tables_of_another_policy_are_a_problem() {
        let mut read = read(BOTH);
        read.policies[1] = Some([0xcd; 32]);
        let report = reported(&read);
        assert_eq!(report.policy, None);
        assert!(!report.does_what_it_says());
    }

    #[test]
    fn a_deadline_is_told_until_it_passes() {
        let mut read = read(BOTH);
        read.state.word = StateWord::pending(Slot(1), Slot::NONE, 65_000);
        let deadline = reported(&read).deadline.unwrap();
        assert_eq!((deadline.seconds_left, deadline.then_generation, deadline.at), (60, 0, 65));
        read.boot_ns = 65_000_000_000;
        let report = reported(&read);
        assert!(report.deadline.is_none());
        assert_eq!((report.mode, report.enforcing), ("tracking", false));
    }
}
