//! Ethernet: VLAN tags in the frame (IEEE 802.1Q, 802.1ad), LLC, and what a host needs below IP. A tag that the device
//! took off stands in no byte and matters to nobody here.

use super::{Bytes, Essential, Packet};
use crate::Reason;

const HEADER: u32 = 14;
const TAG: u32 = 4;
const MAX_TAGS: u32 = 2;

/// `ETH_P_IP`, `ETH_P_IPV6` (linux/if_ether.h).
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const EAPOL: u16 = 0x888e;
const SLOW: u16 = 0x8809;
const LLDP: u16 = 0x88cc;
const MACSEC: u16 = 0x88e5;
const PPPOE_DISCOVERY: u16 = 0x8863;
const PPPOE_SESSION: u16 = 0x8864;

/// Types from here on; below, a length (IEEE 802.3).
const FIRST_TYPE: u16 = 0x600;
/// What a frame without a tag is padded to, less its header.
const SHORTEST: u32 = 46;
/// Of a question or an answer for IPv4 over Ethernet.
const ARP_BYTES: u32 = 28;

/// Family and offset of the network header; `None` where it is neither IPv4 nor IPv6.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B, length: u32, packet: &mut Packet) -> Result<Option<(u8, u32)>, Reason> {
    let mut at = HEADER;
    let mut kind = bytes.u16(at - 2).ok_or(Reason::Truncated)?;
    for _ in 0..MAX_TAGS {
        if !is_tag(kind) {
            break;
        }
        kind = bytes.u16(at + 2).ok_or(Reason::Truncated)?;
        at += TAG;
    }
    packet.ether_type = kind;
    packet.network_at = at as u16;
    if length < at {
        return Err(Reason::Truncated);
    }
    match kind {
        IPV4 => Ok(Some((4, at))),
        IPV6 => Ok(Some((6, at))),
        _ => {
            let (essential, well_formed) = other(bytes, kind, at, length - at, packet).ok_or(Reason::Truncated)?;
            packet.essential = essential as u8;
            if well_formed {
                packet.flags |= Packet::WELL_FORMED;
            }
            Ok(None)
        }
    }
}

/// 802.1Q, 802.1ad, and the older double tag.
const fn is_tag(kind: u16) -> bool {
    matches!(kind, 0x8100 | 0x88a8 | 0x9100)
}

/// `rest`: bytes after the header.
#[inline(always)]
fn other<B: Bytes + ?Sized>(
    bytes: &B,
    kind: u16,
    at: u32,
    rest: u32,
    packet: &mut Packet,
) -> Option<(Essential, bool)> {
    // 01:80:c2:00:00:0x, which bridges do not pass on.
    let group = if bytes.u32(0)? == 0x0180_c200 { bytes.u16(4)? } else { u16::MAX };
    let (essential, to_group, well_formed) = match kind {
        ARP => {
            packet.message = u8::from(!is_empty(bytes, at + ARP_BYTES, rest)?);
            (Essential::Arp, false, arp(bytes, at, rest)?)
        }
        EAPOL => {
            // Version, type, length of what follows; the body may be padded to the shortest frame.
            let body = u32::from(bytes.u16(at + 2)?);
            let fits = 4 + body == rest || (4 + body < rest && rest <= SHORTEST);
            (Essential::Eapol, group == 3, fits && matches!(bytes.u8(at)?, 1..=3))
        }
        // Subtypes 1 (LACP) and 2 (marker), 110 bytes each.
        SLOW => (Essential::Lacp, group == 2, matches!(bytes.u8(at)?, 1 | 2) && rest <= 110),
        LLDP => (Essential::Lldp, matches!(group, 0 | 3 | 0xe), rest <= 1500),
        MACSEC => (Essential::Macsec, false, true),
        PPPOE_DISCOVERY | PPPOE_SESSION => (Essential::Pppoe, false, bytes.u8(at)? == 0x11),
        0..FIRST_TYPE if bytes.u16(at)? == 0x4242 => (Essential::Stp, group == 0, bpdu(bytes, kind, at, rest)?),
        _ => (Essential::No, false, false),
    };
    if to_group {
        packet.flags |= Packet::TO_GROUP;
    }
    Some((essential, well_formed))
}

/// RFC 826 for Ethernet and IPv4: a question or an answer, and no more than the frame's padding after it.
#[inline(always)]
fn arp<B: Bytes + ?Sized>(bytes: &B, at: u32, rest: u32) -> Option<bool> {
    Some(
        bytes.u32(at)? == 0x0001_0800
            && bytes.u16(at + 4)? == 0x0604
            && matches!(bytes.u16(at + 6)?, 1 | 2)
            && (ARP_BYTES..=SHORTEST).contains(&rest),
    )
}

/// Whether nothing follows, or a whole frame's padding of zeros. Others pad with what lay in memory, and are heard; what
/// leaves this host carries nothing there.
#[inline(always)]
fn is_empty<B: Bytes + ?Sized>(bytes: &B, at: u32, rest: u32) -> Option<bool> {
    if rest != SHORTEST {
        return Some(rest == ARP_BYTES);
    }
    let words = bytes.u32(at)? | bytes.u32(at + 4)? | bytes.u32(at + 8)? | bytes.u32(at + 12)?;
    Some(words == 0 && bytes.u16(at + 16)? == 0)
}

/// IEEE 802.1D, 802.1w and 802.1s: LLC (3 bytes), protocol 0, version, type; lengths by version.
#[inline(always)]
fn bpdu<B: Bytes + ?Sized>(bytes: &B, length: u16, at: u32, rest: u32) -> Option<bool> {
    let longest = match (bytes.u8(at + 5)?, bytes.u8(at + 6)?) {
        (0, 0x80) => 3 + 4,
        (0, 0) => 3 + 35,
        (2, 2) => 3 + 36,
        // Up to 64 further spanning trees of 16 bytes.
        (3 | 4, 2) => 3 + 102 + 64 * 16 + 64,
        _ => return Some(false),
    };
    let padded = if u32::from(length) > SHORTEST { u32::from(length) } else { SHORTEST };
    Some(bytes.u8(at + 2)? == 3 && bytes.u16(at + 3)? == 0 && length <= longest && rest <= padded)
}
