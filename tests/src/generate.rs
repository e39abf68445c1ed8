//! Policies and questions from a seed, aimed at where an error would be: ranges that overlap, touch and end at 0 and at
//! the last value, equal sets by different pointers, ports one off, denies over allows, expiries at this very moment.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
};

use guard::policy::{
    compile::Clocks,
    model::{AddressSet, Essentials, Mode, Place, Policy, Remote, Rule, ServiceRange},
};
use guard_common::{Direction, Verdict};

use crate::referee::Asked;

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub const fn wide(&mut self) -> u128 {
        (self.next() as u128) << 64 | self.next() as u128
    }

    /// 0 to `end` - 1.
    pub const fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub const fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub const fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// How far expiries are from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// Down to a nanosecond: for deciders that are told the time.
    Exact,
    /// Hours: for deciders that ask the kernel's own clock.
    Coarse,
}

/// Names that questions ask for; patterns that rules ask for match some of them.
const NAMES: &[&str] = &["eth0", "eth1", "eth10", "ens3", "wg0", "lo", "br-lan", "tun0"];
const PATTERNS: &[&str] =
    &["eth0", "eth1", "eth*", "e*", "*0", "wg?", "?????", "br-*", "*", "tun0", "eth0,wg?", "lo,e*,br-lan"];

#[must_use]
pub fn policy(seed: u64, clocks: Clocks, times: Times) -> Policy {
    let mut random = Random(seed);
    let random = &mut random;
    let v4: Vec<u32> = (0..4).map(|_| landmark(random) as u32).chain([0, u32::MAX]).collect();
    let v6: Vec<u128> = (0..4).map(|_| landmark_v6(random)).chain([0, u128::MAX]).collect();
    let big = random.percent(2);
    let mut sets: Vec<Arc<AddressSet>> = (0..1 + random.below(6)).map(|_| set(random, &v4, &v6, big)).collect();
    // Sometimes nearly everything is in many sets, and the others stand out of that.
    let deep = random.percent(10);
    if deep {
        sets.extend((1..7).map(|off| {
            Arc::new(AddressSet {
                v4: vec![(off, u32::MAX - off)],
                v6: vec![(off.into(), u128::MAX - u128::from(off))],
            })
        }));
    }
    // Equal content behind another pointer.
    let copy = random.of(&sets).as_ref().clone();
    sets.push(Arc::new(copy));
    let any = Arc::new(AddressSet { v4: vec![(0, u32::MAX)], v6: vec![(0, u128::MAX)] });
    let ports: Vec<u32> = (0..4).map(|_| random.next() as u32 & 0xffff).chain([0, 1, 22, 443, 65535]).collect();

    let count = if deep || random.percent(2) { 60 } else { 1 + random.below(14) };
    // Expiries fall on few moments, so that several rules share one.
    let moments: Vec<i128> = (0..3).map(|_| expiry(random, clocks, times)).collect();
    let many_ports = random.percent(10);
    let rules = (0..count)
        .map(|position| {
            let named = random.percent(75);
            Rule {
                direction: if random.percent(50) { Direction::Inbound } else { Direction::Outbound },
                action: if random.percent(25) { Verdict::Deny } else { Verdict::Allow },
                name: None,
                position,
                place: Place { file: Arc::new(PathBuf::from("generated.yaml")), line: position as u32 + 1, column: 1 },
                remote: Remote { text: vec![], set: if named { random.of(&sets).clone() } else { any.clone() }, named },
                services: services(random, &ports, many_ports),
                services_text: vec![],
                interface: random.percent(20).then(|| (*random.of(PATTERNS)).to_owned()),
                local: random.percent(20).then(|| random.of(&sets).clone()),
                expires: random.percent(25).then(|| *random.of(&moments)),
                comment: None,
            }
        })
        .collect();
    Policy {
        name: format!("generated {seed}"),
        sha256: [seed as u8; 32],
        files: vec![],
        inbound: if random.percent(50) { Mode::Audit } else { Mode::Enforce },
        outbound: if random.percent(50) { Mode::Audit } else { Mode::Enforce },
        rules,
        lockdown: false,
        on_deny: Default::default(),
        container_host: Default::default(),
        essentials: Essentials {
            arp: random.percent(50),
            dhcp: random.percent(50),
            lldp: random.percent(50),
            ..Essentials::default()
        },
        tests: vec![],
    }
}

/// A question near the borders of a policy's rules.
pub fn question(random: &mut Random, policy: &Policy, clocks: Clocks, times: Times) -> Asked {
    // Mostly about one rule, so that all that it states is likely to hold, or to fail by one.
    let rule = random.of(&policy.rules);
    let direction = if random.percent(90) { rule.direction } else { rule.direction.opposite() };
    let ipv6 = if rule.remote.set.v4.is_empty() { random.percent(95) } else { random.percent(45) };
    let other = random.of(&policy.rules);
    let local_set = rule.local.as_ref().or(other.local.as_ref()).cloned().unwrap_or_default();
    let now = match (times, rule.expires.or(other.expires)) {
        (Times::Exact, Some(expires)) if random.percent(60) => clocks
            .boot_time(expires)
            .saturating_add_signed([-1, 0, 1][random.below(3)])
            .clamp(clocks.boot_ns, u64::MAX - 1),
        (Times::Exact, _) => clocks.boot_ns + random.below(3) as u64,
        (Times::Coarse, _) => clocks.boot_ns,
    };
    Asked {
        direction,
        remote: address(random, &rule.remote.set, ipv6),
        local: address(random, &local_set, ipv6),
        service: service(random, rule),
        interface: (*random.of(NAMES)).to_owned(),
        now,
    }
}

/// Prefix-like or plain, anywhere.
const fn landmark(random: &mut Random) -> u64 {
    random.next() >> 32 & !((1 << random.below(20)) - 1)
}

const fn landmark_v6(random: &mut Random) -> u128 {
    random.wide() & !((1 << random.below(120)) - 1)
}

fn set(random: &mut Random, v4: &[u32], v6: &[u128], big: bool) -> Arc<AddressSet> {
    let count = if big { 300 + random.below(3000) } else { random.below(8) };
    let (mut ranges_v4, mut ranges_v6) = (Vec::new(), Vec::new());
    let clustered = random.percent(50);
    let cluster_v4 = *random.of(v4);
    let cluster_v6 = *random.of(v6);
    for _ in 0..count {
        let near =
            if big && clustered { cluster_v4.wrapping_add(random.below(1 << 14) as u32) } else { *random.of(v4) };
        let near = if big && !clustered { random.next() as u32 } else { near };
        let first = near.wrapping_add(random.below(5) as u32).wrapping_sub(2);
        let width = if big { random.below(3) as u32 } else { width(random, 32) as u32 };
        ranges_v4.push((first, first.saturating_add(width)));

        let near = *random.of(v6);
        let near = if big && clustered { cluster_v6.wrapping_add(random.below(1 << 14) as u128) } else { near };
        let near =
            if big && !clustered { near ^ u128::from(random.next() & 0xffff) << (32 * random.below(4)) } else { near };
        let first = near.wrapping_add(random.below(5) as u128).wrapping_sub(2);
        ranges_v6.push((first, first.saturating_add(width_v6(random))));
    }
    match random.below(8) {
        0 => ranges_v4.clear(),
        1 => ranges_v6.clear(),
        _ => {}
    }
    Arc::new(AddressSet { v4: merged(ranges_v4, u32::MAX), v6: merged(ranges_v6, u128::MAX) })
}

/// None, one, a prefix's, or any.
const fn width(random: &mut Random, bits: usize) -> u64 {
    match random.below(4) {
        0 => 0,
        1 => 1,
        2 => (1 << random.below(bits)) - 1,
        _ => random.next() >> (64 - bits) >> random.below(bits),
    }
}

const fn width_v6(random: &mut Random) -> u128 {
    match random.below(4) {
        0 => 0,
        1 => 1,
        2 => (1 << random.below(128)) - 1,
        _ => random.wide() >> random.below(128),
    }
}

/// Sorted, disjoint, not adjacent: the model's promise.
fn merged<T: Copy + Ord + std::ops::Add<Output = T> + From<u8>>(mut ranges: Vec<(T, T)>, end: T) -> Vec<(T, T)> {
    ranges.sort();
    let mut merged: Vec<(T, T)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if before.1 == end || first <= before.1 + T::from(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn services(random: &mut Random, ports: &[u32], many: bool) -> Vec<ServiceRange> {
    let count = if many { 30 } else { 1 + random.below(3) };
    let ranges = (0..count)
        .map(|_| {
            let protocol = *random.of(&[1_u32, 6, 6, 6, 17, 17, 58, 47, 0, 255]) << 16;
            let port = if many { random.next() as u32 & 0xffff } else { *random.of(ports) };
            match random.below(if many { 3 } else { 6 }) {
                0..=2 => (protocol | port, protocol | port),
                3 => (protocol | port, protocol | (port + random.below(300) as u32).min(0xffff)),
                4 => (protocol, protocol | 0xffff),
                _ => *random.of(&[(0, u32::MAX), (0, 0x00ff_ffff), (protocol, protocol)]),
            }
        })
        .collect();
    let merged = merged(ranges, u32::MAX);
    merged.into_iter().map(|(first, last)| ServiceRange { first, last }).collect()
}

fn expiry(random: &mut Random, clocks: Clocks, times: Times) -> i128 {
    const HOUR: i128 = 3_600_000_000_000;
    let near = [-1, 0, 1, 2, HOUR, -HOUR, 24 * HOUR];
    // A machine may have started a minute ago, and the kernel knows no time before that.
    let past = i128::from(clocks.boot_ns) / 2;
    let far = [-HOUR.min(past), HOUR, 24 * HOUR, -(24 * HOUR).min(past)];
    clocks.unix_ns
        + match times {
            Times::Exact if random.percent(5) => *random.of(&[i128::MAX / 2, i128::MIN / 2, i128::from(u64::MAX)]),
            Times::Exact => *random.of(&near),
            Times::Coarse => *random.of(&far),
        }
}

fn address(random: &mut Random, set: &AddressSet, ipv6: bool) -> IpAddr {
    let off = random.below(3);
    if ipv6 {
        let mut bits = if set.v6.is_empty() || random.percent(10) { random.wide() } else { edge(random, &set.v6) };
        bits = [bits, bits.wrapping_sub(1), bits.wrapping_add(1)][off];
        // Sometimes only one word is another: the stages of the other words still hold.
        if random.percent(10) {
            bits ^= 1 << random.below(128);
        }
        IpAddr::V6(Ipv6Addr::from(bits))
    } else {
        let mut bits =
            if set.v4.is_empty() || random.percent(10) { random.next() as u32 } else { edge(random, &set.v4) };
        bits = [bits, bits.wrapping_sub(1), bits.wrapping_add(1)][off];
        IpAddr::V4(Ipv4Addr::from(bits))
    }
}

const fn edge<T: Copy>(random: &mut Random, ranges: &[(T, T)]) -> T {
    let range = random.of(ranges);
    if random.percent(50) { range.0 } else { range.1 }
}

fn service(random: &mut Random, rule: &Rule) -> u32 {
    let range = random.of(&rule.services);
    let at = if random.percent(50) { range.first } else { range.last };
    match random.below(8) {
        0 => at.wrapping_sub(1),
        1 => at.wrapping_add(1),
        2 => random.next() as u32,
        3 => range.first + ((range.last - range.first) >> 1),
        _ => at,
    }
}
