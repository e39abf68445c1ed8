//! A flow as people write it: `out tcp 203.0.113.9:443`, `in udp 198.51.100.7 -> 53`, `out icmp 203.0.113.9
//! echo-request`, `in tcp [2001:db8::7]:40000 -> [2001:db8:5::5]:22 on eth1`.
//!
//! ```text
//! in  PROTOCOL REMOTE[:PORT] -> [LOCAL:]PORT [on INTERFACE]
//! out PROTOCOL [LOCAL ->] REMOTE:PORT        [on INTERFACE]
//! in|out icmp|icmpv6 [LOCAL ->] REMOTE TYPE  [on INTERFACE]
//! in|out proto/NUMBER REMOTE                 [on INTERFACE]
//! ```
//!
//! In place of a protocol the name of a built-in service stands for it and its port: `out https 203.0.113.9`, and in
//! place of a port such a name: `out tcp 203.0.113.9:https`. Words may be in capitals, and the ones that people put in
//! between are understood: `in tcp from 198.51.100.7 to port 22`, `out tcp to 203.0.113.9 port 443`.

use std::net::{IpAddr, SocketAddr};

use guard_common::Direction;

use super::{
    model::FlowQuery,
    services::{self, BUILT_IN, ICMP, ICMP_TYPES, ICMPV6, ICMPV6_TYPES, PROTOCOLS, WITH_PORTS},
};

/// Why a flow cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadFlow {
    pub message: String,
    pub help: String,
}

fn bad<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, BadFlow> {
    Err(BadFlow { message: message.into(), help: help.into() })
}

/// One end as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    address: Option<IpAddr>,
    port: Option<u16>,
}

/// What stands in the place of the protocol.
enum Asked {
    Ports(u8),
    Service(u32),
    Icmp,
    Whole(u8),
}

impl std::str::FromStr for FlowQuery {
    type Err = BadFlow;

    fn from_str(text: &str) -> Result<Self, BadFlow> {
        if text.len() > 512 {
            return bad("a flow of more than 512 bytes", "write one such as 'out tcp 203.0.113.9:443'");
        }
        let spaced = text.replace("->", " -> ").replace('→', " -> ");
        let mut words: Vec<&str> = spaced.split_whitespace().collect();
        let interface = match words.as_slice() {
            [.., on, name] if on.eq_ignore_ascii_case("on") => Some((*name).to_owned()),
            _ => None,
        };
        if interface.is_some() {
            words.truncate(words.len() - 2);
        }
        let direction = match words.first().map(|word| word.to_ascii_lowercase()).as_deref() {
            Some("in" | "inbound") => Direction::Inbound,
            Some("out" | "outbound") => Direction::Outbound,
            _ => return bad("a flow begins with `in` or `out`", "write one such as 'out tcp 203.0.113.9:443'"),
        };
        let Some(protocol) = words.get(1) else {
            return bad("the flow names no protocol", format!("write {} tcp …", words[0]));
        };
        let asked = asked(&protocol.to_ascii_lowercase())?;
        let rest = without_prepositions(&words[2..], direction);
        let words: Vec<&str> = rest.iter().map(String::as_str).collect();
        let (left, right) = ends(&words, direction, &asked)?;
        let remote_end = if direction == Direction::Inbound { left } else { right };
        let local_end = if direction == Direction::Inbound { right } else { left };
        let Some(remote) = remote_end.address else {
            return bad("the flow names no remote address", example(direction));
        };
        if local_end.address.is_some_and(|local| local.is_ipv4() != remote.is_ipv4()) {
            return bad("the two addresses are of different families", "write both as IPv4 or both as IPv6");
        }
        let service = match asked {
            Asked::Ports(number) => {
                let served = if direction == Direction::Inbound { local_end.port } else { remote_end.port };
                let Some(port) = served else {
                    return bad("the flow names no port", example(direction));
                };
                u32::from(number) << 16 | u32::from(port)
            }
            Asked::Service(service) => service,
            Asked::Whole(number) => u32::from(number) << 16,
            Asked::Icmp => icmp_service(&words, remote)?,
        };
        let remote_port = if direction == Direction::Inbound { remote_end.port } else { None };
        Ok(Self { direction, remote, remote_port, local: local_end.address, service, interface })
    }
}

fn example(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "write the remote, an arrow and our port: 'in tcp 198.51.100.7 -> 22'",
        Direction::Outbound => "write the remote and its port: 'out tcp 203.0.113.9:443', 'out tcp [2001:db8::9]:443'",
    }
}

fn asked(word: &str) -> Result<Asked, BadFlow> {
    if let Some((_, number)) = WITH_PORTS.iter().find(|(name, _)| *name == word) {
        return Ok(Asked::Ports(*number));
    }
    if matches!(word, "icmp" | "icmpv6" | "icmp6" | "ping") {
        return Ok(Asked::Icmp);
    }
    if let Some((_, number)) = PROTOCOLS.iter().find(|(name, _)| *name == word) {
        return Ok(Asked::Whole(*number));
    }
    if let Some(number) = word.strip_prefix("proto/") {
        let by_name = PROTOCOLS.iter().find(|(name, _)| *name == number).map(|(_, number)| *number);
        return match by_name.or_else(|| number.parse().ok()) {
            Some(number) => Ok(Asked::Whole(number)),
            None => bad(format!("`{number}` is not a protocol number"), "write proto/47, say"),
        };
    }
    if let Some((name, port)) = word.split_once('/')
        && let Some((_, number)) = WITH_PORTS.iter().find(|(known, _)| *known == name)
        && let Ok(port) = port.parse::<u16>()
    {
        return Ok(Asked::Service(u32::from(*number) << 16 | u32::from(port)));
    }
    // dns is both TCP and UDP: a resolver is asked by UDP first.
    if let Some((_, ranges)) = BUILT_IN.iter().find(|(name, _)| *name == word)
        && let Some(range) = ranges.last()
    {
        return Ok(Asked::Service(range.first));
    }
    bad(format!("`{word}` is not a protocol"), "write tcp, udp, sctp, icmp, proto/NUMBER, or a service such as https")
}

/// `from A to port P` as `A -> P`, and `A port P`, or out `A P`, as `A:P`.
fn without_prepositions(words: &[&str], direction: Direction) -> Vec<String> {
    let mut plain: Vec<String> = Vec::with_capacity(words.len());
    let mut names_port = false;
    for word in words {
        let word = word.to_ascii_lowercase();
        match word.as_str() {
            "from" if plain.is_empty() => continue,
            "to" if plain.is_empty() && direction == Direction::Outbound => continue,
            "to" => plain.push("->".to_owned()),
            "port" => {
                names_port = true;
                continue;
            }
            _ => match plain.last_mut() {
                Some(last)
                    if end(&word).is_ok_and(|end| end.address.is_none())
                        && (names_port || direction == Direction::Outbound && word.parse::<u16>().is_ok())
                        && let Ok(End { address: Some(address), port: None }) = end(last) =>
                {
                    *last = if address.is_ipv6() { format!("[{address}]:{word}") } else { format!("{address}:{word}") };
                }
                _ => plain.push(word),
            },
        }
        names_port = false;
    }
    plain
}

/// What stands left and right of the arrow; without one, the remote on its side.
fn ends(words: &[&str], direction: Direction, asked: &Asked) -> Result<(End, End), BadFlow> {
    // With ICMP the type stands last; with everything else nothing follows the ends.
    let words = match asked {
        Asked::Icmp => match words {
            [rest @ .., before, last] if is_type(last) && *before != "->" => &words[..rest.len() + 1],
            _ => words,
        },
        _ => words,
    };
    match words {
        [one] => {
            let one = end(one)?;
            if direction == Direction::Inbound { Ok((one, End::default())) } else { Ok((End::default(), one)) }
        }
        [left, "->", right] => Ok((end(left)?, end(right)?)),
        [left, "->"] if !matches!(asked, Asked::Ports(_)) => Ok((end(left)?, End::default())),
        [] => bad("the flow names no remote address", example(direction)),
        _ => bad("the flow has too many words, or an arrow in the wrong place", example(direction)),
    }
}

/// `ADDRESS`, `ADDRESS:PORT`, `[V6]:PORT`, `[V6]`, `PORT`, `:PORT`, `*:PORT`; for a port also a service's name.
fn end(text: &str) -> Result<End, BadFlow> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(End { address: Some(address.to_canonical()), port: None });
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Ok(End { address: Some(socket.ip().to_canonical()), port: Some(socket.port()) });
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'))
        && let Ok(IpAddr::V6(address)) = inner.parse::<IpAddr>()
    {
        return Ok(End { address: Some(address.into()), port: None });
    }
    let port = text.strip_prefix("*:").or_else(|| text.strip_prefix(':')).unwrap_or(text);
    if let Ok(port) = port.parse::<u16>() {
        return Ok(End { address: None, port: Some(port) });
    }
    if let Some(port) = port_named(port) {
        return Ok(End { address: None, port: Some(port) });
    }
    if let Some((host, name)) = text.rsplit_once(':')
        && let Some(port) = port_named(name)
        && let Ok(End { address: Some(address), port: None }) = end(host)
        && (address.is_ipv4() || host.starts_with('['))
    {
        return Ok(End { address: Some(address), port: Some(port) });
    }
    let help = if text.matches(':').count() > 1 {
        "write IPv6 addresses with a port in brackets: [2001:db8::9]:443"
    } else if text.contains(|c: char| c.is_ascii_alphabetic()) {
        "write an address, not a name"
    } else {
        "write an address, ADDRESS:PORT or [V6]:PORT"
    };
    bad(format!("`{text}` is neither an address nor a port"), help)
}

/// Of a built-in service that has ports.
fn port_named(name: &str) -> Option<u16> {
    let (_, ranges) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
    let range = ranges.first().filter(|range| matches!((range.first >> 16) as u8, services::TCP | services::UDP))?;
    Some(range.first as u16)
}

/// A word that is no address: a type's name or number.
fn is_type(word: &str) -> bool {
    end(word).map_or(word != "->", |end| end.address.is_none())
}

/// ICMP's type is the last word; ICMPv6 is meant where the remote is IPv6.
fn icmp_service(words: &[&str], remote: IpAddr) -> Result<u32, BadFlow> {
    let kind = words.last().filter(|word| words.len() > 1 && is_type(word)).copied();
    let (name, protocol, types) =
        if remote.is_ipv4() { ("icmp", ICMP, ICMP_TYPES) } else { ("icmpv6", ICMPV6, ICMPV6_TYPES) };
    // A ping is what people mean when they name no type.
    match services::icmp_type(name, protocol, types, kind.unwrap_or("echo-request")) {
        Ok(range) if kind != Some("*") => Ok(range.first),
        Ok(_) => bad("a flow has one ICMP type", format!("write {name} … echo-request, say")),
        Err(error) => Err(BadFlow { message: error.message, help: error.help }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> FlowQuery {
        text.parse().unwrap_or_else(|error: BadFlow| panic!("{text}: {error}"))
    }

    #[test]
    fn reads_as_people_speak() {
        let out = query("out tcp 203.0.113.9:443");
        assert_eq!((out.direction, out.service, out.remote_port), (Direction::Outbound, 6 << 16 | 443, None));
        let inbound = query("in udp 198.51.100.7 -> 53");
        assert_eq!((inbound.direction, inbound.service, inbound.local), (Direction::Inbound, 17 << 16 | 53, None));
        let ping = query("out icmp 203.0.113.9 echo-request");
        assert_eq!(ping.service, 1 << 16 | 8 << 8);
        let ping6 = query("out icmp [2001:db8::9] echo-request");
        assert_eq!(ping6.service, 58 << 16 | 128 << 8);
        let full = query("in tcp [2001:db8::7]:40000 -> [2001:db8:5::5]:22 on eth1");
        assert_eq!((full.remote_port, full.service & 0xffff), (Some(40000), 22));
        assert_eq!((full.local, full.interface.as_deref()), (Some("2001:db8:5::5".parse().unwrap()), Some("eth1")));
        let local = query("out tcp 192.0.2.1 -> 203.0.113.9:443");
        assert_eq!(local.local, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(query("out proto/47 203.0.113.9").service, 47 << 16);
        assert_eq!(query("out gre 203.0.113.9").service, 47 << 16);
        assert_eq!(query("out https 203.0.113.9").service, 6 << 16 | 443);
        assert_eq!(query("out dns 2001:db8::53").service, 17 << 16 | 53);
        assert_eq!(query("in tcp 198.51.100.7→22"), query("in tcp 198.51.100.7 -> 22"));
        assert_eq!(query("in tcp 198.51.100.7 -> ssh"), query("in tcp 198.51.100.7 -> 22"));
        assert_eq!(query("out ping 203.0.113.9"), ping);
        assert_eq!(query("out icmp 203.0.113.9 8"), ping);
        assert_eq!(query("out icmp 192.0.2.1 -> 203.0.113.9 echo-request").local, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(query("in ssh 198.51.100.7").service, 6 << 16 | 22);
        for said in [
            "OUT TCP 203.0.113.9:443",
            "out tcp 203.0.113.9:https",
            "out tcp 203.0.113.9 443",
            "out tcp 203.0.113.9 port 443",
            "out tcp to 203.0.113.9 port https",
        ] {
            assert_eq!(query(said), out, "{said}");
        }
        assert_eq!(query("out tcp 2001:db8::9 port 443"), query("out tcp [2001:db8::9]:443"));
        assert_eq!(query("in udp from 198.51.100.7 to port 53"), inbound);
        assert_eq!(query("in udp from 198.51.100.7 to 53"), inbound);
        assert_eq!(query("out icmp to 203.0.113.9 Echo-Request"), ping);
        assert_eq!(
            query("in tcp from 198.51.100.7 port 40000 to 192.0.2.1:ssh ON Eth1"),
            query("in tcp 198.51.100.7:40000 -> 192.0.2.1:22 on Eth1")
        );
    }

    #[test]
    fn says_what_is_missing() {
        for text in [
            "",
            "out",
            "tcp 203.0.113.9:443",
            "out tcp 203.0.113.9",
            "in tcp 198.51.100.7",
            "in tcp -> 22",
            "out tcp :443",
            "out tcp example.org:443",
            "out tcp 2001:db8::9:443:x",
            "out icmp 203.0.113.9 nonsense",
            "out icmp *",
            "in tcp 198.51.100.7 -> 2001:db8::1 -> 3",
            "in tcp 198.51.100.7 -> [2001:db8::1]:22",
            "out tcp 203.0.113.9:99999",
            "out proto/999 203.0.113.9",
            "out icmp 203.0.113.9 *",
            // Whose port is not said.
            "in tcp 198.51.100.7 22",
            "in tcp 198.51.100.7 port 22",
            "out tcp 203.0.113.9:443 443",
            "out tcp port 443",
            "out tcp 2001:db8::9:https",
            "out tcp 203.0.113.9:ping",
        ] {
            assert!(text.parse::<FlowQuery>().is_err(), "{text}");
        }
    }
}
