//! Destinations whose way crosses no guarded interface: there the socket layer leaves every verdict to others, so that
//! a host and its containers can talk.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, Ipv6Addr},
};

use guard_common::abi;
use ipnet::{Ipv4Subnets, Ipv6Subnets};

use super::{KernelError, interfaces::Device, sys::LpmKey};
use crate::host::netlink::{attributes, dump, number};

/// Prefixes of both families, for the programs' tries: addresses in network order, each with what it is near by
/// ([`abi::Near`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Near {
    pub v4: BTreeMap<LpmKey<u32>, u8>,
    pub v6: BTreeMap<LpmKey<[u32; 4]>, u8>,
}

/// Entries that the programs' tries have room for.
pub const MOST: usize = 16_384;

/// How the wire layer stands to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    Guarded,
    /// Under `container_host: guard`.
    HostSide,
    No,
}

/// Reads this namespace's routes. `judged` of an interface; `None`: not known yet.
pub fn near(devices: &HashMap<u32, Device>, judged: &dyn Fn(u32) -> Option<Judged>) -> Result<Near, KernelError> {
    let far = |index: u32| crosses(devices, &|index| judged(index).map(|judged| judged == Judged::Guarded), index, 8);
    let far_or_members =
        |index: u32| crosses(devices, &|index| judged(index).map(|judged| judged != Judged::No), index, 8);
    let (mut v4, mut v6) = (Routes::default(), Routes::default());
    let (mut always_v4, mut always_v6) = (Routes::default(), Routes::default());
    for (family, routes, always) in
        [(libc::AF_INET, &mut v4, &mut always_v4), (libc::AF_INET6, &mut v6, &mut always_v6)]
    {
        let mut body = [0; 12];
        body[0] = family as u8;
        dump(ROUTE, GET_ROUTE, &body, |_, payload| {
            // A route that cannot be read is one that is not near: it is left out, and what lies in it is judged.
            let _ = routes.add(payload, family, &far);
            let _ = always.add(payload, family, &far_or_members);
        })?;
    }
    let mut near = Near::default();
    // What is near always lies within what is near at least without members: the longest prefix says.
    for (routes, how) in [(&v4, abi::Near::MEMBERS), (&always_v4, abi::Near::ALWAYS)] {
        for (first, last) in routes.near(u128::from(u32::MAX)) {
            for net in Ipv4Subnets::new(Ipv4Addr::from(first as u32), Ipv4Addr::from(last as u32), 0) {
                let address = u32::from_ne_bytes(net.network().octets());
                near.v4.insert(LpmKey { bits: net.prefix_len().into(), address }, how);
            }
        }
    }
    for (routes, how) in [(&v6, abi::Near::MEMBERS), (&always_v6, abi::Near::ALWAYS)] {
        for (first, last) in routes.near(u128::MAX) {
            for net in Ipv6Subnets::new(Ipv6Addr::from(first), Ipv6Addr::from(last), 0) {
                let octets = net.network().octets();
                let mut address = [0; 4];
                for (word, octets) in address.iter_mut().zip(octets.as_chunks().0) {
                    *word = u32::from_ne_bytes(*octets);
                }
                near.v6.insert(LpmKey { bits: net.prefix_len().into(), address }, how);
            }
        }
    }
    // More than fits: what is left out is judged, which may refuse what only stays among this host and its containers.
    while near.v4.len() > MOST {
        near.v4.pop_last();
    }
    while near.v6.len() > MOST {
        near.v6.pop_last();
    }
    Ok(near)
}

/// Whether frames sent there may leave by a guarded interface, or by one that is not known.
fn crosses(devices: &HashMap<u32, Device>, guarded: &dyn Fn(u32) -> Option<bool>, index: u32, depth: u32) -> bool {
    let Some(device) = devices.get(&index) else { return true };
    if depth == 0 || guarded(index) != Some(false) {
        return true;
    }
    let below = device.lower != 0 && !device.lower_elsewhere && device.kind != "veth";
    device.kind == "openvswitch"
        || (below && crosses(devices, guarded, device.lower, depth - 1))
        || devices.values().any(|port| port.master == index && guarded(port.index) != Some(false))
}

const ROUTE: isize = 0;
const GET_ROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const TABLE_LOCAL: u32 = 255;
const TABLE_MAIN: u32 = 254;
const TABLE_DEFAULT: u32 = 253;
const TYPE_LOCAL: u8 = 2;
const RTM_F_CLONED: u32 = 0x200;

/// Prefixes (first address, length) and whether each is near.
#[derive(Debug, Default)]
struct Routes {
    /// First and last address, the wider first: (first, Reverse(last)).
    prefixes: BTreeMap<(u128, std::cmp::Reverse<u128>), bool>,
}

impl Routes {
    /// `None`: malformed.
    fn add(&mut self, payload: &[u8], family: i32, far: &dyn Fn(u32) -> bool) -> Option<()> {
        let (bits, kind) = (u32::from(*payload.get(1)?), *payload.get(7)?);
        if number(payload, 8)? & RTM_F_CLONED != 0 {
            return Some(());
        }
        let width = if family == libc::AF_INET { 32 } else { 128 };
        let mut first = 0_u128;
        let mut table = u32::from(*payload.get(4)?);
        let mut interfaces = Vec::new();
        for (attribute, value) in attributes(payload.get(12..)?) {
            match attribute {
                RTA_DST => {
                    first = match <[u8; 16]>::try_from(value) {
                        Ok(octets) => u128::from_be_bytes(octets),
                        Err(_) => u32::from_be_bytes(value.try_into().ok()?).into(),
                    }
                }
                RTA_OIF => interfaces.push(number(value, 0)?),
                RTA_TABLE => table = number(value, 0)?,
                RTA_MULTIPATH => {
                    let mut hops = value;
                    while hops.len() >= 8 {
                        let length = usize::from(u16::from_ne_bytes([hops[0], hops[1]])).max(8);
                        interfaces.push(number(hops, 4)?);
                        hops = hops.get(length.div_ceil(4) * 4..).unwrap_or_default();
                    }
                }
                _ => {}
            }
        }
        let host = if bits >= width { 0 } else { u128::MAX >> (128 - (width - bits)) };
        let last = first | host;
        let stays = table == TABLE_LOCAL && kind == TYPE_LOCAL;
        // Other tables are asked only for what some rule picks: they can make a destination far, never near.
        let main = matches!(table, TABLE_LOCAL | TABLE_MAIN | TABLE_DEFAULT);
        let near = stays || (main && !interfaces.is_empty() && !interfaces.iter().any(|index| far(*index)));
        // The local table is asked first.
        self.prefixes
            .entry((first, std::cmp::Reverse(last)))
            .and_modify(|known| *known = stays || (*known && near))
            .or_insert(near);
        Some(())
    }

    /// Disjoint ranges of which the longest prefix is near.
    fn near(&self, end: u128) -> Vec<(u128, u128)> {
        let mut ranges: Vec<(u128, u128)> = Vec::new();
        let mut emit = |first: u128, last: u128| match ranges.last_mut() {
            Some(before) if before.1.checked_add(1) == Some(first) => before.1 = last,
            _ => ranges.push((first, last)),
        };
        // Prefixes that hold the place that the sweep is at, the narrowest last.
        let mut open: Vec<(u128, bool)> = Vec::new();
        let mut at = 0_u128;
        for ((first, std::cmp::Reverse(last)), near) in &self.prefixes {
            while let Some((ends, is_near)) = open.last().copied()
                && ends < *first
            {
                if is_near && at <= ends {
                    emit(at, ends);
                }
                at = at.max(ends.saturating_add(1));
                open.pop();
            }
            if open.last().is_some_and(|(_, is_near)| *is_near) && at < *first {
                emit(at, first - 1);
            }
            at = at.max(*first);
            open.push((*last, *near));
        }
        while let Some((ends, is_near)) = open.pop() {
            if at > ends {
                continue;
            }
            if is_near {
                emit(at, ends);
            }
            if ends >= end {
                break;
            }
            at = ends + 1;
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(prefixes: &[(&str, bool)]) -> Routes {
        let mut routes = Routes::default();
        for (net, near) in prefixes {
            let net: ipnet::Ipv4Net = net.parse().unwrap();
            let range = |address: Ipv4Addr| u128::from(u32::from(address));
            routes.prefixes.insert((range(net.network()), std::cmp::Reverse(range(net.broadcast()))), *near);
        }
        routes
    }

    fn near(prefixes: &[(&str, bool)]) -> Vec<String> {
        let ranges = routes(prefixes).near(u128::from(u32::MAX));
        ranges
            .iter()
            .flat_map(|(first, last)| Ipv4Subnets::new((*first as u32).into(), (*last as u32).into(), 0))
            .map(|net| net.to_string())
            .collect()
    }

    #[test]
    fn the_longest_prefix_says() {
        assert_eq!(near(&[]), [""; 0]);
        assert_eq!(near(&[("0.0.0.0/0", false), ("192.0.2.0/24", true)]), ["192.0.2.0/24"]);
        assert_eq!(near(&[("192.0.2.0/24", true), ("192.0.2.128/25", false)]), ["192.0.2.0/25"]);
        assert_eq!(
            near(&[("192.0.2.0/24", true), ("192.0.2.64/26", false), ("192.0.2.64/32", true)]),
            ["192.0.2.0/26", "192.0.2.64/32", "192.0.2.128/25"]
        );
        assert_eq!(near(&[("0.0.0.0/0", true)]), ["0.0.0.0/0"]);
        assert_eq!(near(&[("0.0.0.0/0", true), ("255.255.255.255/32", false)]).len(), 32);
    }

    #[test]
    fn a_bridge_is_far_where_a_port_is_guarded() {
        let device = |index, kind: &str, master| Device { index, kind: kind.to_owned(), master, ..Device::default() };
        let devices: HashMap<u32, Device> =
            [device(2, "", 3), device(3, "bridge", 0), device(4, "bridge", 0), device(5, "veth", 4)]
                .into_iter()
                .map(|device| (device.index, device))
                .collect();
        let guarded = |index: u32| Some(index == 2);
        assert!(crosses(&devices, &guarded, 3, 8));
        assert!(!crosses(&devices, &guarded, 4, 8));
        assert!(crosses(&devices, &guarded, 9, 8), "unknown");
    }
}
