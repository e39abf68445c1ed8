//! Other firewalls of this network namespace. guard never edits them; a packet passes only where all of them allow it.

use std::fs;

use serde::Serialize;

use super::netlink;

const NETLINK_NETFILTER: isize = 12;
/// Subsystem 10 (nf_tables), message 1 (get table).
const NFT_GET_TABLE: u16 = 10 << 8 | 1;
const NFTA_TABLE_NAME: u16 = 1;

/// One table that somebody else has filled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct OtherFirewall {
    /// `nftables` or `iptables-legacy`.
    pub kind: &'static str,
    /// `inet filter`, `ip nat`; untrusted text from whoever made it.
    pub table: String,
}

/// What is there. A kernel without nftables or iptables has none of these; one that cannot be asked is not told apart.
#[must_use]
pub fn others() -> Vec<OtherFirewall> {
    let mut found = Vec::new();
    // An unanswered question is no firewall found: this list informs, and decides nothing.
    let _ = netlink::dump(NETLINK_NETFILTER, NFT_GET_TABLE, &[0; 4], |_, payload| {
        let family = payload.first().map_or("?", |family| family_name(*family));
        let name = netlink::attributes(payload.get(4..).unwrap_or_default())
            .find(|(kind, _)| *kind == NFTA_TABLE_NAME)
            .map(|(_, name)| String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned());
        if let Some(name) = name {
            found.push(OtherFirewall { kind: "nftables", table: format!("{family} {name}") });
        }
    });
    for (file, family) in [("ip_tables_names", "ip"), ("ip6_tables_names", "ip6")] {
        let Ok(text) = fs::read_to_string(format!("/proc/thread-self/net/{file}")) else { continue };
        found.extend(
            text.lines().map(|table| OtherFirewall { kind: "iptables-legacy", table: format!("{family} {table}") }),
        );
    }
    found.sort_unstable();
    found
}

/// `NFPROTO_*`.
fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "?",
    }
}
