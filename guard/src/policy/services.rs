//! Services: names and notations to ranges of [service words](super::model::ServiceRange).

use super::model::ServiceRange;

/// What is wrong with a service, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadService {
    pub code: &'static str,
    pub message: String,
    pub help: String,
    /// Bytes of the word that are meant; `None`: all of it.
    pub part: Option<std::ops::Range<usize>>,
}

/// What a word names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    Ranges(Vec<ServiceRange>),
    /// Neither a notation nor built in: to be found in `services:`.
    Name,
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// Built in; `services:` cannot redefine them.
pub const BUILT_IN: &[(&str, &[ServiceRange])] = &[
    ("ssh", &[port(TCP, 22)]),
    ("http", &[port(TCP, 80)]),
    ("https", &[port(TCP, 443)]),
    ("dns", &[port(TCP, 53), port(UDP, 53)]),
    ("ntp", &[port(UDP, 123)]),
    ("smtp", &[port(TCP, 25)]),
    ("ldap", &[port(TCP, 389)]),
    ("ldaps", &[port(TCP, 636)]),
    ("ping", &[icmp(ICMP, 8, 0, 255), icmp(ICMPV6, 128, 0, 255)]),
];

/// Protocols with ports, by the name that stands before the slash.
pub const WITH_PORTS: &[(&str, u8)] = &[("tcp", TCP), ("udp", UDP), ("sctp", 132), ("udplite", 136), ("dccp", 33)];

/// IANA protocol numbers that `proto/` also takes by name.
pub const PROTOCOLS: &[(&str, u8)] = &[
    ("igmp", 2),
    ("ipip", 4),
    ("sit", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
];

/// ICMP types by name (IANA), IPv4.
pub const ICMP_TYPES: &[(&str, u8)] = &[
    ("echo-reply", 0),
    ("destination-unreachable", 3),
    ("redirect", 5),
    ("echo-request", 8),
    ("router-advertisement", 9),
    ("router-solicitation", 10),
    ("time-exceeded", 11),
    ("parameter-problem", 12),
    ("timestamp-request", 13),
    ("timestamp-reply", 14),
];

/// ICMPv6 types by name (IANA).
pub const ICMPV6_TYPES: &[(&str, u8)] = &[
    ("destination-unreachable", 1),
    ("packet-too-big", 2),
    ("time-exceeded", 3),
    ("parameter-problem", 4),
    ("echo-request", 128),
    ("echo-reply", 129),
    ("mld-listener-query", 130),
    ("mld-listener-report", 131),
    ("mld-listener-done", 132),
    ("router-solicitation", 133),
    ("router-advertisement", 134),
    ("neighbour-solicitation", 135),
    ("neighbor-solicitation", 135),
    ("neighbour-advertisement", 136),
    ("neighbor-advertisement", 136),
    ("redirect", 137),
    ("mldv2-listener-report", 143),
];

/// Everything: what `any` means.
pub const ANY: ServiceRange = ServiceRange { first: 0, last: 0x00ff_ffff };

const fn word(protocol: u8, low: u16) -> u32 {
    (protocol as u32) << 16 | low as u32
}

pub const fn port(protocol: u8, port: u16) -> ServiceRange {
    ServiceRange { first: word(protocol, port), last: word(protocol, port) }
}

const fn icmp(protocol: u8, kind: u8, first_code: u8, last_code: u8) -> ServiceRange {
    let low = (kind as u16) << 8;
    ServiceRange { first: word(protocol, low | first_code as u16), last: word(protocol, low | last_code as u16) }
}

const fn whole(protocol: u8) -> ServiceRange {
    ServiceRange { first: word(protocol, 0), last: word(protocol, u16::MAX) }
}

fn bad<T>(code: &'static str, message: impl Into<String>, help: impl Into<String>) -> Result<T, BadService> {
    Err(BadService { code, message: message.into(), help: help.into(), part: None })
}

/// Reads one word of a `services` list.
pub fn parse(text: &str) -> Result<Word, BadService> {
    let Some((protocol, rest)) = text.split_once('/') else { return name(text) };
    if let Some((_, number)) = WITH_PORTS.iter().find(|(name, _)| *name == protocol) {
        return ports(protocol, *number, rest).map(|range| Word::Ranges(vec![range])).map_err(|mut bad| {
            bad.part.get_or_insert(protocol.len() + 1..text.len());
            bad
        });
    }
    match protocol {
        "icmp" => icmp_type(protocol, ICMP, ICMP_TYPES, rest).map(|range| Word::Ranges(vec![range])),
        "icmpv6" | "icmp6" => icmp_type(protocol, ICMPV6, ICMPV6_TYPES, rest).map(|range| Word::Ranges(vec![range])),
        "proto" => protocol_number(rest).map(|range| Word::Ranges(vec![range])),
        // 443/tcp, as /etc/services writes it.
        _ if WITH_PORTS.iter().any(|(name, _)| *name == rest) => {
            bad("reversed_service", format!("`{text}` is the wrong way round"), format!("write {rest}/{protocol}"))
        }
        _ => {
            let known = WITH_PORTS.iter().map(|(name, _)| *name).chain(["icmp", "icmpv6", "proto"]);
            let help = match super::diagnostics::nearest(protocol, known) {
                Some(near) => format!("did you mean {near}/{rest}?"),
                None => "write tcp/PORT, udp/PORT, sctp/PORT, icmp/TYPE, icmpv6/TYPE or proto/NUMBER".to_owned(),
            };
            bad("unknown_protocol", format!("`{protocol}` is not a protocol that is known here"), help)
        }
    }
}

fn name(text: &str) -> Result<Word, BadService> {
    if text == "any" {
        return Ok(Word::Ranges(vec![ANY]));
    }
    if let Some((_, ranges)) = BUILT_IN.iter().find(|(name, _)| *name == text) {
        return Ok(Word::Ranges(ranges.to_vec()));
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return bad("no_protocol", format!("`{text}` names no protocol"), format!("write tcp/{text} or udp/{text}"));
    }
    if WITH_PORTS.iter().any(|(name, _)| *name == text) || matches!(text, "icmp" | "icmpv6") {
        return bad(
            "no_port",
            format!("`{text}` names no port or type"),
            format!("write {text}/*, or {text}/ and what is meant"),
        );
    }
    if let Some((protocol, port)) = text.split_once(':') {
        return bad("bad_service", format!("`{text}` is not a service"), format!("write {protocol}/{port}"));
    }
    Ok(Word::Name)
}

fn ports(name: &str, protocol: u8, text: &str) -> Result<ServiceRange, BadService> {
    if text == "*" {
        return Ok(whole(protocol));
    }
    let Some((first, last)) = text.split_once('-') else {
        let number = port_number(name, text)?;
        return Ok(port(protocol, number));
    };
    if first.is_empty() || last.is_empty() {
        let help = match (first, last) {
            ("", "") => format!("write {name}/*, or {name}/FIRST-LAST"),
            ("", last) => format!("write {name}/1-{last}"),
            (first, _) => format!("write {name}/{first}-65535, or {name}/{first}"),
        };
        return bad("empty_port_range", "the port range has no end", help);
    }
    let (low, high) = (port_number(name, first)?, port_number(name, last)?);
    if low > high {
        let mut refused = bad("inverted_port_range", "port range is upside down", format!("write {name}/{high}-{low}"));
        if let Err(bad) = &mut refused {
            bad.message = "port range is upside down".to_owned();
        }
        return refused;
    }
    Ok(ServiceRange { first: word(protocol, low), last: word(protocol, high) })
}

fn port_number(protocol: &str, text: &str) -> Result<u16, BadService> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(0) => bad("port_zero", "0 is not a port", format!("ports are 1 to 65535; write {protocol}/* for all")),
        Ok(number) if digits => Ok(number),
        _ if digits => bad("port_too_large", format!("`{text}` is not a port"), "ports are 1 to 65535"),
        _ if text.is_empty() => {
            bad("no_port", "there is no port", format!("write {protocol}/443, or {protocol}/* for every port"))
        }
        _ => {
            let known = BUILT_IN.iter().find(|(name, _)| *name == text);
            let help = match known {
                Some((name, _)) => format!("write {name} alone"),
                None => format!("write a number, a range ({protocol}/8000-8999) or {protocol}/*"),
            };
            bad("bad_port", format!("`{text}` is not a port"), help)
        }
    }
}

/// `echo-request`, `8`, `3/4` (type and code), `*`.
pub fn icmp_type(name: &str, protocol: u8, types: &[(&str, u8)], text: &str) -> Result<ServiceRange, BadService> {
    if text == "*" {
        return Ok(whole(protocol));
    }
    let (kind, code) = match text.split_once('/') {
        Some((kind, code)) => (kind, Some(code)),
        None => (text, None),
    };
    let number =
        types.iter().find(|(known, _)| *known == kind).map(|(_, number)| *number).or_else(|| kind.parse().ok());
    let Some(number) = number else {
        let help = match super::diagnostics::nearest(kind, types.iter().map(|(name, _)| *name)) {
            Some(near) => format!("did you mean {name}/{near}?"),
            None => format!("write {name}/echo-request, {name}/NUMBER or {name}/*"),
        };
        return bad("bad_icmp_type", format!("`{kind}` is not a type of {name}"), help);
    };
    match code.map(str::parse::<u8>) {
        None => Ok(icmp(protocol, number, 0, 255)),
        Some(Ok(code)) => Ok(icmp(protocol, number, code, code)),
        Some(Err(_)) => {
            bad("bad_icmp_code", "the ICMP code is a number", format!("write {name}/{kind}, or {name}/{kind}/0"))
        }
    }
}

fn protocol_number(text: &str) -> Result<ServiceRange, BadService> {
    if let Some((_, number)) = PROTOCOLS.iter().find(|(name, _)| *name == text) {
        return Ok(whole(*number));
    }
    match text.parse::<u8>() {
        Ok(number) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(whole(number)),
        _ => bad(
            "bad_protocol",
            format!("`{text}` is not a protocol number"),
            "write proto/ and a number from 0 to 255, such as proto/47",
        ),
    }
}

/// Sorted, disjoint, merged.
#[must_use]
pub fn normalise(mut ranges: Vec<ServiceRange>) -> Vec<ServiceRange> {
    ranges.sort_unstable();
    let mut merged: Vec<ServiceRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => last.last = last.last.max(range.last),
            _ => merged.push(range),
        }
    }
    merged
}

/// Whether every service of `small` is in `large`, both [normalised](normalise).
#[must_use]
pub fn covers(large: &[ServiceRange], small: &[ServiceRange]) -> bool {
    small.iter().all(|s| large.iter().any(|l| l.first <= s.first && s.last <= l.last))
}

/// A word for people: `tcp/443`, `icmp/echo-request`, `proto/47`.
#[must_use]
pub fn describe(service: u32) -> String {
    let (protocol, low) = ((service >> 16) as u8, service as u16);
    let icmp = |name: &str, types: &[(&str, u8)]| {
        let (kind, code) = ((low >> 8) as u8, low as u8);
        let kind =
            types.iter().find(|(_, n)| *n == kind).map_or_else(|| kind.to_string(), |(name, _)| (*name).to_owned());
        if code == 0 { format!("{name}/{kind}") } else { format!("{name}/{kind}/{code}") }
    };
    match protocol {
        ICMP => icmp("icmp", ICMP_TYPES),
        ICMPV6 => icmp("icmpv6", ICMPV6_TYPES),
        _ => match WITH_PORTS.iter().find(|(_, number)| *number == protocol) {
            Some((name, _)) => format!("{name}/{low}"),
            None => format!("proto/{protocol}"),
        },
    }
}

/// A range for people: `tcp/8000-8999`, `udp/*`, `any`.
#[must_use]
pub fn describe_range(range: ServiceRange) -> String {
    if range == ANY {
        return "any".to_owned();
    }
    let protocol = (range.first >> 16) as u8;
    let (first, last) = (range.first as u16, range.last as u16);
    if range.first >> 16 != range.last >> 16 {
        return format!("proto/{protocol}-{}", range.last >> 16);
    }
    let one = describe(range.first);
    let name = one.split('/').next().unwrap_or("proto").to_owned();
    match (name.as_str(), first, last) {
        ("proto", ..) => one,
        (name, 0, u16::MAX) => format!("{name}/*"),
        (name, 1, u16::MAX) if name != "icmp" && name != "icmpv6" => format!("{name}/1-65535"),
        ("icmp" | "icmpv6", first, last) if first & 0xff == 0 && last == first | 0xff => one,
        _ if first == last => one,
        (name, first, last) => format!("{name}/{first}-{last}"),
    }
}
