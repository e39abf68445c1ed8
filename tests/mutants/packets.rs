//! Mutants of the way of a packet: parser and judge.

use super::list::{Mutant, mutant};

const JUDGE_ESSENTIAL: &str = "guard-common/src/judge/essential.rs";
const JUDGE_FAMILY: &str = "guard-common/src/judge/family.rs";
const JUDGE_FRAGMENT: &str = "guard-common/src/judge/fragment.rs";
const JUDGE_ICMP_ERROR: &str = "guard-common/src/judge/icmp_error.rs";
const JUDGE_LIFETIME: &str = "guard-common/src/judge/lifetime.rs";
const JUDGE_MOD: &str = "guard-common/src/judge/mod.rs";
const JUDGE_TCP: &str = "guard-common/src/judge/tcp.rs";
const DHCP: &str = "guard-common/src/packet/dhcp.rs";
const ESSENTIAL: &str = "guard-common/src/packet/essential.rs";
const ETHERNET: &str = "guard-common/src/packet/ethernet.rs";
const IPV4: &str = "guard-common/src/packet/ipv4.rs";
const IPV6: &str = "guard-common/src/packet/ipv6.rs";
const LINK_LOCAL: &str = "guard-common/src/packet/link_local.rs";
const QUOTED: &str = "guard-common/src/packet/quoted.rs";
const TRANSPORT: &str = "guard-common/src/packet/transport.rs";

const JUDGE_FLOW: &str = "guard-common/src/judge/flow.rs";
const JUDGE_ASK: &str = "guard-common/src/judge/ask.rs";
const JUDGE_SHORT: &str = "guard-common/src/judge/short.rs";

pub const OF_PACKETS: &[Mutant] = &[
    mutant(
        "fragment: an IPv4 first one is taken for a whole packet",
        IPV4,
        "(MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0",
        "FRAGMENT_OFFSET != 0",
    ),
    mutant("IPv4: the reserved bit passes", IPV4, "if fragment & RESERVED != 0 {", "if fragment & RESERVED == 1 {"),
    mutant(
        "IPv4: strict source routes pass",
        IPV4,
        "LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE =>",
        "LOOSE_SOURCE_ROUTE =>",
    ),
    mutant("IPv4: options may end outside", IPV4, "if step > end - at {", "if step > end - at + 8 {"),
    mutant("IPv4: a byte that is not there", IPV4, "if total > here {", "if total > here + 1 {"),
    mutant("IPv6: hop-by-hop options anywhere", IPV6, "HOP_BY_HOP if at != start", "HOP_BY_HOP if at < start"),
    mutant("IPv6: units of the authentication header", IPV6, "+ 2) * 4,", "+ 1) * 8,"),
    mutant("IPv6: a header more", IPV6, "const MAX_EXTENSIONS: u32 = 8;", "const MAX_EXTENSIONS: u32 = 9;"),
    mutant("IPv6: a header fewer", IPV6, "const MAX_EXTENSIONS: u32 = 8;", "const MAX_EXTENSIONS: u32 = 7;"),
    mutant("IPv6: routing headers are followed", IPV6, "if next == ROUTING {", "if next == 42 {"),
    mutant(
        "fragment: an IPv6 first one is taken for a whole packet",
        IPV6,
        "if offset != 0 || word & 1 != 0 {",
        "if offset != 0 {",
    ),
    mutant(
        "fragment: a whole IPv6 packet is taken for a first one",
        IPV6,
        "if offset != 0 || word & 1 != 0 {",
        "if true {",
    ),
    mutant(
        "fragment: a later one may write into the header",
        TRANSPORT,
        "if offset < shortest(protocol) {",
        "if offset < 8 {",
    ),
    mutant(
        "fragment: a tiny first one is only malformed",
        TRANSPORT,
        "return Err(if packet.is(Packet::FRAGMENT) { Reason::FragmentTiny } else { Reason::BadTransport });\n    }\n    match packet.protocol",
        "return Err(Reason::BadTransport);\n    }\n    match packet.protocol",
    ),
    mutant("transport: SYN with FIN passes", TRANSPORT, "SYN | ACK | RST => Ok(()),", "SYN | ACK | RST | 3 => Ok(()),"),
    mutant(
        "transport: a fragment's datagram is too long",
        TRANSPORT,
        "(length > rest && !fragment)",
        "(length > rest)",
    ),
    mutant(
        "transport: a datagram may be longer than its packet",
        TRANSPORT,
        "(length > rest && !fragment)",
        "(length > rest + 1 && !fragment)",
    ),
    mutant("VLAN: a tag more", ETHERNET, "const MAX_TAGS: u32 = 2;", "const MAX_TAGS: u32 = 3;"),
    mutant(
        "ARP: another operation",
        ETHERNET,
        "matches!(bytes.u16(at + 6)?, 1 | 2)",
        "matches!(bytes.u16(at + 6)?, 1..=3)",
    ),
    mutant(
        "LLDP: from a group that bridges pass on",
        ETHERNET,
        "(Essential::Lldp, matches!(group, 0 | 3 | 0xe),",
        "(Essential::Lldp, matches!(group, 0 | 3),",
    ),
    mutant("ICMP error: a long quotation", QUOTED, "(ERROR + 28..=LONGEST_V4)", "(ERROR + 28..=LONGEST_V6)"),
    mutant(
        "ICMP error: of a later fragment",
        QUOTED,
        "bytes.u16(at + 6)? & 0x1fff != 0",
        "bytes.u16(at + 6)? & 0x1000 != 0",
    ),
    mutant(
        "neighbour discovery: bytes after the last option",
        LINK_LOCAL,
        "if at >= end {\n            return Some(at == end);\n        }\n        let option",
        "if at >= end {\n            return Some(true);\n        }\n        let option",
    ),
    mutant("MLD: auxiliary data", LINK_LOCAL, "|| word >> 16 & 0xff != 0", "|| word >> 16 & 0xff > 1"),
    mutant(
        "DHCPv4: any option of a client",
        DHCP,
        "if to_server && set >> (number & 63) & 1 == 0 {",
        "if to_server && number == 0 {",
    ),
    mutant(
        "DHCPv4: a server's name from a client",
        DHCP,
        "(to_server && !zeros(bytes, at + 44, 192)?)",
        "(to_server && !zeros(bytes, at + 64, 128)?)",
    ),
    mutant(
        "DHCP: something after the datagram",
        ESSENTIAL,
        "DHCPV4 | DHCPV6 if u32::from(bytes.u16(at + 4)?) != rest => Some(false),",
        "DHCPV4 | DHCPV6 if u32::from(bytes.u16(at + 4)?) > rest => Some(false),",
    ),
    mutant(
        "fragment: follows one that another generation judged",
        JUDGE_FRAGMENT,
        "Some(first) if first.generation == context.generation => {",
        "Some(first) => {",
    ),
    mutant(
        "fragment: a second and different first passes",
        JUDGE_FRAGMENT,
        "first.generation == context.generation && first.ports != ports(packet)",
        "first.generation != context.generation && first.ports != ports(packet)",
    ),
    mutant(
        "fragment: bars what a new generation judges anew",
        JUDGE_FRAGMENT,
        "first.generation == context.generation && first.ports != ports(packet)",
        "first.ports != ports(packet)",
    ),
    mutant(
        "fragment: followed for a second too long",
        JUDGE_FRAGMENT,
        "const SECONDS: u64 = 30;",
        "const SECONDS: u64 = 31;",
    ),
    mutant(
        "fragment: dropped by the packet's direction, not the flow's",
        JUDGE_FRAGMENT,
        "context.flags.enforces(Direction::from_u8(first.direction))",
        "context.flags.enforces(context.direction)",
    ),
    mutant(
        "fragment: keeps the packet's direction, not the flow's",
        JUDGE_FRAGMENT,
        "direction: first.direction as u8,",
        "direction: context.direction as u8,",
    ),
    mutant(
        "lifetime: over a moment too early",
        JUDGE_LIFETIME,
        "now - flow.last_seen > seconds",
        "now - flow.last_seen >= seconds",
    ),
    mutant(
        "lifetime: an answered datagram flow's",
        JUDGE_LIFETIME,
        "            if answered {\n                120",
        "            if answered {\n                121",
    ),
    mutant("lifetime: of ICMP", JUDGE_LIFETIME, "ICMP | ICMPV6 => 30,", "ICMP | ICMPV6 => 31,"),
    mutant("lifetime: of a connection that was reset", JUDGE_LIFETIME, "CLOSE => 10,", "CLOSE => 11,"),
    mutant("TCP: a third of the handshake without a second", JUDGE_TCP, "SYN_SENT if original => Step::Refuse,", ""),
    mutant("TCP: the other end begins too", JUDGE_TCP, "(_, false) => Step::Refuse,", "(_, false) => Step::To(state),"),
    mutant("TCP: who asked answers", JUDGE_TCP, "(_, true) => Step::Refuse,", "(_, true) => Step::To(state),"),
    mutant(
        "TCP: the second FIN is not the last",
        JUDGE_TCP,
        "FIN_WAIT | CLOSE_WAIT | LAST_ACK => Step::To(LAST_ACK),",
        "FIN_WAIT | LAST_ACK => Step::To(LAST_ACK),\n            CLOSE_WAIT => Step::To(FIN_WAIT),",
    ),
    mutant(
        "TCP: used ends are not used again",
        JUDGE_TCP,
        "(NONE | TIME_WAIT | CLOSE, _) => Step::Anew,",
        "(NONE | CLOSE, _) => Step::Anew,",
    ),
    mutant(
        "direction: of what a socket accepted",
        JUDGE_TCP,
        "TcpSocket::Accepted => (Direction::Inbound, true),",
        "TcpSocket::Accepted => (Direction::Outbound, true),",
    ),
    mutant(
        "direction: of what a socket connected",
        JUDGE_TCP,
        "TcpSocket::Connected => (Direction::Outbound, true),",
        "TcpSocket::Connected => (context.direction, true),",
    ),
    mutant(
        "TCP: a reset of nothing begins a flow",
        JUDGE_TCP,
        "TcpSocket::None if flags & (SYN | RST) != 0 => return None,",
        "TcpSocket::None if flags & SYN != 0 => return None,",
    ),
    mutant(
        "TCP: a forged end is one",
        JUDGE_FLOW,
        "        && host.tcp_lives(packet, context.direction)\n",
        "        && false\n",
    ),
    mutant(
        "TCP: whoever forges begins what a socket holds",
        JUDGE_TCP,
        "(context.is_outbound() || !host.tcp_lives(packet, context.direction))",
        "true",
    ),
    mutant("TCP: our own SYN begins nothing", JUDGE_TCP, "!(opens(flags) && outbound) && (over", "(over"),
    mutant(
        "table: who writes an ACK stands among the sessions",
        JUDGE_FLOW,
        "tcp::is_established(tcp) && flags & (Flow::ANSWERED | Flow::HELD) != 0",
        "tcp::is_established(tcp)",
    ),
    mutant(
        "table: what a socket holds stands among the strays",
        JUDGE_FLOW,
        "tcp::is_established(tcp) && flags & (Flow::ANSWERED | Flow::HELD) != 0",
        "tcp::is_established(tcp) && flags & Flow::ANSWERED != 0",
    ),
    mutant(
        "ICMP error: about a flow of an older generation",
        JUDGE_ICMP_ERROR,
        "let holds = holds(host, context, &view)\n        && ",
        "let holds = (view.until == u64::MAX || host.boot_ns() < view.until)\n        && ",
    ),
    mutant(
        "ICMP error: to somebody else",
        JUDGE_ICMP_ERROR,
        "if context.is_outbound() && !same",
        "if context.is_tracking() && !same",
    ),
    mutant(
        "expiry: an ICMP error about a flow whose rule has ended",
        JUDGE_ICMP_ERROR,
        "let holds = holds(host, context, &view)\n        && ",
        "let holds = view.generation == context.generation\n        && ",
    ),
    mutant(
        "lifetime: an ICMP error about a flow that is over",
        JUDGE_ICMP_ERROR,
        "        && !lifetime::is_over(&view, packet.quoted.protocol, host.jiffies(), host.hz());",
        ";",
    ),
    mutant(
        "neighbour discovery: from behind a router",
        JUDGE_ESSENTIAL,
        "if packet.hop_limit != 255 {",
        "if packet.hop_limit < 254 {",
    ),
    mutant(
        "neighbour discovery: an advertised target is forgotten",
        JUDGE_ESSENTIAL,
        "if packet.message == NEIGHBOUR_ADVERTISEMENT &&",
        "if packet.message == 0 &&",
    ),
    mutant(
        "MLD: from anywhere",
        JUDGE_ESSENTIAL,
        "(unspecified || is_link_local(source[0]))",
        "(unspecified || source[0] != 0)",
    ),
    mutant(
        "DHCP: a transaction is waited for too long",
        JUDGE_ESSENTIAL,
        "const TRANSACTION: u64 = 120;",
        "const TRANSACTION: u64 = 1200;",
    ),
    mutant(
        "DHCPv4: to any server",
        JUDGE_ESSENTIAL,
        "let to = packet.destination[0] == u32::MAX ||",
        "let to = packet.destination[0] != 0 ||",
    ),
    mutant(
        "DHCPv6: to any address",
        JUDGE_ESSENTIAL,
        "let servers = to[0] == 0xff02_0000 &&",
        "let servers = to[0] != 0 ||",
    ),
    mutant(
        "DHCPv6: an answer of any type",
        JUDGE_ESSENTIAL,
        "matches!(packet.message, 2 | 7)",
        "matches!(packet.message, 2 | 7 | 10)",
    ),
    mutant(
        "essential: what is off is malformed",
        JUDGE_ESSENTIAL,
        "return Settled::Policy(Reason::EssentialOff);",
        "return Settled::Policy(Reason::EssentialMalformed);",
    ),
    mutant(
        "scope: an IPv4 group is one group on all links",
        JUDGE_FAMILY,
        "remote >> 28 == 0xe",
        "remote >> 28 == 0xf",
    ),
    mutant(
        "scope: an IPv6 group is one group on all links",
        JUDGE_FAMILY,
        "remote[0] >> 24 == 0xff",
        "remote[0] >> 24 == 0xfe",
    ),
    mutant(
        "direction: of what an IPv4 error quotes",
        JUDGE_FAMILY,
        "let outbound = matches!(context.direction, Direction::Outbound);",
        "let outbound = matches!(context.direction, Direction::Inbound);",
    ),
    mutant(
        "generation: a known flow keeps an older one's verdict",
        JUDGE_FLOW,
        "flow.generation == context.generation && (flow.until",
        "flow.generation != 0 && (flow.until",
    ),
    mutant(
        "direction: inbound asks for the remote's port",
        JUDGE_ASK,
        "Direction::Inbound => local_port,",
        "Direction::Inbound => remote_port,",
    ),
    mutant(
        "direction: dropped by the packet's, not the flow's",
        JUDGE_MOD,
        "dropped: outcome.verdict() == Verdict::Deny && context.flags.enforces(direction),",
        "dropped: outcome.verdict() == Verdict::Deny && context.flags.enforces(context.direction),",
    ),
    mutant("lockdown: any remote will do", JUDGE_ASK, "        && !answer.named\n", "        && false\n"),
    mutant(
        "flow: an answer is not seen",
        JUDGE_FLOW,
        "if original { view.flags } else { view.flags | Flow::ANSWERED }",
        "view.flags",
    ),
    mutant(
        "flow: one that its socket knows is not answered",
        JUDGE_FLOW,
        "if beginning.direction as u8 == context.direction as u8 { 0 } else { Flow::ANSWERED }",
        "0",
    ),
    mutant("flow: cut, and not said", JUDGE_FLOW, "let cut = !first && ", "let cut = first && "),
    mutant(
        "ICMP: an answer before any question",
        JUDGE_FLOW,
        "        if is_icmp(packet) && packet.is(Packet::ICMP_ANSWER) {\n",
        "        if false {\n",
    ),
    mutant(
        "essential: why nothing is listed",
        JUDGE_ASK,
        "outcome = Outcome::without_rule(unlisted);",
        "outcome = Outcome::without_rule(Reason::NotListed);",
    ),
    mutant(
        "interface: what is not known passes for one that no rule names",
        JUDGE_ASK,
        "interface.ok_or(Reason::UnknownInterface)?",
        "interface.unwrap_or_default()",
    ),
    mutant(
        "short way: what is not established goes on",
        JUDGE_SHORT,
        "if !tcp::goes_on(view.tcp) {",
        "if view.tcp == 0 {",
    ),
    mutant("short way: what was judged long ago holds", JUDGE_SHORT, "|| !holds(host, context, view)", ""),
    mutant(
        "expiry: a nanosecond too long for a known flow",
        JUDGE_FLOW,
        "|| host.boot_ns() < flow.until)",
        "|| host.boot_ns() <= flow.until)",
    ),
];
