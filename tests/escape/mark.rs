//! What an attempt carries, so that a capture can tell one attempt, and one phase, from every other.

use std::net::IpAddr;

use guard_tests::frame::Packet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// 0: without guard. From 1 on: guarded.
    pub phase: u8,
    pub number: u16,
}

impl Mark {
    /// Fourteen bytes that nothing else sends.
    #[must_use]
    pub fn text(&self) -> String {
        format!("e5ca:{}:{:04}:pe", self.phase, self.number)
    }

    /// A port that is in no rule, and below those that the kernel gives away.
    #[must_use]
    pub fn port(&self) -> u16 {
        20_000 + u16::from(self.phase) * 2_000 + self.number
    }

    /// For what has no room for more: a sequence number, an identifier.
    #[must_use]
    pub fn word(&self) -> u32 {
        0xe5ca_0000 | u32::from(self.phase) << 12 | u32::from(self.number)
    }
}

/// How an attempt is known on the wire.
#[derive(Clone, Copy, Debug)]
pub enum Sign {
    /// [`Mark::text`], anywhere in the frame.
    Text,
    /// [`Mark::port`] on either side.
    Port,
    /// [`Mark::word`], anywhere.
    Word,
    /// Of tools that carry what they please: by packet.
    Packet(fn(&Packet) -> bool),
}

impl Sign {
    #[must_use]
    pub fn is_on(self, mark: &Mark, frame: &[u8]) -> bool {
        match self {
            Self::Text => contains(frame, mark.text().as_bytes()),
            Self::Word => contains(frame, &mark.word().to_be_bytes()),
            Self::Port => Packet::parse(frame).is_some_and(|packet| {
                matches!(packet.protocol, 6 | 17)
                    && packet.fragment_offset == 0
                    && (packet.source_port == mark.port() || packet.destination_port == mark.port())
            }),
            Self::Packet(wanted) => Packet::parse(frame).is_some_and(|packet| wanted(&packet)),
        }
    }
}

#[must_use]
pub fn contains(frame: &[u8], wanted: &[u8]) -> bool {
    frame.windows(wanted.len()).any(|window| window == wanted)
}

/// Addresses and Ethernet addresses of `guard_tests::world`, for programs that run inside it and do not have it.
pub mod at {
    use std::net::{Ipv4Addr, Ipv6Addr};

    pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
    pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10);
    pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
    pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x20);
    pub const INTRUDER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
    pub const INTRUDER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 9);
    pub const RESPONDER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
    pub const RESPONDER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x17, 0, 0, 0, 0, 7);
    pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
    pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x20];
}

#[must_use]
pub fn server(ipv6: bool) -> IpAddr {
    if ipv6 { at::SERVER_V6.into() } else { at::SERVER_V4.into() }
}

/// Whom the policy does not list.
#[must_use]
pub fn intruder(ipv6: bool) -> IpAddr {
    if ipv6 { at::INTRUDER_V6.into() } else { at::INTRUDER_V4.into() }
}

/// Whom it lists, for TCP port 443 outbound and 22 inbound.
#[must_use]
pub fn responder(ipv6: bool) -> IpAddr {
    if ipv6 { at::RESPONDER_V6.into() } else { at::RESPONDER_V4.into() }
}
