//! The referee's view of essential traffic, from SECURITY.md's table: each form, and where it may go.

use std::net::IpAddr;

use guard::policy::model::Policy;
use guard_common::{Direction, Reason, abi::Interface};

use super::{
    DEVICES,
    packet::{Below, Body, Ip, Packet},
};

pub enum Essential {
    /// And nothing more is asked.
    Is(Reason),
    /// The policy is asked; where it lists nothing, this is why.
    IsNot(Reason),
}

/// What the link has told, and when (milliseconds).
#[derive(Default)]
pub struct Notes(Vec<(Note, usize, u64)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    Transaction { id: u32, ipv6: bool },
    Server(IpAddr),
    Neighbour(IpAddr),
}

impl Notes {
    fn keep(&mut self, note: Note, device: usize, now: u64) {
        self.0.push((note, device, now));
    }

    fn has(&self, note: Note, device: usize, now: u64, seconds: u64) -> bool {
        self.0.iter().any(|known| known.0 == note && known.1 == device && now - known.2 <= seconds * 1000)
    }
}

const DAY: u64 = 86_400;

pub fn below(policy: &Policy, device: usize, what: Below, form: bool, to_group: bool, inbound: bool) -> Reason {
    let on = &policy.essentials;
    let has = |flag: u32| DEVICES[device].2.is_some_and(|flags| flags & flag != 0);
    let (on, there, addressed, reason) = match what {
        Below::Arp => (on.arp, true, true, Reason::Arp),
        Below::Eapol => (on.eapol, true, to_group || inbound, Reason::Eapol),
        Below::Lacp => (on.lacp, true, to_group, Reason::Lacp),
        Below::Stp => (on.stp, has(Interface::SPANNING_TREE), to_group, Reason::Stp),
        Below::Lldp => (on.lldp, true, to_group, Reason::Lldp),
        Below::Macsec => (on.macsec, has(Interface::MACSEC_ABOVE), true, Reason::Macsec),
        Below::Pppoe => (on.pppoe, has(Interface::PPPOE_ABOVE), true, Reason::Pppoe),
        Below::Other => return Reason::EtherType,
    };
    match (on, there, form && addressed) {
        (false, ..) => Reason::EssentialOff,
        (_, false, _) => Reason::EtherType,
        (.., false) => Reason::EssentialMalformed,
        _ => reason,
    }
}

/// `now`: milliseconds.
pub fn of(policy: &Policy, packet: &Packet, ip: &Ip, now: u64, notes: &mut Notes) -> Essential {
    let outbound = packet.direction == Direction::Outbound;
    let on = &policy.essentials;
    let (on, reason, holds) = match ip.body {
        Body::Redirect => return Essential::Is(Reason::IcmpRedirect),
        Body::NeighbourDiscovery { form, hop_limit, advertised } => {
            let right = on.neighbour_discovery && form && hop_limit == 255;
            (on.neighbour_discovery, Reason::NeighbourDiscovery, right && neighbour(packet, ip, advertised, now, notes))
        }
        Body::Mld { form, hop_limit } => {
            let from = is_on_link(ip.source) || ip.source.is_unspecified();
            (on.mld, Reason::Mld, form && hop_limit == 1 && from && ip.destination.is_multicast())
        }
        Body::Dhcp { form, message, transaction } => {
            let to_server = matches!(ip.ports.1, 67 | 547);
            if to_server != outbound {
                return Essential::IsNot(Reason::NotListed);
            }
            if ip.source.is_ipv4() {
                (on.dhcp, Reason::Dhcpv4, on.dhcp && form && dhcp(packet, ip, transaction, now, notes))
            } else {
                let right = on.dhcpv6 && form && is_on_link(ip.source);
                (on.dhcpv6, Reason::Dhcpv6, right && dhcpv6(packet, ip, message, transaction, now, notes))
            }
        }
        _ => return Essential::IsNot(Reason::NotListed),
    };
    match (on, holds) {
        (false, _) => Essential::IsNot(Reason::EssentialOff),
        (true, false) => Essential::IsNot(Reason::EssentialMalformed),
        (true, true) => Essential::Is(reason),
    }
}

fn is_on_link(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn neighbour(packet: &Packet, ip: &Ip, advertised: Option<IpAddr>, now: u64, notes: &mut Notes) -> bool {
    if packet.direction == Direction::Outbound {
        let to_link = matches!(ip.destination, IpAddr::V6(to) if to.segments()[0] == 0xff02);
        return to_link
            || is_on_link(ip.destination)
            || notes.has(Note::Neighbour(ip.destination), packet.device, now, DAY);
    }
    for address in [Some(ip.source), advertised].into_iter().flatten() {
        if !address.is_unspecified() && !is_on_link(address) {
            notes.keep(Note::Neighbour(address), packet.device, now);
        }
    }
    true
}

fn dhcp(packet: &Packet, ip: &Ip, id: u32, now: u64, notes: &mut Notes) -> bool {
    let broadcast = matches!(ip.destination, IpAddr::V4(to) if to.is_broadcast());
    let transaction = Note::Transaction { id, ipv6: false };
    if packet.direction == Direction::Outbound {
        let may = broadcast || notes.has(Note::Server(ip.destination), packet.device, now, 30 * DAY);
        if may {
            notes.keep(transaction, packet.device, now);
        }
        return may;
    }
    let asked = notes.has(transaction, packet.device, now, 120);
    if asked && broadcast {
        notes.keep(Note::Server(ip.source), packet.device, now);
    }
    asked
}

fn dhcpv6(packet: &Packet, ip: &Ip, message: u8, id: u32, now: u64, notes: &mut Notes) -> bool {
    let transaction = Note::Transaction { id, ipv6: true };
    if packet.direction == Direction::Outbound {
        let servers = ip.destination == "ff02::1:2".parse::<IpAddr>().expect("an address");
        // Solicit, request, confirm, renew, rebind, release, decline, information-request.
        let may = servers && [1, 3, 4, 5, 6, 8, 9, 11].contains(&message);
        if may {
            notes.keep(transaction, packet.device, now);
        }
        return may;
    }
    // Advertise, reply.
    [2, 7].contains(&message) && is_on_link(ip.destination) && notes.has(transaction, packet.device, now, 120)
}
