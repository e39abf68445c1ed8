//! Essential traffic (SECURITY.md lists each): allowed in its exact form and to its own destinations, where the policy has
//! it on. What is not essential after all is the policy's to decide, as any packet, and keeps this reason where no rule
//! lists it. Redirects and ICMP errors have no policy to ask.

use super::{Context, Family, Host, family::is_link_local, host::Flows, icmp_error};
use crate::{
    Reason,
    abi::{Interface, NoteKey, NoteKind, SlotFlags},
    packet::{Essential, Packet},
};

/// What essential traffic is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// This, and nothing more is asked.
    As(Reason),
    /// The policy decides; where it lists nothing, this is why.
    Policy(Reason),
}

/// How long a DHCP transaction waits for its answer, a server that gave a lease is known, and a neighbour, in seconds.
const TRANSACTION: u64 = 120;
const SERVER: u64 = 30 * 86_400;
const NEIGHBOUR: u64 = 86_400;

/// Of a frame that is neither IPv4 nor IPv6.
#[inline(always)]
pub fn below_ip<H: Host + ?Sized>(host: &H, context: &Context, packet: &Packet) -> Reason {
    let (flag, reason, to_group) = match packet.essential {
        ARP => (SlotFlags::ARP, Reason::Arp, false),
        EAPOL => (SlotFlags::EAPOL, Reason::Eapol, true),
        LACP => (SlotFlags::LACP, Reason::Lacp, true),
        STP => (SlotFlags::STP, Reason::Stp, true),
        LLDP => (SlotFlags::LLDP, Reason::Lldp, true),
        MACSEC => (SlotFlags::MACSEC, Reason::Macsec, false),
        PPPOE => (SlotFlags::PPPOE, Reason::Pppoe, false),
        _ => return Reason::EtherType,
    };
    if !context.flags.has(flag) {
        return Reason::EssentialOff;
    }
    // What these carry, or make, has to be there for them to be essential.
    let needed = match packet.essential {
        STP => Interface::SPANNING_TREE,
        MACSEC => Interface::MACSEC_ABOVE,
        PPPOE => Interface::PPPOE_ABOVE,
        _ => 0,
    };
    if needed != 0 {
        match host.interface(context.ifindex) {
            Some(interface) if interface.flags & needed != 0 => {}
            _ => return Reason::EtherType,
        }
    }
    // Inbound, a switch may answer EAPOL to our own address.
    let addressed = !to_group || packet.is(Packet::TO_GROUP) || (packet.essential == EAPOL && !context.is_outbound());
    // ARP's padding is where data would go out.
    let padded = packet.essential == ARP && context.is_outbound() && packet.message != 0;
    if packet.is(Packet::WELL_FORMED) && addressed && !padded { reason } else { Reason::EssentialMalformed }
}

/// Of an IP packet whose [`Packet::essential`] is not "no".
#[inline(always)]
pub fn settle<F: Family, H: Host + Flows<F>>(host: &mut H, context: &Context, packet: &Packet) -> Settled {
    let (flag, reason) = match packet.essential {
        ICMP_REDIRECT => return Settled::As(Reason::IcmpRedirect),
        ICMP_ERROR => {
            let on = context.flags.has(SlotFlags::ICMP_ERRORS);
            return Settled::As(if on {
                icmp_error::judge::<F, H>(host, context, packet)
            } else {
                Reason::EssentialOff
            });
        }
        ND => (SlotFlags::NEIGHBOUR_DISCOVERY, Reason::NeighbourDiscovery),
        MLD => (SlotFlags::MLD, Reason::Mld),
        // A server's side of it is nothing that every host needs.
        DHCPV4 | DHCPV6 if context.is_outbound() != to_server(packet) => return Settled::Policy(Reason::NotListed),
        DHCPV4 => (SlotFlags::DHCPV4, Reason::Dhcpv4),
        DHCPV6 => (SlotFlags::DHCPV6, Reason::Dhcpv6),
        _ => return Settled::Policy(Reason::NotListed),
    };
    if !context.flags.has(flag) {
        return Settled::Policy(Reason::EssentialOff);
    }
    let holds = packet.is(Packet::WELL_FORMED)
        && match packet.essential {
            ND => neighbour_discovery(host, context, packet),
            MLD => mld(packet),
            DHCPV4 => dhcpv4(host, context, packet),
            _ => dhcpv6(host, context, packet),
        };
    if holds { Settled::As(reason) } else { Settled::Policy(Reason::EssentialMalformed) }
}

/// RFC 4861: the hop limit proves that it came from this link. So does an address seen in one: it may be answered, though
/// nobody has told the programs which prefixes are on the link.
#[inline(always)]
fn neighbour_discovery<H: Host + ?Sized>(host: &mut H, context: &Context, packet: &Packet) -> bool {
    if packet.hop_limit != 255 {
        return false;
    }
    let now = host.jiffies();
    if context.is_outbound() {
        let first = packet.destination[0];
        return first >> 16 == 0xff02
            || is_link_local(first)
            || noted(host, &neighbour(context, packet.destination), NEIGHBOUR, now);
    }
    if packet.source[0] != 0 && !is_link_local(packet.source[0]) {
        host.keep_note(&neighbour(context, packet.source), now);
    }
    // An advertisement tells of its target, which need not be its source.
    if packet.message == NEIGHBOUR_ADVERTISEMENT && !is_link_local(packet.target[0]) {
        host.keep_note(&neighbour(context, packet.target), now);
    }
    true
}

const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

#[inline(always)]
const fn neighbour(context: &Context, address: [u32; 4]) -> NoteKey {
    NoteKey { kind: NoteKind::Neighbour as u32, ifindex: context.ifindex, value: address }
}

/// RFC 3810 section 5: hop limit 1, from a link-local address or none yet, to a group.
#[inline(always)]
fn mld(packet: &Packet) -> bool {
    let source = packet.source;
    let unspecified = source[0] | source[1] | source[2] | source[3] == 0;
    packet.hop_limit == 1 && (unspecified || is_link_local(source[0])) && packet.destination[0] >> 24 == 0xff
}

#[inline(always)]
const fn to_server(packet: &Packet) -> bool {
    matches!(packet.destination_port, 67 | 547)
}

/// A client's messages, to broadcast or to the server that gave the lease; answers to its transactions.
///
/// A server is known by an answer that was broadcast: no router passes that on, so it stands on this link. (Userspace may
/// note the server of a lease that is older than guard.)
#[inline(always)]
fn dhcpv4<H: Host + ?Sized>(host: &mut H, context: &Context, packet: &Packet) -> bool {
    let now = host.jiffies();
    let transaction = transaction(context, packet.transaction, 4);
    if context.is_outbound() {
        let server = server(context, packet.destination[0]);
        let to = packet.destination[0] == u32::MAX || noted(host, &server, SERVER, now);
        if packet.message != 1 || !to {
            return false;
        }
        host.keep_note(&transaction, now);
        return true;
    }
    if packet.message != 2 || !noted(host, &transaction, TRANSACTION, now) {
        return false;
    }
    if packet.destination[0] == u32::MAX {
        host.keep_note(&server(context, packet.source[0]), now);
    }
    true
}

#[inline(always)]
fn dhcpv6<H: Host + ?Sized>(host: &mut H, context: &Context, packet: &Packet) -> bool {
    if !is_link_local(packet.source[0]) {
        return false;
    }
    let now = host.jiffies();
    let transaction = transaction(context, packet.transaction, 6);
    if context.is_outbound() {
        // ff02::1:2
        let to = packet.destination;
        let servers = to[0] == 0xff02_0000 && to[1] == 0 && to[2] == 0 && to[3] == 0x0001_0002;
        if !servers || !matches!(packet.message, 1 | 3..=6 | 8 | 9 | 11) {
            return false;
        }
        host.keep_note(&transaction, now);
        return true;
    }
    matches!(packet.message, 2 | 7)
        && is_link_local(packet.destination[0])
        && noted(host, &transaction, TRANSACTION, now)
}

#[inline(always)]
const fn transaction(context: &Context, id: u32, version: u32) -> NoteKey {
    NoteKey { kind: NoteKind::DhcpTransaction as u32, ifindex: context.ifindex, value: [id, version, 0, 0] }
}

#[inline(always)]
const fn server(context: &Context, address: u32) -> NoteKey {
    NoteKey { kind: NoteKind::DhcpServer as u32, ifindex: context.ifindex, value: [address, 0, 0, 0] }
}

#[inline(always)]
fn noted<H: Host + ?Sized>(host: &H, key: &NoteKey, seconds: u64, now: u64) -> bool {
    match host.note(key) {
        Some(then) => now <= then || now - then <= seconds * host.hz(),
        None => false,
    }
}

const ARP: u8 = Essential::Arp as u8;
const EAPOL: u8 = Essential::Eapol as u8;
const LACP: u8 = Essential::Lacp as u8;
const STP: u8 = Essential::Stp as u8;
const LLDP: u8 = Essential::Lldp as u8;
const MACSEC: u8 = Essential::Macsec as u8;
const PPPOE: u8 = Essential::Pppoe as u8;
const ND: u8 = Essential::NeighbourDiscovery as u8;
const MLD: u8 = Essential::Mld as u8;
const DHCPV4: u8 = Essential::Dhcpv4 as u8;
const DHCPV6: u8 = Essential::Dhcpv6 as u8;
const ICMP_ERROR: u8 = Essential::IcmpError as u8;
const ICMP_REDIRECT: u8 = Essential::IcmpRedirect as u8;
