//! Events and findings to records: names for rules, interfaces and programs, then into the sink and to whoever follows.

use std::{collections::VecDeque, fs, sync::Arc};

use guard_common::{
    Direction, Reason, Verdict,
    abi::{Event, EventKind, Flow, HEAD_BYTES, Owner},
    decide::Outcome,
};
use serde::{Deserialize, Serialize};

pub use super::rule_names::RuleNames;
use super::{
    asked::AskedAs,
    attributor::Attributor,
    clock::{Clock, boot_now},
    eve::{DropPart, Ends, FlowPart, GuardPart, Moment, Record, TcpPart},
    flagged::Flagged,
    flow::Key,
    observer::{self, Observer},
    recent::Recent,
    sink::Sink,
    sweep::{Finding, Found, Grown, Now, Tracker},
    who,
};
use crate::{
    daemon::difference::{Difference, Gap},
    host::identity::is_interpreter,
    review::{
        OBSERVING,
        group::Group,
        observed::{Fate, Observed},
    },
};

/// Is handed every record that is written.
pub type Follower = Box<dyn FnMut(&Record)>;

/// Writes records, and tells of each flow beside them.
pub struct Recorder {
    pub sink: Sink,
    pub tracker: Tracker,
    pub names: RuleNames,
    pub clock: Clock,
    pub attributor: Attributor,
    pub asked_as: AskedAs,
    /// Where first bytes of flagged flows go; `None`: nowhere.
    pub flagged: Option<Flagged>,
    named: NamedCounts,
    /// Flows whose process is looked at once more.
    again: VecDeque<Again>,
    host: Arc<str>,
    machine: Arc<str>,
    /// What is known of a flow beside its counts, by its id, so that its later records say it too.
    notes: Recent<u64, Note>,
    /// Handed a copy of each line's record.
    follower: Option<Follower>,
    observer: Option<Box<dyn Observer>>,
}

#[derive(Clone, Debug, Default)]
struct Note {
    who: Option<who::Shared>,
    listening: Option<bool>,
    /// How it is counted in [`NamedCounts`]: named or not. `None`: not at all.
    counted: Option<bool>,
}

/// Flows by whether it is known whose they are. One of which no process is to be expected is in neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedCounts {
    pub named: u64,
    pub unknown: u64,
}

impl NamedCounts {
    fn change(&mut self, was: Option<bool>, is: Option<bool>) {
        for (counted, by) in [(was, -1), (is, 1)] {
            let Some(named) = counted else { continue };
            let count = if named { &mut self.named } else { &mut self.unknown };
            *count = count.saturating_add_signed(by);
        }
    }
}

/// A flow that a shell or interpreter began: it may put the socket on its standard streams a moment after, and become
/// another program.
struct Again {
    /// Boot-time nanoseconds.
    due: u64,
    observed: Observed,
}

/// When that is looked at.
const AGAIN_NS: u64 = 400_000_000;
/// Flows that wait for it; of more, the rest is seen at their ends.
const AGAIN: usize = 1_024;

/// How many flows' notes are kept at least.
const NOTES: usize = 65_536;

/// One moment of one flow, from whichever side it came.
struct Told<'a> {
    moment: Moment,
    key: Key,
    flow: Flow,
    flow_id: u64,
    outcome: Outcome,
    generation: u32,
    /// Stopped, now or, for an end, ever.
    dropped: bool,
    /// Boot-time nanoseconds.
    time: u64,
    last_ns: u64,
    end: Option<&'static str>,
    late: bool,
    /// No record is written.
    observed_only: bool,
    owner: Option<&'a Owner>,
    packet_bytes: u32,
    head: &'a [u8],
}

impl Recorder {
    #[must_use]
    pub fn new(sink: Sink, tracker: Tracker, clock: Clock) -> Self {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Self {
            sink,
            tracker,
            names: RuleNames::default(),
            clock,
            attributor: Attributor::default(),
            asked_as: AskedAs::default(),
            flagged: None,
            named: NamedCounts::default(),
            again: VecDeque::new(),
            host: host.as_deref().unwrap_or("unknown").into(),
            machine: machine_id().into(),
            notes: Recent::new(NOTES),
            follower: None,
            observer: None,
        }
    }

    #[must_use]
    pub const fn named(&self) -> NamedCounts {
        self.named
    }

    pub fn follow(&mut self, follower: Follower) {
        self.follower = Some(follower);
    }

    /// Tells `observer` of every flow from now on.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.observer = Some(observer);
    }

    /// What the watch found, or, with a gap, that it is over.
    pub fn alert(&mut self, unix_ns: i128, difference: &Difference, gap: Option<&Gap>) {
        self.sink.write(&super::eve::Alert::new(unix_ns, &self.host, &self.machine, difference, gap));
    }

    /// Writes what waits.
    pub fn flush(&mut self) {
        self.sink.flush();
        if let Some(flagged) = &mut self.flagged {
            flagged.flush();
        }
        if let Some(observer) = &mut self.observer {
            observer.flush();
        }
    }

    /// Looks once more at processes of flows that began a moment ago (`now`: boot-time nanoseconds).
    pub fn look_again(&mut self, now: u64) {
        while self.again.front().is_some_and(|again| again.due <= now)
            && let Some(Again { mut observed, .. }) = self.again.pop_front()
        {
            let Some(found) = observed.who.as_ref().and_then(|who| self.attributor.look_again(who)) else { continue };
            if let Some(note) = self.notes.get(&observed.flow_id) {
                note.who = Some(found.clone());
            }
            observed.who = Some(found);
            if let Some(observer) = &mut self.observer {
                observer.observed(&observed, Moment::Begin);
            }
        }
    }

    /// One event of the ring buffer.
    pub fn event(&mut self, event: &Event) {
        let key = Key::from_event(event.family, &event.key);
        let moment = match event.kind {
            kind if kind == EventKind::FlowBegan as u8 => Moment::Begin,
            kind if kind == EventKind::FlowCut as u8 => Moment::Cut,
            kind if kind == EventKind::SocketDenied as u8 => Moment::SocketDenied,
            kind if kind == EventKind::Sealed as u8 => Moment::Sealed,
            kind if kind == EventKind::BpfRefused as u8 => Moment::BpfRefused,
            // A kind that this version does not know is still told.
            _ => Moment::Packet,
        };
        let mut flow = first_look(event);
        let flow_id = match (moment, key) {
            (Moment::Begin, Some(key)) => self.tracker.began(key, flow),
            (Moment::Cut, Some(key)) => self.tracker.cut(key, flow),
            (Moment::SocketDenied, Some(key)) => {
                flow.flags = Flow::AT_SOCKET;
                Some(self.tracker.refused(key, flow))
            }
            _ => return self.without_flow(event, moment),
        };
        // Told already: by a look at the tables.
        let (Some(key), Some(flow_id)) = (key, flow_id) else { return };
        self.tell(&Told {
            moment,
            key,
            flow,
            flow_id,
            outcome: event.outcome,
            generation: event.generation,
            dropped: event.dropped != 0,
            time: event.time,
            last_ns: event.time,
            end: None,
            late: false,
            observed_only: false,
            owner: (event.owner.pid != 0).then_some(&event.owner),
            packet_bytes: event.packet_bytes,
            head: head_of(event),
        });
    }

    /// A sealed option, a refused call, or a packet that belongs to no flow.
    fn without_flow(&mut self, event: &Event, moment: Moment) {
        let direction = Direction::from_u8(event.direction);
        let rule = self.names.of(event.generation, event.outcome);
        let mut guard = GuardPart::new(moment, event.outcome, direction, event.generation, rule);
        guard.machine_id = Arc::clone(&self.machine);
        guard.dropped = event.dropped != 0;
        guard.who = (event.owner.pid != 0).then(|| self.attributor.of_owner(&event.owner));
        let head = head_of(event);
        let mut record = Record::new(self.clock.unix_ns(event.time), &self.host, guard).with_head(head);
        record.in_iface = interface_name(event.ifindex);
        record.ends = Key::from_event(event.family, &event.key).map(|key| Ends::new(&key, direction));
        if event.dropped != 0 {
            record.drop = Some(DropPart::new(event.packet_bytes, head, event.outcome.reason()));
        }
        self.put(&record);
        if let Some(flagged) = &mut self.flagged {
            flagged.write(direction, self.clock.unix_ns(event.time), head, event.packet_bytes);
        }
    }

    /// One finding of a look at the tables.
    ///
    /// `owner`: whom the socket layer saw with the flow's socket.
    pub fn found(&mut self, found: &Found, now: &Now, owner: Option<&Owner>) {
        let Found { finding, key, flow, flow_id } = found;
        let direction = Direction::from_u8(flow.direction);
        let last_ns = now.last_ns(flow);
        let (moment, outcome, generation, time, end) = match finding {
            Finding::Begin => (Moment::Begin, flow.first_outcome, flow.generation, flow.first_seen, None),
            Finding::Cut => (Moment::Cut, flow.outcome, flow.cut_generation, last_ns, None),
            Finding::End(how) => (Moment::End, flow.outcome, flow.generation, last_ns, Some(how.as_str())),
        };
        self.tell(&Told {
            moment,
            key: *key,
            flow: *flow,
            flow_id: *flow_id,
            outcome,
            generation,
            dropped: outcome.verdict() == Verdict::Deny && self.names.enforces(generation, direction),
            time,
            last_ns,
            end,
            late: end.is_none(),
            observed_only: false,
            owner,
            packet_bytes: 0,
            head: &[],
        });
    }

    /// A flow that goes on: how it stands now, for the observer alone.
    pub fn grown(&mut self, grown: &Grown, now: &Now) {
        if self.observer.is_none() {
            return;
        }
        let Grown { key, flow, flow_id } = grown;
        let direction = Direction::from_u8(flow.direction);
        let told = Told {
            moment: Moment::Begin,
            key: *key,
            flow: *flow,
            flow_id: *flow_id,
            outcome: flow.outcome,
            generation: flow.generation,
            dropped: flow.outcome.verdict() == Verdict::Deny && self.names.enforces(flow.generation, direction),
            time: flow.first_seen,
            last_ns: now.last_ns(flow),
            end: None,
            late: false,
            observed_only: true,
            owner: None,
            packet_bytes: 0,
            head: &[],
        };
        // Of a process before this one: whose it is must be found again, or it would become another group's.
        if self.notes.get(flow_id).is_none()
            && self.note(&told).who.is_none_or(|who| who.found_by == who::FoundBy::Unknown)
        {
            return;
        }
        self.tell(&told);
    }

    fn tell(&mut self, told: &Told<'_>) {
        let Told { moment, key, flow, outcome, generation, .. } = told;
        let direction = Direction::from_u8(flow.direction);
        let note = match self.notes.get(&told.flow_id) {
            Some(note) if told.observed_only => note.clone(),
            _ => self.note(told),
        };
        let rule = self.names.of(*generation, *outcome);
        let names = self.asked_as.names(key.remote(), told.last_ns);
        let group_remote = observer::remote_group(
            self.names.remote(*generation, *outcome),
            names.first().map(|name| &**name),
            key.remote(),
        );
        let interface = interface_name(flow.ifindex);
        let observed = Observed {
            flow_id: told.flow_id,
            host: Arc::clone(&self.host),
            machine: Arc::clone(&self.machine),
            first: micros(self.clock.unix_ns(flow.first_seen)),
            last: micros(self.clock.unix_ns(told.last_ns.max(flow.first_seen))),
            direction,
            key: *key,
            interface: interface.as_deref().map(Arc::from),
            fate: fate(*outcome, told.dropped, rule.as_deref()),
            rule: rule.clone(),
            reason: outcome.reason().as_str().into(),
            generation: *generation,
            packets: flow.packets,
            bytes: flow.bytes,
            answered: flow.flags & Flow::ANSWERED != 0,
            adopted: flow.flags & Flow::ADOPTED != 0,
            listening: note.listening,
            who: note.who.clone(),
            names,
            remote_group: group_remote,
            head: told.head.to_vec(),
        };

        if told.observed_only {
            if let Some(observer) = &mut self.observer {
                observer.observed(&observed, *moment);
            }
            return;
        }
        let mut guard = GuardPart::new(*moment, *outcome, direction, *generation, rule);
        guard.machine_id = Arc::clone(&self.machine);
        guard.group = Some(Group::of(&observed).id().to_string());
        guard.remote_group = Some(observed.remote_group.to_string());
        guard.dropped = told.dropped;
        guard.who = note.who;
        guard.names.clone_from(&observed.names);
        guard.listening = note.listening;
        guard.adopted = observed.adopted;
        guard.late = told.late;
        guard.end = told.end;
        let mut record = Record::new(self.clock.unix_ns(told.time), &self.host, guard).with_head(told.head);
        record.flow_id = Some(told.flow_id);
        record.in_iface = interface;
        record.ends = Some(Ends::new(key, direction));
        record.flow = Some(FlowPart::new(flow, self.clock, told.last_ns, told.end));
        record.tcp = TcpPart::new(flow);
        if told.dropped && *moment != Moment::End {
            record.drop = Some(DropPart::new(told.packet_bytes, told.head, outcome.reason()));
        }
        self.put(&record);
        if outcome.verdict() == Verdict::Deny
            && let Some(flagged) = &mut self.flagged
        {
            flagged.write(direction, self.clock.unix_ns(told.time), told.head, told.packet_bytes);
        }
        if let Some(observer) = &mut self.observer {
            observer.observed(&observed, *moment);
        }
        let interprets = observed.who.as_ref().and_then(|who| who.program()).is_some_and(is_interpreter);
        if *moment == Moment::Begin && direction == Direction::Outbound && interprets && self.again.len() < AGAIN {
            self.again.push_back(Again { due: boot_now() + AGAIN_NS, observed });
        }
    }

    /// Who, as known from an earlier moment, else as found now.
    fn note(&mut self, told: &Told<'_>) -> Note {
        let mut note = self.notes.get(&told.flow_id).cloned().unwrap_or_default();
        if note.who.as_ref().is_none_or(|who| who.found_by == who::FoundBy::Unknown) {
            let found = self.attributor.of_flow(&told.key, &told.flow, told.owner);
            note.listening = found.listening.or(note.listening);
            // Nobody is known by now to be there: that is not to know who.
            note.who = if note.listening == Some(false) { found.who } else { found.who.or(note.who) };
        }
        let named = note.who.as_ref().map(|who| who.found_by != who::FoundBy::Unknown);
        // An end whose beginning is forgotten was counted then.
        if note.counted.is_some() || told.moment != Moment::End {
            self.named.change(note.counted, named);
            note.counted = named;
        }
        if told.moment == Moment::End {
            self.notes.remove(&told.flow_id);
        } else {
            self.notes.insert(told.flow_id, note.clone());
        }
        note
    }

    fn put(&mut self, record: &Record) {
        self.sink.write(record);
        if let Some(follower) = &mut self.follower {
            follower(record);
        }
    }
}

/// What became of a flow that this outcome was given.
fn fate(outcome: Outcome, dropped: bool, rule: Option<&str>) -> Fate {
    match (outcome.reason(), outcome.verdict()) {
        // The built-in rules of `guard observe` decide nothing.
        (Reason::RuleAllow, _) if rule.is_some_and(|rule| OBSERVING.contains(&rule)) => Fate::Seen,
        (Reason::Tracking, _) => Fate::Seen,
        (_, Verdict::Allow) => Fate::Allowed,
        (_, Verdict::Deny) if dropped => Fate::Denied,
        (_, Verdict::Deny) => Fate::WouldDeny,
    }
}

fn micros(unix_ns: i128) -> i64 {
    i64::try_from(unix_ns / 1000).unwrap_or(0)
}

/// As systemd keeps it (machine-id(5)); empty where there is none.
fn machine_id() -> String {
    let text = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id = text.trim();
    if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        id.to_ascii_lowercase()
    } else {
        String::new()
    }
}

fn head_of(event: &Event) -> &[u8] {
    &event.head[..(event.head_bytes as usize).min(HEAD_BYTES)]
}

/// What an event tells of its flow: its first packet.
fn first_look(event: &Event) -> Flow {
    let mut flow = Flow {
        generation: event.generation,
        outcome: event.outcome,
        first_outcome: event.outcome,
        until: u64::MAX,
        direction: event.direction,
        ifindex: event.ifindex,
        first_seen: event.time,
        socket_cookie: event.socket_cookie,
        ..Flow::default()
    };
    let direction = usize::from(event.direction & 1);
    flow.packets[direction] = 1;
    flow.bytes[direction] = u64::from(event.packet_bytes);
    flow
}

fn interface_name(index: u32) -> Option<String> {
    if index == 0 {
        return None;
    }
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

/// Packets that the programs allowed or denied as flows: reasons that a flow's outcome can have. The difference between
/// these totals and the sum over all flows is the detail that eviction took.
#[must_use]
pub const fn counts_as_flow(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NotListed | Reason::RuleAllow | Reason::RuleDeny | Reason::Tracking | Reason::UnnamedRemote
    )
}

#[cfg(test)]
mod tests;
