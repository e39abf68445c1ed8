//! IPv4 and IPv6: each with its own keys, since a 16-byte key is found much faster than a 40-byte one.

use super::Context;
use crate::{
    Direction,
    abi::{FlowKeyV4, FlowKeyV6, FragmentKeyV4, FragmentKeyV6},
    packet::{Packet, Plain, Quoted},
};

pub trait Family: Copy {
    type Key: Copy;
    type FragmentKey: Copy;
    const IPV6: bool;

    /// The packet's flow, seen from here.
    fn key(packet: &Packet, context: &Context) -> Self::Key;
    fn plain_key(packet: &Plain, context: &Context) -> Self::Key;
    /// The flow of the packet that an error quotes: that one went the other way.
    fn quoted_key(quoted: &Quoted, context: &Context) -> Self::Key;
    /// Remote, remote port, local, local port.
    fn ends(key: &Self::Key) -> ([u32; 4], u16, [u32; 4], u16);
    fn fragment_key(packet: &Packet, context: &Context) -> Self::FragmentKey;
}

#[derive(Clone, Copy, Debug)]
pub struct V4;

#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Key = FlowKeyV4;
    type FragmentKey = FragmentKeyV4;
    const IPV6: bool = false;

    #[inline(always)]
    fn key(packet: &Packet, context: &Context) -> FlowKeyV4 {
        let inbound = matches!(context.direction, Direction::Inbound);
        let (source, destination) = (packet.source[0], packet.destination[0]);
        let (source_port, destination_port) = (packet.source_port, packet.destination_port);
        v4_key(inbound, source, source_port, destination, destination_port, packet.protocol, context)
    }

    #[inline(always)]
    fn plain_key(packet: &Plain, context: &Context) -> FlowKeyV4 {
        let inbound = matches!(context.direction, Direction::Inbound);
        let (source, destination) = (packet.source[0], packet.destination[0]);
        let (source_port, destination_port) = (packet.source_port, packet.destination_port);
        v4_key(inbound, source, source_port, destination, destination_port, packet.protocol, context)
    }

    #[inline(always)]
    fn quoted_key(quoted: &Quoted, context: &Context) -> FlowKeyV4 {
        let outbound = matches!(context.direction, Direction::Outbound);
        let (source, destination) = (quoted.source[0], quoted.destination[0]);
        let (source_port, destination_port) = (quoted.source_port, quoted.destination_port);
        v4_key(outbound, source, source_port, destination, destination_port, quoted.protocol, context)
    }

    #[inline(always)]
    fn ends(key: &FlowKeyV4) -> ([u32; 4], u16, [u32; 4], u16) {
        ([key.remote, 0, 0, 0], key.remote_port, [key.local, 0, 0, 0], key.local_port)
    }

    #[inline(always)]
    fn fragment_key(packet: &Packet, context: &Context) -> FragmentKeyV4 {
        FragmentKeyV4 {
            source: packet.source[0],
            destination: packet.destination[0],
            ifindex: context.ifindex,
            id: packet.fragment_id as u16,
            protocol: packet.fragment_protocol,
            direction: context.direction as u8,
        }
    }
}

#[inline(always)]
fn v4_key(
    source_is_remote: bool,
    source: u32,
    source_port: u16,
    destination: u32,
    destination_port: u16,
    protocol: u8,
    context: &Context,
) -> FlowKeyV4 {
    let (remote, remote_port, local, local_port) = if source_is_remote {
        (source, source_port, destination, destination_port)
    } else {
        (destination, destination_port, source, source_port)
    };
    // 169.254.0.0/16, 224.0.0.0/4 and the limited broadcast mean another thing on each link.
    let on_link = remote >> 16 == 0xa9fe || remote >> 28 == 0xe || remote == u32::MAX;
    FlowKeyV4 { remote, local, remote_port, local_port, protocol_scope: scope(on_link, protocol, context) }
}

impl Family for V6 {
    type Key = FlowKeyV6;
    type FragmentKey = FragmentKeyV6;
    const IPV6: bool = true;

    #[inline(always)]
    fn key(packet: &Packet, context: &Context) -> FlowKeyV6 {
        let protocol = packet.protocol;
        match context.direction {
            Direction::Inbound => v6_key(
                &packet.source,
                packet.source_port,
                &packet.destination,
                packet.destination_port,
                protocol,
                context,
            ),
            Direction::Outbound => v6_key(
                &packet.destination,
                packet.destination_port,
                &packet.source,
                packet.source_port,
                protocol,
                context,
            ),
        }
    }

    #[inline(always)]
    fn plain_key(packet: &Plain, context: &Context) -> FlowKeyV6 {
        let (source, source_port) = (&packet.source, packet.source_port);
        let (destination, destination_port) = (&packet.destination, packet.destination_port);
        match context.direction {
            Direction::Inbound => v6_key(source, source_port, destination, destination_port, packet.protocol, context),
            Direction::Outbound => v6_key(destination, destination_port, source, source_port, packet.protocol, context),
        }
    }

    #[inline(always)]
    fn quoted_key(quoted: &Quoted, context: &Context) -> FlowKeyV6 {
        let protocol = quoted.protocol;
        match context.direction {
            Direction::Outbound => v6_key(
                &quoted.source,
                quoted.source_port,
                &quoted.destination,
                quoted.destination_port,
                protocol,
                context,
            ),
            Direction::Inbound => v6_key(
                &quoted.destination,
                quoted.destination_port,
                &quoted.source,
                quoted.source_port,
                protocol,
                context,
            ),
        }
    }

    #[inline(always)]
    fn ends(key: &FlowKeyV6) -> ([u32; 4], u16, [u32; 4], u16) {
        (key.remote, key.remote_port, key.local, key.local_port)
    }

    #[inline(always)]
    fn fragment_key(packet: &Packet, context: &Context) -> FragmentKeyV6 {
        FragmentKeyV6 {
            source: packet.source,
            destination: packet.destination,
            ifindex: context.ifindex,
            id: packet.fragment_id,
            protocol: packet.fragment_protocol,
            direction: context.direction as u8,
            reserved: 0,
        }
    }
}

#[inline(always)]
fn v6_key(
    remote: &[u32; 4],
    remote_port: u16,
    local: &[u32; 4],
    local_port: u16,
    protocol: u8,
    context: &Context,
) -> FlowKeyV6 {
    let on_link = is_link_local(remote[0]) || remote[0] >> 24 == 0xff;
    FlowKeyV6 {
        remote: *remote,
        local: *local,
        remote_port,
        local_port,
        protocol_scope: scope(on_link, protocol, context),
    }
}

#[inline(always)]
const fn scope(on_link: bool, protocol: u8, context: &Context) -> u32 {
    protocol as u32 | if on_link { context.ifindex << 8 } else { 0 }
}

/// fe80::/10, by the first word.
#[inline(always)]
pub const fn is_link_local(first: u32) -> bool {
    first >> 22 == 0xfe80 >> 6
}
