//! What happens in a scene: policies, packets, time.

use std::{net::IpAddr, sync::Arc};

use guard::policy::model::{Mode, Policy, Rule};
use guard_common::{Direction, Verdict};

use super::{
    DEVICES, Publish, Step,
    forms::{self, Inner, Way, ethernet},
    held, link,
    packet::{Below, Body, Packet, Quoted, Says},
    talk::{Kind, Talk, is_question, is_special},
};
use crate::{
    differential::CLOCKS,
    frame,
    generate::{self, Random, Times},
};

/// Kinds of packets: each must have been made.
pub const LABELS: &[&str] = &[
    "TCP",
    "UDP",
    "other ports",
    "ICMP query",
    "ICMP message",
    "another protocol",
    "of a connection that a socket holds",
    "to multicast or broadcast, or link-local",
    "mapped addresses",
    "IPv4 options",
    "extension headers",
    "whole, with a fragment header",
    "VLAN tags",
    "damaged",
    "no version that is known",
    "first fragment",
    "later fragment",
    "fragment before its first",
    "tiny first fragment",
    "later fragment over the header",
    "another first fragment",
    "the same first fragment",
    "overlapping fragment",
    "ICMP error about something known",
    "ICMP error about nothing known",
    "ICMP error that quotes badly",
    "ICMP redirect",
    "neighbour discovery",
    "MLD",
    "DHCPv4",
    "DHCPv6",
    "ARP",
    "EAPOL",
    "LACP",
    "STP",
    "LLDP",
    "MACsec",
    "PPPoE",
    "another ethertype",
    "three VLAN tags",
    "frame cut in its tags",
];

const SECOND: u64 = 1_000_000_000;

/// Waits that end far from any bound of a lifetime, however three of them are added: for judges with a clock of their own.
const COARSE_WAITS: [u64; 7] = [8, 33, 130, 700, 4_000, 90_000, 450_000];
/// Lifetimes themselves, and a day and a month.
const BOUNDS: [u64; 11] = [10, 30, 60, 120, 180, 210, 600, 86_400, 432_000, 2_592_000, 100];

pub struct Maker {
    pub random: Random,
    pub now: u64,
    policies: Vec<Policy>,
    times: Times,
    steps: Vec<Step>,
    talks: Vec<Talk>,
    generation: u32,
    waits: usize,
    /// A deadline is pending until then.
    deadline: Option<u64>,
    ids: u32,
    pub transaction: u32,
}

/// Policies, and what happens under them.
#[must_use]
pub fn make(seed: u64, times: Times) -> (Vec<Policy>, Vec<Step>) {
    let mut random = Random(seed ^ 0x5041_5249_5459);
    let first = policy(&mut random, seed, times);
    let second = if random.percent(60) { changed(&mut random, &first) } else { policy(&mut random, !seed, times) };
    let mut maker = Maker {
        transaction: random.next() as u32 & 0x00ff_ffff,
        random,
        now: CLOCKS.boot_ns,
        policies: vec![first, second],
        times,
        steps: Vec::new(),
        talks: Vec::new(),
        generation: 0,
        waits: 0,
        deadline: None,
        ids: 0,
    };
    if maker.random.percent(85) {
        maker.publish();
    }
    for _ in 0..4 + maker.random.below(8) {
        match maker.random.below(100) {
            0..13 => {
                maker.wait();
                // Connections are remembered longest, and so see their rules end.
                let tcp = (0..maker.talks.len()).filter(|at| maker.talks[*at].kind == Kind::Tcp).collect::<Vec<_>>();
                if maker.random.percent(15) {
                    maker.error();
                } else if !tcp.is_empty() && maker.random.percent(70) {
                    let at = *maker.random.of(&tcp);
                    maker.speak(at);
                }
            }
            13..20 => maker.publish(),
            20..22 => {
                maker.deadline = None;
                maker.steps.push(Step::Track);
            }
            22..26 if maker.deadline.is_some_and(|deadline| maker.now < deadline) => {
                maker.deadline = None;
                maker.steps.push(Step::Confirm);
            }
            _ => {}
        }
        maker.act();
    }
    if times == Times::Exact && maker.random.percent(30) {
        maker.outlive();
    }
    // To compile takes longer than all else.
    if !maker.steps.iter().any(|step| matches!(step, Step::Publish(Publish { policy: 1, .. }))) {
        maker.policies.truncate(1);
    }
    (maker.policies, maker.steps)
}

/// As generated, with other essentials; sometimes with a rule that lets much pass.
fn policy(random: &mut Random, seed: u64, times: Times) -> Policy {
    let mut policy = generate::policy(seed, CLOCKS, times);
    let on = &mut policy.essentials;
    for essential in [
        &mut on.loopback,
        &mut on.arp,
        &mut on.eapol,
        &mut on.lacp,
        &mut on.stp,
        &mut on.lldp,
        &mut on.macsec,
        &mut on.pppoe,
        &mut on.neighbour_discovery,
        &mut on.mld,
        &mut on.dhcp,
        &mut on.dhcpv6,
        &mut on.icmp_errors,
    ] {
        *essential = random.percent(75);
    }
    // Most flows of an unusual policy are denied at once, and then little happens.
    for rule in &mut policy.rules {
        if random.percent(25) {
            rule.interface = None;
        }
        if rule.action == Verdict::Deny && random.percent(40) {
            rule.action = Verdict::Allow;
        }
    }
    for direction in [Direction::Inbound, Direction::Outbound] {
        if random.percent(25) {
            let mut rule = random.of(&policy.rules).clone();
            rule.direction = direction;
            rule.action = Verdict::Allow;
            rule.remote.set =
                Arc::new(guard::policy::model::AddressSet { v4: vec![(0, u32::MAX)], v6: vec![(0, u128::MAX)] });
            rule.remote.named = random.percent(50);
            rule.services = vec![guard::policy::model::ServiceRange { first: 0, last: u32::MAX }];
            rule.local = None;
            if random.percent(50) {
                // One that ends while connections are remembered.
                rule.expires = Some(CLOCKS.unix_ns + 3_600 * i128::from(SECOND));
            }
            policy.rules.push(rule);
        }
    }
    policy
}

/// With one difference, so that a flow's verdict may be another or the same.
fn changed(random: &mut Random, policy: &Policy) -> Policy {
    let mut policy = policy.clone();
    let at = random.below(policy.rules.len());
    match random.below(5) {
        0 => drop(policy.rules.remove(at)),
        1 => policy.rules[at].action = Verdict::Deny,
        2 => policy.inbound = if policy.inbound == Mode::Audit { Mode::Enforce } else { Mode::Audit },
        3 => policy.rules.reverse(),
        _ => {
            policy.outbound = Mode::Enforce;
            policy.rules[at].action = Verdict::Deny;
            policy.rules[at].expires = None;
        }
    }
    if policy.rules.is_empty() {
        policy = generate::policy(random.next(), CLOCKS, Times::Coarse);
    }
    policy
}

impl Maker {
    fn publish(&mut self) {
        self.generation += 1;
        let pending = self.random.percent(20);
        let after = match (pending, self.times) {
            (false, _) => None,
            // Where it is past at once, and where a wait passes it.
            (true, Times::Coarse) => Some(*self.random.of(&[0, 90, 90, 90]) * SECOND),
            (true, Times::Exact) => Some(*self.random.of(&[0, 1_000_000, 100 * SECOND, 100 * SECOND])),
        };
        self.deadline = after.map(|after| self.now + after);
        self.steps.push(Step::Publish(Publish {
            policy: if self.generation == 1 { 0 } else { self.random.below(2) },
            generation: self.generation,
            lockdown: self.random.percent(20),
            broken: self.random.percent(3),
            deadline: after,
        }));
    }

    fn wait(&mut self) {
        self.waits += 1;
        let mut errors = 0;
        let time = match self.times {
            Times::Coarse if self.waits > 3 => return,
            Times::Coarse if self.random.percent(30) => 4_000 * SECOND,
            Times::Coarse => *self.random.of(&COARSE_WAITS) * SECOND,
            Times::Exact => {
                // To the nanosecond before a rule expires, to that, and to the one after; or about a lifetime.
                let random = &mut self.random;
                let policy = &self.policies[random.below(2)];
                let expires = random.of(&policy.rules).expires;
                let at = expires.map(|expires| CLOCKS.boot_time(expires)).filter(|at| *at > self.now + 3);
                match at.filter(|at| *at < self.now + 50 * 86_400 * SECOND && random.percent(60)) {
                    Some(at) => {
                        // An error may be the first that is heard of a flow whose rule has ended.
                        errors = random.below(4);
                        at - self.now - *random.of(&[1, 2, 2, 3])
                    }
                    None => *random.of(&BOUNDS) * SECOND + *random.of(&[0, 0, 1_000_000, 2_000_000]),
                }
            }
        };
        self.now += time;
        self.steps.push(Step::Wait(time));
        for _ in 0..errors {
            self.error();
        }
    }

    pub fn push(&mut self, packet: Packet) {
        self.now += 1;
        self.steps.push(Step::Packet(packet));
    }

    pub fn device(&mut self) -> usize {
        self.random.below(DEVICES.len())
    }

    fn act(&mut self) {
        match self.random.below(100) {
            0..60 => {
                let at = self.talk();
                self.speak(at);
            }
            60..68 => self.fragments(),
            68..74 => {
                let (talk, original, inner) = self.turn();
                let packet = forms::damaged(&mut self.random, talk.way(original), &inner);
                self.push(packet);
            }
            74..83 => self.error(),
            83..89 => link::below_ip(self),
            89..95 => link::neighbours(self),
            _ => link::dhcp(self),
        }
    }

    /// Some packets of one conversation.
    fn speak(&mut self, at: usize) {
        for _ in 0..1 + self.random.below(6) {
            let (original, flags) = self.talks[at].next(&mut self.random);
            let talk = self.talks[at].clone();
            let inner = talk.inner(&mut self.random, original, flags);
            let packet = forms::whole(&mut self.random, talk.way(original), &inner, label(&talk));
            self.push(packet);
        }
    }

    /// Which conversation: a known or a new one.
    fn talk(&mut self) -> usize {
        if !self.talks.is_empty() && self.random.percent(55) {
            return self.random.below(self.talks.len());
        }
        let talk = self.new_talk();
        self.talks.push(talk);
        self.talks.len() - 1
    }

    fn turn(&mut self) -> (Talk, bool, Inner) {
        let at = self.talk();
        let (original, flags) = self.talks[at].next(&mut self.random);
        let talk = self.talks[at].clone();
        let inner = talk.inner(&mut self.random, original, flags);
        (talk, original, inner)
    }

    fn new_talk(&mut self) -> Talk {
        let random = &mut self.random;
        let policy = &self.policies[random.below(2)];
        let mut asked = generate::question(random, policy, CLOCKS, Times::Coarse);
        // Protocols without ports are soon known.
        for _ in 0..2 {
            if !matches!(asked.service >> 16, 1 | 6 | 17 | 58) {
                asked = generate::question(random, policy, CLOCKS, Times::Coarse);
            }
        }
        let (mut remote, mut local) = (asked.remote, asked.local);
        let ipv4 = remote.is_ipv4();
        match random.below(40) {
            0 => remote = address(if ipv4 { "224.0.0.251" } else { "ff02::fb" }),
            1 => remote = address(if ipv4 { "255.255.255.255" } else { "fe80::77" }),
            2 => remote = address(if ipv4 { "169.254.9.9" } else { "ff05::2" }),
            3 if !ipv4 => {
                remote = address("::ffff:198.51.100.7");
                local = address("::ffff:192.0.2.1");
            }
            _ => {}
        }
        let mut protocol = (asked.service >> 16) as u8;
        if random.percent(8) {
            protocol = *random.of(&[132, 136, 47, 50, 4, 41, 89]);
        }
        // In IPv6 these are no protocols, but headers before one.
        if !ipv4 && matches!(protocol, 0 | 43 | 44 | 51 | 60) {
            protocol = 255;
        }
        let mut service = asked.service as u16;
        let kind = match protocol {
            6 => Kind::Tcp,
            17 | 132 | 136 => Kind::Ports,
            1 | 58 if (protocol == 1) == ipv4 => {
                let kind = (service >> 8) as u8;
                if is_special(ipv4, kind) || random.percent(30) {
                    service = if ipv4 { 8 << 8 } else { 128 << 8 };
                }
                if is_question(ipv4, (service >> 8) as u8) { Kind::Query } else { Kind::Message }
            }
            _ => Kind::Plain,
        };
        let device = match DEVICES.iter().position(|device| device.0 == asked.interface) {
            Some(device) if random.percent(60) => device,
            _ if random.percent(12) => random.below(DEVICES.len()),
            _ => random.below(2),
        };
        let mut talk = Talk {
            began: asked.direction,
            device,
            remote,
            local,
            protocol,
            kind,
            asked: if kind == Kind::Plain { 0 } else { service },
            asking: 40_000 + random.below(20_000) as u16,
            stage: 0,
        };
        if kind == Kind::Tcp && random.percent(12) {
            let held = *random.of(&held());
            (talk.remote, talk.local) = (held.remote.0, held.local.0);
            (talk.asked, talk.asking) = if talk.began == Direction::Inbound {
                (held.local.1, held.remote.1)
            } else {
                (held.remote.1, held.local.1)
            };
            talk.stage = 2 + random.below(6);
        } else if random.percent(12) {
            // It began before guard did.
            talk.stage = 2 + random.below(6);
        }
        talk
    }

    fn fragments(&mut self) {
        let (talk, original, inner) = self.turn();
        // Sometimes under a name that another has had.
        if self.random.percent(80) {
            self.ids += 1;
        }
        let packets = forms::fragments(&mut self.random, talk.way(original), &inner, 0x1_0000 + self.ids);
        for packet in packets {
            self.push(packet);
            match self.random.below(100) {
                0..12 => self.wait(),
                12..20 => self.publish(),
                _ => {}
            }
        }
    }

    /// A connection whose rule ends while it is silent, and that an ICMP error is the first to tell of.
    fn outlive(&mut self) {
        let random = &mut self.random;
        let rules = self.policies.iter().flat_map(|policy| &policy.rules);
        let soon = self.now + 400_000 * SECOND;
        let ends = |rule: &&Rule| {
            let at = rule.expires.map(|expires| CLOCKS.boot_time(expires));
            at.is_some_and(|at| at > self.now + 10 && at < soon)
        };
        let tcp =
            |rule: &&Rule| rule.services.iter().any(|range| range.first <= 6 << 16 | 443 && range.last >= 6 << 16);
        let rules: Vec<&Rule> = rules.filter(|rule| rule.action == Verdict::Allow).filter(ends).filter(tcp).collect();
        if rules.is_empty() {
            return;
        }
        let rule = *random.of(&rules);
        let service = rule.services.iter().find(|range| range.last >= 6 << 16).map_or(0, |range| range.first);
        let (v4, v6) = (rule.remote.set.v4.first(), rule.remote.set.v6.first());
        let (remote, local): (IpAddr, _) = match (v4, v6) {
            (Some((first, last)), _) => {
                (std::net::Ipv4Addr::from((*last).min(0xc633_6409).max(*first)).into(), "192.0.2.1")
            }
            (_, Some((first, _))) => (std::net::Ipv6Addr::from(*first).into(), "2001:db8:2::1"),
            _ => return,
        };
        let talk = Talk {
            began: rule.direction,
            device: 0,
            remote,
            local: address(local),
            protocol: 6,
            kind: Kind::Tcp,
            asked: if service >> 16 == 6 { service as u16 } else { 443 },
            asking: 40_000 + random.below(20_000) as u16,
            stage: 3,
        };
        let at = rule.expires.map_or(0, |expires| CLOCKS.boot_time(expires));
        for (original, flags) in [(true, frame::SYN), (false, frame::SYN | frame::ACK), (true, frame::ACK)] {
            let inner = talk.inner(&mut self.random, original, flags);
            let packet = forms::whole(&mut self.random, talk.way(original), &inner, label(&talk));
            self.push(packet);
        }
        let time = at - self.now - *self.random.of(&[1, 2, 3]);
        self.now += time;
        self.steps.push(Step::Wait(time));
        for _ in 0..3 {
            self.error_about(&talk, true);
        }
        self.talks.push(talk);
    }

    /// An ICMP error, or a redirect.
    fn error(&mut self) {
        let known = !self.talks.is_empty() && self.random.percent(75);
        let talk = if known { self.random.of(&self.talks).clone() } else { self.new_talk() };
        self.error_about(&talk, known);
    }

    fn error_about(&mut self, talk: &Talk, known: bool) {
        let original = self.random.percent(70);
        let Some(quoted) = talk.quoted(original) else { return };
        let about = talk.way(original);
        let random = &mut self.random;
        let direction = if random.percent(90) { about.direction.opposite() } else { about.direction };
        let ipv4 = about.from.is_ipv4();
        let router = address(if ipv4 { "203.0.113.1" } else { "2001:db8:ff::1" });
        // To who sent what is quoted, or to somebody else.
        let to = if random.percent(85) { about.from } else { router };
        let way = Way { direction, device: talk.device, from: router, to };
        let redirect = random.percent(10);
        let kind = match (ipv4, redirect) {
            (true, true) => 5,
            (false, true) => 137,
            (true, false) => *random.of(&[3, 11, 12]),
            (false, false) => *random.of(&[1, 2, 3, 4]),
        };
        let inner = talk.inner(random, original, frame::SYN);
        let (quotes, body, form) = quote(random, about, quoted, &inner);
        let rest = [vec![0; 4], quotes].concat();
        let (body, label) = match (redirect, form, known) {
            (true, ..) => (Body::Redirect, "ICMP redirect"),
            (_, false, _) => (Body::Error(None), "ICMP error that quotes badly"),
            (_, _, true) => (body, "ICMP error about something known"),
            (_, _, false) => (body, "ICMP error about nothing known"),
        };
        let code = random.below(4) as u8;
        let inner = Inner {
            protocol: if ipv4 { 1 } else { 58 },
            ports: (0, u16::from(kind) << 8 | u16::from(code)),
            body,
            bytes: frame::icmp(way.from, way.to, kind, code, &rest),
            hop_limit: 64,
        };
        if self.random.percent(5) {
            let packets = forms::fragments(&mut self.random, way, &inner, 0x2_0000 + self.ids);
            packets.into_iter().for_each(|packet| self.push(packet));
        } else {
            let packet = forms::whole(&mut self.random, way, &inner, label);
            self.push(packet);
        }
    }
}

/// The quoted packet as an error carries it, what it says, and whether it says it as it should.
fn quote(random: &mut Random, way: Way, quoted: Quoted, inner: &Inner) -> (Vec<u8>, Body, bool) {
    let short = Inner { bytes: inner.bytes.iter().copied().take(8 + random.below(20)).collect(), ..inner.clone() };
    let mut packet = match (way.from, way.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let options = if random.percent(20) { vec![1, 1, 1, 1] } else { vec![] };
            frame::ipv4(from, to, short.protocol, &frame::Ipv4Fields { options, ..Default::default() }, &short.bytes)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = [short.protocol, 0, 1, 4, 0, 0, 0, 0];
            match random.below(5) {
                0 => frame::ipv6(from, to, 60, 64, &[&header, short.bytes.as_slice()].concat()),
                1 => frame::ipv6(
                    from,
                    to,
                    44,
                    64,
                    &[&[short.protocol, 0, 0, 1, 0, 0, 0, 9], short.bytes.as_slice()].concat(),
                ),
                _ => frame::ipv6(from, to, short.protocol, 64, &short.bytes),
            }
        }
        _ => panic!("{way:?}: two families"),
    };
    let network = if way.from.is_ipv4() { 20 } else { 40 };
    let form = match random.below(12) {
        0 => {
            packet.truncate(network + random.below(8));
            false
        }
        1 => {
            packet.resize(if way.from.is_ipv4() { 560 } else { 1250 }, 0x66);
            false
        }
        2 => {
            packet[0] ^= 0x30;
            false
        }
        // Of a later fragment nobody knows the ports.
        3 if way.from.is_ipv4() => {
            packet[7] = 3;
            false
        }
        _ => true,
    };
    (packet, Body::Error(form.then_some(quoted)), form)
}

fn label(talk: &Talk) -> &'static str {
    let on_link = match talk.remote {
        IpAddr::V4(remote) => remote.is_multicast() || remote.is_broadcast() || remote.is_link_local(),
        IpAddr::V6(remote) => remote.is_multicast() || remote.is_unicast_link_local(),
    };
    let is_held = held().iter().any(|held| held.remote.0 == talk.remote && held.local.0 == talk.local);
    match talk.kind {
        _ if on_link => "to multicast or broadcast, or link-local",
        _ if is_held && talk.kind == Kind::Tcp => "of a connection that a socket holds",
        _ if talk.remote == address("::ffff:198.51.100.7") => "mapped addresses",
        Kind::Tcp => "TCP",
        Kind::Ports if talk.protocol == 17 => "UDP",
        Kind::Ports => "other ports",
        Kind::Query => "ICMP query",
        Kind::Message => "ICMP message",
        Kind::Plain => "another protocol",
    }
}

pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A frame that is neither IPv4 nor IPv6.
pub fn below(
    maker: &mut Maker,
    what: Below,
    to: [u8; 6],
    frame: (u16, &[u8]),
    form: bool,
    group: bool,
    label: &'static str,
) {
    let direction = if maker.random.percent(50) { Direction::Inbound } else { Direction::Outbound };
    // Only devices whose frames have a header.
    let device = match what {
        // Most often where what these carry, or make, is there.
        Below::Macsec | Below::Pppoe if maker.random.percent(70) => 3,
        Below::Stp if maker.random.percent(50) => 2,
        _ => *maker.random.of(&[0, 1, 2, 2, 3, 3, 6, 7, 8]),
    };
    let tags: &[u16] = if maker.random.percent(5) { &[0x8100] } else { &[] };
    let bytes = ethernet(&to, tags, frame.0, frame.1);
    maker.push(Packet { direction, device, bytes, says: Says::Below { what, form, to_group: group }, label });
}
