//! The exact form of a DHCP client's messages and of the answers (RFC 2131, 2132, 8415): known options only, and nothing
//! after them. Who may send which to whom is the judge's to say.

use super::{Bytes, Packet};

const FIXED: u32 = 236;
const COOKIE: u32 = 0x6382_5363;
const END: u8 = 255;
const MAX_OPTIONS: u32 = 48;
/// What is left to fill up a message to BOOTP's 300 bytes, and to the 548 that some clients always send.
const MAX_PADDING: u32 = 312;

/// Numbers of a client's options, a bit each, 0-63, 64-127, 128-191: lease, message, server and request (50-57), classes
/// and identifiers (60, 61, 77, 93, 94, 97, 124, 125), names (12, 81), rapid commit (80), and a few that say what the
/// client can (116, 118, 145, 161).
const FROM_CLIENT: [u64; 3] = [
    1 << 12 | 1 << 50 | 1 << 51 | 1 << 53 | 1 << 54 | 1 << 55 | 1 << 56 | 1 << 57 | 1 << 60 | 1 << 61,
    1 << (77 - 64)
        | 1 << (80 - 64)
        | 1 << (81 - 64)
        | 1 << (93 - 64)
        | 1 << (94 - 64)
        | 1 << (97 - 64)
        | 1 << (116 - 64)
        | 1 << (118 - 64)
        | 1 << (124 - 64)
        | 1 << (125 - 64),
    1 << (145 - 128) | 1 << (161 - 128),
];

/// `at`, `length`: of the UDP payload.
#[inline(always)]
pub fn v4<B: Bytes + ?Sized>(bytes: &B, at: u32, length: u32, to_server: bool, packet: &mut Packet) -> bool {
    v4_checked(bytes, at, length, to_server, packet).unwrap_or(false)
}

#[inline(always)]
fn v4_checked<B: Bytes + ?Sized>(
    bytes: &B,
    at: u32,
    length: u32,
    to_server: bool,
    packet: &mut Packet,
) -> Option<bool> {
    // Longer than a frame: no client has asked for it.
    if !(FIXED + 5..=1472).contains(&length) {
        return Some(false);
    }
    packet.message = bytes.u8(at)?;
    packet.transaction = bytes.u32(at + 4)?;
    if packet.message != (if to_server { 1 } else { 2 })
        || bytes.u8(at + 2)? > 16
        || bytes.u32(at + FIXED)? != COOKIE
        || (to_server && !zeros(bytes, at + 44, 192)?)
    {
        return Some(false);
    }
    let end = at + length;
    let mut at = at + FIXED + 4;
    for _ in 0..MAX_OPTIONS {
        at = bytes.forget(at);
        if at >= end {
            return Some(false);
        }
        let number = bytes.u8(at)?;
        if number == END {
            return zeros(bytes, at + 1, end - at - 1);
        }
        if number == 0 {
            at += 1;
            continue;
        }
        let set = match number >> 6 {
            0 => FROM_CLIENT[0],
            1 => FROM_CLIENT[1],
            2 => FROM_CLIENT[2],
            _ => 0,
        };
        if to_server && set >> (number & 63) & 1 == 0 {
            return Some(false);
        }
        at += 2 + u32::from(bytes.u8(at + 1)?);
    }
    Some(false)
}

/// Whether `length` bytes are zero: the fields for a server's name and file, which clients leave empty, and padding.
#[inline(always)]
fn zeros<B: Bytes + ?Sized>(bytes: &B, at: u32, length: u32) -> Option<bool> {
    if length > MAX_PADDING {
        return Some(false);
    }
    let end = at + length;
    let mut at = at;
    for _ in 0..MAX_PADDING / 4 + 4 {
        at = bytes.forget(at);
        if at >= end {
            return Some(true);
        }
        if at + 4 <= end {
            if bytes.u32(at)? != 0 {
                return Some(false);
            }
            at += 4;
        } else {
            if bytes.u8(at)? != 0 {
                return Some(false);
            }
            at += 1;
        }
    }
    Some(false)
}

/// The highest option that clients and servers exchange; all numbers up to it are assigned.
const HIGHEST_V6: u32 = 144;

/// Types: a client's 1, 3-6, 8, 9, 11; answers 2 and 7. (Relays and reconfiguration are not for a host's client.)
#[inline(always)]
pub fn v6<B: Bytes + ?Sized>(bytes: &B, at: u32, length: u32, packet: &mut Packet) -> bool {
    v6_checked(bytes, at, length, packet).unwrap_or(false)
}

#[inline(always)]
fn v6_checked<B: Bytes + ?Sized>(bytes: &B, at: u32, length: u32, packet: &mut Packet) -> Option<bool> {
    if !(4..=1452).contains(&length) {
        return Some(false);
    }
    let word = bytes.u32(at)?;
    packet.message = (word >> 24) as u8;
    packet.transaction = word & 0x00ff_ffff;
    let end = at + length;
    let mut at = at + 4;
    for _ in 0..MAX_OPTIONS {
        at = bytes.forget(at);
        if at >= end {
            return Some(at == end);
        }
        let option = bytes.u32(at)?;
        if option >> 16 == 0 || option >> 16 > HIGHEST_V6 {
            return Some(false);
        }
        at += 4 + (option & 0xffff);
    }
    Some(false)
}
