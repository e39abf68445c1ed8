//! The exact form of what IPv6 needs on the link: neighbour discovery (RFC 4861) and multicast listener discovery
//! (RFC 2710, 3810). Anything else in them would be a way to carry data out.

use super::{Bytes, Packet, ipv6};

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;

/// More options than a router has use for.
const MAX_OPTIONS: u32 = 24;
/// More groups than a host joins at once; a report beyond is sent in parts.
const MAX_RECORDS: u32 = 80;

/// Options by message, a bit each, numbers 1-38: link-layer addresses (1, 2), prefix (3), MTU (5), intervals and home
/// agent (7, 8), nonce (14), route (24), DNS (25, 31), flags (26), portal (37), PREF64 (38).
const SOLICITED: u64 = 1 << 1 | 1 << 14;
const ADVERTISED: u64 = 1 << 2;
const BY_ROUTER: u64 =
    1 << 1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 24 | 1 << 25 | 1 << 26 | 1 << 31 | 1 << 37 | 1 << 38;

/// The hop limit and the destination are the judge's to look at.
#[inline(always)]
pub fn neighbour_discovery<B: Bytes + ?Sized>(
    bytes: &B,
    at: u32,
    rest: u32,
    kind: u8,
    code: u8,
    packet: &mut Packet,
) -> Option<bool> {
    let (header, known) = match kind {
        ROUTER_SOLICITATION => (8, SOLICITED),
        ROUTER_ADVERTISEMENT => (16, BY_ROUTER),
        NEIGHBOUR_SOLICITATION => (24, SOLICITED),
        _ => (24, ADVERTISED),
    };
    if code != 0 || rest < header {
        return Some(false);
    }
    packet.message = kind;
    if header == 24 {
        packet.target = ipv6::address(bytes, at + 8)?;
    }
    let known = u64::from(bytes.forget((known >> 32) as u32)) << 32 | u64::from(bytes.forget(known as u32));
    let end = at + rest;
    let mut at = at + header;
    for _ in 0..MAX_OPTIONS {
        at = bytes.forget(at);
        if at >= end {
            return Some(at == end);
        }
        let option = bytes.u16(at)?;
        let number = option >> 8;
        let size = u32::from(option & 0xff) * 8;
        let longest = match number {
            // Ethernet needs 8 bytes, InfiniBand 24.
            1 | 2 => 24,
            3 => 32,
            5 | 7 | 8 | 14 => 8,
            24 => 24,
            26 => 16,
            38 => 16,
            _ => 512,
        };
        let longest = bytes.forget(longest);
        if number > 38 || known >> number & 1 == 0 || size == 0 || size > longest {
            return Some(false);
        }
        at += size;
    }
    Some(false)
}

/// Lengths by version; a report's records have no auxiliary data.
#[inline(always)]
pub fn mld<B: Bytes + ?Sized>(bytes: &B, at: u32, rest: u32, kind: u8, code: u8) -> Option<bool> {
    if code != 0 {
        return Some(false);
    }
    match kind {
        130 if rest != 24 => Some(rest >= 28 && rest == 28 + u32::from(bytes.u16(at + 26)?) * 16),
        130..=132 => Some(rest == 24),
        _ => {
            let records = u32::from(bytes.u16(at + 6)?);
            let end = at + rest;
            let mut at = at + 8;
            for record in 0..MAX_RECORDS {
                at = bytes.forget(at);
                if record == records {
                    return Some(at == end);
                }
                // Type, length of auxiliary data, number of sources.
                let word = bytes.u32(at)?;
                if !(1..=6).contains(&(word >> 24)) || word >> 16 & 0xff != 0 {
                    return Some(false);
                }
                at += 20 + (word & 0xffff) * 16;
            }
            Some(false)
        }
    }
}
