//! Rules of nftables or iptables that change where this host's own packets go (nat, at the output hook): there the socket
//! layer would judge another destination than the wire.
//!
//! Only those count that may touch a destination outside. What Docker, Podman and the CNI's port mapping install there
//! looks at this host's own addresses alone (`addrtype --dst-type LOCAL`), whose way crosses no guarded interface, so that
//! the socket layer lets it pass anyhow. Whatever is not understood counts.

mod legacy;
mod nft;

/// `RTN_LOCAL` (linux/rtnetlink.h).
const LOCAL: u32 = 2;

/// The first chain found whose rules may send this host's packets to another destination outside than its programs asked
/// for, in words; untrusted text. A kernel that has neither nftables nor iptables has no such rules.
#[must_use]
pub fn of_own_packets() -> Option<String> {
    nft::translates().or_else(legacy::translates)
}

/// The data of iptables' `addrtype` match (linux/netfilter/xt_addrtype.h): whether it holds for nothing but destinations
/// that are this host's own.
fn only_local(revision: u32, data: &[u8]) -> bool {
    let short = |at| Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let long = |at| Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?));
    let inverted = match revision {
        0 => long(8).is_none_or(|inverted| inverted != 0),
        // XT_ADDRTYPE_INVERT_DEST
        1 => long(4).is_none_or(|flags| flags & 2 != 0),
        _ => true,
    };
    !inverted && short(2) == Some(1 << LOCAL)
}

/// Targets of iptables that leave the destination alone.
fn is_harmless_target(name: &str) -> bool {
    matches!(
        name,
        "ACCEPT" | "RETURN" | "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TRACE" | "SNAT" | "MASQUERADE" | "CLASSIFY"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_type_is_local_or_it_is_not() {
        let data = |source: u16, dest: u16, flags: u32, more: u32| {
            [&source.to_ne_bytes()[..], &dest.to_ne_bytes(), &flags.to_ne_bytes(), &more.to_ne_bytes()].concat()
        };
        assert!(only_local(1, &data(0, 4, 0, 0)));
        assert!(only_local(1, &data(4, 4, 1, 0)), "only more of the source is asked");
        assert!(!only_local(1, &data(0, 4, 2, 0)), "inverted");
        assert!(!only_local(1, &data(0, 6, 0, 0)), "unicast, too");
        assert!(!only_local(1, &data(4, 0, 0, 0)), "the source");
        assert!(only_local(0, &data(0, 4, 0, 0)));
        assert!(!only_local(0, &data(0, 4, 0, 1)));
        assert!(!only_local(2, &data(0, 4, 0, 0)));
        assert!(!only_local(1, &[]));
        assert!(!only_local(0, &data(0, 4, 0, 0)[..8]));
    }
}
