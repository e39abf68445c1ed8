//! Events and findings to records: names for rules, interfaces and programs, then into the sink and to whoever follows.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, BufRead, BufReader},
    path::Path,
};

use guard_common::{
    Direction, Reason, Verdict,
    abi::{Event, EventKind, Flow, HEAD_BYTES, Owner},
    decide::Outcome,
};

use super::{
    clock::Clock,
    eve::{DropPart, Ends, FlowPart, GuardPart, Moment, Program, Record, TcpPart},
    flow::Key,
    sink::Sink,
    sweep::{Finding, Found, Now, Tracker},
};

/// Rule names by generation: a record may be of a generation that is no longer in force.
#[derive(Clone, Debug, Default)]
pub struct RuleNames {
    by_generation: BTreeMap<u32, Names>,
}

#[derive(Clone, Debug)]
struct Names {
    labels: Vec<String>,
    /// Directions in which this generation drops: `[inbound, outbound]`.
    enforces: [bool; 2],
}

/// How many generations' names are kept.
const GENERATIONS: usize = 8;

impl RuleNames {
    pub fn insert(&mut self, generation: u32, labels: Vec<String>, enforces: [bool; 2]) {
        self.by_generation.insert(generation, Names { labels, enforces });
        while self.by_generation.len() > GENERATIONS {
            self.by_generation.pop_first();
        }
    }

    /// The rule's name; its number where the generation's policy is not at hand; `None` where no rule decided.
    #[must_use]
    pub fn of(&self, generation: u32, outcome: Outcome) -> Option<String> {
        let rule = outcome.rule()?;
        let known = self.by_generation.get(&generation).and_then(|names| names.labels.get(rule as usize));
        Some(known.cloned().unwrap_or_else(|| format!("#{rule}")))
    }

    /// Whether that generation drops what it denies.
    #[must_use]
    pub fn enforces(&self, generation: u32, direction: Direction) -> bool {
        self.by_generation.get(&generation).is_some_and(|names| names.enforces[direction as usize])
    }
}

/// Is handed every record that is written.
pub type Follower = Box<dyn FnMut(&Record)>;

/// Writes records.
pub struct Recorder {
    pub sink: Sink,
    pub tracker: Tracker,
    pub names: RuleNames,
    pub clock: Clock,
    host: String,
    /// Handed a copy of each line's record.
    follower: Option<Follower>,
}

impl Recorder {
    #[must_use]
    pub fn new(sink: Sink, tracker: Tracker, clock: Clock) -> Self {
        let host = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_else(|| "unknown".to_owned());
        Self { sink, tracker, names: RuleNames::default(), clock, host, follower: None }
    }

    pub fn follow(&mut self, follower: Follower) {
        self.follower = Some(follower);
    }

    /// One event of the ring buffer.
    pub fn event(&mut self, event: &Event) {
        let direction = Direction::from_u8(event.direction);
        let key = Key::from_event(event.family, &event.key);
        let moment = match event.kind {
            kind if kind == EventKind::FlowBegan as u8 => Moment::Begin,
            kind if kind == EventKind::FlowCut as u8 => Moment::Cut,
            kind if kind == EventKind::SocketDenied as u8 => Moment::SocketDenied,
            kind if kind == EventKind::Sealed as u8 => Moment::Sealed,
            // A kind that this version does not know is still told.
            _ => Moment::Packet,
        };
        let flow_id = match (moment, key) {
            (Moment::Begin, Some(key)) => match self.tracker.began(key, first_look(event)) {
                None => return,
                id => id,
            },
            (Moment::Cut, Some(key)) => match self.tracker.cut(key, first_look(event)) {
                None => return,
                id => id,
            },
            (Moment::SocketDenied, Some(key)) => {
                let mut flow = first_look(event);
                flow.flags = Flow::AT_SOCKET;
                Some(self.tracker.refused(key, flow))
            }
            _ => None,
        };

        let rule = self.names.of(event.generation, event.outcome);
        let mut guard =
            GuardPart::new(moment, event.outcome, direction, event.generation, rule).by(program(&event.owner));
        guard.dropped = event.dropped != 0;
        let head = &event.head[..(event.head_bytes as usize).min(HEAD_BYTES)];
        let dropped = guard.dropped;
        let mut record = Record::new(self.clock.unix_ns(event.time), &self.host, guard).with_head(head);
        record.flow_id = flow_id;
        record.in_iface = interface_name(event.ifindex);
        record.ends = key.map(|key| Ends::new(&key, direction));
        if dropped {
            record.drop = Some(DropPart::new(event.packet_bytes, head, event.outcome.reason()));
        }
        if moment == Moment::Begin {
            record.flow = Some(FlowPart::new(&first_look(event), self.clock, event.time, None));
        }
        self.put(&record);
    }

    /// One finding of a look at the tables.
    pub fn found(&mut self, found: &Found, now: &Now) {
        let Found { finding, key, flow, flow_id } = found;
        let direction = Direction::from_u8(flow.direction);
        let last_ns = now.last_ns(flow);
        let (moment, outcome, generation, time, end) = match finding {
            Finding::Begin => (Moment::Begin, flow.first_outcome, flow.generation, flow.first_seen, None),
            Finding::Cut => (Moment::Cut, flow.outcome, flow.cut_generation, last_ns, None),
            Finding::End(how) => (Moment::End, flow.outcome, flow.generation, last_ns, Some(how.as_str())),
        };
        let rule = self.names.of(generation, outcome);
        let mut guard = GuardPart::new(moment, outcome, direction, generation, rule);
        guard.dropped = outcome.verdict() == Verdict::Deny && self.names.enforces(generation, direction);
        guard.adopted = flow.flags & Flow::ADOPTED != 0;
        guard.late = !matches!(finding, Finding::End(_));
        guard.end = end;
        let dropped_now = guard.dropped && moment != Moment::End;
        let mut record = Record::new(self.clock.unix_ns(time), &self.host, guard);
        record.flow_id = Some(*flow_id);
        record.in_iface = interface_name(flow.ifindex);
        record.ends = Some(Ends::new(key, direction));
        record.flow = Some(FlowPart::new(flow, self.clock, last_ns, end));
        record.tcp = TcpPart::new(flow);
        if dropped_now {
            record.drop = Some(DropPart::new(0, &[], outcome.reason()));
        }
        self.put(&record);
    }

    fn put(&mut self, record: &Record) {
        self.sink.write(record);
        if let Some(follower) = &mut self.follower {
            follower(record);
        }
    }
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

/// Who asked, where the socket layer saw it. The executable is looked up now, and believed only if the process still
/// has the name it had then.
fn program(owner: &Owner) -> Option<Program> {
    if owner.pid == 0 {
        return None;
    }
    let end = owner.comm.iter().position(|&byte| byte == 0).unwrap_or(owner.comm.len());
    let comm = String::from_utf8_lossy(&owner.comm[..end]).into_owned();
    let still = fs::read(format!("/proc/{}/comm", owner.pid))
        .is_ok_and(|now| now.strip_suffix(b"\n").unwrap_or(&now) == &owner.comm[..end]);
    let exe = if still { fs::read_link(format!("/proc/{}/exe", owner.pid)).ok() } else { None };
    let name = exe.map_or(comm, |exe| exe.to_string_lossy().into_owned());
    Some(Program { name, pid: owner.pid, uid: owner.uid })
}

fn interface_name(index: u32) -> Option<String> {
    if index == 0 {
        return None;
    }
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

/// Flows whose beginning earlier records tell.
#[derive(Clone, Debug, Default)]
pub struct BegunBefore {
    /// By id: whether their end is told too. Such a flow may stay in the tables for its lifetime.
    ended: HashMap<u64, bool>,
    /// Community ID to id.
    by_tuple: HashMap<String, u64>,
}

impl BegunBefore {
    pub fn began(&mut self, flow_id: u64, community_id: &str) {
        self.ended.insert(flow_id, false);
        self.by_tuple.insert(community_id.to_owned(), flow_id);
    }

    pub fn ended(&mut self, flow_id: u64) {
        self.ended.insert(flow_id, true);
    }

    /// The id that a flow's beginning was recorded with, and whether its end was. A flow that began before guard was
    /// recorded when it was judged first, so only its ends tell.
    #[must_use]
    pub fn find(&self, key: &Key, flow: &Flow) -> Option<(u64, bool)> {
        if self.ended.is_empty() {
            return None;
        }
        let by_id = key.flow_ids(flow.first_seen).into_iter().find_map(|id| Some((id, *self.ended.get(&id)?)));
        by_id.or_else(|| {
            let adopted = flow.flags & Flow::ADOPTED != 0;
            adopted.then(|| self.of_tuple(key, flow)).flatten().map(|id| (id, false))
        })
    }

    /// The id of the last flow with these ends, if it has not ended.
    #[must_use]
    pub fn of_tuple(&self, key: &Key, flow: &Flow) -> Option<u64> {
        if self.ended.is_empty() {
            return None;
        }
        let id = self.by_tuple.get(&key.community_id(Direction::from_u8(flow.direction)))?;
        (self.ended.get(id) == Some(&false)).then_some(*id)
    }
}

/// Reads them from `flows.jsonl` and the file rotated last, so that a restart does not tell them again; what is older is
/// told once more, if it is still held.
pub fn begun_before(records: &Path) -> io::Result<BegunBefore> {
    let mut begun = BegunBefore::default();
    let mut rotated = records.as_os_str().to_owned();
    rotated.push(".1");
    for path in [Path::new(&rotated), records] {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line?;
            let Some(id) = number_after(&line, b"\"flow_id\":") else { continue };
            if contains(&line, b"\"event\":\"begin\"") || contains(&line, b"\"event\":\"socket_denied\"") {
                begun.began(id, text_after(&line, b"\"community_id\":\"").unwrap_or_default());
            } else if contains(&line, b"\"event\":\"end\"") {
                begun.ended(id);
            }
        }
    }
    Ok(begun)
}

fn contains(line: &[u8], part: &[u8]) -> bool {
    line.windows(part.len()).any(|window| window == part)
}

fn number_after(line: &[u8], name: &[u8]) -> Option<u64> {
    let start = line.windows(name.len()).position(|window| window == name)? + name.len();
    let digits = line[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&line[start..start + digits]).ok()?.parse().ok()
}

/// Up to the next quotation mark.
fn text_after<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let start = line.windows(name.len()).position(|window| window == name)? + name.len();
    let length = line[start..].iter().position(|&byte| byte == b'"')?;
    std::str::from_utf8(&line[start..start + length]).ok()
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
mod tests {
    use guard_common::abi::FlowKeyV6;

    use super::*;
    use crate::record::sink::Limits;

    fn event(kind: EventKind, time: u64) -> Event {
        Event {
            kind: kind as u8,
            family: 4,
            direction: Direction::Outbound as u8,
            dropped: 1,
            outcome: Outcome::new(Reason::RuleDeny, 1),
            generation: 3,
            ifindex: 0,
            time,
            socket_cookie: 9,
            key: FlowKeyV6 {
                remote: [0xcb00_7109, 0, 0, 0],
                local: [0xc000_0201, 0, 0, 0],
                remote_port: 4444,
                local_port: 40000,
                protocol_scope: 6,
            },
            owner: Owner::default(),
            packet_bytes: 60,
            head_bytes: 1,
            head: [0x45; HEAD_BYTES],
        }
    }

    fn recorder(directory: &Path) -> Recorder {
        let sink = Sink::open(directory.join("flows.jsonl"), Limits::default());
        let mut recorder = Recorder::new(sink, Tracker::default(), Clock::at_boot(0));
        recorder.names.insert(3, vec!["web".to_owned(), "no metadata".to_owned()], [false, true]);
        recorder
    }

    fn records(directory: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(directory.join("flows.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_denied_flow_is_told_once_with_its_rule_and_first_bytes() {
        let home = tempfile::tempdir().unwrap();
        let mut recorder = recorder(home.path());
        recorder.event(&event(EventKind::FlowBegan, 7));
        recorder.event(&event(EventKind::FlowBegan, 7));
        recorder.sink.flush();
        let records = records(home.path());
        assert_eq!(records.len(), 1);
        assert_eq!(records[0]["event_type"], "drop");
        assert_eq!(records[0]["guard"]["rule"], "no metadata");
        assert_eq!(records[0]["guard"]["event"], "begin");
        assert_eq!(records[0]["packet"], "RQ==");
        assert_eq!(records[0]["flow"]["pkts_toserver"], 1);
        let begun = begun_before(&home.path().join("flows.jsonl")).unwrap();
        assert_eq!(begun.ended, HashMap::from([(records[0]["flow_id"].as_u64().unwrap(), false)]));
        assert_eq!(begun.by_tuple.len(), 1);
    }

    #[test]
    fn an_event_without_a_flow_has_no_ends() {
        let home = tempfile::tempdir().unwrap();
        let mut recorder = recorder(home.path());
        let mut packet = event(EventKind::PacketDenied, 7);
        packet.family = 0;
        packet.outcome = Outcome::without_rule(Reason::EtherType);
        recorder.event(&packet);
        recorder.sink.flush();
        let records = records(home.path());
        assert_eq!(records[0]["guard"]["event"], "packet");
        assert_eq!(records[0]["guard"]["reason"], "ethertype");
        assert_eq!(records[0].get("src_ip"), None);
    }

    #[test]
    fn the_end_of_a_denied_flow_is_no_further_drop() {
        let home = tempfile::tempdir().unwrap();
        let mut recorder = recorder(home.path());
        recorder.event(&event(EventKind::FlowBegan, 7));
        let now = Now { boot_ns: 1_000_000_000_000, jiffies: 250_000, hz: 250 };
        let mut findings = recorder.tracker.look([], &now);
        findings.found.extend(recorder.tracker.look([], &now).found);
        for found in &findings.found {
            recorder.found(found, &now);
        }
        recorder.sink.flush();
        let records = records(home.path());
        assert_eq!(records.len(), 2);
        assert_eq!(records[1]["event_type"], "flow");
        assert_eq!(records[1]["guard"]["end"], "evicted");
        assert_eq!(records[1]["flow_id"], records[0]["flow_id"]);
        assert!(begun_before(&home.path().join("flows.jsonl")).unwrap().ended.values().all(|ended| *ended));
    }

    #[test]
    fn names_of_old_generations_are_kept_for_a_while() {
        let mut names = RuleNames::default();
        for generation in 1..=20 {
            names.insert(generation, vec![format!("rule of {generation}")], [true, false]);
        }
        let outcome = Outcome::new(Reason::RuleAllow, 0);
        assert_eq!(names.of(20, outcome).as_deref(), Some("rule of 20"));
        assert_eq!(names.of(1, outcome).as_deref(), Some("#0"));
        assert_eq!(names.of(20, Outcome::default()), None);
        assert!(names.enforces(20, Direction::Inbound) && !names.enforces(20, Direction::Outbound));
    }
}
