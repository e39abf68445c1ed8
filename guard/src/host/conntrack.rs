//! Flows that the kernel's connection tracking holds: what this host forwards has no socket here.
//!
//! Asked over ctnetlink (linux/netfilter/nfnetlink_conntrack.h); where the kernel has none, `/proc/net/nf_conntrack` is
//! read, where that is there.

use std::{fs, io, net::SocketAddr};

use netlink_sys::{Socket, SocketAddr as NetlinkAddress};

use super::{
    netlink::{self, NetlinkError},
    route,
};

const NETLINK_NETFILTER: isize = 12;
/// Subsystem 1 (ctnetlink), message 1 (get).
const CONNTRACK_GET: u16 = 1 << 8 | 1;
/// Subsystem 1, message 0: a flow, sent to `NFNLGRP_CONNTRACK_NEW` when it is tracked.
const CONNTRACK_NEW: u16 = 1 << 8;
const GROUP_NEW: u32 = 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMP_CODE: u16 = 6;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const CTA_PROTO_ICMPV6_CODE: u16 = 9;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const IPS_SEEN_REPLY: u32 = 1 << 1;

/// One direction of a tracked flow, as on the wire on its side. ICMP: the source's port is the identifier, the
/// destination's is type << 8 | code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// A tracked flow: `original` as its first packet came in, `reply` as answers come in (after address translation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    pub protocol: u8,
    pub original: Tuple,
    pub reply: Tuple,
    pub answered: bool,
    /// `TCP_CONNTRACK_*`; 0 for other protocols. 3 is established, 7 time-wait, 8 close.
    pub tcp_state: u8,
}

/// How the tracked flows were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Netlink,
    Proc,
    /// This kernel tracks no connections, or does not show them: forwarded flows are unknown until their next packet.
    Absent,
}

/// All tracked flows of this network namespace.
pub fn tracked() -> Result<(Vec<Tracked>, Source), NetlinkError> {
    let mut flows = Vec::new();
    // struct nfgenmsg: family, version, resource id.
    match netlink::dump(NETLINK_NETFILTER, CONNTRACK_GET, &[libc::AF_UNSPEC as u8, 0, 0, 0], |_, payload| {
        flows.extend(parse(payload.get(4..).unwrap_or_default()));
    }) {
        Ok(_) => return Ok((flows, Source::Netlink)),
        Err(error) if error.is_absent() => {}
        Err(error) => return Err(error),
    }
    match fs::read_to_string("/proc/thread-self/net/nf_conntrack") {
        Ok(text) => Ok((text.lines().filter_map(parse_line).collect(), Source::Proc)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Vec::new(), Source::Absent)),
        Err(error) => Err(error.into()),
    }
}

/// Flows as they begin to be tracked. One whose first packet is answered by a reset (`on_deny` does that) is forgotten by the
/// kernel at once, before anybody could ask for it.
#[derive(Debug)]
pub struct Begun {
    socket: Socket,
}

impl Begun {
    /// From now on. The kernel writes events down for flows that begin after somebody listens.
    pub fn listen() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&NetlinkAddress::new(0, GROUP_NEW))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Takes what waits, at most so many datagrams; what found no room is lost.
    pub fn drain(&self, most: usize, mut each: impl FnMut(&Tracked)) {
        let mut buffer = Vec::with_capacity(16 * 1024);
        for _ in 0..most {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(0) => return,
                Ok(_) => {
                    let new = netlink::messages(&buffer).filter(|(kind, _)| *kind == CONNTRACK_NEW);
                    new.filter_map(|(_, payload)| parse(payload.get(4..)?)).for_each(|tracked| each(&tracked));
                }
                // Some were lost; those that came after wait.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

fn parse(attributes: &[u8]) -> Option<Tracked> {
    let (mut original, mut reply, mut status, mut tcp_state) = (None, None, 0, 0);
    for (kind, value) in netlink::attributes(attributes) {
        match kind {
            CTA_TUPLE_ORIG => original = parse_tuple(value),
            CTA_TUPLE_REPLY => reply = parse_tuple(value),
            CTA_STATUS => status = u32::from_be_bytes(value.try_into().ok()?),
            CTA_PROTOINFO => tcp_state = parse_tcp_state(value).unwrap_or(0),
            _ => {}
        }
    }
    let (protocol, original) = original?;
    Some(Tracked { protocol, original, reply: reply?.1, answered: status & IPS_SEEN_REPLY != 0, tcp_state })
}

fn parse_tcp_state(value: &[u8]) -> Option<u8> {
    let (_, tcp) = netlink::attributes(value).find(|(kind, _)| *kind == CTA_PROTOINFO_TCP)?;
    let (_, state) = netlink::attributes(tcp).find(|(kind, _)| *kind == CTA_PROTOINFO_TCP_STATE)?;
    state.first().copied()
}

fn parse_tuple(value: &[u8]) -> Option<(u8, Tuple)> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut from, mut to, mut service) = (0, 0, 0, None);
    for (kind, value) in netlink::attributes(value) {
        if kind == CTA_TUPLE_IP {
            for (kind, value) in netlink::attributes(value) {
                match kind {
                    // CTA_IP_V4_SRC, V4_DST, V6_SRC, V6_DST.
                    1 | 3 => source = route::join(value),
                    2 | 4 => destination = route::join(value),
                    _ => {}
                }
            }
        } else if kind == CTA_TUPLE_PROTO {
            for (kind, value) in netlink::attributes(value) {
                match kind {
                    CTA_PROTO_NUM => protocol = *value.first()?,
                    CTA_PROTO_SRC_PORT | CTA_PROTO_ICMP_ID | CTA_PROTO_ICMPV6_ID => from = netlink::port(value, 0)?,
                    CTA_PROTO_DST_PORT => to = netlink::port(value, 0)?,
                    CTA_PROTO_ICMP_TYPE | CTA_PROTO_ICMPV6_TYPE => {
                        service = Some(u16::from(*value.first()?) << 8 | service.unwrap_or(0));
                    }
                    CTA_PROTO_ICMP_CODE | CTA_PROTO_ICMPV6_CODE => {
                        service = Some(u16::from(*value.first()?) | service.unwrap_or(0));
                    }
                    _ => {}
                }
            }
        }
    }
    let tuple = Tuple {
        source: SocketAddr::new(source?, from),
        destination: SocketAddr::new(destination?, service.unwrap_or(to)),
    };
    Some((protocol, tuple))
}

/// A line of `/proc/net/nf_conntrack`:
/// `ipv4 2 tcp 6 431999 ESTABLISHED src=… dst=… sport=… dport=… src=… dst=… sport=… dport=… [ASSURED] …`.
fn parse_line(line: &str) -> Option<Tracked> {
    let mut words = line.split_ascii_whitespace();
    let protocol: u8 = words.nth(3)?.parse().ok()?;
    let mut tuples = [Half::default(), Half::default()];
    let (mut at, mut tcp_state, mut answered) = (0, 0, true);
    for word in words {
        if let Some((key, value)) = word.split_once('=') {
            if key == "src" && tuples[0].source.is_some() {
                at = 1;
            }
            tuples[at].set(key, value);
        } else if word == "[UNREPLIED]" {
            answered = false;
        } else if let Some(state) = tcp_state_by_name(word) {
            tcp_state = state;
        }
    }
    let [original, reply] = tuples;
    Some(Tracked { protocol, original: original.tuple()?, reply: reply.tuple()?, answered, tcp_state })
}

#[derive(Default)]
struct Half {
    source: Option<std::net::IpAddr>,
    destination: Option<std::net::IpAddr>,
    from: u16,
    to: u16,
}

impl Half {
    fn set(&mut self, key: &str, value: &str) {
        let number = || value.parse::<u16>().unwrap_or(0);
        match key {
            "src" => self.source = value.parse().ok(),
            "dst" => self.destination = value.parse().ok(),
            "sport" | "id" => self.from = number(),
            "dport" => self.to = number(),
            "type" => self.to |= number() << 8,
            "code" => self.to |= number() & 0xff,
            _ => {}
        }
    }

    fn tuple(&self) -> Option<Tuple> {
        Some(Tuple {
            source: SocketAddr::new(self.source?, self.from),
            destination: SocketAddr::new(self.destination?, self.to),
        })
    }
}

fn tcp_state_by_name(name: &str) -> Option<u8> {
    const NAMES: [&str; 9] = [
        "SYN_SENT",
        "SYN_RECV",
        "ESTABLISHED",
        "FIN_WAIT",
        "CLOSE_WAIT",
        "LAST_ACK",
        "TIME_WAIT",
        "CLOSE",
        "SYN_SENT2",
    ];
    NAMES.iter().position(|known| *known == name).map(|position| position as u8 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_translated_tcp_flow() {
        let line = "ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.2 dst=203.0.113.9 sport=40000 dport=443 \
                    src=203.0.113.9 dst=192.0.2.5 sport=443 dport=40000 [ASSURED] mark=0 zone=0 use=2";
        let flow = parse_line(line).unwrap();
        assert_eq!(flow.protocol, 6);
        assert_eq!(flow.tcp_state, 3);
        assert!(flow.answered);
        assert_eq!(flow.original.source, "10.0.0.2:40000".parse().unwrap());
        assert_eq!(flow.reply.destination, "192.0.2.5:40000".parse().unwrap());
    }

    #[test]
    fn reads_an_unanswered_ping() {
        let line = "ipv4 2 icmp 1 29 src=192.0.2.1 dst=198.51.100.7 type=8 code=0 id=77 [UNREPLIED] \
                    src=198.51.100.7 dst=192.0.2.1 type=0 code=0 id=77 mark=0 use=1";
        let flow = parse_line(line).unwrap();
        assert!(!flow.answered);
        assert_eq!(flow.original.source.port(), 77);
        assert_eq!(flow.original.destination.port(), 8 << 8);
        assert_eq!(parse_line("ipv4 2 tcp"), None);
    }

    #[test]
    fn reads_netlink_attributes() {
        fn nested(kind: u16, parts: &[(u16, &[u8])]) -> Vec<u8> {
            let mut inner = Vec::new();
            for (kind, value) in parts {
                netlink::put_attribute(&mut inner, *kind, value);
            }
            let mut outer = Vec::new();
            netlink::put_attribute(&mut outer, kind | 0x8000, &inner);
            outer
        }
        let tuple = |from: [u8; 4], to: [u8; 4], sport: u16, dport: u16| {
            let mut both = nested(CTA_TUPLE_IP, &[(1, &from), (2, &to)]);
            both.extend(nested(CTA_TUPLE_PROTO, &[(1, &[6]), (2, &sport.to_be_bytes()), (3, &dport.to_be_bytes())]));
            both
        };
        let mut message = Vec::new();
        netlink::put_attribute(&mut message, CTA_TUPLE_ORIG, &tuple([192, 0, 2, 1], [203, 0, 113, 9], 4000, 443));
        netlink::put_attribute(&mut message, CTA_TUPLE_REPLY, &tuple([203, 0, 113, 9], [192, 0, 2, 1], 443, 4000));
        netlink::put_attribute(&mut message, CTA_STATUS, &IPS_SEEN_REPLY.to_be_bytes());
        let flow = parse(&message).unwrap();
        assert_eq!(flow.original.destination, "203.0.113.9:443".parse().unwrap());
        assert_eq!(flow.reply.source, "203.0.113.9:443".parse().unwrap());
        assert!(flow.answered);
    }

    #[test]
    fn messages_of_a_datagram_are_told_apart() {
        let message = |kind: u16, payload: &[u8]| {
            let mut bytes = (16 + payload.len() as u32).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(16, 0);
            bytes.extend(payload);
            bytes.resize(bytes.len().div_ceil(4) * 4, 0);
            bytes
        };
        let both = [message(CONNTRACK_NEW, &[1, 2, 3, 4, 5]), message(7, &[])].concat();
        let found: Vec<_> = netlink::messages(&both).collect();
        assert_eq!(found, [(CONNTRACK_NEW, &[1, 2, 3, 4, 5][..]), (7, &[][..])]);
        assert_eq!(netlink::messages(&both[..20]).count(), 0, "cut short");
    }

    #[test]
    fn asking_this_kernel_does_not_fail() {
        tracked().unwrap();
    }
}
