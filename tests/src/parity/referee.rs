//! What becomes of a packet, said a second time and as plainly as possible: lists that are searched from the start, one
//! rule after the other. Shares nothing with the parser, the judge and the tables but the model.

use std::net::IpAddr;

use guard::policy::model::Policy;
use guard_common::{
    Direction, Reason, Verdict,
    abi::{EventKind, Interface},
};

use super::{
    Books, DEVICES, Ends, Entry, Judge, Publish, Ruling, Scene, Step, Stepped, Total,
    essential::{Essential, Notes},
    held,
    packet::{Body, Fragment, Ip, Packet, Says},
};
use crate::{
    differential::{CLOCKS, Coverage},
    referee::{self, Asked},
};

/// Seconds that a silent flow is remembered (nf_conntrack's defaults), by state for TCP.
const TCP_SECONDS: [u64; 9] = [432_000, 120, 60, 432_000, 120, 60, 30, 120, 10];
/// What stands for a state: none, SYN sent, received, established, FIN wait, close wait, last ACK, time wait, close.
const STATES: &str = "NSREFCLTX";
/// By what comes, and whether from who began it: the next state for each of [`STATES`]; `-`: impossible; `!`: another
/// connection with the same ends.
const NEXT: [(Segment, bool, &str); 10] = [
    (Segment::Syn, true, "!SREFCL!!"),
    (Segment::Syn, false, "!------!!"),
    (Segment::SynAck, true, "---------"),
    (Segment::SynAck, false, "RRREFCLTX"),
    (Segment::Ack, true, "E-EECCTTX"),
    (Segment::Ack, false, "ESRECCTTX"),
    (Segment::Fin, true, "F-FFLLLTX"),
    (Segment::Fin, false, "F-FFLLLTX"),
    (Segment::Rst, true, "XXXXXXXXX"),
    (Segment::Rst, false, "XXXXXXXXX"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Segment {
    Syn,
    SynAck,
    Ack,
    Fin,
    Rst,
}

impl Segment {
    const fn of(flags: u8) -> Self {
        match (flags & 4 != 0, flags & 2 != 0, flags & 1 != 0, flags & 16 != 0) {
            (true, ..) => Self::Rst,
            (_, true, _, false) => Self::Syn,
            (_, true, _, true) => Self::SynAck,
            (_, _, true, _) => Self::Fin,
            _ => Self::Ack,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub reason: Reason,
    pub rule: Option<u32>,
}

const fn only(reason: Reason) -> Outcome {
    Outcome { reason, rule: None }
}

impl Outcome {
    fn is_denied(self) -> bool {
        self.reason.verdict() == Verdict::Deny
    }
}

#[derive(Clone)]
struct Flow {
    ends: Ends,
    began: Direction,
    /// 0: by none.
    judged_by: u32,
    outcome: Outcome,
    first: Outcome,
    cut_by: u32,
    until: u64,
    /// Milliseconds.
    last: u64,
    /// Of [`STATES`].
    tcp: usize,
    answered: bool,
    adopted: bool,
    /// A socket holds it, though nobody saw its handshake.
    held: bool,
    /// Where it stands: 0 among those heard from both ends, 1 and 2 among the unanswered, 3 among the denied.
    table: u8,
    packets: [u64; 2],
    bytes: [u64; 2],
}

impl Flow {
    fn is_denied(&self) -> bool {
        self.judged_by != 0 && self.outcome.is_denied()
    }

    /// Where it belongs after a packet.
    fn placed(mut self) -> Self {
        let known = self.answered || self.held;
        let past_handshake = "EFCLT".contains(STATES.as_bytes()[self.tcp] as char);
        self.table = match self.ends.4 {
            _ if self.is_denied() => 3,
            6 if known && (past_handshake || self.table == 0) => 0,
            6 => 1 + self.began as u8,
            _ if self.answered => 0,
            _ => 1 + self.began as u8,
        };
        self
    }
}

struct First {
    ends: (IpAddr, IpAddr, Direction, usize),
    id: u32,
    protocol: u8,
    ports: (u16, u16),
    seen: u64,
    judged_by: u32,
    outcome: Outcome,
    flow: Direction,
}

/// A policy that is in force.
#[derive(Clone, Copy)]
struct InForce {
    publish: Publish,
    /// When it was.
    at: u64,
}

#[derive(Default)]
pub struct Referee {
    now: u64,
    active: Option<InForce>,
    previous: Option<InForce>,
    flows: Vec<Flow>,
    firsts: Vec<First>,
    notes: Notes,
    totals: Vec<Total>,
    rules: Vec<((u32, u32), u64)>,
    coverage: Coverage,
}

/// What holds for one packet.
#[derive(Clone, Copy)]
struct Now<'a> {
    policy: &'a Policy,
    publish: Publish,
    packet: &'a Packet,
}

impl Now<'_> {
    fn enforces(&self, direction: Direction) -> bool {
        let mode = match direction {
            Direction::Inbound => self.policy.inbound,
            Direction::Outbound => self.policy.outbound,
        };
        mode == guard::policy::model::Mode::Enforce
    }

    fn alone(&self, outcome: Outcome) -> Ruling {
        Ruling {
            reason: outcome.reason,
            rule: Some(outcome.rule),
            dropped: outcome.is_denied() && self.enforces(self.packet.direction),
            event: outcome.is_denied().then_some(EventKind::PacketDenied),
        }
    }
}

const TRACKED: Ruling = Ruling { reason: Reason::Tracking, rule: Some(None), dropped: false, event: None };

impl Judge for Referee {
    fn name(&self) -> &'static str {
        "referee"
    }

    fn begin(&mut self, _: &Scene) -> anyhow::Result<()> {
        *self = Self { now: CLOCKS.boot_ns, ..Self::default() };
        Ok(())
    }

    fn publish(&mut self, _: &Scene, publish: &Publish) -> anyhow::Result<()> {
        let before = self.in_force();
        self.previous = if publish.deadline.is_some() { before } else { None };
        self.active = Some(InForce { publish: *publish, at: self.now });
        Ok(())
    }

    fn track(&mut self) -> anyhow::Result<()> {
        (self.active, self.previous) = (None, None);
        Ok(())
    }

    fn confirm(&mut self) -> anyhow::Result<()> {
        if let Some(active) = &mut self.active {
            active.publish.deadline = None;
        }
        Ok(())
    }

    fn wait(&mut self, _: &Scene, nanoseconds: u64) -> anyhow::Result<()> {
        self.now += nanoseconds;
        Ok(())
    }

    fn packet(&mut self, scene: &Scene, packet: &Packet) -> anyhow::Result<Ruling> {
        self.now += 1;
        let ruling = match self.in_force() {
            None => {
                self.tracked(packet);
                TRACKED
            }
            Some(InForce { publish, .. }) => {
                let policy = &scene.policies[publish.policy];
                self.judged(Now { policy, publish, packet })
            }
        };
        let line = (ruling.reason as u8, packet.direction as u8, ruling.dropped);
        let bytes = packet.bytes.len() as u64;
        match self.totals.iter_mut().find(|(key, _)| *key == line) {
            Some((_, sum)) => *sum = (sum.0 + 1, sum.1 + bytes),
            None => self.totals.push((line, (1, bytes))),
        }
        Ok(ruling)
    }

    fn end(&mut self, _: &Scene) -> anyhow::Result<Books> {
        let entry = |flow: &Flow| Entry {
            direction: flow.began as u8,
            generation: flow.judged_by,
            reason: flow.outcome.reason,
            rule: flow.outcome.rule,
            first_reason: flow.first.reason,
            cut_generation: flow.cut_by,
            tcp: flow.tcp as u8,
            answered: flow.answered,
            adopted: flow.adopted,
            packets: flow.packets,
            bytes: flow.bytes,
        };
        let mut books = Books {
            flows: self.flows.iter().map(|flow| (flow.ends, entry(flow))).collect(),
            tables: self.flows.iter().map(|flow| (flow.ends, flow.table)).collect(),
            totals: self.totals.clone(),
            rules: self.rules.clone(),
        };
        books.flows.sort_by_key(|(ends, _)| *ends);
        books.tables.sort_unstable();
        books.totals.sort_unstable();
        books.rules.sort_unstable();
        Ok(books)
    }
}

impl Referee {
    pub fn step(&mut self, scene: &Scene, step: &Step, coverage: &mut Coverage) -> anyhow::Result<Option<Ruling>> {
        let ruling = Stepped::step(self, scene, step)?;
        coverage.add(std::mem::take(&mut self.coverage));
        Ok(ruling)
    }

    fn in_force(&mut self) -> Option<InForce> {
        let active = self.active?;
        match active.publish.deadline {
            // In milliseconds, as the programs count it.
            Some(after) if self.now / 1_000_000 >= (active.at + after) / 1_000_000 => {
                self.coverage.count("step: a deadline that passes");
                self.previous
            }
            _ => Some(active),
        }
    }

    const fn ms(&self) -> u64 {
        self.now / 1_000_000
    }

    /// No policy: flows are followed all the same.
    fn tracked(&mut self, packet: &Packet) {
        let Says::Ip(ip) = &packet.says else { return };
        if ip.fragment.is_some_and(|fragment| fragment.later) {
            return;
        }
        let ends = ends(packet, ip);
        if let Some(at) = self.flows.iter().position(|flow| flow.ends == ends) {
            let flow = self.as_its_socket_has_it(self.flows[at].clone(), packet, ip);
            if let Some(after) = self.followed(&flow, packet, ip) {
                // What cannot be leaves the state as it is.
                self.flows[at] = after.unwrap_or_else(|| self.touched(flow, packet)).placed();
                return;
            }
        }
        if let Some(began) = begins(packet, ip, ends, true) {
            self.flows.retain(|flow| flow.ends != ends);
            let began = self.touched(began, packet).placed();
            self.flows.push(began);
        }
    }

    fn judged(&mut self, now: Now) -> Ruling {
        let packet = now.packet;
        let ip = match &packet.says {
            Says::Refused { reason, .. } => return now.alone(only(*reason)),
            Says::Below { what, form, to_group } => {
                let inbound = packet.direction == Direction::Inbound;
                return now.alone(only(super::essential::below(
                    now.policy,
                    packet.device,
                    *what,
                    *form,
                    *to_group,
                    inbound,
                )));
            }
            Says::Ip(ip) => ip,
        };
        let Some(fragment) = ip.fragment else { return self.whole(now, ip).0 };
        let names = (ip.source, ip.destination, packet.direction, packet.device);
        let (ms, generation) = (self.ms(), now.publish.generation);
        let first = self
            .firsts
            .iter()
            .find(|first| first.ends == names && first.id == fragment.id && first.protocol == fragment.protocol);
        let first = first.filter(|first| ms - first.seen <= 30_000 && first.judged_by == generation);
        if fragment.later {
            return match first {
                None => now.alone(only(Reason::FragmentNoFirst)),
                Some(first) if first.outcome.is_denied() => {
                    Ruling { dropped: now.enforces(first.flow), ..now.alone(first.outcome) }
                }
                Some(_) => now.alone(only(Reason::Fragment)),
            };
        }
        if first.is_some_and(|first| first.ports != ip.ports) {
            return now.alone(only(Reason::FragmentConflict));
        }
        let (ruling, flow) = self.whole(now, ip);
        self.enter(names, fragment, ip, ruling, flow, generation);
        ruling
    }

    fn enter(
        &mut self,
        ends: (IpAddr, IpAddr, Direction, usize),
        Fragment { id, protocol, .. }: Fragment,
        ip: &Ip,
        ruling: Ruling,
        flow: Direction,
        judged_by: u32,
    ) {
        self.firsts.retain(|first| (first.ends, first.id, first.protocol) != (ends, id, protocol));
        let outcome = Outcome { reason: ruling.reason, rule: ruling.rule.flatten() };
        self.firsts.push(First { ends, id, protocol, ports: ip.ports, seen: self.ms(), judged_by, outcome, flow });
    }

    /// A packet with all its headers; and the direction of what it belongs to.
    fn whole(&mut self, now: Now, ip: &Ip) -> (Ruling, Direction) {
        let packet = now.packet;
        let alone = |outcome: Outcome| (now.alone(outcome), packet.direction);
        let settled = match &ip.body {
            Body::Error(_) if !now.policy.essentials.icmp_errors => Essential::Is(Reason::EssentialOff),
            Body::Error(quoted) => Essential::Is(if quoted.is_some_and(|quoted| self.knows(now, ip, quoted)) {
                Reason::IcmpError
            } else {
                Reason::IcmpErrorUnknown
            }),
            _ => super::essential::of(now.policy, packet, ip, self.now / 1_000_000, &mut self.notes),
        };
        let unlisted = match settled {
            Essential::Is(reason) => return alone(only(reason)),
            Essential::IsNot(reason) => reason,
        };

        let ends = ends(packet, ip);
        let (mut flow, known) = match self.known(now, ip, ends) {
            Known::Impossible => return alone(only(Reason::NoHandshake)),
            Known::Yes(flow) => (flow, true),
            Known::No => match begins(packet, ip, ends, false) {
                Some(flow) => (self.touched(flow, packet), false),
                None if matches!(ip.body, Body::Answer) => return alone(only(Reason::IcmpAnswerUnknown)),
                None => return alone(only(Reason::NoHandshake)),
            },
        };
        let mut event = None;
        if !known || flow.judged_by != now.publish.generation || self.now >= flow.until {
            let expired = known && flow.judged_by == now.publish.generation;
            let before = flow.outcome;
            // What no policy is asked keeps no flow, and changes none.
            let (outcome, until) = match self.ask(now, &flow, unlisted) {
                Ok(answer) => answer,
                Err(reason) => return alone(only(reason)),
            };
            if expired && before.reason.verdict() != outcome.reason.verdict() {
                self.coverage.count("a rule expired, and the verdict is another");
            }
            if flow.judged_by == 0 {
                event = Some(EventKind::FlowBegan);
                flow.first = outcome;
            } else if !flow.outcome.is_denied() && outcome.is_denied() {
                event = Some(EventKind::FlowCut);
                flow.cut_by = now.publish.generation;
            }
            (flow.outcome, flow.until, flow.judged_by) = (outcome, until, now.publish.generation);
            if let Some(rule) = outcome.rule {
                let line = (now.publish.generation, rule);
                match self.rules.iter_mut().find(|(key, _)| *key == line) {
                    Some((_, flows)) => *flows += 1,
                    None => self.rules.push((line, 1)),
                }
            }
        }
        let (outcome, began) = (flow.outcome, flow.began);
        self.flows.retain(|other| other.ends != ends);
        self.flows.push(flow.placed());
        let dropped = outcome.is_denied() && now.enforces(began);
        (Ruling { reason: outcome.reason, rule: Some(outcome.rule), dropped, event }, began)
    }

    fn known(&mut self, now: Now, ip: &Ip, ends: Ends) -> Known {
        let Some(flow) = self.flows.iter().find(|flow| flow.ends == ends).cloned() else { return Known::No };
        let flow = self.as_its_socket_has_it(flow, now.packet, ip);
        let original = flow.began == now.packet.direction;
        // Nothing of it ever passed: the other end may begin one of its own.
        let nothing_passed = flow.judged_by != 0 && flow.outcome.is_denied() && !flow.answered;
        if nothing_passed && !original && now.enforces(flow.began) && !self.is_over(&flow) {
            return Known::No;
        }
        let refused = flow.judged_by == now.publish.generation && flow.outcome.is_denied();
        match self.followed(&flow, now.packet, ip) {
            Some(Some(after)) => Known::Yes(after),
            // What is denied stays that, whatever it does.
            Some(None) if refused => Known::Yes(self.touched(flow, now.packet)),
            Some(None) => Known::Impossible,
            None => Known::No,
        }
    }

    /// Not by whoever writes a RST or a FIN does a connection end that its socket holds.
    fn as_its_socket_has_it(&mut self, mut flow: Flow, packet: &Packet, ip: &Ip) -> Flow {
        let Body::Tcp(flags) = ip.body else { return flow };
        let opens = Segment::of(flags) == Segment::Syn;
        let ended = self.is_over(&flow)
            || "TX".contains(STATES.as_bytes()[flow.tcp] as char)
            || (opens && STATES.as_bytes()[flow.tcp] == b'N');
        let ours = opens && packet.direction == Direction::Outbound;
        if ended && !ours && !flow.is_denied() && socket(flow.ends).is_some() {
            self.coverage.count("a connection seems over, and its socket holds it");
            flow.tcp = STATES.find('E').unwrap_or_default();
            flow.last = self.ms();
        }
        flow
    }

    /// A flow after this packet: `None`: it is over, or another begins; `Some(None)`: it cannot have such a packet.
    fn followed(&mut self, flow: &Flow, packet: &Packet, ip: &Ip) -> Option<Option<Flow>> {
        if self.is_over(flow) {
            self.coverage.count("a flow's idle time is over, and it begins anew");
            return None;
        }
        let mut after = flow.clone();
        let original = flow.began == packet.direction;
        match ip.body {
            Body::Tcp(flags) => {
                let line = NEXT.iter().find(|line| line.0 == Segment::of(flags) && line.1 == original);
                match line.and_then(|line| line.2.chars().nth(after.tcp))? {
                    '!' => return None,
                    '-' => return Some(None),
                    state => after.tcp = STATES.find(state)?,
                }
            }
            Body::Question if !original => return None,
            Body::Answer if original => return None,
            // A message that is no answer goes one way only.
            _ if is_icmp(ip) && !matches!(ip.body, Body::Answer) && !original => return None,
            _ => {}
        }
        Some(Some(self.touched(after, packet)))
    }

    fn is_over(&self, flow: &Flow) -> bool {
        let seconds = match flow.ends.4 {
            6 => TCP_SECONDS[flow.tcp],
            17 | 136 => [30, 120][usize::from(flow.answered)],
            1 | 58 => 30,
            132 => [60, 210][usize::from(flow.answered)],
            47 => [30, 180][usize::from(flow.answered)],
            _ => 600,
        };
        self.ms() - flow.last > seconds * 1000
    }

    /// One more packet of it.
    fn touched(&self, mut flow: Flow, packet: &Packet) -> Flow {
        flow.packets[packet.direction as usize] += 1;
        flow.bytes[packet.direction as usize] += packet.bytes.len() as u64;
        flow.last = self.ms();
        flow.answered |= packet.direction != flow.began;
        flow
    }

    /// Whether an error is about a flow that this policy allows.
    fn knows(&self, now: Now, ip: &Ip, quoted: super::packet::Quoted) -> bool {
        let inbound = now.packet.direction == Direction::Inbound;
        if !inbound && ip.destination != quoted.source {
            return false;
        }
        // What is quoted went the other way.
        let (from, to) = ((quoted.source, quoted.ports.0), (quoted.destination, quoted.ports.1));
        let (remote, local) = if inbound { (to, from) } else { (from, to) };
        let link = if on_link(remote.0) { DEVICES[now.packet.device].1 } else { 0 };
        let ends = (remote.0, remote.1, local.0, local.1, quoted.protocol, link);
        let flow = self.flows.iter().find(|flow| flow.ends == ends);
        flow.is_some_and(|flow| {
            flow.judged_by == now.publish.generation
                && !flow.outcome.is_denied()
                && self.now < flow.until
                && !self.is_over(flow)
        })
    }

    fn ask(&mut self, now: Now, flow: &Flow, unlisted: Reason) -> Result<(Outcome, u64), Reason> {
        let (name, _, flags) = DEVICES[now.packet.device];
        let asked_for = |what: fn(&guard::policy::model::Rule) -> bool| {
            now.policy.rules.iter().any(|rule| what(rule) && rule.expires.is_none_or(|end| end > CLOCKS.unix_ns))
        };
        match flags {
            Some(flags) if flags & Interface::LOOPBACK != 0 && now.policy.essentials.loopback => {
                return Err(Reason::Loopback);
            }
            Some(flags) if flags & (Interface::GUARDED | Interface::HOST_SIDE) == 0 => return Err(Reason::NotGuarded),
            None if asked_for(|rule| rule.interface.is_some()) => return Err(Reason::UnknownInterface),
            _ => {}
        }
        if now.publish.broken {
            return Err(Reason::TableFault);
        }
        let (remote, remote_port, local, local_port, protocol, _) = flow.ends;
        let port = if flow.began == Direction::Inbound { local_port } else { remote_port };
        let asked = Asked {
            direction: flow.began,
            remote,
            local,
            service: u32::from(protocol) << 16 | u32::from(port),
            interface: name.to_owned(),
            now: self.now,
        };
        let answer = referee::judge(now.policy, &asked, CLOCKS);
        let outcome = match (answer.verdict, answer.rule) {
            (Verdict::Allow, rule) => Outcome { reason: Reason::RuleAllow, rule },
            (Verdict::Deny, None) => only(unlisted),
            (Verdict::Deny, rule) => Outcome { reason: Reason::RuleDeny, rule },
        };
        let matching = referee::matching(now.policy, &asked, CLOCKS);
        if outcome.reason == Reason::RuleDeny
            && matching.iter().any(|rule| now.policy.rules[*rule as usize].action == Verdict::Allow)
        {
            self.coverage.count("deny over a matching allow");
        }
        let unnamed = outcome.reason == Reason::RuleAllow && !answer.named;
        if now.publish.lockdown && flow.adopted && flow.began == Direction::Inbound && unnamed {
            return Ok((only(Reason::UnnamedRemote), answer.until));
        }
        Ok((outcome, answer.until))
    }
}

enum Known {
    Yes(Flow),
    No,
    Impossible,
}

fn socket(ends: Ends) -> Option<super::Held> {
    held().into_iter().find(|held| (held.remote, held.local) == ((ends.0, ends.1), (ends.2, ends.3)))
}

fn is_icmp(ip: &Ip) -> bool {
    ip.protocol == if ip.source.is_ipv4() { 1 } else { 58 }
}

fn ends(packet: &Packet, ip: &Ip) -> Ends {
    let (from, to) = ((ip.source, ip.ports.0), (ip.destination, ip.ports.1));
    let (remote, local) = if packet.direction == Direction::Inbound { (from, to) } else { (to, from) };
    let link = if on_link(remote.0) { DEVICES[packet.device].1 } else { 0 };
    (remote.0, remote.1, local.0, local.1, ip.protocol, link)
}

/// Whether an address means another host on another link.
fn on_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
    }
}

/// The flow that a packet begins, if it can begin one.
fn begins(packet: &Packet, ip: &Ip, ends: Ends, tracking: bool) -> Option<Flow> {
    let (mut began, mut adopted, mut tcp, mut is_held) = (packet.direction, tracking, 'N', false);
    match ip.body {
        Body::Answer => return None,
        Body::Tcp(flags) => {
            let segment = Segment::of(flags);
            tcp = match segment {
                Segment::Syn => 'S',
                Segment::SynAck => 'R',
                Segment::Ack => 'E',
                Segment::Fin => 'F',
                Segment::Rst => 'X',
            };
            let socket = socket(ends);
            // What a socket holds, nobody outside begins.
            let of_held = segment == Segment::Syn && packet.direction == Direction::Inbound && socket.is_some();
            if of_held {
                tcp = 'E';
            }
            if segment != Segment::Syn || of_held {
                adopted = true;
                is_held = socket.is_some();
                match socket {
                    Some(held) if held.accepted => began = Direction::Inbound,
                    Some(_) => began = Direction::Outbound,
                    None if matches!(segment, Segment::SynAck | Segment::Rst) => return None,
                    None => {}
                }
            }
        }
        _ => {}
    }
    Some(Flow {
        ends,
        began,
        judged_by: 0,
        outcome: only(Reason::Tracking),
        first: only(Reason::Tracking),
        cut_by: 0,
        until: u64::MAX,
        last: 0,
        tcp: STATES.find(tcp)?,
        answered: false,
        adopted,
        held: is_held,
        table: u8::MAX,
        packets: [0; 2],
        bytes: [0; 2],
    })
}
