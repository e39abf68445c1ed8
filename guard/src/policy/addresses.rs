//! One address or network, as written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// What is wrong with a word that should be an address, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadAddress {
    pub code: &'static str,
    pub message: String,
    pub help: String,
}

fn bad(code: &'static str, message: impl Into<String>, help: impl Into<String>) -> BadAddress {
    BadAddress { code, message: message.into(), help: help.into() }
}

/// `192.0.2.1`, `192.0.2.0/24` and their like of IPv6.
pub fn parse(text: &str) -> Result<IpNet, BadAddress> {
    let Some((address, length)) = text.split_once('/') else {
        return address_of(text, text).map(IpNet::from);
    };
    let address = address_of(address, text)?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let net = match length.parse::<u8>() {
        Ok(number) if number <= bits && number.to_string() == length => IpNet::new(address, number),
        _ => {
            return Err(match as_mask(address, length) {
                Some(net) => bad("netmask", format!("`{text}` has a netmask"), format!("write {net}")),
                None => bad(
                    "bad_prefix",
                    format!("`/{length}` is not a prefix length of {}", family(address)),
                    format!("write a number from 0 to {bits} after the slash"),
                ),
            });
        }
    };
    let net = net.map_err(|_| bad("bad_prefix", format!("`{text}` is not a network"), "write ADDRESS/LENGTH"))?;
    if net.trunc() != net {
        return Err(bad(
            "host_bits",
            format!("`{text}` has host bits set"),
            format!("write {} for the network, or {address} for the one address", net.trunc()),
        ));
    }
    Ok(net)
}

fn address_of(text: &str, whole: &str) -> Result<IpAddr, BadAddress> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
            Some(v4) => Err(bad(
                "mapped_address",
                format!("`{whole}` is an IPv4 address in IPv6's notation; no packet carries it"),
                format!("write {v4}"),
            )),
            None => Ok(address.into()),
        },
        Ok(address) => Ok(address),
        Err(_) => Err(not_an_address(text, whole)),
    }
}

fn not_an_address(text: &str, whole: &str) -> BadAddress {
    if let Some((address, zone)) = text.split_once('%')
        && address.parse::<Ipv6Addr>().is_ok()
    {
        return bad(
            "zone",
            format!("`{whole}` names a zone"),
            format!("write {address}, and `interface: {zone}` in the rule"),
        );
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'))
        && inner.parse::<Ipv6Addr>().is_ok()
    {
        return bad("brackets", format!("`{whole}` stands in brackets"), format!("write \"{inner}\""));
    }
    let octets: Vec<&str> = text.split('.').collect();
    if octets.len() == 4
        && octets.iter().all(|o| !o.is_empty() && o.len() <= 4 && o.bytes().all(|b| b.is_ascii_digit()))
        && octets.iter().any(|o| o.len() > 1 && o.starts_with('0'))
    {
        let trimmed: Vec<&str> = octets.iter().map(|o| o.trim_start_matches('0')).collect();
        let plain: Vec<&str> = trimmed.iter().map(|o| if o.is_empty() { "0" } else { o }).collect();
        return bad(
            "leading_zero",
            format!("`{whole}` has leading zeros, which some programs read as octal"),
            format!("write {}", plain.join(".")),
        );
    }
    bad(
        "bad_address",
        format!("`{whole}` is not an address"),
        "write an address such as 192.0.2.1 or 2001:db8::1, or a CIDR such as 192.0.2.0/24",
    )
}

fn as_mask(address: IpAddr, mask: &str) -> Option<Ipv4Net> {
    let IpAddr::V4(address) = address else { return None };
    Ipv4Net::with_netmask(address, mask.parse::<Ipv4Addr>().ok()?).ok().map(|net| net.trunc())
}

const fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// First and last address of a network, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

#[must_use]
pub fn range(net: IpNet) -> Range {
    match net {
        IpNet::V4(net) => Range::V4(net.network().into(), net.broadcast().into()),
        IpNet::V6(net) => Range::V6(net.network().into(), net.broadcast().into()),
    }
}

/// Addresses that exist only in documents: RFC 5737, RFC 3849, RFC 9637.
#[must_use]
pub fn is_documentation(net: IpNet) -> bool {
    const V4: [(Ipv4Addr, u8); 3] =
        [(Ipv4Addr::new(192, 0, 2, 0), 24), (Ipv4Addr::new(198, 51, 100, 0), 24), (Ipv4Addr::new(203, 0, 113, 0), 24)];
    const V6: [(Ipv6Addr, u8); 2] =
        [(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20)];
    match net {
        IpNet::V4(net) => {
            V4.iter().any(|(base, length)| Ipv4Net::new(*base, *length).is_ok_and(|doc| doc.contains(&net)))
        }
        IpNet::V6(net) => {
            V6.iter().any(|(base, length)| ipnet::Ipv6Net::new(*base, *length).is_ok_and(|doc| doc.contains(&net)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help(text: &str) -> String {
        parse(text).map(|net| net.to_string()).unwrap_err().help
    }

    #[test]
    fn reads_both_families() {
        assert_eq!(parse("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
        assert_eq!(parse("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
        assert_eq!(parse("0.0.0.0/0").unwrap().to_string(), "0.0.0.0/0");
    }

    #[test]
    fn every_mistake_names_its_fix() {
        assert_eq!(help("192.0.2.5/24"), "write 192.0.2.0/24 for the network, or 192.0.2.5 for the one address");
        assert_eq!(help("2001:db8::5/64"), "write 2001:db8::/64 for the network, or 2001:db8::5 for the one address");
        assert_eq!(help("192.0.2.0/255.255.255.0"), "write 192.0.2.0/24");
        assert_eq!(help("192.0.2.0/33"), "write a number from 0 to 32 after the slash");
        assert_eq!(help("192.0.2.0/"), "write a number from 0 to 32 after the slash");
        assert_eq!(help("192.0.2.0/+4"), "write a number from 0 to 32 after the slash");
        assert_eq!(help("::ffff:192.0.2.1"), "write 192.0.2.1");
        assert_eq!(help("fe80::1%eth0"), "write fe80::1, and `interface: eth0` in the rule");
        assert_eq!(help("[2001:db8::1]"), "write \"2001:db8::1\"");
        assert_eq!(help("192.0.2.010"), "write 192.0.2.10");
        assert!(help("300.0.2.1").starts_with("write an address"));
    }

    #[test]
    fn knows_documentation_addresses() {
        for text in ["192.0.2.7", "198.51.100.0/25", "203.0.113.255", "2001:db8:17::/48", "3fff::1"] {
            assert!(is_documentation(parse(text).unwrap()), "{text}");
        }
        for text in ["192.0.0.0/16", "10.0.0.1", "2001:4860::1", "::/0"] {
            assert!(!is_documentation(parse(text).unwrap()), "{text}");
        }
    }
}
