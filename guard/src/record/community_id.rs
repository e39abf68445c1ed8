//! Community ID version 1: one short hash for a flow, the same in Zeek, Suricata, Wireshark and here, whichever side
//! or direction it was seen from (<https://github.com/corelight/community-id-spec>).

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// Of one direction of a flow; the other direction gives the same.
///
/// For ICMP and ICMPv6, `source_port` is the type and `destination_port` the code of one message of the flow. For
/// protocols that the specification knows no ports of, ports are not looked at. The seed is 0.
#[must_use]
pub fn community_id(
    protocol: u8,
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    destination_port: u16,
) -> String {
    let (first, second, one_way) = match protocol {
        ICMP | ICMPV6 => match counterpart(protocol == ICMPV6, source_port) {
            Some(answer) => (source_port, answer, false),
            None => (source_port, destination_port, true),
        },
        _ => (source_port, destination_port, false),
    };
    let has_ports = matches!(protocol, ICMP | TCP | UDP | ICMPV6 | SCTP);
    let source = octets(source);
    let destination = octets(destination);
    let in_order = one_way || (&source, first) <= (&destination, second);
    let (low, high) =
        if in_order { ((&source, first), (&destination, second)) } else { ((&destination, second), (&source, first)) };

    let mut hash = Sha1::new();
    hash.update(0u16.to_be_bytes());
    hash.update(low.0);
    hash.update(high.0);
    hash.update([protocol, 0]);
    if has_ports {
        hash.update(low.1.to_be_bytes());
        hash.update(high.1.to_be_bytes());
    }
    format!("1:{}", STANDARD.encode(hash.finalize()))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The type that answers this one, for types that come in pairs.
fn counterpart(v6: bool, kind: u16) -> Option<u16> {
    const V4: [(u16, u16); 5] = [(8, 0), (13, 14), (15, 16), (10, 9), (17, 18)];
    const V6: [(u16, u16); 6] = [(128, 129), (133, 134), (135, 136), (130, 131), (139, 140), (144, 145)];
    let pairs: &[(u16, u16)] = if v6 { &V6 } else { &V4 };
    pairs.iter().find_map(|&(asks, answers)| match kind {
        _ if kind == asks => Some(answers),
        _ if kind == answers => Some(asks),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(protocol: u8, source: &str, source_port: u16, destination: &str, destination_port: u16) -> String {
        community_id(protocol, source.parse().unwrap(), source_port, destination.parse().unwrap(), destination_port)
    }

    /// Values that the specification's own baseline gives for its sample captures.
    #[test]
    fn equals_the_baseline() {
        assert_eq!(id(6, "128.232.110.120", 34855, "66.35.250.204", 80), "1:LQU9qZlK+B5F3KDmev6m5PMibrg=");
        assert_eq!(id(17, "192.168.1.52", 54585, "8.8.8.8", 53), "1:d/FP5EW3wiY1vCndhwleRRKHowQ=");
        assert_eq!(id(1, "192.168.0.89", 8, "192.168.0.1", 0), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=");
        assert_eq!(
            id(58, "fe80::200:86ff:fe05:80da", 135, "fe80::260:97ff:fe07:69ea", 0),
            "1:dGHyGvjMfljg6Bppwm3bg0LO8TY="
        );
    }

    #[test]
    fn both_directions_give_the_same() {
        for protocol in [6, 17, 132, 47] {
            assert_eq!(
                id(protocol, "192.0.2.1", 4000, "198.51.100.7", 53),
                id(protocol, "198.51.100.7", 53, "192.0.2.1", 4000)
            );
        }
        assert_eq!(id(1, "192.0.2.1", 8, "198.51.100.7", 0), id(1, "198.51.100.7", 0, "192.0.2.1", 0));
        assert_eq!(id(58, "2001:db8::1", 128, "2001:db8::2", 0), id(58, "2001:db8::2", 129, "2001:db8::1", 0));
    }

    #[test]
    fn a_message_that_has_no_answer_keeps_its_direction() {
        assert_ne!(id(1, "192.0.2.1", 3, "198.51.100.7", 1), id(1, "198.51.100.7", 3, "192.0.2.1", 1));
    }
}
