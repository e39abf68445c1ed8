//! IPv6 and its extension headers (RFC 8200).

use super::{Bytes, Packet, bytes::LIMIT, transport};
use crate::Reason;

const HEADER: u32 = 40;
/// Longer chains are refused. The kernels look further, and no sender of good will goes there.
const MAX_EXTENSIONS: u32 = 8;

pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const DESTINATION_OPTIONS: u8 = 60;

/// As [`super::ipv4::parse`].
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(
    bytes: &B,
    at: u32,
    length: u32,
    packet: &mut Packet,
) -> Result<Option<(u32, u32)>, Reason> {
    packet.family = 6;
    packet.network_at = at as u16;
    let first = bytes.u32(at).ok_or(Reason::Truncated)?;
    let second = bytes.u32(at + 4).ok_or(Reason::Truncated)?;
    packet.source = address(bytes, at + 8).ok_or(Reason::Truncated)?;
    packet.destination = address(bytes, at + 24).ok_or(Reason::Truncated)?;
    packet.protocol = (second >> 8) as u8;
    packet.hop_limit = second as u8;
    if first >> 28 != 6 {
        return Err(Reason::BadIpv6);
    }
    let here = length.saturating_sub(at + HEADER);
    let payload = match second >> 16 {
        // A train of segments that is too long for the field (BIG TCP, Linux 5.19).
        0 if here > 0xffff => here,
        payload => payload,
    };
    if payload > here {
        return Err(Reason::Truncated);
    }
    extensions(bytes, at + HEADER, at + HEADER + payload, packet)
}

/// Follows the chain to the upper layer's header. `end`: where the payload ends.
#[inline(always)]
fn extensions<B: Bytes + ?Sized>(
    bytes: &B,
    start: u32,
    end: u32,
    packet: &mut Packet,
) -> Result<Option<(u32, u32)>, Reason> {
    let mut at = start;
    let mut next = packet.protocol;
    for _ in 0..=MAX_EXTENSIONS {
        at = bytes.forget(at);
        if !is_extension(next) {
            packet.protocol = next;
            return Ok(Some((at, end.saturating_sub(at))));
        }
        if next == ROUTING {
            return Err(Reason::SourceRoute);
        }
        if end.saturating_sub(at) < 8 || at >= LIMIT {
            return Err(short(packet));
        }
        let word = bytes.u32(at).ok_or(Reason::Truncated)?;
        let size = match next {
            // Only right after the fixed header (RFC 8200 section 4.1).
            HOP_BY_HOP if at != start => return Err(Reason::ExtensionChain),
            FRAGMENT => {
                if packet.is(Packet::FRAGMENT) {
                    return Err(Reason::ExtensionChain);
                }
                let offset = word & 0xfff8;
                // Without either it is whole (RFC 6946).
                if offset != 0 || word & 1 != 0 {
                    packet.flags |= Packet::FRAGMENT;
                    packet.fragment_id = bytes.u32(at + 4).ok_or(Reason::Truncated)?;
                    packet.fragment_protocol = (word >> 24) as u8;
                    if offset != 0 {
                        packet.flags |= Packet::LATER;
                        packet.protocol = (word >> 24) as u8;
                        transport::later_fragment(offset, packet.protocol)?;
                        return Ok(None);
                    }
                }
                8
            }
            // Counts 4 bytes, less 2 of them (RFC 4302 section 2.2).
            AUTHENTICATION => ((word >> 16 & 0xff) + 2) * 4,
            _ => ((word >> 16 & 0xff) + 1) * 8,
        };
        if size > end - at {
            return Err(short(packet));
        }
        next = (word >> 24) as u8;
        at += size;
    }
    Err(Reason::ExtensionChain)
}

/// A chain that does not end in this packet: of a first fragment, RFC 7112 forbids it.
#[inline(always)]
const fn short(packet: &Packet) -> Reason {
    if packet.is(Packet::FRAGMENT) { Reason::FragmentTiny } else { Reason::ExtensionChain }
}

/// Mobility, HIP and Shim6 are left as protocols of their own: a policy allows them by number, or not.
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

#[inline(always)]
pub fn address<B: Bytes + ?Sized>(bytes: &B, at: u32) -> Option<[u32; 4]> {
    Some([bytes.u32(at)?, bytes.u32(at + 4)?, bytes.u32(at + 8)?, bytes.u32(at + 12)?])
}
