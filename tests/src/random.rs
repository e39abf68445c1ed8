//! Random policies and questions, the same for the same seed: for what is run in the kernel. (The referee's own
//! generator, which knows how a policy is written, is another.)

use std::{path::PathBuf, sync::Arc};

use guard::policy::{
    compile::{Clocks, Compiled, compile},
    model::{AddressSet, Essentials, Mode, Place, Policy, Remote, Rule, ServiceRange},
};
use guard_common::{
    Direction, Verdict,
    decide::{Question, Subject},
};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `end - 1`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Sorted, disjoint, merged.
#[must_use]
pub fn address_set(mut v4: Vec<(u32, u32)>, mut v6: Vec<(u128, u128)>) -> AddressSet {
    macro_rules! merge {
        ($ranges:ident) => {{
            $ranges.sort_unstable();
            $ranges.dedup_by(|next, kept| {
                let joins = next.0 <= kept.1 || next.0 == kept.1 + 1;
                if joins {
                    kept.1 = kept.1.max(next.1);
                }
                joins
            });
        }};
    }
    merge!(v4);
    merge!(v6);
    AddressSet { v4, v6 }
}

/// IPv4 prefixes of 20 to 32 bits, IPv6 prefixes of 32 to 128 that cluster in a few /16s, as real ones do.
#[must_use]
pub fn prefixes(random: &mut Random, v4: usize, v6: usize) -> AddressSet {
    let four = (0..v4).map(|_| {
        let (address, bits) = (random.next() as u32 % 0xdfff_ffff, 20 + random.below(13));
        let mask = (u64::from(u32::MAX) >> bits) as u32;
        (address & !mask, address | mask)
    });
    let four = four.collect();
    let six = (0..v6).map(|_| {
        let top = [0x2001_u128, 0x2400, 0x2600, 0x2a00][random.below(4) as usize] << 112;
        let address = top | u128::from(random.next()) << 48 | u128::from(random.next() >> 16);
        let mask = if random.one_in(8) { 0 } else { u128::MAX >> (32 + random.below(33)) };
        (address & !mask, address | mask)
    });
    address_set(four, six.collect())
}

#[must_use]
pub fn rule(direction: Direction, set: Arc<AddressSet>, services: Vec<ServiceRange>) -> Rule {
    Rule {
        direction,
        action: Verdict::Allow,
        name: None,
        position: 0,
        place: Place { file: Arc::new(PathBuf::from("random.yaml")), line: 1, column: 1 },
        remote: Remote { text: vec!["random".to_owned()], set, named: true },
        services,
        services_text: Vec::new(),
        interface: None,
        local: None,
        expires: None,
        comment: None,
    }
}

#[must_use]
pub fn policy(rules: Vec<Rule>) -> Policy {
    Policy {
        name: "random".to_owned(),
        sha256: [7; 32],
        files: Vec::new(),
        inbound: Mode::Enforce,
        outbound: Mode::Enforce,
        rules,
        essentials: Essentials::default(),
        lockdown: false,
        on_deny: Default::default(),
        container_host: Default::default(),
        tests: Vec::new(),
    }
}

/// Rules that overlap, deny, expire, and ask for interfaces and local addresses.
#[must_use]
pub fn small_policy(random: &mut Random) -> Policy {
    let (rules, v4, v6) = (1 + random.below(24), random.below(40) as usize, random.below(40) as usize);
    let sets: Vec<_> = (0..4).map(|_| Arc::new(prefixes(random, v4, v6))).collect();
    let everything = Arc::new(AddressSet { v4: vec![(0, u32::MAX)], v6: vec![(0, u128::MAX)] });
    let rules = (0..rules).map(|_| {
        let direction = Direction::from_u8(random.below(2) as u8);
        let any = random.one_in(5);
        let set = if any { Arc::clone(&everything) } else { Arc::clone(&sets[random.below(4) as usize]) };
        let mut rule = rule(direction, set, services(random));
        rule.remote.named = !any;
        if random.one_in(5) {
            rule.action = Verdict::Deny;
        }
        if random.one_in(4) {
            rule.interface = Some(["eth0", "eth1", "wg*"][random.below(3) as usize].to_owned());
        }
        if random.one_in(4) {
            rule.local = Some(Arc::clone(&sets[random.below(4) as usize]));
        }
        if random.one_in(4) {
            rule.expires = Some(i128::from(random.below(1 << 62)));
        }
        rule
    });
    policy(rules.collect())
}

fn services(random: &mut Random) -> Vec<ServiceRange> {
    if random.one_in(6) {
        return vec![ServiceRange { first: 0, last: u32::MAX }];
    }
    let protocol = [6, 17, 1, 47][random.below(4) as usize] << 16;
    let first = random.below(600) as u32;
    let last = if random.one_in(2) { first } else { first + random.below(400) as u32 };
    vec![ServiceRange { first: protocol | first, last: protocol | last }]
}

/// Questions near what a policy names: bounds of its ranges, one beside them, and anything.
#[must_use]
pub fn question(random: &mut Random, compiled: &Compiled, policy: &Policy) -> Question {
    let ipv6 = random.one_in(2);
    let subject = Subject {
        interface: (!random.one_in(8))
            .then(|| compiled.interface_class(["eth0", "eth1", "wg0", "lo"][random.below(4) as usize])),
        local: (!random.one_in(8)).then(|| {
            let local = address(random, policy, ipv6);
            guard_common::decide::local_class(compiled.nodes.as_slice(), ipv6, local).unwrap_or(0)
        }),
    };
    Question {
        direction: Direction::from_u8(random.below(2) as u8),
        ipv6,
        remote: address(random, policy, ipv6),
        service: [6, 17, 1, 47, 58][random.below(5) as usize] << 16 | random.below(1100) as u32,
        subject,
    }
}

fn address(random: &mut Random, policy: &Policy, ipv6: bool) -> [u32; 4] {
    let rule = &policy.rules[random.below(policy.rules.len() as u64) as usize];
    let set = &rule.remote.set;
    if ipv6 {
        let address = match set.v6.get(random.below(set.v6.len() as u64) as usize) {
            Some(range) if !random.one_in(8) => match random.below(4) {
                0 => range.0,
                1 => range.1,
                2 => range.0.wrapping_sub(1),
                _ => range.1.wrapping_add(1),
            },
            _ => u128::from(random.next()) << 64 | u128::from(random.next()),
        };
        [(address >> 96) as u32, (address >> 64) as u32, (address >> 32) as u32, address as u32]
    } else {
        let address = match set.v4.get(random.below(set.v4.len() as u64) as usize) {
            Some(range) if !random.one_in(8) => match random.below(4) {
                0 => range.0,
                1 => range.1,
                2 => range.0.wrapping_sub(1),
                _ => range.1.wrapping_add(1),
            },
            _ => random.next() as u32,
        };
        [address, 0, 0, 0]
    }
}

/// A policy's tables, at a fixed moment.
pub fn compiled(policy: &Policy, generation: u32) -> anyhow::Result<Compiled> {
    Ok(compile(policy, Clocks { unix_ns: 1 << 60, boot_ns: 1 << 40 }, generation)?)
}
