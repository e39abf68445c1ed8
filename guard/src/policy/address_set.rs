//! Set arithmetic on [`AddressSet`]: sorted, disjoint, merged ranges of each family.

use std::net::IpAddr;

use super::model::AddressSet;

/// What both families' addresses can do.
trait Number: Copy + Ord {
    fn next(self) -> Option<Self>;
    fn before(self) -> Option<Self>;
}

macro_rules! number {
    ($type:ty) => {
        impl Number for $type {
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
            fn before(self) -> Option<Self> {
                self.checked_sub(1)
            }
        }
    };
}

number!(u32);
number!(u128);

impl AddressSet {
    /// Every address of both families.
    #[must_use]
    pub fn any() -> Self {
        Self { v4: vec![(0, u32::MAX)], v6: vec![(0, u128::MAX)] }
    }

    /// From inclusive ranges in any order, overlapping or not.
    #[must_use]
    pub fn from_ranges(mut v4: Vec<(u32, u32)>, mut v6: Vec<(u128, u128)>) -> Self {
        normalise(&mut v4);
        normalise(&mut v6);
        Self { v4, v6 }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => holds(&self.v4, u32::from(address)),
            IpAddr::V6(address) => holds(&self.v6, u128::from(address)),
        }
    }

    /// Everything that is in one of them.
    #[must_use]
    pub fn union<'a>(sets: impl IntoIterator<Item = &'a Self>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for set in sets {
            v4.extend_from_slice(&set.v4);
            v6.extend_from_slice(&set.v6);
        }
        Self::from_ranges(v4, v6)
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self { v4: subtract(&self.v4, &other.v4), v6: subtract(&self.v6, &other.v6) }
    }

    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        inside(&other.v4, &self.v4) && inside(&other.v6, &self.v6)
    }

    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        touch(&self.v4, &other.v4) || touch(&self.v6, &other.v6)
    }
}

fn normalise<N: Number>(ranges: &mut Vec<(N, N)>) {
    // Published lists are mostly sorted already; then this is one pass.
    if !ranges.is_sorted() {
        ranges.sort_unstable();
    }
    let mut kept = 0;
    for at in 0..ranges.len() {
        let (first, last) = ranges[at];
        if kept > 0 {
            let (_, end) = &mut ranges[kept - 1];
            if end.next().is_none_or(|next| first <= next) {
                *end = (*end).max(last);
                continue;
            }
        }
        ranges[kept] = (first, last);
        kept += 1;
    }
    ranges.truncate(kept);
}

fn holds<N: Number>(ranges: &[(N, N)], value: N) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= value);
    after > 0 && value <= ranges[after - 1].1
}

fn subtract<N: Number>(from: &[(N, N)], what: &[(N, N)]) -> Vec<(N, N)> {
    let mut left = Vec::new();
    let mut at = 0;
    for &(mut first, last) in from {
        while at < what.len() && what[at].1 < first {
            at += 1;
        }
        let mut next = at;
        let mut gone = false;
        while next < what.len() && what[next].0 <= last {
            let (hole, hole_end) = what[next];
            if let Some(end) = hole.before().filter(|end| hole > first && *end >= first) {
                left.push((first, end));
            }
            match hole_end.next() {
                Some(after) if after <= last => first = first.max(after),
                _ => {
                    gone = true;
                    break;
                }
            }
            next += 1;
        }
        if !gone && first <= last {
            left.push((first, last));
        }
    }
    left
}

/// Every range of `small` lies in one of `large`.
fn inside<N: Number>(small: &[(N, N)], large: &[(N, N)]) -> bool {
    small.iter().all(|(first, last)| {
        let after = large.partition_point(|(start, _)| start <= first);
        after > 0 && *last <= large[after - 1].1
    })
}

fn touch<N: Number>(a: &[(N, N)], b: &[(N, N)]) -> bool {
    let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    few.iter().any(|(first, last)| {
        let after = many.partition_point(|(start, _)| start <= last);
        after > 0 && many[after - 1].1 >= *first
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Vec<(u32, u32)>> {
        prop::collection::vec((0u32..64, 0u32..16).prop_map(|(first, length)| (first, first + length)), 0..8)
    }

    fn has(ranges: &[(u32, u32)], value: u32) -> bool {
        ranges.iter().any(|(first, last)| (*first..=*last).contains(&value))
    }

    proptest! {
        #[test]
        fn sets_are_what_their_addresses_say(a in bytes(), b in bytes()) {
            let (set_a, set_b) = (AddressSet::from_ranges(a.clone(), vec![]), AddressSet::from_ranges(b.clone(), vec![]));
            prop_assert!(set_a.v4.windows(2).all(|w| w[0].1 + 1 < w[1].0));
            let (without, union) = (set_a.without(&set_b), AddressSet::union([&set_a, &set_b]));
            let (mut covers, mut meets) = (true, false);
            for value in 0..90 {
                let (in_a, in_b) = (has(&a, value), has(&b, value));
                prop_assert_eq!(set_a.contains(IpAddr::V4(value.into())), in_a);
                prop_assert_eq!(has(&without.v4, value), in_a && !in_b);
                prop_assert_eq!(has(&union.v4, value), in_a || in_b);
                covers &= !in_b || in_a;
                meets |= in_a && in_b;
            }
            prop_assert_eq!(set_a.covers(&set_b), covers);
            prop_assert_eq!(set_a.meets(&set_b), meets);
        }
    }

    #[test]
    fn the_last_addresses_do_not_overflow() {
        let all = AddressSet::any();
        let last = AddressSet::from_ranges(vec![(u32::MAX, u32::MAX)], vec![(u128::MAX, u128::MAX)]);
        assert_eq!(all.without(&last).v4, [(0, u32::MAX - 1)]);
        assert!(all.without(&all).is_empty());
        assert!(all.covers(&last));
    }
}
