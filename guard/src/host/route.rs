//! By which interface this host would send to an address (RTM_GETROUTE), and which addresses are its own.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::netlink::{self, NetlinkError};

const NETLINK_ROUTE: isize = 0;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTN_LOCAL: u8 = 2;

/// Where packets to an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Stays on this host.
    Local,
    /// Leaves by the interface with this index.
    Interface(u32),
    /// No route: an answer to it cannot be sent, so nothing is known of its interface.
    None,
}

/// Routes already asked for: a host with many connections has few remotes' networks, but asks for each address.
#[derive(Debug, Default)]
pub struct Routes {
    known: HashMap<IpAddr, Way>,
}

impl Routes {
    /// The main answer: what the routing tables say for a packet without mark and from any source.
    pub fn to(&mut self, address: IpAddr) -> Way {
        *self.known.entry(address).or_insert_with(|| ask(address).unwrap_or(Way::None))
    }
}

fn ask(address: IpAddr) -> Result<Way, NetlinkError> {
    let (family, octets) = split(address);
    // struct rtmsg: family, destination length, then zeros.
    let mut body = vec![family, (octets.len() * 8) as u8];
    body.resize(12, 0);
    netlink::put_attribute(&mut body, RTA_DST, &octets);
    let mut way = Way::None;
    netlink::get(NETLINK_ROUTE, RTM_GETROUTE, &body, |_, payload| {
        if payload.get(7) == Some(&RTN_LOCAL) {
            way = Way::Local;
            return;
        }
        let interface = netlink::attributes(payload.get(12..).unwrap_or_default())
            .find(|(kind, _)| *kind == RTA_OIF)
            .and_then(|(_, value)| netlink::number(value, 0));
        if let Some(index) = interface {
            way = Way::Interface(index);
        }
    })?;
    Ok(way)
}

/// Whether the kernel knows the network namespace of a process as one that an interface of ours leads to (RTM_GETNSID,
/// kernel net/core/net_namespace.c: it gets a number when its end of a pair, or what is stacked on ours, is first told).
/// What cannot be asked is taken for no.
pub fn is_linked(pid: u32) -> bool {
    // struct rtgenmsg, padded.
    let mut body = vec![0; 4];
    netlink::put_attribute(&mut body, NETNSA_PID, &pid.to_ne_bytes());
    let mut linked = false;
    let asked = netlink::get(NETLINK_ROUTE, RTM_GETNSID, &body, |_, payload| {
        let number = netlink::attributes(payload.get(4..).unwrap_or_default())
            .find(|(kind, _)| *kind == NETNSA_NSID)
            .and_then(|(_, value)| netlink::number(value, 0));
        // -1: it has none.
        linked = number.is_some_and(|number| number as i32 >= 0);
    });
    asked.is_ok() && linked
}

/// The addresses of this network namespace's interfaces.
pub fn own_addresses() -> Result<HashSet<IpAddr>, NetlinkError> {
    let mut own = HashSet::new();
    netlink::dump(NETLINK_ROUTE, RTM_GETADDR, &[0; 8], |_, payload| {
        // struct ifaddrmsg is 8 bytes. IFA_LOCAL is ours; on links without it IFA_ADDRESS is.
        let rest = payload.get(8..).unwrap_or_default();
        let find =
            |wanted| netlink::attributes(rest).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| join(value));
        if let Some(address) = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS)) {
            own.insert(address);
        }
    })?;
    Ok(own)
}

fn split(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET as u8, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6 as u8, address.octets().to_vec()),
    }
}

/// 4 or 16 octets.
pub(super) fn join(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(octets.into());
    }
    Some(<[u8; 16]>::try_from(octets).ok()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_ours_and_stays_here() {
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(own_addresses().unwrap().contains(&loopback));
        assert_eq!(Routes::default().to(loopback), Way::Local);
    }
}
