//! Whole packets, in sequences with a state, past several judges: the loaded programs, the judge in userspace with
//! `replay`'s memory, and a referee that is naive on purpose. They must agree on every packet's verdict, reason, rule and
//! event, and at the end on every counter and every flow.
//!
//! A packet comes with what it means ([`packet::Says`]), which its maker knows: so the referee reads no bytes, and a
//! mistake of the parser is not repeated by a second one.

pub mod essential;
pub mod forms;
pub mod link;
pub mod memory;
pub mod packet;
pub mod referee;
pub mod scene;
pub mod talk;

use std::{
    fmt,
    net::IpAddr,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use guard::policy::{
    compile::{Compiled, compile},
    model::Policy,
};
use guard_common::{
    Direction, Reason, Verdict,
    abi::{EventKind, Interface},
};

use crate::{
    differential::{CLOCKS, Coverage},
    generate::Times,
};
use packet::{Packet, Says};

/// Name, index, and what guard has been told of it; `None`: nothing yet.
pub type Device = (&'static str, u32, Option<u32>);

/// Names are those that generated rules ask for.
pub const DEVICES: &[Device] = &[
    ("eth0", 11, Some(Interface::GUARDED)),
    ("eth1", 12, Some(Interface::GUARDED)),
    ("eth10", 13, Some(Interface::GUARDED | Interface::SPANNING_TREE)),
    ("ens3", 14, Some(Interface::GUARDED | Interface::MACSEC_ABOVE | Interface::PPPOE_ABOVE)),
    ("wg0", 15, Some(Interface::GUARDED | Interface::NO_ETHERNET)),
    ("tun0", 16, Some(Interface::GUARDED | Interface::NO_ETHERNET)),
    ("lo", 1, Some(Interface::LOOPBACK)),
    ("br-lan", 17, Some(0)),
    ("new0", 18, None),
];

/// A connection that a socket of ours holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub remote: (IpAddr, u16),
    pub local: (IpAddr, u16),
    /// Its local port listens.
    pub accepted: bool,
}

/// There from the beginning, in each scene.
#[must_use]
pub fn held() -> [Held; 4] {
    let one = |remote: &str, remote_port, local: &str, local_port, accepted| Held {
        remote: (remote.parse().expect("an address"), remote_port),
        local: (local.parse().expect("an address"), local_port),
        accepted,
    };
    [
        one("198.51.100.77", 50_001, "192.0.2.1", 2222, true),
        one("198.51.100.77", 4443, "192.0.2.1", 50_002, false),
        one("2001:db8:17::77", 50_001, "2001:db8:2::1", 2222, true),
        one("2001:db8:17::77", 4443, "2001:db8:2::1", 50_002, false),
    ]
}

/// What happens, in turn.
#[derive(Clone, Debug)]
pub enum Step {
    /// Another generation is in force.
    Publish(Publish),
    /// No policy is in force: packets are tracked.
    Track,
    /// The pending generation stays.
    Confirm,
    /// Nothing happens for so long (nanoseconds).
    Wait(u64),
    Packet(Packet),
}

#[derive(Clone, Copy, Debug)]
pub struct Publish {
    /// Of [`Scene::policies`].
    pub policy: usize,
    pub generation: u32,
    pub lockdown: bool,
    /// The slot has no tables: a fault.
    pub broken: bool,
    /// Nanoseconds from now, after which the one before holds again.
    pub deadline: Option<u64>,
}

/// All that a seed stands for.
pub struct Scene {
    pub seed: u64,
    pub policies: Vec<Policy>,
    pub compiled: Vec<Compiled>,
    pub steps: Vec<Step>,
}

/// What a judge says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    pub reason: Reason,
    /// `None`: this judge does not tell.
    pub rule: Option<Option<u32>>,
    pub dropped: bool,
    pub event: Option<EventKind>,
}

impl Ruling {
    /// As far as both tell.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        (self.reason, self.dropped, self.event) == (other.reason, other.dropped, other.event)
            && (self.rule.is_none() || other.rule.is_none() || self.rule == other.rule)
    }
}

/// Remote, remote port, local, local port, protocol, and the interface where the remote means something there only.
pub type Ends = (IpAddr, u16, IpAddr, u16, u8, u32);

/// Reason, direction, dropped: packets and bytes.
pub type Total = ((u8, u8, bool), (u64, u64));

/// What is known of a flow at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub direction: u8,
    pub generation: u32,
    pub reason: Reason,
    pub rule: Option<u32>,
    pub first_reason: Reason,
    pub cut_generation: u32,
    pub tcp: u8,
    pub answered: bool,
    pub adopted: bool,
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
}

/// Everything that is left at the end, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    pub flows: Vec<(Ends, Entry)>,
    /// Which table each flow stands in.
    pub tables: Vec<(Ends, u8)>,
    /// Where there are any.
    pub totals: Vec<Total>,
    /// Flows that a rule decided, by generation and rule, where there are any.
    pub rules: Vec<((u32, u32), u64)>,
}

/// Something that judges packets.
pub trait Judge {
    fn name(&self) -> &'static str;

    /// Forgets everything. `scene` lives until the next time.
    fn begin(&mut self, scene: &Scene) -> anyhow::Result<()>;

    fn publish(&mut self, scene: &Scene, publish: &Publish) -> anyhow::Result<()>;

    fn track(&mut self) -> anyhow::Result<()>;

    fn confirm(&mut self) -> anyhow::Result<()>;

    fn wait(&mut self, scene: &Scene, nanoseconds: u64) -> anyhow::Result<()>;

    fn packet(&mut self, scene: &Scene, packet: &Packet) -> anyhow::Result<Ruling>;

    fn end(&mut self, scene: &Scene) -> anyhow::Result<Books>;

    /// Whether its own clock has gone on so far since [`Judge::begin`] that the scene means something else to it.
    fn is_late(&self) -> bool {
        false
    }
}

/// Reasons that no packet past the wire's programs can get here, and why.
pub const OUT_OF_REACH: &[(Reason, &str)] = &[
    (Reason::FlowTableFull, "an LRU table makes room; the unit tests of the judge make inserts fail"),
    (Reason::FragmentTableFull, "an LRU table makes room; the unit tests of the judge make inserts fail"),
    (Reason::Sealed, "of a system call, not of a packet: kernel_socket and netns_hooks"),
    (Reason::BpfRefused, "of a system call, not of a packet: tests/vm/admission.rs"),
];

/// What [`check`] must have met.
#[must_use]
pub fn expected_coverage() -> Vec<String> {
    let mut expected = Vec::new();
    let reachable = || Reason::ALL.iter().filter(|reason| OUT_OF_REACH.iter().all(|(other, _)| other != *reason));
    for reason in reachable() {
        let name = reason.as_str();
        let (families, directions): (&[&str], &[Direction]) = match reason {
            Reason::Arp
            | Reason::Eapol
            | Reason::Lacp
            | Reason::Stp
            | Reason::Lldp
            | Reason::Macsec
            | Reason::Pppoe
            | Reason::EtherType => (&["other"], &[Direction::Inbound, Direction::Outbound]),
            Reason::Dhcpv4 | Reason::BadIpv4 => (&["IPv4"], &[Direction::Inbound, Direction::Outbound]),
            Reason::NeighbourDiscovery | Reason::Mld | Reason::Dhcpv6 | Reason::BadIpv6 | Reason::ExtensionChain => {
                (&["IPv6"], &[Direction::Inbound, Direction::Outbound])
            }
            Reason::UnnamedRemote => (&["IPv4", "IPv6"], &[Direction::Inbound]),
            _ => (&["IPv4", "IPv6"], &[Direction::Inbound, Direction::Outbound]),
        };
        for family in families {
            expected.extend(directions.iter().map(|direction| format!("{} {family} {name}", direction.as_str())));
        }
    }
    for reason in [Reason::Tracking, Reason::Truncated, Reason::EssentialOff, Reason::EssentialMalformed] {
        expected.push(format!("inbound other {}", reason.as_str()));
    }
    expected.extend(scene::LABELS.iter().map(|label| format!("packet: {label}")));
    expected.extend(
        ["event: FlowBegan", "event: FlowCut", "event: PacketDenied", "denied and let through", "denied and dropped"]
            .map(str::to_owned),
    );
    expected.extend(
        [
            "step: another generation",
            "step: no policy any more",
            "step: a deadline, and confirmed",
            "step: a deadline that passes",
            "step: a wait",
            "deny over a matching allow",
            "a rule expired, and the verdict is another",
            "a flow's idle time is over, and it begins anew",
            "a connection seems over, and its socket holds it",
        ]
        .map(str::to_owned),
    );
    expected
}

/// Runs scenes past all judges of each set, a set a thread. The first disagreement is an error.
pub fn check_all<J: Judge + Send>(sets: Vec<Vec<J>>, seeds: Range<u64>, times: Times) -> anyhow::Result<Coverage> {
    let next = AtomicU64::new(seeds.start);
    let run = |mut judges: Vec<J>| {
        let mut coverage = Coverage::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return anyhow::Ok(coverage);
            }
            if let Err(error) = check(seed, times, &mut judges, &mut coverage) {
                next.store(seeds.end, Ordering::Relaxed);
                return Err(error);
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = sets.into_iter().map(|judges| scope.spawn(|| run(judges))).collect();
        let mut coverage = Coverage::default();
        for thread in threads {
            coverage.add(thread.join().map_err(|_| anyhow::anyhow!("a check panicked"))??);
        }
        Ok(coverage)
    })
}

/// How often a scene is tried where a judge's own clock goes on too far (a machine under load).
const TRIES: usize = 20;

/// One scene, past the referee, the judge in userspace and `judges`.
pub fn check<J: Judge>(seed: u64, times: Times, judges: &mut [J], coverage: &mut Coverage) -> anyhow::Result<()> {
    let (policies, steps) = scene::make(seed, times);
    let compiled =
        (0..).zip(&policies).map(|(number, policy)| compile(policy, CLOCKS, number)).collect::<Result<_, _>>()?;
    let scene = Scene { seed, policies, compiled, steps };
    for _ in 0..TRIES {
        let mut met = Coverage::default();
        let result = play(&scene, judges, &mut met);
        if judges.iter().any(Judge::is_late) {
            continue;
        }
        coverage.add(met);
        return result;
    }
    anyhow::bail!("scene {seed}: {TRIES} times too slow for its clock");
}

fn play<J: Judge>(scene: &Scene, judges: &mut [J], coverage: &mut Coverage) -> anyhow::Result<()> {
    let mut referee = referee::Referee::default();
    let mut userspace = memory::Userspace::default();
    let mut all: Vec<&mut dyn Judge> = vec![&mut userspace];
    all.extend(judges.iter_mut().map(|judge| judge as &mut dyn Judge));
    referee.begin(scene)?;
    for judge in &mut all {
        judge.begin(scene)?;
    }
    for (number, step) in scene.steps.iter().enumerate() {
        let expected = referee.step(scene, step, coverage)?;
        for judge in &mut all {
            let ruling = judge.step(scene, step)?;
            if let (Some(expected), Some(ruling)) = (&expected, &ruling)
                && !expected.agrees(ruling)
            {
                anyhow::bail!(
                    "{}\n{} differs:\n  referee {expected:?}\n  {} {ruling:?}",
                    scene.until(number),
                    judge.name(),
                    judge.name()
                );
            }
        }
        of_step(step, expected.as_ref(), coverage);
    }
    let books = referee.end(scene)?;
    for judge in &mut all {
        let theirs = judge.end(scene)?;
        let parts = [
            ("flows", differs(&books.flows, &theirs.flows)),
            ("totals", differs(&books.totals, &theirs.totals)),
            ("rules' counters", differs(&books.rules, &theirs.rules)),
            ("tables", differs(&books.tables, &theirs.tables)),
        ];
        for (what, difference) in parts {
            if let Some(difference) = difference {
                anyhow::bail!(
                    "{}\nat the end, {what} differ: {} {difference}",
                    scene.until(scene.steps.len()),
                    judge.name()
                );
            }
        }
    }
    Ok(())
}

/// What stands in only one of two lists.
fn differs<T: PartialEq + fmt::Debug>(expected: &[T], found: &[T]) -> Option<String> {
    let only = |one: &[T], other: &[T]| {
        let only: Vec<_> =
            one.iter().filter(|item| !other.contains(item)).map(|item| format!("\n    {item:?}")).collect();
        only.concat()
    };
    let (missing, added) = (only(expected, found), only(found, expected));
    let same = missing.is_empty() && added.is_empty() && expected.len() == found.len();
    (!same).then(|| format!("has not:{missing}\n  has:{added}"))
}

trait Stepped {
    fn step(&mut self, scene: &Scene, step: &Step) -> anyhow::Result<Option<Ruling>>;
}

impl<J: Judge + ?Sized> Stepped for J {
    fn step(&mut self, scene: &Scene, step: &Step) -> anyhow::Result<Option<Ruling>> {
        match step {
            Step::Publish(publish) => self.publish(scene, publish)?,
            Step::Track => self.track()?,
            Step::Confirm => self.confirm()?,
            Step::Wait(time) => self.wait(scene, *time)?,
            Step::Packet(packet) => return self.packet(scene, packet).map(Some),
        }
        Ok(None)
    }
}

fn of_step(step: &Step, ruling: Option<&Ruling>, coverage: &mut Coverage) {
    match (step, ruling) {
        (Step::Packet(packet), Some(ruling)) => {
            coverage.count(format!("{} {} {}", packet.direction.as_str(), packet.family(), ruling.reason.as_str()));
            coverage.count(format!("packet: {}", packet.label));
            if let Some(event) = ruling.event {
                coverage.count(format!("event: {event:?}"));
            }
            if ruling.reason.verdict() == Verdict::Deny {
                coverage.count(if ruling.dropped { "denied and dropped" } else { "denied and let through" });
            }
        }
        (Step::Wait(_), _) => coverage.count("step: a wait"),
        (Step::Publish(publish), _) if publish.generation > 1 => coverage.count("step: another generation"),
        (Step::Track, _) => coverage.count("step: no policy any more"),
        (Step::Confirm, _) => coverage.count("step: a deadline, and confirmed"),
        _ => {}
    }
}

impl Scene {
    /// What happened up to a step, so that a person can follow it; and how to see it again.
    fn until(&self, last: usize) -> String {
        use fmt::Write as _;
        let mut text = format!("scene {} (GUARD_SEED={} GUARD_POLICIES=1)", self.seed, self.seed);
        for (number, policy) in self.policies.iter().enumerate() {
            let _ = write!(
                text,
                "\npolicy {number}: inbound {:?}, outbound {:?}, {:?}",
                policy.inbound, policy.outbound, policy.essentials
            );
            for (number, rule) in policy.rules.iter().enumerate() {
                let set = |set: &guard::policy::model::AddressSet| match set.v4.len() + set.v6.len() {
                    0..30 => format!("{set:x?}"),
                    many => format!("{many} ranges"),
                };
                let _ = write!(
                    text,
                    "\n  rule {number}: {:?} {:?} remote {} named {} services {:x?} interface {:?} local {:?} expires {:?}",
                    rule.direction,
                    rule.action,
                    set(&rule.remote.set),
                    rule.remote.named,
                    rule.services,
                    rule.interface,
                    rule.local.as_ref().map(|local| set(local)),
                    rule.expires.map(|at| at - CLOCKS.unix_ns),
                );
            }
        }
        for (number, step) in self.steps.iter().enumerate().take(last + 1) {
            let _ = write!(text, "\n{number}: {step:?}");
        }
        text
    }
}

impl Packet {
    /// For the coverage.
    #[must_use]
    pub fn family(&self) -> &'static str {
        match &self.says {
            Says::Ip(ip) if ip.source.is_ipv4() => "IPv4",
            Says::Ip(_) => "IPv6",
            Says::Refused { family: 4, .. } => "IPv4",
            Says::Refused { family: 6, .. } => "IPv6",
            Says::Refused { .. } | Says::Below { .. } => "other",
        }
    }
}
