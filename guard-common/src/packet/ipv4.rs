//! IPv4 (RFC 791).

use super::{Bytes, Packet, transport};
use crate::Reason;

const SHORTEST: u32 = 20;

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// "Must be zero".
const RESERVED: u16 = 0x8000;

const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

/// Where the transport header is, and how many bytes there are from it on; `None` in a later fragment.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(
    bytes: &B,
    at: u32,
    length: u32,
    packet: &mut Packet,
) -> Result<Option<(u32, u32)>, Reason> {
    packet.family = 4;
    packet.network_at = at as u16;
    let first = bytes.u32(at).ok_or(Reason::Truncated)?;
    let second = bytes.u32(at + 4).ok_or(Reason::Truncated)?;
    let third = bytes.u32(at + 8).ok_or(Reason::Truncated)?;
    packet.source[0] = bytes.u32(at + 12).ok_or(Reason::Truncated)?;
    packet.destination[0] = bytes.u32(at + 16).ok_or(Reason::Truncated)?;
    packet.protocol = (third >> 16) as u8;
    packet.hop_limit = (third >> 24) as u8;

    let header = (first >> 24 & 0xf) * 4;
    let here = length.saturating_sub(at);
    let total = match first & 0xffff {
        // A train of segments that is too long for the field (BIG TCP, Linux 6.3).
        0 if here > 0xffff => here,
        total => total,
    };
    if first >> 28 != 4 || header < SHORTEST || total < header {
        return Err(Reason::BadIpv4);
    }
    if total > here {
        return Err(Reason::Truncated);
    }
    if header > SHORTEST {
        options(bytes, at + SHORTEST, at + header)?;
    }

    let fragment = second as u16;
    if fragment & RESERVED != 0 {
        return Err(Reason::BadIpv4);
    }
    if fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
        packet.flags |= Packet::FRAGMENT;
        packet.fragment_id = second >> 16;
        packet.fragment_protocol = packet.protocol;
        if fragment & FRAGMENT_OFFSET != 0 {
            packet.flags |= Packet::LATER;
            transport::later_fragment(u32::from(fragment & FRAGMENT_OFFSET) * 8, packet.protocol)?;
            return Ok(None);
        }
    }
    Ok(Some((at + header, total - header)))
}

/// Denies source routes, and options whose lengths cannot be.
#[inline(always)]
fn options<B: Bytes + ?Sized>(bytes: &B, mut at: u32, end: u32) -> Result<(), Reason> {
    // 40 bytes at most, and each option has at least one.
    for _ in 0..40 {
        at = bytes.forget(at);
        if at >= end {
            return Ok(());
        }
        let step = match bytes.u8(at).ok_or(Reason::Truncated)? {
            0 => return Ok(()),
            1 => 1,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(Reason::SourceRoute),
            _ => match bytes.u8(at + 1).ok_or(Reason::Truncated)? {
                0 | 1 => return Err(Reason::BadIpv4),
                size => u32::from(size),
            },
        };
        if step > end - at {
            return Err(Reason::BadIpv4);
        }
        at += step;
    }
    if at == end { Ok(()) } else { Err(Reason::BadIpv4) }
}
