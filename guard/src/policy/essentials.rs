//! Names of the essential traffic that a policy may switch (SECURITY.md says what each is).

use super::model::Essentials;

/// Reads or writes one switch.
pub type Switch = fn(&mut Essentials) -> &mut bool;

/// Every name, in the order in which `check --effective` prints them, and what passes while it is on.
pub const NAMES: &[(&str, Switch, &str)] = &[
    ("loopback", |e| &mut e.loopback, "what stays on the loopback interface"),
    ("arp", |e| &mut e.arp, "questions and answers for IPv4 over Ethernet"),
    ("eapol", |e| &mut e.eapol, "IEEE 802.1X frames (0x888e)"),
    ("lacp", |e| &mut e.lacp, "IEEE 802.1AX to the slow-protocols group address"),
    ("stp", |e| &mut e.stp, "bridge protocol data units, where a bridge of this host runs spanning tree"),
    ("lldp", |e| &mut e.lldp, "IEEE 802.1AB"),
    ("macsec", |e| &mut e.macsec, "the outer frame, where the device above it is guarded"),
    ("pppoe", |e| &mut e.pppoe, "the outer frame, where the device above it is guarded"),
    (
        "neighbour_discovery",
        |e| &mut e.neighbour_discovery,
        "ICMPv6 133-136, hop limit 255; out only to ff02::/16, fe80::/10 or a prefix on that link",
    ),
    ("mld", |e| &mut e.mld, "ICMPv6 130-132 and 143, hop limit 1, from a link-local address or ::"),
    ("dhcp", |e| &mut e.dhcp, "out udp 68 -> 67 to broadcast or the server that was learned; in the answers to it"),
    ("dhcpv6", |e| &mut e.dhcpv6, "out udp 546 -> 547 to ff02::1:2 and link-local; in the answers to it"),
    (
        "icmp_errors",
        |e| &mut e.icmp_errors,
        "ICMP 3, 11, 12 and ICMPv6 1-4 about a flow that is allowed; out only to its remote",
    ),
];

/// The switch of that name.
#[must_use]
pub fn switch(name: &str) -> Option<Switch> {
    NAMES.iter().find(|(known, ..)| *known == name).map(|(_, switch, _)| *switch)
}
