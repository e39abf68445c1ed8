//! Names of the essential traffic that a policy may switch (SECURITY.md says what each is).

use super::model::Essentials;

/// Reads or writes one switch.
pub type Switch = fn(&mut Essentials) -> &mut bool;

/// Every name, in the order in which `check --effective` prints them.
pub const NAMES: &[(&str, Switch)] = &[
    ("loopback", |e| &mut e.loopback),
    ("arp", |e| &mut e.arp),
    ("eapol", |e| &mut e.eapol),
    ("lacp", |e| &mut e.lacp),
    ("stp", |e| &mut e.stp),
    ("lldp", |e| &mut e.lldp),
    ("macsec", |e| &mut e.macsec),
    ("pppoe", |e| &mut e.pppoe),
    ("neighbour_discovery", |e| &mut e.neighbour_discovery),
    ("mld", |e| &mut e.mld),
    ("dhcp", |e| &mut e.dhcp),
    ("dhcpv6", |e| &mut e.dhcpv6),
    ("icmp_errors", |e| &mut e.icmp_errors),
];

/// The switch of that name.
#[must_use]
pub fn switch(name: &str) -> Option<Switch> {
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, switch)| *switch)
}
