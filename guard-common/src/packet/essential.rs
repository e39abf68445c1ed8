//! The exact form of essential traffic above IP, looked at once the headers are known: what leads here is then one way,
//! to the verifier too, and each of these long loops is walked once.

use super::{Bytes, Essential, Packet, dhcp, link_local, quoted};

/// Whether the packet has exactly the form that its protocol has.
#[inline(always)]
pub fn is_well_formed<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) -> bool {
    // None of them is ever fragmented (for neighbour discovery: RFC 6980).
    if packet.is(Packet::FRAGMENT) {
        return false;
    }
    let at = bytes.forget(u32::from(packet.transport_at));
    let rest = bytes.forget(packet.transport_bytes);
    checked(bytes, at, rest, packet).unwrap_or(false)
}

#[inline(always)]
fn checked<B: Bytes + ?Sized>(bytes: &B, at: u32, rest: u32, packet: &mut Packet) -> Option<bool> {
    const ICMP_ERROR: u32 = Essential::IcmpError as u32;
    const NEIGHBOUR_DISCOVERY: u32 = Essential::NeighbourDiscovery as u32;
    const MLD: u32 = Essential::Mld as u32;
    const DHCPV4: u32 = Essential::Dhcpv4 as u32;
    const DHCPV6: u32 = Essential::Dhcpv6 as u32;

    match bytes.forget(u32::from(packet.essential)) {
        ICMP_ERROR => Some(quoted::parse(bytes, at, rest, packet).is_some()),
        NEIGHBOUR_DISCOVERY => {
            link_local::neighbour_discovery(bytes, at, rest, bytes.u8(at)?, bytes.u8(at + 1)?, packet)
        }
        MLD => link_local::mld(bytes, at, rest, bytes.u8(at)?, bytes.u8(at + 1)?),
        // Nothing follows the datagram.
        DHCPV4 | DHCPV6 if u32::from(bytes.u16(at + 4)?) != rest => Some(false),
        DHCPV4 => Some(dhcp::v4(bytes, at + 8, rest - 8, packet.destination_port == 67, packet)),
        DHCPV6 => Some(dhcp::v6(bytes, at + 8, rest - 8, packet)),
        _ => Some(false),
    }
}
